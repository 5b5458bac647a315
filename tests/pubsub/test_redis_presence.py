"""The presence store over Redis: what it alone does, beyond what any presence store must do."""

import asyncio
from collections.abc import Iterator
from itertools import count, pairwise

import pytest

from broker_rig import Clock, redis_broker
from muting_proxy import MutingProxy
from presence_rig import (
    LEASE_S,
    Heard,
    PresenceNode,
    member,
    open_presence_node,
    open_presence_nodes,
    rounds,
    timed,
)
from pubsub.envelope import pack_presence, read_envelope
from pubsub.errors import BrokerUnavailable
from pubsub.node_lease import generation_of
from pubsub.presence import PresenceChange
from pubsub.redis_keys import RedisKeys
from pubsub.redis_presence import RedisPresence
from redis_rig import open_redis_node, until
from redis_server import RedisServer, find_redis_server, shared_redis

pytestmark = pytest.mark.skipif(find_redis_server() is None, reason="there is no redis-server")

AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
GONE = pytest.mark.expect_log("pubsub.redis_presence", "lease of this node was gone")

prefixes = count()


@pytest.fixture
def server() -> RedisServer:
    return shared_redis()


@pytest.fixture
def keys() -> RedisKeys:
    return RedisKeys(f"presence{next(prefixes)}-{id(prefixes)}")


@pytest.fixture
def lasting() -> Iterator[RedisServer]:
    """A Redis whose writes are on disk."""
    with RedisServer(aof=True) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


# ---- several nodes


async def test_nodes_see_each_others_members_and_changes(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_presence_nodes(server, 2, keys=keys) as (one, two):
        await one.watch("a")
        await two.watch("a")
        await one.store.enter("a", member("s1", b'{"n":1}', "mia"))
        await two.enter("s2")
        await one.store.enter("a", member("s1", b'{"n":2}', "mia"))
        await one.store.leave("a", "s1")
        await one.settle()
        await two.settle()
        assert one.heard.changes == two.heard.changes
        assert one.heard.short() == [
            ("join", "s1"),
            ("join", "s2"),
            ("update", "s1"),
            ("leave", "s1"),
        ]
        assert one.heard.changes[-1].member == member("s1", b'{"n":2}', "mia")
        assert await one.store.members("a", limit=9) == await two.store.members("a", limit=9)


async def test_changes_come_in_order_with_events(server: RedisServer, keys: RedisKeys) -> None:
    async with open_presence_node(server, keys=keys) as node:
        client = server.open()
        listening = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        listening.subscribe(keys.address("a"))
        listening.get_message(timeout=1)
        version = (await node.store.members("a", limit=1)).version
        mia = member("s1", b'{"\xc3\xa9":1}', "mia")
        await node.store.enter("a", mia)
        message = None
        while message is None:
            message = listening.get_message(timeout=1)
        expected = PresenceChange("a", "join", mia, version + 1)
        assert message["data"] == pack_presence(expected)
        assert read_envelope("a", message["data"]) == expected
        listening.close()
        client.close()


async def test_many_members_are_read_in_pages(server: RedisServer, keys: RedisKeys) -> None:
    async with open_presence_nodes(server, 2, keys=keys) as (one, two):
        sessions = [f"s{number:05}" for number in range(2_300)]
        await asyncio.gather(
            *(
                (one, two)[number % 2].store.enter("a", member(session, b"%d" % number))
                for number, session in enumerate(sessions)
            )
        )
        for limit in (1_000, 2_299, 2_300, 10_000):
            seen: list[str] = []
            cursor: str | None = None
            while True:
                page = await one.store.members("a", cursor=cursor, limit=limit)
                assert (page.total, len(page.members)) == (2_300, min(limit, 2_300 - len(seen)))
                assert all(each.info == b"%d" % int(each.session[1:]) for each in page.members)
                seen += [each.session for each in page.members]
                cursor = page.cursor
                if cursor is None:
                    break
            assert seen == sessions
        assert (await one.store.members("a", limit=0)).cursor is None


async def test_calls_for_one_session_take_effect_in_their_order(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_presence_node(server, keys=keys) as node:
        await node.watch("a")
        store = node.store
        for turn in range(20):
            calls = [store.enter("a", member("s", b"1")), store.leave("a", "s")]
            if turn % 2:
                calls.append(store.enter("a", member("s", b"2")))
            await asyncio.gather(*calls)
            assert await node.sessions() == ["s"] * (turn % 2)
        await node.settle()
        expected = {"join": "leave", "leave": "join", "update": "leave"}
        actions = [action for action, _ in node.heard.short() if action != "update"]
        assert all(b == expected[a] for a, b in pairwise(actions))


async def test_a_call_that_was_cancelled_disturbs_no_other(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_presence_node(server, keys=keys) as node:
        tasks = [asyncio.create_task(node.enter(f"s{number}")) for number in range(10)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in answers] == [True, False] * 5
        assert set(await node.sessions()) >= {f"s{number}" for number in range(1, 10, 2)}
        for number in range(10):
            await node.store.leave("a", f"s{number}")
        assert await node.sessions() == []


# ---- nodes that die


async def test_who_closes_takes_its_members_along(server: RedisServer, keys: RedisKeys) -> None:
    async with open_presence_node(server, keys=keys) as other:
        await other.watch("a")
        # Its end is a hundred calls, one after another, and has only as long as one may take.
        async with open_presence_node(server, keys=keys, call_timeout_s=30.0) as node:
            await asyncio.gather(*(node.enter(f"s{number}") for number in range(250)))
            store = node.store
        await other.settle()
        assert len(other.heard.changes) == 500
        assert await other.sessions() == []
        assert server.ask("ZCARD", keys.leases[0]) == 1
        await store.close()
        await store.leave("a", "s1")
        for call in (store.enter("a", member("s1")), store.members("a", limit=1)):
            with pytest.raises(BrokerUnavailable):
                await call


async def test_a_store_that_never_started_closes(server: RedisServer) -> None:
    broker = redis_broker(server)
    store = RedisPresence(broker)
    await store.close()
    await broker.close()


# ---- what was lost


async def test_the_version_of_an_empty_set_lives_on_for_a_while(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_presence_node(server, keys=keys) as node:
        key = keys.presence("a")[2]
        before = (await node.store.members("a", limit=1)).version
        assert 0 < server.ask("PTTL", key) <= 600_000
        await node.enter("s1")
        assert server.ask("PTTL", key) == -1
        await node.store.leave("a", "s1")
        assert 0 < server.ask("PTTL", key) <= 600_000
        await node.watch("a")
        server.ask("PEXPIRE", key, 30_000)
        await node.broker.compare()
        assert server.ask("PTTL", key) > 30_000
        server.ask("DEL", key)
        await node.enter("s1")
        assert (await node.store.members("a", limit=1)).version > before + 2


async def tamper(server: RedisServer, node: PresenceNode) -> None:
    """Do as a fail-over does: forget the entry of s1, bring back the one of s9."""
    keys = node.broker.keys
    members, order, _ = keys.presence("a")
    entries = keys.entries(keys.partition("a"), generation_of(await node.store.lease.hold()))
    stored = server.ask("HGET", members, "s1")
    server.ask("HDEL", members, "s1")
    server.ask("ZREM", order, "s1")
    server.ask("SREM", entries, b"a\0s1")
    server.ask("HSET", members, "s9", stored.replace(b"s1", b"s9"))
    server.ask("ZADD", order, 0, "s9")
    server.ask("SADD", entries, b"a\0s9")
    assert await node.sessions() == ["s2", "s9"]


async def test_a_connection_that_was_cut_makes_redis_hold_what_the_node_does(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_presence_node(server, keys=keys) as node:
        await node.enter("s1", "s2")
        await until(lambda: not node.store._entries._doubtful)
        # The rounds that come anyway look elsewhere.
        node.store._next = (keys.partition("a") + 5) % keys.partitions
        await tamper(server, node)
        node.broker.listener.break_off()
        sessions: list[str] = []
        while sessions != ["s1", "s2"]:
            sessions = await node.sessions()


async def test_what_nobody_noticed_is_found_in_some_rounds(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    async with open_presence_node(server, **timed(clock, keys)) as node:
        await node.enter("s1", "s2")
        await rounds(clock, LEASE_S, node)
        await tamper(server, node)
        await rounds(clock, keys.partitions * LEASE_S / 3, node)
        assert await node.sessions() == ["s1", "s2"]


@GONE
async def test_a_node_whose_lease_was_forgotten_leaves_no_ghosts(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    async with open_presence_node(server, **timed(clock, keys)) as node:
        await node.enter("s1", "s2")
        await rounds(clock, LEASE_S, node)
        await tamper(server, node)
        generation = generation_of(node.store.lease.life)
        server.ask("DEL", *keys.leases)
        await rounds(clock, LEASE_S / 3, node)
        assert await node.sessions() == ["s1", "s2"]
        assert server.ask("KEYS", f"*:e:{generation}") == []


# ---- Redis goes and comes


@AWAY
@GONE
async def test_a_redis_that_began_empty_gets_the_members_back(lasting: RedisServer) -> None:
    keys = RedisKeys("k")
    async with open_presence_nodes(lasting, 2, keys=keys, interval_s=0.1) as (one, two):
        await one.watch("a")
        await one.enter("s1")
        await two.enter("s2", "s3")
        before = (await one.store.members("a", limit=1)).version
        await asyncio.to_thread(lasting.restart, empty=True)
        await until(lambda: one.broker.problem() is None and two.broker.problem() is None)
        sessions: list[str] = []
        while sessions != ["s1", "s2", "s3"]:
            sessions = await one.sessions()
        assert (await one.store.members("a", limit=1)).version > before
        assert all(change.version > before for change in one.heard.changes[3:])
        assert (one.store.lease.lives, two.store.lease.lives) == (2, 2)


@AWAY
async def test_what_redis_missed_while_it_was_away_is_told_when_it_is_back(
    lasting: RedisServer,
) -> None:
    keys = RedisKeys("k")
    async with open_presence_node(lasting, keys=keys) as node:
        await node.store.enter("a", member("s1", b"1"))
        await node.enter("s2")
        node.broker.link.call_timeout_s = 0.5
        await asyncio.to_thread(lasting.kill)
        await node.store.leave("a", "s2")
        with pytest.raises(BrokerUnavailable):
            await node.enter("s3")
        with pytest.raises(BrokerUnavailable):
            await node.store.enter("a", member("s1", b"2"))
        with pytest.raises(BrokerUnavailable):
            await node.store.members("a", limit=1)
        node.broker.link.call_timeout_s = 5.0
        await asyncio.to_thread(lasting.start)
        await until(lambda: node.broker.problem() is None)
        sessions: list[str] = []
        while sessions != ["s1"]:
            sessions = await node.sessions()
        assert (await node.store.members("a", limit=9)).members == (member("s1", b"1"),)


@AWAY
async def test_who_closes_while_redis_is_away_leaves_it_to_the_others(
    lasting: RedisServer,
) -> None:
    keys = RedisKeys("k")
    async with open_presence_node(lasting, keys=keys, lease_s=2.0) as node:
        await node.enter("s1")
        node.broker.link.call_timeout_s = 0.5
        await asyncio.to_thread(lasting.kill)
    await asyncio.to_thread(lasting.start)
    # Before another node is there, which may be quicker than whoever asks it.
    assert lasting.ask("HKEYS", keys.presence("a")[0]) == [b"s1"]
    async with open_presence_node(lasting, keys=keys, lease_s=1.0) as other:
        while await other.sessions():
            pass


@AWAY
async def test_who_closes_just_when_redis_is_back_leaves_no_ghosts(lasting: RedisServer) -> None:
    """A node drained while Redis was away: its leaves waited, and were forgotten by its end.

    Nothing was left to remove, as far as the node knew, so it gave its lease back, and with it the
    last sign by which other nodes could have told that its members were gone.
    """
    keys = RedisKeys("k")
    async with open_presence_node(lasting, keys=keys) as node:
        await node.enter("s1", "s2")
        await until(lambda: not node.store._entries._doubtful)
        node.broker.link.call_timeout_s = 0.5
        await asyncio.to_thread(lasting.kill)
        await node.store.leave("a", "s1")
        await node.store.leave("a", "s2")
        # As if it had not come to that yet when Redis is back.
        for task in node.store._rounds:
            task.cancel()
        node.broker.link.call_timeout_s = 5.0
        await asyncio.to_thread(lasting.start)
        await until(lambda: node.broker.problem() is None)
        assert await node.sessions() == ["s1", "s2"]
    async with open_presence_node(lasting, keys=keys) as other:
        assert await other.sessions() == []
        assert lasting.ask("KEYS", "*:e:*") == []


async def test_a_call_whose_answer_was_lost_is_announced_once(keys: RedisKeys) -> None:
    with RedisServer(tcp=True) as server:
        async with (
            MutingProxy(server.port) as proxy,
            open_presence_node(server, keys=keys, url=proxy.url) as node,
        ):
            await node.watch("a")
            proxy.lose = b"lost-id"
            await node.enter("lost-id")
            assert proxy.lost == 1
            proxy.lose = b"lost-id"
            await node.store.leave("a", "lost-id")
            assert proxy.lost == 2
            await node.settle()
            assert node.heard.short() == [("join", "lost-id"), ("leave", "lost-id")]


@AWAY
async def test_who_was_refused_is_as_before_whatever_redis_did(lasting: RedisServer) -> None:
    """A frozen Redis carries out what it was sent when it wakes."""
    keys = RedisKeys("k")
    async with open_presence_node(lasting, keys=keys, timeout_s=0.2) as node:
        await node.store.enter("a", member("s1", b"1"))
        node.broker.link.call_timeout_s = 0.6
        lasting.stop()
        with pytest.raises(BrokerUnavailable):
            await node.store.enter("a", member("s1", b"2"))
        with pytest.raises(BrokerUnavailable):
            await node.enter("s2", channel="b")
        node.broker.link.call_timeout_s = 5.0
        lasting.go_on()
        await until(lambda: node.broker.problem() is None and not node.store._entries._doubtful)
        assert (await node.store.members("a", limit=9)).members == (member("s1", b"1"),)
        assert await node.sessions("b") == []


@AWAY
async def test_closing_does_not_wait_for_a_frozen_redis(lasting: RedisServer) -> None:
    async with open_presence_node(lasting, keys=RedisKeys("k"), timeout_s=5.0) as node:
        await node.enter("s1")
        node.broker.link.call_timeout_s = 0.3
        lasting.stop()
        entering = asyncio.create_task(node.enter("s2"))
        await asyncio.sleep(0)
        await node.store.close()
        with pytest.raises(BrokerUnavailable):
            await entering


@pytest.mark.parametrize("turns", [1, 2, 3, 4])
async def test_what_is_under_way_fails_when_the_store_closes(
    server: RedisServer, keys: RedisKeys, turns: int
) -> None:
    async with open_presence_node(server, keys=keys) as node:
        entering = asyncio.create_task(node.enter("s1", "s2", "s3", "s4"))
        for _ in range(turns):
            await asyncio.sleep(0)
        await node.store._entries.close()
        with pytest.raises(BrokerUnavailable, match="closed"):
            await entering
        await node.store._entries.close()


@pytest.mark.expect_log("pubsub.node_entries", "could not be told")
async def test_what_cannot_be_told_is_refused(server: RedisServer, keys: RedisKeys) -> None:
    async with open_presence_node(server, keys=keys) as node:
        with pytest.raises(BrokerUnavailable):
            await node.enter("\ud800")
        await node.enter("s1")
        assert await node.sessions() == ["s1"]


# ---- junk


JUNK = [
    b"",
    b"\xc1",
    pack_presence(PresenceChange("a", "join", member("s"), 1))[:-1],
    pack_presence(PresenceChange("a", "join", member("s"), 1)) + b"\0",
    pack_presence(PresenceChange("a", "jump", member("s"), 1)),  # type: ignore[arg-type]
    pack_presence(PresenceChange("a", "join", member("s"), 0)),
    pack_presence(PresenceChange("a", "join", member("s"), 2**53 + 1)),
    pack_presence(PresenceChange("a", "join", member(""), 1)),
    pack_presence(PresenceChange("a", "join", member("s\n"), 1)),
    pack_presence(PresenceChange("a", "join", member("s" * 257), 1)),
    pack_presence(PresenceChange("a", "join", member("s", b""), 1)),
    pack_presence(PresenceChange("a", "join", member("s", b"1\n2"), 1)),
    pack_presence(PresenceChange("a", "join", member("s", b"\xff"), 1)),
    pack_presence(PresenceChange("a", "join", member("s", b"1" * (1024 * 1024 + 1)), 1)),
    pack_presence(PresenceChange("a", "join", member("s", user="u" * 1_025), 1)),
]


async def test_junk_is_counted_and_dropped(server: RedisServer, keys: RedisKeys) -> None:
    async with open_presence_node(server, keys=keys) as node:
        await node.watch("a")
        for junk in JUNK:
            server.ask("PUBLISH", keys.address("a"), junk)
        await node.enter("s1")
        await node.settle()
        assert node.heard.short() == [("join", "s1")]
        assert node.broker.junk == len(JUNK)


async def test_junk_among_the_members_is_passed_over(server: RedisServer, keys: RedisKeys) -> None:
    async with open_presence_node(server, keys=keys) as node:
        await node.enter("s1", "s3")
        members, order, _ = keys.presence("a")
        for session, junk in (("s2", b"junk"), ("s4", b"")):
            server.ask("HSET", members, session, junk)
            server.ask("ZADD", order, 0, session)
        server.ask("ZADD", order, 0, "s5")
        page = await node.store.members("a", limit=9)
        assert [each.session for each in page.members] == ["s1", "s3"]
        assert node.store.junk == 3


async def test_a_broker_alone_drops_presence(server: RedisServer, keys: RedisKeys) -> None:
    async with (
        open_redis_node(server, keys=keys) as node,
        open_presence_node(server, keys=keys) as other,
    ):
        client = await node.subscribe("c")
        await other.enter("s", channel="c")
        assert await node.broker.settled()
        await node.broker.compare()
        assert (client.of("presence"), node.broker.junk) == ([], 0)


def test_all_of_a_presence_set_is_in_one_slot() -> None:
    keys = RedisKeys("x")
    tag = f"{{x:p{keys.partition('a')}}}:"
    every = [*keys.presence("a"), keys.entries(keys.partition("a"), "0" * 16)]
    assert len(set(every)) == 4
    assert all(key.startswith(tag) for key in every)
    assert {key.partition("}")[0] for key in keys.leases} == {"{x:n"}


def test_a_sink_hears_by_channel() -> None:
    heard = Heard()
    heard.on_presence(PresenceChange("b", "join", member("s"), 1))
    assert (heard.short("b"), heard.short()) == ([("join", "s")], [])
