"""How does an event reach every node? This file: what this node hears of Redis, and from where.

Pub/sub loses what is sent while nobody listens, and tells nobody. So whatever may have opened a gap
is told: `on_gap`, with the addresses, for what Redis said unasked and for what another server sends
from now on; `on_restored` when a lost connection was replaced and every subscription on it was
confirmed anew, and when a server of several took another's place. `on_lost` is told before that, as
soon as another Redis may answer.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol, runtime_checkable

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError

from pubsub.errors import BrokerUnavailable
from pubsub.redis_client import Topology
from pubsub.redis_line import Line, Receive, Topic
from pubsub.redis_slots import slot_of_key
from pubsub.redis_url import Endpoint

_log = logging.getLogger(__name__)

_PAUSE_S: Final = (0.05, 2.0)


@runtime_checkable
class Spread(Protocol):
    """A topology of several servers, each of which carries out a part of the calls.

    `on_change` is called when another server carries out what one did before.
    """

    on_change: Callable[[], None]

    @property
    def sharded(self) -> bool:
        """Whether each server sends only what is published there; known after `prepare`."""
        ...

    async def prepare(self) -> None:
        """Wait until the servers are known; raises RedisError, OSError or TimeoutError."""
        ...

    def home(self, address: str) -> Endpoint | None:
        """Return the server from which comes what is sent on an address, None if unknown."""
        ...

    def listening(self, home: Endpoint | None = None) -> AbstractConnection:
        """Return a new connection for pub/sub to a server, to any with None."""
        ...

    def doubt(self) -> None:
        """Look soon whether the servers are others; as often as one likes."""
        ...

    def moved(self, slot: int, host: str, port: int) -> None:
        """Take note of what a server said of a slot."""
        ...


class RedisListener:
    """Owns the pub/sub connections; lost ones are replaced.

    There is one connection, or one to each server that sends what is to be heard. `reconnects`
    counts connections that were lost, `surprises` what Redis said unasked.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        on_restored: Callable[[], None],
        on_gap: Callable[[str], None],
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.reconnects = 0
        self.surprises = 0
        self.spread = topology if isinstance(topology, Spread) else None
        self._topology = topology
        self._on_restored = on_restored
        self._on_gap = on_gap
        self._on_lost = on_lost
        self._topics: dict[bytes, Topic] = {}
        # The same by slot, since slots move as a whole.
        self._slots: dict[int, dict[bytes, Topic]] = {}
        self._lines: dict[Endpoint | None, Line] = {}
        self._prepared = False
        self._preparing: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def restored(self) -> bool:
        """Whether every connection stands, and all subscriptions were confirmed on it."""
        lines = self._lines.values()
        placed = sum(len(line.topics) for line in lines)
        return placed == len(self._topics) and bool(lines) and all(line.whole for line in lines)

    @property
    def unconfirmed(self) -> int:
        """How many subscriptions a connection that stands has yet to confirm, before `restored`."""
        return sum(line.unconfirmed for line in self._lines.values())

    def start(self) -> None:
        """Connect, and stay connected; called once."""
        if self.spread is None:
            self._prepared = True
            self._line(None)
            self._place()
        else:
            self.spread.on_change = self._on_change
            self._preparing = asyncio.get_running_loop().create_task(self._prepare(self.spread))

    def subscribe(self, address: str, receive: Receive) -> "asyncio.Future[None]":
        """Hand what comes on `address` to `receive`; the future is done when Redis has confirmed.

        An address that is subscribed already keeps its receiver. Raises BrokerUnavailable when
        closed. The future may be cancelled; the subscription stays.
        """
        if self._closed:
            raise BrokerUnavailable("the broker is closed")
        name = address.encode()
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = Topic(receive)
            self._slots.setdefault(self._slot(address), {})[name] = topic
            self._put(name, topic)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if topic.confirmed:
            future.set_result(None)
        else:
            topic.waiting.append(future)
        return future

    def unsubscribe(self, address: str) -> None:
        """Hand over nothing more that comes on `address`."""
        name = address.encode()
        topic = self._topics.pop(name, None)
        if topic is None:
            return
        slot = self._slot(address)
        del self._slots[slot][name]
        if not self._slots[slot]:
            del self._slots[slot]
        topic.fail("the subscription was ended")
        if topic.line is not None:
            topic.line.leave(name)

    def home(self, address: str) -> Endpoint | None:
        """Return the server that sends what comes on `address`; None if there is only one."""
        return None if self.spread is None else self.spread.home(address)

    def stands(self, address: str) -> bool:
        """Whether the connection stands on which `address` is heard."""
        topic = self._topics.get(address.encode())
        return topic is not None and topic.line is not None and topic.line.whole

    def pending(self, address: str) -> int:
        """Return how much the connection of `address` has yet to confirm, if it stands."""
        topic = self._topics.get(address.encode())
        return 0 if topic is None or topic.line is None else topic.line.unconfirmed

    def break_off(self, address: str | None = None) -> None:
        """Replace the connection on which `address` is heard, or all: it is not what it seems."""
        topic = None if address is None else self._topics.get(address.encode())
        for line in self._lines.values():
            if topic is None or topic.line is line:
                line.break_off()

    async def close(self) -> None:
        """Let go of all connections; may be called twice."""
        self._closed = True
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait([self._preparing])
        for line in self._lines.values():
            await line.close()
        while self._ending:
            await asyncio.wait(self._ending)
        for topic in self._topics.values():
            topic.fail("the broker is closed")
        self._topics.clear()
        self._slots.clear()

    # Which connection hears what

    async def _prepare(self, spread: Spread) -> None:
        pause = _PAUSE_S[0]
        while not self._prepared:
            try:
                await spread.prepare()
                self._prepared = True
            except (RedisError, OSError, TimeoutError) as error:
                _log.info("the Redis cluster is not known: %s", error)
                await asyncio.sleep(random.uniform(0.5, 1) * pause)  # noqa: S311
                pause = min(pause * 2, _PAUSE_S[1])
        self._place()

    def _slot(self, address: str) -> int:
        return 0 if self.spread is None else slot_of_key(address)

    def _place(self) -> None:
        """Join each topic where it belongs, if it is not there yet."""
        for topics in self._slots.values():
            name, topic = next(iter(topics.items()))
            line = topic.line
            self._put(name, topic)
            if topic.line is not line:
                for name, topic in topics.items():
                    self._put(name, topic)
        for home, line in list(self._lines.items()):
            if home is not None and not line.topics:
                del self._lines[home]
                task = asyncio.get_running_loop().create_task(line.close())
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    def _put(self, name: bytes, topic: Topic) -> None:
        if not self._prepared or self._closed:
            return
        sharded = self.spread is not None and self.spread.sharded
        home = self.home(name.decode()) if sharded else None
        if topic.line is not None:
            if topic.line.home == home:
                return
            # The former owner has ended it, or will with its connection.
            topic.line.leave(name, say=False)
        if home is None and sharded:
            # Nobody owns the slot; it is joined when somebody does.
            return
        self._line(home).join(name, topic)

    def _line(self, home: Endpoint | None) -> Line:
        line = self._lines.get(home)
        if line is None:
            listening = self._topology.listening
            sharded = False
            if self.spread is not None:
                listening = partial(self.spread.listening, home)
                sharded = self.spread.sharded
            line = self._lines[home] = Line(home, listening, self, sharded=sharded)
        return line

    def _on_change(self) -> None:
        if not self._prepared or self._closed:
            return
        self._on_lost()
        if self.spread is not None and self.spread.sharded:
            self._place()
        else:
            # The connection may well stand, but a server that took another's place may have lost
            # what that one had acknowledged.
            self._on_restored()

    # What happens on a connection

    def on_whole(self, line: Line) -> None:
        """See `LineOwner`."""
        self._on_restored()

    def on_gap(self, address: str) -> None:
        """See `LineOwner`."""
        self._on_gap(address)

    def on_surprise(self) -> None:
        """See `LineOwner`."""
        self.surprises += 1

    def on_lost(self) -> None:
        """See `LineOwner`."""
        self._on_lost()

    def on_end(self, line: Line, whole: bool) -> None:
        """See `LineOwner`."""
        self.reconnects += whole
        self._on_lost()
        if self.spread is not None:
            self.spread.doubt()

    def on_moved(self, slot: int, host: str, port: int) -> None:
        """See `LineOwner`."""
        if self.spread is not None:
            self.spread.moved(slot, host, port)
