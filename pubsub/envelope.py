"""How does an event reach every node? This file: what travels between nodes, and what is stored.

Both are MessagePack, built by the scripts from parts that are packed here (pure). An envelope is

    [version, [kind, ...]]
    [1, ["events", epoch, offset, prev, time, [[id, name, data, tags, user, exclude, check], ...]]]
    [1, ["purge", epoch, offset, check]]
    [1, ["fork", epoch, offset, check]]
    [1, ["presence", action, version of the set, session, user, info]]

where `offset` and `prev` of "events" are those of the position before its first event. An event in
a channel's stream is

    [version, epoch, prev, check, time, [id, name, data, tags, user, exclude]]

with its offset in the entry's id. A member in a presence set is the generation of its node's lease,
16 digits, then session, user and info, one after another. What else comes is junk: `JunkReceived`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from pubsub.errors import JunkReceived
from pubsub.event import Draft, Event
from pubsub.position import Position, chain
from pubsub.presence import Member, PresenceChange

VERSION: Final = 1
# Lua counts in doubles, which are exact up to 2^53.
MOST_OFFSET: Final = 2**52
# An envelope's events, with room to spare over what a node puts into one.
MOST_EVENTS: Final = 4_096
MOST_BYTES: Final = 64 * 1024 * 1024

_GENERATION_BYTES: Final = 16

_Hex = Annotated[str, Meta(pattern="^[0-9a-f]{16}\\Z")]
_Offset = Annotated[int, Meta(ge=0, le=MOST_OFFSET)]
_Time = Annotated[int, Meta(ge=0, le=2**52)]
# Once for each event a pattern would cost five times what the rest of the reading does.
_Check = Annotated[str, Meta(min_length=16, max_length=16)]
_Word = Annotated[str, Meta(min_length=1, max_length=64)]
_Text = Annotated[str, Meta(max_length=1_024)]
_Session = Annotated[str, Meta(min_length=1, max_length=256)]
_Version = Annotated[int, Meta(ge=1, le=2**53)]
_Info = Annotated[bytes, Meta(min_length=1, max_length=1024 * 1024)]


class _Body(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    id: _Word
    name: _Word
    data: bytes
    tags: dict[str, str]
    user: _Text | None
    exclude: _Text | None


class _Checked(_Body, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    check: _Check


class _Events(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="events"
):
    epoch: _Hex
    offset: _Offset
    prev: _Hex
    time: _Time
    events: Annotated[list[_Checked], Meta(min_length=1, max_length=MOST_EVENTS)]


class _Purge(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="purge"):
    epoch: _Hex
    offset: _Offset
    check: _Hex


class _Fork(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="fork"):
    epoch: _Hex
    offset: _Offset
    check: _Hex


class _Member(msgspec.Struct, frozen=True, gc=False, array_like=True, forbid_unknown_fields=True):
    session: _Session
    user: _Text | None
    info: _Info


class _Presence(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="presence"
):
    action: Literal["join", "leave", "update"]
    version: _Version
    session: _Session
    user: _Text | None
    info: _Info


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    content: _Events | _Purge | _Fork | _Presence


class _Stored(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    epoch: _Hex
    prev: _Hex
    check: _Hex
    time: _Time
    event: _Body


class Batch(msgspec.Struct, frozen=True):
    """Events of one channel that follow each other."""

    events: tuple[Event, ...]


class Purge(msgspec.Struct, frozen=True):
    """All events up to and including `floor` were purged."""

    floor: Position


class Fork(msgspec.Struct, frozen=True):
    """A new epoch began at `top`."""

    top: Position


Content = Batch | Purge | Fork | PresenceChange

_skip: Final = msgspec.msgpack.Decoder(msgspec.Raw).decode
_decode_envelope: Final = msgspec.msgpack.Decoder(_Envelope).decode
_decode_stored: Final = msgspec.msgpack.Decoder(_Stored).decode
_decode_body: Final = msgspec.msgpack.Decoder(_Body).decode
_decode_member: Final = msgspec.msgpack.Decoder(_Member).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def pack_body(draft: Draft) -> bytes:
    """Return what a draft says of its event: six values, one after another."""
    packed = _encode((draft.id, draft.name, draft.data, draft.tags, draft.user, draft.exclude))
    # Without the array's header, one byte: the scripts write it, and count the check where it is.
    return packed[1:]


def pack_draft(draft: Draft) -> bytes:
    """Return the form in which a draft waits to be published; its channel stands elsewhere."""
    return _encode((draft.id, draft.name, draft.data, draft.tags, draft.user, draft.exclude))


def read_draft(channel: str, payload: bytes) -> Draft:
    """Return the draft that `pack_draft` packed; raises JunkReceived."""
    body = _read(_decode_body, payload)
    _check_words(body.id + body.name)
    _check_line(body.data)
    return Draft(channel, body.id, body.name, body.data, body.tags, body.user, body.exclude)


def pack_events(before: Position, time: int, drafts: Sequence[Draft]) -> bytes:
    """Return the envelope of events that follow `before`, as the publish script builds it."""
    bodies = []
    check = before.check
    for draft in drafts:
        check = chain(check, draft.id)
        bodies.append(
            (draft.id, draft.name, draft.data, draft.tags, draft.user, draft.exclude, check)
        )
    return _encode((VERSION, ("events", before.epoch, before.offset, before.check, time, bodies)))


def pack_mark(kind: Literal["purge", "fork"], position: Position) -> bytes:
    """Return the envelope of a purge or a fork, as the scripts build it."""
    return _encode((VERSION, (kind, position.epoch, position.offset, position.check)))


def pack_member(member: Member) -> bytes:
    """Return what is kept of a member behind its generation: three values, one after another."""
    return _encode((member.session, member.user, member.info))[1:]


def pack_presence(change: PresenceChange) -> bytes:
    """Return the envelope of a presence change, as the scripts build it."""
    member = change.member
    return _encode(
        (
            VERSION,
            ("presence", change.action, change.version, member.session, member.user, member.info),
        )
    )


def pack_stored(event: Event) -> bytes:
    """Return an event's form in the stream, as the publish script builds it."""
    return _encode(
        (
            VERSION,
            event.position.epoch,
            event.prev,
            event.position.check,
            event.time,
            (
                event.id,
                event.name,
                event.data,
                event.tags,
                event.user,
                event.exclude,
            ),
        )
    )


def read_envelope(channel: str, payload: bytes) -> Content:
    """Return what an envelope on a channel says; raises JunkReceived.

    Memory stays within a small multiple of the payload's size, whatever lengths it announces.
    """
    content = _read(_decode_envelope, payload).content
    if type(content) is _Events:
        epoch, offset, prev, time = content.epoch, content.offset, content.prev, content.time
        if offset + len(content.events) > MOST_OFFSET:
            raise JunkReceived("an offset is too high")
        events = []
        for body in content.events:
            offset += 1
            check = body.check
            events.append(_event(channel, Position(epoch, offset, check), prev, time, body))
            prev = check
        return Batch(tuple(events))
    if type(content) is _Presence:
        return PresenceChange(channel, content.action, _member(content), content.version)
    position = Position(content.epoch, content.offset, content.check)
    return Purge(position) if type(content) is _Purge else Fork(position)


def read_stored(channel: str, offset: int, payload: bytes) -> Event:
    """Return the event that a stream's entry holds; raises JunkReceived."""
    stored = _read(_decode_stored, payload)
    if not 0 < offset <= MOST_OFFSET:
        raise JunkReceived("an offset is too high")
    position = Position(stored.epoch, offset, stored.check)
    return _event(channel, position, stored.prev, stored.time, stored.event)


def read_member(stored: bytes) -> Member:
    """Return the member that an entry of a presence set holds; raises JunkReceived."""
    # The scripts wrote the generation, and left out the array's header.
    return _member(_read(_decode_member, b"\x93" + stored[_GENERATION_BYTES:]))


def _read(decode: Any, payload: bytes) -> Any:
    if len(payload) > MOST_BYTES:
        raise JunkReceived("it is too large")
    try:
        # Skipping allocates nothing, and proves that as much is there as is announced.
        _skip(payload)
        return decode(payload)
    except (ValueError, RecursionError) as error:
        raise JunkReceived(type(error).__name__) from None


def _event(channel: str, position: Position, prev: str, time: int, body: _Body) -> Event:
    _check_words(position.check + body.id + body.name)
    data = body.data
    _check_line(data)
    return Event(
        channel,
        position,
        prev,
        body.id,
        body.name,
        data,
        time,
        body.tags,
        body.user,
        body.exclude,
    )


def _member(found: _Member | _Presence) -> Member:
    if not found.session.isprintable():
        raise JunkReceived("a session is not printable")
    _check_line(found.info)
    return Member(found.session, found.user, found.info)


def _check_words(words: str) -> None:
    if not words.isascii() or not words.isprintable():
        raise JunkReceived("a check, an id or a name is not printable")


def _check_line(text: bytes) -> None:
    # It becomes a line of text streams as it stands, and part of UTF-8 frames.
    if b"\n" in text or b"\r" in text or not text:
        raise JunkReceived("data is not one line of text")
    if not text.isascii():
        try:
            text.decode()
        except UnicodeDecodeError:
            raise JunkReceived("data is not UTF-8") from None
