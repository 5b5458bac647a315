"""What reads bytes that others send, each as a function of bytes that holds on to its promises.

A target returns for whatever bytes, or raises: an assertion, or an error that is not among those
its documentation names. That it returns is not all: what is taken is compared with slow readers
made of other parts (`fuzz_reference.py`), with the other encoding, with itself once more.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import msgpack  # type: ignore[import-untyped]
import msgspec
from tornado.httputil import HTTPHeaders

from config.patterns import (
    NameRejected,
    Pattern,
    PatternRejected,
    check_channel,
    check_event_id,
    check_event_name,
    check_user,
)
from fuzz_reference import DEPTH, Refused, equal, matches, strict_json, strict_msgpack
from handlers.cloudevents import read_batch, read_binary, read_structured
from handlers.drafting import read_event, read_events
from handlers.media import media_type
from handlers.sse import COMPOSED, SHARED
from pubsub.control_message import (
    Notice,
    make_notice,
    pack_message,
    pack_times,
    read_kept,
    read_message,
)
from pubsub.envelope import (
    Batch,
    Fork,
    Purge,
    pack_draft,
    pack_mark,
    pack_member,
    pack_presence,
    pack_stored,
    read_draft,
    read_envelope,
    read_member,
    read_stored,
)
from pubsub.errors import JunkReceived, PositionRejected
from pubsub.event import Event
from pubsub.position import Position
from pubsub.presence import PresenceChange
from pubsub.presence_cursor import read_cursor, write_cursor
from server import errors, msgpack_values, orders
from server.codec import JSON, MSGPACK, Undecodable, ValueLimits
from server.json_text import check_json
from server.protocol import AnyCommand, Presence, Publish
from server.stream import parse_cursor

Target = Callable[[bytes], None]
T = TypeVar("T")
TARGETS: Final[dict[str, Target]] = {}

LIMITS: Final = ValueLimits(depth=DEPTH, data_bytes=65_536, info_bytes=4_096, tags=32)
PLACE: Final = Position("0123456789abcdef", 7, "fedcba9876543210")


def target(function: Target) -> Target:
    TARGETS[function.__name__] = function
    return function


# ---- values


@target
def json_value(data: bytes) -> None:
    """Exactly what the slow reader takes is taken, on one line, and survives MessagePack."""
    try:
        expected = strict_json(data)
    except Refused as refused:
        with suppress(errors.InvalidData):
            check_json(data, depth=DEPTH)
            raise AssertionError(f"taken, though {refused}") from None
        return
    text = check_json(data, depth=DEPTH)
    assert b"\n" not in text and b"\r" not in text
    assert equal(strict_json(text), expected)
    again = msgpack_values.unpack(msgpack_values.from_json(text), depth=DEPTH)
    assert equal(again, expected)
    assert equal(strict_json(msgpack_values.to_json(again)), expected)


@target
def msgpack_value(data: bytes) -> None:
    """What is taken is what the slow reader takes, and survives JSON."""
    try:
        value = msgpack_values.unpack(data, depth=DEPTH)
    except errors.InvalidData:
        return
    assert equal(strict_msgpack(data), value)
    text = msgpack_values.to_json(value)
    assert check_json(text, depth=DEPTH) == text
    assert equal(strict_json(text), value)
    assert equal(msgpack_values.unpack(msgpack_values.from_json(text), depth=DEPTH), value)


# ---- commands


def known(command: AnyCommand) -> dict[str, Any]:
    """Return what a command says, its values read."""
    found = msgspec.structs.asdict(command)
    # Refused wherever it stands; its bytes are those of the encoding.
    found.pop("deliver_at", None)
    for name in ("data", "info"):
        if isinstance(found.get(name), msgspec.Raw):
            found[name] = strict_json(bytes(found[name]))
    return found


def check_undecodable(error: Undecodable) -> None:
    assert error.refused.code in ("bad_request", "bad_ref", "invalid_data", "too_large")
    assert error.ref is None or 1 <= error.ref < 2**53
    assert error.refused.message.isprintable()


@target
def json_command(data: bytes) -> None:
    """What is taken is JSON to others too, and the same command in MessagePack."""
    try:
        command = JSON.decode(data, LIMITS)
    except Undecodable as error:
        check_undecodable(error)
        return
    # In fields that are passed over anything may stand, but for what frames let through.
    whole = json.loads(data.decode(errors="replace"))
    check_command(command, whole)
    with suppress(OverflowError, ValueError, RecursionError):
        packed = msgpack.packb(whole)
        try:
            same = MSGPACK.decode(packed, LIMITS)
        except Undecodable as error:
            # Deeper in what is passed over; or larger as the one text than as the other.
            assert error.refused.code in ("invalid_data", "too_large"), error.refused
        else:
            assert equal(known(same), known(command))


@target
def msgpack_command(data: bytes) -> None:
    """What is taken is MessagePack to others too, and the same command in JSON."""
    try:
        command = MSGPACK.decode(data, LIMITS)
    except Undecodable as error:
        check_undecodable(error)
        return
    try:
        whole = strict_msgpack(data)
    except Refused:
        # Something stands in a field that is passed over.
        return
    check_command(command, whole)
    same = JSON.decode(json.dumps(whole).encode(), LIMITS)
    assert equal(known(same), known(command))


def check_command(command: AnyCommand, whole: dict[str, Any]) -> None:
    assert whole["type"] == command.__struct_config__.tag and whole["ref"] == command.ref
    assert 1 <= command.ref < 2**53
    if isinstance(command, Publish):
        text = bytes(command.data)
        assert equal(strict_json(text), whole["data"]) and len(text) <= LIMITS.data_bytes
        assert b"\n" not in text and b"\r" not in text
        assert len(command.tags) <= LIMITS.tags
        check_line(text)
    elif isinstance(command, Presence) and isinstance(command.info, msgspec.Raw):
        assert equal(strict_json(bytes(command.info)), whole["info"])
        assert len(bytes(command.info)) <= LIMITS.info_bytes


def check_line(text: bytes) -> None:
    """See that an event with this data is one event for each kind of client."""
    event = Event("a.b", PLACE, PLACE.check, "1", "n", text, 1)
    value = strict_json(text)
    assert equal(strict_json(JSON.event(event))["data"], value)
    # One level more than the data has.
    message = msgpack.unpackb(MSGPACK.event(event))
    assert equal(message["data"], value)
    for wire in (SHARED, COMPOSED):
        lines = wire.event(event).decode().splitlines()
        (line,) = (each for each in lines if each.startswith("data:"))
        assert lines[-1] == "" and {each.partition(":")[0] for each in lines} <= {"id", "data", ""}
        assert equal(json.loads(line[5:])["data"], value)


# ---- what requests hold


@target
def publish_body(data: bytes) -> None:
    """An event or many are read, or refused by name."""
    for read in (read_event, lambda body: read_events(body, 100)):
        try:
            found = read(data)
        except errors.Refused as refused:
            assert refused.code in ("bad_request", "invalid_data", "too_large")
            assert refused.message.isprintable()
            continue
        for request in found if isinstance(found, list) else [found]:
            with suppress(errors.InvalidData):
                check_line(check_json(bytes(request.data), depth=DEPTH))


@target
def cloud_event(data: bytes) -> None:
    """The same in structured mode, in batches and in binary mode."""
    refusals = (
        errors.BadRequest,
        errors.InvalidData,
        errors.TooLarge,
        errors.UnsupportedMediaType,
    )
    with suppress(*refusals):
        event = read_structured(data, None)
        # What stands in `data` is looked at later.
        attributes = json.loads(data.decode(errors="replace"))
        assert event.channel == attributes["subject"] and event.name == attributes["type"]
        check_cloud_event(event)
    with suppress(*refusals):
        for event in read_batch(data, "a.b", 100):
            assert event.channel == "a.b"
            check_cloud_event(event)
    head, _, body = data.partition(b"\n\n")
    headers = HTTPHeaders()
    for line in head.decode("latin-1").split("\n"):
        name, _, value = line.partition(":")
        # What is no header never comes so far.
        with suppress(Exception):
            headers.add(name, value.strip())
    with suppress(*refusals):
        kind = headers.get("Content-Type")
        event = read_binary(headers, media_type(kind), kind, body, "a.b")
        check_cloud_event(event)


def check_cloud_event(event: Any) -> None:
    check_event_id(event.id)
    for key, value in event.tags.items():
        assert key.startswith("ce-")
        value.encode()
    with suppress(errors.InvalidData):
        check_line(check_json(bytes(event.data), depth=DEPTH))


@target
def position(data: bytes) -> None:
    """What is taken is what was given out, to the letter; so in cursors of many channels."""
    text = data.decode("utf-8", "surrogateescape")
    with suppress(PositionRejected):
        assert str(Position.parse(text)) == text
    for channels in (["a"], ["a", "b"], ["a", "b", "c"]):
        with suppress(errors.BadRequest):
            found = parse_cursor(text, channels)
            assert ",".join("" if each is None else str(each) for each in found) == text
    try:
        session = read_cursor(text)
    except ValueError:
        return
    assert write_cursor(session) == text


@target
def pattern(data: bytes) -> None:
    """Patterns match what the slow matcher matches, and cover no more than they match."""
    parts = (data.decode("utf-8", "surrogateescape") + "\0\0\0").split("\0")
    one, other, channel, user = parts[:4]
    for name, check in zip(
        (channel, one, other, user),
        (check_channel, check_event_name, check_event_id, check_user),
        strict=True,
    ):
        try:
            check(name)
        except NameRejected as rejected:
            assert str(rejected).isprintable()
        else:
            name.encode()
            assert name.isprintable()
    patterns = []
    for text, template in ((one, False), (other, True)):
        try:
            patterns.append(Pattern(text, template=template))
        except PatternRejected as rejected:
            assert str(rejected).isprintable()
    for each in patterns:
        assert each.matches(channel) == matches(str(each), channel)
        bound = each.bind(user)
        assert each.matches_for(channel, user) == (bound is not None and bound.matches(channel))
        if bound is not None and bound.matches(channel):
            assert each.matches(channel)
    for first in patterns:
        for second in patterns:
            if first.covers(second) and second.matches(channel):
                assert first.matches(channel)


# ---- what nodes send each other


def taken(read: Callable[..., T], *given: object) -> T | None:
    """Return what was read, None where it is junk."""
    try:
        return read(*given)
    except JunkReceived:
        return None


@target
def envelope(data: bytes) -> None:
    """What is taken is written again the same way; all else is junk."""
    content = taken(read_envelope, "a.b", data)
    if isinstance(content, Batch):
        for event in content.events:
            check_stored(event)
    elif isinstance(content, PresenceChange):
        assert read_envelope("a.b", pack_presence(content)) == content
    elif isinstance(content, Purge):
        assert read_envelope("a.b", pack_mark("purge", content.floor)) == content
    elif isinstance(content, Fork):
        assert read_envelope("a.b", pack_mark("fork", content.top)) == content
    stored = taken(read_stored, "a.b", 3, data)
    if stored is not None:
        check_stored(stored)
        assert read_stored("a.b", 3, pack_stored(stored)) == stored
    member = taken(read_member, data)
    assert member is None or read_member(data[:16] + pack_member(member)) == member
    draft = taken(read_draft, "a.b", data)
    assert draft is None or read_draft("a.b", pack_draft(draft)) == draft


def check_stored(event: Event) -> None:
    assert event.data.decode() and b"\n" not in event.data and b"\r" not in event.data
    # A check within an envelope is compared, and not looked at otherwise.
    if {*event.prev, *event.position.check} <= {*"0123456789abcdef"}:
        assert read_stored("a.b", event.position.offset, pack_stored(event)) == event


@target
def control(data: bytes) -> None:
    """The same for orders, answers and notices."""
    message = taken(read_message, data)
    if message is not None:
        assert read_message(pack_message(message)) == message
    if isinstance(message, Notice):
        again = make_notice(message.topic, message.name, message.at_s, message.until_s)
        times = " ".join(pack_times(again)).encode()
        assert read_kept(message.topic, message.name.encode(), times) == message
    name, _, kept = data.partition(b"\0")
    notice = taken(read_kept, "ended", name, kept)
    assert notice is None or read_message(pack_message(notice)) == notice
    for read in (orders.read_order, orders.read_answer):
        found = read(data)
        assert found is None or read(orders.pack(found)) == found
