"""Where is an event kept? This file: what the archive's queue in Redis holds (pure).

The scripts write it; `queue.lua` describes it. What else is there is junk: `JunkReceived`.
"""

import re
from collections.abc import Sequence
from typing import Final

from pubsub.archive import Entry, Kept, Purged, Unarchived
from pubsub.envelope import MOST_OFFSET, read_stored
from pubsub.errors import JunkReceived, PositionRejected
from pubsub.position import Position

# Longer ones no node lets through.
_MOST_CHANNEL_BYTES: Final = 1_024
_is_number: Final = re.compile(rb"[0-9]{1,16}").fullmatch
_is_range: Final = re.compile(r"([0-9a-f]{16})-([0-9]{1,16})-([0-9]{1,16})-([0-9]{1,16})").fullmatch


def read_entry(fields: Sequence[bytes]) -> tuple[Entry, ...]:
    """Return what an entry of the queue tells the archive, in order; raises JunkReceived.

    `fields` are names and values in turn.
    """
    found = dict(zip(fields[::2], fields[1::2], strict=False))
    channel = _channel(found.get(b"c", b""))
    note = found.get(b"g")
    if note is not None:
        return tuple(_word(channel, word) for word in _text(note).split(" "))
    event = read_stored(channel, _number(found.get(b"o", b"")), found.get(b"e", b""))
    return (Kept(event, _number(found.get(b"x", b""))),)


def _channel(name: bytes) -> str:
    channel = _text(name)
    if not 0 < len(name) <= _MOST_CHANNEL_BYTES or not channel.isprintable():
        raise JunkReceived("not the name of a channel")
    return channel


def _word(channel: str, word: str) -> Entry:
    if word.startswith("p"):
        try:
            return Purged(channel, Position.parse(word[1:]))
        except PositionRejected:
            raise JunkReceived("not the floor of a purge") from None
    match = _is_range(word)
    if match is None:
        raise JunkReceived("not a range of events")
    first, last, time = int(match[2]), int(match[3]), int(match[4])
    if not 0 < first <= last <= MOST_OFFSET:
        raise JunkReceived("not a range of offsets")
    return Unarchived(channel, match[1], first, last, time)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise JunkReceived("not UTF-8") from None


def _number(value: bytes) -> int:
    if _is_number(value) is None:
        raise JunkReceived("not a number")
    return int(value)
