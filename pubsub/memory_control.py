"""How do nodes act as one? This file: the control of a single node."""

import heapq
import logging
import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from hashlib import sha256
from typing import Final

from pubsub.asked import Asked
from pubsub.control import Answers, ControlSink
from pubsub.control_message import MOST_ANSWER_BYTES, MOST_ORDER_BYTES, make_notice
from pubsub.errors import BrokerUnavailable
from pubsub.notices import Notices
from pubsub.order_tasks import OrderTasks

_log = logging.getLogger(__name__)

_MOST_ORDERS: Final = 1_000
# What has ended goes a little at a time.
_ENDED_AT_ONCE: Final = 64
_TELL_EVERY_S: Final = 60.0


class MemoryControl:
    """Carries orders and notices within this process; see `Control` for what it promises.

    - `node`: the name under which this node answers.
    - `topics`: what notices may be about.
    - `answer_timeout_s`: how long an order waits for its answer.
    - `most_notices`: what is kept of each topic; beyond it the oldest goes.
    - `most_taken`: what is known to be taken at once; one more raises BrokerUnavailable, since what
      is forgotten could be taken twice.
    - `now`: the time in s since 1970. `monotonic`: a clock in s.

    A restart forgets everything. `answers_refused` counts answers that were too large, `silent`
    those that did not come in time.
    """

    def __init__(
        self,
        *,
        node: str,
        topics: Iterable[str],
        answer_timeout_s: float = 1.0,
        most_notices: int = 100_000,
        most_taken: int = 100_000,
        now: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.answers_refused = 0
        self.silent = 0
        self._sink: ControlSink
        self._node = node
        self._answer_timeout_s = answer_timeout_s
        self._now = now
        self._monotonic = monotonic
        self._notices = {topic: Notices(most_notices) for topic in topics}
        self._most_taken = most_taken
        # When each can be taken again, by the monotonic clock; and the same, the earliest first.
        self._taken: dict[bytes, float] = {}
        self._ends: list[tuple[float, bytes]] = []
        self._orders = OrderTasks(_MOST_ORDERS)
        self._asked: set[Asked] = set()
        self._tell_after = -math.inf
        self._closed = False

    @property
    def notices_dropped(self) -> int:
        """How many notices went before their end, since there were too many."""
        return sum(notices.dropped for notices in self._notices.values())

    def bind(self, sink: ControlSink) -> None:
        self._sink = sink

    async def start(self) -> None:
        """Nothing has to be begun."""

    def problem(self) -> str | None:
        return "the control is closed" if self._closed else None

    async def ask(self, order: bytes) -> Answers:
        self._check()
        if len(order) > MOST_ORDER_BYTES:
            raise ValueError("an order is too large")
        asked = Asked()
        asked.expect([self._node])
        if not self._orders.run(self._sink, order, partial(self._answer, asked)):
            raise BrokerUnavailable("too many orders are in flight")
        self._asked.add(asked)
        try:
            answers = await asked.wait(self._answer_timeout_s)
        finally:
            self._asked.discard(asked)
        self.silent += len(answers.silent)
        return answers

    async def take(self, name: str, ttl_s: float) -> bool:
        self._check()
        # Names may be a client's words, of any length.
        digest = sha256(name.encode()).digest()
        now = self._monotonic()
        for _ in range(_ENDED_AT_ONCE):
            if not self._ends or self._ends[0][0] > now:
                break
            end_s, ended = heapq.heappop(self._ends)
            if self._taken.get(ended) == end_s:
                del self._taken[ended]
        if self._taken.get(digest, -math.inf) > now:
            return False
        if len(self._taken) >= self._most_taken:
            raise BrokerUnavailable("too much is taken")
        self._taken[digest] = now + ttl_s
        heapq.heappush(self._ends, (now + ttl_s, digest))
        return True

    async def notify(self, topic: str, name: str, at_s: float, until_s: float) -> None:
        self._check()
        notices = self._notices.get(topic)
        if notices is None:
            raise ValueError("not a topic of this node")
        notice = make_notice(topic, name, at_s, until_s)
        dropped = notices.dropped
        if notices.put(notice, self._now()):
            self._sink.on_notice(topic, name, notice.at_s, notice.until_s)
        if notices.dropped > dropped and self._monotonic() >= self._tell_after:
            self._tell_after = self._monotonic() + _TELL_EVERY_S
            _log.warning("too many notices are kept: the oldest of %s go", topic)

    async def close(self) -> None:
        self._closed = True
        for asked in self._asked:
            asked.fail("the control is closed")
        await self._orders.close()

    def _check(self) -> None:
        if self._closed:
            raise BrokerUnavailable("the control is closed")

    async def _answer(self, asked: Asked, answer: bytes) -> None:
        # As with many nodes: a client cannot tell how many there are.
        if len(answer) > MOST_ANSWER_BYTES:
            self.answers_refused += 1
        else:
            asked.take(self._node, answer)
