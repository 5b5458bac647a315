"""Who is connected here? This file: `import`, which takes lines of `export` into an archive.

An event keeps its position, so what is there already stays as it is, and a second import changes
nothing. What was purged stays away.
"""

import asyncio
from collections.abc import Iterator
from typing import BinaryIO, Final

from config.checks import MEMORY
from config.rules import ChannelRules
from config.settings import Settings
from pubsub.archive import Archive, Entry, Kept
from pubsub.archive_check import is_open
from pubsub.errors import ArchiveUnavailable
from pubsub.event import Event
from server.cli_archive import (
    DAMAGED,
    STANDARD,
    Wanted,
    of_channels,
    open_source,
    parse_address,
    started_archive,
)
from server.cli_output import CommandFailed, put, put_json, tell
from server.cli_progress import Progress
from server.event_lines import LineRejected, read_line

# What is written at once, about.
_ENTRIES: Final = 500
_BYTES: Final = 2 * 1024 * 1024
_MOST_LINE_BYTES: Final = 1 << 26
# Wrong lines that are named one by one.
_NAMED: Final = 20


def import_events(
    settings: Settings, url: str, name: str, wanted: Wanted, *, strict: bool, as_json: bool
) -> int:
    """Take a file, or standard input for `-`, into an archive; raises CommandFailed.

    Returns 1 if any line was wrong; with `strict` the first one ends it.
    """
    target = parse_address(url)
    if target.kind == "sqlite" and settings.broker.url == MEMORY and is_open(target.path):
        # Its node knows where each channel stands, and would give the same offsets to others.
        raise CommandFailed(f"{target} is in use: stop the node first")
    source, file = open_source(name)
    try:
        return asyncio.run(
            Import(settings, name, wanted, strict=strict).run(url, source, file, as_json=as_json)
        )
    finally:
        if name != STANDARD:
            source.close()
            file.close()


class Import:
    """Checks lines and writes them in batches."""

    def __init__(self, settings: Settings, name: str, wanted: Wanted, *, strict: bool) -> None:
        self._settings = settings
        self._rules = ChannelRules(settings.channels)
        self._name = name
        self._wanted = wanted
        self._strict = strict
        self._depth = settings.limits.depth
        self._batch: list[Entry] = []
        self._batch_bytes = 0
        self._first_line = 0
        self._channel = ""
        # Channels are counted as export writes them, one after another: that takes no memory.
        self._channels = 0
        self._unruled = 0
        self._events = 0
        self._wrong = 0

    async def run(self, url: str, source: BinaryIO, file: BinaryIO, *, as_json: bool) -> int:
        """Import all lines, and write how it went."""
        progress = Progress()
        size = _size(file)
        async with started_archive(self._settings, url, make=True) as archive:
            try:
                for number, line in self._lines(source):
                    try:
                        entry = self._entry(line)
                    except LineRejected as error:
                        progress.end()
                        await self._refuse(archive, number, error)
                        continue
                    if entry is not None:
                        self._add(number, entry, len(line))
                    if len(self._batch) >= _ENTRIES or self._batch_bytes >= _BYTES:
                        await self._flush(archive, number)
                        progress.show(lambda: self._progress(file, size))
                await self._flush(archive, number=0)
            finally:
                progress.end()
        self._tell(as_json=as_json)
        return 1 if self._wrong else 0

    # ---- lines

    def _lines(self, source: BinaryIO) -> Iterator[tuple[int, bytes]]:
        number = 0
        while True:
            number += 1
            try:
                line = source.readline(_MOST_LINE_BYTES + 1)
            except DAMAGED as error:
                text = f"it is damaged ({error})"
                raise CommandFailed(f"{self._name}: line {number}: {text}") from None
            except OSError as error:
                said = error.strerror or error
                raise CommandFailed(f"{self._name}: line {number}: {said}") from None
            if not line:
                return
            if len(line) > _MOST_LINE_BYTES:
                raise CommandFailed(f"line {number} is longer than {_MOST_LINE_BYTES} bytes")
            if line.strip():
                yield number, line

    async def _refuse(self, archive: Archive, number: int, error: LineRejected) -> None:
        text = f"line {number} {error}"
        if self._strict:
            await self._flush(archive, number - 1)
            raise CommandFailed(f"{text}; what stands before it is imported")
        self._wrong += 1
        if self._wrong <= _NAMED:
            tell(text)

    def _entry(self, line: bytes) -> Entry | None:
        """Return what a line asks for, or None if it is not wanted; raises LineRejected."""
        found = read_line(line, depth=self._depth)
        channels, since_ms, until_ms = self._wanted
        early = since_ms is not None and found.time < since_ms
        late = until_ms is not None and found.time >= until_ms
        if early or late or found.channel not in channels:
            return None
        return self._kept(found) if isinstance(found, Event) else found

    def _kept(self, event: Event) -> Kept:
        rule = self._rules.rule(event.channel)
        if event.channel != self._channel:
            self._channel = event.channel
            self._channels += 1
            self._unruled += not rule.archive
        self._events += 1
        ttl_s = rule.archive_ttl_s
        return Kept(event, event.time + round(ttl_s * 1000) if ttl_s else 0)

    # ---- writing

    def _add(self, number: int, entry: Entry, size: int) -> None:
        if not self._batch:
            self._first_line = number
        self._batch.append(entry)
        self._batch_bytes += size

    async def _flush(self, archive: Archive, number: int) -> None:
        if not self._batch:
            return
        try:
            await archive.write(self._batch)
        except ArchiveUnavailable as error:
            where = f"lines {self._first_line} to {number}" if number else "the last lines"
            text = "import it again: what is there stays as it is"
            raise CommandFailed(f"{where} were not written: {error}; {text}") from None
        self._batch = []
        self._batch_bytes = 0

    # ---- telling

    def _progress(self, file: BinaryIO, size: int | None) -> str:
        text = of_channels(self._events, self._channels)
        return f"{text}, {file.tell() * 100 // size} %" if size else text

    def _tell(self, *, as_json: bool) -> None:
        if self._wrong > _NAMED:
            tell(f"and {self._wrong - _NAMED:,} more lines are wrong")
        if self._unruled:
            tell(
                f"warning: channels that these settings do not archive: {self._unruled:,}; nodes "
                "read the archive only where a channel's rule says `archive = true`"
            )
        if as_json:
            put_json(
                {"events": self._events, "channels": self._channels, "wrong_lines": self._wrong}
            )
        else:
            put(f"{of_channels(self._events, self._channels)} imported")


def _size(file: BinaryIO) -> int | None:
    """Return how long a file is, or None for what has no length."""
    if not file.seekable():
        return None
    at = file.tell()
    size = file.seek(0, 2)
    file.seek(at)
    return size
