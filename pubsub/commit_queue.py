"""How does an event get its position? This file: what waits for a commit, and takes its turn.

Publishes that wait while a commit runs go into the next one together; other steps that change where
a channel stands come between commits, in the order in which they were asked for.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from pubsub.errors import ArchiveUnavailable, BrokerUnavailable, PubSubError
from pubsub.event import Draft, Published

_log = logging.getLogger(__name__)

# What goes into one commit, about.
MOST_EVENTS: Final = 2_000
_MOST_BYTES: Final = 4 * 1024 * 1024
# What may wait for the next ones; more is refused.
_MOST_WAITING: Final = 20_000
_MOST_WAITING_BYTES: Final = 64 * 1024 * 1024
_EVENT_BYTES: Final = 256
_CLOSE_S: Final = 5.0

_T = TypeVar("_T")
Answers = list[Published | PubSubError]


class _Waiting(Generic[_T]):
    """What somebody waits for; whoever does may give up."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

    def answer(self, answer: _T) -> None:
        """Give the answer, if anybody still waits."""
        if not self.done.done():
            self.done.set_result(answer)

    def fail(self, error: PubSubError) -> None:
        """Say that it failed, if anybody still waits."""
        if not self.done.done():
            self.done.set_exception(error)
            # Whoever waited for it may have given up.
            self.done.exception()


class Publish(_Waiting[Answers]):
    """Events that wait for a commit."""

    __slots__ = ("drafts", "size")

    def __init__(self, drafts: Sequence[Draft]) -> None:
        super().__init__()
        self.drafts = drafts
        self.size = sum(len(draft.data) + _EVENT_BYTES for draft in drafts)


class _Step(_Waiting[Any]):
    """What takes its turn between commits, since it changes where a channel stands."""

    __slots__ = ("work",)

    def __init__(self, work: Callable[[], Awaitable[Any]]) -> None:
        super().__init__()
        self.work = work


class CommitQueue:
    """Hands groups of publishes to `commit`, one after the other, which answers each of them.

    `call_timeout_s` is how long somebody waits for an answer.
    """

    def __init__(
        self, commit: Callable[[Sequence[Publish]], Awaitable[None]], call_timeout_s: float
    ) -> None:
        self.events = 0
        self._commit = commit
        self._call_timeout_s = call_timeout_s
        self._waiting: deque[Publish | _Step] = deque()
        self._bytes = 0
        self._some = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        self._closed = False

    def start(self) -> None:
        """Begin to work, on the running loop."""
        self._worker = asyncio.get_running_loop().create_task(self._work())

    async def close(self) -> None:
        """Finish what waits, a few seconds at most, and refuse the rest."""
        worker, self._worker = self._worker, None
        self._closed = True
        if worker is not None:
            self._some.set()
            _done, late = await asyncio.wait([worker], timeout=_CLOSE_S)
            if late:
                worker.cancel()
                await asyncio.wait([worker])
        while self._waiting:
            self._waiting.popleft().fail(BrokerUnavailable("the broker is closed"))

    async def publish(self, drafts: Sequence[Draft]) -> Answers:
        """Let events go into the next commit; raises PubSubError if that fails as a whole."""
        job = Publish(drafts)
        if (
            self.events + len(drafts) > _MOST_WAITING
            or self._bytes + job.size > _MOST_WAITING_BYTES
        ) and self._waiting:
            raise BrokerUnavailable("too many events wait for the archive")
        self.events += len(drafts)
        self._bytes += job.size
        answers: Answers = await self._answer(job)
        return answers

    async def in_turn(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do work between two commits, and return what it does; once begun, it is done."""
        answer: _T = await self._answer(_Step(work))
        return answer

    async def _answer(self, job: Publish | _Step) -> Any:
        self._waiting.append(job)
        self._some.set()
        try:
            async with asyncio.timeout(self._call_timeout_s):
                return await asyncio.shield(job.done)
        except TimeoutError:
            raise ArchiveUnavailable("the archive did not answer in time") from None
        finally:
            # What is not begun yet is left out then.
            job.done.cancel()

    async def _work(self) -> None:
        """Commit what waits, one group after the other."""
        while True:
            while not self._waiting:
                if self._closed:
                    return
                self._some.clear()
                await self._some.wait()
            first = self._waiting[0]
            if isinstance(first, _Step):
                self._waiting.popleft()
                # Nobody waits any more for what was given up before it was begun.
                if not first.done.cancelled():
                    await self._take_step(first)
            elif group := self._group():
                await self._commit(group)

    async def _take_step(self, step: _Step) -> None:
        try:
            answer = await step.work()
        except PubSubError as error:
            step.fail(error)
        except Exception:
            _log.exception("a step of the archive failed")
            step.fail(ArchiveUnavailable("something went wrong"))
        else:
            step.answer(answer)

    def _group(self) -> list[Publish]:
        """Take what goes into the next commit."""
        group: list[Publish] = []
        events = size = 0
        while self._waiting and (events < MOST_EVENTS and size < _MOST_BYTES):
            job = self._waiting[0]
            if isinstance(job, _Step):
                break
            self._waiting.popleft()
            self.events -= len(job.drafts)
            self._bytes -= job.size
            # Nobody waits any more for what was given up before it was begun.
            if not job.done.cancelled():
                group.append(job)
                events += len(job.drafts)
                size += job.size
        return group
