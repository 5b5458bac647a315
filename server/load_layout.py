"""Who is connected here? This file: who is on which channel under load, and who sends (pure)."""

from collections.abc import Sequence

import msgspec

# Sessions whose frames are taken apart, beside those that every channel needs.
_WITNESSES = 24


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions over channels, and publishers over channels; both evenly.

    A lane is what one publisher sends to one channel: within it order is kept by everyone, between
    the lanes of a channel there is none to check. Event number `n` is of lane `n % lanes`, and the
    `n // lanes`-th in it.
    """

    sessions: int
    channels: int = 1
    per_session: int = 1
    publishers: int = 1
    wires: int = 1
    prefix: str = "bench"

    def __post_init__(self) -> None:
        if self.per_session > self.channels:
            raise ValueError("a session cannot be on more channels than there are")

    @property
    def lanes(self) -> int:
        """Return how many lanes there are; every channel and every publisher has one."""
        return max(self.channels, self.publishers)

    def name(self, channel: int) -> str:
        """Return a channel's name; all are as long."""
        return f"{self.prefix}.{channel:06d}"

    def channels_of(self, session: int) -> list[int]:
        """Return the channels of a session."""
        first = session * self.per_session
        return [(first + i) % self.channels for i in range(self.per_session)]

    def wire_of(self, session: int) -> int:
        """Return the wire of a session; the subscribers of each channel have all of them."""
        total = self.sessions * self.per_session
        # One lap gives every channel a subscriber; with less than two there is nothing to share.
        lap = session * self.per_session // self.channels
        return (lap if total >= self.channels * self.wires else session) % self.wires

    def lanes_of(self, publisher: int) -> list[int]:
        """Return the lanes of a publisher."""
        return [lane for lane in range(self.lanes) if lane % self.publishers == publisher]

    def witnesses(self) -> set[int]:
        """Return the sessions whose frames are taken apart.

        Every channel has one for each wire that is used on it, and there are some more, spread
        over all: when an event reaches a session depends on the session's place.
        """
        chosen = set(range(0, self.sessions, max(1, self.sessions // _WITNESSES)))
        # The last one waits longest.
        chosen.add(self.sessions - 1)
        seen = {pair for session in chosen for pair in self._pairs(session)}
        for session in range(self.sessions):
            pairs = self._pairs(session)
            if any(pair not in seen for pair in pairs):
                chosen.add(session)
                seen.update(pairs)
        return chosen

    def _pairs(self, session: int) -> Sequence[tuple[int, int]]:
        wire = self.wire_of(session)
        return [(wire, channel) for channel in self.channels_of(session)]
