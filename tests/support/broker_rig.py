"""What the tests of brokers and presence stores stand on: a clock to turn and a sink that notes."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from config.rules import ChannelRule, ChannelRules
from pubsub.broker import Broker
from pubsub.errors import PubSubError
from pubsub.event import Draft, Event, Published
from pubsub.memory_broker import MemoryBroker
from pubsub.position import Position


@dataclass(slots=True)
class Clock:
    """A wall clock and a monotonic one, both in s; only tests turn them."""

    wall_s: float = 1_789_000_000.0
    monotonic_s: float = 1_000.0

    def wall(self) -> float:
        return self.wall_s

    def monotonic(self) -> float:
        return self.monotonic_s

    def advance(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


@dataclass(slots=True)
class Notes:
    """A sink that notes its calls: (kind, channel, what)."""

    calls: list[tuple[str, str, list[Event] | Position]] = field(default_factory=list)

    def on_events(self, channel: str, events: Sequence[Event]) -> None:
        self.calls.append(("events", channel, list(events)))

    def on_purge(self, channel: str, floor: Position) -> None:
        self.calls.append(("purge", channel, floor))

    def on_fork(self, channel: str, top: Position) -> None:
        self.calls.append(("fork", channel, top))

    def events(self, channel: str) -> list[Event]:
        """All events of a channel, in the order in which they came."""
        found: list[Event] = []
        for _, name, what in self.calls:
            if name == channel and isinstance(what, list):
                found += what
        return found

    def kinds(self, channel: str) -> list[str]:
        """The kinds of call for a channel, in order."""
        return [kind for kind, name, _ in self.calls if name == channel]


@dataclass(slots=True)
class Rig:
    """A broker, what its sink heard, and the clock that it runs by.

    `settle` waits until the sink has heard all that was acknowledged; `tidy` makes the broker free
    what has expired.
    """

    broker: Broker
    notes: Notes
    clock: Clock
    settle: Callable[[], AbstractAsyncContextManager[None]]
    tidy: Callable[[], None]

    async def publish(self, *drafts: Draft) -> list[Published]:
        """Publish, wait for the sink, and return the answers, all of which must be positions."""
        async with self.settle():
            answers = await self.broker.publish(drafts)
        return [accepted(answer) for answer in answers]


class OpenRig(Protocol):
    """Opens a rig with a broker that is bound to its sink, and closes it again."""

    def __call__(
        self,
        *,
        rules: Sequence[ChannelRule] = (),
        max_channels: int = 1_000,
        idempotency_window_s: float = 300.0,
        position_ttl_s: float = 604_800.0,
    ) -> AbstractAsyncContextManager[Rig]: ...


@asynccontextmanager
async def _at_once() -> AsyncIterator[None]:
    """The memory broker delivers before it acknowledges."""
    yield


@asynccontextmanager
async def open_memory_rig(
    *,
    rules: Sequence[ChannelRule] = (),
    max_channels: int = 1_000,
    idempotency_window_s: float = 300.0,
    position_ttl_s: float = 604_800.0,
) -> AsyncIterator[Rig]:
    clock = Clock()
    broker = MemoryBroker(
        ChannelRules(rules),
        max_channels=max_channels,
        idempotency_window_s=idempotency_window_s,
        position_ttl_s=position_ttl_s,
        now=clock.wall,
        monotonic=clock.monotonic,
    )
    notes = Notes()
    broker.bind(notes)

    def tidy() -> None:
        while broker.sweep(100) >= 100:
            pass

    try:
        yield Rig(broker, notes, clock, _at_once, tidy)
    finally:
        await broker.close()


# Every broker stands here.
RIGS: dict[str, OpenRig] = {"memory": open_memory_rig}


def draft(event_id: str, channel: str = "a.b", data: bytes = b'{"x":1}') -> Draft:
    return Draft(channel, event_id, "message", data)


def drafts(prefix: str, count: int, channel: str = "a.b") -> list[Draft]:
    return [draft(f"{prefix}{number}", channel) for number in range(1, count + 1)]


def accepted(answer: Published | PubSubError) -> Published:
    assert isinstance(answer, Published), answer
    return answer


def ids(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]
