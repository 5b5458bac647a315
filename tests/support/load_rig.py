"""A server at the wire that load is put on: it may lose, repeat and swap what it sends."""

from __future__ import annotations

import re
import selectors
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from server.load_frames import PING, PONG_MASKED, masked
from server.load_target import MARK, MARK_BYTES, Publishing, Target, Wire

Tamper = Callable[[int, int, bytes], bytes]
"""Session, event and its frame in; what is sent instead out."""

ACCEPTED = b"HTTP/1.1 101 Switching Protocols\r\n\r\n"


def text_frame(payload: bytes) -> bytes:
    """A server's frame."""
    size = len(payload)
    assert size < 126
    return bytes((0x81, size)) + payload


class WireServer:
    """Sends each event to all sessions, through `tamper`, then acknowledges it.

    `greeting` is what a session gets for its handshake, `refuse` what a publisher gets for an event
    instead of an acknowledgement. It never looks at channels.
    """

    def __init__(
        self,
        tamper: Tamper = lambda _session, _event, frame: frame,
        *,
        greeting: Callable[[int], bytes] = lambda _: ACCEPTED,
        acknowledge: Callable[[int], bytes] = lambda _: b"ack;",
    ) -> None:
        self._tamper = tamper
        self._greeting = greeting
        self._acknowledge = acknowledge
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._sessions: dict[int, socket.socket] = {}
        self._heads: dict[socket.socket, bytes] = {}
        self._publishers: dict[socket.socket, bytes] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._ended = threading.Event()
        self.heard = b""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            for key, _ in self._selector.select(0.02):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                if sock is self._listener:
                    new, _address = sock.accept()
                    self._heads[new] = b""
                    self._selector.register(new, selectors.EVENT_READ)
                else:
                    self._read(sock)

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65_536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(sock)
            sock.close()
        elif sock in self._publishers:
            self._publish(sock, data)
        elif sock in self._heads:
            self._greet(sock, data)
        else:
            self.heard += data

    def _greet(self, sock: socket.socket, data: bytes) -> None:
        self._heads[sock] += data
        if b"\r\n\r\n" not in self._heads[sock]:
            return
        head = self._heads.pop(sock)
        if found := re.match(rb"GET /s/(\d+) ", head):
            number = int(found[1])
            self._sessions[number] = sock
            sock.sendall(self._greeting(number))
        else:
            self._publishers[sock] = b""
            sock.sendall(ACCEPTED)

    def _publish(self, sock: socket.socket, data: bytes) -> None:
        *events, rest = (self._publishers[sock] + data).split(b"\n")
        self._publishers[sock] = rest
        for event in events:
            number = int(event[len(MARK) : MARK_BYTES])
            for session, to in list(self._sessions.items()):
                if frame := self._tamper(session, number, text_frame(event)):
                    self._send(to, frame)
            self._send(sock, self._acknowledge(number))

    @staticmethod
    def _send(to: socket.socket, frame: bytes) -> None:
        if frame == b"hang up":
            to.shutdown(socket.SHUT_RDWR)
        else:
            # Who has hung up, or was hung up on, gets no more.
            with suppress(OSError):
                to.sendall(frame)

    def say(self, session: int, data: bytes) -> None:
        """Send something by itself."""
        self._sessions[session].sendall(data)

    def close(self) -> None:
        """End."""
        self._ended.set()
        self._thread.join()
        self._selector.close()
        for sock in [self._listener, *self._sessions.values(), *self._heads, *self._publishers]:
            sock.close()


def wire_target(port: int, *, keepalive_s: float = 0.0, ready: bytes = b"") -> Target:
    """How to speak to it."""

    def build(events: Sequence[tuple[str, bytes]]) -> bytes:
        return b"".join(data + b"\n" for _, data in events)

    wire = Wire(
        name="wire",
        hello=lambda number: b"GET /s/%d HTTP/1.1\r\n\r\n" % number,
        first=lambda _: masked(b"subscribe"),
        ready=ready,
        refused=b"refused",
        ping=PING,
        keepalive=PONG_MASKED,
        keepalive_s=keepalive_s,
    )
    publishing = Publishing(
        name="wire",
        build=build,
        acked=b"ack;",
        refused=b"refuse;",
        hello=b"GET /publish HTTP/1.1\r\n\r\n",
    )
    return Target(
        name="wire", host="127.0.0.1", port=port, wires=(wire,), publishing=lambda: publishing
    )


@contextmanager
def wire_server(tamper: Tamper | None = None, **options: object) -> Iterator[WireServer]:
    """Run one for a block."""
    given = {} if tamper is None else {"tamper": tamper}
    server = WireServer(**given, **options)  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close()
