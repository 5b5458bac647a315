"""The Redis of the simulated worlds is the real one: the same calls, the same answers and keys.

What is random is drawn from seeds: calls of all scripts of presence, of channels and of the
archive's queue, with arguments as the product gives them, and now and then a key that is gone.
"""

import random
import re
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from memory_redis import MemoryRedis
from pubsub.archive_scripts import ArchiveScripts
from pubsub.envelope import pack_body, pack_member
from pubsub.event import Draft
from pubsub.presence import Member
from pubsub.presence_scripts import PresenceScripts
from pubsub.redis_client import Part
from pubsub.redis_keys import RedisKeys
from pubsub.redis_scripts import RedisScripts, Script
from redis_server import find_redis_server
from sim_leases import lease_world
from sim_presence import presence_world
from sim_redis import Server
from sim_worlds import WORLDS, wire

pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.skipif(find_redis_server() is None, reason="there is no redis-server"),
    pytest.mark.expect_log("pubsub.redis_presence", "lease of this node was gone", required=False),
    pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False),
    pytest.mark.expect_log("pubsub.redis_watch", "silent", required=False),
    pytest.mark.expect_log("server.repair", "feed reset", required=False),
]
SEEDS = range(16)
CALLS = 100
PREFIX = "same"
PATTERN = f"{{{PREFIX}:*"
KEYS = RedisKeys(PREFIX, 2)
# One in each partition: the order in which Redis tells more fields of a hash is its own.
CHANNELS = ("a", "d")
MANY_MS = 600_000

# Given to entries of a queue by the server's clock.
_is_queued = re.compile(rb"\d{13}-\d+").fullmatch
_DUMP = """
local key, kind = KEYS[1], redis.call('TYPE', KEYS[1]).ok
if kind == 'hash' then return { kind, redis.call('HGETALL', key) } end
if kind == 'string' then return { kind, redis.call('GET', key) } end
if kind == 'set' then return { kind, redis.call('SMEMBERS', key) } end
if kind == 'zset' then
  local found = redis.call('ZRANGE', key, 0, -1)
  for i = 1, #found do found[i] = { found[i], redis.call('ZSCORE', key, found[i]) } end
  return { kind, found }
end
local groups = {}
for i, group in ipairs(redis.call('XINFO', 'GROUPS', key)) do
  for at = 1, #group, 2 do
    if group[at] == 'last-delivered-id' then groups[#groups + 1] = group[at + 1] end
  end
  groups[#groups + 1] = redis.call('XPENDING', key, 'archive')
end
return { kind, redis.call('XRANGE', key, '-', '+'), groups }
"""


class Side:
    """One of the two servers; `ids` are named by when they came, since clocks differ."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._names: dict[bytes, bytes] = {}
        server.begin(PATTERN)
        if keys := self._ask(("KEYS", PATTERN)):
            self._ask(("DEL", *keys))

    def _ask(self, command: tuple[Part, ...]) -> Any:
        (answer,) = self.server.ask([command])
        return answer

    def call(self, command: tuple[Part, ...]) -> Any:
        return self.told(self._ask(command))

    def told(self, answer: Any) -> Any:
        if isinstance(answer, Exception):
            return type(answer), str(answer).partition(" ")[0]
        if isinstance(answer, list):
            return [self.told(each) for each in answer]
        if isinstance(answer, bytes) and _is_queued(answer):
            return self._names.setdefault(answer, b"id %d" % len(self._names))
        return answer

    def ids(self, names: Sequence[bytes]) -> list[bytes]:
        back = {name: at for at, name in self._names.items()}
        return [back[name] for name in names]

    def dump(self) -> dict[bytes, Any]:
        """All keys, what they hold, and for how long."""
        found = {}
        for key in sorted(self._ask(("KEYS", PATTERN))):
            kind, *held = self._ask(("EVAL", _DUMP, 1, key))
            if kind in (b"hash", b"set"):
                pairs = held[0] if kind == b"set" else zip(held[0][::2], held[0][1::2], strict=True)
                held = [sorted(pairs)]
            found[key] = (self.told([kind, *held]), self._ask(("PTTL", key)))
        return found


class Caller:
    """Draws calls as the product makes them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 1_000_000
        self.presence, self.scripts, self.archive = (
            PresenceScripts(),
            RedisScripts(),
            ArchiveScripts(),
        )
        self.queued: dict[int, list[bytes]] = {0: [], 1: []}
        self.epochs = [f"{rng.getrandbits(64):016x}" for _ in range(3)]
        self.tops: list[tuple[str, int, str]] = [(self.epochs[0], 0, self.epochs[0])]

    def draw(self) -> tuple[Script | None, Sequence[str], tuple[Any, ...]]:
        self.now += self.rng.choice((0, 1, 500, 4_000, 30_000))
        choices: list[Callable[[], tuple[Script | None, Sequence[str], tuple[Any, ...]]]] = [
            *([self._publish] * 4),
            *([self._collect] * 3),
            *([self._enter, self._depart, self._lease] * 2),
            *(self._members, self._versions, self._bury, self._open, self._leave, self._history),
            *(self._tops, self._contradict, self._purge, self._settle, self._share, self._backlog),
            *(self._adopt, self._look, self._harm),
        ]
        return self.rng.choice(choices)()

    # Presence

    def _life(self) -> str:
        number = self.rng.randrange(3)
        return f"{self.epochs[number]} node{number}"

    def _set(self, channel: str, generation: str) -> list[str]:
        return [*KEYS.presence(channel), KEYS.entries(KEYS.partition(channel), generation)]

    def _enter(self) -> Any:
        channel, life = self.rng.choice(CHANNELS), self._life()
        parts: list[Any] = []
        for number in self.rng.sample(range(5), self.rng.choice((1, 2))):
            name = f"s{number}"
            info = self.rng.choice((b"{}", b"1"))
            parts += (name, pack_member(Member(name, "u", info)))
        head = (self.now, channel, KEYS.address(channel), "PUBLISH", life)
        keys = [*self._set(channel, life[:16]), KEYS.lives(KEYS.partition(channel))]
        return self.presence.enter, keys, (*head, *parts)

    def _depart(self) -> Any:
        channel, generation = self.rng.choice(CHANNELS), self._life()[:16]
        head = (self.now, channel, KEYS.address(channel), "PUBLISH")
        whose = self.rng.choice(("", generation))
        sessions = [f"s{number}" for number in self.rng.sample(range(6), 2)]
        keys = self._set(channel, generation)
        return self.presence.depart, keys, (*head, whose, MANY_MS, *sessions)

    def _members(self) -> Any:
        start = self.rng.choice(("-", "(s1", "(s3"))
        keys = KEYS.presence(self.rng.choice(CHANNELS))
        return self.presence.members, keys, (self.now, start, self.rng.choice((0, 1, 9)), MANY_MS)

    def _versions(self) -> Any:
        channel = self.rng.choice(CHANNELS)
        told = self.rng.choice((0, self.now * 1000 + 5))
        return self.presence.versions, [KEYS.presence(channel)[2]], (self.now, MANY_MS, told)

    def _lease(self) -> Any:
        take = self.rng.random() < 0.4
        claimed = "" if take else self.rng.choice(("", self._life()))
        parts = (self.now, self._life(), 9_000, int(take), claimed, self.rng.randrange(2))
        return self.presence.lease, KEYS.leases, parts

    def _adopt(self) -> Any:
        return self.presence.adopt, KEYS.leases[:1], (self._life(), self._life())

    def _left(self) -> Any:
        # Which of more it tells is the server's own chance.
        life, partition = self._life(), self.rng.randrange(2)
        keys = (KEYS.entries(partition, life[:16]), KEYS.lives(partition))
        return self.presence.left, keys, (life, 1)

    def _bury(self) -> Any:
        return self.presence.bury, KEYS.leases, (self._life(), self._life())

    # Channels

    def _publish(self) -> Any:
        names = [f"e{self.rng.randrange(400)}" for _ in range(self.rng.choice((1, 2, 5)))]
        return self.publish(self.rng.choice(CHANNELS), names)

    def publish(self, channel: str, names: Sequence[str]) -> Any:
        partition = KEYS.partition(channel)
        keys = [KEYS.record(channel), KEYS.stream(channel), *KEYS.ids(channel)]
        keys += (*KEYS.lists(partition), *KEYS.queue(partition))
        parts: list[Any] = []
        for name in names:
            parts += (name, pack_body(Draft(channel, name, "n", b'"x"')))
        rng = self.rng
        return (
            self.scripts.publish,
            keys,
            (
                *(self.now, rng.choice(self.epochs), channel, KEYS.address(channel), "PUBLISH"),
                *(rng.choice(("1", "1", "0", "-")), rng.choice((0, 3, 100)), 100_000, 0, 60_000),
                *(MANY_MS, rng.randrange(2), int(rng.random() < 0.8), 0, rng.choice((3, 5, 0)), ""),
                *parts,
            ),
        )

    def _lists(self, channel: str) -> Any:
        return KEYS.lists(KEYS.partition(channel))

    def _open(self) -> Any:
        channel = self.rng.choice(CHANNELS)
        keys = [KEYS.record(channel), KEYS.stream(channel), *self._lists(channel)]
        head = (self.now, self.rng.choice(self.epochs), channel, KEYS.address(channel), "PUBLISH")
        tail = (self.rng.choice((0, 1)), MANY_MS, self.rng.choice("xy"), 15_000, 1)
        return self.scripts.open, keys, (*head, *tail)

    def _leave(self) -> Any:
        key = KEYS.record(self.rng.choice(CHANNELS))
        return self.scripts.leave, [key], (self.now, self.rng.choice("xy"), MANY_MS)

    def _history(self) -> Any:
        channel, rng = self.rng.choice(CHANNELS), self.rng
        keys = [KEYS.record(channel), KEYS.stream(channel)]
        top = rng.choice(self.tops)[1]
        parts = (rng.choice((0, top - 2)), rng.choice(("", top)), 7, *rng.choices((0, 1), k=2))
        return self.scripts.history, keys, (self.now, *parts)

    def _tops(self) -> Any:
        channel = self.rng.choice(CHANNELS)
        keys = [*self._lists(channel), KEYS.record(channel)]
        return self.scripts.tops, keys, (self.now, "x", 15_000, MANY_MS, channel)

    def _contradict(self) -> Any:
        channel = self.rng.choice(CHANNELS)
        keys = [KEYS.record(channel), KEYS.stream(channel), self._lists(channel)[0]]
        head = (self.now, f"{self.rng.getrandbits(64):016x}", channel, KEYS.address(channel))
        epoch, offset, check = self.rng.choice(self.tops)
        if self.rng.random() < 0.5:
            check = "f" * 16
        return (
            self.scripts.contradict,
            keys,
            (*head, "PUBLISH", 1, MANY_MS, epoch, offset, check, 1),
        )

    def _purge(self) -> Any:
        channel = self.rng.choice(CHANNELS)
        keys = [KEYS.record(channel), KEYS.stream(channel), *KEYS.queue(KEYS.partition(channel))]
        parts = (KEYS.address(channel), "PUBLISH", MANY_MS, channel, self.rng.randrange(2), 3)
        return self.scripts.purge, keys, (self.now, *parts)

    def _settle(self) -> Any:
        channel = self.rng.choice(CHANNELS)
        return (
            self.scripts.settle,
            [*self._lists(channel), KEYS.record(channel)],
            (
                self.now,
                channel,
            ),
        )

    # The archive's queue

    def _collect(self) -> Any:
        partition, rng = self.rng.randrange(2), self.rng
        have = self.queued[partition]
        done = rng.choice(([], have, have[:1], have[1:]))
        self.queued[partition] = []
        parts = (rng.choice((1, 3, 500)), rng.choice((100, 100_000)), rng.choice((3, 5, 0)))
        return self.archive.collect, KEYS.queue(partition), (*parts, *done)

    def _share(self) -> Any:
        parts = (self.now, self.rng.choice("xyz"), 9_000, 2, int(self.rng.random() < 0.2))
        return self.archive.share, KEYS.shares, parts

    def _backlog(self) -> Any:
        return self.archive.backlog, KEYS.queue(self.rng.randrange(2)), ()

    # Without a script

    def _look(self) -> Any:
        key = KEYS.entries(self.rng.randrange(2), self._life()[:16])
        return None, (), ("SREM", key, f"{self.rng.choice(CHANNELS)}\0s1")

    def _harm(self) -> Any:
        channel = self.rng.choice(CHANNELS)
        partition = KEYS.partition(channel)
        queue = KEYS.queue(partition)[0]
        keys = [KEYS.record(channel), KEYS.stream(channel), KEYS.presence(channel)[0], queue]
        keys += (KEYS.presence(channel)[2], *KEYS.leases)
        key = self.rng.choice(keys)
        self.queued[partition] = []
        return None, (), self.rng.choice((("DEL", key), ("PEXPIRE", key, 0)))

    def learn(self, script: Script | None, keys: Sequence[str], answer: Any) -> None:
        """Take from an answer what later calls may say."""
        if script is self.archive.collect and isinstance(answer, list):
            partition = next(p for p in (0, 1) if KEYS.queue(p) == tuple(keys))
            self.queued[partition] = [name for name, _fields in answer[3:]]
        elif script is self.scripts.publish and isinstance(answer, list) and answer[1]:
            fresh = [each for each in answer[3:] if len(each) == 16]
            top = int(answer[2]) + len(fresh)
            self.tops.append((answer[1].decode(), top, fresh[-1].decode()))


class Pair:
    """Both servers, and who calls them: what they answer, publish and hold is the same."""

    def __init__(self, seed: int) -> None:
        self.began = time.monotonic()
        self.model = MemoryRedis(lambda: time.time_ns() // 1_000_000)
        self.sides = [Side(wire()), Side(self.model)]
        self.caller = Caller(random.Random(seed))

    def call(self, script: Script | None, keys: Sequence[str], parts: tuple[Any, ...]) -> Any:
        """Let both carry a call out; return their answer."""
        collects = script is self.caller.archive.collect
        answers = []
        for side in self.sides:
            given: Any = parts
            if collects:
                given = (*parts[:3], *side.ids(parts[3:]))
            if script is not None:
                given = ("EVAL", script.text, len(keys), *keys, *given)
            answer = side.call(given)
            if collects and isinstance(answer, list):
                # How old the oldest is.
                answer[1] = 0
            answers.append(answer)
        assert answers[0] == answers[1], (script and script.name, keys, parts)
        pushed = [list(side.server.pushed) for side in self.sides]
        assert pushed[0] == pushed[1]
        for side in self.sides:
            side.server.pushed.clear()
        self.caller.learn(script, keys, answers[0])
        self._compare()
        return answers[0]

    def _compare(self) -> None:
        real, modelled = (side.dump() for side in self.sides)
        assert real.keys() == modelled.keys()
        # A call came to one of them later than to the other, by no more than all took.
        slack_ms = (time.monotonic() - self.began) * 1000 + 50
        for key, (held, lasts_ms) in real.items():
            also, also_ms = modelled[key]
            assert held == also, key
            assert (lasts_ms < 0) == (also_ms < 0) and abs(lasts_ms - also_ms) <= slack_ms, key


@pytest.mark.parametrize("seed", SEEDS)
def test_the_same_calls_have_the_same_answers(seed: int) -> None:
    pair = Pair(seed)
    met = set()
    for _ in range(CALLS):
        script, keys, parts = pair.caller.draw()
        answer = pair.call(script, keys, parts)
        met.add((script and script.name, isinstance(answer, tuple)))
    assert len(met) > 12
    pair.sides[0].server.end(PATTERN)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_channel_is_trimmed_alike(seed: int) -> None:
    """`MAXLEN ~` lets go of whole nodes, and what was let go within one leaves it no room.

    The model cut to multiples of 100 entries, wherever a node began.
    """
    pair = Pair(seed)
    rng, (channel, _other) = pair.caller.rng, CHANNELS
    number, lengths = 0, []
    for _ in range(60):
        count = rng.choice((1, 20, 37, 100))
        names = [f"long{number + place}" for place in range(count)]
        number += count
        pair.call(*pair.caller.publish(channel, names))
        stream: Any = pair.model.find(KEYS.stream(channel).encode())
        lengths.append(len(stream.ids))
        if rng.random() < 0.2 and len(stream.ids) > 150:
            oldest = b"%d-%d" % stream.ids[rng.choice((30, 130))]
            pair.call(None, (), ("XTRIM", KEYS.stream(channel), "MINID", oldest))
    assert any(later < earlier for earlier, later in pairwise(lengths))
    pair.sides[0].server.end(PATTERN)


def test_a_key_is_there_until_its_time_is_over() -> None:
    """The model let it go a millisecond early: when nothing was left of its time."""
    key, lasts_ms = f"{{{PREFIX}}}:ends", 5
    now_ms = 1_000
    model = MemoryRedis(lambda: now_ms)
    model.ask([("SET", key, "x", "PX", lasts_ms)])
    told = []
    for _ in range(lasts_ms + 2):
        told += model.ask([("PTTL", key)])
        now_ms += 1
    assert told == [5, 4, 3, 2, 1, 0, -2]
    server = wire()
    for _ in range(100):
        server.ask([("SET", key, "x", "PX", lasts_ms)])
        real: list[int] = []
        while not real or real[-1] != -2:
            real += server.ask([("PTTL", key)])
        assert set(real) <= set(told)
        # A process that has to wait does not look at it in each millisecond.
        if 0 in real:
            return
    raise AssertionError("a key of Redis's goes earlier")


@pytest.mark.parametrize("name", ["leases", "presence"])
def test_a_world_is_the_same_over_either(name: str) -> None:
    open_world: Any = {"leases": lease_world, "presence": presence_world}[name]
    assert name in WORLDS
    for seed in range(12):
        traces = []
        for server in (None, wire()):
            with open_world(seed, server) as world:
                world.play()
                traces.append(world.trace())
        assert traces[0] == traces[1]
