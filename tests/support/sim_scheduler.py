"""A world of processes that runs in one thread, in virtual time, in an order that a seed decides.

Each process has an asyncio event loop of its own, on which the product runs unmodified. What a loop
cannot foresee is what the seed decides, and nothing else:

- which of the processes gets its next turn, so how far each of them is behind the others;
- in which turn what comes over a network arrives, and in which order. Lines are like connections:
  what was sent on one comes in order, and any of them may be arbitrarily late against all others;
- how much time passes, so whether a timer is due before or after what is on its way.

Within a loop everything stays as asyncio promises: callbacks in the order of `call_soon`, what came
from outside behind what was ready, then the timers that are due. The product may rely on that. So
each order in which a run can go is one in which real processes can go, with real sockets.
"""

import asyncio
import logging
import random
import secrets
import selectors
import signal
import time
import weakref
from asyncio import _set_running_loop
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf
from typing import Any, Final, cast
from unittest import mock

WALL_S = 1_700_000_000.0
# How much of the processor's time a run may take: a hundred times what it takes.
MOST_WORK_S: Final = 10.0
_TURN_S = 1e-7
# What is due much later does not come before what waits for nothing is looked at.
_LEAP_S = 5.0


class Stuck(AssertionError):
    """What was waited for did not come, however much time passed."""


class Clock:
    """The time of all processes. Each look at it takes `look_s`, since work takes time."""

    __slots__ = ("look_s", "now")

    def __init__(self) -> None:
        self.now = 1_000.0
        self.look_s = 0.0

    def monotonic(self) -> float:
        self.now += self.look_s
        return self.now

    def wall(self) -> float:
        return WALL_S + self.monotonic()

    def wall_ms(self) -> int:
        return int((WALL_S + self.now) * 1000)


class _NeverWaits(selectors.SelectSelector):
    """Has nothing for its loop, and lets it go on."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """asyncio's own loop, but for the clock, and for whom it waits."""

    def __init__(self, clock: Clock) -> None:
        self._sim_clock = clock
        self.inner = cast(Any, self)
        # All tasks of all loops, which `asyncio.all_tasks` looks through, are very many.
        self._born: list[weakref.ref[asyncio.Task[Any]]] = []
        super().__init__(_NeverWaits())

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task = super().create_task(coro, **options)
        self._born.append(weakref.ref(task))
        return task

    def tasks(self) -> list[asyncio.Task[Any]]:
        """Return those that have not ended."""
        found = [task for each in self._born if (task := each()) and not task.done()]
        self._born = [weakref.ref(task) for task in found]
        return found

    def time(self) -> float:
        return self._sim_clock.monotonic()


class Process:
    """A process: its loop, and when that has something to do."""

    def __init__(self, scheduler: "Scheduler", name: str) -> None:
        self.name = name
        self.loop = VirtualLoop(scheduler.clock)
        self.loop.set_exception_handler(scheduler.on_exception)
        self.stalled = False
        self.dead = False
        self._clock = scheduler.clock
        # When the next turn makes sense.
        self.due = 0.0

    def call(self, work: Callable[..., object], *args: Any) -> None:
        """Let something arrive from outside: it is done in the process's next turn."""
        if not self.dead:
            self.loop.call_soon(work, *args)
            self.due = 0.0

    def turn(self, turns: int = 1) -> None:
        """One turn of the loop, or some in which nothing arrives."""
        inner = self.loop.inner
        # A world in which turns take no time may stand still, a moment before a timer is due.
        self._clock.now += _TURN_S
        # As `run_forever` does, which takes longer than a turn.
        _set_running_loop(self.loop)
        try:
            for _ in range(turns):
                inner._run_once()
                if not inner._ready:
                    break
        finally:
            _set_running_loop(None)
        if inner._ready:
            self.due = 0.0
        elif inner._scheduled:
            first = inner._scheduled[0]
            # The loop lets go of what was cancelled in its next turn.
            self.due = 0.0 if first.cancelled() else first.when()
        else:
            self.due = inf

    def end(self) -> None:
        """Cancel all that is left, and close the loop."""
        for _ in range(50):
            tasks = self.loop.tasks()
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            for _ in range(3):
                self.turn()
        self.loop.close()


class Line:
    """One direction of a connection: what is sent on it arrives in order, some time.

    Without a process it leads out of them all, and what arrives is done at once. While `held`
    nothing arrives.
    """

    __slots__ = ("_items", "_listed", "_process", "_scheduler", "held")

    def __init__(self, scheduler: "Scheduler", process: Process | None) -> None:
        self.held = False
        self._scheduler = scheduler
        self._process = process
        self._items: deque[Callable[[], object]] = deque()
        self._listed = False

    def send(self, work: Callable[[], object]) -> None:
        self._items.append(work)
        if not self._listed:
            self._listed = True
            self._scheduler.busy.append(self)

    def cut(self) -> None:
        """What is on its way does not arrive."""
        self._items.clear()

    def swap(self) -> None:
        """Let the last overtake the one before it, which no connection does."""
        if len(self._items) > 1:
            self._items[-1], self._items[-2] = self._items[-2], self._items[-1]

    def deliver(self) -> bool:
        """Let the next arrive; say whether there are more."""
        if self._items:
            work = self._items.popleft()
            if self._process is None:
                work()
            else:
                self._process.call(work)
        self._listed = bool(self._items)
        return self._listed


class Scheduler:
    """Decides what happens next. `hurry` is how often time passes though something could go on."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.clock = Clock()
        self.processes: list[Process] = []
        self.busy: list[Line] = []
        self.steps = 0
        self.hurry = 0.02
        self.trace: list[object] = []
        self.failures: list[str] = []

    def process(self, name: str) -> Process:
        process = Process(self, name)
        self.processes.append(process)
        return process

    def soon(self, process: Process | None, work: Callable[[], object]) -> None:
        """Let something arrive at a process (None: outside) on a line of its own."""
        Line(self, process).send(work)

    def on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(f"{context['message']}: {context.get('exception')!r}")

    # Going on

    def step(self) -> None:
        """One step of the world."""
        self.steps += 1
        rng, clock, busy = self.rng, self.clock, self.busy
        dice = rng.random()
        if dice < self.hurry:
            clock.now += rng.choice((0.0005, 0.005, 0.05, 0.5))
        now = clock.now
        ready = [p for p in self.processes if p.due <= now and not (p.stalled or p.dead)]
        if busy and (not ready or dice < 0.5):
            place = int(rng.random() * len(busy))
            line = busy[place]
            if not line.held:
                if not line.deliver():
                    last = busy.pop()
                    if last is not line:
                        busy[place] = last
                return
        if ready:
            # A loop may have had several turns before the next message comes.
            ready[int(rng.random() * len(ready))].turn(1 if dice < 0.75 else 6)
        elif not any(not line.held for line in busy):
            due = min((p.due for p in self.processes if not (p.stalled or p.dead)), default=inf)
            clock.now = min(due, clock.now + _LEAP_S) if due < inf else clock.now + 0.1

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step()

    def act(self, choices: Mapping[Any, float], pauses: Sequence[int]) -> None:
        """Do one of some things, by their weights, and go on for one of some numbers of steps."""
        (action,) = self.rng.choices(list(choices), list(choices.values()))
        self.note(action.__name__)
        action()
        self.run(self.rng.choice(pauses))

    def run_for(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.step()

    def run_until(
        self, condition: Callable[[], object], limit_s: float, what: str, every: int = 5
    ) -> None:
        """Go on until `condition` holds, which it must within a time.

        It is looked at now and then only, every so many steps: it costs more than they do.
        """
        end = self.clock.now + limit_s
        while not condition():
            self.run(every)
            if self.clock.now > end:
                raise Stuck(f"within {limit_s} s: {what}")

    def call(self, process: Process, work: Callable[[], Any]) -> Any:
        """Run something on the loop of a process, in a turn of its own; return what it returns."""
        answers: list[Any] = []
        process.call(lambda: answers.append(work()))
        while not answers:
            process.turn()
            if self.failures:
                raise AssertionError(self.failures)
        return answers[0]

    def close(self) -> None:
        """End all processes."""
        for process in self.processes:
            process.end()

    def note(self, *what: object) -> None:
        """Put something into the trace, by which two runs are compared."""
        self.trace.append(what)


class _Log(logging.Handler):
    """Takes what the product logs: an error there is one of the run."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(logging.ERROR)
        self._scheduler = scheduler

    def emit(self, record: logging.LogRecord) -> None:
        self._scheduler.failures.append(logging.Formatter("%(name)s: %(message)s").format(record))


@contextmanager
def virtual(seed: int) -> Iterator[Scheduler]:
    """A world in which nothing comes from outside: neither time nor chance."""
    scheduler = Scheduler(seed)
    clock, tokens = scheduler.clock, random.Random(~seed)

    def token_hex(size: int = 32) -> str:
        return f"{tokens.getrandbits(8 * size):0{2 * size}x}"

    before = random.getstate()
    random.seed(seed)
    log = _Log(scheduler)
    logging.getLogger().addHandler(log)
    try:
        with (
            mock.patch.object(time, "monotonic", clock.monotonic),
            mock.patch.object(time, "time", clock.wall),
            mock.patch.object(secrets, "token_hex", token_hex),
        ):
            try:
                yield scheduler
            finally:
                scheduler.close()
    finally:
        logging.getLogger().removeHandler(log)
        random.setstate(before)


@contextmanager
def limited(scheduler: Scheduler, most_s: float) -> Iterator[None]:
    """Let a turn of a loop that never ends be a failure, which nothing else can say.

    `most_s` is how much of the processor's time all that is within may take.
    """

    def interrupt(_signal: int, _frame: object) -> None:
        scheduler.failures.append("a turn does not end")
        raise AssertionError("a turn does not end")

    before = signal.signal(signal.SIGVTALRM, interrupt)
    # Again and again: what is interrupted may begin anew.
    signal.setitimer(signal.ITIMER_VIRTUAL, most_s, most_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


class PlayedWorld:
    """A world that runs, comes to rest, and then is checked."""

    scheduler: Scheduler

    def play(self) -> None:
        """Run it all; raises AssertionError if the promise was broken."""
        with limited(self.scheduler, MOST_WORK_S):
            self.run()
            self.settle()
            self.check()

    def run(self) -> None:
        """Let things happen."""
        raise NotImplementedError

    def settle(self) -> None:
        """End all faults, and wait until nothing is left to do."""
        raise NotImplementedError

    def check(self) -> None:
        """Raise AssertionError if the promise was broken."""
        raise NotImplementedError
