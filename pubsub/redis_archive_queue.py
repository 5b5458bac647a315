"""Where is an event kept? This file: the archive's queue in Redis, of which each partition has one.

Events come into it by the publish script, in the same step that gives them their position. What is
handed out stays until it is acknowledged, and is handed out again, to whoever asks, until then.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from pubsub.archive import Entry
from pubsub.archive_entry import read_entry
from pubsub.archive_scripts import ArchiveScripts
from pubsub.errors import JunkReceived
from pubsub.redis_broker import RedisBroker
from pubsub.redis_channels import gather

LEASE_S: Final = 10.0
_MOST_ENTRIES: Final = 500
_MOST_BYTES: Final = 2 * 1024 * 1024


class Collected(msgspec.Struct, frozen=True):
    """Entries of a partition, oldest first, and how its queue stands.

    `ids` are to be given back when `entries` are archived; junk is among them, and counted by
    `junk`. `backlog` counts the entries of the queue, these included, `waiting` the channels of
    which something is not in it for want of room. `age_s` is of the oldest entry.
    """

    ids: tuple[bytes, ...]
    entries: tuple[Entry, ...]
    junk: int
    backlog: int
    waiting: int
    age_s: float


class Reached(msgspec.Struct, frozen=True):
    """How far a queue goes: the highest id that it ever had, the lowest that it has, and notes."""

    highest: tuple[int, int]
    lowest: tuple[int, int] | None
    waiting: int


class RedisArchiveQueue:
    """Hands out what the nodes of a broker have queued; every call may raise BrokerUnavailable.

    - `lease_s`: how long a partition stays with a node that is heard of no more.
    - `most_entries`, `most_bytes`: what is handed out at once, about.
    - `clock_ms` is for tests: a time for leases instead of Redis's.
    """

    def __init__(
        self,
        broker: RedisBroker,
        *,
        lease_s: float = LEASE_S,
        most_entries: int = _MOST_ENTRIES,
        most_bytes: int = _MOST_BYTES,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self.broker = broker
        self.lease_s = lease_s
        self._link = broker.link
        self._keys = broker.keys
        self._scripts = ArchiveScripts()
        self._most_entries = most_entries
        self._most_bytes = most_bytes
        self._clock_ms = clock_ms

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return self._keys.partitions

    def partition(self, channel: str) -> int:
        """Return the partition of a channel."""
        return self._keys.partition(channel)

    async def share(self, *, leave: bool = False) -> frozenset[int]:
        """Renew what this node has, and return it; or `leave`, and give all of it back.

        Partitions are shared evenly among the nodes whose lease stands. What a node has more than
        its share it gives up, what is free or has lapsed it takes.
        """
        answer = await self._link.run(
            self._scripts.share,
            self._keys.shares,
            "" if self._clock_ms is None else self._clock_ms(),
            self.broker.node,
            round(self.lease_s * 1000),
            self._keys.partitions,
            int(leave),
        )
        return frozenset(map(int, answer))

    async def collect(self, partition: int, done: Sequence[bytes] = ()) -> Collected:
        """Let go of what is `done`, and return what comes next; safe to repeat."""
        answer = await self._link.run(
            self._scripts.collect,
            self._keys.queue(partition),
            self._most_entries,
            self._most_bytes,
            self.broker.archive_queue_max or 0,
            *done,
        )
        ids: list[bytes] = []
        entries: list[Entry] = []
        junk = 0
        for each, fields in answer[3:]:
            ids.append(each)
            try:
                entries += read_entry(fields)
            except JunkReceived:
                junk += 1
        return Collected(
            tuple(ids), tuple(entries), junk, int(answer[0]), int(answer[2]), int(answer[1]) / 1000
        )

    async def reached(self) -> list[Reached]:
        """Return how far the queue of each partition goes."""
        return await gather([self._reached(each) for each in range(self._keys.partitions)])

    # For readers

    async def mark(self, channel: str) -> tuple[int, int]:
        """Return up to where the channel's partition has been queued by now; see `Coming`."""
        return (await self._reached(self.partition(channel))).highest

    async def passed(self, channel: str, mark: tuple[int, int]) -> bool:
        """Return whether all that was queued up to `mark` is archived."""
        lowest = (await self._reached(self.partition(channel))).lowest
        return lowest is None or lowest > mark

    async def _reached(self, partition: int) -> Reached:
        highest, lowest, waiting = await self._link.run(
            self._scripts.backlog, self._keys.queue(partition)
        )
        return Reached(_place(highest), _place(lowest) if lowest else None, int(waiting))


def _place(entry_id: bytes) -> tuple[int, int]:
    ms, _, number = entry_id.partition(b"-")
    return int(ms), int(number)
