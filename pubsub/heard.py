"""How does an event reach every node? This file: what was heard, compared with tops (pure)."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from pubsub.position import Position

# How long an acknowledgement is remembered, and how many channels': 0.45 KB were measured for each.
_REMEMBER_S: Final = 60.0
_MOST: Final = 100_000
# What counts is the minute before a connection was last known to be well, which is some time ago.
_KEEP_S: Final = 2 * _REMEMBER_S
# How often in a row connections may be lost before Redis could be asked to compare.
_MOST_SEALED: Final = 4


class Heard:
    """The last position that came of each subscribed channel."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[str, Position] = {}

    def __len__(self) -> int:
        return len(self._last)

    def __contains__(self, channel: str) -> bool:
        return channel in self._last

    def begin(self, channel: str, top: Position) -> None:
        """Take note of a subscription: nothing before `top` is waited for."""
        last = self._last.get(channel)
        if last is None or last.epoch != top.epoch or last.offset < top.offset:
            self._last[channel] = top

    def end(self, channel: str) -> None:
        """Forget a channel."""
        self._last.pop(channel, None)

    def take(self, channel: str, position: Position) -> None:
        """Take note of what came; nothing happens if the channel's subscription has not begun."""
        if channel in self._last:
            self._last[channel] = position

    def snapshot(self) -> dict[str, Position]:
        """Return what was heard by now, to be given to `doubtful` later."""
        return dict(self._last)

    def doubtful(
        self, before: Mapping[str, Position], tops: Mapping[str, Position]
    ) -> list[tuple[str, Position]]:
        """Return the channels whose top is not what was heard, with that top, each once.

        `tops` were read after `before` was taken, and everything sent before they were read has
        come, or is lost. What came since may be newer than they are: that proves nothing.
        """
        found = []
        for channel, top in tops.items():
            now = self._last.get(channel)
            if now is None or now == top:
                continue
            if _differs(before.get(channel, now), top, now):
                found.append((channel, top))
                self._last[channel] = top
        return found


def _differs(before: Position, top: Position, now: Position) -> bool:
    """Say whether `top` contradicts what was heard before it was read, or by now."""
    if top.epoch == now.epoch and top.offset >= now.offset:
        return True
    if top.epoch != before.epoch:
        # If a newer epoch came meanwhile, it is not the one that was heard before.
        return top.epoch != now.epoch
    return top.offset < before.offset or (top.offset == before.offset and top != before)


class Acknowledged:
    """The highest position that this node acknowledged in each channel within the last minute.

    What came before a loss of connection is kept apart from what comes after it, which may be of a
    Redis that lost the former, at the same offsets. Bounded: of more than `most` channels the
    longest untouched are forgotten; `forgotten` counts those that were so within the minute. Times
    are in s of a monotonic clock.
    """

    __slots__ = ("_channels", "_most", "_sealed", "forgotten")

    def __init__(self, most: int = _MOST) -> None:
        self.forgotten = 0
        self._channels: OrderedDict[str, tuple[Position, float]] = OrderedDict()
        self._sealed: list[OrderedDict[str, tuple[Position, float]]] = []
        self._most = most

    def add(self, channel: str, position: Position, now: float, *, known: bool = False) -> None:
        """Take note of an acknowledgement.

        If the event was `known` by then its epoch may be an older one, and does not replace one.
        """
        before = self._channels.get(channel)
        if before is not None:
            self._channels.move_to_end(channel)
            last = before[0]
            # Answers of two pipelines may come in either order.
            if known and last.epoch != position.epoch:
                position = last
            elif last.epoch == position.epoch and last.offset > position.offset:
                position = last
        self._channels[channel] = (position, now)
        if before is None:
            self._make_room(now)

    def _make_room(self, now: float) -> None:
        """Let a channel go for one that came."""
        oldest, (_position, when) = next(iter(self._channels.items()))
        if now - when > _KEEP_S:
            del self._channels[oldest]
        elif len(self._channels) > self._most:
            del self._channels[oldest]
            self.forgotten += now - when <= _REMEMBER_S

    def seal(self) -> None:
        """Keep what was acknowledged by now, whatever is acknowledged from now on."""
        if self._channels:
            self._sealed.append(self._channels)
            self._channels = OrderedDict()
            if len(self._sealed) > _MOST_SEALED:
                # The first are of the Redis that was lost; of the others the newer count.
                for channel, entry in self._sealed.pop(1).items():
                    if channel in self._sealed[1]:
                        continue
                    if len(self._sealed[1]) < self._most:
                        self._sealed[1][channel] = entry
                    else:
                        self.forgotten += 1

    def join(self) -> None:
        """Forget what stands apart where there is something newer: Redis has compared it all."""
        sealed, self._sealed = [*self._sealed, self._channels], []
        self._channels = OrderedDict()
        for channels in sealed:
            for channel, (position, when) in channels.items():
                self.add(channel, position, when)

    def recent(self, now: float) -> list[tuple[str, Position]]:
        """Return what was acknowledged within the last minute, and forget the rest."""
        found: list[tuple[str, Position]] = []
        for channels in (*self._sealed, self._channels):
            while channels:
                channel, (_position, when) = next(iter(channels.items()))
                if now - when <= _REMEMBER_S:
                    break
                del channels[channel]
            found += [(channel, position) for channel, (position, _when) in channels.items()]
        return found
