"""Rules 23 and 24: who is present in Redis, whatever dies or is lost."""

import asyncio
from collections import Counter

import pytest

from broker_rig import Clock
from config.rules import ChannelRule
from presence_rig import LEASE_S, member, open_presence_node, open_presence_nodes, rounds, timed
from pubsub import node_entries
from pubsub.node_lease import generation_of
from pubsub.redis_keys import RedisKeys
from redis_rig import AstrayKeys, open_redis_node, until
from redis_server import RedisServer
from rule_rig import calls

GONE = pytest.mark.expect_log("pubsub.redis_presence", "lease of this node was gone")
# What a busy machine takes. Where it stands still for longer than a lease, all get another one.
MARGIN_S = 10.0
MAYBE_GONE = pytest.mark.expect_log(
    "pubsub.redis_presence", "lease of this node was gone", required=False
)


async def test_rule_23_a_dead_nodes_members_leave_once(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    async with open_presence_nodes(server, 4, **timed(clock, keys)) as (dead, *others):
        channels = [f"c{number}" for number in range(20)]
        for node in others:
            await node.watch(*channels)
        for channel in channels:
            await asyncio.gather(*(dead.enter(f"d{n}", channel=channel) for n in range(15)))
            await others[0].enter("stays", channel=channel)
        await rounds(clock, LEASE_S, dead, *others)
        await dead.die()
        junk = keys.entries(0, generation_of(dead.store.lease.life))
        server.ask("SADD", junk, b"junk", b"\xff\0s", b"a\0b\0c")
        await rounds(clock, LEASE_S * 2 / 3, *others)
        assert len(await others[0].sessions("c0")) == 16
        await rounds(clock, LEASE_S / 3, *others)
        for node in others:
            await node.settle()
            for channel in channels:
                assert await node.sessions(channel) == ["stays"]
                left = Counter(node.heard.short(channel))
                assert left == Counter(
                    [("join", "stays")]
                    + [(action, f"d{n}") for action in ("join", "leave") for n in range(15)]
                )
        assert server.ask("ZCARD", keys.leases[0]) == 3
        await rounds(clock, 2 * LEASE_S, *others)
        generation = generation_of(dead.store.lease.life)
        assert server.ask("KEYS", f"*:e:{generation}") == []


async def test_rule_23_a_claimer_that_dies_in_the_middle_is_replaced(
    server: RedisServer, keys: RedisKeys, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_entries, "_BATCH", 2)
    async with open_presence_nodes(server, 3, **timed(clock, keys)) as (dead, claimer, other):
        await other.watch("a")
        await dead.enter(*(f"d{number}" for number in range(9)))
        await claimer.enter("c")
        await rounds(clock, LEASE_S, dead, claimer, other)
        await dead.die()
        await rounds(clock, LEASE_S * 2 / 3, claimer, other)
        clock.advance(LEASE_S / 3)
        await claimer.store.lease.beat()
        assert claimer.store.lease.claimed == dead.store.lease.life
        left = iter([True] * (keys.partition("a") + 1))
        life = dead.store.lease.life
        assert not await claimer.store._entries.sweep(life, lambda: next(left, False))
        assert len(await other.sessions()) == 8
        await claimer.die()
        await rounds(clock, LEASE_S * 2, other)
        await other.settle()
        assert await other.sessions() == []
        leaves = [session for action, session in other.heard.short() if action == "leave"]
        assert sorted(leaves) == ["c", *(f"d{number}" for number in range(9))]
        assert server.ask("ZCARD", keys.leases[0]) == 1


@GONE
async def test_rule_23_a_node_that_wakes_enters_its_sessions_anew(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    async with open_presence_nodes(server, 2, **timed(clock, keys)) as (asleep, other):
        await other.watch("a")
        await asleep.enter("s1", "s2")
        await rounds(clock, LEASE_S, asleep, other)
        await rounds(clock, LEASE_S, other)
        assert await other.sessions() == []
        # Its sessions go on before its heart beats.
        await asleep.enter("s3")
        await asleep.store.leave("a", "s2")
        assert await other.sessions() == ["s3"]
        await rounds(clock, LEASE_S, asleep, other)
        assert await other.sessions() == ["s1", "s3"]
        await rounds(clock, 3 * LEASE_S, asleep, other)
        assert await other.sessions() == ["s1", "s3"]
        await other.settle()
        followed: set[str] = set()
        for action, session in other.heard.short():
            (followed.discard if action == "leave" else followed.add)(session)
        assert followed == {"s1", "s3"}


@GONE
async def test_rule_23_a_late_sweep_spares_what_was_entered_anew(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    async with open_presence_nodes(server, 2, **timed(clock, keys)) as (asleep, other):
        await other.watch("a")
        await asleep.enter("s1", "s2")
        await rounds(clock, LEASE_S, asleep, other)
        before = asleep.store.lease.life
        for _ in range(3):
            clock.advance(LEASE_S / 3)
            await other.store.lease.beat()
        assert other.store.lease.claimed == before
        # It wakes before the sweep begins: nobody sees that it was away.
        await rounds(clock, LEASE_S / 3, asleep)
        await other.store.tend()
        await other.settle()
        assert other.heard.short() == [("join", "s1"), ("join", "s2")]
        assert await other.sessions() == ["s1", "s2"]
        assert server.ask("SCARD", keys.entries(keys.partition("a"), generation_of(before))) == 0


@MAYBE_GONE
async def test_rule_23_in_real_time(server: RedisServer, keys: RedisKeys) -> None:
    async with open_presence_nodes(server, 4, keys=keys, lease_s=1.5) as (dead, *others):
        for node in others:
            await node.watch("a")
        await dead.enter("d1", "d2")
        await others[0].enter("o")
        loop = asyncio.get_running_loop()
        # The lease, a heartbeat of the others, who sweep then, and a margin.
        end = loop.time() + 1.5 + 1.5 / 3 + MARGIN_S
        await dead.die()
        gone = {("leave", "d1"), ("leave", "d2")}
        for node in others:
            left_s = end - loop.time()
            await until(lambda heard=node.heard: gone <= set(heard.short()), left_s)  # type: ignore[misc]
        for node in others:
            await node.settle()
            counted = Counter(node.heard.short())
            assert counted["leave", "d1"] == counted["leave", "d2"] == 1
        # Whoever woke without its lease enters anew.
        while await others[0].sessions() != ["o"]:
            assert loop.time() < end
            await asyncio.sleep(0.01)


async def test_rule_24_a_lost_leave_is_found_by_comparing_versions(
    server: RedisServer, keys: RedisKeys
) -> None:
    astray = AstrayKeys(keys.prefix)
    async with (
        open_presence_node(server, keys=keys) as node,
        open_presence_node(server, keys=astray) as silent,
    ):
        await node.watch("a", "b")
        await node.broker.compare()
        await silent.enter("s1")
        await silent.store.leave("a", "s1")
        assert (node.heard.changes, node.heard.lost) == ([], [])
        await node.broker.compare()
        version = (await node.store.members("a", limit=1)).version
        assert node.heard.lost == [("a", version)]


async def test_rule_24_whoever_watches_gets_the_set_anew(
    server: RedisServer, keys: RedisKeys
) -> None:
    rule = ChannelRule(match=">", presence=True)
    async with (
        open_redis_node(server, rule, keys=keys, lease_s=3_600.0) as node,
        open_presence_node(server, keys=AstrayKeys(keys.prefix)) as silent,
    ):
        await silent.enter("s1", "s2", channel="c")
        client = await node.subscribe("c", presence=True)
        assert [each["session"] for each in client.of("subscribed")[0]["members"]] == ["s1", "s2"]
        await silent.store.leave("c", "s1")
        await node.broker.compare()
        await until(lambda: client.of("presence"))
        (told,) = client.of("presence")
        assert told["action"] == "sync"
        assert [each["session"] for each in told["members"]] == ["s2"]
        await node.broker.compare()
        await node.node.presence.enter("c", member("s3"))
        await until(lambda: len(client.of("presence")) > 1)
        assert [each["action"] for each in client.of("presence")] == ["sync", "join"]


async def test_rule_24_a_version_that_went_back_goes_on_above_what_was_told(
    server: RedisServer, keys: RedisKeys
) -> None:
    """A master died with changes that it had announced."""
    async with open_presence_node(server, keys=keys) as node:
        await node.watch("a")
        await node.enter("s1", "s2", "s3")
        await node.settle()
        told = node.heard.told["a"]
        key = keys.presence("a")[2]
        server.ask("SET", key, told - 2)
        await node.broker.compare()
        ((_, version),) = node.heard.lost
        assert version > told
        assert server.ask("TTL", key) == -1
        server.ask("DEL", key)
        await node.broker.compare()
        assert node.heard.lost[-1][1] > told


async def test_rule_23_one_survivor_claims_a_dead_node(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    async with open_presence_nodes(server, 4, **timed(clock, keys)) as (dead, *others):
        await dead.enter("d")
        await rounds(clock, LEASE_S, dead, *others)
        await dead.die()
        life = dead.store.lease.life
        for _ in range(3):
            clock.advance(LEASE_S / 3)
            await asyncio.gather(*(node.store.lease.beat() for node in others))
        assert [node.store.lease.claimed for node in others].count(life) == 1


async def test_rule_23_a_heartbeat_is_one_call_whatever_the_node_entered(clock: Clock) -> None:
    with RedisServer() as server:
        async with open_presence_node(server, **timed(clock, RedisKeys("k"))) as node:
            await asyncio.gather(*(node.enter(f"s{number}") for number in range(300)))
            before = calls(server)
            await node.store.lease.beat()
            assert calls(server) - before == 1


@GONE
async def test_rule_23_what_is_entered_under_a_lease_that_redis_forgot_goes_too(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    """A node that trusted its lease entered members into a Redis that had forgotten everything, and
    died before its next heartbeat. No lease told of them, so they stayed for ever.
    """
    async with open_presence_nodes(server, 2, **timed(clock, keys)) as (dead, other):
        await other.watch("a")
        await other.enter("stays")
        await dead.enter("before")
        await rounds(clock, LEASE_S, dead, other)
        server.ask("DEL", *server.ask("KEYS", f"{{{keys.prefix}:*"))
        life = dead.store.lease.life
        await dead.enter("ghost")
        await dead.die()
        listed = keys.lives(keys.partition("a"))
        server.ask("SADD", listed, b"\xff", "junk")
        # The other one looks into one partition with each heartbeat.
        await rounds(clock, LEASE_S * (keys.partitions / 3 + 2), other)
        assert await other.sessions() == ["stays"]
        await other.settle()
        assert other.heard.short().count(("leave", "ghost")) == 1
        assert server.ask("KEYS", f"*{keys.prefix}*:e:{life[:16]}") == []
        assert set(server.ask("SMEMBERS", listed)) <= {other.store.lease.life.encode()}
        assert server.ask("ZRANGE", keys.leases[0], 0, -1) == [other.store.lease.life.encode()]


@GONE
async def test_rule_23_what_a_node_enters_when_it_wakes_goes_with_it(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    """It was entered under a lease that was gone, so nobody ever cleaned up behind it."""
    async with open_presence_nodes(server, 2, **timed(clock, keys)) as (asleep, other):
        await asleep.enter("s1")
        await rounds(clock, LEASE_S, asleep, other)
        await rounds(clock, 2 * LEASE_S, other)
        await asleep.enter("s2")
        assert await other.sessions() == ["s2"]
        await asleep.die()
        await rounds(clock, 3 * LEASE_S, other)
        assert await other.sessions() == []
