"""What the tests of delivery stand on: a node without sockets, and a backplane that loses.

The broker is the real one; between it and the node stands a `LossyBroker`. The edge is where the
socket would be: connections that note what they were given.
"""

import asyncio
import heapq
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

from msgspec.structs import replace

from broker_rig import accepted
from config.limits import LimitSettings
from config.rules import ChannelRule, ChannelRules
from config.settings import Settings
from pubsub.broker import ChannelState, History, Sink
from pubsub.durable_broker import DurableBroker
from pubsub.errors import BrokerUnavailable, PubSubError
from pubsub.event import Draft, Event, Published
from pubsub.memory_broker import MemoryBroker
from pubsub.memory_presence import MemoryPresence
from pubsub.position import Position, chain, start
from pubsub.presence import Member, Members, PresenceSink
from pubsub.sqlite_archive import SqliteArchive
from server.auth import Auth
from server.closing import Closing
from server.codec import JSON
from server.connection import Connection
from server.feed import Feed, State
from server.hub import Hub
from server.metrics import Metrics
from server.node import Node, assemble
from server.principal import Principal, service_grants
from server.protocol import Message
from server.session import Session
from server.timetable import Timetable

CHANNEL = "a.b"
EPOCH = "a" * 16

# A service: granted everything, and no member of presence sets.
SERVICE = Principal(
    kind="service",
    name="tests",
    key="tests",
    grants=service_grants({"publish": (">",), "history": (">",), "presence": (">",)}),
)


def run(after: Position, count: int, prefix: str = "e") -> list[Event]:
    """Return `count` events that follow `after`."""
    events = []
    at = after
    for number in range(1, count + 1):
        name = f"{prefix}{at.offset + 1}-{number}"
        to = Position(at.epoch, at.offset + 1, chain(at.check, name))
        events.append(Event(CHANNEL, to, at.check, name, "message", b"1", 1))
        at = to
    return events


class LineWire:
    """Messages as lines of JSON; counts what it encodes."""

    codec = JSON
    transport = "ws"
    label = "json"

    def __init__(self, *, individual: bool = False) -> None:
        self.individual = individual
        self.encoded = 0

    def event(self, event: Event, skipped: int = 0) -> bytes:
        self.encoded += 1
        return self.codec.event(event, skipped) + b"\n"

    def message(self, message: Message) -> bytes:
        self.encoded += 1
        return self.codec.encode(message) + b"\n"


class NotedConnection:
    """A connection that notes what it was given; while `stalled` it counts as unsent.

    `too_late` counts what came when it was closed.
    """

    def __init__(self, low_bytes: int = 65_536) -> None:
        self.sent: list[bytes] = []
        self.unsent = 0
        self.most_unsent = 0
        self.stalled = False
        self.paused = False
        self.closed: Closing | None = None
        self.too_late = 0
        self.on_send: Callable[[], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self._low_bytes = low_bytes
        self._drained = asyncio.Event()
        self._drained.set()

    def send(self, data: bytes) -> None:
        if self.closed is not None:
            self.too_late += 1
            return
        self.sent.append(data)
        if self.on_send is not None:
            self.on_send()
        if self.stalled:
            self.unsent += len(data)
            self.most_unsent = max(self.most_unsent, self.unsent)
            if not self.clear():
                self._drained.clear()

    def clear(self) -> bool:
        return self.unsent <= self._low_bytes

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def close(self, closing: Closing, last: bytes = b"") -> None:
        if self.closed is None:
            self.send(last)
            self.closed = closing
            self._drained.set()

    async def drained(self) -> bool:
        while self.closed is None and not self.clear():
            await self._drained.wait()
        return self.closed is None

    def read(self) -> None:
        """Let the client read all that waits."""
        self.unsent = 0
        if self.on_room is not None:
            self.on_room()
        self._drained.set()

    def text(self) -> str:
        return b"".join(self.sent).decode()

    def messages(self) -> list[dict[str, Any]]:
        """All messages that were sent, in order; what else stands in a stream is left out."""
        return [json.loads(line) for line in self.text().splitlines() if line.startswith("{")]

    def of(self, *types: str) -> list[dict[str, Any]]:
        return [each for each in self.messages() if each["type"] in types]

    def ids(self) -> list[str]:
        """The ids of the events that were sent, in order."""
        return [each["id"] for each in self.of("event")]


# What becomes of a batch on its way: the batches that the sink hears instead, in this order.
Way = Callable[[str, Sequence[Event]], Iterable[Sequence[Event]]]


def faithful(_channel: str, events: Sequence[Event]) -> Iterable[Sequence[Event]]:
    """Everything comes."""
    return (events,)


def lost(_channel: str, _events: Sequence[Event]) -> Iterable[Sequence[Event]]:
    """Nothing comes."""
    return ()


class LossyBroker:
    """A broker seen through a lossy backplane.

    `way` decides what the sink hears of each batch. A call named in `gates` waits for its gate,
    with its answer ready; one named in `early` waits before it asks. `turns` gives the turns of
    the loop that each call takes. While `away`, every call fails before it asks; while `fails`,
    with its answer ready.
    """

    def __init__(self, inner: MemoryBroker) -> None:
        self.inner = inner
        self.way: Way = faithful
        self.gates: dict[str, asyncio.Event] = {}
        self.early: dict[str, asyncio.Event] = {}
        self.turns: Callable[[], int] = lambda: 0
        self.away = False
        self.fails = False
        self.calls: Counter[str] = Counter()
        self.sink: Sink
        self.purges = True
        self.forks = True
        self.forked: list[Position] = []

    def bind(self, sink: Sink) -> None:
        self.sink = sink
        self.inner.bind(self)

    def on_events(self, channel: str, events: Sequence[Event]) -> None:
        for batch in self.way(channel, events):
            self.sink.on_events(channel, batch)

    def on_purge(self, channel: str, floor: Position) -> None:
        if self.purges:
            self.sink.on_purge(channel, floor)

    def on_fork(self, channel: str, top: Position) -> None:
        self.forked.append(top)
        if self.forks:
            self.sink.on_fork(channel, top)

    def on_top(self, channel: str, top: Position) -> None:
        self.sink.on_top(channel, top)

    async def _begin(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.early:
            await self.early[name].wait()
        for _ in range(self.turns()):
            await asyncio.sleep(0)
        if self.away:
            raise BrokerUnavailable("away")

    async def _end(self, name: str) -> None:
        if name in self.gates:
            await self.gates[name].wait()
        for _ in range(self.turns()):
            await asyncio.sleep(0)
        if self.fails:
            raise BrokerUnavailable("away")

    async def publish(self, drafts: Sequence[Draft]) -> list[Published | PubSubError]:
        return await self.inner.publish(drafts)

    async def subscribe(self, channel: str) -> Position:
        await self._begin("subscribe")
        top = await self.inner.subscribe(channel)
        await self._end("subscribe")
        return top

    async def unsubscribe(self, channel: str) -> None:
        await self._begin("unsubscribe")
        await self.inner.unsubscribe(channel)
        await self._end("unsubscribe")

    async def top(self, channel: str) -> Position | None:
        await self._begin("top")
        top = await self.inner.top(channel)
        await self._end("top")
        return top

    async def history(
        self,
        channel: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int,
        newest: bool = False,
        hidden: bool = False,
    ) -> History | None:
        await self._begin("history")
        history = await self.inner.history(
            channel, after=after, before=before, limit=limit, newest=newest, hidden=hidden
        )
        await self._end("history")
        return history

    async def contradict(self, channel: str, evidence: Position) -> Position:
        await self._begin("contradict")
        top = await self.inner.contradict(channel, evidence)
        await self._end("contradict")
        return top

    async def purge(self, channel: str) -> Position | None:
        return await self.inner.purge(channel)

    async def channels(self, *, prefix: str, after: str, limit: int) -> list[ChannelState]:
        return await self.inner.channels(prefix=prefix, after=after, limit=limit)

    async def close(self) -> None:
        await self.inner.close()


class SlowPresence:
    """A presence store whose calls can be made to wait (`gates`, answer ready) or fail (`away`)."""

    def __init__(self) -> None:
        self.inner = MemoryPresence()
        self.gates: dict[str, asyncio.Event] = {}
        self.away: set[str] = set()
        self.calls: Counter[str] = Counter()

    def bind(self, sink: PresenceSink) -> None:
        self.inner.bind(sink)

    async def _end(self, name: str) -> None:
        self.calls[name] += 1
        if name in self.gates:
            await self.gates[name].wait()
        if name in self.away:
            raise BrokerUnavailable("away")

    async def enter(self, channel: str, member: Member) -> None:
        await self.inner.enter(channel, member)
        await self._end("enter")

    async def leave(self, channel: str, session: str) -> None:
        await self._end("leave")
        await self.inner.leave(channel, session)

    async def members(self, channel: str, *, cursor: str | None = None, limit: int) -> Members:
        page = await self.inner.members(channel, cursor=cursor, limit=limit)
        await self._end("members")
        return page


@dataclass(slots=True)
class Sleeps:
    """Instead of `asyncio.sleep`: notes the durations and gives others a turn."""

    durations: list[float] = field(default_factory=list)

    async def __call__(self, duration: float) -> None:
        self.durations.append(duration)
        await asyncio.sleep(0)


class HandTimer:
    """A handle of a `HandLoop`."""

    def __init__(self) -> None:
        self.over = False

    def cancel(self) -> None:
        self.over = True


class HandLoop:
    """The part of a loop that delivery uses, with a clock that only tests turn."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.tick_s = 0.0
        self._order = count()
        self._due: list[tuple[float, int, HandTimer, Callable[..., object], tuple[Any, ...]]] = []

    def time(self) -> float:
        self.now += self.tick_s
        return self.now

    def call_at(self, when: float, call: Callable[..., object], *args: Any) -> HandTimer:
        timer = HandTimer()
        heapq.heappush(self._due, (when, next(self._order), timer, call, args))
        return timer

    def call_later(self, delay: float, call: Callable[..., object], *args: Any) -> HandTimer:
        return self.call_at(self.now + delay, call, *args)

    def call_soon(self, call: Callable[..., object], *args: Any) -> HandTimer:
        return self.call_at(self.now, call, *args)

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.get_running_loop().create_future()

    def waiting(self) -> int:
        """How many calls are due some time."""
        return sum(not timer.over for _, _, timer, _, _ in self._due)

    def turn(self) -> None:
        """One turn: what is due by now, but not what that adds."""
        due = []
        while self._due and self._due[0][0] <= self.now:
            due.append(heapq.heappop(self._due))
        for _, _, timer, call, args in due:
            if not timer.over:
                timer.over = True
                call(*args)

    def advance(self, seconds: float) -> None:
        """Let time pass; each call comes at its time."""
        end = self.now + seconds
        while True:
            while self._due and self._due[0][2].over:
                heapq.heappop(self._due)
            if not self._due or self._due[0][0] > end:
                break
            self.now = max(self.now, self._due[0][0])
            self.turn()
        self.now = end


def as_loop(loop: HandLoop) -> asyncio.AbstractEventLoop:
    """Let the type checker take it for one."""
    return cast(asyncio.AbstractEventLoop, loop)


async def turns(most: int = 50) -> None:
    """Let everything that can go on do so."""
    for _ in range(most):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], most: int = 20_000) -> None:
    """Wait until `condition` holds: for turns of the loop, then longer, as threads may need."""
    for turn in range(most):
        if condition():
            return
        await asyncio.sleep(0 if turn < 10_000 else 0.001)
    raise AssertionError("the condition never held")


@dataclass(slots=True)
class DeliveryRig:
    """A node without sockets, and what stands around it."""

    node: Node
    broker: LossyBroker
    presence: SlowPresence
    sleeps: Sleeps
    wire: LineWire
    numbers: "count[int]" = field(default_factory=lambda: count(1))

    @property
    def hub(self) -> Hub:
        return self.node.hub

    def feed(self, channel: str = CHANNEL) -> Feed:
        return self.hub.feeds[channel]

    def session(
        self,
        *,
        principal: Principal | None = SERVICE,
        wire: LineWire | None = None,
        connection: NotedConnection | None = None,
    ) -> "Client":
        """Return a client whose session is open (`principal=None`: not yet)."""
        connection = connection or NotedConnection()
        self.node.occupancy.enter("127.0.0.1")
        session = Session(self.node, wire or self.wire, as_connection(connection), "127.0.0.1")
        connection.on_room = session.on_room
        if principal is not None:
            session.open(principal)
        return Client(self, session, connection)

    def user(self, name: str, *channels: str) -> Principal:
        """Return a user who is granted everything on `channels` (none: on all)."""
        actions = ["subscribe", "publish", "presence", "history"]
        grants = {channel: actions for channel in channels or (">",)}
        return self.node.auth.token(self.node.auth.mint(name, grants))

    async def publish(
        self,
        *event_ids: str,
        channel: str = CHANNEL,
        data: bytes = b"1",
        exclude: str | None = None,
        hurry: bool = True,
    ) -> list[Position]:
        """Publish events in one batch (none: one with the next number); return positions.

        With `hurry` none of it waits for its time: how long a flush took decides nothing.
        """
        names = event_ids or (f"e{next(self.numbers)}",)
        drafts = [Draft(channel, name, "message", data, exclude=exclude) for name in names]
        positions = [accepted(each).position for each in await self.broker.publish(drafts)]
        feed = self.hub.feeds.get(channel)
        if feed is not None and hurry:
            feed.fanout.hurry()
        return positions

    async def publish_many(self, number: int, channel: str = CHANNEL) -> list[str]:
        """Publish events one by one, wait until all that came is sent; return their ids."""
        names = [f"e{next(self.numbers)}" for _ in range(number)]
        for name in names:
            await self.publish(name, channel=channel)
        feed = self.hub.feeds.get(channel)
        await until(lambda: feed is None or feed.fanout.hurry())
        return names

    async def lose_tail(self, keep: int, channel: str = CHANNEL) -> None:
        """Let the broker fail over to a replica that knows only the first `keep` events."""
        record = self.broker.inner._records[channel]
        events = [each for each in record.events if each.position.offset <= keep]
        record.top = events[-1].position if events else start(record.top.epoch)
        record.events = events

    async def live(self, channel: str = CHANNEL) -> None:
        """Wait until the feed is live and has sent everything."""
        feed = self.feed(channel)
        await until(lambda: feed.state is State.LIVE and feed.fanout.hurry())


def as_connection(connection: NotedConnection) -> Connection:
    """Let the type checker see that it is one."""
    return connection


@dataclass(slots=True)
class Client:
    """A client: what it says goes to its session, what it hears was noted."""

    rig: DeliveryRig
    session: Session
    connection: NotedConnection
    _refs: "count[int]" = field(default_factory=lambda: count(1))

    def say(self, type_: str, **fields: Any) -> int:
        """Send a command; return its ref."""
        ref = next(self._refs)
        message = {"type": type_, "ref": ref} | fields
        self.session.on_messages([json.dumps(message).encode()])
        return ref

    async def ask(self, type_: str, **fields: Any) -> dict[str, Any]:
        """Send a command and wait for its reply."""
        ref = self.say(type_, **fields)
        await until(lambda: self.reply(ref))
        reply = self.reply(ref)
        assert reply is not None
        return reply

    def reply(self, ref: int) -> dict[str, Any] | None:
        return next((m for m in self.connection.messages() if m.get("ref") == ref), None)

    async def subscribe(self, channel: str = CHANNEL, **fields: Any) -> dict[str, Any]:
        reply = await self.ask("subscribe", channel=channel, **fields)
        assert reply["type"] == "subscribed", reply
        return reply

    @property
    def attached(self) -> bool:
        """Whether all its subscriptions take part in flushes."""
        return all(each.attached for each in self.session.subscriptions.values())

    def ids(self) -> list[str]:
        return self.connection.ids()

    def position(self) -> str:
        """Where it would resume: the last position that the contract lets it use."""
        told = self.connection.of("subscribed", "event", "reset")
        return str(told[-1]["position"])

    def leave(self) -> None:
        """Be gone, without a word."""
        self.connection.closed = Closing.GOING_AWAY
        self.connection._drained.set()
        self.session.on_lost()


@asynccontextmanager
async def open_delivery_rig(
    *rules: ChannelRule,
    linger_s: float = 10.0,
    members_per_reply: int = 100,
    tick_s: float = 0.5,
    archive_path: str = "",
    waits: bool = False,
    **broker_options: Any,
) -> AsyncIterator[DeliveryRig]:
    """Open a node; with `archive_path` its channels are in an archive too, if a rule says so.

    Pauses only give others a turn, unless it `waits`.
    """
    loop = asyncio.get_running_loop()
    limits = LimitSettings(
        session_commands_per_s=0,
        session_publishes_per_s=0,
        key_requests_per_s=0,
        key_publishes_per_s=0,
        connections_per_address=0,
        errors_per_minute=0,
        members_per_reply=members_per_reply,
    )
    defaults = Settings()
    settings = replace(
        defaults,
        limits=limits,
        token=replace(defaults.token, secret=secrets.token_hex(32)),
    )
    channel_rules = ChannelRules(rules, ChannelRule(match=">", presence=True, client_publish=True))
    archive = None
    if archive_path:
        archive = SqliteArchive(archive_path, keep_ids_s=600)
        durable = DurableBroker(channel_rules, archive, **broker_options)
        await durable.start()
        broker = LossyBroker(durable)
    else:
        broker = LossyBroker(MemoryBroker(channel_rules, **broker_options))
    presence, sleeps = SlowPresence(), Sleeps()
    timetable = Timetable(loop, tick_s=tick_s)
    ids = count(1)
    node = assemble(
        settings,
        name="node",
        rules=channel_rules,
        broker=broker,
        presence=presence,
        auth=Auth(settings, channel_rules),
        metrics=Metrics(version="0"),
        timetable=timetable,
        new_id=lambda: f"s{next(ids)}",
        archive=archive,
        linger_s=linger_s,
        sleep=asyncio.sleep if waits else sleeps,
    )
    hub = node.hub
    try:
        yield DeliveryRig(node, broker, presence, sleeps, LineWire())
    finally:
        for gate in (*broker.gates.values(), *broker.early.values(), *presence.gates.values()):
            gate.set()
        for session in list(hub.sessions.values()):
            session.on_lost()
        await hub.close()
        await broker.close()
        timetable.close()
