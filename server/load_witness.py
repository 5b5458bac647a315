"""Who is connected here? This file: a session under load whose frames are taken apart (pure).

All sessions of a wire get the same bytes of a channel. So a few witnesses look at each event: its
number, its order, its size and how late it is. Of the others bytes are counted.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from zlib import crc32

from server.load_frames import Framing
from server.load_target import MARK, MARK_BYTES

_SHOWN: Final = 200
_MOST_PROBLEMS: Final = 5


class Witness:
    """Takes the bytes of one session and checks that each lane's events come once and in order.

    `lanes` says of each lane of its channels which channel that is. `sent` has the times at which
    the events of each lane were due. `late` is told for each event when it was due and how long it
    took, if it was due from `since` on and before `until`. `other_bytes` are those of pings.
    """

    __slots__ = (
        "_frames",
        "_lanes",
        "_late",
        "_next",
        "_rest",
        "_sent",
        "_skipped",
        "bytes_of",
        "crc",
        "other_bytes",
        "problems",
        "since",
        "until",
    )

    def __init__(
        self,
        frames: Framing,
        lanes: Mapping[int, int],
        sent: Sequence["array[float]"],
        late: Callable[[float, float], None],
    ) -> None:
        self._frames = frames
        self._lanes = lanes
        self._sent = sent
        self._late = late
        self._rest = b""
        self._next = dict.fromkeys(lanes, 0)
        self.bytes_of = dict.fromkeys(lanes.values(), 0)
        self.crc = 0
        self.other_bytes = 0
        self._skipped: dict[int, int] = {}
        self.problems: list[str] = []
        self.since = float("inf")
        self.until = float("inf")

    def feed(self, data: bytes, now: float) -> None:
        """Take what was received until `now`."""
        if self._rest:
            data = self._rest + data
        bounds, taken = self._frames(data)
        self._rest = data[taken:]
        sent, expected, lanes = self._sent, self._next, self._lanes
        find, count = data.find, len(sent)
        for begin, end in bounds:
            at = find(MARK, begin, end)
            if at < 0:
                self._problem(f"the server said: {_shown(data[begin:end])}")
                continue
            # What stands behind the mark may be another program's.
            digits = data[at + len(MARK) : at + MARK_BYTES]
            number = int(digits) if digits.isdigit() else -1
            place, lane = divmod(number, count)
            if expected.get(lane, -1) != place and not self._skips_to(number, place, lane):
                continue
            expected[lane] = place + 1
            self.bytes_of[lanes[lane]] += end - begin
            due = sent[lane][place]
            if self.since <= due < self.until:
                self._late(due, now - due)
        size = sum(end - begin for begin, end in bounds)
        if size == taken:
            self.crc = crc32(memoryview(data)[:taken], self.crc)
            return
        self.other_bytes += taken - size
        for begin, end in bounds:
            self.crc = crc32(memoryview(data)[begin:end], self.crc)

    def events(self) -> dict[int, int]:
        """Return how many events have come, by channel."""
        found = dict.fromkeys(self.bytes_of, 0)
        for lane, channel in self._lanes.items():
            found[channel] += self._next[lane]
        for channel, skipped in self._skipped.items():
            found[channel] -= skipped
        return found

    def came(self) -> int:
        """Return how many events have come."""
        return sum(self._next.values()) - sum(self._skipped.values())

    def missing(self) -> int:
        """Return how many events were sent behind the last that came."""
        return sum(len(self._sent[lane]) - came for lane, came in self._next.items())

    def _skips_to(self, number: int, place: int, lane: int) -> bool:
        """Note what is wrong with an event; say whether it is in order but for gaps before it."""
        expected = self._next.get(lane)
        if expected is None or number < 0 or place >= len(self._sent[lane]):
            self._problem(f"an event came that was not published to it: {number}")
        elif place < expected:
            self._problem(f"event {number} came again, or behind later ones")
        else:
            self._problem(f"{place - expected} events are missing before event {number}")
            channel = self._lanes[lane]
            self._skipped[channel] = self._skipped.get(channel, 0) + place - expected
            return True
        return False

    def _problem(self, text: str) -> None:
        if len(self.problems) < _MOST_PROBLEMS:
            self.problems.append(text)


def _shown(message: bytes) -> str:
    return message[:_SHOWN].decode("utf-8", "replace")
