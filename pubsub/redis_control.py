"""How do nodes act as one? This file: orders, notices and what can be taken once, over Redis.

Messages go by the connections of the broker. An order goes to all nodes at once; those whose lease
stands then (node_lease.py) are expected to answer, each on the pub/sub channel of who gave it.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from functools import partial
from hashlib import sha256
from typing import Final

from pubsub.asked import MOST_NODES, Asked
from pubsub.control import Answers, ControlSink
from pubsub.control_message import (
    MOST_ANSWER_BYTES,
    MOST_ORDER_BYTES,
    Answer,
    Notice,
    Order,
    is_node,
    is_topic,
    make_notice,
    pack_message,
    read_message,
)
from pubsub.control_scripts import ControlScripts
from pubsub.errors import BrokerUnavailable, JunkReceived, PubSubError
from pubsub.order_tasks import OrderTasks
from pubsub.redis_broker import RedisBroker
from pubsub.redis_notices import RedisNotices

_log = logging.getLogger(__name__)

INTERVAL_S: Final = 3.0
# How soon to try again what failed.
_AGAIN_S: Final = 0.5
_MOST_ORDERS: Final = 1_000
# Orders may be sent twice, within seconds, when Redis did not answer.
_MOST_RECENT: Final = 10_000
# Redis ends connections on which too much waits; so few large answers are sent at once.
_LARGE_BYTES: Final = 16 * 1024
_LARGE_AT_ONCE: Final = 4


class RedisControl:
    """Carries orders and notices between the nodes that share a Redis; see `Control`.

    - `broker`: whose node this is, and whose connections are used.
    - `topics`: what notices may be about; the same on all nodes.
    - `answer_timeout_s`: how long an order waits for answers once Redis has sent it.
    - `interval_s`: how often notices are compared, jittered.
    - `most_notices`: what is kept of each topic; beyond it the oldest goes.
    - `now`: the time in s since 1970. `monotonic`: a clock in s. `clock_ms` is for tests: a time
      for the scripts instead of Redis's.

    Living nodes are those with a lease, which `RedisPresence` keeps. What was taken, or a notice of
    the last seconds, may be lost with a master of Redis; what a living node knows is restored.

    `junk` counts what no node sent, `orders_dropped` orders of others that were not carried out
    since too many were, `answers_refused` answers that were too large, `silent` answers that did
    not come in time.
    """

    def __init__(
        self,
        broker: RedisBroker,
        *,
        topics: Iterable[str],
        answer_timeout_s: float = 1.0,
        interval_s: float = INTERVAL_S,
        most_notices: int = 100_000,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        topics = tuple(topics)
        if not all(map(is_topic, topics)):
            raise ValueError("a topic is 1 to 32 of a-z")
        if is_node(broker.node) is None:
            raise ValueError("not a node's name")
        self.orders_dropped = 0
        self.answers_refused = 0
        self.silent = 0
        self._sink: ControlSink
        self._broker = broker
        self._link = broker.link
        self._keys = broker.keys
        self._node = broker.node
        self._address = broker.keys.node(broker.node)
        self._scripts = ControlScripts()
        self._answer_timeout_s = answer_timeout_s
        self._interval_s = interval_s
        self._clock_ms = clock_ms
        self.notices = RedisNotices(
            self._link,
            self._keys,
            self._scripts,
            topics=topics,
            most=most_notices,
            tell=self._tell,
            now=now,
            monotonic=monotonic,
            clock_ms=clock_ms,
        )
        self._junk = 0
        self._own = OrderTasks(_MOST_ORDERS)
        self._others = OrderTasks(_MOST_ORDERS)
        self._asked: dict[str, Asked] = {}
        # Ids of orders that came, the longest known first.
        self._recent: dict[str, None] = {}
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)
        # A server of a cluster may take another's place while every connection stands.
        self._returns = 0
        self._losses = (0, 0, 0)
        self._trouble: str | None = "notices were not read yet"
        self._task: asyncio.Task[None] | None = None
        self._compare_soon = asyncio.Event()
        self._closed = False
        # A notice may have been lost with the connection.
        broker.on_return.append(self._on_return)

    # What an operator sees

    def problem(self) -> str | None:
        if self._closed:
            return "the control is closed"
        return self._trouble or self._broker.problem()

    @property
    def junk(self) -> int:
        """How much came, or was kept, that no node wrote."""
        return self._junk + self.notices.junk

    @property
    def notices_dropped(self) -> int:
        """How many notices this node's own made go before their end: there were too many."""
        return self.notices.dropped

    # Life

    def bind(self, sink: ControlSink) -> None:
        self._sink = sink

    async def start(self) -> None:
        """Begin to listen, now or as soon as Redis can be reached."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for asked in self._asked.values():
            asked.fail("the control is closed")
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._broker.listener.unsubscribe(self._keys.nodes)
            self._broker.listener.unsubscribe(self._address)
        await self._own.close()
        await self._others.close()

    # ---- the control

    async def ask(self, order: bytes) -> Answers:
        self._check()
        if len(order) > MOST_ORDER_BYTES:
            raise ValueError("an order is too large")
        if len(self._asked) >= _MOST_ORDERS or self._own.full:
            raise BrokerUnavailable("too many orders are in flight")
        order_id = secrets.token_hex(16)
        asked = self._asked[order_id] = Asked()
        try:
            asked.expect({self._node, *await self._give(order_id, order)})
            self._check()
            # Only now: if Redis did not take it, it must not be carried out here either.
            self._own.run(self._sink, order, partial(self._answer_self, asked))
            answers = await asked.wait(self._answer_timeout_s)
        finally:
            del self._asked[order_id]
        self.silent += len(answers.silent)
        return answers

    async def take(self, name: str, ttl_s: float) -> bool:
        self._check()
        # Names may be a client's words: of any length, and not for everyone who reads keys.
        key = self._keys.taken(sha256(name.encode()).hexdigest())
        lasts_ms = max(1, round(ttl_s * 1000))
        answer = await self._link.run(
            self._scripts.take, [key], self._time(), secrets.token_hex(16), lasts_ms
        )
        return bool(answer == 1)

    async def notify(self, topic: str, name: str, at_s: float, until_s: float) -> None:
        self._check()
        if topic not in self.notices:
            raise ValueError("not a topic of this node")
        await self.notices.keep(make_notice(topic, name, at_s, until_s))

    async def compare(self) -> None:
        """Read at once what is done every few seconds; raises BrokerUnavailable."""
        losses = (self._broker.reconnects, self._broker.circuit_openings, self._returns)
        if losses != self._losses:
            self.notices.doubt()
        await self.notices.compare()
        self._losses = losses

    # ---- what stands behind

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the control is closed")

    def _time(self) -> int | str:
        return "" if self._clock_ms is None else self._clock_ms()

    def _tell(self, notice: Notice) -> None:
        self._sink.on_notice(notice.topic, notice.name, notice.at_s, notice.until_s)

    def _on_return(self) -> None:
        self._returns += 1
        self._compare_soon.set()

    async def _run(self) -> None:
        """Listen, then read all notices; so none falls between."""
        listener = self._broker.listener
        try:
            nodes = listener.subscribe(self._keys.nodes, self._on_nodes)
            me = listener.subscribe(self._address, self._on_me)
            await asyncio.gather(nodes, me)
        except PubSubError as error:
            _log.info("control ends: %s", error)
            return
        while True:
            pause = min(_AGAIN_S, self._interval_s)
            trouble: str | None = self._trouble or "notices cannot be compared"
            self._compare_soon.clear()
            try:
                await self.compare()
                pause, trouble = self._interval_s, None
            except PubSubError as error:
                _log.info("comparing notices waits: %s", error)
            except Exception:
                _log.exception("comparing notices failed")
            self._trouble = trouble
            with suppress(TimeoutError):
                async with asyncio.timeout(random.uniform(0.75, 1.25) * pause):  # noqa: S311
                    await self._compare_soon.wait()

    async def _give(self, order_id: str, order: bytes) -> list[str]:
        """Send an order to all nodes; return those that live."""
        if problem := self._link.problem():
            raise BrokerUnavailable(problem)
        message = pack_message(Order(order_id, self._node, order))
        try:
            async with asyncio.timeout(self._link.call_timeout_s):
                # Else answers would be lost.
                await self._broker.listener.subscribe(self._address, self._on_me)
                lives = await self._link.run(
                    self._scripts.order,
                    [self._keys.leases[0], self._keys.nodes],
                    *(self._time(), self._keys.send, message, MOST_NODES),
                )
        except TimeoutError:
            raise BrokerUnavailable("Redis did not confirm the subscription") from None
        return [node for life in lives if (node := self._read_life(life))]

    def _read_life(self, life: bytes) -> str:
        node = life.decode(errors="replace").partition(" ")[2]
        if is_node(node) is None:
            self._junk += 1
            return ""
        return node

    # What others send

    def _on_nodes(self, payload: bytes) -> None:
        message = self._read(payload)
        if isinstance(message, Order):
            self._on_order(message)
        elif isinstance(message, Notice) and message.topic in self.notices:
            self.notices.learn(message)
        elif message is not None:
            self._junk += 1

    def _on_me(self, payload: bytes) -> None:
        message = self._read(payload)
        if isinstance(message, Answer):
            # Whoever asked may not wait any more.
            if (asked := self._asked.get(message.id)) is not None:
                asked.take(message.node, message.answer)
        elif message is not None:
            self._junk += 1

    def _read(self, payload: bytes) -> Order | Answer | Notice | None:
        try:
            return read_message(payload)
        except JunkReceived:
            self._junk += 1
            return None

    def _on_order(self, order: Order) -> None:
        # One's own is carried out by `ask`.
        if order.node == self._node or order.id in self._recent or self._closed:
            return
        self._recent[order.id] = None
        if len(self._recent) > _MOST_RECENT:
            del self._recent[next(iter(self._recent))]
        if not self._others.run(self._sink, order.order, partial(self._answer, order)):
            self.orders_dropped += 1

    # What this node answers

    async def _answer_self(self, asked: Asked, answer: bytes) -> None:
        if self._fits(answer):
            asked.take(self._node, answer)

    async def _answer(self, order: Order, answer: bytes) -> None:
        if not self._fits(answer):
            return
        message = pack_message(Answer(order.id, self._node, answer))
        pace: AbstractAsyncContextManager[None] = (
            self._large if len(answer) > _LARGE_BYTES else nullcontext()
        )
        try:
            async with pace:
                await self._link.run(
                    self._scripts.announce, [self._keys.node(order.node)], self._keys.send, message
                )
        except PubSubError as error:
            _log.info("an answer was not sent: %s", error)

    def _fits(self, answer: bytes) -> bool:
        fits = len(answer) <= MOST_ANSWER_BYTES
        self.answers_refused += not fits
        return fits
