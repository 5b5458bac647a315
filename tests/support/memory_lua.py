"""A Redis in memory. This file: the product's own Lua, run by Lua 5.1 as in Redis.

What a script sees of Redis is `redis.call`, `redis.pcall`, `redis.sha1hex`, `cmsgpack.pack` and
`struct.pack`; values are converted as Redis converts them.
"""

import struct
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha1
from typing import Any

import msgpack  # type: ignore[import-untyped]
from lupa import lua51  # type: ignore[import-untyped]

from memory_streams import ReplyError

Call = Callable[..., Any]


class Lua:
    """One interpreter of the process; a script is compiled once."""

    def __init__(self) -> None:
        self._lua: Any = lua51.LuaRuntime(encoding=None)
        self._table = self._lua.table_from
        self._scripts: dict[bytes, Any] = {}
        self._call: Call
        names = self._lua.globals()
        names[b"redis"] = self._table(
            {b"call": self._do, b"pcall": self._try, b"sha1hex": _sha1hex}
        )
        names[b"cmsgpack"] = self._table({b"pack": _pack})
        names[b"struct"] = self._table({b"pack": _struct_pack})

    def run(self, text: bytes, keys: Sequence[bytes], args: Sequence[bytes], call: Call) -> Any:
        """Run a script; `call` carries a command out, given as bytes."""
        script = self._scripts.get(text)
        if script is None:
            script = self._lua.compile(b"local KEYS, ARGV = ...\n" + text)
            self._scripts[text] = script
        self._call = call
        try:
            return self._answer(script(self._table(keys), self._table(args)))
        except lua51.LuaError as error:
            raise ReplyError(f"ERR {error}") from None

    def _do(self, *parts: Any) -> Any:
        given = [part if type(part) is bytes else _text(part) for part in parts]
        return self._value(self._call(given))

    def _try(self, *parts: Any) -> Any:
        try:
            return self._do(*parts)
        except ReplyError as error:
            return self._table({b"err": str(error).encode()})

    def _value(self, answer: Any) -> Any:
        """What Lua sees of an answer."""
        kind = type(answer)
        if kind is bytes or kind is int:
            return answer
        if answer is None:
            return False
        if kind is list:
            return self._table([self._value(each) for each in answer])
        if kind is str:
            return self._table({b"ok": answer.encode()})
        raise TypeError(kind)

    def _answer(self, value: Any) -> Any:
        """What the caller sees of what Lua returned."""
        kind = type(value)
        if kind is bytes or kind is int:
            return value
        if kind is bool:
            return 1 if value else None
        if kind is float:
            return int(value)
        if value is None:
            return None
        answers = []
        for place in range(1, len(value) + 1):
            each = value[place]
            if each is None:
                break
            answers.append(self._answer(each))
        return answers


@cache
def lua() -> Lua:
    """The interpreter of this process."""
    return Lua()


def _text(part: Any) -> bytes:
    if type(part) is int:
        return b"%d" % part
    if type(part) is float:
        return b"%.17g" % part
    raise ReplyError("ERR Lua redis lib command arguments must be strings or integers")


def _sha1hex(text: bytes) -> bytes:
    return sha1(text, usedforsecurity=False).hexdigest().encode()


def _pack(value: bytes | int) -> bytes:
    assert not isinstance(value, bytes) or len(value) < 32, "Redis would choose another form"
    packed: bytes = msgpack.packb(value, use_bin_type=False)
    return packed


def _struct_pack(form: bytes, *values: int) -> bytes:
    return struct.pack(form.decode(), *values)
