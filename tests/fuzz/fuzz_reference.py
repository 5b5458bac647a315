"""Slow readers of the same formats, made of other parts: what fuzz targets compare with."""

from __future__ import annotations

import json
import re
from math import isfinite
from typing import Any, Never

import msgpack  # type: ignore[import-untyped]

DEPTH = 64
_BLANKS = b" \t\r\n"


class Refused(ValueError):
    """The reference does not take it."""


def strict_json(text: bytes) -> Any:
    """Read one JSON text of the allowed value space; raises Refused."""
    try:
        value = json.loads(
            text.strip(_BLANKS).decode(),
            parse_constant=_refuse,
            parse_int=_integer,
            parse_float=_float,
            object_pairs_hook=_object,
        )
    except (ValueError, RecursionError) as error:
        raise Refused(str(error)) from None
    check_value(value)
    return value


def check_value(value: Any, depth: int = DEPTH) -> None:
    """Return if a value is of the allowed space; raises Refused."""
    if isinstance(value, str):
        _text(value)
    elif isinstance(value, bool) or value is None:
        pass
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise Refused("integer")
    elif isinstance(value, float):
        if not isfinite(value):
            raise Refused("not finite")
    elif isinstance(value, list | dict):
        if depth == 0:
            raise Refused("depth")
        if isinstance(value, dict):
            for key in value:
                _text(key)
        for each in value.values() if isinstance(value, dict) else value:
            check_value(each, depth - 1)
    else:
        raise Refused(type(value).__name__)


def equal(one: Any, other: Any) -> bool:
    """Compare values by type too: 1 is not 1.0, 0.0 not -0.0."""
    return repr(_sorted(one)) == repr(_sorted(other))


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def _refuse(name: str) -> Never:
    raise Refused(name)


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise Refused("integer")
    return int(digits)


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise Refused("not finite")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A key that is given again counts; what stood there before has to be a value all the same.
    for _key, value in pairs:
        if isinstance(value, str):
            _text(value)
    return dict(pairs)


def _text(value: object) -> None:
    if not isinstance(value, str):
        raise Refused("a key")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused("surrogate") from None


def strict_msgpack(payload: bytes) -> Any:
    """Read one MessagePack value of the allowed value space with the library in pure Python."""
    from msgpack.fallback import unpackb  # type: ignore[import-untyped]

    try:
        value = unpackb(payload, strict_map_key=False, raw=False)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Refused(str(error)) from None
    check_value(value)
    return value


def matches(pattern: str, channel: str) -> bool:
    """Say whether a pattern matches a channel, segment by segment."""
    names = channel.split(".")
    if channel.startswith("$") or not all(re.fullmatch("[A-Za-z0-9_~@:=-]+", n) for n in names):
        return False
    if len(channel) > 255:
        return False
    segments = pattern.split(".")
    if segments[-1] == ">":
        segments = segments[:-1]
        if len(names) <= len(segments):
            return False
        names = names[: len(segments)]
    return len(names) == len(segments) and all(
        segment in ("*", "{sub}", name) for segment, name in zip(segments, names, strict=True)
    )
