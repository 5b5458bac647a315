"""Taking a socket out of Tornado's hands."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest
from tornado.iostream import IOStream

from handlers.base import BaseHandler
from handlers.live import take_socket
from live_rig import live, until
from server.errors import Unavailable


class Handler:
    """What of a handler counts here: a stream to detach."""

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self.counted_out = 0

    def detach(self) -> IOStream:
        return self._stream

    def left(self) -> None:
        self.counted_out += 1


def pair() -> tuple[Handler, IOStream, socket.socket]:
    near, far = socket.socketpair()
    stream = IOStream(near)
    return Handler(stream), stream, far


def take(handler: Handler) -> tuple[socket.socket, bytes]:
    return take_socket(cast(BaseHandler, handler))


async def test_the_socket_outlives_the_stream() -> None:
    handler, stream, far = pair()
    sock, early = take(handler)
    assert early == b"" and handler.counted_out == 1
    assert stream.closed()
    sock.send(b"still here")
    assert far.recv(100) == b"still here"
    far.send(b"you too")
    assert sock.recv(100) == b"you too"
    sock.close()
    far.close()


async def test_what_came_early_is_handed_over() -> None:
    for size in (1, 70_000, 150_000):
        handler, _stream, far = pair()
        far.setblocking(False)
        sent = far.send(b"x" * size)
        sock, early = take(handler)
        sock.setblocking(False)
        rest = b""
        while len(early) + len(rest) < sent:
            rest += sock.recv(1 << 20)
        assert early + rest == b"x" * sent and early
        sock.close()
        far.close()


async def test_a_client_that_left_after_it_wrote() -> None:
    handler, _stream, far = pair()
    far.send(b"last words")
    far.close()
    sock, early = take(handler)
    assert early == b"last words"
    assert sock.recv(10) == b""
    sock.close()


async def test_a_client_that_tornado_knows_to_be_gone() -> None:
    handler, stream, far = pair()
    stream.close()
    with pytest.raises(Unavailable):
        take(handler)
    assert handler.counted_out == 1
    far.close()


async def test_a_socket_that_cannot_be_taken_counts_as_nobody(monkeypatch: Any) -> None:
    """No descriptor is left, say: the stream is closed, and nobody is counted in."""
    async with live() as rig:

        def fail(_stream: object) -> bytes:
            raise Unavailable("no descriptor")

        with monkeypatch.context() as patched:
            patched.setattr("handlers.live._read_early", fail)
            wire = await rig.wire()
            await wire.write(rig.handshake())
            assert await wire.rest() == b""
            await until(rig.nobody_left)
        client = await rig.ws()
        await client.goodbye()
