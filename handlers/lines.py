"""How do bytes come in? This file: a stream of bytes cut into lines, in bounded memory (pure)."""

from collections.abc import Iterator


class LineTooLong(Exception):
    """A line was longer than allowed; the rest of it is passed over."""


class LineCutter:
    """Cuts what is fed into lines without their ends; empty lines are passed over.

    A line over `limit` bytes, its end not counted, takes no more memory than that: its place is
    taken by LineTooLong, and the lines after it come as usual. Blanks around a line are left out.
    """

    __slots__ = ("_limit", "_rest", "_skipping")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = b""
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | LineTooLong]:
        """Yield the lines that `data` completes; it has to be used up before the next call."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if self._skipping:
                self._skipping = False
            else:
                yield from self._line(data[start:end])
            start = end + 1
        if not self._skipping:
            # A piece at a time may come: what waits is only ever as long as one line.
            self._rest += data[start:]
            if len(self._rest.removesuffix(b"\r")) > self._limit:
                self._rest = b""
                self._skipping = True
                yield LineTooLong()

    def end(self) -> Iterator[bytes | LineTooLong]:
        """Yield the last line, if it has no end of its own."""
        if not self._skipping:
            yield from self._line(b"")

    def _line(self, data: bytes) -> Iterator[bytes | LineTooLong]:
        line, self._rest = (self._rest + data).removesuffix(b"\r"), b""
        if len(line) > self._limit:
            yield LineTooLong()
        elif line := line.strip(b" \t\r"):
            yield line
