"""MessagePack: only the JSON value space passes, and what it announces costs nothing."""

import json
import struct
import sys
import tracemalloc

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidData
from server.msgpack_values import flaw, from_json, to_json, unpack

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


def refused(payload: bytes, depth: int = 64) -> InvalidData:
    with pytest.raises(InvalidData) as caught:
        unpack(payload, depth=depth, name="info")
    assert caught.value.message.startswith("`info` ")
    return caught.value


@given(values)
def test_every_value_survives_both_ways(value: object) -> None:
    packed = msgpack.packb(value)
    assert unpack(packed, depth=64) == value
    text = to_json(unpack(packed, depth=64))
    assert json.loads(text) == value
    assert unpack(from_json(text), depth=64) == value


def test_floats_stay_floats_and_integers_stay_integers() -> None:
    text = b"[1.0,1,18446744073709551615,-9223372036854775808,1e+300,true]"
    found = unpack(from_json(text), depth=1)
    assert found == [1.0, 1, 2**64 - 1, -(2**63), 1e300, True]
    assert isinstance(found, list)
    assert [type(each) for each in found] == [float, int, int, int, float, bool]
    assert to_json(1.0) == b"1.0"


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"", "is not valid MessagePack: it ends too early"),
        (b"\x92\x01", "is not valid MessagePack: it ends too early"),
        (b"\xa5ab", "is not valid MessagePack: it ends too early"),
        (b"\xdd\xff\xff\xff\xff", "is not valid MessagePack: it ends too early"),
        (b"\xdf\xff\xff\xff\xff", "is not valid MessagePack: it ends too early"),
        (b"\xdb\xff\xff\xff\xff", "is not valid MessagePack: it ends too early"),
        (b"\x01\x01", "is not valid MessagePack: trailing characters"),
        (b"\xc1", "is not valid MessagePack: "),
        (b"\xa1\xff", "is not valid UTF-8 in a string"),
        (b"\xa3\xed\xa0\x80", "is not valid UTF-8 in a string"),
        (b"\x81\xa1\xff\x01", "is not valid UTF-8 in a string"),
        (b"\xc4\x00", "has binary, which JSON cannot hold"),
        (b"\x91\xc4\x00", "has binary, which JSON cannot hold"),
        (b"\xc4\x01a", "has binary, which JSON cannot hold"),
        (b"\xc6\x00\x00\x00\x01a", "has binary, which JSON cannot hold"),
        (b"\x81\xc4\x00\x01", "has a key that is not a string"),
        (b"\x81\xc4\x01a\x01", "has "),
        (b"\x81\x01\x01", "has a key that is not a string"),
        (b"\x81\xc0\x01", "has a key that is not a string"),
        (b"\x81\x90\x01", "has a key that is not a string"),
        (b"\xd4\x05a", "has an extension type"),
        (b"\xc7\x00\x05", "has an extension type"),
        (b"\xc7\x00\xff", "has an extension type"),
        (b"\xd6\xff\x00\x00\x00\x00", "has an extension type"),
        (b"\xcb" + struct.pack(">d", float("nan")), "has NaN or an infinity"),
        (b"\xca" + struct.pack(">f", float("-inf")), "has NaN or an infinity"),
        (b"\x81\xa1a\x92\x01\xcb" + struct.pack(">d", float("inf")), "has NaN or an infinity"),
    ],
)
def test_everything_else_is_refused_by_name(payload: bytes, said: str) -> None:
    error = refused(payload)
    assert error.message.startswith(f"`info` {said}")
    assert error.reason == "invalid_data"


def test_text_that_looks_like_headers_passes() -> None:
    """The bytes of these characters are also first bytes of bin, ext, floats and containers."""
    value = {"ĄŒ": ["\u0100\u0140\u0180\u01ff" * 100, "ÄÖÜ", "\U0001f600"]}
    assert unpack(msgpack.packb(value), depth=2) == value


@pytest.mark.parametrize("depth", [1, 2, 64, 500])
def test_nesting_is_counted_exactly(depth: int) -> None:
    for header, bottom in ((b"\x91", b"\x90"), (b"\x81\xa1a", b"\x80"), (b"\xdc\x00\x01", b"\x90")):
        deep = header * (depth - 1) + bottom
        unpack(deep, depth=depth)
        error = refused(header + deep, depth)
        assert error.message == f"`info` nests deeper than {depth} levels"
        assert error.reason == "limits.depth"


def test_siblings_do_not_nest() -> None:
    value: list[object] = [{"a": []}] * 500
    assert unpack(msgpack.packb(value), depth=3) == value


@pytest.mark.parametrize("levels", [700, 2_000, 65_535])
def test_a_nesting_bomb_is_a_refusal_like_any_other(levels: int) -> None:
    assert refused(b"\x91" * levels + b"\x90").reason == "limits.depth"
    assert refused(b"\x81\xa1a" * levels + b"\x01").reason == "limits.depth"


def test_a_bomb_is_refused_however_deep_the_interpreter_goes() -> None:
    """With a higher recursion limit the first pass lets it through, and `unpackb` does not."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    try:
        assert refused(b"\x91" * 5_000 + b"\x90").reason == "limits.depth"
    finally:
        sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    "bomb",
    [
        b"\xdd\x00\x00\xff\xf0" * 13_000,
        b"\xdc\xff\xff" * 500 + b"\x01" * 60_000,
        b"\xdf\x00\x00\xff\xf0\xa1a" * 500 + b"\x01" * 60_000,
        b"\xdd\xff\xff\xff\xff" + b"\x01" * 60_000,
    ],
)
def test_announced_lengths_reserve_nothing(bomb: bytes) -> None:
    """64 KiB of headers, each of which announces tens of thousands of elements."""
    tracemalloc.start()
    try:
        refused(bomb)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_a_flaw_of_the_structure_is_told_apart() -> None:
    assert flaw(b"\x91") == "is not valid MessagePack: it ends too early"
    assert flaw(b"\x90") is None


@given(st.binary(max_size=40))
def test_any_bytes_give_a_value_or_a_refusal(payload: bytes) -> None:
    try:
        value = unpack(payload, depth=8)
    except InvalidData:
        return
    assert json.loads(to_json(value)) == value
