"""A wall clock that can jump, for processes that are started with it; by libfaketime."""

from functools import cache
from glob import glob
from pathlib import Path

import pytest


@cache
def find_libfaketime() -> str | None:
    """Return the path of the library for programs with threads, or None."""
    found = glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    return found[0] if found else None


class FakeClock:
    """The clock of whoever has `environ`: right at first, `jump` puts it off.

    Monotonic clocks go on as ever. Skips where libfaketime is not installed.
    """

    def __init__(self, folder: Path) -> None:
        library = find_libfaketime()
        if library is None:
            pytest.skip("there is no libfaketime")
        self._file = folder / "clock"
        self.jump(0)
        self.environ = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, seconds: int) -> None:
        """Put the clock so many seconds ahead (or behind), from now on."""
        # In one step: nobody is to read half of it.
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}s\n")
        new.replace(self._file)
