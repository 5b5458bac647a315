"""How does an event reach every node? This file: what was heard, compared with tops (pure)."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final

from pubsub.position import Position

# How long an acknowledgement is remembered, and how many channels'.
_REMEMBER_S: Final = 60.0
_MOST: Final = 10_000


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

    Bounded: of more than `most` channels the longest untouched are forgotten. Times are in s of a
    monotonic clock.
    """

    __slots__ = ("_channels", "_most")

    def __init__(self, most: int = _MOST) -> None:
        self._channels: OrderedDict[str, tuple[Position, float]] = OrderedDict()
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
        if len(self._channels) > self._most:
            self._channels.popitem(last=False)

    def recent(self, now: float) -> list[tuple[str, Position]]:
        """Return what was acknowledged within the last minute, and forget the rest."""
        while self._channels:
            channel, (_position, when) = next(iter(self._channels.items()))
            if now - when <= _REMEMBER_S:
                break
            del self._channels[channel]
        return [(channel, position) for channel, (position, _when) in self._channels.items()]
