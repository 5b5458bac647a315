"""Who is connected here, and what may they do? This file: what the commands say to a person."""

import sys
from collections.abc import Iterable
from typing import Any

import msgspec


class CommandFailed(Exception):
    """A command cannot do what it was asked for; the text is a sentence for whoever asked."""


def tell(text: str) -> None:
    """Say something beside the result, on standard error."""
    print(f"galecast: {plain(text)}", file=sys.stderr, flush=True)


def put(line: str) -> None:
    """Write one line of the result, for a person."""
    put_json_text(plain(line))


def put_json(value: Any) -> None:
    """Write a result as one line of JSON."""
    put_json_text(msgspec.json.encode(value).decode())


def put_json_text(line: str) -> None:
    """Write one line as it stands, at once: what reads it may wait for it."""
    print(line, flush=True)


def plain(text: str) -> str:
    """Return `text` with everything that cannot be printed escaped.

    An event or an error may hold control characters; a terminal would obey them.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else f"\\u{ord(each):04x}" for each in text)


def columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return rows as lines in which every column but the last is as wide as its widest cell."""
    kept = list(rows)
    widths = [max(map(len, column)) for column in zip(*kept, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in kept
    ]
