"""The lean connection with a session on it: slow, silent, hostile and departing clients."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.iostream import IOStream
from tornado.web import RequestHandler

from client_frames import CLOSE, PING, PONG, TEXT, client_close, client_frame, client_header
from handlers.lean import LeanConnection
from live_rig import ALL, Client, live, token, until
from server.closing import Closing
from server.session import Session


async def test_a_slow_session_is_told_behind_what_was_begun() -> None:
    async with live(limits__unsent_bytes=200_000, session__close_timeout_s=60.0) as rig:
        client = await rig.ws(receive_bytes=4096)
        await client.call("subscribe", channel="slow.a")
        data = "x" * 60_000
        sent = 0
        while rig.sessions:
            await rig.publish("slow.a", data, name=f"n{sent}")
            sent += 1
            assert sent < 500
        ended = await client.ended()
        assert ended.code == 4002 and ended.reason == "too_slow"
        *events, closing = ended.messages
        assert closing == {"type": "closing", "code": 4002, "reason": "too_slow"}
        names = [event["name"] for event in events]
        assert names == [f"n{number}" for number in range(len(names))] and len(names) < sent
        assert all(event["data"] == data for event in events)
        assert rig.refusals("unsent_bytes") == 1
        assert rig.counter("galecast_slow_closes_total") == 1
        await until(rig.nobody_left)

        # It comes back with what it saw last, and nothing is lost.
        again = await rig.ws()
        since = events[-1]["position"]
        reply = await again.call("subscribe", channel="slow.a", since=since)
        assert reply["recovered"] is True
        missed = await again.events(sent - len(names))
        assert [each["name"] for each in missed] == [f"n{n}" for n in range(len(names), sent)]


async def test_a_session_that_never_reads_is_cut_off() -> None:
    async with live(limits__unsent_bytes=1 << 30, session__send_timeout_s=0.2) as rig:
        client = await rig.ws(receive_bytes=4096)
        await client.call("subscribe", channel="never.a")
        while not rig.node.metrics.unsent_bytes:
            await rig.publish("never.a", "x" * 60_000)
        await until(rig.nobody_left)
        assert rig.refusals("send_timeout_s") == 1


async def test_eof_reset_and_abort_leave_nothing() -> None:
    async with live() as rig:
        for way in ("eof", "reset", "abort"):
            client = await rig.ws()
            await client.call("subscribe", channel="end.a")
            (connection,) = rig.app.live.pings.connections()
            if way == "eof":
                client.close()
            elif way == "reset":
                client.reset()
            else:
                connection.abort()
                connection.abort()
            await until(rig.nobody_left)


async def test_the_client_closes() -> None:
    async with live() as rig:
        for payload, code in (
            (client_close(), b""),
            (client_close(1000), b"\x03\xe8"),
            (client_close(4321, b"why not"), b"\x10\xe1"),
        ):
            client = await rig.ws()
            await client.write(payload)
            assert await client.frame() == (CLOSE, code)
            assert await client.rest() == b""
            client.close()
            await until(rig.nobody_left)


async def test_the_client_closes_and_never_lets_go() -> None:
    async with live(session__close_timeout_s=0.1) as rig:
        client = await rig.ws()
        await client.write(client_close(1000) + b"junk behind it")
        assert (await client.frame())[0] == CLOSE
        await until(rig.nobody_left)


async def test_the_server_closes() -> None:
    async with live() as rig:
        client = await rig.ws()
        (session,) = rig.sessions
        session.end(Closing.ENDED)
        session.end(Closing.ENDED)
        await client.write(client_frame(TEXT, b"too late"))
        ended = await client.ended()
        assert (ended.code, ended.reason) == (4502, "ended")
        assert [each["type"] for each in ended.messages] == ["closing"]
        await until(rig.nobody_left)
        assert rig.counter('galecast_closes_total{code="4502"}') == 1


async def test_the_server_closes_and_nobody_answers() -> None:
    async with live(session__close_timeout_s=0.1) as rig:
        client = await rig.ws()
        rig.sessions[0].end(Closing.ENDED)
        await until(rig.nobody_left)
        ended = await client.ended(answer=False)
        assert ended.code == 4502


async def test_both_close_at_the_same_time_with_a_backlog() -> None:
    async with live(limits__unsent_bytes=1 << 30, session__close_timeout_s=5.0) as rig:
        client = await rig.ws(receive_bytes=4096)
        await client.call("subscribe", channel="both.a")
        sent = 0
        while not rig.node.metrics.unsent_bytes:
            await rig.publish("both.a", "x" * 60_000)
            sent += 1
        rig.sessions[0].end(Closing.DRAINING)
        await client.write(client_close(1000))
        ended = await client.ended(answer=False)
        assert ended.code == 4001
        assert [each["type"] for each in ended.messages] == ["event"] * sent + ["closing"]
        client.close()
        await until(rig.nobody_left)


async def test_commands_before_a_close_are_carried_out() -> None:
    """A client that published and closed in one go lost what the server had not come to yet."""
    async with live(limits__session_commands_per_s=0, limits__session_publishes_per_s=0) as rig:
        reader = await rig.ws()
        await reader.call("subscribe", channel="bye.a")
        count = 300
        client = await rig.ws()
        burst = b"".join(
            client.encode(client.numbered("publish", channel="bye.a", data=number))
            for number in range(count)
        )
        await client.write(burst + client_close(1000))
        client.sock.shutdown(socket.SHUT_WR)
        events = await reader.events(count)
        assert [event["data"] for event in events] == list(range(count))
        ended = await client.ended(answer=False)
        assert ended.code == 1000
        assert [each["ref"] for each in ended.messages] == list(range(2, count + 2))
        assert {each["type"] for each in ended.messages} == {"published"}


async def test_thousands_of_pipelined_commands_are_read_as_they_are_done() -> None:
    async with live(limits__session_commands_per_s=0) as rig:
        client = await rig.ws()
        (session,) = rig.sessions
        count = 20_000
        burst = b"".join(client.encode(client.numbered("ping")) for _ in range(count))
        writing = asyncio.create_task(client.write(burst))
        longest = 0
        paused = False
        for ref in range(2, count + 2):
            assert await client.message() == {"type": "pong", "ref": ref}
            longest = max(longest, len(session._inbox or ()))
            paused = paused or session._paused
        await writing
        assert paused and longest < 64 * 1024 // 30
        assert session._worker is None or not session._worker.done()
        await until(lambda: session._worker is None)
        assert session._inbox is None and not session._paused


async def test_a_peer_that_never_pongs() -> None:
    async with live(session__ping_s=0.2) as rig:
        client = await rig.ws()
        client.answers_pings = False
        ended = await client.ended()
        # It may have answered one as it connected; of a second that it does not there is no need.
        assert ended.code == 4003 and 1 <= client.pings <= 2
        await until(rig.nobody_left)


async def test_a_peer_that_pongs_or_talks_stays() -> None:
    async with live(session__ping_s=0.1) as rig:
        ponging, talking = await rig.ws(), await rig.ws()
        talking.answers_pings = False

        async def pong() -> None:
            while ponging.pings < 6:
                opcode, payload = await ponging.frame()
                assert opcode == PING
                ponging.pings += 1
                await ponging.write(client_frame(PONG, payload))

        async def talk() -> None:
            while talking.pings < 6:
                await talking.call("ping")
                await asyncio.sleep(0.02)

        await asyncio.gather(pong(), talk())
        assert len(rig.sessions) == 2


async def test_a_half_open_peer_is_found() -> None:
    """Its host is gone: it takes nothing, answers nothing, and no packet says so."""
    async with live(session__ping_s=0.1, session__close_timeout_s=0.1) as rig:
        await rig.ws()
        await until(rig.nobody_left)
        assert rig.counter('galecast_closes_total{code="4003"}') == 1


async def test_slow_loris_in_the_midst_of_a_frame() -> None:
    async with live(session__ping_s=0.2) as rig:
        client = await rig.ws()
        await client.write(client_header(TEXT, 1000))

        async def drip() -> None:
            with suppress(ConnectionError):
                while True:
                    await client.write(b"x")
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        ended = await client.ended(answer=False, writing=True)
        dripping.cancel()
        await asyncio.wait([dripping])
        assert ended.code == 4500
        assert rig.refusals("slow_message") == 1


async def test_slow_loris_by_fragments() -> None:
    async with live(session__ping_s=0.2) as rig:
        client = await rig.ws()
        await client.write(client_frame(TEXT, b"{", fin=False))

        async def drip() -> None:
            with suppress(ConnectionError):
                while True:
                    await client.write(client_frame(0, b" ", fin=False))
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        ended = await client.ended(answer=False, writing=True)
        dripping.cancel()
        await asyncio.wait([dripping])
        assert ended.code == 4500


async def test_messages_that_come_in_pieces_are_no_slow_loris() -> None:
    async with live(session__ping_s=0.1) as rig:
        client = await rig.ws()
        while client.pings < 3:
            frame = client.encode(client.numbered("ping"))
            await client.write(frame[:9])
            await asyncio.sleep(0.02)
            await client.write(frame[9:])
            assert (await client.reply(client.ref))["type"] == "pong"


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_a_flood_of_control_frames(opcode: int) -> None:
    async with live(limits__control_frames_per_s=20) as rig:
        client = await rig.ws()
        await client.write(client_frame(opcode, b"!") * 20)
        assert (await client.call("ping"))["type"] == "pong"
        await client.write(client_frame(opcode, b"!") * 40)
        ended = await client.ended()
        assert ended.code == 4007 and ended.last["reason"] == "rate_limited"
        assert rig.refusals("control_frames_per_s") == 1
        if opcode == PING:
            assert set(client.pongs) == {b"!"} and 20 <= len(client.pongs) <= 59


async def test_what_is_sent_with_the_handshake_is_not_lost() -> None:
    async with live(limits__session_commands_per_s=0) as rig:
        client = Client(socket.socket())
        client.sock.close()
        burst = [client.encode(client.numbered("connect"))]
        burst += [client.encode(client.numbered("ping")) for _ in range(4000)]
        # More than Tornado reads at once, and a frame cut in two by that.
        client = await rig.ws(connect=False, early=b"".join(burst))
        assert (await client.message())["type"] == "connected"
        for ref in range(2, 4002):
            assert await client.message() == {"type": "pong", "ref": ref}


async def test_a_client_that_is_gone_before_the_answer() -> None:
    async with live() as rig:
        for reset in (False, True):
            for _ in range(20):
                wire = await rig.wire()
                await wire.write(rig.handshake())
                if reset:
                    wire.reset()
                else:
                    wire.close()
        await until(lambda: rig.node.metrics.bytes_in or rig.nobody_left())
        await until(rig.nobody_left)
        client = await rig.ws()
        await client.goodbye()


async def test_half_a_handshake_counts_as_nobody() -> None:
    async with live(http__idle_timeout_s=0.3) as rig:
        wire = await rig.wire()
        await wire.write(rig.handshake()[:-2])
        assert await wire.rest() == b""
        assert rig.nobody_left()


async def test_nothing_of_http_remains_for_an_idle_session() -> None:
    kinds = (IOStream, HTTP1Connection, HTTP1ServerConnection, RequestHandler)

    def left() -> list[Any]:
        gc.collect()
        return [each for each in gc.get_objects() if isinstance(each, kinds)]

    async with live() as rig:
        before = len(left())
        clients = [await rig.ws() for _ in range(5)]
        stream = await rig.sse("channel=idle.a")
        await stream.control("subscribed")
        await until(lambda: len(left()) <= before)
        assert len(asyncio.all_tasks()) == 1
        # The socket lives on, though Tornado closed its own.
        for client in clients:
            assert (await client.call("ping"))["type"] == "pong"


async def test_memory_and_descriptors_are_released() -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def all_there() -> list[Any]:
        return [each for each in gc.get_objects() if isinstance(each, LeanConnection | Session)]

    def left() -> list[Any]:
        return [each for each in all_there() if id(each) not in known]

    gc.collect()
    # Other tests may hold some of theirs a while longer: those stay as long as this does.
    before = all_there()
    known = set(map(id, before))
    gc.disable()
    try:
        await _all_ways_to_end(descriptors, left)
    finally:
        gc.enable()


async def _all_ways_to_end(descriptors: Callable[[], int], left: Callable[[], list[Any]]) -> None:
    async with live(session__close_timeout_s=0.1) as rig:
        first = await rig.ws()
        await first.goodbye()
        await until(rig.nobody_left)
        before = descriptors()
        for way in ("goodbye", "eof", "reset", "violation", "end", "flood"):
            client = await rig.ws(token=token("u9", {"gone.*": ALL}))
            await client.call("subscribe", channel="gone.a", presence=True)
            if way == "goodbye":
                await client.goodbye()
            elif way == "reset":
                client.reset()
            elif way == "violation":
                await client.write(client_frame(3, b""))
                await client.ended()
            elif way == "end":
                rig.sessions[0].end(Closing.ENDED)
                await client.ended()
            elif way == "flood":
                await client.write(client_frame(PING) * 100)
                await client.ended()
            client.close()
            await until(rig.nobody_left)
        stream = await rig.sse("channel=gone.a")
        await stream.control("subscribed")
        stream.close()
        await until(rig.nobody_left)
        # No cycles: gone without the collector's help.
        try:
            await until(lambda: not left())
        except AssertionError:
            pytest.fail(f"held by {[gc.get_referrers(each) for each in left()]!r}"[:4_000])
        await until(lambda: descriptors() <= before)
