"""Who may do what, and what is refused? This file: archived events as lines of JSON (pure).

A line is an event with all that the archive has of it, or says which offsets are missing:

    {"channel":"a.b","position":"...","prev":"...","id":"...","name":"message","data":{...},
     "tags":{},"time":1789000000123,"user":null}
    {"channel":"a.b","unarchived":{"epoch":"...","first":7,"last":9,"time":1789000000123}}

`prev` is the check of the position before it. `exclude`, a session, is there if the event has one.
"""

from typing import Annotated, Final

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from config.patterns import NameRejected, check_channel, check_event_id, check_event_name
from pubsub.archive import Unarchived
from pubsub.envelope import MOST_OFFSET
from pubsub.errors import PositionRejected
from pubsub.event import Event
from pubsub.position import Position, chain
from server.errors import Refused
from server.json_text import check_json, explain

_Hex = Annotated[str, Meta(pattern="^[0-9a-f]{16}\\Z")]
_Offset = Annotated[int, Meta(ge=1, le=MOST_OFFSET)]
_Time = Annotated[int, Meta(ge=0, le=2**52)]


class LineRejected(ValueError):
    """A line is neither an event nor a range; the text says what is wrong, after "line 7"."""


class _Event(msgspec.Struct, kw_only=True):
    channel: str
    position: str
    prev: _Hex
    id: str
    name: str
    data: Raw
    tags: dict[str, str]
    time: _Time
    user: str | None
    exclude: str | UnsetType = UNSET


class _Range(msgspec.Struct):
    epoch: _Hex
    first: _Offset
    last: _Offset
    time: _Time


class _Missing(msgspec.Struct):
    channel: str
    unarchived: _Range


class Place(msgspec.Struct, frozen=True):
    """Where a line stands in an export: its channel and offset, 0 for a range."""

    channel: str
    offset: int


class _Kind(msgspec.Struct):
    channel: str
    position: str | UnsetType = UNSET
    unarchived: Raw | UnsetType = UNSET


_encode: Final = msgspec.json.Encoder().encode
_kind: Final = msgspec.json.Decoder(_Kind).decode
_event: Final = msgspec.json.Decoder(_Event).decode
_missing: Final = msgspec.json.Decoder(_Missing).decode


def pack_line(entry: Event | Unarchived) -> bytes:
    """Return the line of an event or of a range, line feed included."""
    if isinstance(entry, Unarchived):
        missing = _Range(entry.epoch, entry.first, entry.last, entry.time)
        return _encode(_Missing(entry.channel, missing)) + b"\n"
    line = _Event(
        channel=entry.channel,
        position=str(entry.position),
        prev=entry.prev,
        id=entry.id,
        name=entry.name,
        data=Raw(entry.data),
        tags=entry.tags,
        time=entry.time,
        user=entry.user,
        exclude=UNSET if entry.exclude is None else entry.exclude,
    )
    return _encode(line) + b"\n"


def read_place(line: bytes) -> Place:
    """Return where a line stands, without looking at more of it; raises LineRejected."""
    try:
        kind = _kind(line)
        if kind.position is UNSET:
            return Place(kind.channel, 0)
        return Place(kind.channel, Position.parse(kind.position).offset)
    except (ValueError, RecursionError) as error:
        raise LineRejected(_words(line, error)) from None


def read_line(line: bytes, *, depth: int) -> Event | Unarchived:
    """Return what a line says, checked like what is published; raises LineRejected.

    The position has to be the one that `prev` and `id` lead to. `depth` is of `data`.
    """
    try:
        kind = _kind(line)
        check_channel(kind.channel)
        if kind.unarchived is not UNSET:
            return _read_missing(_missing(line))
        return _read_event(_event(line), depth)
    except (ValueError, RecursionError, Refused) as error:
        raise LineRejected(_words(line, error)) from None


def _read_missing(line: _Missing) -> Unarchived:
    found = line.unarchived
    if found.first > found.last:
        raise LineRejected("has a range that ends before it begins")
    return Unarchived(line.channel, found.epoch, found.first, found.last, found.time)


def _read_event(line: _Event, depth: int) -> Event:
    position = Position.parse(line.position)
    if not 1 <= position.offset <= MOST_OFFSET:
        raise LineRejected("has a position that is not one of an event")
    check_event_id(line.id)
    check_event_name(line.name)
    if chain(line.prev, line.id) != position.check:
        raise LineRejected("does not chain: its position is not what `prev` and `id` lead to")
    return Event(
        line.channel,
        position,
        line.prev,
        line.id,
        line.name,
        check_json(bytes(line.data), depth=depth),
        line.time,
        line.tags,
        line.user,
        None if line.exclude is UNSET else line.exclude,
    )


def _words(line: bytes, error: Exception) -> str:
    if isinstance(error, LineRejected):
        return str(error)
    if isinstance(error, PositionRejected):
        return "has a position that is none"
    if isinstance(error, RecursionError):
        return "nests too deeply"
    if isinstance(error, Refused | NameRejected | msgspec.ValidationError):
        return f"is refused: {error}"
    assert isinstance(error, ValueError)  # noqa: S101
    return explain(line, error)
