"""The SQLite database of a simulated world: slow, away, and not always sure of what it did.

The archive and its SQL are the product's own, over a database in memory, and so is what waits for
its threads; only these are none. Whatever one of them is given is done in a turn of a process of
the world, one after the other and all or nothing, some time after it was begun, and is answered
some time later. What was given up before it was begun is not done; what a process that dies has not
got done yet never is.
"""

import asyncio
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final
from unittest import mock

from pubsub.sqlite_schema import migrate
from sim_database import Troubles
from sim_scheduler import Line, Process, Scheduler

# What is noted of the tables, as it is written.
_NOTED: Final = (
    ("event", "INSERT ON main.events", 'NEW.channel, NEW.epoch, NEW."offset", NEW."check", NEW.id'),
    ("record", "INSERT ON main.channels", 'NEW.channel, NEW.epoch, NEW."offset", NEW."check"'),
    ("gone", "DELETE ON main.channels", "OLD.channel"),
    ("swept", "DELETE ON main.events", 'OLD.channel, OLD.epoch, OLD."offset", OLD."check"'),
)

Note = tuple[Any, ...]


class _Connection(sqlite3.Connection):
    """One for all threads and all lives."""

    def close(self) -> None:
        pass

    def set_progress_handler(self, *_args: object) -> None:
        pass


class Disk:
    """What all lives of a node write to; `on_note` is told of each change that was committed."""

    def __init__(self, scheduler: Scheduler, troubles: Troubles) -> None:
        self.scheduler = scheduler
        self.rng: random.Random = scheduler.rng
        self.troubles = troubles
        self.process = scheduler.process("disk")
        self.away = self.mute = False
        self.on_note: Callable[[Note], None] = lambda _note: None
        self.refused = self.forgotten = self.slow = self.dropped = 0
        self._notes: list[Note] = []
        self._connection = sqlite3.connect(":memory:", isolation_level=None, factory=_Connection)
        migrate(self._connection)
        self._connection.create_function("note", -1, self._note)
        for name, event, values in _NOTED:
            self._connection.execute(
                f"CREATE TEMP TRIGGER note_{name} AFTER {event} "
                f"BEGIN SELECT note('{name}', {values}); END"
            )

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Let archives be opened on this disk, whatever path they name."""
        with ExitStack() as stack:
            for place, new in (
                ("pubsub.sqlite_thread.ThreadPoolExecutor", self._start_thread),
                ("pubsub.sqlite_archive._open_writer", self._open),
                ("pubsub.sqlite_archive._open_reader", self._open),
            ):
                stack.enter_context(mock.patch(place, new))
            try:
                yield
            finally:
                sqlite3.Connection.close(self._connection)

    def look(self, sql: str, *values: object) -> list[Any]:
        """Ask the database, as nobody of the world does."""
        return self._connection.execute(sql, values).fetchall()

    def delay_s(self) -> float:
        if self.rng.random() < self.troubles.slow:
            self.slow += 1
            return self.rng.choice((0.3, 1.5, 3.0, 7.0))
        return self.rng.choice((0.0, 0.0, 0.001, 0.02))

    def carry_out(self, work: Callable[[], object]) -> Callable[["Future[Any]"], None]:
        """Do something, if that is possible; return what answers for it."""
        # A file that is closed is closed.
        dice = 1.0 if getattr(work, "__name__", "") == "_close" else self.rng.random()
        if dice < 1.0 and (self.away or dice < self.troubles.refuse):
            self.refused += 1
            return partial(_fail, sqlite3.OperationalError("disk I/O error"))
        try:
            result = work()
        except Exception as error:
            self._notes.clear()
            return partial(_fail, error)
        notes, self._notes = self._notes, []
        for note in notes:
            self.on_note(note)
        if dice < 1.0 and (self.mute or dice < self.troubles.refuse + self.troubles.forget):
            self.forgotten += bool(notes)
            return partial(_fail, sqlite3.OperationalError("disk I/O error, though it was done"))
        return partial(_answer, result)

    def _note(self, *note: Any) -> None:
        self._notes.append(note)

    def _open(self, *_args: object) -> sqlite3.Connection:
        return self._connection

    def _start_thread(self, _size: int, **_options: object) -> "_Thread":
        loop = asyncio.get_running_loop()
        return _Thread(self, next(each for each in self.scheduler.processes if each.loop is loop))


class _Thread:
    """A thread of a process, as an executor of one."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process
        self._jobs: deque[tuple[Callable[[], object], Future[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._answers = Line(disk.scheduler, process)

    def submit(self, work: Callable[[], object]) -> "Future[Any]":
        future: Future[Any] = Future()
        self._jobs.append((work, future))
        self._disk.process.call(self._wake)
        return future

    def shutdown(self, *, wait: bool) -> None:
        assert not wait

    # ---- in the disk's process

    def _wake(self) -> None:
        if self._task is None:
            self._task = self._disk.process.loop.create_task(self._work())

    async def _work(self) -> None:
        disk = self._disk
        while self._jobs:
            work, future = self._jobs.popleft()
            if not future.set_running_or_notify_cancel():
                disk.dropped += 1
                continue
            await asyncio.sleep(disk.delay_s())
            if self._process.dead:
                return
            answer = disk.carry_out(work)
            await asyncio.sleep(disk.delay_s())
            self._answers.send(partial(answer, future))
        self._task = None


def _answer(result: object, future: "Future[Any]") -> None:
    future.set_result(result)


def _fail(error: Exception, future: "Future[Any]") -> None:
    future.set_exception(error)
