"""Few connections to a node that are held by hand, where the load engine does too much."""

import re
import socket
import time
from typing import Final, Self

from _servers import DEV_KEY, Server
from server.load_frames import Framing
from server.load_opening import Open, Opening, Wanted
from server.load_target import LoadFailed, Wire

_PING_MASKED: Final = b"\x89\x80\0\0\0\0"
_PONG: Final = b"\x8a\x00"


class Requests:
    """One HTTP connection, one request at a time."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), timeout=30.0)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the body of a successful answer; raises LoadFailed for any other."""
        self.send(method, path, body)
        return self.receive()

    def send(self, method: str, path: str, body: bytes = b"") -> None:
        """Send a request; its answer is to be read with `receive`."""
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {DEV_KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._sock.sendall(head.encode() + body)

    def receive(self) -> bytes:
        """Return the body of the answer to the request sent first."""
        data = bytearray()
        while b"\r\n\r\n" not in data:
            data += self._read()
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if b" 200 " not in head.split(b"\r\n", 1)[0] or found is None:
            raise LoadFailed(f"a request failed: {bytes(data[:500])!r}")
        while len(body) < int(found[1]):
            body += self._read()
        return body

    def _read(self) -> bytes:
        data = self._sock.recv(65_536)
        if not data:
            raise LoadFailed("the server closed a connection")
        return data

    def close(self) -> None:
        """End the connection."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pings:
    """One session that sends pings, one at a time: each is answered in the turn that reads it."""

    def __init__(self, port: int, wire: Wire) -> None:
        (opened,) = sessions(port, [wanted(wire, 0, "bench.pings")])
        self._sock = opened.sock
        self._sock.setblocking(True)
        self._sock.settimeout(30.0)

    def longest_ms(self, seconds: float) -> float:
        """Send pings without a pause; return the longest time until an answer, in ms."""
        longest, until = 0.0, time.perf_counter() + seconds
        while (asked := time.perf_counter()) < until:
            self._sock.sendall(_PING_MASKED)
            if self._sock.recv(64) != _PONG:
                raise LoadFailed("a ping was answered by something else")
            longest = max(longest, time.perf_counter() - asked)
        return longest * 1000

    def close(self) -> None:
        """End the session."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def wanted(
    wire: Wire,
    number: int,
    channel: str,
    *,
    first: bytes | None = None,
    ready: bytes | None = None,
    frames: Framing | None = None,
) -> Wanted:
    """Return what the load engine wants of a session on one channel, or something else instead."""
    return Wanted(
        hello=wire.hello(number),
        accepted=wire.accepted,
        first=wire.first([channel]) if first is None else first,
        ready=wire.ready if ready is None else ready,
        confirmations=1 if wire.ready or ready else 0,
        refused=wire.refused,
        frames=wire.frames if frames is None else frames,
    )


def sessions(port: int, all_wanted: list[Wanted], parallel: int = 128) -> list[Open]:
    """Open sessions that are read by hand."""
    return Opening("127.0.0.1", port, parallel=parallel).open(all_wanted)[0]


def _metrics(server: Server) -> str:
    with Requests(server.port) as requests:
        return requests.ask("GET", "/metrics").decode()


def counter(server: Server, name: str) -> float:
    """Return the sum of a metric of a node over all of its labels; 0 if it has none such."""
    found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", _metrics(server), re.MULTILINE)
    return sum(map(float, found))


def lags(server: Server) -> dict[float, float]:
    """Return how often the loop of a node was late by no more than each bound, in ms."""
    found = re.findall(
        r'^galecast_loop_lag_seconds_bucket\{le="([^"]+)"\} (\S+)$', _metrics(server), re.MULTILINE
    )
    return {float(bound) * 1000: float(count) for bound, count in found}


def drained(sock: socket.socket) -> bytes:
    """Return all that there is to read on a socket that does not block."""
    data = bytearray()
    while True:
        try:
            piece = sock.recv(1 << 20)
        except BlockingIOError:
            return bytes(data)
        if not piece:
            raise LoadFailed("the server closed a session")
        data += piece
