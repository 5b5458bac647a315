"""The committed inputs of fuzz targets: one file for each, one input a line, as a bytes literal."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "corpus"
MOST_BYTES: Final = 4_000
"""About how large such a file may be."""


def inputs(name: str) -> list[bytes]:
    """Return the inputs of a target."""
    lines = (FOLDER / f"{name}.txt").read_text("ascii").splitlines()
    return [_literal(line) for line in lines]


def write(name: str, found: list[bytes]) -> None:
    """Put inputs in the place of those that a target has, the short ones first, up to a size."""
    kept, size = [], 0
    for line in sorted({repr(each) for each in found}, key=lambda line: (len(line), line)):
        size += len(line) + 1
        if size > MOST_BYTES:
            break
        kept.append(line)
    (FOLDER / f"{name}.txt").write_text("\n".join(kept) + "\n", "ascii")


def _literal(line: str) -> bytes:
    value = ast.literal_eval(line)
    assert isinstance(value, bytes), line
    return value
