"""Who is connected here? This file: the archive, the files and the times of `export`, `import`."""

import gzip
import sys
import zlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

from config.patterns import Pattern, PatternRejected
from config.settings import Settings
from pubsub.archive import Archive
from pubsub.archive_url import ArchiveTarget, parse_archive_url
from pubsub.errors import ArchiveUnavailable, ArchiveUrlRejected
from server.archiving import open_archive
from server.cli_output import CommandFailed

STANDARD: Final = "-"
# What reading a file that was compressed may raise beside OSError, which BadGzipFile is.
DAMAGED: Final = (EOFError, zlib.error)
_LEVEL: Final = 6
_LAST_MS: Final = 2**52


class Channels:
    """Which channels are meant: those that any of the patterns matches, or all without one."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns: list[Pattern] = []
        for text in patterns:
            try:
                self._patterns.append(Pattern(text))
            except PatternRejected as error:
                raise CommandFailed(f"--channel {text}: {error}") from None

    def __contains__(self, channel: str) -> bool:
        return not self._patterns or any(each.matches(channel) for each in self._patterns)


class Wanted(NamedTuple):
    """Which events are meant: since_ms <= time < until_ms."""

    channels: Channels
    since_ms: int | None
    until_ms: int | None


def parse_time(text: str | None, flag: str) -> int | None:
    """Return a time in ms since 1970, written so or as in ISO 8601; raises CommandFailed.

    Without an offset the latter is in UTC.
    """
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) != len("20260101"):
        found = int(text[:17])
    else:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            allowed = "ms since 1970, or a time such as 2026-01-31T12:00:00Z"
            raise CommandFailed(f"{flag} {text}: {allowed}") from None
        if at.tzinfo is None:
            at = at.replace(tzinfo=UTC)
        found = round(at.timestamp() * 1000)
    if not 0 <= found <= _LAST_MS:
        raise CommandFailed(f"{flag} {text}: not a time after 1970 that can be counted in ms")
    return found


def parse_address(url: str) -> ArchiveTarget:
    """Return where an archive is; raises CommandFailed."""
    try:
        return parse_archive_url(url)
    except ArchiveUrlRejected as error:
        raise CommandFailed(f"the archive's address: {error}") from None


@asynccontextmanager
async def started_archive(settings: Settings, url: str, *, make: bool) -> AsyncIterator[Archive]:
    """Open the archive at `url`, with `make` also a new one; raises CommandFailed."""
    target = parse_address(url)
    archive = open_archive(settings, url)
    if archive is None:
        raise CommandFailed("there is no archive: name one by archive.url or --archive-url")
    if not make and _is_missing(target):
        raise CommandFailed(f"{target}: there is no such file")
    try:
        await archive.start()
        yield archive
    except ArchiveUnavailable as error:
        raise CommandFailed(f"{target}: {error}") from None
    finally:
        await archive.close()


def _is_missing(target: ArchiveTarget) -> bool:
    return target.kind == "sqlite" and not Path(target.path).is_file()


def is_compressed(name: str) -> bool:
    """Say whether a file is compressed, which its name tells."""
    return name.endswith(".gz")


def open_source(name: str) -> tuple[BinaryIO, BinaryIO]:
    """Return what lines are read from, and the file itself; raises CommandFailed."""
    if name == STANDARD:
        return sys.stdin.buffer, sys.stdin.buffer
    try:
        file = Path(name).open("rb")
    except OSError as error:
        raise CommandFailed(f"{name}: {error.strerror}") from None
    return (cast(BinaryIO, gzip.open(file)) if is_compressed(name) else file), file


def open_target(path: Path, *, compressed: bool) -> BinaryIO:
    """Return what a new file is written through, for nobody else's eyes; raises OSError."""
    path.touch(0o600)
    if compressed:
        return cast(BinaryIO, gzip.open(path, "wb", compresslevel=_LEVEL))
    return path.open("wb")


def of_channels(events: int, channels: int) -> str:
    """Return both numbers in words."""
    several = "s" if events != 1 else ""
    more = "s" if channels != 1 else ""
    return f"{events:,} event{several} of {channels:,} channel{more}"
