"""The proxy of the tests: each fault is what it says, and ends when it should."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cutting_proxy import CuttingProxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes, until the peer ends."""
    try:
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.close()


@asynccontextmanager
async def proxy_of_echo() -> AsyncIterator[CuttingProxy]:
    async with CuttingProxy() as proxy, await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        proxy.target = server.sockets[0].getsockname()[1]
        yield proxy
        proxy.cut()


@asynccontextmanager
async def client_of(proxy: CuttingProxy) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def answer(streams: Streams, data: bytes) -> bytes:
    """Send and return what comes back; empty at the end of the connection."""
    reader, writer = streams
    writer.write(data)
    try:
        return await reader.read(65_536)
    except ConnectionResetError:
        return b""


async def test_bytes_pass_and_requests_are_noted() -> None:
    async with proxy_of_echo() as proxy, client_of(proxy) as client:
        for request in (b"GET /a?b HTTP/1.1\r\n\r\n", b"POST /c HTTP/1.1\r\n\r\n", b"\x81x"):
            assert await answer(client, request) == request
        assert proxy.requests == ["GET /a?b", "POST /c"]
        assert proxy.origin == f"http://127.0.0.1:{proxy.port}"


async def test_all_arrives_before_an_orderly_end() -> None:
    data = bytes(3_000_000)

    async def send_and_end(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        writer.close()

    async with (
        CuttingProxy() as proxy,
        await asyncio.start_server(send_and_end, "127.0.0.1", 0) as server,
    ):
        proxy.target = server.sockets[0].getsockname()[1]
        async with client_of(proxy) as (reader, _):
            assert await reader.read() == data


async def test_a_cut_ends_the_connections_that_stand() -> None:
    async with proxy_of_echo() as proxy:
        async with client_of(proxy) as client:
            assert await answer(client, b"1") == b"1"
            proxy.cut()
            assert await answer(client, b"2") == b""
        async with client_of(proxy) as client:
            assert await answer(client, b"3") == b"3"


async def test_while_it_is_down_no_connection_lasts() -> None:
    async with proxy_of_echo() as proxy, client_of(proxy) as before:
        assert await answer(before, b"1") == b"1"
        with proxy.down():
            assert await answer(before, b"2") == b""
            async with client_of(proxy) as meanwhile:
                assert await answer(meanwhile, b"3") == b""
        async with client_of(proxy) as after:
            assert await answer(after, b"4") == b"4"


async def test_while_it_holds_nothing_comes_and_nothing_is_lost() -> None:
    async with proxy_of_echo() as proxy, client_of(proxy) as before, client_of(proxy) as meanwhile:
        assert await answer(before, b"1") == b"1"
        with proxy.hold():
            late = [asyncio.create_task(answer(each, b"2")) for each in (before, meanwhile)]
            # That nothing comes cannot be waited for: through the proxy it takes about 1 ms.
            await asyncio.wait(late, timeout=0.1)
            assert not any(each.done() for each in late)
        assert await asyncio.gather(*late) == [b"2", b"2"]


async def test_what_is_held_can_be_cut() -> None:
    async with proxy_of_echo() as proxy, client_of(proxy) as client:
        assert await answer(client, b"0") == b"0"
        with proxy.hold():
            late = asyncio.create_task(answer(client, b"1"))
            await asyncio.wait([late], timeout=0.1)
            proxy.cut()
            assert await late == b""


async def test_a_forbidden_request_ends_its_connection() -> None:
    async with proxy_of_echo() as proxy, client_of(proxy) as client, client_of(proxy) as other:
        proxy.forbidden = "GET /v1/ws"
        assert await answer(other, b"GET /v1/sse HTTP/1.1\r\n\r\n") != b""
        assert await answer(client, b"GET /v1/ws HTTP/1.1\r\n\r\n") == b""
        assert proxy.requests == ["GET /v1/sse", "GET /v1/ws"]
