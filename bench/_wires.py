"""How one speaks to the peers: requests, handshakes, and where a message begins and ends (pure)."""

from collections.abc import Callable, Sequence
from typing import Final

from server.load_frames import masked
from server.load_target import Publishing, Wire

# The sample of RFC 6455, so that a server may know its answer by heart.
_KEY: Final = "dGhlIHNhbXBsZSBub25jZQ=="
_DATA: Final = b"data: "

Event = tuple[str, bytes]


def json_event(channel: str, data: bytes) -> bytes:
    """Return the event that every peer sends on as it is; `data` is ASCII without quotes."""
    return b'{"channel":"%s","name":"message","data":"%s"}' % (channel.encode(), data)


def handshake(path: str) -> bytes:
    """Return the request that opens a WebSocket."""
    return (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


def websocket_wire(
    path: Callable[[int], str],
    *,
    first: Callable[[Sequence[str]], bytes] = lambda _: b"",
    ready: bytes = b"",
) -> Wire:
    """Return a wire for sessions that open `path`, which may depend on the session."""
    return Wire(
        name="websocket",
        hello=lambda number: handshake(path(number)),
        first=first,
        ready=ready,
        ping=b"",
        keepalive_s=0.0,
    )


def stream_wire(path: Callable[[int], str]) -> Wire:
    """Return a wire for Server-Sent Events."""
    return Wire(
        name="sse",
        hello=lambda number: f"GET {path(number)} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode(),
        first=lambda _: b"",
        ready=b"",
        accepted=b"HTTP/1.0 200",
        frames=sse_frames,
        ping=b"",
        keepalive_s=0.0,
    )


def sse_frames(data: bytes) -> tuple[list[tuple[int, int]], int]:
    """See load_frames.Framing; what has no data is no message."""
    found = []
    at = 0
    while (end := data.find(b"\n\n", at)) >= 0:
        if data.find(_DATA, at, end) >= 0:
            found.append((at, end + 2))
        at = end + 2
    return found, at


def http_publishing(
    path: Callable[[str], str] = lambda _: "/v1/events",
    *,
    body: Callable[[str, bytes], bytes] = json_event,
    headers: str = "Content-Type: application/json\r\n",
    acked: bytes = b"HTTP/1.1 20",
    refused: bytes = b"HTTP/1.1 4",
) -> Publishing:
    """Return a way to publish with a POST for each event, one behind the other."""

    def build(events: Sequence[Event]) -> bytes:
        return b"".join(
            b"POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%sContent-Length: %d\r\n\r\n%s"
            % (path(channel).encode(), headers.encode(), len(text), text)
            for channel, data in events
            for text in [body(channel, data)]
        )

    return Publishing(name="http", build=build, acked=acked, refused=refused)


def websocket_publishing(path: str) -> Publishing:
    """Return a way to publish with a message for each event, each answered with `{}`."""

    def build(events: Sequence[Event]) -> bytes:
        return b"".join(masked(json_event(*event)) for event in events)

    return Publishing(
        name="websocket", build=build, acked=b"\x81\x02{}", refused=b"\x88", hello=handshake(path)
    )
