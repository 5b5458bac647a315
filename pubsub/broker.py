"""How does an event get its position and reach every node? This file: the broker's interface."""

from collections.abc import Sequence
from typing import Protocol

import msgspec

from pubsub.errors import PubSubError
from pubsub.event import Draft, Event, Published
from pubsub.position import Position


class Sink(Protocol):
    """What a node offers to the broker. Plain calls that neither wait nor raise.

    For one channel they come in the order of the channel, also across kinds of call.
    """

    def on_events(self, channel: str, events: Sequence[Event]) -> None:
        """Take events in order; a lossy backplane may leave gaps, repeat, or contradict."""

    def on_purge(self, channel: str, floor: Position) -> None:
        """All events up to and including `floor` were purged; epoch and offsets go on."""

    def on_fork(self, channel: str, top: Position) -> None:
        """A new epoch began; `top` is its start. Earlier positions cannot be continued."""

    def on_top(self, channel: str, top: Position) -> None:
        """The channel's top at the broker is not what was heard of it: compare.

        All that was sent up to `top` has come, or is lost. Events behind it may have come since.
        """


class HistoryRule(Protocol):
    """What the broker asks of a channel's rule; zero in size or time keeps no history.

    `archive` says that events are archived as well, for `archive_ttl_s` (0: for good).
    """

    @property
    def history_size(self) -> int: ...

    @property
    def history_ttl_s(self) -> float: ...

    @property
    def archive(self) -> bool: ...

    @property
    def archive_ttl_s(self) -> float: ...


class HistoryRules(Protocol):
    """Where the broker finds a channel's rule; asked at every publish, so a reload shows."""

    def rule(self, channel: str) -> HistoryRule: ...


class History(msgspec.Struct, frozen=True):
    """A contiguous run of a channel's kept events, oldest first, and where the channel stands.

    Neighbours chain, but for a fork between them: there the epoch changes and offsets may leap.
    `floor` is the highest offset that was purged (0: none).
    """

    events: tuple[Event, ...]
    top: Position
    floor: int


class ChannelState(msgspec.Struct, frozen=True):
    """An active channel: one with events kept or a node subscribed."""

    channel: str
    top: Position


class Broker(Protocol):
    """Gives events their positions and carries them between nodes.

    Every call may raise BrokerUnavailable. Safe to cancel, unless said otherwise.
    """

    def bind(self, sink: Sink) -> None:
        """Say where events go; called once, before any other call. Not a call to the broker."""
        ...

    async def publish(self, drafts: Sequence[Draft]) -> list[Published | PubSubError]:
        """Publish events, in order; the answers stand in the same order.

        Each event is published in one atomic step: idempotency, position, history, sending to all
        nodes. An event fails alone (its answer is the error), the others are not affected. An
        answer with a position is an acknowledgement. Calling again with the same drafts is safe.
        """
        ...

    async def subscribe(self, channel: str) -> Position:
        """Start sending the channel's events to the sink; return its top.

        The channel's record is made if there is none: offset 0 is a position too. Every event
        after the top that is returned comes through the sink, possibly before this returns.
        """
        ...

    async def unsubscribe(self, channel: str) -> None:
        """Stop sending the channel's events to the sink."""
        ...

    async def top(self, channel: str) -> Position | None:
        """Return the channel's top, or None if it has no record."""
        ...

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
        """Return kept events with after < offset < before, or None if the channel has no record.

        At most `limit`: the oldest of them, or the newest when `newest`; oldest first either way.
        With `hidden`, which is for the repair of a feed, also those that the broker keeps beyond
        what the channel's rule shows.
        """
        ...

    async def contradict(self, channel: str, evidence: Position) -> Position:
        """Report a position that a node has seen or acknowledged; return the channel's top.

        If the evidence is of the current epoch and the channel's record contradicts it (another
        check at that offset, or a top below it), a new epoch begins above the higher offset and
        every node gets `on_fork`. The start of that epoch has the higher offset, so its first
        event has the next one. If there is no record, one is made in the same way.
        """
        ...

    async def purge(self, channel: str) -> Position | None:
        """Delete the channel's kept events; return the floor, or None if it has no record.

        Epoch and offsets go on; every node gets `on_purge` in order with the events.
        """
        ...

    async def channels(self, *, prefix: str, after: str, limit: int) -> list[ChannelState]:
        """Return active channels by name: with `prefix`, and sorting behind `after`."""
        ...

    async def close(self) -> None:
        """Let go of all resources; may be called twice."""
        ...
