"""Who is connected here? This file: history reads, shared by all who wait for the same range."""

import asyncio
from typing import Protocol

from pubsub.broker import History


class Reader(Protocol):
    """What reads the events of a channel: the chronicle."""

    async def history(
        self,
        channel: str,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int,
        newest: bool = False,
    ) -> History | None: ...


class SharedReads:
    """Reads kept events; equal reads that are asked for while one is under way share its answer.

    A wave of sessions that come back to a channel with the same position costs one read.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._under_way: dict[tuple[str, int, int], asyncio.Task[History | None]] = {}

    async def after(self, channel: str, offset: int, limit: int) -> History | None:
        """Return the oldest `limit` kept events behind `offset`; None if there is no record.

        Raises BrokerUnavailable and ArchiveUnavailable. Safe to cancel: others who wait are not
        affected.
        """
        key = (channel, offset, limit)
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._reader.history(channel, after=offset, limit=limit)
            )
            self._under_way[key] = task
            task.add_done_callback(lambda _done: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for the reads under way; may be called twice."""
        await asyncio.gather(*self._under_way.values(), return_exceptions=True)
