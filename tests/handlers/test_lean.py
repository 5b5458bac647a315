"""The lean connection: bytes in order, counted, bounded in time and in memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from handlers.lean import ConnectionContext, Heartbeat, LeanConnection
from live_rig import until, within
from server.closing import Closing
from server.metrics import Metrics
from server.timetable import Entry, Timetable

CHUNK = bytes(range(256)) * 256  # 64 KiB


class HandTimetable(Timetable):
    """Deadlines that pass when the test says so."""

    def __init__(self) -> None:
        self.due: dict[Entry, None] = {}
        self.delays: list[float] = []

    def call_in(self, delay_s: float, callback: Callable[[], None]) -> Entry:
        entry = Entry(self.due, callback)
        self.due[entry] = None
        self.delays.append(delay_s)
        return entry

    def fire(self) -> None:
        """Let all deadlines pass."""
        for entry in list(self.due):
            if entry in self.due:
                del self.due[entry]
                entry.callback()


class Plain(LeanConnection):
    """A connection without a protocol."""

    transport = "ws"

    def __init__(self, sock: socket.socket, context: ConnectionContext) -> None:
        super().__init__(sock, context)
        self.received = b""
        self.beats = 0

    def receive(self, data: bytes) -> None:
        self.received += data

    def beat(self) -> None:
        self.beats += 1

    def farewell(self, closing: Closing) -> bytes:
        return b"BYE"


class Recorder:
    """A session that only remembers what it was told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def on_messages(self, payloads: Sequence[bytes]) -> None:
        self.heard.append("messages")

    def on_slow(self) -> None:
        self.heard.append("slow")

    def on_room(self) -> None:
        self.heard.append("room")

    def on_violation(self, closing: Closing) -> None:
        self.heard.append(closing.reason)

    def on_goodbye(self, answer: Callable[[], None]) -> None:
        self.heard.append("goodbye")

    def on_lost(self) -> None:
        self.heard.append("lost")


class Bench:
    """A connection on one end of a TCP connection, the test on the other."""

    def __init__(self, unsent_bytes: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.metrics = Metrics(version="0")
        self.timetable = HandTimetable()
        self.context = ConnectionContext(
            self.loop,
            self.metrics,
            self.timetable,
            unsent_bytes=unsent_bytes,
            send_timeout_s=30.0,
            close_timeout_s=2.0,
        )
        with socket.create_server(("127.0.0.1", 0)) as server:
            # Small buffers, and no tuning of them by the kernel.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            self.far = socket.socket()
            self.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            self.far.connect(server.getsockname())
            near, _address = server.accept()
        self.far.setblocking(False)
        self.connection = Plain(near, self.context)
        self.peer = Recorder()
        self.connection.start(self.peer)

    async def read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            data = await within(self.loop.sock_recv(self.far, size - len(found)))
            assert data, f"the end after {len(found)} bytes"
            found += data
        return found

    async def rest(self) -> bytes:
        found = b""
        while data := await within(self.loop.sock_recv(self.far, 1 << 20)):
            found += data
        return found

    def block(self) -> int:
        """Send until the kernel is full; return how many chunks it took."""
        count = 0
        while not self.connection.unsent:
            self.connection.send(CHUNK)
            count += 1
        return count


@contextmanager
def bench(unsent_bytes: int = 1 << 30) -> Iterator[Bench]:
    made = Bench(unsent_bytes)
    try:
        yield made
    finally:
        made.connection.abort()
        made.far.close()


# ---- writing


async def test_what_the_kernel_takes_at_once_is_not_kept() -> None:
    with bench() as b:
        b.connection.send(b"hello")
        assert b.connection.unsent == 0 and b.connection.clear()
        assert await b.read(5) == b"hello"
        assert not b.timetable.due


async def test_partial_writes_keep_the_order_and_are_counted() -> None:
    with bench() as b:
        sent = CHUNK * b.block()
        for number in range(500):
            piece = b"%05d" % number * (number + 1)
            b.connection.send(piece)
            sent += piece
        assert b.connection.unsent > 500_000
        assert b.metrics.unsent_bytes == b.connection.unsent
        assert not b.connection.clear()

        assert await b.read(len(sent)) == sent
        await until(lambda: b.connection.unsent == 0)
        assert b.metrics.unsent_bytes == 0

        b.connection.send(b"after")
        assert await b.read(5) == b"after"


async def test_what_waits_when_it_is_aborted_is_counted_out() -> None:
    with bench() as b:
        b.block()
        assert b.metrics.unsent_bytes > 0
        b.connection.abort()
        assert b.metrics.unsent_bytes == 0 and b.connection.unsent == 0
        b.connection.send(b"nobody gets this")
        assert b.metrics.unsent_bytes == 0


async def test_the_limit_is_told_once_and_never_within_a_send() -> None:
    with bench(unsent_bytes=100_000) as b:
        b.block()
        while b.connection.unsent <= 300_000:
            b.connection.send(CHUNK)
            assert b.peer.heard == []
        await until(lambda: b.peer.heard)
        b.connection.send(CHUNK)
        await asyncio.sleep(0)
        assert b.peer.heard == ["slow"]


async def test_that_there_is_room_is_told_when_it_has_come() -> None:
    with bench() as b:
        b.connection.send(b"hello")
        size = len(CHUNK) * b.block()
        while b.connection.clear():
            b.connection.send(CHUNK)
            size += len(CHUNK)
        assert b.peer.heard == []
        told_at: list[int] = []
        b.peer.on_room = lambda: told_at.append(b.connection.unsent)  # type: ignore[method-assign]
        await b.read(5 + size)
        await until(lambda: told_at and told_at[-1] == 0)
        assert all(unsent <= b.context.low_bytes for unsent in told_at)
        told = len(told_at)
        b.connection.send(b"after")
        assert await b.read(5) == b"after"
        assert len(told_at) == told, "there was room all the time"


async def test_what_the_peer_sends_when_there_is_room_goes_before_a_replay() -> None:
    with bench() as b:
        size = len(CHUNK) * b.block()
        while b.connection.clear():
            b.connection.send(CHUNK)
            size += len(CHUNK)

        def answer() -> None:
            if not b.connection.unsent:
                b.peer.heard.append("room")
                b.connection.send(b"held")

        b.peer.on_room = answer  # type: ignore[method-assign]
        waits = asyncio.get_running_loop().create_task(b.connection.drained())
        assert (await b.read(size + 4))[-4:] == b"held"
        assert await within(waits)


async def test_no_room_is_told_of_once_it_is_closing() -> None:
    with bench() as b:
        size = len(CHUNK) * b.block()
        b.connection.close(Closing.DRAINING)
        assert await b.rest() == CHUNK * (size // len(CHUNK)) + b"BYE"
        assert "room" not in b.peer.heard


async def test_a_slow_end_drops_what_was_not_begun() -> None:
    with bench() as b:
        begun = CHUNK * b.block()
        for _ in range(20):
            b.connection.send(b"dropped" * 1000)
        b.connection.close(Closing.TOO_SLOW, b"LAST")
        assert b.metrics.unsent_bytes == b.connection.unsent < len(CHUNK) + 10
        assert await b.rest() == begun + b"LASTBYE"
        assert b.metrics.unsent_bytes == 0


async def test_a_slow_end_with_nothing_begun_sends_the_end_only() -> None:
    with bench() as b:
        begun = CHUNK * b.block()
        b.connection.send(b"dropped")
        # As if the kernel had taken the begun one just now.
        assert b.connection._buffer is not None
        rest = bytes(b.connection._buffer.popleft())
        b.connection.unsent -= len(rest)
        b.metrics.unsent_bytes -= len(rest)
        b.connection.close(Closing.TOO_SLOW, b"")
        assert await b.rest() == begun[: len(begun) - len(rest)] + b"BYE"
        assert b.metrics.unsent_bytes == 0


async def test_a_slow_end_without_a_backlog() -> None:
    with bench() as b:
        b.connection.close(Closing.TOO_SLOW, b"LAST")
        assert await b.rest() == b"LASTBYE"


async def test_a_kernel_that_takes_nothing_at_all() -> None:
    with bench() as b:
        assert b.connection._socket is not None
        filled = 0
        while True:
            try:
                filled += b.connection._socket.send(CHUNK)
            except BlockingIOError:
                break
        b.connection.send(b"waits")
        assert b.connection.unsent == 5
        assert (await b.read(filled + 5))[-5:] == b"waits"


async def test_any_other_end_sends_the_whole_backlog_first() -> None:
    with bench() as b:
        sent = CHUNK * b.block() + b"kept" * 5000
        b.connection.send(b"kept" * 5000)
        b.connection.close(Closing.DRAINING, b"LAST")
        b.connection.send(b"too late")
        assert await b.rest() == sent + b"LASTBYE"


async def test_a_failed_send_is_told_later() -> None:
    with bench() as b:
        b.connection.pause()  # so that it is the send that notices
        linger = (1).to_bytes(4, "little") + bytes(4)
        b.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        b.far.close()

        def fails() -> bool:
            b.connection.send(b"x")
            assert b.peer.heard == []
            return bool(b.loop._ready)  # type: ignore[attr-defined]

        fails()
        await until(lambda: b.connection.over)
        assert b.peer.heard == ["lost"]


async def test_a_reset_while_there_is_a_backlog() -> None:
    with bench() as b:
        b.block()
        b.connection.pause()
        linger = (1).to_bytes(4, "little") + bytes(4)
        b.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        b.far.close()
        await until(lambda: b.connection.over)
        assert b.peer.heard == ["lost"]
        assert b.metrics.unsent_bytes == 0


async def test_a_peer_that_takes_nothing_is_cut_off() -> None:
    with bench() as b:
        b.block()
        assert b.timetable.delays == [30.0]
        b.timetable.fire()
        assert b.connection.over and b.peer.heard == ["lost"]
        assert b'send_timeout_s"} 1.0' in b.metrics.exposition(None)[0]


async def test_a_peer_that_takes_a_little_is_not_cut_off() -> None:
    with bench() as b:
        b.block()
        for _ in range(5):
            b.connection.send(CHUNK)
        left = b.connection.unsent
        while b.connection.unsent == left:
            await b.read(4096)
        b.timetable.fire()
        assert not b.connection.over
        left = b.connection.unsent
        b.timetable.fire()
        assert b.connection.over == (b.connection.unsent in (left, 0))


async def test_an_earlier_backlog_does_not_shorten_the_time_of_a_later_one() -> None:
    """The deadline of a backlog that was long sent cut off whoever had a new one just then."""
    with bench() as b:
        sent = len(CHUNK) * b.block()
        await b.read(sent)
        await until(lambda: b.connection.unsent == 0)
        b.block()
        b.timetable.fire()  # the deadline of the first
        assert not b.connection.over
        b.timetable.fire()
        assert b.connection.over


async def test_a_deadline_without_a_backlog_does_nothing() -> None:
    with bench() as b:
        sent = len(CHUNK) * b.block()
        await b.read(sent)
        await until(lambda: b.connection.unsent == 0)
        b.timetable.fire()
        assert not b.connection.over and not b.timetable.due


async def test_drained_waits_until_little_is_unsent() -> None:
    with bench() as b:
        assert await b.connection.drained()
        b.block()
        for _ in range(20):
            b.connection.send(CHUNK)
        first = asyncio.create_task(b.connection.drained())
        second = asyncio.create_task(b.connection.drained())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled() and not second.done()
        while not second.done():
            await b.read(1024)
        assert await second is True and b.connection.clear()


async def test_drained_is_false_when_it_ends() -> None:
    for end in ("abort", "close"):
        with bench() as b:
            b.block()
            for _ in range(3):
                b.connection.send(CHUNK)
            waiting = asyncio.create_task(b.connection.drained())
            await asyncio.sleep(0)
            if end == "abort":
                b.connection.abort()
            else:
                b.connection.close(Closing.DRAINING)
            assert await within(waiting) is False
            assert await b.connection.drained() is False


# ---- reading and ending


async def test_bytes_in_are_taken_and_counted() -> None:
    with bench() as b:
        b.far.send(b"abc")
        await until(lambda: b.connection.received == b"abc")
        assert b.metrics.bytes_in == 3


async def test_pause_and_resume() -> None:
    with bench() as b:
        b.connection.pause()
        b.connection.pause()
        b.far.send(b"waits")
        await asyncio.sleep(0.02)
        assert b.connection.received == b""
        b.connection.resume()
        b.connection.resume()
        await until(lambda: b.connection.received == b"waits")


async def test_eof_and_reset_are_told_once() -> None:
    for reset in (False, True):
        with bench() as b:
            if reset:
                linger = (1).to_bytes(4, "little") + bytes(4)
                b.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            b.far.close()
            await until(lambda: b.connection.over)
            b.connection.abort()
            b.connection.close(Closing.DRAINING)
            b.connection.pause()
            b.connection.resume()
            b.connection._on_readable()
            b.connection._on_writable()
            assert b.peer.heard == ["lost"]
            assert not b.timetable.due


async def test_close_says_farewell_then_waits_for_the_peer() -> None:
    with bench() as b:
        b.connection.close(Closing.DRAINING, b"LAST")
        b.connection.close(Closing.ENDED, b"again")
        assert await b.rest() == b"LASTBYE"
        assert not b.connection.over
        b.far.close()
        await until(lambda: b.connection.over)
        assert not b.timetable.due and b.peer.heard == ["lost"]


async def test_a_peer_that_does_not_close_is_cut_off() -> None:
    with bench() as b:
        b.connection.close(Closing.DRAINING)
        assert b.timetable.delays == [2.0]
        b.timetable.fire()
        assert b.connection.over and b.peer.heard == ["lost"]


async def test_the_close_timeout_also_holds_for_a_backlog() -> None:
    with bench() as b:
        b.block()
        b.connection.close(Closing.DRAINING)
        assert len(b.timetable.due) == 1
        b.timetable.fire()
        assert b.connection.over and b.metrics.unsent_bytes == 0


async def test_close_on_a_socket_that_was_reset() -> None:
    with bench() as b:
        b.connection.pause()
        linger = (1).to_bytes(4, "little") + bytes(4)
        b.far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        b.far.close()
        b.connection.close(Closing.DRAINING, b"LAST")
        await until(lambda: b.connection.over)
        assert b.peer.heard == ["lost"]


async def test_a_connection_that_never_started() -> None:
    metrics = Metrics(version="0")
    near, far = socket.socketpair()
    context = ConnectionContext(
        asyncio.get_running_loop(),
        metrics,
        HandTimetable(),
        unsent_bytes=1000,
        send_timeout_s=1,
        close_timeout_s=1,
    )
    connection = Plain(near, context)
    connection.abort()
    assert far.recv(1) == b"" and b'connections{transport="ws"} 0.0' in metrics.exposition(None)[0]
    far.close()


async def test_what_a_kind_of_connection_has_to_say() -> None:
    near, far = socket.socketpair()
    bare = LeanConnection(near, _context())
    with pytest.raises(NotImplementedError):
        bare.receive(b"")
    with pytest.raises(NotImplementedError):
        bare.beat()
    with pytest.raises(NotImplementedError):
        bare.farewell(Closing.DRAINING)
    bare.abort()
    far.close()


def _context() -> ConnectionContext:
    return ConnectionContext(
        asyncio.get_running_loop(),
        Metrics(version="0"),
        HandTimetable(),
        unsent_bytes=1000,
        send_timeout_s=1,
        close_timeout_s=1,
    )


# ---- the wheel


async def test_beats_are_spread_and_each_comes_once_an_interval() -> None:
    loop = asyncio.get_running_loop()
    wheel = Heartbeat(loop, 0.2, slots=10)
    context = _context()
    pairs, members = [], []
    for _ in range(5):
        near, far = socket.socketpair()
        pairs.append(far)
        connection = Plain(near, context)
        wheel.add(connection)
        members.append(connection)
        place = wheel._at
        await until(lambda place=place: wheel._at != place)  # type: ignore[misc]
    assert len(wheel) == 5 and set(wheel.connections()) == set(members)
    assert len([slot for slot in wheel._slots if slot]) >= 4
    await until(lambda: members[0].beats == 3)
    assert all(2 <= each.beats <= 3 for each in members)
    wheel.close()
    wheel.close()
    for connection, far in zip(members, pairs, strict=True):
        connection.abort()
        far.close()


async def test_a_failing_beat_does_not_stop_the_wheel() -> None:
    loop = asyncio.get_running_loop()
    failures: list[Any] = []
    loop.set_exception_handler(lambda _loop, context: failures.append(context["exception"]))
    wheel = Heartbeat(loop, 0.05, slots=2)

    class Failing(Plain):
        def beat(self) -> None:
            super().beat()
            raise RuntimeError("no")

    near, far = socket.socketpair()
    connection = Failing(near, _context())
    wheel.add(connection)
    await until(lambda: connection.beats >= 2)
    assert failures and all(isinstance(each, RuntimeError) for each in failures)
    wheel.close()
    connection.abort()
    far.close()
