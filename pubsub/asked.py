"""How do nodes act as one? This file: an order in flight, and who has answered it."""

import asyncio
from collections.abc import Iterable
from typing import Final

from pubsub.control import Answers
from pubsub.errors import BrokerUnavailable

# Beyond any number of nodes: who else answers is not believed.
MOST_NODES: Final = 1_024


class Asked:
    """Gathers the answers to one order; made on the loop that waits for them."""

    __slots__ = ("_answers", "_done", "_expected")

    def __init__(self) -> None:
        self._answers: dict[str, bytes] = {}
        self._expected: frozenset[str] | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def expect(self, nodes: Iterable[str]) -> None:
        """Say who should answer; some may have done so already."""
        self._expected = frozenset(nodes)
        self._check()

    def take(self, node: str, answer: bytes) -> None:
        """Take an answer, the first of each node; one that is not expected counts too."""
        if len(self._answers) < MOST_NODES:
            self._answers.setdefault(node, answer)
            self._check()

    def fail(self, text: str) -> None:
        """Let `wait` raise BrokerUnavailable."""
        if not self._done.done():
            self._done.set_exception(BrokerUnavailable(text))
            # Nobody may be waiting yet, or any more.
            self._done.exception()

    async def wait(self, timeout_s: float) -> Answers:
        """Return what was answered as soon as all have, or else when the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._done
        except TimeoutError:
            pass
        expected = self._expected or frozenset()
        return Answers(dict(self._answers), tuple(sorted(expected - self._answers.keys())))

    def _check(self) -> None:
        expected = self._expected
        if expected is not None and expected <= self._answers.keys() and not self._done.done():
            self._done.set_result(None)
