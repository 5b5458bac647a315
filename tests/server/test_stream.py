"""The session of an event stream: its cursor, its beginning and its end."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from delivery_rig import (
    SERVICE,
    DeliveryRig,
    LineWire,
    NotedConnection,
    as_connection,
    lost,
    open_delivery_rig,
    turns,
    until,
)
from pubsub.position import Position, start
from server.closing import Closing
from server.errors import BadRequest
from server.stream import StreamSession, Wanted, parse_cursor

ONE, TWO = "a.one", "a.two"


class Stream:
    """A stream and what it wrote."""

    def __init__(
        self,
        rig: DeliveryRig,
        channels: Sequence[str] = (ONE, TWO),
        *,
        proof: bytes | None = None,
        individual: bool = True,
    ) -> None:
        self.rig = rig
        self.channels = channels
        self.connection = NotedConnection()
        rig.node.occupancy.enter("127.0.0.1")
        self.session = StreamSession(
            rig.node,
            LineWire(individual=individual),
            as_connection(self.connection),
            "127.0.0.1",
            SERVICE,
            proof=proof,
        )

    def open(self, since: Sequence[Position | None] | None = None, **more: Any) -> None:
        starts = since or [None] * len(self.channels)
        self.session.begin(
            [Wanted(*pair, **more) for pair in zip(self.channels, starts, strict=True)], 2_000
        )

    async def begin(self, since: Sequence[Position | None] | None = None, **more: Any) -> None:
        self.open(since, **more)
        subscribed = len(self.channels)
        await until(lambda: len(self.connection.of("subscribed")) == subscribed)
        await until(lambda: all(s.attached for s in self.session.subscriptions.values()))

    def cursors(self) -> list[str]:
        lines = self.connection.text().splitlines()
        return [line.removeprefix("id: ") for line in lines if line.startswith("id:")]

    async def again(self) -> "Stream":
        """Come back with the cursor written last."""
        stream = Stream(self.rig, self.channels)
        await stream.begin(parse_cursor(self.cursors()[-1], self.channels))
        return stream


def test_a_cursor_is_one_position_for_each_channel_some_of_which_may_be_missing() -> None:
    here = start("a" * 16, 3)
    assert parse_cursor(f"{here},", [ONE, TWO]) == [here, None]
    assert parse_cursor(str(here), [ONE]) == [here]


def test_the_refusal_of_a_cursor_names_the_channel_whose_position_is_bad() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_cursor(f"{start('a' * 16)},x", [ONE, TWO])
    assert caught.value.channel == TWO
    with pytest.raises(BadRequest) as caught:
        parse_cursor("x", [ONE, TWO])
    assert caught.value.channel is None


@pytest.mark.parametrize("text", ["x", "a-b-c", f"{start('a' * 16)},{start('a' * 16)}", ",", ",,"])
def test_a_cursor_that_was_not_given_out_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_cursor(text, [ONE])


async def test_the_first_block_has_a_cursor_and_no_data() -> None:
    async with open_delivery_rig() as rig:
        await rig.publish("a", channel=ONE)
        stream = Stream(rig)
        await stream.begin()
        first = stream.connection.text().split("\n\n")[0]
        assert first.startswith("retry: 2000\nid: ")
        one, two = parse_cursor(stream.cursors()[0], [ONE, TWO])
        assert one is not None and two is not None
        assert (one.offset, two.offset) == (1, 0)


async def test_it_comes_back_twice_with_nothing_lost_or_repeated() -> None:
    async with open_delivery_rig() as rig:
        stream = Stream(rig)
        await stream.begin()
        told: list[str] = []
        for round_ in range(3):
            await rig.publish(f"x{round_}", channel=ONE)
            await rig.publish(f"y{round_}", f"z{round_}", channel=TWO)
            told += stream.connection.ids()
            stream.session.on_lost()
            await rig.publish(f"gap{round_}", channel=ONE)
            stream = await stream.again()
            assert all(m["recovered"] for m in stream.connection.of("subscribed"))
        told += stream.connection.ids()
        assert told == [f"{name}{r}" for r in range(3) for name in ("x", "y", "z", "gap")]


async def test_one_that_breaks_before_its_first_event_resumes_where_it_began() -> None:
    async with open_delivery_rig() as rig:
        stream = Stream(rig)
        await stream.begin()
        stream.session.on_lost()
        await rig.publish("a", channel=TWO)
        again = await stream.again()
        assert again.connection.ids() == ["a"]


async def test_a_reset_moves_the_cursor() -> None:
    async with open_delivery_rig() as rig:
        stream = Stream(rig)
        await stream.begin()
        (old,) = await rig.publish("a", channel=ONE)
        new = await rig.broker.contradict(ONE, Position(old.epoch, 1, "f" * 16))
        await rig.live(ONE)
        assert stream.connection.messages()[-1]["type"] == "reset"
        assert stream.cursors()[-1].split(",")[0] == str(new)
        await rig.publish("b", channel=TWO)
        assert stream.cursors()[-1].split(",")[0] == str(new)
        stream.session.on_lost()
        await rig.publish("c", channel=ONE)
        again = await stream.again()
        assert [m["recovered"] for m in again.connection.of("subscribed")] == [True, True]
        assert again.connection.ids() == ["c"]


async def test_what_cannot_be_continued_is_told_per_channel_and_moves_its_cursor() -> None:
    async with open_delivery_rig() as rig:
        (one,) = await rig.publish("a", channel=ONE)
        (two,) = await rig.publish("b", channel=TWO)
        stream = Stream(rig)
        await stream.begin([Position("f" * 16, 1, one.check), two])
        assert [m["recovered"] for m in stream.connection.of("subscribed")] == [False, True]
        assert stream.cursors()[-1] == f"{one},{two}"


async def test_a_rewind_begins_before_its_events() -> None:
    async with open_delivery_rig() as rig:
        positions = await rig.publish("a", "b", "c", channel=ONE)
        stream = Stream(rig, [ONE])
        await stream.begin(rewind=2)
        assert stream.connection.ids() == ["b", "c"]
        assert stream.cursors() == ["", *(str(position) for position in positions)]


async def test_each_channel_begins_as_is_wanted_of_it() -> None:
    async with open_delivery_rig() as rig:
        (one,) = await rig.publish("a", channel=ONE)
        await rig.publish("b", "c", channel=TWO)
        stream = Stream(rig)
        stream.session.begin([Wanted(ONE), Wanted(TWO, rewind=1, presence=True)], 2_000)
        await until(lambda: stream.connection.ids() == ["c"])
        # One that rewinds has no cursor before its first event: broken off, it rewinds again.
        assert stream.cursors()[0] == f"{one},"
        subscribed = {each["channel"]: each for each in stream.connection.of("subscribed")}
        assert "members" in subscribed[TWO] and "members" not in subscribed[ONE]


async def test_a_cursor_carries_the_proof_of_its_ticket() -> None:
    async with open_delivery_rig() as rig:
        stream = Stream(rig, [ONE], proof=b"proof")
        await stream.begin()
        (position,) = await rig.publish("a", channel=ONE)
        assert stream.cursors()[-1] == f"proof.{position}"


async def test_a_shared_wire_writes_its_frames_as_they_are() -> None:
    async with open_delivery_rig() as rig:
        stream = Stream(rig, [ONE], individual=False)
        await stream.begin([start("f" * 16)])
        (position,) = await rig.publish("a", channel=ONE)
        await rig.publish("b", channel=ONE)
        assert stream.connection.ids() == ["a", "b"]
        assert len(stream.cursors()) == 1
        resumed = Stream(rig, [ONE], individual=False)
        await resumed.begin([position])
        assert resumed.connection.ids() == ["b"]
        assert resumed.cursors() == [str(position)]


async def test_a_stream_holds_its_feeds_once_it_has_begun_no_longer_than_it_lasts() -> None:
    async with open_delivery_rig() as rig:
        stream = Stream(rig)
        await stream.begin()
        await until(lambda: not rig.hub._tasks)
        assert rig.hub.subscriptions() == 2
        stream.session.on_lost()
        assert rig.hub.subscriptions() == 0


@pytest.mark.parametrize("waits_at", ["subscribe", "top"])
@pytest.mark.parametrize("place", [0, 1])
async def test_a_stream_that_ends_while_it_begins_leaves_nothing_behind(
    waits_at: str, place: int
) -> None:
    async with open_delivery_rig() as rig:
        (position,) = await rig.publish("a", channel=(ONE, TWO)[place])
        gate = rig.broker.gates[waits_at] = asyncio.Event()
        stream = Stream(rig)
        beyond = Position(position.epoch, 5, "f" * 16)
        stream.open([beyond, None] if place == 0 else [None, beyond])
        await until(lambda: rig.broker.calls[waits_at])
        await turns()
        stream.session.on_lost()
        gate.set()
        await until(lambda: not rig.hub._tasks)
        assert rig.hub.subscriptions() == 0
        assert stream.session.subscriptions == {}


async def test_a_stream_whose_broker_is_away_comes_back_later() -> None:
    async with open_delivery_rig() as rig:
        rig.broker.away = True
        stream = Stream(rig)
        stream.open()
        await until(lambda: stream.connection.closed)
        assert stream.connection.closed is Closing.UNAVAILABLE
        await until(lambda: not rig.hub._tasks)
        assert rig.hub.subscriptions() == 0


@pytest.mark.expect_log("server.stream", "stream failed")
async def test_a_stream_that_fails_is_ended_and_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_delivery_rig() as rig:

        async def broken(*_args: object, **_options: object) -> None:
            raise KeyError

        monkeypatch.setattr(rig.node.commands, "subscribe", broken)
        stream = Stream(rig)
        stream.open()
        await until(lambda: stream.connection.closed)
        assert stream.connection.closed is Closing.UNAVAILABLE
        await until(lambda: not rig.hub._tasks)
        assert rig.hub.subscriptions() == 0


async def test_a_gap_is_repaired_before_the_stream_sees_what_follows() -> None:
    async with open_delivery_rig() as rig:
        stream = Stream(rig, [ONE])
        await stream.begin()
        way, rig.broker.way = rig.broker.way, lost
        await rig.publish("a", channel=ONE)
        rig.broker.way = way
        await rig.publish("b", channel=ONE)
        await rig.live(ONE)
        assert stream.connection.ids() == ["a", "b"]
