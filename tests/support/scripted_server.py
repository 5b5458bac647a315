"""A WebSocket server that follows a script, one for each connection, to try clients with."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

_QUIET = logging.getLogger("scripted")
_QUIET.setLevel(logging.CRITICAL)


class Peer:
    """The server's end of one connection, and the headers that the client sent."""

    def __init__(self, link: ServerConnection) -> None:
        assert link.request is not None
        self.link = link
        self.headers = link.request.headers
        self.path = link.request.path

    def hear(self) -> dict[str, Any]:
        """Return the client's next message."""
        message: dict[str, Any] = json.loads(self.link.recv(timeout=10))
        return message

    def say(self, **fields: Any) -> None:
        """Send a message."""
        self.link.send(json.dumps(fields))

    def welcome(self, ping_s: float = 25) -> None:
        """Say that the session is open."""
        self.say(type="connected", session="s", user=None, node="n", ping_s=ping_s, limits={})

    def subscribe(self, position: str = "p0", **more: Any) -> dict[str, Any]:
        """Hear a subscribe, answer it and return it."""
        command = self.hear()
        assert command["type"] == "subscribe"
        self.say(
            type="subscribed",
            ref=command["ref"],
            channel=command["channel"],
            position=position,
            **more,
        )
        return command

    def event(self, channel: str, position: str, data: Any = None, **more: Any) -> None:
        """Send an event."""
        fields = {"id": position, "name": "message", "tags": {}, "time": 1_789_000_000_123}
        self.say(type="event", channel=channel, position=position, data=data, **fields | more)

    def drop(self) -> None:
        """Cut the connection without a close frame."""
        self.link.socket.shutdown(2)


Script = Callable[[Peer], None]
Refusal = tuple[HTTPStatus, str, dict[str, str]]


@contextmanager
def scripted(*scripts: Script | Refusal) -> Iterator[str]:
    """Serve, each connection by the next script, and yield the address (`http://...`).

    A script may be a refusal of the handshake: status, body, headers. What a script raises is
    raised at the end; so is a script that was not asked for.
    """
    waiting = list(scripts)
    failures: list[BaseException] = []
    done = threading.Semaphore(0)

    def answer(_: ServerConnection, __: Request) -> Response | None:
        if waiting and isinstance(waiting[0], tuple):
            status, body, headers = waiting.pop(0)  # type: ignore[misc]
            done.release()
            head = Headers({"Content-Length": str(len(body)), "Connection": "close", **headers})
            return Response(int(status), "Refused", head, body.encode())
        return None

    def handle(link: ServerConnection) -> None:
        try:
            script = waiting.pop(0)
            assert callable(script)
            script(Peer(link))
        except BaseException as error:
            failures.append(error)
        finally:
            done.release()

    with serve(
        handle,
        "127.0.0.1",
        0,
        subprotocols=[Subprotocol("galecast.v1.json")],
        process_request=answer,
        logger=_QUIET,
        ping_interval=None,
        close_timeout=1,
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
            for _ in scripts:
                assert done.acquire(timeout=5), "a script was not asked for, or does not end"
        finally:
            server.shutdown()
            thread.join()
    if failures:
        raise failures[0]
