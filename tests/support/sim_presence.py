"""Presence over Redis in a simulated world: nodes that stall, die, wake and forget.

The nodes are whole: `RedisBroker`, `RedisPresence`, hub and sessions; the scripts run in a Redis in
memory. What is checked: all leave once and only with a reason, what a dead node left is removed and
announced by one survivor, Redis holds exactly who is here, and everybody who watches has seen that.
"""

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

from config.rules import ChannelRule, ChannelRules
from delivery_rig import LineWire
from memory_redis import MemoryRedis
from pubsub.envelope import read_envelope
from pubsub.presence import PresenceChange
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_presence import RedisPresence
from server.auth import Auth
from server.node import Node, assemble
from server.principal import Principal, service_grants
from server.session import Session
from server.timetable import Timetable
from sim_clients import Client, Place, SimConnection, Visit
from sim_course import RATES, PresenceCourse, draw_faults
from sim_delivery import metrics, settings
from sim_redis import Server, SimRedis, SimTopology
from sim_scheduler import Line, PlayedWorld, Process, Scheduler, virtual

CHANNELS = ("a", "b")
LEASE_S = 9.0
SETTLE_S = 400.0
PARTITIONS = 2
_prefixes = count()


@dataclass(slots=True)
class Course(PresenceCourse):
    """What a seed makes of a run, beside the order of things."""

    steps: int = 30
    look_s: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> "Course":
        rate = rng.choice(RATES)
        return cls(
            steps=rng.choice((15, 30)),
            nodes=rng.choice((2, 3)),
            look_s=rng.choice((0.0, 0.0003)),
            hurry=rng.choice((0.0, 0.02)),
            stalls=rng.random() < 0.5,
            crashes=rng.random() < 0.5,
            departures=rng.random() < 0.3,
            outages=rng.random() < 0.15,
            wipes=rng.random() < 0.15,
            faults=draw_faults(rng, rate, loss=True),
        )


@dataclass(slots=True)
class Home(Place):
    """A node and its presence store."""

    presence: RedisPresence = field(kw_only=True)


class PresenceWorld(PlayedWorld):
    """The nodes, the clients, and what truly happened to them."""

    def __init__(self, scheduler: Scheduler, course: Course, server: Server) -> None:
        self.scheduler = scheduler
        self.rng = scheduler.rng
        self.course = course
        self.rules = ChannelRules((), ChannelRule(match=">", presence=True))
        # Names are of a fixed length, so that two runs differ in nothing.
        self.keys = RedisKeys(f"sim{next(_prefixes) % 10}", PARTITIONS)
        self.redis = SimRedis(scheduler, server, self.keys.prefix, replace(course.faults))
        self.redis.wipe()
        self.wire = LineWire()
        self.places: list[Home] = []
        self.clients: list[Client] = []
        self.grants = service_grants({"publish": (">",), "history": (">",), "presence": (">",)})
        self._numbers = count(1)
        scheduler.clock.look_s = course.look_s
        scheduler.hurry = course.hurry
        for _ in range(course.nodes):
            self.start_node()

    # Nodes

    def start_node(self) -> None:
        name = f"node{next(self._numbers)}"
        process = self.scheduler.process(name)
        self.places.append(self.scheduler.call(process, partial(self._assemble, process, name)))

    def _assemble(self, process: Process, name: str) -> Home:
        clock, numbers = self.scheduler.clock, count(1)
        link = RedisLink(
            SimTopology(self.redis, process), call_timeout_s=2.0, monotonic=clock.monotonic
        )
        broker = RedisBroker(
            link,
            self.rules,
            node=name,
            keys=self.keys,
            monotonic=clock.monotonic,
            clock_ms=clock.wall_ms,
        )
        presence = RedisPresence(
            broker, lease_s=LEASE_S, monotonic=clock.monotonic, clock_ms=clock.wall_ms
        )
        node: Node = assemble(
            settings(),
            name=name,
            rules=self.rules,
            broker=broker,
            presence=presence,
            auth=Auth(settings(), self.rules),
            metrics=metrics(),
            timetable=Timetable(process.loop, tick_s=0.5),
            new_id=lambda: f"{name}-{next(numbers)}",
            linger_s=2.0,
        )
        for start in (broker.start, presence.start):
            process.loop.create_task(start())
        return Home(name, process, node, presence=presence)

    def alive(self) -> list[Home]:
        return [each for each in self.places if each.alive]

    # What may happen

    def come(self) -> None:
        self.clients.append(client := Client(f"c{next(self._numbers)}"))
        self.visit(client, self.rng.choice(CHANNELS))

    def visit(self, client: Client, channel: str) -> None:
        place = self.rng.choice(self.alive())
        clock, failures = self.scheduler.clock, self.scheduler.failures
        connection = SimConnection(clock, 1_000_000, failures.append)
        visit = Visit(place, connection, Line(self.scheduler, place.process), channel=channel)
        client.visits.append(visit)
        client.here = True
        visit.up.send(partial(self._open, visit, client.name))
        self.subscribe(visit)

    def _open(self, visit: Visit, user: str) -> None:
        node = visit.place.node
        node.occupancy.enter("127.0.0.1")
        visit.connection.session = session = Session(node, self.wire, visit.connection, "127.0.0.1")
        visit.session_id = session.id
        session.open(Principal(kind="user", user=user, grants=self.grants))

    @staticmethod
    def subscribe(visit: Visit) -> None:
        visit.say("subscribe", channel=visit.channel, presence=True)

    def tend(self) -> None:
        """Who was refused asks again; whose node died or sent it away comes back elsewhere."""
        for client in self.clients:
            visit = client.visit
            if not client.here:
                continue
            outcome = visit.outcome()
            if visit.is_over():
                visit.connection.left = True
                self.visit(client, visit.channel)
            elif outcome and outcome["type"] == "error" and outcome["ref"] == visit.refs:
                self.subscribe(visit)

    def go(self) -> None:
        here = [each for each in self.clients if each.here]
        if here:
            client = self.rng.choice(here)
            client.here = False
            visit = client.visit
            visit.connection.left = True
            visit.up.send(visit.connection.lose)

    def again(self) -> None:
        """A session leaves a channel and enters it at once."""
        here = [each for each in self.clients if each.here and not each.visit.is_over()]
        if here:
            visit = self.rng.choice(here).visit
            visit.left_again = True
            visit.say("unsubscribe", channel=visit.channel)
            self.subscribe(visit)

    def stall(self) -> None:
        place = self.rng.choice(self.alive())
        place.process.stalled = not place.process.stalled

    def sleep(self) -> None:
        """Long enough for leases to lapse."""
        self.scheduler.run_for(self.rng.choice((3.0, 12.0, 25.0)))

    def crash(self) -> None:
        place = self.rng.choice(self.alive())
        place.alive = False
        place.process.dead = True
        for connection in [c for c in self.redis.connections if c.process is place.process]:
            self.redis.connections.remove(connection)
        self.start_node()

    def depart(self) -> None:
        """A node ends as it should; its sessions were ended before."""
        place = self.rng.choice(self.alive())
        if not place.process.stalled and len(self.alive()) > 1:
            place.alive = False
            place.process.call(lambda: place.process.loop.create_task(self._end(place)))
            self.start_node()

    async def _end(self, place: Home) -> None:
        for session in list(place.node.hub.sessions.values()):
            session.on_lost()
        await place.node.hub.close()
        await place.presence.close()
        await place.node.broker.close()

    def break_line(self) -> None:
        if self.redis.connections:
            self.rng.choice(self.redis.connections).lose()

    def outage(self) -> None:
        self.redis.away = not self.redis.away
        if self.redis.away:
            for connection in list(self.redis.connections):
                connection.lose()

    def wipe(self) -> None:
        """Redis begins anew, with nothing; all connections are lost."""
        self.redis.wipe()
        for connection in list(self.redis.connections):
            connection.lose()

    # The run

    def run(self) -> None:
        course = self.course
        choices: dict[Any, float] = {
            self.come: 30,
            self.go: 12,
            self.again: 8,
            self.tend: 10,
            self.sleep: 8,
            self.break_line: 3 * (not course.harmless),
            self.stall: 10 * course.stalls,
            self.crash: 4 * course.crashes,
            self.depart: 4 * course.departures,
            self.outage: 4 * course.outages,
            self.wipe: 2 * course.wipes,
        }
        for _ in range(course.steps):
            self.scheduler.act(choices, (0, 5, 20, 60))

    def settle(self) -> None:
        """Without any more faults all comes to be as it is, and stays so."""
        self.redis.faults.heal()
        self.redis.away = False
        for place in self.alive():
            place.process.stalled = False
        until = self.scheduler.run_until
        until(self._is_subscribed, SETTLE_S, "all are subscribed", every=20)
        # An entry may still be lost with the lease of a node that was asleep or is dead.
        until(self._is_settled, SETTLE_S, "Redis holds who is here, and all know it", every=50)

    def _is_subscribed(self) -> bool:
        self.tend()
        return all(each.visit.attached() for each in self.clients if each.here)

    def expected(self, channel: str) -> list[str]:
        here = [each.visit for each in self.clients if each.here]
        return sorted(each.session_id for each in here if each.channel == channel)

    def _is_settled(self) -> bool:
        if not self._is_subscribed():
            return False
        for channel in CHANNELS:
            expected = self.expected(channel)
            for client in self.clients:
                if client.here and client.visit.channel == channel:
                    if View(client.visit).members != expected:
                        return False
        return self._holds() and not self.leftovers()

    def _holds(self) -> bool:
        return all(self.held(channel) == self.expected(channel) for channel in CHANNELS)

    def held(self, channel: str) -> list[str]:
        members, order, _version = self.keys.presence(channel)
        found, ordered = self.redis.ask(("HKEYS", members), ("ZRANGE", order, 0, -1))
        assert sorted(found) == ordered
        return sorted(name.decode() for name in found)

    def leftovers(self) -> list[str]:
        """What there is of lives that are over."""
        lives = {each.presence.lease.life.encode() for each in self.alive()}
        leases, claims, steady = self.keys.leases
        held, claimed, renewing = self.redis.ask(
            ("ZRANGE", leases, 0, -1), ("HKEYS", claims), ("HKEYS", steady)
        )
        left = [str(name) for name in (*held, *renewing) if name not in lives]
        left += [str(name) for name in claimed]
        generations = {life.partition(b" ")[0] for life in lives}
        left += [
            str(key)
            for key in self.redis.keys()
            if b":e:" in key and key.rpartition(b":")[2] not in generations
        ]
        return left

    # What must hold

    def check(self) -> None:
        assert not self.scheduler.failures, self.scheduler.failures
        self._check_changes()
        for client in self.clients:
            for visit in client.visits:
                View(visit)

    def _check_changes(self) -> None:
        """All that was announced, in order: who joins was not there, who leaves was."""
        present: dict[str, set[str]] = {channel: set() for channel in CHANNELS}
        versions: dict[str, int] = {}
        names = {self.keys.address(channel).encode(): channel for channel in CHANNELS}
        stays = {v.session_id for c in self.clients if c.here for v in [c.visit]}
        for address, payload in self.redis.published:
            channel = names.get(address)
            content = channel and read_envelope(channel, payload)
            if not channel or not isinstance(content, PresenceChange):
                continue
            session, here = content.member.session, present[channel]
            if not self.course.wipes:
                assert versions.get(channel) in (None, content.version - 1), "a version was skipped"
                assert (session in here) == (content.action != "join"), f"{content.action} twice"
            versions[channel] = content.version
            if content.action == "leave":
                here.discard(session)
                if self.course.harmless and session in stays:
                    assert session in self.left_again(), f"{session} left, and is here"
            else:
                here.add(session)

    def left_again(self) -> set[str]:
        """Sessions that left on purpose, and came back."""
        return {
            visit.session_id
            for client in self.clients
            for visit in client.visits
            if visit.left_again
        }

    def met(self) -> Counter[str]:
        """What happened in the run, so that a world in which nothing does would show."""
        kinds = Counter(
            m["action"] for c in self.clients for _v, m in c.told() if m["type"] == "presence"
        )
        return Counter(
            {
                "changes told": kinds["join"] + kinds["leave"] + kinds["update"],
                "syncs": kinds["sync"],
                "crashes": sum(each.process.dead for each in self.places),
                "lives": sum(each.presence.lease.lives for each in self.places),
                "calls": self.redis.calls,
            }
        )

    def trace(self) -> list[object]:
        """All that could be seen of the run: two of the same seed are the same."""
        told = [[m for _visit, m in client.told()] for client in self.clients]
        published = [payload for _address, payload in self.redis.published]
        scheduler = self.scheduler
        return [*scheduler.trace, scheduler.steps, scheduler.clock.now, published, told]


class View:
    """The presence set as one session was told of it."""

    def __init__(self, visit: Visit) -> None:
        known: dict[str, Any] | None = None
        for message in visit.connection.messages():
            if message["type"] == "subscribed":
                known = {each["session"]: each for each in message["members"]}
                assert not message.get("more")
            elif message["type"] == "presence" and known is not None:
                if message["action"] == "sync":
                    known = {each["session"]: each for each in message["members"]}
                    continue
                session = message["member"]["session"]
                if message["action"] == "leave":
                    known.pop(session, None)
                else:
                    known[session] = message["member"]
            elif message["type"] == "unsubscribed":
                known = None
        self.members = None if known is None else sorted(known)


@contextmanager
def presence_world(
    seed: int, server: Server | None = None, course: Course | None = None
) -> Iterator[PresenceWorld]:
    """A world that has not begun to go; its Redis is one in memory unless another is given."""
    settings(), metrics()
    with virtual(seed) as scheduler:
        server = server or MemoryRedis(scheduler.clock.wall_ms)
        world = PresenceWorld(scheduler, course or Course.draw(scheduler.rng), server)
        try:
            yield world
        finally:
            world.redis.close()
