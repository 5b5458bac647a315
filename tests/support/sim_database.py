"""The archive of a simulated world: slow, away, and now and then it does not say what it did."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pubsub.archive import Entry, Kept, Purged, Query, Unarchived
from pubsub.errors import ArchiveUnavailable
from pubsub.event import Event
from sim_scheduler import Process, Scheduler

Key = tuple[str, str, int, str]


@dataclass(slots=True)
class Troubles:
    """How often writes go wrong, each from 0 to 1."""

    # It is not done; a part of it is, or all, and nobody is told; it takes long.
    refuse: float = 0.0
    part: float = 0.0
    forget: float = 0.0
    slow: float = 0.0

    @classmethod
    def draw(cls, rng: random.Random) -> "Troubles":
        rate = rng.choice((0.0, 0.2, 0.5))
        return cls(*(rate * rng.random() for _ in range(4)))

    def heal(self) -> None:
        self.refuse = self.part = self.forget = self.slow = 0.0


class Database:
    """What all nodes write to; see `pubsub.archive.Archive` for what it promises."""

    def __init__(self, scheduler: Scheduler, troubles: Troubles) -> None:
        self.scheduler = scheduler
        self.rng = scheduler.rng
        self.troubles = troubles
        self.away = False
        self.writes = 0
        self.kept: dict[Key, Kept] = {}
        self.floors: dict[str, int] = {}
        self.gaps: dict[str, list[Unarchived]] = {}
        # Events, and gaps, in the order in which each came first.
        self.log: list[Entry] = []

    def write(self, entries: Sequence[Entry]) -> None:
        self.writes += 1
        for entry in entries:
            self._take(entry)

    def _take(self, entry: Entry) -> None:
        if isinstance(entry, Purged):
            floor = max(self.floors.get(entry.channel, 0), entry.floor.offset)
            self.floors[entry.channel] = floor
            for key in [k for k in self.kept if k[0] == entry.channel and k[2] <= floor]:
                del self.kept[key]
        elif isinstance(entry, Unarchived):
            told = self.gaps.setdefault(entry.channel, [])
            if entry not in told:
                told.append(entry)
                self.log.append(entry)
        else:
            channel, at = entry.event.channel, entry.event.position
            key = (channel, at.epoch, at.offset, at.check)
            if at.offset > self.floors.get(channel, 0) and key not in self.kept:
                self.kept[key] = entry
                self.log.append(entry)


class SimArchive:
    """How one node reaches it."""

    def __init__(self, database: Database, process: Process) -> None:
        self._database = database
        self._process = process

    async def start(self) -> None:
        await self._ask([])

    async def write(self, entries: Sequence[Entry]) -> None:
        await self._ask(list(entries))

    async def _ask(self, entries: list[Entry]) -> None:
        database, rng = self._database, self._database.rng
        if rng.random() < database.troubles.slow:
            await asyncio.sleep(rng.choice((0.1, 2.0, 12.0)))
        answer: asyncio.Future[None] = self._process.loop.create_future()
        database.scheduler.soon(None, partial(self._arrive, entries, answer))
        await answer

    def _arrive(self, entries: list[Entry], answer: "asyncio.Future[None]") -> None:
        """What a dead process has sent arrives nonetheless."""
        database, troubles = self._database, self._database.troubles
        dice = database.rng.random()
        good = False
        if database.away or dice < troubles.refuse:
            pass
        elif dice < troubles.refuse + troubles.part:
            database.write(entries[: database.rng.randint(0, len(entries))])
        else:
            database.write(entries)
            good = dice >= troubles.refuse + troubles.part + troubles.forget
        database.scheduler.soon(self._process, partial(_settle, answer, good))

    async def read(self, query: Query) -> list[Event]:
        raise NotImplementedError

    async def unarchived(
        self, channel: str, *, after: int = 0, before: int | None = None
    ) -> list[Unarchived]:
        raise NotImplementedError

    async def channels(self, *, prefix: str = "", after: str = "", limit: int) -> list[str]:
        raise NotImplementedError

    async def sweep(self, now_ms: int, limit: int) -> int:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def _settle(answer: "asyncio.Future[None]", good: bool) -> None:
    if answer.done():
        return
    if good:
        answer.set_result(None)
    else:
        answer.set_exception(ArchiveUnavailable("it did not answer"))
