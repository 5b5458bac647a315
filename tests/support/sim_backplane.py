"""A simulated Redis: a memory broker behind networks that lose, repeat, delay and reorder.

What gives positions is the product's own; so is what notices losses (`RedisWatch`). Between them
stands what a network and a server that fails over can do, each at the seed's will.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar, cast

from config.rules import ChannelRules
from pubsub.broker import ChannelState, History, Sink
from pubsub.channel_record import ChannelRecord
from pubsub.envelope import Batch, Fork, Purge, pack_events
from pubsub.errors import BrokerUnavailable, PubSubError
from pubsub.event import Draft, Event, Published
from pubsub.heard import Acknowledged, Heard
from pubsub.memory_broker import MemoryBroker, Run
from pubsub.position import Position, start
from pubsub.redis_watch import RedisWatch
from sim_scheduler import Line, Process, Scheduler

T = TypeVar("T")
CALL_TIMEOUT_S = 5.0
INTERVAL_S = 5.0
# Longer than any run: how long a node may stand still is not what is tried here.
WINDOW_S = 86_400.0
NOWHERE = start("0" * 16)
Content = Batch | Purge | Fork | bytes


@dataclass(slots=True)
class Faults:
    """How often things go wrong, each from 0 to 1."""

    loss: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    # A call is not carried out; its answer is lost; its connection says nothing any more.
    refuse: float = 0.0
    forget: float = 0.0
    silence: float = 0.0

    def any(self) -> float:
        return max(self.loss, self.repeat, self.reorder, self.refuse, self.forget, self.silence)

    def heal(self) -> None:
        self.loss = self.repeat = self.reorder = self.refuse = self.forget = self.silence = 0.0


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    raise AssertionError("it waits")


class TruthBroker(MemoryBroker):
    """A memory broker that tells which events got a position, whatever becomes of them."""

    truth: list[Event]

    def enter(self, run: Run, now: float) -> None:
        self.truth.extend(run.fresh)
        super().enter(run, now)


class Replica:
    """What a replica knew of a channel at some time."""

    def __init__(self, record: ChannelRecord, published: int) -> None:
        self.published = published
        self.top, self.time, self.floor = record.top, record.time, record.floor
        self.events = list(record.events)
        generations = (record.ids.recent, *record.ids.older)
        self.ids = {name for each in generations if each is not None for name in each}

    def take_over(self, record: ChannelRecord) -> None:
        """Let the record be the replica's."""
        record.top, record.time, record.floor = self.top, self.time, self.floor
        record.events = list(self.events)
        for each in (record.ids.recent, *record.ids.older):
            if each is not None:
                for name in each.keys() - self.ids:
                    del each[name]


class Backplane:
    """The server: carries calls out, and sends what is published to whoever hears it."""

    def __init__(self, scheduler: Scheduler, rules: ChannelRules, faults: Faults) -> None:
        self.scheduler = scheduler
        self.rng: random.Random = scheduler.rng
        self.faults = faults
        # How often nodes compare tops.
        self.interval_s = INTERVAL_S
        self.broker = TruthBroker(
            rules,
            idempotency_window_s=WINDOW_S,
            now=scheduler.clock.wall,
            monotonic=lambda: scheduler.clock.now,
        )
        self.broker.truth = []
        self.broker.bind(self)
        self.ears: dict[str, list[Ear]] = {}
        self.brokers: list[SimBroker] = []
        self.forks: list[Position] = []
        # Events that a fail-over took back, and when.
        self.lost: dict[Position, float] = {}
        # Whether a fork was lost too: of what was told of an earlier loss nothing is left then.
        self.forgetful = False
        self._replicas: dict[str, Replica] = {}

    # What it publishes

    def on_events(self, channel: str, events: Sequence[Event]) -> None:
        self.send(channel, Batch(tuple(events)))

    def on_purge(self, channel: str, floor: Position) -> None:
        self.send(channel, Purge(floor))

    def on_fork(self, channel: str, top: Position) -> None:
        self.forks.append(top)
        self.scheduler.note("fork", top.offset)
        self.send(channel, Fork(top))

    def on_top(self, channel: str, top: Position) -> None:
        raise AssertionError("a memory broker compares nothing")

    def send(self, channel: str, content: Content) -> None:
        """Send to all who hear a channel, as pub/sub does: it comes, or not."""
        faults, rng = self.faults, self.rng
        for ear in self.ears.get(channel, ()):
            if ear.deaf or (faults.loss and rng.random() < faults.loss):
                continue
            ear.send(channel, content)
            if faults.repeat and rng.random() < faults.repeat:
                ear.send(channel, content)
            if faults.reorder and rng.random() < faults.reorder:
                ear.down.swap()

    # Fail-over

    def replicate(self, channel: str) -> None:
        """The replica has caught up."""
        record = self.broker._records.get(channel)
        if record is not None:
            self._replicas[channel] = Replica(record, len(self.broker.truth))

    def fail_over(self, *, unseen: float = 0.0) -> bool:
        """The replica takes over, with what it knows; all connections are lost.

        `unseen` is how often a node's connection for listening stands on, as one through a proxy
        may. Then nothing tells such a node but what it hears, and what it acknowledged is not
        looked into.
        """
        for channel, replica in self._replicas.items():
            if replica.top != self.broker._records[channel].top:
                break
        else:
            return False
        for channel, replica in self._replicas.items():
            for event in self.broker.truth[replica.published :]:
                self.lost.setdefault(event.position, self.scheduler.clock.now)
            top = self.broker._records[channel].top
            self.forgetful = self.forgetful or top.epoch != replica.top.epoch
            replica.take_over(self.broker._records[channel])
        for broker in self.brokers:
            broker.lose_calls()
            if self.rng.random() < unseen:
                self.forgetful = True
            else:
                broker.ear.lose()
        return True


class Ear:
    """A node's pub/sub connection, as `RedisListener` shows it."""

    spread = None

    def __init__(
        self,
        backplane: Backplane,
        process: Process,
        on_restored: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.reconnects = 0
        self.whole = False
        self.deaf = False
        self._backplane = backplane
        self._process = process
        self._on_restored = on_restored
        self._on_lost = on_lost
        self._life = 0
        self._topics: dict[str, Callable[[Any], None]] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}
        self._unconfirmed: set[str] = set()
        self._connected = False
        self._closed = False
        self._make()

    def _make(self) -> None:
        self.down = Line(self._backplane.scheduler, self._process)
        self._up = Line(self._backplane.scheduler, None)

    # What the server does

    def send(self, channel: str, content: Content) -> None:
        self.down.send(partial(self._hear, self._life, channel, content))

    def lose(self) -> None:
        """It breaks: what is on its way is lost, and the node learns of it some time."""
        self._leave()
        self.down.cut()
        self.down.send(partial(self._lost, self._life))

    def _leave(self) -> None:
        for ears in self._backplane.ears.values():
            if self in ears:
                ears.remove(self)

    def _join(self, life: int, channel: str) -> None:
        ears = self._backplane.ears.setdefault(channel, [])
        if life == self._life and self not in ears and not self._closed:
            ears.append(self)
        self.down.send(partial(self._confirm, life, channel))

    def _part(self, life: int, channel: str) -> None:
        ears = self._backplane.ears.get(channel, [])
        if life == self._life and self in ears:
            ears.remove(self)

    # What comes to the node

    def _hear(self, life: int, channel: str, content: Content) -> None:
        receive = self._topics.get(channel)
        if receive is not None and life == self._life:
            receive(content)

    def _confirm(self, life: int, channel: str) -> None:
        if life != self._life or channel not in self._topics:
            return
        for future in self._waiting.pop(channel, ()):
            if not future.done():
                future.set_result(None)
        self._unconfirmed.discard(channel)
        self._check_whole()

    def _check_whole(self) -> None:
        if self._connected and not self._unconfirmed and not self.whole:
            self.whole = True
            self._on_restored()

    def _lost(self, life: int) -> None:
        if life != self._life or self._closed:
            return
        self._on_lost()
        self._life += 1
        self.reconnects += self.whole
        self.whole = self._connected = False
        self._leave()
        self._make()
        self._process.loop.call_later(0.1, self.connect)

    # What the node does, as with `RedisListener`

    def connect(self) -> None:
        self.deaf = False
        self._connected = not self._closed
        self._unconfirmed = set(self._topics)
        for channel in self._topics:
            self._up.send(partial(self._join, self._life, channel))
        self._check_whole()

    def subscribe(self, channel: str, receive: Callable[[Any], None]) -> "asyncio.Future[None]":
        future: asyncio.Future[None] = self._process.loop.create_future()
        known = channel in self._topics
        self._topics.setdefault(channel, receive)
        if known and channel not in self._waiting and channel not in self._unconfirmed:
            future.set_result(None)
            return future
        self._waiting.setdefault(channel, []).append(future)
        if self._connected and not known:
            self._up.send(partial(self._join, self._life, channel))
        return future

    def unsubscribe(self, channel: str) -> None:
        if self._topics.pop(channel, None) is not None:
            for future in self._waiting.pop(channel, ()):
                future.cancel()
            self._unconfirmed.discard(channel)
            self._up.send(partial(self._part, self._life, channel))

    def home(self, _address: str) -> None:
        return None

    def stands(self, _address: str) -> bool:
        return self.whole

    def pending(self, _address: str) -> int:
        return len(self._unconfirmed) if self._connected else 0

    def break_off(self, _address: str | None = None) -> None:
        if self._connected:
            self._lost(self._life)

    def close(self) -> None:
        self._closed = True
        self._leave()


class SimBroker:
    """The broker of one node, over the backplane; it does what `RedisBroker` does."""

    def __init__(self, backplane: Backplane, process: Process, name: str) -> None:
        clock = backplane.scheduler.clock
        self.name = name
        self.acknowledged = Acknowledged()
        self._monotonic = clock.monotonic
        self._backplane = backplane
        self._process = process
        self._sink: Sink
        self._heard = Heard()
        self._flights: dict[asyncio.Future[Any], None] = {}
        self._closed = False
        self.ear = Ear(backplane, process, self._on_return, self.acknowledged.seal)
        stand_in: Any = self
        self.watch = RedisWatch(
            stand_in,
            cast(Any, self.ear),
            stand_in,
            cast(Any, SimpleNamespace(publish=self.publish, acknowledged=self.acknowledged)),
            self._heard,
            node=name,
            interval_s=backplane.interval_s,
            tell=lambda channel, top: self._sink.on_top(channel, top),
            versions=self._versions,
            tell_versions=lambda _versions: None,
            reopen=self._open,
            contradict=self.contradict,
            monotonic=clock.monotonic,
        )
        backplane.brokers.append(self)

    def start(self) -> None:
        self.ear.connect()
        self.watch.start()

    async def close(self) -> None:
        self._closed = True
        self.lose_calls()
        await self.watch.close()
        self.ear.close()

    # What the watch asks of a link and of channels

    partitions = 1
    room = SimpleNamespace(most=0)

    def problem(self) -> str | None:
        return None

    def partition(self, _channel: str) -> int:
        return 0

    def address(self, channel: str) -> str:
        return channel

    async def sweep(self, _partition: int) -> None:
        pass

    async def tops(
        self, share: Mapping[str, Position], _node: str
    ) -> dict[str, tuple[Position, bool] | None]:
        def look() -> dict[str, tuple[Position, bool] | None]:
            tops = {name: at_once(self._backplane.broker.top(name)) for name in share}
            return {name: (top, True) if top else None for name, top in tops.items()}

        return await self._call(look)

    async def _versions(self) -> Mapping[str, int]:
        return {}

    def _on_return(self) -> None:
        self.watch.on_return()

    # Calls

    def lose_calls(self) -> None:
        """All connections of calls break."""
        for future in self._flights:
            failed = partial(_fail, future)
            self._backplane.scheduler.soon(self._process, failed)
        self._flights.clear()

    async def _call(self, work: Callable[[], T], *, repeat: bool = True) -> T:
        loop = self._process.loop
        deadline = loop.time() + CALL_TIMEOUT_S
        while True:
            if self._closed:
                raise BrokerUnavailable("the broker is closed")
            answer: asyncio.Future[T] = loop.create_future()
            self._flights[answer] = None
            self._backplane.scheduler.soon(None, partial(self._carry_out, work, answer))
            try:
                async with asyncio.timeout_at(deadline):
                    return await answer
            except TimeoutError:
                raise BrokerUnavailable("Redis did not answer in time") from None
            except ConnectionError:
                self.acknowledged.seal()
                if not repeat or loop.time() + 0.1 > deadline:
                    raise BrokerUnavailable("Redis did not answer") from None
                await asyncio.sleep(random.uniform(0.01, 0.1))
            finally:
                self._flights.pop(answer, None)

    def _carry_out(self, work: Callable[[], T], answer: "asyncio.Future[T]") -> None:
        if answer not in self._flights:
            return
        faults, soon = self._backplane.faults, self._backplane.scheduler.soon
        dice = self._backplane.rng.random()
        if dice < faults.refuse:
            soon(self._process, partial(_fail, answer))
            return
        done = work()
        if dice < faults.refuse + faults.forget:
            soon(self._process, partial(_fail, answer))
        elif dice < faults.refuse + faults.forget + faults.silence:
            pass
        else:
            soon(self._process, partial(self._answer, answer, done))

    def _answer(self, answer: "asyncio.Future[T]", done: T) -> None:
        # Lost meanwhile with its connection, it is not to come any more.
        if answer in self._flights and not answer.done():
            answer.set_result(done)

    # The broker

    def bind(self, sink: Sink) -> None:
        self._sink = sink

    async def publish(
        self, drafts: Sequence[Draft], *, listed: bool = True
    ) -> list[Published | PubSubError]:
        backplane = self._backplane
        if not listed:
            (probe,) = drafts
            content = pack_events(NOWHERE, 1, drafts)
            await self._call(lambda: backplane.send(probe.channel, content))
            return [Published(probe.channel, NOWHERE, probe.id)]
        answers = await self._call(lambda: at_once(backplane.broker.publish(drafts)))
        self._note(answers)
        return answers

    def _note(self, answers: Sequence[Published | PubSubError]) -> None:
        top, known = None, False
        for each in answers:
            if not isinstance(each, Published):
                continue
            at = each.position
            if not each.duplicate:
                top, known = at, False
            elif top is None or (top.epoch == at.epoch and top.offset < at.offset):
                top, known = at, True
        if top is not None and isinstance(answers[0], Published):
            channel = answers[0].channel
            self.acknowledged.add(channel, top, self._monotonic(), known=known)

    async def _open(self, channel: str) -> Position:
        return await self._call(lambda: at_once(self._backplane.broker.subscribe(channel)))

    async def subscribe(self, channel: str) -> Position:
        reconnects = self.ear.reconnects
        confirmed = self.ear.subscribe(channel, partial(self._receive, channel))
        try:
            try:
                async with asyncio.timeout(CALL_TIMEOUT_S):
                    await confirmed
            except TimeoutError:
                raise BrokerUnavailable("Redis did not confirm the subscription") from None
            top = await self._open(channel)
        except BaseException:
            if channel not in self._heard:
                self.ear.unsubscribe(channel)
            raise
        self._heard.begin(channel, top)
        if self.ear.reconnects != reconnects:
            self.watch.hurry()
        return top

    async def unsubscribe(self, channel: str) -> None:
        self._heard.end(channel)
        self.ear.unsubscribe(channel)
        await self._call(lambda: None)

    async def top(self, channel: str) -> Position | None:
        return await self._call(lambda: at_once(self._backplane.broker.top(channel)))

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
        read = partial(
            self._backplane.broker.history,
            channel,
            after=after,
            before=before,
            limit=limit,
            newest=newest,
            hidden=hidden,
        )
        return await self._call(lambda: at_once(read()))

    async def contradict(self, channel: str, evidence: Position) -> Position:
        return await self._call(
            lambda: at_once(self._backplane.broker.contradict(channel, evidence))
        )

    async def purge(self, channel: str) -> Position | None:
        return await self._call(
            lambda: at_once(self._backplane.broker.purge(channel)), repeat=False
        )

    async def channels(self, *, prefix: str, after: str, limit: int) -> list[ChannelState]:
        raise NotImplementedError

    def _receive(self, channel: str, content: Content) -> None:
        if isinstance(content, Batch):
            self._heard.take(channel, content.events[-1].position)
            self._sink.on_events(channel, content.events)
        elif isinstance(content, Purge):
            self._heard.take(channel, content.floor)
            self._sink.on_purge(channel, content.floor)
        elif isinstance(content, Fork):
            self._heard.take(channel, content.top)
            self._sink.on_fork(channel, content.top)


def _fail(answer: "asyncio.Future[Any]") -> None:
    if not answer.done():
        answer.set_exception(ConnectionError())
