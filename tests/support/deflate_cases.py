"""The cases 12 and 13 of the Autobahn test suite, as data: sizes, fragments, and offers."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Of 12.*: sizes of messages, and of the fragments in which the largest go.
SIZES = (16, 64, 256, 1024, 4096, 8192, 16384, 32768, 65536, 131072)
FRAGMENTS = (256, 1024, 4096, 32768)

_WORDS = "subscribe publish presence history refresh connect channel position event".split()


def text(size: int, kind: str) -> str:
    """Return ASCII text that compresses well, somewhat, or hardly."""
    if kind == "zeros":
        return "0" * size
    source = random.Random(size)
    if kind == "words":
        return " ".join(source.choices(_WORDS, k=size // 4))[:size]
    return "".join(map(chr, source.choices(range(35, 92), k=size)))


@dataclass(frozen=True)
class Offer:
    """Case 13.*: what a client asks for, and whether a server like ours takes it up."""

    id: str
    header: str
    taken: bool


def offers() -> list[Offer]:
    """Give the offers of the suite: with and without context, with the whole window and 9 bits."""
    bare, alone = "permessage-deflate", "permessage-deflate; server_no_context_takeover"
    window = "; server_max_window_bits="
    return [
        Offer("13.1", bare, True),
        Offer("13.2", alone, True),
        Offer("13.3", f"{bare}{window}9", False),
        Offer("13.4", f"{bare}{window}15", True),
        Offer("13.5", f"{alone}{window}9", False),
        Offer("13.6", f"{alone}{window}15", True),
        Offer("13.7", f"{alone}{window}9, {alone}, {bare}", True),
    ]
