"""Who is connected here? This file: the archive that the settings name, and its cleaning."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from config.settings import Settings
from pubsub.archive import Archive
from pubsub.archive_url import parse_archive_url
from pubsub.errors import PubSubError
from pubsub.schedules import Schedules
from pubsub.sqlite_archive import SqliteArchive

_log = logging.getLogger(__name__)

_SWEEP_EVERY_S: Final = 30.0
_SWEEP: Final = 1_000
_BETWEEN_S: Final = 0.02


class Store(Archive, Protocol):
    """An archive that keeps schedules too."""

    @property
    def schedules(self) -> Schedules: ...


def open_archive(settings: Settings, url: str | None = None) -> Store | None:
    """Return the archive that `url`, or else `archive.url`, names, or None; it is not started yet.

    Raises ArchiveUrlRejected.
    """
    target = parse_archive_url(settings.archive.url if url is None else url)
    if target.kind == "sqlite":
        return _sqlite(settings, target.path)
    if target.kind == "mongodb":
        # Motor is loaded by nodes that use it only.
        from pubsub.mongo_archive import MongoArchive

        return MongoArchive(
            target.url, target.database, call_timeout_s=settings.archive.call_timeout_s
        )
    return None


def open_sqlite(settings: Settings) -> SqliteArchive:
    """Return the archive in a file; it is not started yet."""
    return _sqlite(settings, parse_archive_url(settings.archive.url).path)


def _sqlite(settings: Settings, path: str) -> SqliteArchive:
    return SqliteArchive(
        path,
        # As long as a broker in memory remembers them.
        keep_ids_s=2 * settings.broker.idempotency_window_s,
        position_ttl_s=settings.broker.position_ttl_s,
        call_timeout_s=settings.archive.call_timeout_s,
    )


class Retention:
    """Deletes what has expired from an archive, in small pieces; safe on several nodes at once."""

    def __init__(
        self, archive: Archive, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self.swept = 0
        self._archive = archive
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; called once."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._sleep(random.uniform(0.5, 1) * _SWEEP_EVERY_S)  # noqa: S311
            try:
                while True:
                    swept = await self._archive.sweep(time.time_ns() // 1_000_000, _SWEEP)
                    self.swept += swept
                    if swept < _SWEEP:
                        break
                    # Others write in between.
                    await self._sleep(_BETWEEN_S)
            except PubSubError as error:
                _log.info("the archive was not swept: %s", error)
            except Exception:
                _log.exception("sweeping the archive failed")

    async def close(self) -> None:
        """Stop; may be called twice."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
