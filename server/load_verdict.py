"""Who is connected here? This file: whether every session under load got every event (pure)."""

import contextlib
import socket
from collections.abc import Sequence
from typing import Final

import msgspec

from server.load_witness import Witness

_MOST_PROBLEMS: Final = 10


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
        for session in sessions:
            if session.witness is not None and not session.lost:
                for channel in session.channels:
                    self._seen.setdefault((session.wire, channel), session.witness)

    def expected(self, session: Session) -> int:
        """Return how many bytes of events a session has to have."""
        wire = session.wire
        return sum(self._bytes(wire, channel) for channel in session.channels)

    def events(self, session: Session) -> int:
        """Return how many events a session has to have."""
        found = 0
        for channel in session.channels:
            if witness := self._seen.get((session.wire, channel)):
                found += witness.events_of(channel)
        return found

    def surplus(self, session: Session, count: int) -> int:
        """Return how many bytes more than expected a session has; pings are not among them.

        Of pings that came in one read with events it is known only that they are whole.
        """
        ping = len(self._pings[session.wire])
        more = count - session.pings * ping - self.expected(session)
        return 0 if ping and more > 0 and more % ping == 0 and more <= 64 * ping else more

    def complete(self, counts: Sequence[int]) -> bool:
        """Say whether everyone has everything that was published; `counts` is by session."""
        for session, count in zip(self._sessions, counts, strict=True):
            if session.lost:
                continue
            if session.witness is not None:
                if session.witness.missing():
                    return False
            elif self.surplus(session, count) < 0:
                return False
        return True

    def frame_bytes(self, wire: int) -> float:
        """Return how long an event's frame is on a wire, on average; 0 if none has come."""
        witnesses = [each.witness for each in self._sessions if each.wire == wire and each.witness]
        events = sum(each.came() for each in witnesses)
        return sum(sum(each.bytes_of.values()) for each in witnesses) / events if events else 0.0

    def judge(self, counts: Sequence[int]) -> Verdict:
        """Return what has come of what was published, `counts` by session."""
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
                    problems.append(f"{name}: {missing} events did not come")
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
