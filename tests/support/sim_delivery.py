"""Delivery in a simulated world: nodes, clients and publishers over a backplane that fails.

What is checked is the promise itself: within what is kept, every client has seen every acknowledged
event once and in order, over all its sessions and nodes, or was told where that ended; and nobody
was told so without a reason.
"""

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import count
from typing import Any
from unittest import mock

from msgspec.structs import replace

from config.limits import LimitSettings
from config.rules import ChannelRule, ChannelRules
from config.settings import Settings
from delivery_rig import SERVICE, LineWire
from pubsub.event import Draft, Event, Published
from pubsub.memory_presence import MemoryPresence
from pubsub.position import Position
from server.auth import Auth
from server.feed import State
from server.metrics import Metrics
from server.node import Node, assemble
from server.session import Session
from server.timetable import Timetable
from sim_backplane import CALL_TIMEOUT_S, Backplane, Faults, SimBroker
from sim_clients import Client, Place, Publisher, SimConnection, Visit, at
from sim_rules import PIECE_BYTES, watched
from sim_scheduler import Line, PlayedWorld, Process, Scheduler, virtual

CHANNEL = "a.b"
LINGER_S = 3.0
SETTLE_S = 300.0
NEVER_S = 1_000_000.0
DAY_S = 86_400.0


@dataclass(slots=True)
class Course:
    """What a seed makes of a run, beside the order of things."""

    steps: int = 40
    nodes: int = 2
    history: int = 10_000
    ring: int = 256
    piece: int = 100
    sliced: bool = False
    look_s: float = 0.0
    hurry: float = 0.02
    unsent_bytes: int = 1_000_000
    fail_overs: bool = False
    unseen: float = 0.0
    purges: bool = False
    crashes: bool = False
    stalls: bool = False
    faults: Faults = field(default_factory=Faults)

    @property
    def harmless(self) -> bool:
        """Whether nothing is lost, so that nobody may be told so."""
        return not (self.fail_overs or self.purges) and self.history > 1_000

    @property
    def shows_all(self) -> bool:
        """Whether all that is published comes to every node, if late, or its connection is lost.

        Then nobody has to ask for it now and then.
        """
        return not (self.fail_overs or self.faults.loss)

    @classmethod
    def draw(cls, rng: random.Random) -> "Course":
        faulty = rng.random() < 0.8
        rate = rng.choice((0.02, 0.1, 0.3)) if faulty else 0.0
        return cls(
            steps=rng.choice((15, 30, 60)),
            nodes=rng.choice((1, 2, 2, 3)),
            history=rng.choice((10_000, 10_000, 10_000, 40, 5, 0)),
            ring=rng.choice((0, 4, 16, 256)),
            piece=rng.choice((2, 7, 100)),
            sliced=rng.random() < 0.4,
            look_s=rng.choice((0.0, 0.0, 0.0003, 0.002)),
            hurry=rng.choice((0.0, 0.01, 0.05)),
            unsent_bytes=rng.choice((1_500, 6_000, 1_000_000)),
            fail_overs=rng.random() < 0.4,
            unseen=rng.choice((0.0, 0.0, 0.5, 1.0)),
            purges=rng.random() < 0.25,
            crashes=rng.random() < 0.3,
            stalls=rng.random() < 0.3,
            faults=Faults(
                loss=rate * rng.random() * rng.choice((0, 1, 1)),
                repeat=rate * rng.random(),
                reorder=rate * rng.random(),
                refuse=rate * rng.random() / 2,
                forget=rate * rng.random() / 2,
                silence=rate * rng.random() / 10,
            ),
        )


@cache
def settings() -> Settings:
    limits = LimitSettings(
        session_commands_per_s=0,
        session_publishes_per_s=0,
        key_requests_per_s=0,
        key_publishes_per_s=0,
        connections_per_address=0,
        errors_per_minute=0,
    )
    return replace(Settings(), limits=limits)


@cache
def metrics() -> Metrics:
    return Metrics(version="0")


@contextmanager
def scaled(course: Course) -> Iterator[None]:
    """Let bounds be met by few events: the product's constants are for thousands."""
    with ExitStack() as stack:
        for name, value in (
            ("server.hub.RING_SIZE", course.ring),
            ("server.subscribing._PIECE", course.piece),
            ("server.subscribing._PIECE_BYTES", PIECE_BYTES),
            ("server.repair._PIECE", course.piece),
            *((("server.fanout._LOOK_EVERY", 1), ("server.fanout._HOLD_S", -1.0)) * course.sliced),
        ):
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(watched())
        yield


class World(PlayedWorld):
    """What truly happened, and what each client was told of it."""

    def __init__(self, scheduler: Scheduler, course: Course) -> None:
        self.scheduler = scheduler
        self.rng = scheduler.rng
        self.course = course
        rule = ChannelRule(match=">", history_size=course.history, history_ttl_s=DAY_S)
        self.rules = ChannelRules((), rule)
        self.backplane = Backplane(scheduler, self.rules, copy(course.faults))
        if course.shows_all:
            self.backplane.interval_s = NEVER_S
        self.wires = [LineWire(), LineWire()]
        self.places: list[Place] = []
        self.clients: list[Client] = []
        self.publishers: list[Publisher] = []
        # Events by position, and by whom each that was acknowledged was.
        self.acknowledged: dict[Position, Place] = {}
        self.fail_overs = 0
        self.purges = 0
        self._numbers = count(1)
        scheduler.clock.look_s = course.look_s
        scheduler.hurry = course.hurry
        for _ in range(course.nodes):
            self.start_node()

    @property
    def truth(self) -> list[Event]:
        return self.backplane.broker.truth

    # Nodes

    def start_node(self) -> None:
        name = f"node{next(self._numbers)}"
        process = self.scheduler.process(name)
        broker = SimBroker(self.backplane, process, name)
        node: Node = self.scheduler.call(process, partial(self._assemble, process, broker, name))
        self.places.append(Place(name, process, node))

    def _assemble(self, process: Process, broker: SimBroker, name: str) -> Node:
        numbers = count(1)
        node = assemble(
            settings(),
            name=name,
            rules=self.rules,
            broker=broker,
            presence=MemoryPresence(),
            auth=Auth(settings(), self.rules),
            metrics=metrics(),
            timetable=Timetable(process.loop, tick_s=0.5),
            new_id=lambda: f"{name}-{next(numbers)}",
            linger_s=LINGER_S,
        )
        broker.start()
        return node

    def place(self) -> Place:
        return self.rng.choice([each for each in self.places if each.alive])

    # What may happen

    def publish(self) -> None:
        drafts = []
        exclude = None
        here = [each for each in self.clients if each.here and each.visit.session_id]
        if here and self.rng.random() < 0.1:
            exclude = self.rng.choice(here).visit.session_id
        padding = b" " * self.rng.choice((0, 0, 0, 150))
        for _ in range(self.rng.choice((1, 1, 1, 2, 5, 20))):
            number = next(self._numbers)
            data = b'"%d%s"' % (number, padding)
            drafts.append(Draft(CHANNEL, f"e{number}", "n", data, exclude=exclude))
        publisher = Publisher(drafts, self.place, self._published, self._again)
        self.publishers.append(publisher)
        publisher.attempt()

    def _again(self, work: Any) -> None:
        self.scheduler.soon(None, work)

    def _published(self, publisher: Publisher, place: Place, answers: Sequence[Published]) -> None:
        self.publishers.remove(publisher)
        for each in answers:
            self.acknowledged[each.position] = place

    def come(self) -> None:
        away = [each for each in self.clients if not each.here]
        if away and self.rng.random() < 0.6:
            client = self.rng.choice(away)
        else:
            client = Client(f"c{next(self._numbers)}")
            self.clients.append(client)
        since = client.position()
        rewind = self.rng.choice((1, 3, 20, 300)) if self.rng.random() < 0.3 else None
        self.visit(client, since, rewind)

    def visit(self, client: Client, since: str | None, rewind: int | None = None) -> None:
        place = self.place()
        connection = SimConnection(
            self.scheduler.clock, self.course.unsent_bytes, self.scheduler.failures.append
        )
        connection.stalled = self.rng.random() < 0.2
        up = Line(self.scheduler, place.process)
        visit = Visit(place, connection, up, since, rewind)
        client.visits.append(visit)
        client.here = True
        wire = self.rng.choice(self.wires)
        up.send(partial(self._open, visit, wire))
        self.subscribe(visit)

    def _open(self, visit: Visit, wire: LineWire) -> None:
        session = Session(visit.place.node, wire, visit.connection, "127.0.0.1")
        visit.place.node.occupancy.enter("127.0.0.1")
        visit.connection.session = session
        visit.session_id = session.id
        session.open(SERVICE)

    @staticmethod
    def subscribe(visit: Visit) -> None:
        asked = {"since": visit.since, "rewind": visit.rewind}
        fields = {name: value for name, value in asked.items() if value is not None}
        visit.say("subscribe", channel=CHANNEL, **fields)

    def leave(self, client: Client) -> None:
        client.here = False
        visit = client.visit
        # What was on its way to it when it left, it never saw.
        visit.connection.left = True
        visit.up.send(visit.connection.lose)

    def go(self) -> None:
        here = [each for each in self.clients if each.here]
        if here:
            self.leave(self.rng.choice(here))

    def hop(self) -> None:
        """Somebody who has just been told something resumes at once, at any node."""
        here = [each for each in self.clients if each.here and not each.visit.connection.stalled]
        if here:
            client = self.rng.choice(here)
            before = client.visit.connection.taken
            self.publish()
            for _ in range(12):
                self.scheduler.run(3)
                if client.visit.connection.taken != before:
                    break
            self.leave(client)
            self.visit(client, client.position())

    def read(self) -> None:
        for client in self.clients:
            if client.here and self.rng.random() < 0.5:
                visit = client.visit
                visit.connection.stalled = self.rng.random() < 0.3
                self.scheduler.soon(visit.place.process, visit.connection.read)

    def tend(self) -> None:
        """Who was refused asks again; who was sent away comes back."""
        for client in self.clients:
            if not client.here or client.visit.connection.stalled:
                continue
            visit = client.visit
            outcome = visit.outcome()
            if visit.is_over():
                self.leave(client)
                self.visit(client, client.position())
            elif outcome and outcome["type"] == "error" and outcome["ref"] == visit.refs:
                self.subscribe(visit)

    def break_ear(self) -> None:
        broker = self.rng.choice(self.backplane.brokers)
        if self.course.faults.any():
            broker.ear.lose()

    def deafen(self) -> None:
        if self.course.faults.loss:
            self.rng.choice(self.backplane.brokers).ear.deaf = True

    def be_away(self) -> None:
        """No call is carried out, for longer than one waits."""
        faults = self.backplane.faults
        if faults.refuse:
            rate, faults.refuse = faults.refuse, 1.0
            self.read()
            self.scheduler.run_for(1.5 * CALL_TIMEOUT_S)
            faults.refuse = rate

    def lag(self) -> None:
        """Somebody comes back to much that they missed, does not read, and much happens."""
        away = [each for each in self.clients if not each.here and each.position()]
        if away:
            client = self.rng.choice(away)
            for _ in range(3):
                self.publish()
            self.scheduler.run(40)
            self.visit(client, client.position())
            client.visit.connection.stalled = True
            self.scheduler.run(40)
            (action,) = self.rng.choices((self.publish, self.purge, self.be_away), (2, 1, 1))
            if action != self.purge or self.course.purges:
                action()
            self.scheduler.run(20)
            client.visit.connection.stalled = False
            self.scheduler.soon(client.visit.place.process, client.visit.connection.read)

    def purge(self) -> None:
        self.purges += 1
        place = self.place()
        purge = place.node.broker.purge
        place.process.call(lambda: place.node.hub.spawn(purge(CHANNEL)))

    def replicate(self) -> None:
        self.backplane.replicate(CHANNEL)

    def fail_over(self) -> None:
        if self.backplane.fail_over(unseen=self.course.unseen):
            self.fail_overs += 1
            self.scheduler.note("fail-over")
            # What comes next has the offsets of what was lost.
            for _ in range(self.rng.choice((0, 1, 3))):
                self.publish()

    def crash(self) -> None:
        """A node dies at once; another takes its place."""
        place = self.place()
        place.alive = False
        place.process.dead = True
        (broker,) = [each for each in self.backplane.brokers if each.name == place.name]
        broker.ear.close()
        self.backplane.brokers.remove(broker)
        self.start_node()
        for client in self.clients:
            if client.here and client.visit.place is place:
                client.visit.connection.lost = True
                client.here = False
        for publisher in self.publishers:
            if publisher.place is place:
                publisher.attempt()

    def stall(self) -> None:
        """A node stands still for a while, as one that swaps or was stopped."""
        place = self.place()
        place.process.stalled = not place.process.stalled

    # The run

    def play(self) -> None:
        """Run it all; raises AssertionError if the promise was broken."""
        super().play()
        self.part()
        assert not self.scheduler.failures, self.scheduler.failures

    def choices(self) -> dict[Any, float]:
        course = self.course
        return {
            self.publish: 40,
            self.come: 14,
            self.go: 6,
            self.hop: 6,
            self.lag: 4,
            self.be_away: 0.5,
            self.read: 12,
            self.tend: 8,
            self.break_ear: 1.5,
            self.deafen: 0.5,
            self.purge: 3 * course.purges,
            self.replicate: 8 * course.fail_overs,
            self.fail_over: 6 * course.fail_overs,
            self.crash: 1.5 * course.crashes,
            self.stall: 4 * course.stalls,
        }

    def run(self) -> None:
        choices = self.choices()
        for _ in range(self.course.steps):
            self.scheduler.act(choices, (0, 3, 15, 60))
            if self.rng.random() < 0.05:
                self.scheduler.run_for(self.rng.choice((1.0, 8.0)))

    def settle(self) -> None:
        """Let all that is on its way come to its end, without any more faults."""
        self.backplane.faults.heal()
        for place in self.places:
            place.process.stalled = False
        until = self.scheduler.run_until
        until(lambda: not self.publishers, SETTLE_S, "all is acknowledged")
        if CHANNEL in self.backplane.broker._records:
            # What was lost last shows by no gap: only tops tell of it.
            until(self._is_settled, SETTLE_S, "all are in step, and nothing more is published")
        self.publish()
        until(lambda: not self.publishers, SETTLE_S, "the last is acknowledged")
        until(self._is_settled, SETTLE_S, "all are in step")

    def _is_settled(self) -> bool:
        for client in self.clients:
            if client.here:
                visit = client.visit
                visit.connection.stalled = False
                if visit.connection.unsent:
                    self.scheduler.soon(visit.place.process, visit.connection.read)
        self.tend()
        here = [each.visit for each in self.clients if each.here]
        if not all(each.attached() and each.connection.unsent == 0 for each in here):
            return False
        record = self.backplane.broker._records[CHANNEL]
        for place in self.places:
            feed = place.node.hub.feeds.get(CHANNEL) if place.alive else None
            if feed is not None and (
                feed.state is not State.LIVE
                or not feed.top == feed.cut == record.top
                or feed.fanout._run is not None
            ):
                return False
        return True

    def part(self) -> None:
        """All go; nothing is left of them on any node."""
        self.scheduler.run_until(self._is_counted, 60, "who is here is counted")
        for client in self.clients:
            if client.here:
                self.leave(client)
        self.scheduler.run_until(self._is_empty, 60, "nothing is left")

    def _is_counted(self) -> bool:
        here = [client.visit.place for client in self.clients if client.here]
        alive = [place for place in self.places if place.alive]
        return all(place.node.hub.subscriptions() == here.count(place) for place in alive)

    def _is_empty(self) -> bool:
        hubs = [place.node.hub for place in self.places if place.alive]
        return not any(hub.feeds or hub._tasks or hub.sessions for hub in hubs)

    # What must hold

    def check(self) -> None:
        assert not self.scheduler.failures, self.scheduler.failures
        assert len(self.backplane.forks) <= self.fail_overs, "an epoch began without a reason"
        truth = {str(event.position): event for event in self.truth}
        for position in self.acknowledged:
            assert str(position) in truth, "what was acknowledged was never published"
        if not self.fail_overs:
            assert len({event.id for event in self.truth}) == len(self.truth), "published twice"
        top = str(self.backplane.broker._records[CHANNEL].top)
        for place in self.places:
            feed = place.node.hub.feeds.get(CHANNEL) if place.alive else None
            if feed is not None and feed.sequence.ring.maxlen:
                assert feed.sequence.at(feed.top.offset - 1), "a feed keeps nothing of the newest"
        for client in self.clients:
            Story(self, truth, client).check(top)

    def met(self) -> Counter[str]:
        """What happened in the run, so that a world in which nothing does would show."""
        kinds = Counter(m["type"] for c in self.clients for _visit, m in c.told())
        resumed = [m for c in self.clients for _v, m in c.told() if m.get("recovered")]
        return Counter(
            {
                "events": len(self.truth),
                "deliveries": kinds["event"],
                "resets": kinds["reset"],
                "resumes": len(resumed),
                "slow closes": kinds["closing"],
                "forks": len(self.backplane.forks),
                "fail-overs": self.fail_overs,
                "purges": self.purges,
                "crashes": sum(not each.alive for each in self.places),
            }
        )

    def trace(self) -> list[object]:
        """All that could be seen of the run: two of the same seed are the same."""
        told = [[message for _visit, message in client.told()] for client in self.clients]
        scheduler = self.scheduler
        return [*scheduler.trace, scheduler.steps, scheduler.clock.now, self.truth, told]


class Story:
    """What one client was told, followed step by step along what truly happened."""

    def __init__(self, world: World, truth: dict[str, Event], client: Client) -> None:
        self.world = world
        self.truth = truth
        self.client = client
        self.at = ""
        # Where the stretch began that nothing interrupted, and what was seen in it.
        self.began = ""
        self.began_at = 0.0
        self.seen: set[str] = set()
        self.resets = 0
        self.refused = 0

    def check(self, top: str) -> None:
        client = self.client
        for visit, message in client.told():
            kind = message["type"]
            if kind == "subscribed":
                self._begin(visit, message)
            elif kind == "reset":
                assert message["position"] != self.at, "reset to where it was"
                self.resets += 1
                self._interrupt(message)
            elif kind == "event":
                self._follow(visit, message)
        world = self.world
        if world.course.harmless:
            assert self.resets == self.refused == 0, f"{client.name} was told, and nothing was lost"
        elif world.course.history > 1_000 and not world.purges:
            assert self.resets <= len(world.backplane.forks) + world.fail_overs, "reset too often"
            assert self.refused <= 2 * world.fail_overs, "refused to resume too often"
        if client.here:
            own = client.visit.session_id
            assert self._behind(top, own) == self.at, f"{client.name} is not at the top"
            if not world.backplane.forgetful:
                self._miss({visit.session_id for visit in client.visits})

    def _begin(self, visit: Visit, message: dict[str, Any]) -> None:
        position, recovered = message["position"], message.get("recovered")
        if visit.since is not None and recovered:
            assert position == visit.since, "resumed elsewhere"
            assert position == self.at
        else:
            if visit.since is not None:
                assert recovered is False
                self.refused += 1
            self._interrupt(message)

    def _interrupt(self, message: dict[str, Any]) -> None:
        self.at = self.began = message["position"]
        self.began_at = message["sent_at"]
        self.seen.clear()

    def _follow(self, visit: Visit, message: dict[str, Any]) -> None:
        position = message["position"]
        event = self.truth[position]
        assert (event.id, event.exclude) != (message["id"], visit.session_id), "told its own"
        assert event.id == message["id"] and event.data == str(message["data"]).join('""').encode()
        before = self._behind(str(event.before()), visit.session_id)
        assert before == self.at, f"{self.client.name}: {event.id} does not follow {self.at}"
        self.at = position
        self.seen.add(position)

    def _behind(self, position: str, own: str) -> str:
        """Return the last position up to `position` that is told to a session; not its own."""
        while position != self.at and position in self.truth:
            event = self.truth[position]
            if event.exclude != own:
                break
            position = str(event.before())
        return position

    def _miss(self, own: set[str]) -> None:
        """Nothing acknowledged lies in the stretch that it is in and was not told."""
        first, last = at(self.began), at(self.at)
        for position, place in self.world.acknowledged.items():
            if position.epoch == last.epoch and first.offset < position.offset <= last.offset:
                event = self.truth[str(position)]
                # It may have been lost before; and nobody remembers what a dead node acknowledged.
                if self.world.backplane.lost.get(position, math.inf) <= self.began_at:
                    continue
                if first.epoch == last.epoch and event.exclude not in own and place.alive:
                    assert str(position) in self.seen, f"{event.id} was lost, and nobody told"


@contextmanager
def delivery_world(seed: int, course: Course | None = None) -> Iterator[World]:
    """A world that has not begun to go."""
    # Made before chance is the seed's, since they are made only once.
    settings(), metrics()
    with virtual(seed) as scheduler:
        course = course or Course.draw(scheduler.rng)
        with scaled(course):
            yield World(scheduler, course)


def simulate(seed: int, course: Course | None = None) -> World:
    """Run a seed; raises AssertionError if the promise was broken."""
    with delivery_world(seed, course) as world:
        world.play()
    return world
