"""Who is connected here? This file: what one of several workers has of its own.

Settings that differ from the others', and the tie to the supervisor in `server.workers`.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from config.settings import Settings, dev_origins
from config.sources import changed
from server.signals import HANDLED, STOP, handled_signals

_log = logging.getLogger("galecast")


class Tie:
    """What ties a worker to its supervisor: its index, and the worker's ends of the pipes.

    `ticket_secret` is the same for all workers, also for those that are started later.
    """

    __slots__ = ("_alive", "_ready", "index", "ticket_secret")

    def __init__(self, index: int, alive: int, ready: int, ticket_secret: bytes) -> None:
        self.index = index
        self.ticket_secret = ticket_secret
        self._alive = alive
        self._ready = ready

    @contextmanager
    def hold(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        stop: Callable[[], None],
        hurry: Callable[[], None],
        reload: Callable[[], None],
    ) -> Iterator[None]:
        """While the block runs, call `stop` when told to end or left alone, `hurry` if at once.

        SIGTERM is no hurry however often it comes: a terminal or a service manager may signal
        every process, and the supervisor passes on what it got. SIGQUIT is.
        """

        def on_alone() -> None:
            loop.remove_reader(self._alive)
            _log.warning("the supervisor is gone")
            stop()

        handlers = {**dict.fromkeys(STOP, stop), signal.SIGQUIT: hurry, signal.SIGHUP: reload}
        with handled_signals(loop, handlers):
            # They were held back since the fork, when there was nobody yet to handle them.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            loop.add_reader(self._alive, on_alone)
            yield

    def say_ready(self) -> None:
        """Tell the supervisor that this worker listens."""
        # Nobody may be there to hear it.
        with suppress(OSError):
            os.write(self._ready, os.getpid().to_bytes(4, "big"))


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What is different, for one worker, from the settings that all have in common."""

    index: int
    port: int
    node: str
    broker_url: str | None

    def of(self, settings: Settings) -> Settings:
        """Return the settings of this worker."""
        changes: dict[str, object] = {"node": self.node, "port": self.port}
        if settings.admin_port:
            changes["admin_port"] = settings.admin_port + self.index
        if self.broker_url is not None:
            changes["broker.url"] = self.broker_url
        if settings.dev and not settings.port:
            changes["origins"] = settings.origins + dev_origins(self.port)
        return changed(settings, changes)
