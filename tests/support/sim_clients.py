"""Clients of a simulated world: what each was told, over all its sessions and nodes, is kept."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from pubsub.errors import PubSubError
from pubsub.event import Draft, Published
from pubsub.position import Position
from server.closing import Closing
from server.node import Node
from server.session import Session
from sim_scheduler import Clock, Line, Process

LOW_BYTES = 400

_decode = msgspec.json.Decoder().decode


class SimConnection:
    """A connection whose client reads, or stalls; what it did not read it was not told."""

    def __init__(self, clock: Clock, limit: int, on_fault: Callable[[str], None]) -> None:
        self.chunks: list[bytes] = []
        self.taken = 0
        self.unsent = 0
        self.stalled = False
        self.closed: Closing | None = None
        self.left = False
        self.lost = False
        self.session: Session | None = None
        self._limit = limit
        self._slow = False
        self._read: list[dict[str, Any]] = []
        self._parsed = 0
        self._clock = clock
        self._times: list[float] = []
        self._on_fault = on_fault
        self._drained = asyncio.Event()
        self._drained.set()

    def send(self, data: bytes) -> None:
        if self.closed is not None:
            self._on_fault("something was sent behind the close")
        if self.lost:
            return
        self.chunks.append(data)
        self._times.append(self._clock.now)
        if not self.stalled and not self.left:
            self.taken = len(self.chunks)
            return
        self.unsent += len(data)
        if not self.clear():
            self._drained.clear()
        if self.unsent > self._limit and not self._slow and self.session is not None:
            self._slow = True
            asyncio.get_running_loop().call_soon(self.session.on_slow)

    def clear(self) -> bool:
        return self.unsent <= LOW_BYTES

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self, closing: Closing, last: bytes = b"") -> None:
        if self.closed is None:
            if last:
                self.send(last)
            self.closed = closing
            self._drained.set()

    async def drained(self) -> bool:
        while self.closed is None and not self.lost and not self.clear():
            await self._drained.wait()
        return self.closed is None and not self.lost

    def read(self) -> None:
        """The client reads all that waits."""
        if not self.left:
            self.taken = len(self.chunks)
        self.unsent = 0
        self._drained.set()

    def lose(self) -> None:
        """The client is gone, with what it had not read."""
        self.lost = True
        self._drained.set()
        if self.session is not None:
            self.session.on_lost()

    def messages(self) -> list[dict[str, Any]]:
        """What the client read, in order, each with the time at which it was sent."""
        for place in range(self._parsed, self.taken):
            when = {"sent_at": self._times[place]}
            self._read += [_decode(line) | when for line in self.chunks[place].splitlines()]
        self._parsed = self.taken
        return self._read


@dataclass(slots=True)
class Place:
    """A node that clients can come to; `alive` until its process dies."""

    name: str
    process: Process
    node: Node
    alive: bool = True


@dataclass(slots=True)
class Visit:
    """One session of a client, and what it asked for."""

    place: Place
    connection: SimConnection
    up: Line
    since: str | None = None
    rewind: int | None = None
    channel: str = ""
    session_id: str = ""
    left_again: bool = False
    refs: int = 0
    _seen: tuple[int, dict[str, Any] | None] = (0, None)

    def say(self, type_: str, **fields: Any) -> None:
        """Send a command, which arrives some time."""
        self.refs += 1
        data = json.dumps({"type": type_, "ref": self.refs} | fields).encode()
        self.up.send(partial(self._arrive, data))

    def _arrive(self, data: bytes) -> None:
        session = self.connection.session
        if session is not None and not self.connection.lost:
            session.on_messages([data])

    def outcome(self) -> dict[str, Any] | None:
        """The last answer to a subscription that was read, if there is one."""
        taken = self.connection.taken
        if self._seen[0] != taken:
            answers = [
                m for m in self.connection.messages() if m["type"] in ("subscribed", "error")
            ]
            self._seen = (taken, answers[-1] if answers else None)
        return self._seen[1]

    def is_over(self) -> bool:
        return self.connection.closed is not None or not self.place.alive

    def attached(self) -> bool:
        """Whether its subscriptions stand, each in step with its feed."""
        session = self.connection.session
        if session is None or not session.subscriptions:
            return False
        return all(each.attached for each in session.subscriptions.values())


@dataclass(slots=True)
class Client:
    """Somebody who comes, goes, and comes back to where they were."""

    name: str
    visits: list[Visit] = field(default_factory=list)
    here: bool = False

    @property
    def visit(self) -> Visit:
        return self.visits[-1]

    def told(self) -> Iterator[tuple[Visit, dict[str, Any]]]:
        """All that it was told, in order."""
        for visit in self.visits:
            for message in visit.connection.messages():
                yield visit, message

    def position(self) -> str | None:
        """Where it would resume: the last position that the contract lets it use."""
        kinds = ("subscribed", "event", "reset")
        at = [m["position"] for _visit, m in self.told() if m["type"] in kinds]
        return at[-1] if at else None


@dataclass(slots=True)
class Publisher:
    """Publishes a batch, and tries again, with the same ids and at any node, until it succeeds."""

    drafts: Sequence[Draft]
    choose: Callable[[], Place]
    done: Callable[["Publisher", Place, Sequence[Published]], None]
    again: Callable[[Callable[[], None]], None]
    place: Place | None = None

    def attempt(self) -> None:
        self.place = place = self.choose()
        place.process.call(lambda: place.process.loop.create_task(self._run(place)))

    async def _run(self, place: Place) -> None:
        try:
            answers = await place.node.broker.publish(self.drafts)
        except PubSubError:
            answers = []
        self.place = None
        published = [each for each in answers if isinstance(each, Published)]
        if len(published) == len(self.drafts):
            self.done(self, place, published)
        else:
            self.again(self.attempt)


def at(position: str) -> Position:
    return Position.parse(position)
