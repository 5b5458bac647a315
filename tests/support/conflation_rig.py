"""A feed whose sessions lag, or want less than everything, on a loop that is turned by hand."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from config.rules import ChannelRule, ChannelRules
from delivery_rig import (
    CHANNEL,
    EPOCH,
    Client,
    DeliveryRig,
    HandLoop,
    LineWire,
    as_loop,
    open_delivery_rig,
    run,
)
from pubsub.position import Position, start
from server.fanout import Turn
from server.feed import Feed
from server.subscription import Subscription

CONFLATE = ChannelRule(match=">", slow="conflate")
DISCONNECT = ChannelRule(match=">")


@dataclass(slots=True)
class Reader:
    """A client with one subscription, which reads or does not."""

    client: Client
    subscription: Subscription

    def stall(self) -> None:
        """Read no more: what is sent is unsent from now on, and something is."""
        self.client.connection.stalled = True
        self.client.connection.unsent += 1

    def read(self) -> None:
        """Read all that waits, and go on reading."""
        self.client.connection.stalled = False
        self.client.connection.read()

    def sip(self) -> None:
        """Read all that waits, and no more."""
        self.client.connection.read()

    @property
    def id(self) -> str:
        return self.client.session.id

    def ids(self) -> list[str]:
        return self.client.ids()

    def seen(self) -> list[str]:
        """What was told of the channel, in order: `e3`, `e7+3` with three skipped, `reset`."""
        return [shown(each) for each in self.client.connection.of("event", "reset", "closing")]


def shown(message: dict[str, Any]) -> str:
    if message["type"] != "event":
        return str(message["type"])
    skipped = message.get("skipped")
    assert skipped != 0, "it is left out where nothing was skipped"
    return f"{message['id']}+{skipped}" if skipped else str(message["id"])


@dataclass(slots=True)
class Bench:
    """A feed, alone; its events are `e1`, `e2` and so on."""

    rig: DeliveryRig
    rules: ChannelRules
    loop: HandLoop = field(default_factory=HandLoop)
    feed: Feed = field(init=False)
    at: Position = field(init=False)
    number: int = 0

    def __post_init__(self) -> None:
        turn = Turn(as_loop(self.loop))
        self.feed = Feed(CHANNEL, turn, self.rig.node.metrics, 10, lambda _: None, self.rules)
        self.at = start(EPOCH)
        self.feed.open(self.at)

    def listen(self, max_rate_hz: float | None = None, wire: LineWire | None = None) -> Reader:
        client = self.rig.session(wire=wire)
        client.connection.sent.clear()
        subscription = Subscription(client.session, CHANNEL, max_rate_hz=max_rate_hz)
        subscription.live = True
        subscription.feed = self.feed
        client.session.subscriptions[CHANNEL] = subscription
        self.feed.attach(subscription)
        return Reader(client, subscription)

    def come(self, count: int = 1, exclude: Sequence[str | None] = ()) -> None:
        """Let events come in one batch; those at the places of `exclude` are not for a session."""
        events = []
        for place, event in enumerate(run(self.at, count)):
            self.number += 1
            left_out = exclude[place] if place < len(exclude) else None
            events.append(replace(event, id=f"e{self.number}", exclude=left_out))
        self.at = events[-1].position
        self.feed.sequence.accept(events)
        self.feed.fanout.push(events)

    def join(self) -> None:
        """Let all that comes from now on be one flush, that of the next `flush`."""
        fanout = self.feed.fanout
        fanout._timer = as_loop(self.loop).call_later(1, fanout._begin)

    def flush(self) -> None:
        """Let all flushes end, in no time."""
        while not self.feed.fanout.hurry():
            self.loop.turn()

    def timers(self) -> int:
        """How many calls are due later than in this turn."""
        self.loop.turn()
        return self.loop.waiting()

    def publish(self, count: int = 1, exclude: Sequence[str | None] = ()) -> None:
        self.come(count, exclude)
        self.flush()

    def reset(self) -> None:
        self.feed.reset(self.at)

    @property
    def left_out(self) -> int:
        return self.rig.node.metrics.events_conflated


@asynccontextmanager
async def bench(*rules: ChannelRule) -> AsyncIterator[Bench]:
    async with open_delivery_rig() as rig:
        yield Bench(rig, ChannelRules(rules or (CONFLATE,)))
