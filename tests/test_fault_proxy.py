"""The proxies of the tests: each fault is what it says, and ends when it should."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cutting_proxy import CuttingProxy
from fault_proxy import FaultProxy, Way
from fleet_clients import until
from muting_proxy import MutingProxy
from ports import steady_ports

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
    async with (
        CuttingProxy() as proxy,
        await asyncio.start_server(echo, "127.0.0.1", 0) as server,
    ):
        proxy.target = server.sockets[0].getsockname()[1]
        yield proxy
        proxy.cut()


@asynccontextmanager
async def client_of(proxy: FaultProxy) -> AsyncIterator[Streams]:
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


def loop_time() -> float:
    return asyncio.get_running_loop().time()


async def test_latency_is_waited_for_both_ways() -> None:
    async with proxy_of_echo() as proxy, client_of(proxy) as client:
        proxy.up.latency_s = 0.1
        proxy.back.latency_s = 0.05
        proxy.back.jitter_s = 0.01
        began = loop_time()
        assert await answer(client, b"1") == b"1"
        assert loop_time() - began >= 0.15
        proxy.heal()
        assert (proxy.up.latency_s, proxy.back.latency_s, proxy.back.jitter_s) == (0, 0, 0)
        assert await answer(client, b"2") == b"2"


async def test_bandwidth_is_a_bound() -> None:
    async with proxy_of_echo() as proxy, client_of(proxy) as (reader, writer):
        proxy.up.bytes_per_s = 10_000
        began = loop_time()
        writer.write(bytes(2_000))
        assert await reader.readexactly(2_000) == bytes(2_000)
        assert loop_time() - began >= 0.2


async def test_slices_are_single_bytes_where_asked_and_nothing_is_lost() -> None:
    got: list[bytes] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            got.append(data)
            # Each piece is asked for: so that the next one cannot be joined to it.
            writer.write(b"!")
        writer.close()

    async with (
        FaultProxy() as proxy,
        await asyncio.start_server(take, "127.0.0.1", 0) as server,
    ):
        proxy.target = server.sockets[0].getsockname()[1]
        proxy.up.slice_bytes = 1
        proxy.up.latency_s = 0.001
        async with client_of(proxy) as (reader, writer):
            writer.write(b"0123456789" * 5)
            writer.write_eof()
            await reader.read(-1)
        assert b"".join(got) == b"0123456789" * 5
        assert len(got) > 25


def test_slices_and_pauses_are_the_same_for_the_same_seed() -> None:
    way = Way()
    way.slice_bytes, way.jitter_s = 7, 0.5

    def drawn(seed: int) -> list[tuple[bytes, float]]:
        rng = random.Random(seed)
        return [(piece, way.pause_s(piece, rng)) for piece in way.pieces(b"x" * 100, rng)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert b"".join(piece for piece, _pause in drawn(1)) == b"x" * 100
    assert {len(piece) for piece, _pause in drawn(1)} <= set(range(1, 8))


@pytest.mark.parametrize("side", ["up", "back"])
async def test_a_black_hole_one_way_swallows_and_healing_resets(side: str) -> None:
    came = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65_536):
                came.set()
                writer.write(data)
        except ConnectionResetError:
            pass
        writer.close()

    async with (
        FaultProxy() as proxy,
        await asyncio.start_server(take, "127.0.0.1", 0) as server,
    ):
        proxy.target = server.sockets[0].getsockname()[1]
        async with client_of(proxy) as client, client_of(proxy) as other:
            assert await answer(other, b"0") == b"0"
            assert await answer(client, b"0") == b"0"
            came.clear()
            way: Way = getattr(proxy, side)
            way.swallows = True
            late = asyncio.create_task(answer(client, b"1"))
            if side == "back":
                await came.wait()
            # That nothing comes cannot be waited for: through the proxy it takes about 1 ms.
            await asyncio.wait([late], timeout=0.1)
            assert came.is_set() is (side == "back")
            assert not late.done()
            proxy.heal()
            assert await late == b""
            # Whoever lacks nothing goes on.
            assert await answer(other, b"2") == b"2"


async def test_a_reset_is_a_rst_at_both_ends() -> None:
    ends: list[str] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read(1))
        try:
            ends.append(repr(await reader.read(1)))
        except ConnectionResetError:
            ends.append("reset")
        writer.close()

    async with (
        FaultProxy() as proxy,
        await asyncio.start_server(take, "127.0.0.1", 0) as server,
    ):
        proxy.target = server.sockets[0].getsockname()[1]
        async with client_of(proxy) as (reader, writer):
            assert await answer((reader, writer), b"1") == b"1"
            proxy.reset()
            with pytest.raises(ConnectionResetError):
                await reader.read(1)
            await until(lambda: ends)
        assert ends == ["reset"]


async def test_what_is_half_closed_still_answers() -> None:
    came = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got = await reader.readexactly(2)
        came.set()
        assert await reader.read(-1) == b""
        writer.write(b"all of " + got)
        writer.close()

    async with (
        FaultProxy() as proxy,
        await asyncio.start_server(take, "127.0.0.1", 0) as server,
    ):
        proxy.target = server.sockets[0].getsockname()[1]
        async with client_of(proxy) as (reader, writer):
            writer.write(b"it")
            await came.wait()
            proxy.half_close()
            assert await reader.read(-1) == b"all of it"


async def test_the_next_answer_is_lost_and_only_that() -> None:
    async with proxy_of_echo() as proxy, client_of(proxy) as client, client_of(proxy) as other:
        proxy.lose = b"b"
        assert await answer(client, b"a") == b"a"
        assert await answer(client, b"b") == b""
        assert await answer(other, b"b") == b"b"
        assert proxy.lost == 1


async def test_the_next_dials_are_refused_and_only_those() -> None:
    async with proxy_of_echo() as proxy:
        proxy.refuse = 2
        for expected in (b"", b"", b"1"):
            async with client_of(proxy) as client:
                assert await answer(client, b"1") == expected
        assert proxy.dials == 3


async def test_nobody_behind_it_is_an_end_at_once() -> None:
    async with FaultProxy(steady_ports(1)[0]) as proxy, client_of(proxy) as client:
        assert await answer(client, b"1") == b""


async def test_only_those_who_listen_are_made_deaf() -> None:
    async with (
        await asyncio.start_server(echo, "127.0.0.1", 0) as server,
        MutingProxy(server.sockets[0].getsockname()[1]) as proxy,
        client_of(proxy) as listener,
        client_of(proxy) as asker,
    ):
        assert await answer(listener, b"SUBSCRIBE x") == b"SUBSCRIBE x"
        proxy.mute = True
        listener[1].write(b"swallowed")
        assert await answer(asker, b"1") == b"1"
        await asyncio.sleep(0.05)
        proxy.heal()
        assert await answer(listener, b"2") == b"2"
        proxy.inject(b"junk")
        assert await listener[0].read(100) == b"junk"
        proxy.cut()
