"""The lease protocol in a simulated world: nodes that stall, die, wake and forget.

Of each node there is what keeps its lease and its entries, `RedisPresence` with all that stands
behind it, and no more; the scripts run in a Redis in memory. So a run is short, and very many are.
What is checked: all leave once and only with a reason, what a dead node left is removed and
announced by one survivor, and Redis holds exactly who is here.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import count
from typing import Any, cast
from unittest import mock

from memory_redis import MemoryRedis
from pubsub.envelope import read_envelope, read_member
from pubsub.errors import BrokerUnavailable
from pubsub.presence import Member, PresenceChange
from pubsub.presence_scripts import PresenceScripts
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from pubsub.redis_presence import RedisPresence
from sim_course import RATES, PresenceCourse, draw_faults
from sim_link import SimLink, SimStore
from sim_redis import Server
from sim_scheduler import PlayedWorld, Process, Scheduler, virtual

CHANNELS = ("a", "d")
LEASE_S = 9.0
# Beyond this nothing that a dead node left may be there: its lease, another until a node may claim,
# and a claim that lapses with the node that had it.
SETTLE_S = 6 * LEASE_S
PARTITIONS = 2


@dataclass(slots=True)
class Course(PresenceCourse):
    """What a seed makes of a run, beside the order of things."""

    @classmethod
    def draw(cls, rng: random.Random) -> "Course":
        rate = rng.choice(RATES)
        return cls(
            steps=rng.choice((5, 12)),
            nodes=rng.choice((2, 2, 3)),
            hurry=rng.choice((0.0, 0.02)),
            stalls=rng.random() < 0.5,
            crashes=rng.random() < 0.5,
            departures=rng.random() < 0.3,
            outages=rng.random() < 0.3,
            wipes=rng.random() < 0.15,
            faults=draw_faults(rng, rate),
        )


class Carrier:
    """What `RedisPresence` has of a broker."""

    def __init__(self, link: SimLink, keys: RedisKeys, node: str) -> None:
        self.link = link
        self.keys = keys
        self.node = node
        self.on_return: list[Callable[[], None]] = []

    def carry(self, _carried: object) -> None:
        pass


class Sink:
    """Watches nothing: all that is announced is looked at in Redis."""

    def watched(self) -> Mapping[str, int]:
        return {}


@dataclass(slots=True)
class Home:
    """A node; `alive` until it dies or is told to end."""

    process: Process
    link: SimLink
    presence: RedisPresence
    alive: bool = True

    def returned(self) -> None:
        """Tell it that Redis was away, and is there again."""
        for tell in cast(Carrier, self.link.owner).on_return:
            tell()


@dataclass(slots=True)
class Guest:
    """A session that is present, or means to be."""

    name: str
    home: Home
    channel: str
    info: int = 0
    here: bool = True
    # Whether a call of it is under way, and whether the last one was refused.
    busy: bool = False
    refused: bool = False
    # Left, and came back.
    again: bool = False

    def member(self) -> Member:
        return Member(self.name, f"u{self.name}", b"%d" % self.info)


class LeaseWorld(PlayedWorld):
    """The nodes, who is there, and what truly happened to them."""

    def __init__(self, scheduler: Scheduler, course: Course, server: Server) -> None:
        self.scheduler = scheduler
        self.rng = scheduler.rng
        self.course = course
        self.keys = RedisKeys("sim", PARTITIONS)
        self.store = SimStore(scheduler, server, replace(course.faults))
        if isinstance(server, MemoryRedis):
            self.store.on_call = self._look
        self.homes: list[Home] = []
        self._claims: dict[bytes, tuple[int, bytes]] = {}
        self.guests: list[Guest] = []
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
        clock = self.scheduler.clock
        link = SimLink(self.store, process)
        link.owner = carrier = Carrier(link, self.keys, name)
        presence = RedisPresence(
            cast(RedisBroker, carrier),
            lease_s=LEASE_S,
            monotonic=clock.monotonic,
            clock_ms=clock.wall_ms,
        )
        presence.bind(cast(Any, Sink()))
        process.loop.create_task(presence.start())
        return Home(process, link, presence)

    def alive(self) -> list[Home]:
        return [each for each in self.homes if each.alive]

    # What may happen

    def come(self) -> None:
        home = self.rng.choice(self.alive())
        guest = Guest(f"s{next(self._numbers)}", home, self.rng.choice(CHANNELS))
        self.guests.append(guest)
        self.enter(guest)

    def enter(self, guest: Guest) -> None:
        guest.info += 1
        self._let(guest, partial(guest.home.presence.enter, guest.channel, guest.member()))

    def _let(self, guest: Guest, work: Callable[[], Any]) -> None:
        guest.busy = True
        process = guest.home.process
        process.call(lambda: process.loop.create_task(self._do(guest, work)))

    async def _do(self, guest: Guest, work: Callable[[], Any]) -> None:
        try:
            await work()
            guest.refused = False
        except BrokerUnavailable:
            guest.refused = True
        finally:
            guest.busy = False

    def _idle(self) -> list[Guest]:
        """Those who are here, and wait for nothing."""
        return [g for g in self.guests if g.here and not g.busy and g.home.alive]

    def update(self) -> None:
        if idle := self._idle():
            self.enter(self.rng.choice(idle))

    def go(self) -> None:
        if idle := self._idle():
            guest = self.rng.choice(idle)
            guest.here = False
            self._let(guest, partial(guest.home.presence.leave, guest.channel, guest.name))

    def again(self) -> None:
        """A session leaves a channel and enters it at once."""
        if idle := self._idle():
            guest = self.rng.choice(idle)
            guest.again = True
            presence = guest.home.presence
            process = guest.home.process
            leave = partial(presence.leave, guest.channel, guest.name)
            process.call(lambda: process.loop.create_task(leave()))
            self.enter(guest)

    def tend(self) -> None:
        """Who was refused asks again."""
        for guest in self._idle():
            if guest.refused:
                self.enter(guest)

    def stall(self) -> None:
        process = self.rng.choice(self.alive()).process
        process.stalled = not process.stalled

    def sleep(self) -> None:
        """Long enough for leases to lapse."""
        self.scheduler.run_for(self.rng.choice((1.0, 5.0, 14.0)))

    def crash(self) -> None:
        home = self.rng.choice(self.alive())
        home.alive = False
        home.process.dead = True
        self._bereave(home)
        self.start_node()

    def _bereave(self, home: Home) -> None:
        for guest in self.guests:
            if guest.home is home:
                guest.here = guest.busy = False

    def depart(self) -> None:
        """A node ends as it should, with whoever is there."""
        home = self.rng.choice(self.alive())
        if not home.process.stalled and len(self.alive()) > 1:
            home.alive = False
            self._bereave(home)
            home.process.call(lambda: home.process.loop.create_task(home.presence.close()))
            self.start_node()

    def outage(self) -> None:
        self.store.away = not self.store.away
        if not self.store.away:
            self._return()

    def _return(self) -> None:
        for home in self.alive():
            self.scheduler.soon(home.process, home.returned)

    def wipe(self) -> None:
        """Redis begins anew, with nothing; most nodes learn of it by their connections."""
        self.store.wipe()
        if self.rng.random() < 0.7:
            self._return()

    # The run

    def run(self) -> None:
        course = self.course
        choices: dict[Any, float] = {
            self.come: 30,
            self.update: 5,
            self.go: 12,
            self.again: 6,
            self.tend: 6,
            self.sleep: 10,
            self.stall: 10 * course.stalls,
            self.crash: 8 * course.crashes,
            self.depart: 5 * course.departures,
            self.outage: 6 * course.outages,
            self.wipe: 4 * course.wipes,
        }
        for _ in range(course.steps):
            self.scheduler.act(choices, (0, 2, 5, 15))

    def settle(self) -> None:
        """Without any more faults all comes to be as it is, and stays so."""
        self.store.faults.heal()
        if self.store.away:
            self.outage()
        for home in self.alive():
            home.process.stalled = False
        until = self.scheduler.run_until
        until(self._is_settled, SETTLE_S, "Redis holds who is here", every=10)

    def _is_settled(self) -> bool:
        self.tend()
        if any(guest.busy and guest.home.alive for guest in self.guests):
            return False
        return all(self.holds(channel) for channel in CHANNELS) and not self.leftovers()

    def holds(self, channel: str) -> bool:
        """Whether Redis holds exactly who is in a channel."""
        members, order, _version = self.keys.presence(channel)
        found, ordered = self.store.look(("HGETALL", members), ("ZRANGE", order, 0, -1))
        held = {name: read_member(body) for name, body in _pairs(found)}
        assert sorted(held) == ordered
        here = [g for g in self.guests if g.here and g.channel == channel]
        return held == {g.name.encode(): g.member() for g in here}

    def leftovers(self) -> list[str]:
        """What there is of lives that are over."""
        lives = {each.presence.lease.life.encode() for each in self.alive()}
        leases, claims, steady = self.keys.leases
        held, claimed, renewing = self.store.look(
            ("ZRANGE", leases, 0, -1), ("HGETALL", claims), ("HKEYS", steady)
        )
        left = [str(name) for name in (*held, *renewing) if name not in lives]
        left += [str(name) for name, _whose in _pairs(claimed)]
        generations = {life.partition(b" ")[0] for life in lives}
        (keys,) = self.store.look(("KEYS", "{sim:*"))
        left += [
            str(key) for key in keys if b":e:" in key and key.rpartition(b":")[2] not in generations
        ]
        for number in range(PARTITIONS):
            (listed,) = self.store.look(("SMEMBERS", self.keys.lives(number)))
            left += [str(life) for life in listed if life not in lives]
        return left

    # What must hold

    def _look(self) -> None:
        """After each call: who cleans up behind a life is one, until its claim lapses."""
        values = cast(MemoryRedis, self.store.server).values
        now, before = self.scheduler.clock.wall_ms(), self._claims
        held: dict[bytes, tuple[int, bytes]] = {}
        for life, claim in values.get(self.keys.leases[1].encode(), {}).items():
            till, _, whose = claim.partition(b" ")
            held[life] = (int(till), whose)
            had = before.get(life)
            if had is not None and had[1] != whose:
                assert had[0] <= now, "two clean up behind one node"
        self._claims = held

    def check(self) -> None:
        """All that was announced, in order: who joins was not there, who leaves was."""
        assert not self.scheduler.failures, self.scheduler.failures
        present: dict[str, set[str]] = {channel: set() for channel in CHANNELS}
        versions: dict[str, int] = {}
        names = {self.keys.address(channel).encode(): channel for channel in CHANNELS}
        stays = {g.name: g for g in self.guests if g.here}
        for address, payload in self.store.published:
            channel = names[address]
            change = read_envelope(channel, payload)
            assert isinstance(change, PresenceChange)
            session, here = change.member.session, present[channel]
            if not self.course.wipes:
                assert versions.get(channel) in (None, change.version - 1), "a version was skipped"
                assert (session in here) == (change.action != "join"), f"{change.action} twice"
            versions[channel] = change.version
            if change.action == "leave":
                here.discard(session)
                if self.course.harmless and session in stays:
                    assert stays[session].again, f"{session} left, and is here"
            else:
                here.add(session)
        if not self.course.wipes:
            for channel, here in present.items():
                expected = {g.name for g in stays.values() if g.channel == channel}
                assert here == expected, "what was announced is not who is here"

    def met(self) -> Counter[str]:
        """What happened in the run, so that a world in which nothing does would show."""
        return Counter(
            {
                "changes": len(self.store.published),
                "crashes": sum(each.process.dead for each in self.homes),
                "lives": sum(each.presence.lease.lives for each in self.homes),
                "calls": self.store.calls,
            }
        )

    def trace(self) -> list[object]:
        """All that could be seen of the run: two of the same seed are the same."""
        scheduler = self.scheduler
        return [*scheduler.trace, scheduler.steps, scheduler.clock.now, self.store.published]


def _pairs(flat: Any) -> Iterator[tuple[bytes, bytes]]:
    """What HGETALL answers; a server that speaks RESP3 has it in pairs."""
    if isinstance(flat, dict):
        return iter(flat.items())
    return zip(flat[::2], flat[1::2], strict=True)


@cache
def _scripts() -> PresenceScripts:
    """The scripts, which each node would read anew."""
    return PresenceScripts()


@contextmanager
def lease_scheduler(seed: int) -> Iterator[Scheduler]:
    """The scheduler of a world that is still to be made."""
    scripts = mock.patch("pubsub.redis_presence.PresenceScripts", _scripts)
    with virtual(seed) as scheduler, scripts:
        yield scheduler


@contextmanager
def lease_world(
    seed: int, server: Server | None = None, course: Course | None = None
) -> Iterator[LeaseWorld]:
    """A world that has not begun to go; its Redis is one in memory unless another is given."""
    with lease_scheduler(seed) as scheduler:
        server = server or MemoryRedis(scheduler.clock.wall_ms)
        yield LeaseWorld(scheduler, course or Course.draw(scheduler.rng), server)
