"""Connections that speak HTTP: what has to come in time, and what may take as long as it likes."""

import asyncio
import json
import socket
from collections.abc import Sequence

import pytest

from config.limits import LimitSettings
from config.serving import HttpSettings
from live_rig import until
from nodes import KEY, Served, serving
from pubsub.errors import PubSubError
from pubsub.event import Draft, Published

SHORT = HttpSettings(idle_timeout_s=0.2, body_timeout_s=0.2)
BODY = b'{"channel":"a","data":1}'
HEAD = f"POST /v1/events HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n".encode()
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


async def answered(reader: asyncio.StreamReader) -> bytes:
    """The head of the next answer, whose body is read too."""
    top = await reader.readuntil(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in top.split(b"\r\n")[1:] if line)
    await reader.readexactly(int(fields[b"Content-Length"]))
    return top


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/ev",
        HEAD,
        HEAD + b"Content-Length: 5\r\n\r\n",
        HEAD + b"Content-Length: 5\r\n\r\n1234",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\n1234",
        # Of a body that is too large what still comes is dropped, but not for ever.
        HEAD + b"Content-Length: 99999999\r\n\r\n1234",
    ],
)
async def test_what_does_not_come_in_time_ends_the_connection(sent: bytes) -> None:
    async with serving(http=SHORT) as served:
        answer = await served.raw(sent)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")
        await until(lambda: not served.app.http_connections)
        await served.node.lifecycle.requests_done()
        assert served.node.metrics.events_in == 0


@pytest.mark.parametrize("begin", [b"", HEAD + b"Content-Length: 9999\r\n\r\n"])
async def test_a_client_that_drips_is_cut_off(begin: bytes) -> None:
    """Slow-loris: a byte now and then does not put the end off."""
    async with serving(http=SHORT) as served:
        reader, writer = await served.connect()
        writer.write(begin)

        async def drip() -> None:
            while True:
                writer.write(b"a")
                await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        try:
            assert await reader.read() == b""
        except ConnectionError:
            pass
        finally:
            dripping.cancel()
            writer.close()
        await until(lambda: not served.app.http_connections)


async def test_a_connection_between_requests_may_idle_for_a_while() -> None:
    http = HttpSettings(idle_timeout_s=60, body_timeout_s=0.05)
    async with serving(http=http) as served:
        reader, writer = await served.connect()
        for _ in range(3):
            writer.write(WHOLE)
            assert (await answered(reader)).startswith(b"HTTP/1.1 200 ")
            # Longer than a body may take, and than the timetable needs to notice.
            await asyncio.sleep(0.7)
        assert served.app.http_connections == 1
        writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        WHOLE,
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    ],
)
async def test_a_publish_that_waits_is_not_cut_off(
    request_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the client had to send is there: from then on it waits for us."""
    async with serving(http=SHORT) as served:
        publish = served.node.broker.publish

        async def wait(drafts: Sequence[Draft]) -> list[Published | PubSubError]:
            # Until the timetable has ticked twice behind both deadlines.
            ticked = asyncio.Event()
            served.node.timetable.call_in(1.2, ticked.set)
            await ticked.wait()
            return await publish(drafts)

        monkeypatch.setattr(served.node.broker, "publish", wait)
        # All of it is there before the node has taken the connection: it comes in time.
        sock = socket.create_connection(("127.0.0.1", served.app.port))
        sock.sendall(request_bytes)
        reader, writer = await asyncio.open_connection(sock=sock)
        assert (await answered(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_connections_leave_nothing_in_the_timetable() -> None:
    async with serving() as served:
        timetable = served.node.timetable

        def entries() -> int:
            return sum(len(bucket) for bucket in timetable._buckets.values())

        before = entries()
        connections = [await served.connect() for _ in range(5)]
        await until(lambda: served.app.http_connections == 5)
        assert entries() == before + 5
        for _reader, writer in connections:
            writer.close()
        await until(lambda: not served.app.http_connections)
        await until(lambda: entries() == before)


async def slow_reader(served: Served) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose kernel takes little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", served.app.port))
    return await asyncio.open_connection(sock=sock, limit=1_024)


async def test_an_answer_that_the_kernel_does_not_take_at_once() -> None:
    limits = LimitSettings(batch_events=10_000, body_bytes=4 << 20)
    async with serving(limits=limits) as served:
        ids = [f"event-number-{number:040d}" for number in range(10_000)]
        events = [{"channel": "a", "data": 1, "id": each} for each in ids]
        body = json.dumps(events).encode()
        reader, writer = await slow_reader(served)
        head = HEAD + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body)
        writer.write(head + body)
        await until(lambda: served.node.metrics.events_in == 10_000)
        got = bytearray()
        while chunk := await reader.read(65_536):
            got += chunk
        writer.close()
        results = json.loads(bytes(got).partition(b"\r\n\r\n")[2])["results"]
        assert [each["id"] for each in results] == ids


@pytest.mark.parametrize("hangs", [False, True])
async def test_closing_waits_a_moment_for_what_is_under_way(
    hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving() as served:
        publish, begun, go = served.node.broker.publish, asyncio.Event(), asyncio.Event()

        async def wait(drafts: Sequence[Draft]) -> list[Published | PubSubError]:
            begun.set()
            await go.wait()
            return await publish(drafts)

        monkeypatch.setattr(served.node.broker, "publish", wait)
        _reader, writer = await served.connect()
        writer.write(WHOLE)
        await begun.wait()
        if not hangs:
            # However slow this is: what hangs has shown that the moment ends.
            monkeypatch.setattr("handlers.http_server._LAST_S", 60.0)
        closing = asyncio.create_task(served.app.close())
        await until(lambda: not served.app.http_connections)
        if not hangs:
            assert not closing.done()
            go.set()
        await closing
        writer.close()
        assert served.node.metrics.events_in == (0 if hangs else 1)
