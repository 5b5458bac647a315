"""Who may do what, and what is refused? This file: MessagePack of the JSON value space (pure)."""

import re
from math import isfinite
from typing import Any, Final, Never

import msgpack  # type: ignore[import-untyped]
import msgspec

from server.errors import InvalidData
from server.json_text import too_deep

_skip: Final = msgspec.msgpack.Decoder(msgspec.Raw).decode
_encode: Final = msgspec.msgpack.Encoder().encode
_decode_json: Final = msgspec.json.Decoder().decode
_encode_json: Final = msgspec.json.Encoder().encode

# First bytes of containers; they are no ASCII, so most texts have none of them.
_CONTAINERS: Final = bytes([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
# First bytes of what may lie outside the JSON value space: bin, ext and floats.
_SUSPECTS: Final = re.compile(rb"[\xc4-\xcb\xd4-\xd8]")

_TEXTS: Final = frozenset({str})


def unpack(payload: bytes, *, depth: int, name: str = "data") -> object:
    """Read one MessagePack value of the JSON value space, which must fill `payload`.

    At most `depth` levels of arrays and maps. Bin, ext, NaN, infinities and keys that are not
    strings are refused. Memory stays within a small multiple of the payload's size, whatever
    lengths it announces. Raises InvalidData, whose text calls the value by `name`.
    """
    try:
        # `unpackb` makes room for announced lengths before it reads: 64 KiB of headers reserve
        # hundreds of MB. Skipping over the value first, which allocates nothing, proves that as
        # many bytes are there as are announced, and bounds the nesting.
        _skip(payload)
    except RecursionError:
        raise too_deep(f"`{name}`", depth) from None
    except ValueError as error:
        raise InvalidData(f"`{name}` {_explain(error)}") from None
    size = len(payload)
    try:
        value: object = msgpack.unpackb(
            payload,
            raw=False,
            strict_map_key=True,
            ext_hook=_refuse_ext,
            max_str_len=size,
            max_bin_len=0,
            max_array_len=size,
            max_map_len=size,
            max_ext_len=0,
        )
    except InvalidData as refused:
        raise InvalidData(f"`{name}` {refused.message}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, RecursionError | msgpack.StackError):
            raise too_deep(f"`{name}`", depth) from None
        raise InvalidData(f"`{name}` {_explain(error)}") from None
    headers = size - len(payload.translate(None, _CONTAINERS))
    if headers > depth or _SUSPECTS.search(payload) is not None:
        _check(value, depth, name)
    return value


def to_json(value: object) -> bytes:
    """Return what `unpack` gave as JSON text, without blanks."""
    return _encode_json(value)


def from_json(text: bytes) -> bytes:
    """Return checked JSON text as MessagePack; floats stay floats, integers stay integers."""
    return _encode(_decode_json(text))


def flaw(payload: bytes) -> str | None:
    """Return what is wrong with the structure, in words that follow a name; None: nothing."""
    try:
        _skip(payload)
    except ValueError as error:
        return _explain(error)
    return None


def _explain(error: Exception) -> str:
    """Return what is wrong with a MessagePack value, in words that follow its name."""
    said = str(error)
    if isinstance(error, UnicodeDecodeError):
        return "is not valid UTF-8 in a string"
    if "truncated" in said:
        return "is not valid MessagePack: it ends too early"
    if "map key" in said:
        return "has a key that is not a string"
    if "max_bin_len" in said:
        return "has binary, which JSON cannot hold"
    if "max_ext_len" in said or "timestamp" in said:
        return "has an extension type, which JSON cannot hold"
    return f"is not valid MessagePack: {said.removeprefix('MessagePack data is malformed: ')}"


def _refuse_ext(_code: int, _data: bytes) -> Never:
    raise InvalidData("has an extension type, which JSON cannot hold")


def _check(value: object, depth: int, name: str) -> None:
    """Walk a value level by level: depth, floats, binary that is empty, keys."""
    level: list[Any] = [value]
    left = depth
    while level:
        below: list[Any] = []
        # The types of a whole level at once cost a tenth of a look at each value.
        kinds = set(map(type, level))
        if bytes in kinds:
            raise InvalidData(f"`{name}` has binary, which JSON cannot hold")
        if float in kinds and not all(isfinite(each) for each in level if type(each) is float):
            raise InvalidData(f"`{name}` has NaN or an infinity, which JSON cannot hold")
        if list in kinds or dict in kinds:
            left -= 1
            if left < 0:
                raise too_deep(f"`{name}`", depth)
            keys: set[type] = set()
            for each in level:
                if type(each) is list:
                    below += each
                elif type(each) is dict:
                    keys.update(map(type, each))
                    below += each.values()
            if not keys <= _TEXTS:
                raise InvalidData(f"`{name}` has a key that is not a string")
        level = below
