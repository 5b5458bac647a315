"""Who is connected here? This file: `export`, which writes archived events as lines of JSON.

What goes to a file is written beside it, in `FILE.part`, and gets its name when it is whole.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO, Final

from config.settings import Settings
from pubsub.archive import Archive, Query, Unarchived
from pubsub.event import Event
from server.cli_archive import (
    STANDARD,
    Wanted,
    is_compressed,
    of_channels,
    open_target,
    started_archive,
)
from server.cli_output import CommandFailed, put, put_json, tell
from server.cli_progress import Progress
from server.event_lines import LineRejected, Place, pack_line, read_place

_PAGE: Final = 500
_NAMES: Final = 100
# As many ranges as an archive returns at once.
_RANGES: Final = 1_000


class Export:
    """Reads an archive channel by channel, in pages; what comes meanwhile may be in it or not.

    - `begin`: where to begin, if not with the first channel.
    """

    def __init__(self, archive: Archive, wanted: Wanted, begin: Place | None = None) -> None:
        self.channels = 0
        self._archive = archive
        self._wanted = wanted
        self._begin = begin

    async def entries(self) -> AsyncIterator[Event | Unarchived]:
        """Yield all that is wanted, by channel: what is missing, then events by offset."""
        begin = self._begin
        if begin is not None:
            self.channels += 1
            if not begin.offset:
                async for missing in self._missing(begin.channel):
                    yield missing
            async for event in self._events(begin.channel, max(0, begin.offset - 1)):
                yield event
        async for channel in self._names("" if begin is None else begin.channel):
            first = True
            async for missing in self._missing(channel):
                yield missing
            async for event in self._events(channel, 0):
                self.channels += first
                first = False
                yield event

    async def _names(self, after: str) -> AsyncIterator[str]:
        while names := await self._archive.channels(after=after, limit=_NAMES):
            after = names[-1]
            for name in names:
                if name in self._wanted.channels:
                    yield name

    async def _missing(self, channel: str) -> AsyncIterator[Unarchived]:
        _, since_ms, until_ms = self._wanted
        after = 0
        while True:
            found = await self._archive.unarchived(channel, after=after)
            for each in found:
                early = since_ms is not None and each.time < since_ms
                late = until_ms is not None and each.time >= until_ms
                if not early and not late:
                    yield each
            if len(found) < _RANGES:
                return
            after = found[-1].last

    async def _events(self, channel: str, after: int) -> AsyncIterator[Event]:
        _, since_ms, until_ms = self._wanted
        size = _PAGE
        while True:
            query = Query(
                channel=channel, after=after, since_ms=since_ms, until_ms=until_ms, limit=size
            )
            events = await self._archive.read(query)
            whole = events
            if len(events) == size:
                # A fail-over leaves others of the same offset; they come together.
                last = events[-1].position.offset
                whole = [each for each in events if each.position.offset < last]
                if not whole:
                    size *= 2
                    continue
                after, size = last - 1, _PAGE
            for event in whole:
                yield event
            if whole is events:
                return


def export(
    settings: Settings, url: str, name: str, wanted: Wanted, *, resume: bool, as_json: bool
) -> int:
    """Write what is wanted to a file, or to standard output for `-`; raises CommandFailed.

    With `resume` it goes on where an export to the same file was broken off.
    """
    if name == STANDARD:
        if resume:
            raise CommandFailed("--resume goes on with a file: name it")
        asyncio.run(_write(settings, url, wanted, sys.stdout.buffer, None, as_json=as_json))
        return 0
    target = Path(name)
    part = Path(f"{name}.part")
    try:
        if resume and is_compressed(name):
            raise CommandFailed("--resume goes on with a file that is not compressed: leave it out")
        begin = _cut(part) if resume and part.exists() else None
        with (
            part.open("ab") if begin else open_target(part, compressed=is_compressed(name)) as file
        ):
            asyncio.run(_write(settings, url, wanted, file, begin, as_json=as_json))
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(target)
    except OSError as error:
        raise CommandFailed(f"{name}: {error.strerror or error}") from None
    except KeyboardInterrupt:
        if part.exists() and not is_compressed(name):
            tell(f"interrupted; --resume goes on with {part}")
        raise
    return 0


async def _write(
    settings: Settings,
    url: str,
    wanted: Wanted,
    file: BinaryIO,
    begin: Place | None,
    *,
    as_json: bool,
) -> None:
    progress = Progress()
    events = missing = 0
    async with started_archive(settings, url, make=False) as archive:
        exported = Export(archive, wanted, begin)
        try:
            async for entry in exported.entries():
                file.write(pack_line(entry))
                if isinstance(entry, Unarchived):
                    missing += 1
                    continue
                events += 1
                channel = entry.channel
                progress.show(
                    lambda: f"{of_channels(events, exported.channels)}, at {channel}"  # noqa: B023
                )
            file.flush()
        finally:
            progress.end()
    summary = {"events": events, "channels": exported.channels, "missing_ranges": missing}
    _tell_summary(summary, to_stdout=file is not sys.stdout.buffer, as_json=as_json)


def _tell_summary(summary: dict[str, int], *, to_stdout: bool, as_json: bool) -> None:
    text = f"{of_channels(summary['events'], summary['channels'])} exported"
    if not to_stdout:
        # There are the events.
        tell(text)
    elif as_json:
        put_json(summary)
    else:
        put(text)


def _cut(part: Path) -> Place | None:
    """Cut a file behind the last place that is surely whole, and return where that ends.

    Whoever goes on there writes the last offset's events anew.
    """
    place: Place | None = None
    start = end = 0
    with part.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                found = read_place(line)
            except LineRejected as error:
                raise CommandFailed(f"{part}: a line {error}; delete it and begin anew") from None
            if found != place:
                place, start = found, end
            end += len(line)
        file.truncate(start)
    return place
