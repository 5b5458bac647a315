"""Who is connected here? This file: messages and bytes, in the two encodings (pure)."""

from collections.abc import Callable
from typing import Final, Protocol, get_args

import msgspec
from msgspec import Raw, UnsetType

from config.limits import LimitSettings
from pubsub.event import Event
from pubsub.presence import Member
from server import json_text, msgpack_values
from server.errors import BadRef, BadRequest, InvalidData, Refused, TooLarge
from server.protocol import (
    AnyCommand,
    EventItem,
    EventMessage,
    MemberItem,
    Presence,
    Publish,
)

_TAG_BYTES: Final = 256


class ValueLimits(msgspec.Struct, frozen=True):
    """What an event and a presence entry may hold; sizes are those of the JSON text."""

    depth: int
    data_bytes: int
    info_bytes: int
    tags: int

    @classmethod
    def of(cls, limits: LimitSettings) -> "ValueLimits":
        """Take them from the settings."""
        return cls(limits.depth, limits.data_bytes, limits.presence_info_bytes, limits.tags)


class Undecodable(Exception):
    """A command was not understood; `ref` is there if a valid one could be read."""

    def __init__(self, refused: Refused, ref: int | None) -> None:
        super().__init__(refused.message)
        self.refused = refused
        self.ref = ref


class Codec(Protocol):
    """One encoding of the protocol: commands in, messages out. Without state; nothing waits."""

    name: str
    """`json` or `msgpack`."""

    binary: bool
    """Whether its messages travel in binary frames."""

    def decode(self, payload: bytes, limits: ValueLimits) -> AnyCommand:
        """Read one command.

        `data`, `info` and `tags` are checked; `data` and `info` are then JSON text (`bytes(raw)`)
        whatever the encoding. Raises Undecodable.
        """
        ...

    def encode(self, message: msgspec.Struct) -> bytes:
        """Return a message's bytes; every Raw within it must be of this encoding (`embed`)."""
        ...

    def embed(self, json_text: bytes) -> Raw:
        """Return checked JSON text as a value of this encoding."""
        ...

    def event(self, event: Event, skipped: int = 0) -> bytes:
        """Return the bytes of the message that brings an event to subscribers.

        `skipped` is how many of the channel's events were left out directly before it.
        """
        ...

    def item(self, event: Event) -> EventItem:
        """Return an event as it stands in replies."""
        ...

    def member(self, member: Member) -> MemberItem:
        """Return a member as it stands in messages."""
        ...


def checked_data(text: bytes, limits: ValueLimits) -> bytes:
    """Return an event's `data` fit for use anywhere; raises TooLarge, InvalidData."""
    _sized(text, "data", limits.data_bytes, "limits.data_bytes")
    return json_text.check_json(text, depth=limits.depth)


def checked_info(text: bytes, limits: ValueLimits) -> bytes:
    """Return a member's `info` fit for use anywhere; raises TooLarge, InvalidData."""
    _sized(text, "info", limits.info_bytes, "limits.presence_info_bytes")
    return json_text.check_json(text, depth=limits.depth, name="info")


def _sized(text: bytes, name: str, most: int, reason: str) -> bytes:
    if len(text) > most:
        raise TooLarge(f"`{name}` is over {most} bytes", reason=reason)
    return text


def check_tags(tags: dict[str, str], limits: ValueLimits) -> None:
    """Refuse too many tags and too long ones; raises InvalidData."""
    if len(tags) > limits.tags:
        raise InvalidData(f"`tags` has more than {limits.tags} entries", reason="limits.tags")
    for key, value in tags.items():
        for text in (key, value):
            # A character has at most four bytes: short ones need not be encoded to be measured.
            if len(text) * 4 > _TAG_BYTES and len(text.encode()) > _TAG_BYTES:
                raise InvalidData(f"a key or a value of `tags` is over {_TAG_BYTES} bytes")


_COMMANDS: Final = {
    str(each.__struct_config__.tag): each for each in sorted(get_args(AnyCommand), key=str)
}
_HIGHEST_REF: Final = 2**53 - 1

_json_command: Final[Callable[[bytes], AnyCommand]] = msgspec.json.Decoder(AnyCommand).decode
_json_value: Final = msgspec.json.Decoder().decode
_json_encode: Final = msgspec.json.Encoder().encode
_msgpack_command: Final[Callable[[bytes], AnyCommand]] = msgspec.msgpack.Decoder(AnyCommand).decode
_msgpack_encode: Final = msgspec.msgpack.Encoder().encode


class _Head(msgspec.Struct):
    """What is read of a MessagePack command that was not understood."""

    ref: Raw = Raw(b"")
    type: Raw = Raw(b"")


_msgpack_head: Final = msgspec.msgpack.Decoder(_Head).decode


class _JsonCodec:
    """JSON text, and what both encodings have in common."""

    __slots__ = ()

    name: str = "json"
    binary: bool = False

    def decode(self, payload: bytes, limits: ValueLimits) -> AnyCommand:
        """See Codec."""
        try:
            command = self._command(payload)
        except (ValueError, RecursionError) as error:
            raise self._undecodable(payload, error, limits) from None
        try:
            if isinstance(command, Publish):
                check_tags(command.tags, limits)
                command.data = Raw(self._data(bytes(command.data), limits))
            elif isinstance(command, Presence) and not isinstance(command.info, UnsetType):
                command.info = Raw(self._info(bytes(command.info), limits))
        except Refused as refused:
            raise Undecodable(refused, command.ref) from None
        return command

    def encode(self, message: msgspec.Struct) -> bytes:
        """See Codec."""
        return _json_encode(message)

    def embed(self, json_text: bytes) -> Raw:
        """See Codec."""
        return Raw(json_text)

    def event(self, event: Event, skipped: int = 0) -> bytes:
        """See Codec."""
        return self.encode(
            EventMessage(
                channel=event.channel,
                position=str(event.position),
                id=event.id,
                name=event.name,
                data=self.embed(event.data),
                tags=event.tags,
                time=event.time,
                user=event.user,
                skipped=skipped,
            )
        )

    def item(self, event: Event) -> EventItem:
        """See Codec."""
        return EventItem(
            channel=event.channel,
            position=str(event.position),
            id=event.id,
            name=event.name,
            data=self.embed(event.data),
            tags=event.tags,
            time=event.time,
            user=event.user,
        )

    def member(self, member: Member) -> MemberItem:
        """See Codec."""
        return MemberItem(member.session, member.user, self.embed(member.info))

    def _command(self, payload: bytes) -> AnyCommand:
        return _json_command(payload)

    def _data(self, value: bytes, limits: ValueLimits) -> bytes:
        return checked_data(value, limits)

    def _info(self, value: bytes, limits: ValueLimits) -> bytes:
        return checked_info(value, limits)

    def _head(self, payload: bytes) -> tuple[object, object]:
        """Return `ref` and `type` of an object that is no command; raises ValueError."""
        found = json_text.read_leniently(payload)
        if not isinstance(found, dict):
            raise ValueError("not an object")
        return found.get("ref"), found.get("type")

    def _flaw(self, payload: bytes) -> str:
        """Return what is wrong with a payload that has no head."""
        try:
            _json_value(payload)
        except ValueError as error:
            return json_text.explain(payload, error)
        return "must be an object"

    def _undecodable(
        self, payload: bytes, error: ValueError | RecursionError, limits: ValueLimits
    ) -> Undecodable:
        """Find out what is wrong, and whether there is a `ref` to answer to."""
        try:
            if isinstance(error, RecursionError):
                raise error
            try:
                ref, type_ = self._head(payload)
            except ValueError:
                return Undecodable(BadRequest(f"the command {self._flaw(payload)}"), None)
        except RecursionError:
            return Undecodable(json_text.too_deep("the command", limits.depth), None)
        if type(ref) is not int or not 1 <= ref <= _HIGHEST_REF:
            return Undecodable(BadRef("`ref` must be an integer from 1 to 2^53-1"), None)
        if not isinstance(type_, str) or type_ not in _COMMANDS:
            return Undecodable(BadRequest(f"`type` must be one of {', '.join(_COMMANDS)}"), ref)
        if isinstance(error, msgspec.ValidationError):
            return Undecodable(BadRequest(str(error)), ref)
        refused: Refused = BadRequest(f"the command {json_text.explain(payload, error)}")
        if not isinstance(error, UnicodeDecodeError) and _COMMANDS[type_] in (Publish, Presence):
            # Only a lone surrogate is left, which msgspec refuses even in what it skips.
            refused = InvalidData(refused.message)
        return Undecodable(refused, ref)


class _MsgpackCodec(_JsonCodec):
    """MessagePack."""

    __slots__ = ()

    name = "msgpack"
    binary = True

    def encode(self, message: msgspec.Struct) -> bytes:
        """See Codec."""
        return _msgpack_encode(message)

    def embed(self, json_text: bytes) -> Raw:
        """See Codec."""
        return Raw(msgpack_values.from_json(json_text))

    def _command(self, payload: bytes) -> AnyCommand:
        return _msgpack_command(payload)

    def _data(self, value: bytes, limits: ValueLimits) -> bytes:
        text = msgpack_values.to_json(msgpack_values.unpack(value, depth=limits.depth))
        return _sized(text, "data", limits.data_bytes, "limits.data_bytes")

    def _info(self, value: bytes, limits: ValueLimits) -> bytes:
        found = msgpack_values.unpack(value, depth=limits.depth, name="info")
        text = msgpack_values.to_json(found)
        return _sized(text, "info", limits.info_bytes, "limits.presence_info_bytes")

    def _head(self, payload: bytes) -> tuple[object, object]:
        head = _msgpack_head(payload)
        return _scalar(head.ref), _scalar(head.type)

    def _flaw(self, payload: bytes) -> str:
        if payload.startswith(b"{"):
            return "is not MessagePack, but looks like JSON"
        return msgpack_values.flaw(payload) or "must be a map whose keys are strings"


def _scalar(raw: Raw) -> object:
    try:
        return msgspec.msgpack.decode(raw, type=int | str)
    except ValueError:
        return None


JSON: Final[Codec] = _JsonCodec()
MSGPACK: Final[Codec] = _MsgpackCodec()
