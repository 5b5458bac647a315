"""A node that may open no more files refuses a live connection, and says so to nobody's alarm."""

import asyncio
import logging
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from nodes import KEY, serving

SSE = "GET /v1/sse?channel=a HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {key}\r\n\r\n"
WS = (
    "GET /v1/ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    "Authorization: Bearer {key}\r\n\r\n"
)


@contextmanager
def no_file_left() -> Iterator[None]:
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("request_text", [SSE, WS], ids=["sse", "websocket"])
async def test_without_a_file_left_a_live_connection_is_closed(
    request_text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as served:
        reader, writer = await served.connect()
        # Time for the node to accept it.
        await asyncio.sleep(0.05)
        with no_file_left():
            writer.write(request_text.format(key=KEY).encode())
            await asyncio.wait_for(reader.read(), 5.0)
        writer.close()
        assert not [each.message for each in caplog.records if each.levelno >= logging.ERROR]
        assert served.node.hub.sessions == {}
        # Nothing was kept of it: the next one comes in.
        reader, writer = await served.connect()
        writer.write(request_text.format(key=KEY).encode())
        assert (await reader.readline()).split()[1] in (b"101", b"200")
        writer.close()
