"""The promise of delivery, under everything at once: a seeded simulation.

Sessions come, go and resume; readers stall; the backplane drops, repeats, delays and reorders;
calls to the broker take their time or fail; channels are purged and their broker fails over. Each
session must see every event behind its `subscribed.position` once and in order, or be told.
"""

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from config.rules import ChannelRule
from delivery_rig import CHANNEL, Client, DeliveryRig, LineWire, open_delivery_rig, turns, until
from pubsub.channel_record import ChannelRecord
from pubsub.event import Event
from server.feed import State

pytestmark = pytest.mark.unmeasured

SEEDS = range(40)
STEPS = 250


@dataclass(slots=True)
class Backplane:
    """Decides what becomes of each batch; what it holds back comes later, or never."""

    rng: random.Random
    loss: float
    held: list[tuple[str, Sequence[Event]]] = field(default_factory=list)

    def way(self, channel: str, events: Sequence[Event]) -> Iterable[Sequence[Event]]:
        dice = self.rng.random()
        if not self.loss:
            return (events,)
        if dice < self.loss:
            return ()
        if dice < 1.6 * self.loss:
            self.held.append((channel, events))
            return ()
        if dice < 2.2 * self.loss:
            return (events, events)
        if dice < 2.6 * self.loss and len(events) > 1:
            return (events[1:], events[:1])
        if dice < 3 * self.loss:
            return ((events[0],), events[-1:])
        return (events,)

    def release(self, rig: DeliveryRig) -> None:
        self.rng.shuffle(self.held)
        while self.held:
            rig.broker.sink.on_events(*self.held.pop())


@dataclass(slots=True)
class World:
    """What truly happened, and what each session was told of it."""

    rig: DeliveryRig
    rng: random.Random
    backplane: Backplane
    truth: list[Event] = field(default_factory=list)
    clients: list[Client] = field(default_factory=list)
    gone: list[Client] = field(default_factory=list)
    offers: list[tuple[Client, str | None]] = field(default_factory=list)
    names: "count[int]" = field(default_factory=count)
    harmed: bool = False

    # What may happen

    async def publish(self) -> None:
        number = self.rng.choice((1, 1, 1, 2, 5, 30))
        names = [f"n{next(self.names)}" for _ in range(number)]
        exclude = None
        if self.clients and self.rng.random() < 0.1:
            exclude = self.rng.choice(self.clients).session.id
        data = b'"%d"' % self.rng.randrange(10**6)
        await self.rig.publish(*names, exclude=exclude, data=data, hurry=False)

    async def come(self) -> None:
        client = self.rig.session(wire=self.rng.choice(WIRES))
        client.connection._low_bytes = 400
        fields: dict[str, Any] = {}
        dice = self.rng.random()
        if self.truth and dice < 0.3:
            # It may have seen more on another node than this one has heard of.
            fields["since"] = str(self.rng.choice(self.truth[-40:]).position)
        elif self.gone and dice < 0.7:
            fields["since"] = self.rng.choice(self.gone).position()
        if dice > 0.6:
            fields["rewind"] = self.rng.choice((1, 3, 20, 300))
        self.clients.append(client)
        self.offers.append((client, fields.get("since")))
        client.connection.stalled = self.rng.random() < 0.3
        client.say("subscribe", channel=CHANNEL, **fields)

    async def go(self) -> None:
        if self.clients:
            client = self.clients.pop(self.rng.randrange(len(self.clients)))
            client.leave()
            if client.connection.of("subscribed"):
                self.gone.append(client)

    async def read(self) -> None:
        for client in self.clients:
            if self.rng.random() < 0.5:
                client.connection.stalled = self.rng.random() < 0.3
                client.connection.read()

    async def arrive(self) -> None:
        self.backplane.release(self.rig)

    async def compare(self) -> None:
        feed = self.rig.hub.feeds.get(CHANNEL)
        top = await self.rig.broker.inner.top(CHANNEL)
        if feed is not None and feed.state is not State.OPENING and top is not None:
            feed.on_top(top)

    async def falter(self) -> None:
        self.rig.broker.away = not self.rig.broker.away

    async def purge(self) -> None:
        self.harmed = True
        await self.rig.broker.purge(CHANNEL)

    async def fail_over(self) -> None:
        feed = self.rig.hub.feeds.get(CHANNEL)
        top = await self.rig.broker.inner.top(CHANNEL)
        if feed is not None and top is not None and top.offset > 2:
            self.harmed = True
            await self.rig.lose_tail(top.offset - self.rng.randrange(1, 3))

    # What must hold

    async def settle(self) -> None:
        """Let all that is on its way come to its end.

        One event that comes through is enough, without any comparing of tops.
        """
        self.rig.broker.away = False
        await self.arrive()
        self.backplane.loss = 0
        for _ in range(3):
            await self.relieve()
        await self.rig.publish("last")
        await until(lambda: all(c.connection.of("subscribed", "error") for c in self.clients))
        for _ in range(300):
            await self.relieve()
            if all(client.attached for client in self.clients):
                break
        assert all(client.attached for client in self.clients)
        feed = self.rig.hub.feeds.get(CHANNEL)
        if feed is not None:
            top = await self.rig.broker.inner.top(CHANNEL)
            await until(lambda: feed.state is State.LIVE and feed.top == top)
            await self.rig.live()

    async def relieve(self) -> None:
        for client in self.clients:
            client.connection.stalled = False
            client.connection.read()
        await turns(100)

    def check(self, client: Client, *, whole: bool) -> None:
        """Follow what a client was told, step by step, along what truly happened."""
        events = {str(event.position): event for event in self.truth}
        at = ""
        for message in client.connection.messages():
            if message["type"] in ("subscribed", "reset"):
                at = message["position"]
            elif message["type"] == "event":
                event = events[message["position"]]
                assert event.id == message["id"]
                assert self._before(event, client, at, events) == at
                at = message["position"]
        if whole and at:
            top = str(self.rig.feed().top)
            assert at == top or self._before(events[top], client, at, events, own=True) == at

    @staticmethod
    def _before(
        event: Event, client: Client, at: str, events: dict[str, Event], *, own: bool = False
    ) -> str:
        """Return the position behind which `event` comes to the client, whose own may be left out.

        With `own` the event itself has to be one that was left out.
        """
        assert not own or event.exclude == client.session.id
        before = str(event.before())
        while before != at and before in events and events[before].exclude == client.session.id:
            before = str(events[before].before())
        return before

    def check_offers(self) -> None:
        """Nobody was refused to resume, or reset, while nothing was lost."""
        for client, since in self.offers:
            subscribed = client.connection.of("subscribed")
            if subscribed and since is not None:
                assert subscribed[0]["recovered"] is True, since
            assert not client.connection.of("reset")


WIRES = [LineWire(), LineWire()]


async def simulate(
    monkeypatch: pytest.MonkeyPatch,
    rng: random.Random,
    *,
    harm: bool,
    sliced: bool,
    ring: int = 10_000,
    loss: float = 0.1,
    number: int = STEPS,
) -> World:
    rule = ChannelRule(match=">", history_size=ring)
    async with open_delivery_rig(rule, linger_s=0.0, tick_s=0.001) as rig:
        backplane = Backplane(rng, loss)
        world = World(rig, rng, backplane)
        rig.broker.way = backplane.way
        rig.broker.turns = lambda: rng.choice((0, 0, 1, 2, 5))

        # The truth is what the broker gave a position, whatever becomes of it.
        keep = ChannelRecord.keep

        def noted(record: ChannelRecord, fresh: list[Event], size: int) -> None:
            world.truth += fresh
            keep(record, fresh, size)

        monkeypatch.setattr(ChannelRecord, "keep", noted)
        if sliced:
            # Each flush gives way after each send.
            monkeypatch.setattr("server.fanout._LOOK_EVERY", 1)
            monkeypatch.setattr("server.fanout._HOLD_S", -1.0)
        steps = [
            (world.publish, 40),
            (world.come, 8),
            (world.go, 6),
            (world.read, 10),
            (world.arrive, 10),
            (world.compare, 4),
            (world.falter, 2),
        ]
        if harm:
            steps += [(world.purge, 1), (world.fail_over, 1)]
        kinds, weights = zip(*steps, strict=True)
        for _ in range(number):
            await rng.choices(kinds, weights)[0]()
            await turns(rng.choice((0, 1, 3, 20)))
        await world.settle()
        for client in world.clients:
            world.check(client, whole=True)
        for client in world.gone:
            world.check(client, whole=False)
        holds = sum(len(c.session.subscriptions) for c in world.clients)
        assert sum(feed.holds for feed in rig.hub.feeds.values()) == holds
        for client in world.clients:
            client.leave()
        await until(lambda: not rig.hub._tasks)
        assert all(feed.holds == 0 for feed in rig.hub.feeds.values())
        return world


@pytest.mark.parametrize("seed", SEEDS)
async def test_nothing_is_lost_or_told_twice_while_history_holds_everything(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await simulate(monkeypatch, random.Random(seed), harm=False, sliced=seed % 2 == 1)
    world.check_offers()
    assert world.truth


@pytest.mark.parametrize("seed", SEEDS)
async def test_what_cannot_be_continued_is_told(
    seed: int, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    expect_log("server.repair", "feed reset", required=False)
    await simulate(monkeypatch, random.Random(seed), harm=True, sliced=seed % 2 == 1)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_short_history_is_outrun_and_that_is_told(
    seed: int, monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    expect_log("server.repair", "feed reset", required=False)
    await simulate(
        monkeypatch,
        random.Random(seed),
        harm=seed % 2 == 1,
        sliced=seed % 2 == 1,
        ring=20,
        loss=0.15,
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    harm=st.booleans(),
    sliced=st.booleans(),
    ring=st.sampled_from((0, 3, 20, 10_000)),
    loss=st.sampled_from((0.0, 0.1, 0.3)),
)
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_whatever_course_things_take(
    expect_log: Any, seed: int, harm: bool, sliced: bool, ring: int, loss: float
) -> None:
    """The same over the settings that matter, and courses that nobody picked."""
    expect_log("server.repair", "feed reset", required=False)
    with pytest.MonkeyPatch.context() as patch:
        asyncio.run(
            simulate(
                patch,
                random.Random(seed),
                harm=harm,
                sliced=sliced,
                ring=ring,
                loss=loss,
                number=30,
            )
        )


async def test_the_check_sees_what_is_left_out_repeated_or_swapped() -> None:
    async with open_delivery_rig() as rig:
        world = World(rig, random.Random(1), Backplane(random.Random(1), 0))
        client = rig.session()
        await client.subscribe()
        await rig.publish("a", "b", "c")
        feed = rig.feed()
        world.truth = list(feed.sequence.ring)
        world.check(client, whole=True)
        sent = client.connection.sent
        lines = b"".join(sent).splitlines(keepends=True)
        head, events = lines[:-3], lines[-3:]
        for wrong in ([0, 2], [0, 1, 1, 2], [1, 0, 2], [0, 1]):
            client.connection.sent = head + [events[place] for place in wrong]
            with pytest.raises((AssertionError, KeyError)):
                world.check(client, whole=True)
