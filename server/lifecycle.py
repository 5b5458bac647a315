"""Who is connected here? This file: the life of a node, and how it says goodbye to its sessions."""

import asyncio
import random
from collections.abc import Callable, Iterable
from enum import Enum

from config.serving import DrainSettings
from server.closing import Closing
from server.session import Session

_BATCH_EVERY_S = 0.1


class Phase(Enum):
    """Where a node stands in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"


class Lifecycle:
    """Knows whether the node should get new work, and counts the requests in flight.

    `checks` are asked by readiness: each returns None or a plain phrase that says what is missing.
    """

    def __init__(self, settings: DrainSettings) -> None:
        self._settings = settings
        self.phase = Phase.STARTING
        self.checks: list[Callable[[], str | None]] = []
        self._requests = 0
        self._idle: asyncio.Event | None = None

    @property
    def draining(self) -> bool:
        """Whether responses should say `Connection: close`."""
        return self.phase in (Phase.DRAINING, Phase.STOPPED)

    def why_not_ready(self) -> list[str]:
        """Return what keeps the node from being ready; empty if it is."""
        found = [phrase for check in self.checks if (phrase := check()) is not None]
        if self.phase is not Phase.READY:
            found.insert(0, self.phase.value)
        return found

    def request_began(self) -> None:
        """Count a request in flight."""
        self._requests += 1

    def request_ended(self) -> None:
        """Count it out; a drain may wait for this."""
        self._requests -= 1
        if self._requests == 0 and self._idle is not None:
            self._idle.set()

    async def requests_done(self) -> None:
        """Wait until no request is in flight."""
        while self._requests:
            if self._idle is None or self._idle.is_set():
                self._idle = asyncio.Event()
            await self._idle.wait()

    async def dismiss(self, sessions: Iterable[Session]) -> None:
        """Tell sessions to come back elsewhere, in paced batches, each at its own time.

        The hint is jittered, so that they do not all reach the other nodes at once.
        """
        batch = self._settings.batch
        spread = self._settings.retry_spread_ms
        waiting = list(sessions)
        for start in range(0, len(waiting), batch):
            if start:
                await asyncio.sleep(_BATCH_EVERY_S)
            for session in waiting[start : start + batch]:
                session.end(Closing.DRAINING, retry_in_ms=random.randint(0, spread))  # noqa: S311
