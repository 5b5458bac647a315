"""JSON text: what passes, what is refused and in which words."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidData
from server.json_text import check_json

# A member of every kind of the value space.
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=20,
)


def refused(text: bytes, depth: int = 64) -> InvalidData:
    with pytest.raises(InvalidData) as caught:
        check_json(text, depth=depth, name="info")
    assert caught.value.message.startswith("`info` ")
    return caught.value


@pytest.mark.parametrize(
    "text",
    [
        b"0",
        b"-0",
        b"1.0",
        b"-1.5e-300",
        b"1e308",
        b"1e-999",
        b"18446744073709551615",
        b"-9223372036854775808",
        b"0.12345678901234567890123456789",
        b"123456789012345678901234567890.5",
        b"1" * 300 + b".0",
        b"true",
        b"null",
        b'""',
        b'"12345678901234567890123456789"',
        b'{"12345678901234567890123456789":[]}',
        b'"\\ud83d\\ude00 \\u2028 \\u0000 \\" \\\\ \\/"',
        '"\u2028\x7f\U0001f600"'.encode(),
        b'{"a":1,"a":2}',
        b'{"":[{}]}',
    ],
)
def test_values_of_the_space_pass_as_they_are(text: bytes) -> None:
    assert check_json(text, depth=3) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf1", "begins with a byte order mark"),
        (b'"\xff"', "is not valid UTF-8"),
        (b'{"\xff":1}', "is not valid UTF-8"),
        (b'"\xed\xa0\x80"', "is not valid UTF-8"),
        (b'"\xc0\xaf"', "is not valid UTF-8"),
        (b"1e999", "has a number that is out of range"),
        (b"[-1e999]", "has a number that is out of range"),
        (b"1" * 400 + b".0", "has a number that is out of range"),
        (b"1" * 5000, "has a number that is out of range"),
        (b"18446744073709551616", "has an integer that is not within -2^63 to 2^64-1"),
        (b"-9223372036854775809", "has an integer that is not within -2^63 to 2^64-1"),
        (b'{"a":[1,{"b":-99999999999999999999}]}', "has an integer that is not within"),
        (b"1" * 300, "has an integer that is not within"),
        (b'"\\ud800"', "has a lone surrogate in a string"),
        (b'"\\ud800 and more text"', "has a lone surrogate in a string"),
        (b'"\\udc00"', "has a lone surrogate in a string"),
        (b'"\\ud800\\u0041"', "has a lone surrogate in a string"),
        (b'{"\\ud800":1}', "has a lone surrogate in a string"),
        (b'"a', "is not valid JSON: it ends too early"),
        (b"[1", "is not valid JSON: it ends too early"),
        (b"nul", "is not valid JSON: it ends too early"),
        (b"NaN", "is not valid JSON: "),
        (b"Infinity", "is not valid JSON: "),
        (b"-Infinity", "is not valid JSON: "),
        (b"[1,]", "is not valid JSON: trailing comma"),
        (b"01", "is not valid JSON: "),
        (b"+1", "is not valid JSON: "),
        (b".5", "is not valid JSON: "),
        (b"1.", "is not valid JSON: "),
        (b"'a'", "is not valid JSON: "),
        (b"1 2", "is not valid JSON: trailing characters"),
        (b'"\n"', "is not valid JSON: "),
        (b'"\r"', "is not valid JSON: "),
        (b'"\x00"', "is not valid JSON: "),
        (b"\x0c1", "is not valid JSON: "),
        (b"\x001", "is not valid JSON: "),
        (b"// a\n1", "is not valid JSON: "),
        (b'"\\x41"', "is not valid JSON: "),
    ],
)
def test_everything_else_is_refused_by_name(text: bytes, said: str) -> None:
    error = refused(text)
    assert error.message.startswith(f"`info` {said}")
    assert error.reason == "invalid_data"


@pytest.mark.parametrize("depth", [1, 2, 64, 500])
def test_nesting_is_counted_exactly(depth: int) -> None:
    for inner, outer in ((b"[", b"]"), (b'{"[{":', b"}")):
        bottom = b"0" if inner != b"[" else b""
        deep = inner * depth + bottom + outer * depth
        assert check_json(deep, depth=depth) == deep
        error = refused(b"[" + deep + b"]", depth)
        assert error.message == f"`info` nests deeper than {depth} levels"
        assert error.reason == "limits.depth"


def test_brackets_in_strings_and_siblings_do_not_nest() -> None:
    for text in (
        b'"' + b"[{" * 1000 + b'"',
        b'["\\"[[[[\\\\","{{{{",{"]]":"[["}]',
        b"[" + b",".join([b'{"a":[]}'] * 500) + b"]",
    ):
        assert check_json(text, depth=3) == text


@pytest.mark.parametrize("levels", [2_000, 100_000])
def test_a_nesting_bomb_is_a_refusal_like_any_other(levels: int) -> None:
    for bomb in (b"[" * levels, b"[" * levels + b"]" * levels, b'{"a":' * levels):
        assert refused(bomb).reason in ("limits.depth", "invalid_data")
    assert refused(b"[" * levels + b"]" * levels).reason == "limits.depth"


def test_what_passes_stands_on_one_line() -> None:
    text = b'\r\n {"a" :\r\n [1,\n\t2] ,"b":"\\r\\n"}\t\n'
    found = check_json(text, depth=2)
    assert found == b'{"a" :   [1, \t2] ,"b":"\\r\\n"}'
    assert json.loads(found) == json.loads(text)


@given(values, st.sampled_from([None, 0, 2]), st.booleans())
def test_every_value_survives(value: object, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only, allow_nan=False).encode()
    found = check_json(text, depth=64)
    assert json.loads(found) == value
    assert b"\n" not in found


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _strict(text: bytes) -> object:
    """The same rules, the slow way."""

    def integer(digits: str) -> int:
        value = int(digits)
        if not -(2**63) <= value < 2**64:
            raise ValueError("integer")
        return value

    def decimal(digits: str) -> float:
        value = float(digits)
        if math.isinf(value):
            raise ValueError("number")
        return value

    value = json.loads(
        text.decode().strip(" \t\r\n"),
        parse_int=integer,
        parse_float=decimal,
        parse_constant=_no_constant,
    )
    json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate cannot be encoded
    return value


PIECES = st.sampled_from(
    [
        *b'[ ] { } " , : 1 - . e9 0 9999999999999999999 e308 true null NaN a "a": [] {} ""'.split(),
        *(b"\\", b"\\ud83d", b"\\ude00", b"u0", b" ", b"\n", b"\x00", b"\xc3\xa9", b"\xed\xa0\x80"),
    ]
)


@given(st.lists(PIECES, max_size=12).map(b"".join) | st.binary(max_size=12))
def test_it_agrees_with_a_slow_reader(text: bytes) -> None:
    try:
        expected = _strict(text)
    except ValueError:
        refused(text)
    else:
        assert json.loads(check_json(text, depth=64)) == expected
