"""What the tests of brokers and presence stores stand on: a clock to turn and a sink that notes."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytest
from msgspec.structs import replace

from config.rules import ChannelRule, ChannelRules
from pubsub.archive import Query
from pubsub.broker import Broker
from pubsub.durable_broker import DurableBroker
from pubsub.errors import PubSubError
from pubsub.event import Draft, Event, Published
from pubsub.memory_broker import MemoryBroker
from pubsub.position import Position
from pubsub.redis_broker import RedisBroker
from pubsub.redis_client import Topology, connect
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_url import parse_redis_url
from pubsub.sqlite_archive import SqliteArchive
from redis_cluster import RedisCluster
from redis_kinds import redis_params
from redis_loss import RedisLoss
from redis_server import RedisServer


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

    def on_top(self, channel: str, top: Position) -> None:
        self.calls.append(("top", channel, top))

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

    `settle` waits until the sink has heard all that was acknowledged; `advance` lets time pass;
    `tidy` makes the broker free what has expired. `one_clock` says that the wall clock is the only
    one: a step of it is time that passes. `lapses`: a channel is forgotten when it was idle for
    long, `late_s` after its time at most. `restart` closes the broker and opens another one over
    what was kept: channels, if it is `lasting`. `archived` reads all events of a channel, where
    they are archived; `loss` takes data away from where it is kept.
    """

    broker: Broker
    notes: Notes
    clock: Clock
    settle: Callable[[], AbstractAsyncContextManager[None]]
    advance: Callable[[float], Coroutine[Any, Any, None]]
    tidy: Callable[[], Coroutine[Any, Any, None]]
    restart: Callable[[], Coroutine[Any, Any, None]]
    one_clock: bool = False
    lapses: bool = True
    late_s: float = 0.0
    lasting: bool = True
    archived: Callable[[str], Coroutine[Any, Any, list[Event]]] | None = None
    loss: RedisLoss | None = None

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
    notes = Notes()

    def open_broker() -> MemoryBroker:
        broker = MemoryBroker(
            ChannelRules(rules),
            max_channels=max_channels,
            idempotency_window_s=idempotency_window_s,
            position_ttl_s=position_ttl_s,
            now=clock.wall,
            monotonic=clock.monotonic,
        )
        broker.bind(notes)
        return broker

    broker = open_broker()

    async def advance(seconds: float) -> None:
        clock.advance(seconds)

    async def tidy() -> None:
        while broker.sweep(100) >= 100:
            pass

    async def restart() -> None:
        nonlocal broker
        await broker.close()
        rig.broker = broker = open_broker()

    rig = Rig(broker, notes, clock, _at_once, advance, tidy, restart, lasting=False)
    try:
        yield rig
    finally:
        await broker.close()


@asynccontextmanager
async def open_durable_rig(
    *,
    rules: Sequence[ChannelRule] = (),
    max_channels: int = 1_000,
    idempotency_window_s: float = 300.0,
    position_ttl_s: float = 604_800.0,
) -> AsyncIterator[Rig]:
    clock = Clock()
    notes = Notes()
    temporary = TemporaryDirectory(prefix="archive-")
    all_rules = ChannelRules(
        [replace(rule, archive=True) for rule in rules], ChannelRule(match=">", archive=True)
    )

    def open_broker() -> tuple[SqliteArchive, DurableBroker]:
        ledger = SqliteArchive(
            f"{temporary.name}/archive.db",
            keep_ids_s=2 * idempotency_window_s,
            position_ttl_s=position_ttl_s,
            clock_ms=lambda: round(clock.wall_s * 1000),
        )
        broker = DurableBroker(
            all_rules,
            ledger,
            max_channels=max_channels,
            idempotency_window_s=idempotency_window_s,
            position_ttl_s=position_ttl_s,
            now=clock.wall,
            monotonic=clock.monotonic,
        )
        broker.bind(notes)
        return ledger, broker

    ledger, broker = open_broker()

    async def advance(seconds: float) -> None:
        # A node sweeps its ledger long before records lapse there.
        while seconds > 0:
            clock.advance(min(seconds, position_ttl_s / 8))
            seconds -= position_ttl_s / 8
            await ledger.sweep(round(clock.wall_s * 1000), 100)

    async def tidy() -> None:
        while broker.sweep(100) >= 100:
            pass
        while await ledger.sweep(round(clock.wall_s * 1000), 100) >= 100:
            pass

    async def restart() -> None:
        nonlocal ledger, broker
        await broker.close()
        ledger, broker = open_broker()
        rig.broker = broker
        await broker.start()

    async def archived(channel: str) -> list[Event]:
        return await ledger.read(Query(channel=channel, limit=1_000))

    rig = Rig(
        broker,
        notes,
        clock,
        _at_once,
        advance,
        tidy,
        restart,
        lapses=False,
        # Records on the disk may be kept for longer by a quarter, see SqliteArchive.
        late_s=position_ttl_s / 4,
        archived=archived,
    )
    try:
        await broker.start()
        yield rig
    finally:
        await broker.close()
        temporary.cleanup()


def redis_broker(
    server: RedisServer | RedisCluster,
    rules: Sequence[ChannelRule] = (),
    *,
    url: str = "",
    topology: Topology | None = None,
    **options: Any,
) -> RedisBroker:
    """Return a broker over a Redis, under a key prefix of its own unless `keys` are given."""
    target = parse_redis_url(url or server.url)
    link = RedisLink(
        # More than a machine stands still for: else a pause of this process were one of Redis.
        topology or connect(target, timeout_s=options.pop("timeout_s", 4.0)),
        call_timeout_s=options.pop("call_timeout_s", 5.0),
        most_waiting=options.pop("most_waiting", 20_000),
        monotonic=time.monotonic,
    )
    options.setdefault("keys", RedisKeys(f"t{secrets.token_hex(8)}"))
    # A node's own rounds would come at any time; tests ask for them.
    options.setdefault("interval_s", 3_600.0)
    return RedisBroker(link, ChannelRules(rules), **options)


async def ready(broker: RedisBroker) -> None:
    """Wait until a broker is connected and has proved that it hears what is published."""
    while broker.problem() is not None:  # noqa: ASYNC110
        await asyncio.sleep(0.001)


@asynccontextmanager
async def _open_redis_rig(
    server: RedisServer | RedisCluster,
    *,
    rules: Sequence[ChannelRule] = (),
    max_channels: int = 1_000,
    idempotency_window_s: float = 300.0,
    position_ttl_s: float = 604_800.0,
) -> AsyncIterator[Rig]:
    clock = Clock()
    notes = Notes()
    keys = RedisKeys(f"t{secrets.token_hex(8)}")

    def open_broker() -> RedisBroker:
        broker = redis_broker(
            server,
            rules,
            keys=keys,
            max_channels=max_channels,
            idempotency_window_s=idempotency_window_s,
            position_ttl_s=position_ttl_s,
            clock_ms=lambda: round(clock.wall_s * 1000),
        )
        broker.bind(notes)
        return broker

    broker = open_broker()

    @asynccontextmanager
    async def settle() -> AsyncIterator[None]:
        yield
        assert await broker.settled()

    async def advance(seconds: float) -> None:
        # A node renews its leases long before they are over.
        while seconds > 0 and broker.listening:
            clock.advance(min(seconds, 29.0))
            seconds -= 29.0
            await broker.compare()
        clock.advance(max(0.0, seconds))

    async def tidy() -> None:
        await broker.sweep()

    async def restart() -> None:
        nonlocal broker
        await broker.close()
        rig.broker = broker = open_broker()
        rig.loss = RedisLoss(broker)
        await broker.start()
        await ready(broker)

    rig = Rig(broker, notes, clock, settle, advance, tidy, restart, one_clock=True)
    rig.loss = RedisLoss(broker)
    try:
        await broker.start()
        await ready(broker)
        yield rig
    finally:
        await broker.close()


# Every broker stands here, as parameters of a test that is skipped where a part is missing.
RIG_PARAMS = [
    pytest.param(open_memory_rig, id="memory"),
    pytest.param(open_durable_rig, id="durable"),
    *redis_params(_open_redis_rig),
]


def draft(event_id: str, channel: str = "a.b", data: bytes = b'{"x":1}') -> Draft:
    return Draft(channel, event_id, "message", data)


def drafts(prefix: str, count: int, channel: str = "a.b") -> list[Draft]:
    return [draft(f"{prefix}{number}", channel) for number in range(1, count + 1)]


def accepted(answer: Published | PubSubError) -> Published:
    assert isinstance(answer, Published), answer
    return answer


def ids(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]
