"""Who is connected here, and what may they do? This file: how far long work has come.

On a terminal it is one line on standard error that changes; elsewhere there is none.
"""

import sys
import time
from collections.abc import Callable
from typing import Final

_EVERY_S: Final = 0.2
_CLEAR: Final = "\r\x1b[K"


class Progress:
    """Shows a text from time to time; `end` takes it away."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._shown = False
        self._next = 0.0
        self._terminal = sys.stderr.isatty()

    def show(self, text: Callable[[], str]) -> None:
        """Show what `text` returns, if it is time for it."""
        if self._terminal and (now := self._monotonic()) >= self._next:
            self._next = now + _EVERY_S
            self._shown = True
            print(f"{_CLEAR}{text()}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Take it away, lest what follows stands behind it; may be called twice."""
        if self._shown:
            self._shown = False
            print(_CLEAR, end="", file=sys.stderr, flush=True)
