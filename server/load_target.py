"""Who is connected here? This file: what a load client has to know of a server to speak to it.

The engine knows sockets, times and counts; all that is particular to a server stands in a Target.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from server.load_frames import PING, PONG_MASKED, Framing, websocket_frames

MARK: Final = b"~ev:"
_DIGITS: Final = 12
MARK_BYTES: Final = len(MARK) + _DIGITS


class LoadFailed(Exception):
    """A load could not be brought up or kept up; the text is for whoever asked for it."""


def mark_of(number: int) -> bytes:
    """Return the text that stands in the data of event `number`, and by which it is found again.

    It is ASCII without quotes, so it reads the same in every encoding, and always as long.
    """
    return b"~ev:%012d" % number


def padding(size: int) -> bytes:
    """Return what makes data out of a mark that has `size` bytes as JSON text, quotes included.

    Raises LoadFailed if that is too little for the mark.
    """
    least = MARK_BYTES + 2
    if size < least:
        raise LoadFailed(f"an event's data cannot be smaller than {least} bytes here")
    return b"x" * (size - least)


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """How a subscriber speaks.

    `hello` is the request of session `i`; `first` is what the session sends when that is accepted,
    given its channels; it is ready when `ready` stood in as many messages as it has channels (at
    once, if empty). A message with `refused` in it before that is an error. `ping` is what the
    server sends unasked, as a whole frame, and `keepalive` what it wants to hear every
    `keepalive_s` (0: nothing). `keepalive_of` may find another time in what the server said while
    the first session was opened.
    """

    name: str
    hello: Callable[[int], bytes]
    first: Callable[[Sequence[str]], bytes]
    ready: bytes
    refused: bytes = b""
    accepted: bytes = b"HTTP/1.1 101"
    frames: Framing = websocket_frames
    ping: bytes = PING
    keepalive: bytes = PONG_MASKED
    keepalive_s: float = 10.0
    keepalive_of: Callable[[bytes], float | None] = lambda _: None


class Publishing(msgspec.Struct, frozen=True, kw_only=True):
    """How a publisher speaks.

    `hello` opens its session (empty: plain HTTP requests, no session) and is answered with
    `accepted`; then `first` is sent, and it is ready when `ready` was seen. `build` makes one
    message of events, each a channel and the data's mark; it is called once for each message, in
    the order in which they are sent on this connection. `acked` stands once in what the server
    says of every event that was taken, `refused` wherever it says no, `closing` where it says that
    the session ends. `keepalive` is sent as often as a subscriber's, if there is one.
    """

    name: str
    build: Callable[[Sequence[tuple[str, bytes]]], bytes]
    acked: bytes
    refused: bytes
    closing: bytes = b""
    hello: bytes = b""
    first: bytes = b""
    ready: bytes = b""
    accepted: bytes = b"HTTP/1.1 101"
    frames: Framing = websocket_frames
    keepalive: bytes = b""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A server under load: where it is, how its subscribers and its publishers speak.

    With several wires the subscribers of each channel are shared among them. `publishing` makes a
    way for each publisher, since one may hold state. `again` answers what to do about a refused
    handshake: seconds to wait before the next try, or None when it is final. Publishers connect to
    `publish_port`, when that is another one.
    """

    name: str
    host: str
    port: int
    publish_port: int = 0
    wires: tuple[Wire, ...]
    publishing: Callable[[], Publishing]
    again: Callable[[bytes], float | None] = lambda _: None
