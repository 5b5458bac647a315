"""What nodes send each other: read strictly, whatever comes."""

import math

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.control_message import (
    MOST_ANSWER_BYTES,
    MOST_NAME_BYTES,
    MOST_ORDER_BYTES,
    MOST_S,
    Answer,
    Message,
    Notice,
    Order,
    is_node,
    is_topic,
    make_notice,
    pack_message,
    pack_times,
    read_kept,
    read_message,
)
from pubsub.errors import JunkReceived

ID = "0123456789abcdef" * 2
MESSAGES: list[Message] = [
    Order(ID, "n1", b""),
    Order(ID, "N_~@:=.-9", b"\x00\xff" * (MOST_ORDER_BYTES // 2)),
    Answer(ID, "n1", b"x" * MOST_ANSWER_BYTES),
    Notice("user", "u1", 0.0, MOST_S),
    Notice("ticket", "ä" * (MOST_NAME_BYTES // 2), 1_789_000_000.123456, 1_789_000_060.0),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda each: type(each).__name__)
def test_what_is_sent_is_read(message: Message) -> None:
    assert read_message(pack_message(message)) == message


def test_the_form_on_the_wire_is_this() -> None:
    """Nodes of two versions meet during a rolling restart."""
    found = [msgpack.unpackb(pack_message(message)) for message in (MESSAGES[0], MESSAGES[3])]
    assert found == [
        [1, ["order", ID, "n1", b""]],
        [1, ["notice", "user", "u1", 0.0, MOST_S]],
    ]


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        [],
        [1],
        {"order": 1},
        [2, ["order", ID, "n1", b"x"]],
        [1, ["order", ID, "n1", b"x"], 1],
        [1, ["other", ID, "n1", b"x"]],
        [1, ["order", ID, "n1"]],
        [1, ["order", ID, "n1", b"x", 1]],
        [1, ["order", ID, "n1", "text"]],
        [1, ["order", ID[1:], "n1", b"x"]],
        [1, ["order", ID + "\n", "n1", b"x"]],
        [1, ["order", ID.upper(), "n1", b"x"]],
        [1, ["order", ID, "", b"x"]],
        [1, ["order", ID, "n" * 65, b"x"]],
        [1, ["order", ID, "n 1", b"x"]],
        [1, ["order", ID, "n1\n", b"x"]],
        [1, ["order", ID, "n*", b"x"]],
        [1, ["order", ID, "n1", b"x" * (MOST_ORDER_BYTES + 1)]],
        [1, ["answer", ID, "n1", b"x" * (MOST_ANSWER_BYTES + 1)]],
        [1, ["answer", ID, "n1", b"x" * (MOST_ANSWER_BYTES + 4_096)]],
        [1, ["notice", "USER", "u", 1.0, 2.0]],
        [1, ["notice", "a" * 33, "u", 1.0, 2.0]],
        [1, ["notice", "user", "", 1.0, 2.0]],
        [1, ["notice", "user", "ä" * MOST_NAME_BYTES, 1.0, 2.0]],
        [1, ["notice", "user", b"u", 1.0, 2.0]],
        [1, ["notice", "user", "u", -1.0, 2.0]],
        [1, ["notice", "user", "u", math.nan, 2.0]],
        [1, ["notice", "user", "u", 1.0, math.inf]],
        [1, ["notice", "user", "u", 1.0, MOST_S * 2]],
        [1, ["notice", "user", "u", "1", 2.0]],
    ],
)
def test_junk_is_refused(value: object) -> None:
    with pytest.raises(JunkReceived):
        read_message(msgpack.packb(value))


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_else(payload: bytes) -> None:
    with pytest.raises(JunkReceived):
        read_message(b"\x92" + payload)


@pytest.mark.parametrize("payload", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b""])
def test_lengths_and_depths_that_lie_cost_nothing(payload: bytes) -> None:
    with pytest.raises(JunkReceived):
        read_message(payload)


@given(
    st.floats(0, MOST_S, allow_subnormal=False),
    st.floats(0, MOST_S, allow_subnormal=False),
)
def test_times_are_kept_exactly(at_s: float, until_s: float) -> None:
    notice = make_notice("user", "u", at_s, until_s)
    kept = " ".join(pack_times(notice)).encode()
    assert read_kept("user", b"u", kept) == notice
    assert read_message(pack_message(notice)) == notice


def test_whole_seconds_are_times_too() -> None:
    assert pack_times(make_notice("user", "u", 1, 2)) == ("1.0", "2.0")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        (b"u", b""),
        (b"u", b"1.0"),
        (b"u", b"1.0 2.0 3.0"),
        (b"u", b"1.0 2.0\n"),
        (b"u", b"1.0 nan"),
        (b"u", b"1.0 e"),
        (b"u", b"1.0 2e99"),
        (b"u", b"-1.0 2.0"),
        (b"u", b"1" * 40 + b" 2.0"),
        (b"", b"1.0 2.0"),
        (b"\xff", b"1.0 2.0"),
        (b"u" * 2_000, b"1.0 2.0"),
    ],
)
def test_junk_among_what_is_kept_is_refused(name: bytes, kept: bytes) -> None:
    with pytest.raises(JunkReceived):
        read_kept("user", name, kept)


def test_of_two_notices_every_node_chooses_the_same() -> None:
    one = Notice("user", "u", 1.0, 9.0)
    assert one.exceeds(None)
    assert not one.exceeds(one)
    assert Notice("user", "u", 2.0, 3.0).exceeds(one)
    assert Notice("user", "u", 1.0, 9.5).exceeds(one)
    assert not Notice("user", "u", 0.5, 99.0).exceeds(one)


def test_names_that_may_stand_in_addresses() -> None:
    assert is_node("node-0a.b:1")
    assert is_topic("user")
    assert not is_node("a b")
    assert not is_topic("User")
