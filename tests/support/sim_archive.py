"""The archive's queue in a simulated world: nodes that die and stall, and a database that fails.

Of each node there is what publishes and what archives: `RedisBroker`, which hears nothing here,
`RedisArchiveQueue` and `Archivist`; the scripts run in a Redis in memory. What is checked is rules
26 and 27: what was acknowledged is in the archive once, or readers are told that it is missing,
and at any time what is there of a channel has no hole; the queue keeps to its bound, and a
partition is taken only from who has lost it.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import count
from typing import Any, cast
from unittest import mock

from config.rules import ChannelRule, ChannelRules
from memory_redis import MemoryRedis
from pubsub.archive import Kept, Unarchived
from pubsub.archive_scripts import ArchiveScripts
from pubsub.archivist import Archivist
from pubsub.envelope import Batch, Purge, read_envelope
from pubsub.event import Draft, Event, Published
from pubsub.position import chain
from pubsub.redis_archive_queue import RedisArchiveQueue
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_scripts import RedisScripts
from sim_course import RATES, NodeCourse, draw_faults
from sim_database import Database, SimArchive, Troubles
from sim_link import SimLink, SimStore
from sim_redis import Server
from sim_scheduler import PlayedWorld, Process, Scheduler, virtual

# Two in one partition, one in the other.
CHANNELS = ("a", "b", "d")
PARTITIONS = 2
LEASE_S = 6.0
SETTLE_S = 90.0
FLUSH_S = 60.0


@dataclass(slots=True)
class Course(NodeCourse):
    """What a seed makes of a run, beside the order of things."""

    queue_max: int = 5
    # Every other node takes one entry more, as after a reload.
    uneven: bool = False
    most_entries: int = 500
    archive_ttl_s: float = 0.0
    purges: bool = False
    troubles: Troubles = field(default_factory=Troubles)

    @classmethod
    def draw(cls, rng: random.Random) -> "Course":
        rate = rng.choice(RATES)
        return cls(
            steps=rng.choice((6, 12)),
            nodes=rng.choice((1, 2, 2, 3)),
            hurry=rng.choice((0.0, 0.02)),
            queue_max=rng.choice((0, 2, 4, 8)),
            uneven=rng.random() < 0.4,
            most_entries=rng.choice((1, 3, 500)),
            archive_ttl_s=rng.choice((0.0, 1000.0)),
            stalls=rng.random() < 0.4,
            crashes=rng.random() < 0.5,
            departures=rng.random() < 0.3,
            purges=rng.random() < 0.3,
            outages=rng.random() < 0.3,
            troubles=Troubles.draw(rng),
            faults=draw_faults(rng, rate),
        )


@dataclass(slots=True)
class Home:
    """A node; `alive` until it dies or is told to end."""

    name: str
    process: Process
    broker: RedisBroker
    archivist: Archivist
    alive: bool = True


@dataclass(slots=True)
class Batched:
    """Events that somebody publishes, again with the same ids until all are acknowledged."""

    drafts: Sequence[Draft]
    home: Home | None = None


class ArchiveWorld(PlayedWorld):
    """The nodes, the database, and what was truly published."""

    def __init__(self, scheduler: Scheduler, course: Course, server: Server) -> None:
        self.scheduler = scheduler
        self.rng = scheduler.rng
        self.course = course
        rule = ChannelRule(match=">", archive=True, archive_ttl_s=course.archive_ttl_s)
        self.rules = ChannelRules((), rule)
        self.keys = RedisKeys("sim", PARTITIONS)
        self.store = SimStore(scheduler, server, replace(course.faults))
        self.store.on_call = self._look
        self.database = Database(scheduler, replace(course.troubles))
        self.homes: list[Home] = []
        self.waiting: list[Batched] = []
        self.acknowledged: list[Published] = []
        self.flushes: list[bool] = []
        self._shares: dict[bytes, tuple[int, bytes]] = {}
        self._numbers = count(1)
        scheduler.hurry = course.hurry
        for _ in range(course.nodes):
            self.start_node()

    # Nodes

    def start_node(self) -> None:
        name = f"node{next(self._numbers)}"
        process = self.scheduler.process(name)
        self.homes.append(self.scheduler.call(process, partial(self._assemble, process, name)))

    def _assemble(self, process: Process, name: str) -> Home:
        clock, course = self.scheduler.clock, self.course
        broker = RedisBroker(
            cast(RedisLink, SimLink(self.store, process)),
            self.rules,
            node=name,
            keys=self.keys,
            archive_queue_max=course.queue_max + (self._extra() if len(self.homes) % 2 else 0),
            monotonic=clock.monotonic,
            clock_ms=clock.wall_ms,
        )
        queue = RedisArchiveQueue(
            broker, lease_s=LEASE_S, most_entries=course.most_entries, clock_ms=clock.wall_ms
        )
        archive = SimArchive(self.database, process)
        archivist = Archivist(queue, archive, monotonic=clock.monotonic)
        process.loop.create_task(archivist.start())
        return Home(name, process, broker, archivist)

    def _extra(self) -> int:
        return int(self.course.uneven and self.course.queue_max > 0)

    def alive(self) -> list[Home]:
        return [each for each in self.homes if each.alive]

    # What may happen

    def publish(self) -> None:
        channel = self.rng.choice(CHANNELS)
        drafts = []
        for _ in range(self.rng.choice((1, 1, 2, 5))):
            drafts.append(Draft(channel, f"e{next(self._numbers)}", "n", b"1"))
        self.waiting.append(batch := Batched(drafts))
        self._attempt(batch)

    def _attempt(self, batch: Batched) -> None:
        batch.home = home = self.rng.choice(self.alive())
        home.process.call(lambda: home.process.loop.create_task(self._publish(batch, home)))

    async def _publish(self, batch: Batched, home: Home) -> None:
        answers = await home.broker.publish(batch.drafts)
        published = [each for each in answers if isinstance(each, Published)]
        if batch.home is home and len(published) == len(batch.drafts):
            self.waiting.remove(batch)
            self.acknowledged += published
        batch.home = None

    def tend(self) -> None:
        """Who got no acknowledgement tries again, also if its node has died."""
        for batch in self.waiting:
            if batch.home is None or not batch.home.alive:
                self._attempt(batch)

    def purge(self) -> None:
        home = self.rng.choice(self.alive())
        channel = self.rng.choice(CHANNELS)
        home.process.call(lambda: home.process.loop.create_task(self._purge(home, channel)))

    async def _purge(self, home: Home, channel: str) -> None:
        try:
            await home.broker.purge(channel)
        except Exception as error:
            self.scheduler.note("purge", str(error))

    def stall(self) -> None:
        process = self.rng.choice(self.alive()).process
        process.stalled = not process.stalled

    def sleep(self) -> None:
        self.scheduler.run_for(self.rng.choice((0.3, 1.5, 8.0)))

    def crash(self) -> None:
        home = self.rng.choice(self.alive())
        home.alive = False
        home.process.dead = True
        self.start_node()

    def depart(self) -> None:
        """A node ends as it should."""
        home = self.rng.choice(self.alive())
        if not home.process.stalled and len(self.alive()) > 1:
            home.alive = False
            home.process.call(lambda: home.process.loop.create_task(home.archivist.close()))
            self.start_node()

    def outage(self) -> None:
        """The database is away, or Redis."""
        target: Any = self.rng.choice((self.database, self.database, self.store))
        target.away = not target.away

    # What must hold at any time

    def _look(self) -> None:
        """After each call: the queues keep to their bound, and nobody loses what it has."""
        most = self.course.queue_max and self.course.queue_max + self._extra()
        values = cast(MemoryRedis, self.store.server).values
        for partition in range(PARTITIONS):
            queue = values.get(self.keys.queue(partition)[0].encode())
            assert not most or queue is None or len(queue.ids) <= most, "the queue has no bound"
        shares = values.get(self.keys.shares[1].encode(), {})
        now, before = self.scheduler.clock.wall_ms(), self._shares
        held: dict[bytes, tuple[int, bytes]] = {}
        for partition, claim in shares.items():
            till, _, whose = claim.partition(b" ")
            held[partition] = (int(till), whose)
            had = before.get(partition)
            if had is not None and had[1] != whose:
                assert had[0] <= now, "a partition was taken from who has it"
        self._shares = held

    # The run

    def run(self) -> None:
        course = self.course
        choices: dict[Any, float] = {
            self.publish: 40,
            self.tend: 8,
            self.sleep: 10,
            self.purge: 6 * course.purges,
            self.stall: 8 * course.stalls,
            self.crash: 7 * course.crashes,
            self.depart: 4 * course.departures,
            self.outage: 8 * course.outages,
        }
        for _ in range(course.steps):
            self.scheduler.act(choices, (0, 3, 10, 30))

    def settle(self) -> None:
        """Without any more faults all comes into the archive, or is told to be missing."""
        self.flushes.clear()
        self.store.faults.heal()
        self.database.troubles.heal()
        self.store.away = self.database.away = False
        for home in self.alive():
            home.process.stalled = False
        until = self.scheduler.run_until
        until(self._is_acknowledged, SETTLE_S, "all is acknowledged", every=10)
        home = self.rng.choice(self.alive())
        home.process.call(lambda: home.process.loop.create_task(self._flush(home)))
        until(lambda: self.flushes, FLUSH_S + 1, "all is archived", every=1)
        # `flush` says that all is there.
        self.check_archive()
        until(self._is_empty, SETTLE_S, "the queues are empty, and evenly shared", every=10)

    async def _flush(self, home: Home) -> None:
        await home.archivist.flush(FLUSH_S)
        self.flushes.append(True)

    def _is_acknowledged(self) -> bool:
        self.tend()
        return not self.waiting

    def _is_empty(self) -> bool:
        shares, *queues = self.store.look(
            ("HGETALL", self.keys.shares[1]),
            *(("XLEN", self.keys.queue(each)[0]) for each in range(PARTITIONS)),
        )
        owners = Counter(claim.partition(b" ")[2].decode() for claim in shares[1::2])
        names = {home.name for home in self.alive()}
        even = -(-PARTITIONS // len(names))
        return (
            not any(queues)
            and owners.total() == PARTITIONS
            and owners.keys() <= names
            and max(owners.values()) <= even
        )

    # What must hold in the end

    def check(self) -> None:
        assert not self.scheduler.failures, self.scheduler.failures
        self.check_archive()
        self._check_order()

    def truth(self) -> tuple[dict[str, list[Event]], dict[str, int]]:
        """All that got a position, by channel and in order, and up to where each was purged."""
        events: dict[str, list[Event]] = {channel: [] for channel in CHANNELS}
        floors = dict.fromkeys(CHANNELS, 0)
        names = {self.keys.address(channel).encode(): channel for channel in CHANNELS}
        for address, payload in self.store.published:
            channel = names[address]
            content = read_envelope(channel, payload)
            if isinstance(content, Batch):
                for event in content.events:
                    _check_chain(events[channel], event)
                    events[channel].append(event)
            elif isinstance(content, Purge):
                floors[channel] = max(floors[channel], content.floor.offset)
        return events, floors

    def check_archive(self) -> None:
        """Each event is there, or told to be missing, or purged; and nothing else is there."""
        truth, floors = self.truth()
        known = {(p.channel, p.position) for p in self.acknowledged}
        database, ttl_ms = self.database, round(self.course.archive_ttl_s * 1000)
        right = 0
        for channel, events in truth.items():
            assert len({event.id for event in events}) == len(events), "published twice"
            for event in events:
                at = event.position
                known.discard((channel, at))
                kept = database.kept.get((channel, at.epoch, at.offset, at.check))
                told = _told(database.gaps_of(channel), event)
                if at.offset <= floors[channel]:
                    assert kept is None, f"{event.id} was purged, and is in the archive"
                    continue
                assert kept is not None or told, f"{event.id} is not in the archive: nobody told"
                assert kept is None or not told, f"{event.id} is there, and told to be missing"
                if kept is not None:
                    right += 1
                    assert kept.event == event
                    assert kept.expires == (event.time + ttl_ms if ttl_ms else 0)
        assert not known, "what was acknowledged was never published"
        assert right == len(database.kept), "there is in the archive what was never published"
        if not self.course.queue_max:
            assert not database.gaps, "told to be missing, and there was room"

    def _check_order(self) -> None:
        """What came of a channel came in its order: so there never was a hole."""
        tops: dict[tuple[str, str], int] = {}
        for entry in self.database.log:
            if isinstance(entry, Kept):
                at = entry.event.position
                key, first, last = (entry.event.channel, at.epoch), at.offset, at.offset
            else:
                assert isinstance(entry, Unarchived)
                key, first, last = (entry.channel, entry.epoch), entry.first, entry.last
            assert first > tops.get(key, 0), "what is later came first"
            tops[key] = last

    def met(self) -> Counter[str]:
        """What happened in the run, so that a world in which nothing does would show."""
        return Counter(
            {
                "events": len(self.acknowledged),
                "gaps": len(self.database.gaps),
                "writes": self.database.writes,
                "failures": sum(each.archivist.failures for each in self.homes),
                "crashes": sum(each.process.dead for each in self.homes),
                "calls": self.store.calls,
            }
        )

    def trace(self) -> list[object]:
        """All that could be seen of the run: two of the same seed are the same."""
        scheduler = self.scheduler
        told = [self.store.published, self.database.log]
        return [*scheduler.trace, scheduler.steps, scheduler.clock.now, *told]


def _check_chain(before: Sequence[Event], event: Event) -> None:
    """All of a channel is one chain here, since nothing is lost: rule 1."""
    at = event.position
    assert at.check == chain(event.prev, event.id), "a check is not of what came before"
    if before:
        top = before[-1].position
        assert (top.epoch, top.offset + 1, top.check) == (at.epoch, at.offset, event.prev)


def _told(gaps: Sequence[Unarchived], event: Event) -> bool:
    at = event.position
    return any(gap.epoch == at.epoch and gap.first <= at.offset <= gap.last for gap in gaps)


@cache
def _scripts(kind: type[Any]) -> Any:
    """The scripts, which each node would read anew."""
    return kind()


@contextmanager
def archive_world(
    seed: int, server: Server | None = None, course: Course | None = None
) -> Iterator[ArchiveWorld]:
    """A world that has not begun to go; its Redis is one in memory unless another is given."""
    with ExitStack() as stack:
        scheduler = stack.enter_context(virtual(seed))
        for place, kind in (
            ("pubsub.redis_broker.RedisScripts", RedisScripts),
            ("pubsub.redis_archive_queue.ArchiveScripts", ArchiveScripts),
        ):
            stack.enter_context(mock.patch(place, partial(_scripts, kind)))
        # It asks so often that little else would happen.
        stack.enter_context(mock.patch("pubsub.archivist._FLUSH_POLL_S", 0.5))
        server = server or MemoryRedis(scheduler.clock.wall_ms)
        yield ArchiveWorld(scheduler, course or Course.draw(scheduler.rng), server)
