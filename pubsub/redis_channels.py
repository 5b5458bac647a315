"""Where are events kept? This file: which channels Redis holds, and where each of them stands."""

import asyncio
from bisect import insort
from collections.abc import Iterable, Sequence
from typing import Any, Final

from pubsub.broker import ChannelState
from pubsub.channel_room import ChannelRoom
from pubsub.position import Position
from pubsub.redis_client import Part
from pubsub.redis_keys import RedisKeys
from pubsub.redis_link import RedisLink
from pubsub.redis_scripts import RedisScripts
from pubsub.redis_times import RedisTimes

# Records that one script looks at: it holds all of Redis up meanwhile.
_BATCH: Final = 200


class RedisChannels:
    """Tops, lists and counts of channels over all partitions.

    `room` keeps the number of channels within a bound.
    """

    def __init__(
        self,
        link: RedisLink,
        scripts: RedisScripts,
        keys: RedisKeys,
        times: RedisTimes,
        room: ChannelRoom,
    ) -> None:
        self._link = link
        self._scripts = scripts
        self._keys = keys
        self._times = times
        self.room = room
        self._counting: asyncio.Task[None] | None = None

    @property
    def partitions(self) -> int:
        """How many partitions there are."""
        return self._keys.partitions

    def partition(self, channel: str) -> int:
        """Return the partition of a channel."""
        return self._keys.partition(channel)

    def address(self, channel: str) -> str:
        """Return the pub/sub channel of a channel."""
        return self._keys.address(channel)

    # Tops

    async def tops(
        self, channels: Iterable[str], node: str = ""
    ) -> dict[str, tuple[Position, bool] | None]:
        """Return the top of each channel and whether it is active, None where there is no record.

        With `node`, leases of that node that are half over are renewed. Raises BrokerUnavailable.
        """
        shares: dict[int, list[str]] = {}
        for channel in channels:
            shares.setdefault(self._keys.partition(channel), []).append(channel)
        asked: list[tuple[int, list[str]]] = []
        for partition, names in shares.items():
            asked += [(partition, names[at : at + _BATCH]) for at in range(0, len(names), _BATCH)]
        answers = await gather([self._ask_tops(*each, node) for each in asked])
        found: dict[str, tuple[Position, bool] | None] = {}
        for (_partition, names), answer in zip(asked, answers, strict=True):
            for name, each in zip(names, answer, strict=True):
                found[name] = None if each is None else (read_top(each), each[3] == 1)
        return found

    async def _ask_tops(self, partition: int, names: list[str], node: str) -> Any:
        keys = [*self._keys.lists(partition), *map(self._keys.record, names)]
        times = self._times
        parts: list[Part] = [times.now(), node, times.lease_ms, times.lapse_ms, *names]
        return await self._link.run(self._scripts.tops, keys, *parts)

    # The list of active channels

    async def active(self, prefix: str, after: str, limit: int) -> list[ChannelState]:
        """Return active channels by name, those with `prefix` that sort behind `after`."""
        states: list[ChannelState] = []
        low = f"({after}" if after >= prefix and after else f"[{prefix}" if prefix else "-"
        high = f"[{prefix}\xff".encode("latin-1") if prefix else b"+"
        while len(states) < limit:
            names, more = await self._names(low, high, limit - len(states))
            tops = await self.tops(names)
            for name in names:
                top = tops[name]
                # The lists may name channels that are active no more.
                if top is not None and top[1] and len(states) < limit:
                    states.append(ChannelState(name, top[0]))
            if not more:
                break
            low = f"({names[-1]}"
        return states

    async def _names(self, low: str, high: bytes, count: int) -> tuple[list[str], bool]:
        """Return the next names over all partitions, and whether there are more.

        Each partition gives a piece; names are known to be complete up to the end of the piece
        that ends first.
        """
        piece = max(8, 2 * count // self._keys.partitions)
        answers = await gather(
            [
                self._link.command(
                    "ZRANGEBYLEX", self._keys.lists(each)[1], low, high, "LIMIT", 0, piece
                )
                for each in range(self._keys.partitions)
            ]
        )
        ends = [answer[-1] for answer in answers if len(answer) >= piece]
        end = min(ends, default=None)
        names: list[bytes] = sorted(
            name for answer in answers for name in answer if end is None or name <= end
        )
        return [name.decode() for name in names], end is not None

    # Counting and cleaning up

    async def count(self) -> None:
        """Count the channels of all partitions; those who ask meanwhile share the next answer."""
        before = self._counting
        if before is not None and not before.done():
            # It may have passed by what was made since.
            await asyncio.wait([before])
        if self._counting is before:
            self._counting = asyncio.get_running_loop().create_task(self._count())
        assert self._counting is not None  # noqa: S101 - it was made just now, or meanwhile
        await asyncio.shield(self._counting)

    async def _count(self) -> None:
        made = self.room.made
        counts = await gather(
            [
                self._link.command("ZCARD", self._keys.lists(each)[0])
                for each in range(self._keys.partitions)
            ]
        )
        self.room.count(sum(counts), made)

    async def sweep(self, partition: int) -> None:
        """Take what has lapsed or become inactive off the lists of a partition."""
        now = self._times.now() or await self._redis_ms()
        known, _active, due = self._keys.lists(partition)
        while True:
            stale: list[str] = []
            for key in (known, due):
                found = await self._link.command(
                    "ZRANGEBYSCORE", key, "-inf", now, "LIMIT", 0, _BATCH
                )
                for name in found:
                    if name.decode() not in stale:
                        insort(stale, name.decode())
            if not stale:
                return
            keys = [*self._keys.lists(partition), *map(self._keys.record, stale)]
            await self._link.run(self._scripts.settle, keys, self._times.now(), *stale)
            if len(stale) < _BATCH:
                return

    async def _redis_ms(self) -> int:
        seconds, micros = await self._link.command("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def close(self) -> None:
        """Wait for a count that is under way."""
        if self._counting is not None:
            await asyncio.wait([self._counting])
            if not self._counting.cancelled():
                self._counting.exception()


def read_top(answer: Sequence[Any]) -> Position:
    """Return the position that stands in an answer as epoch, offset and check."""
    return Position(answer[0].decode(), int(answer[1]), answer[2].decode())


async def gather(calls: Sequence[Any]) -> list[Any]:
    """Await all calls at once, and only then raise what one of them raised."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    return answers
