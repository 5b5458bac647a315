"""Who is connected here? This file: `tail`, which follows channels and comes back when cut off."""

import random
import time
from collections.abc import Callable
from typing import Any, Final

import websocket
from websocket import ABNF, WebSocket

from server.cli_following import NO_CLOSE_FRAME, Following, event_line
from server.cli_output import CommandFailed, put, put_json_text, tell
from server.cli_target import CONNECT_TIMEOUT_S, Credential, Target, Unreachable, problem_of

_SUBPROTOCOL: Final = "galecast.v1.json"
_PONG_S: Final = 5.0
_CLOSE_S: Final = 1.0
_LATER_S: Final = 1.0
# A session that lasted this long was a good one: the next attempt counts as the first.
_STEADY_S: Final = 10.0
_COME_BACK_STATUS: Final = (408, 425, 429)
# What the library raises on a connection that breaks, or on an answer that is no HTTP.
_BROKEN: Final = (websocket.WebSocketException, OSError, ValueError, IndexError)


class _Lost(Exception):
    """The connection is over, or there was none; another attempt may succeed."""

    def __init__(self, text: str, *, after_s: float = 0.0) -> None:
        super().__init__(text)
        self.after_s = after_s


class Tail:
    """Follows channels on one server and writes each event as a line.

    `count` ends it after so many events; `sleep` and `draw` (0 to 1) are for waiting.
    """

    def __init__(
        self,
        target: Target,
        credential: Credential,
        following: Following,
        *,
        count: int | None = None,
        as_json: bool = False,
        sleep: Callable[[float], None] = time.sleep,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._target = target
        self._credential = credential
        self._following = following
        self._left = count
        self._as_json = as_json
        self._sleep = sleep
        self._draw = draw

    def run(self) -> int:
        """Follow until all is shown that was asked for; raises CommandFailed.

        What cannot be reached at first is an error; what is lost later is looked for again.
        """
        following = self._following
        attempt = 0
        while True:
            started = time.monotonic()
            try:
                self._session()
            except (_Lost, Unreachable) as lost:
                if not following.opened:
                    raise CommandFailed(str(lost)) from None
                if time.monotonic() - started > _STEADY_S:
                    attempt = 0
                pause_s = following.pause_s(attempt, self._draw()) + getattr(lost, "after_s", 0.0)
                tell(f"{lost}; coming back in {pause_s:.1f} s")
                attempt += 1
                self._sleep(pause_s)
            else:
                return 0

    def _session(self) -> None:
        """Run one session; returns when enough was shown, raises _Lost when it ends before."""
        link = WebSocket()
        headers = self._credential.headers()
        first = self._following.begin(anonymous=not headers)
        self._shake_hands(link, headers)
        try:
            for command in first:
                _send(link, command)
            self._listen(link)
        finally:
            link.close(timeout=_CLOSE_S)
            # After a close frame of the server's, close() leaves the socket open.
            link.shutdown()  # type: ignore[no-untyped-call]

    def _shake_hands(self, link: WebSocket, headers: dict[str, str]) -> None:
        target = self._target
        sock = target.connect()
        scheme = "wss" if target.secure else "ws"
        try:
            # A socket of our own: the library would go through a proxy, even to this machine. And
            # no redirects: it would show the credential to wherever they lead.
            link.connect(  # type: ignore[no-untyped-call]
                f"{scheme}://{target.netloc}{target.prefix}/v1/ws",
                socket=sock,
                timeout=CONNECT_TIMEOUT_S,
                header=headers,
                suppress_origin=True,
                subprotocols=[_SUBPROTOCOL],
                redirect_limit=0,
            )
        except websocket.WebSocketBadStatusException as error:
            problem = problem_of(error.status_code, _body(error))
            text = f"{target.url} refused: {problem}"
            if error.status_code >= 500 or error.status_code in _COME_BACK_STATUS:
                raise _Lost(text, after_s=_retry_after_s(error)) from None
            raise CommandFailed(text) from None
        except _BROKEN as error:
            sock.close()
            raise _Lost(f"{target.url} opens no WebSocket: {error}") from None

    def _listen(self, link: WebSocket) -> None:
        following = self._following
        asked_at: float | None = None
        later_at: float | None = None
        heard_at = time.monotonic()
        while self._left is None or self._left > 0:
            limit = heard_at + following.silence_s if asked_at is None else asked_at + _PONG_S
            until = limit if later_at is None else min(limit, later_at)
            message = _receive(link, following, until)
            now = time.monotonic()
            if message is not None:
                heard_at, asked_at = now, None
                if message:
                    self._take(link, message)
                if following.later and later_at is None:
                    later_at = now + _LATER_S
            elif later_at is not None and now >= later_at:
                later_at = None
                for command in following.subscribe_later():
                    _send(link, command)
            elif asked_at is None:
                asked_at = now
                _send(link, following.ping())
            else:
                raise _Lost("the server says nothing any more")

    def _take(self, link: WebSocket, message: bytes) -> None:
        heard = self._following.receive(message)
        for note in heard.notes:
            tell(note)
        if heard.event is not None:
            if self._as_json:
                put_json_text(message.decode())
            else:
                put(event_line(heard.event))
            if self._left is not None:
                self._left -= 1
        for command in heard.commands:
            _send(link, command)


def _send(link: WebSocket, command: str) -> None:
    try:
        link.settimeout(_PONG_S)
        link.send(command)
    except _BROKEN as error:
        raise _Lost(f"the connection was lost ({error})") from None


def _receive(link: WebSocket, following: Following, until: float) -> bytes | None:
    """Return the next message; nothing in it for a control frame, None if `until` has come.

    Raises _Lost when the session is over, CommandFailed when the client shall stay away.
    """
    # A timeout of 0 would mean not to block, and to fail at once.
    link.settimeout(max(0.001, until - time.monotonic()))
    try:
        opcode, frame = link.recv_data_frame(control_frame=True)
    except websocket.WebSocketTimeoutException:
        return None
    except _BROKEN as error:
        # The close frame may be lost in a reset; what the server said before it may not.
        raise _Lost(following.closed(NO_CLOSE_FRAME, str(error))) from None
    data: bytes = frame.data
    if opcode == ABNF.OPCODE_CLOSE:
        code = int.from_bytes(data[:2], "big") if len(data) >= 2 else 1005
        raise _Lost(following.closed(code, data[2:].decode("utf-8", "replace")))
    return data if opcode in (ABNF.OPCODE_TEXT, ABNF.OPCODE_BINARY) else b""


def _body(error: websocket.WebSocketBadStatusException) -> bytes:
    body: Any = error.resp_body
    return body if isinstance(body, bytes) else b""


def _retry_after_s(error: websocket.WebSocketBadStatusException) -> float:
    headers: Any = error.resp_headers or {}
    text = str(headers.get("retry-after", ""))
    return float(text) if text.isdigit() and len(text) < 5 else 0.0
