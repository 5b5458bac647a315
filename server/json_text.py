"""Who may do what, and what is refused? This file: JSON text of the allowed value space (pure)."""

import json
import re
from typing import Final, Never

import msgspec

from server.errors import InvalidData

SURROGATE: Final = "lone surrogate"
_LOWEST: Final = -(2**63)
_HIGHEST: Final = 2**64 - 1

_decode: Final = msgspec.json.Decoder().decode

# What is to be looked for, after one pass: a digit as "0", an opening bracket as "[", CR and LF as
# LF, all else a blank. Plain searches in that cost a third of regular expressions on the text.
_MARKS: Final = bytes(
    48 if byte in b"0123456789" else 91 if byte in b"[{" else 10 if byte in b"\r\n" else 32
    for byte in range(256)
)
_LONG_RUN: Final = b"0" * 19

_STRING: Final = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_NOT_BRACKETS: Final = bytes(byte for byte in range(256) if byte not in b"[]{}")
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
# What is longer is not read a second time only to say what is wrong: that takes 0.1 s for 1 MiB.
_MOST_EXPLAINED: Final = 512 * 1024
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_BREAKS_TO_BLANKS: Final = bytes.maketrans(b"\r\n", b"  ")


def check_json(text: bytes, *, depth: int, name: str = "data") -> bytes:
    """Check that a JSON text is of the allowed value space, and return it on one line.

    Valid UTF-8 without byte order mark, strict syntax, at most `depth` levels of arrays and
    objects, integers from -2^63 to 2^64-1, other numbers within IEEE double, no lone surrogates.
    What is returned has no blanks around it, and blanks in place of CR and LF. Raises InvalidData,
    whose text calls the value by `name`.
    """
    text = text.strip(b" \t\r\n")
    try:
        _decode(text)
    except ValueError as error:
        raise InvalidData(f"`{name}` {explain(text, error)}") from None
    except RecursionError:
        raise too_deep(f"`{name}`", depth) from None
    marks = text.translate(_MARKS)
    if marks.count(91) > depth and _nests_deeper(text, depth):
        raise too_deep(f"`{name}`", depth)
    if _LONG_RUN in marks and not _integers_fit(text):
        raise InvalidData(f"`{name}` has an integer that is not within -2^63 to 2^64-1")
    if 10 in marks:
        # Strings cannot hold them unescaped, so these stand between tokens.
        text = text.translate(_BREAKS_TO_BLANKS)
    return text


def explain(text: bytes, error: ValueError) -> str:
    """Return what is wrong with a JSON text, in words that follow its name."""
    said = str(error)
    if isinstance(error, UnicodeDecodeError):
        return "is not valid UTF-8"
    if not text.strip(b" \t\r\n"):
        return "is empty"
    if text.startswith(b"\xef\xbb\xbf"):
        return "begins with a byte order mark"
    if "out of range" in said:
        return "has a number that is out of range"
    if _is_readable(text):
        return f"has a {SURROGATE} in a string"
    if "truncated" in said:
        return "is not valid JSON: it ends too early"
    return f"is not valid JSON: {said.removeprefix('JSON is malformed: ')}"


def too_deep(what: str, depth: int) -> InvalidData:
    """Return the refusal of a value that nests deeper than `depth`."""
    return InvalidData(f"{what} nests deeper than {depth} levels", reason="limits.depth")


def read_leniently(text: bytes) -> object:
    """Read JSON text of which msgspec refused something; raises ValueError, RecursionError.

    Invalid UTF-8 is replaced, lone surrogates stay, huge integers become None.
    """
    return json.loads(
        text.decode(errors="replace"),
        parse_int=lambda digits: int(digits) if len(digits) <= 20 else None,
        parse_constant=_refuse_constant,
    )


def _refuse_constant(name: str) -> Never:
    raise ValueError(f"{name} is not JSON")


def _is_readable(text: bytes) -> bool:
    """Tell of valid UTF-8 that msgspec refused: only lone surrogates are then left."""
    if len(text) > _MOST_EXPLAINED or _SURROGATE.search(text) is None:
        return False
    try:
        read_leniently(text)
    except (ValueError, RecursionError):
        return False
    return True


def _nests_deeper(text: bytes, depth: int) -> bool:
    """Count exactly, strings left out; 64 KiB of nothing but brackets take 2 ms."""
    level = 0
    for byte in _STRING.sub(b"", text).translate(_ONE_KIND, _NOT_BRACKETS):
        if byte == 91:
            level += 1
            if level > depth:
                return True
        else:
            level -= 1
    return False


def _integers_fit(text: bytes) -> bool:
    fit = True

    def integer(digits: str) -> int:
        nonlocal fit
        # Longer ones are not converted: the time for that grows with the square of the length.
        fit = fit and len(digits) <= 20 and _LOWEST <= int(digits) <= _HIGHEST
        return 0

    try:
        json.loads(text.decode(), parse_int=integer)
    except RecursionError:  # pragma: no cover
        return False
    return fit
