"""How do nodes act as one? This file: what they send each other beside events (pure).

All of it is MessagePack:

    [version, [kind, ...]]
    [1, ["order", id, node, order]]             to all nodes; `node` gave it and waits for answers
    [1, ["answer", id, node, answer]]           to the node that gave the order with this id
    [1, ["notice", topic, name, at, until]]     to all nodes; times in s since 1970

What else comes is junk: `JunkReceived`.
"""

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from pubsub.errors import JunkReceived

VERSION: Final = 1
MOST_ORDER_BYTES: Final = 64 * 1024
MOST_ANSWER_BYTES: Final = 512 * 1024
MOST_NAME_BYTES: Final = 1_024
# In the year 5138; what is kept of a time stays exact up to there.
MOST_S: Final = 1e11

# Beside the largest answer: its id, its node, and what MessagePack adds.
_MOST_BYTES: Final = MOST_ANSWER_BYTES + 1_024

_Id = Annotated[str, Meta(pattern="^[0-9a-f]{32}\\Z")]
# It becomes part of the name of a pub/sub channel.
_Node = Annotated[str, Meta(pattern="^[A-Za-z0-9_~@:=.-]{1,64}\\Z")]
_Topic = Annotated[str, Meta(pattern="^[a-z]{1,32}\\Z")]
_Name = Annotated[str, Meta(min_length=1, max_length=MOST_NAME_BYTES)]
_Seconds = Annotated[float, Meta(ge=0, le=MOST_S)]

is_node: Final = re.compile(r"[A-Za-z0-9_~@:=.-]{1,64}").fullmatch
is_topic: Final = re.compile(r"[a-z]{1,32}").fullmatch
_read_times: Final = re.compile(rb"([0-9.e+-]{1,32}) ([0-9.e+-]{1,32})").fullmatch


class Order(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="order"):
    """An order that `node` gave to all."""

    id: _Id
    node: _Node
    order: Annotated[bytes, Meta(max_length=MOST_ORDER_BYTES)]


class Answer(
    msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="answer"
):
    """What `node` answers to the order with this id."""

    id: _Id
    node: _Node
    answer: Annotated[bytes, Meta(max_length=MOST_ANSWER_BYTES)]


class Notice(
    msgspec.Struct,
    frozen=True,
    gc=False,
    array_like=True,
    forbid_unknown_fields=True,
    tag="notice",
):
    """That something holds of `name` since `at_s` until `until_s`."""

    topic: _Topic
    name: _Name
    at_s: _Seconds
    until_s: _Seconds

    def exceeds(self, other: "Notice | None") -> bool:
        """Say whether this one counts where there is also that one; the same on all nodes."""
        return other is None or (self.at_s, self.until_s) > (other.at_s, other.until_s)


Message = Order | Answer | Notice


class _Envelope(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    version: Literal[1]
    content: Message


_skip: Final = msgspec.msgpack.Decoder(msgspec.Raw).decode
_decode: Final = msgspec.msgpack.Decoder(_Envelope).decode
_encode: Final = msgspec.msgpack.Encoder().encode


def pack_message(message: Message) -> bytes:
    """Return a message as it is sent."""
    return _encode((VERSION, message))


def read_message(payload: bytes) -> Message:
    """Return what was sent; raises JunkReceived."""
    if len(payload) > _MOST_BYTES:
        raise JunkReceived("it is too large")
    try:
        # Skipping allocates nothing, and proves that as much is there as is announced.
        _skip(payload)
        message = _decode(payload).content
    except (ValueError, RecursionError) as error:
        raise JunkReceived(type(error).__name__) from None
    if type(message) is Notice:
        _check(message)
    return message


def make_notice(topic: str, name: str, at_s: float, until_s: float) -> Notice:
    """Return a notice that can be sent; raises ValueError if its name or its times cannot."""
    notice = Notice(topic, name, float(at_s), float(until_s))
    try:
        _check(notice)
    except JunkReceived as error:
        raise ValueError(str(error)) from None
    return notice


def pack_times(notice: Notice) -> tuple[str, str]:
    """Return the times of a notice as they are kept: exact, and numbers to Redis and Lua."""
    return repr(notice.at_s), repr(notice.until_s)


def read_kept(topic: str, name: Any, kept: Any) -> Notice:
    """Return the notice that is kept under a name as "<at> <until>"; raises JunkReceived."""
    match = _read_times(kept)
    if match is None:
        raise JunkReceived("a notice has no times")
    try:
        notice = Notice(topic, name.decode(), float(match[1]), float(match[2]))
    except ValueError as error:
        raise JunkReceived(type(error).__name__) from None
    _check(notice)
    return notice


def _check(notice: Notice) -> None:
    # No comparison holds of NaN.
    if not (0 <= notice.at_s <= MOST_S and 0 <= notice.until_s <= MOST_S):
        raise JunkReceived("a time is out of range")
    try:
        size = len(notice.name.encode())
    except UnicodeEncodeError:
        raise JunkReceived("a name is not Unicode") from None
    if not 0 < size <= MOST_NAME_BYTES:
        raise JunkReceived("a name is empty or too long")
