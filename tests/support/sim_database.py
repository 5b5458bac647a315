"""The archive of a simulated world: slow, away, and now and then it does not say what it did."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from kept_entries import KeptEntries, NotRead
from pubsub.archive import Entry
from pubsub.errors import ArchiveUnavailable
from sim_scheduler import Process, Scheduler


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


class Database(KeptEntries):
    """What all nodes write to; `log` has events and gaps in the order in which each came first."""

    def __init__(self, scheduler: Scheduler, troubles: Troubles) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.rng = scheduler.rng
        self.troubles = troubles
        self.away = False
        self.writes = 0
        self.log: list[Entry] = []

    def write(self, entries: Sequence[Entry]) -> None:
        self.writes += 1
        self.log += [entry for entry in entries if self.take(entry)]


class SimArchive(NotRead):
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


def _settle(answer: "asyncio.Future[None]", good: bool) -> None:
    if answer.done():
        return
    if good:
        answer.set_result(None)
    else:
        answer.set_exception(ArchiveUnavailable("it did not answer"))
