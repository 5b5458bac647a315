"""Who is connected here? This file: whether every session under load got every event (pure)."""

import contextlib
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from server.load_witness import Witness

_MOST_PROBLEMS: Final = 10
# All sessions get pings equally often, but one may get its last a little before another.
_PINGS_APART: Final = 2


class Session:
    """One session under load: what is known of what it got beside the bytes that were counted.

    `early` bytes came before the run, `crc` is of what came if it was `compared`, `pings` are those
    that came by themselves, `lost` says why it ended.
    """

    __slots__ = (
        "channels",
        "compared",
        "crc",
        "early",
        "lost",
        "number",
        "pings",
        "sock",
        "wire",
        "witness",
    )

    def __init__(
        self,
        number: int,
        sock: socket.socket,
        wire: int,
        channels: Sequence[int],
        witness: Witness | None,
    ) -> None:
        self.number = number
        self.sock = sock
        self.wire = wire
        self.channels = channels
        self.witness = witness
        self.early = 0
        self.compared = False
        self.crc = 0
        self.pings = 0
        self.lost = ""

    def say(self, data: bytes) -> None:
        """Send something short; when that fails it is seen at the next read."""
        with contextlib.suppress(OSError):
            self.sock.send(data)


class Verdict(msgspec.Struct, frozen=True):
    """Deliveries in all, sessions that were compared byte by byte, and what was wrong."""

    delivered: int
    compared: int
    problems: list[str]


class Standard:
    """What the witnesses saw of each channel, on each wire: bytes, events, and a checksum."""

    def __init__(self, sessions: Sequence[Session], pings: Sequence[bytes]) -> None:
        self._pings = pings
        self._sessions = sessions
        self._seen: dict[tuple[int, int], Witness] = {}
        self._witnesses: list[list[Witness]] = [[] for _ in pings]
        for session in sessions:
            if session.witness is not None:
                self._witnesses[session.wire].append(session.witness)

        self._events: dict[tuple[int, int], int] = {}
        self._choose()

    def _tally(self) -> None:
        of = {id(witness): witness.events() for witness in self._seen.values()}
        for pair, witness in self._seen.items():
            self._events[pair] = of[id(witness)][pair[1]]

    def _choose(self) -> None:
        """Let that witness of each channel count that has seen nothing wrong, or else most."""
        self._heard = [self._pings_heard(wire) for wire in range(len(self._pings))]
        ranks: dict[tuple[int, int], tuple[bool, int]] = {}
        for session in self._sessions:
            witness = session.witness
            if witness is None:
                continue
            for channel in session.channels:
                rank = (not witness.problems and not session.lost, witness.bytes_of[channel])
                pair = (session.wire, channel)
                if pair not in ranks or rank > ranks[pair]:
                    ranks[pair] = rank
                    self._seen[pair] = witness

    def expected(self, session: Session) -> int:
        """Return how many bytes of events a session has to have."""
        wire = session.wire
        return sum(self._bytes(wire, channel) for channel in session.channels)

    def events(self, session: Session) -> int:
        """Return how many events a session has to have, after `judge`."""
        return sum(self._events.get((session.wire, channel), 0) for channel in session.channels)

    def surplus(self, session: Session, count: int) -> int:
        """Return how many bytes more than expected a session has; 0 if it may be pings.

        They may be about as many as others had: so they are never as long as an event is, however
        long the run was.
        """
        ping, more = len(self._pings[session.wire]), count - self.expected(session)
        if not ping or more % ping:
            return more
        few, many = self._heard[session.wire]
        if few - _PINGS_APART <= more // ping <= many + _PINGS_APART and more >= 0:
            return 0
        return more - few * ping or more

    def _pings_heard(self, wire: int) -> tuple[int, int]:
        """Return how many pings a witness had at least and at most."""
        size = len(self._pings[wire])
        found = [each.other_bytes // size for each in self._witnesses[wire]] if size else []
        return (min(found), max(found)) if found else (0, 0)

    def complete(self, counts: Sequence[int]) -> bool:
        """Say whether everyone has everything that was published; `counts` is by session."""
        for session, count in zip(self._sessions, counts, strict=True):
            if session.lost:
                continue
            if session.witness is not None:
                if session.witness.missing():
                    return False
            elif count < self.expected(session):
                return False
        return True

    def frame_bytes(self, wire: int) -> float:
        """Return how long an event's frame is on a wire, on average; 0 if none has come."""
        witnesses = self._witnesses[wire]
        events = sum(each.came() for each in witnesses)
        return sum(sum(each.bytes_of.values()) for each in witnesses) / events if events else 0.0

    def judge(self, counts: Sequence[int]) -> Verdict:
        """Return what has come of what was published, `counts` by session."""
        self._choose()
        self._tally()
        problems: list[str] = []
        delivered = compared = 0
        for session, count in zip(self._sessions, counts, strict=True):
            name = f"session {session.number}"
            if session.lost:
                problems.append(f"{name} was lost: {session.lost}")
            if session.witness is not None:
                delivered += session.witness.came()
                compared += 1
                problems += (f"{name}: {each}" for each in session.witness.problems)
                if missing := session.witness.missing():
                    problems.append(f"{name}: the last {missing} events did not come")
                elif not session.witness.problems:
                    problems += self._disagreements(session)
                continue
            extra, expected = self.surplus(session, count), self.expected(session)
            events = self.events(session)
            if extra and not session.lost:
                problems.append(
                    f"{name}: {abs(extra)} bytes {'less' if extra < 0 else 'more'} "
                    f"than the same channel's other sessions got"
                )
            delivered += events if not extra else min(events, count * events // max(1, expected))
            if session.compared and not extra and self._plain(session, count):
                compared += 1
                witness = self._seen.get((session.wire, session.channels[0]))
                if witness is not None and witness.crc != session.crc:
                    problems.append(f"{name}: other content, or another order, than others got")
        return Verdict(delivered, compared, _cut(problems))

    def _bytes(self, wire: int, channel: int) -> int:
        witness = self._seen.get((wire, channel))
        return 0 if witness is None else witness.bytes_of[channel]

    def _plain(self, session: Session, count: int) -> bool:
        """Say whether no ping may be among the bytes of which the checksum was made."""
        own = session.pings * len(self._pings[session.wire])
        return count - own == self.expected(session)

    def _disagreements(self, session: Session) -> list[str]:
        assert session.witness is not None  # noqa: S101 - callers checked
        return [
            f"session {session.number}: channel {channel} has another size than for others"
            for channel in session.channels
            if not session.lost
            and session.witness.bytes_of[channel] != self._bytes(session.wire, channel)
        ]


def _cut(problems: list[str]) -> list[str]:
    if len(problems) <= _MOST_PROBLEMS:
        return problems
    more = len(problems) - _MOST_PROBLEMS
    return [*problems[:_MOST_PROBLEMS], f"and {more} more such"]
