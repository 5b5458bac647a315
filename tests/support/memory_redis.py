"""A Redis in memory, for simulated worlds: exactly the commands that the product's scripts use.

The scripts themselves are the product's, run by `memory_lua`. Time comes from a clock that is
given, and nothing is left to chance: sets are told in order.
`tests/simulation/test_memory_redis.py` holds it against a real server, answer by answer and key by
key.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha1
from typing import Any, TypeVar

from redis.exceptions import NoScriptError, ResponseError

from memory_lua import lua
from memory_streams import ReplyError, Stream
from pubsub.redis_client import Part

T = TypeVar("T")
OK = "OK"
_WRONG = "WRONGTYPE Operation against a key holding the wrong kind of value"


class SortedSet(dict[bytes, float]):
    """Members and their scores."""

    def ranked(self) -> list[bytes]:
        return [member for _score, member in sorted((s, m) for m, s in self.items())]


class MemoryRedis:
    """One server; `now_ms` is its clock. It stands where a `sim_redis.Wire` does."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.now_ms = now_ms
        self.values: dict[bytes, Any] = {}
        self.ends: dict[bytes, int] = {}
        self.pushed: list[tuple[bytes, bytes]] = []
        self._scripts: dict[bytes, bytes] = {}
        self._lua = lua()
        self._verbs: dict[bytes, Callable[..., Any]] = {
            name.upper().encode(): getattr(self, f"_{name}") for name in _VERBS
        }

    def begin(self, _pattern: str) -> None:
        """Know no script."""
        self.pushed.clear()
        self._scripts.clear()

    def end(self, _pattern: str) -> None:
        pass

    def ask(self, commands: Sequence[tuple[Part, ...]]) -> list[Any]:
        """Carry commands out; `pushed` holds what they published, in order."""
        answers: list[Any] = []
        for command in commands:
            try:
                answers.append(self.call([_bytes(part) for part in command]))
            except ReplyError as error:
                text = str(error)
                if text.startswith("NOSCRIPT"):
                    answers.append(NoScriptError(text.partition(" ")[2]))
                else:
                    answers.append(ResponseError(text))
        return [each.encode() if type(each) is str else each for each in answers]

    def call(self, parts: list[bytes]) -> Any:
        """Carry one command out; raises ReplyError."""
        verb = self._verbs.get(parts[0])
        if verb is None:
            raise ReplyError(f"ERR unknown command '{parts[0].decode()}'")
        return verb(*parts[1:])

    # Keys

    def find(self, key: bytes) -> Any:
        """Return what is at a key, or None."""
        end = self.ends.get(key)
        if end is not None and end < self.now_ms():
            self._forget(key)
        return self.values.get(key)

    def _at(self, key: bytes, kind: type[T]) -> T | None:
        value = self.find(key)
        if value is not None and type(value) is not kind:
            raise ReplyError(_WRONG)
        return value

    def _made(self, key: bytes, kind: type[T]) -> T:
        value = self._at(key, kind)
        if value is None:
            value = self.values[key] = kind()
        return value

    def _forget(self, key: bytes) -> None:
        self.values.pop(key, None)
        self.ends.pop(key, None)

    def _tidy(self, key: bytes, value: Any) -> None:
        if not value:
            self._forget(key)

    def _exists(self, *keys: bytes) -> int:
        return sum(self.find(key) is not None for key in keys)

    def _del(self, *keys: bytes) -> int:
        found = self._exists(*keys)
        for key in keys:
            self._forget(key)
        return found

    _unlink = _del

    def _keys(self, pattern: bytes) -> list[bytes]:
        assert pattern.endswith(b"*") and b"*" not in pattern[:-1]
        return [key for key in list(self.values) if key.startswith(pattern[:-1]) and self.find(key)]

    def _pexpire(self, key: bytes, lasts: bytes) -> int:
        if self.find(key) is None:
            return 0
        self.ends[key] = self.now_ms() + int(lasts)
        if int(lasts) <= 0:
            self._forget(key)
        return 1

    def _persist(self, key: bytes) -> int:
        return int(self.find(key) is not None and self.ends.pop(key, None) is not None)

    def _pttl(self, key: bytes) -> int:
        if self.find(key) is None:
            return -2
        end = self.ends.get(key)
        return -1 if end is None else end - self.now_ms()

    def _type(self, key: bytes) -> str:
        return _TYPES[type(self.find(key))]

    def _time(self) -> list[bytes]:
        now = self.now_ms()
        return [b"%d" % (now // 1000), b"%d" % (now % 1000 * 1000)]

    def _ping(self) -> str:
        return "PONG"

    # Strings

    def _get(self, key: bytes) -> bytes | None:
        return self._at(key, bytes)

    def _set(self, key: bytes, value: bytes, *options: bytes) -> str:
        self.find(key)
        self.values[key] = value
        if options[:1] == (b"PX",):
            self.ends[key] = self.now_ms() + int(options[1])
        elif options != (b"KEEPTTL",):
            assert not options
            self.ends.pop(key, None)
        return OK

    def _incr(self, key: bytes) -> int:
        number = int(self._get(key) or 0) + 1
        self.values[key] = b"%d" % number
        return number

    # Hashes

    def _hget(self, key: bytes, field: bytes) -> bytes | None:
        found: dict[bytes, bytes] | None = self._at(key, dict)
        return None if found is None else found.get(field)

    def _hmget(self, key: bytes, *fields: bytes) -> list[bytes | None]:
        found: dict[bytes, bytes] = self._at(key, dict) or {}
        return [found.get(field) for field in fields]

    def _hgetall(self, key: bytes) -> list[bytes]:
        return [part for pair in (self._at(key, dict) or {}).items() for part in pair]

    def _hkeys(self, key: bytes) -> list[bytes]:
        return list(self._at(key, dict) or {})

    def _hexists(self, key: bytes, field: bytes) -> int:
        return int(field in (self._at(key, dict) or {}))

    def _hlen(self, key: bytes) -> int:
        return len(self._at(key, dict) or {})

    def _hset(self, key: bytes, *pairs: bytes) -> int:
        found = self._made(key, dict)
        before = len(found)
        found.update(zip(pairs[::2], pairs[1::2], strict=True))
        return len(found) - before

    def _hsetnx(self, key: bytes, field: bytes, value: bytes) -> int:
        found = self._made(key, dict)
        if field in found:
            return 0
        found[field] = value
        return 1

    def _hdel(self, key: bytes, *fields: bytes) -> int:
        found = self._at(key, dict)
        if found is None:
            return 0
        gone = sum(found.pop(field, None) is not None for field in fields)
        self._tidy(key, found)
        return gone

    def _hrandfield(self, key: bytes, count: bytes, values: bytes) -> list[bytes]:
        assert values == b"WITHVALUES"
        return self._hgetall(key)[: 2 * int(count)]

    # Sets

    def _sadd(self, key: bytes, *members: bytes) -> int:
        found = self._made(key, set)
        before = len(found)
        found.update(members)
        return len(found) - before

    def _srem(self, key: bytes, *members: bytes) -> int:
        found = self._at(key, set) or set()
        gone = len(found.intersection(members))
        found.difference_update(members)
        self._tidy(key, found)
        return gone

    def _smembers(self, key: bytes) -> list[bytes]:
        return sorted(self._at(key, set) or ())

    def _srandmember(self, key: bytes, count: bytes) -> list[bytes]:
        return self._smembers(key)[: int(count)]

    def _sscan(self, key: bytes, _cursor: bytes, *_options: bytes) -> list[Any]:
        return [b"0", self._smembers(key)]

    # Sorted sets

    def _zadd(self, key: bytes, *pairs: bytes) -> int:
        found = self._made(key, SortedSet)
        before = len(found)
        found.update(zip(pairs[1::2], map(float, pairs[::2]), strict=True))
        return len(found) - before

    def _zrem(self, key: bytes, *members: bytes) -> int:
        found = self._at(key, SortedSet) or SortedSet()
        gone = sum(found.pop(member, None) is not None for member in members)
        self._tidy(key, found)
        return gone

    def _zcard(self, key: bytes) -> int:
        return len(self._at(key, SortedSet) or ())

    def _zscore(self, key: bytes, member: bytes) -> bytes | None:
        score = (self._at(key, SortedSet) or SortedSet()).get(member)
        return None if score is None else b"%.17g" % score

    def _ranked(self, key: bytes) -> list[bytes]:
        return (self._at(key, SortedSet) or SortedSet()).ranked()

    def _zrange(self, key: bytes, first: bytes, last: bytes) -> list[bytes]:
        ranked = self._ranked(key)
        begin, end = (len(ranked) + at if at < 0 else at for at in (int(first), int(last)))
        return ranked[max(0, begin) : end + 1]

    def _zrangebylex(self, key: bytes, first: bytes, last: bytes, *limit: bytes) -> list[bytes]:
        def from_(name: bytes) -> bool:
            return first == b"-" or (name > first[1:] or (first[:1] == b"[" and name == first[1:]))

        assert last == b"+"
        return _limited([name for name in self._ranked(key) if from_(name)], limit)

    def _zrangebyscore(self, key: bytes, first: bytes, last: bytes, *limit: bytes) -> list[bytes]:
        found = self._at(key, SortedSet) or SortedSet()
        low, high = _bound(first), _bound(last)
        names = [
            name for name in found.ranked() if low(found[name], True) and high(found[name], False)
        ]
        return _limited(names, limit)

    # Streams

    def _xadd(self, key: bytes, *rest: bytes) -> bytes:
        most = None
        if rest[0] == b"MAXLEN":
            assert rest[1] == b"~"
            most, rest = int(rest[2]), rest[3:]
        stream = self._made(key, Stream)
        at = stream.add(rest[0], rest[1:], self.now_ms())
        if most is not None:
            stream.about(most)
        return at

    def _xlen(self, key: bytes) -> int:
        stream = self._at(key, Stream)
        return 0 if stream is None else len(stream.ids)

    def _xrange(self, key: bytes, first: bytes, last: bytes, *count: bytes) -> list[Any]:
        return (self._at(key, Stream) or Stream()).range(first, last, _count(count))

    def _xrevrange(self, key: bytes, last: bytes, first: bytes, *count: bytes) -> list[Any]:
        return (self._at(key, Stream) or Stream()).reversed(last, first, _count(count))

    def _xtrim(self, key: bytes, how: bytes, bound: bytes) -> int:
        stream = self._at(key, Stream) or Stream()
        if how == b"MAXLEN":
            return stream.cut(len(stream.ids) - int(bound))
        assert how == b"MINID"
        return stream.cut(stream._places(bound, b"+")[0])

    def _xinfo(self, kind: bytes, key: bytes) -> list[Any]:
        stream = self._at(key, Stream)
        if stream is None:
            raise ReplyError("ERR no such key")
        if kind == b"STREAM":
            return [b"length", len(stream.ids), b"last-generated-id", b"%d-%d" % stream.last]
        assert kind == b"GROUPS"
        return [
            [b"name", name, b"last-delivered-id", b"%d-%d" % group.delivered]
            for name, group in sorted(stream.groups.items())
        ]

    def _xgroup(self, verb: bytes, key: bytes, name: bytes, at: bytes, *make: bytes) -> str:
        assert verb == b"CREATE"
        stream = self._made(key, Stream) if make == (b"MKSTREAM",) else self._at(key, Stream)
        if stream is None:
            raise ReplyError("ERR The XGROUP subcommand requires the key to exist.")
        stream.create(name, at)
        return OK

    def _xack(self, key: bytes, name: bytes, *ids: bytes) -> int:
        stream = self._at(key, Stream)
        return 0 if stream is None else stream.acknowledge(name, ids)

    def _xpending(self, key: bytes, name: bytes) -> list[Any]:
        return (self._at(key, Stream) or Stream()).pending(name)

    def _xreadgroup(self, *parts: bytes) -> list[Any] | None:
        word, name, consumer, counted, count, *options, streams, key, at = parts
        assert options in ([], [b"NOACK"])
        assert (word, counted, streams) == (b"GROUP", b"COUNT", b"STREAMS")
        found = (self._at(key, Stream) or Stream()).read(
            name, consumer, at, int(count), bool(options)
        )
        return None if found is None else [[key, found]]

    # Scripts and pub/sub

    def _eval(self, text: bytes, count: bytes, *parts: bytes) -> Any:
        self._scripts[_digest(text)] = text
        keys = int(count)
        return self._lua.run(text, parts[:keys], parts[keys:], self.call)

    def _evalsha(self, digest: bytes, *parts: bytes) -> Any:
        text = self._scripts.get(digest)
        if text is None:
            raise ReplyError("NOSCRIPT No matching script. Please use EVAL.")
        keys = int(parts[0]) + 1
        return self._lua.run(text, parts[1:keys], parts[keys:], self.call)

    def _publish(self, channel: bytes, payload: bytes) -> int:
        self.pushed.append((channel, payload))
        return 1

    _spublish = _publish


_TYPES = {
    type(None): "none",
    bytes: "string",
    dict: "hash",
    set: "set",
    SortedSet: "zset",
    Stream: "stream",
}
_VERBS = [
    *("exists", "del", "unlink", "keys", "type", "time", "ping", "pexpire", "persist", "pttl"),
    *("get", "set", "incr", "publish", "spublish", "eval", "evalsha"),
    *("hget", "hmget", "hgetall", "hkeys", "hexists", "hlen", "hset", "hsetnx", "hdel"),
    *("hrandfield", "sadd", "srem", "smembers", "srandmember", "sscan"),
    *("zadd", "zrem", "zcard", "zscore", "zrange", "zrangebylex", "zrangebyscore"),
    *("xadd", "xlen", "xrange", "xrevrange", "xtrim", "xinfo", "xgroup", "xack", "xpending"),
    "xreadgroup",
]


@cache
def _digest(text: bytes) -> bytes:
    return sha1(text, usedforsecurity=False).hexdigest().encode()


def _bytes(part: Part) -> bytes:
    if type(part) is bytes:
        return part
    if type(part) is int:
        return b"%d" % part
    return str(part).encode()


def _limited(names: list[bytes], limit: Sequence[bytes]) -> list[bytes]:
    if not limit:
        return names
    word, skip, count = limit
    assert word == b"LIMIT"
    begin = int(skip)
    return names[begin:] if int(count) < 0 else names[begin : begin + int(count)]


def _count(option: Sequence[bytes]) -> int | None:
    assert option[:1] in ((), (b"COUNT",))
    return int(option[1]) if option else None


def _bound(text: bytes) -> Callable[[float, bool], bool]:
    """Return whether a score lies within a bound, which is the lower one or not."""
    open_ = text[:1] == b"("
    at = float(text.lstrip(b"("))
    if math.isinf(at):
        return lambda score, low: (score >= at) if low else (score <= at)

    def within(score: float, low: bool) -> bool:
        return (score != at or not open_) and (score >= at if low else score <= at)

    return within
