"""Control over Redis: what it alone does, beyond what any control must do."""

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from broker_rig import Clock, redis_broker
from control_rig import (
    LATER_S,
    TOPICS,
    NotedControl,
    RedisControlNode,
    open_control_node,
    open_control_nodes,
)
from muting_proxy import MutingProxy
from pubsub.control_message import Answer, Notice, Order, pack_message
from pubsub.control_scripts import ControlScripts
from pubsub.errors import BrokerUnavailable
from pubsub.redis_client import Part
from pubsub.redis_control import RedisControl
from pubsub.redis_keys import RedisKeys
from pubsub.redis_scripts import Script
from redis_cluster import shared_cluster
from redis_rig import until
from redis_server import RedisServer, find_redis_server, shared_redis

pytestmark = pytest.mark.skipif(find_redis_server() is None, reason="there is no redis-server")

AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
SILENT = pytest.mark.expect_log("pubsub.redis_watch", "Redis pub/sub is silent", required=False)
GONE = pytest.mark.expect_log(
    "pubsub.redis_presence", "lease of this node was gone", required=False
)
REFUSED = pytest.mark.expect_log("pubsub.redis_link", "Redis refused a call")
LEASE_S = 9.0
# Nothing is compared but when a test asks for it; and the contrary.
NEVER = {"interval_s": 3_600.0}
OFTEN = {"interval_s": 0.1}
# Of those who have very much to do at once: none of it may be late.
BUSY: dict[str, Any] = {"call_timeout_s": 30.0, "control": {**NEVER, "answer_timeout_s": 50.0}}
ID = "0123456789abcdef" * 2


@pytest.fixture
def server() -> RedisServer:
    return shared_redis()


@pytest.fixture
def keys() -> RedisKeys:
    return RedisKeys(f"control-{secrets.token_hex(8)}")


@pytest.fixture
def lasting() -> Iterator[RedisServer]:
    """A Redis whose writes are on disk."""
    with RedisServer(aof=True, tcp=True) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def tell(node: RedisControlNode, *names: str, at_s: float = 1.0) -> None:
    await asyncio.gather(*(node.control.notify("user", name, at_s, LATER_S) for name in names))


def numbered(count: int) -> list[str]:
    return [f"u{number:05}" for number in range(count)]


# ---- orders


async def test_orders_reach_all_of_several_nodes(server: RedisServer, keys: RedisKeys) -> None:
    async with open_control_nodes(server, 3, keys=keys) as nodes:
        asked = [nodes[number % 3].control.ask(b"%d" % number) for number in range(300)]
        for answers in await asyncio.gather(*asked):
            assert (set(answers.answers), answers.silent) == ({"n1", "n2", "n3"}, ())
        assert all(len(node.sink.orders) == 300 for node in nodes)
        assert sum(node.control.junk + node.control.orders_dropped for node in nodes) == 0


async def test_a_node_whose_lease_has_lapsed_is_not_waited_for(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    options: dict[str, Any] = {
        "keys": keys,
        "lease_s": LEASE_S,
        "clock_ms": lambda: round(clock.wall_s * 1000),
        "control": {"answer_timeout_s": 0.3, "now": clock.wall},
    }
    async with open_control_nodes(server, 2, **options) as (one, two):
        # It hangs: its heart beats no more, and it hears nothing.
        for task in two.presence._rounds:
            task.cancel()
        await two.control.close()
        assert (await one.control.ask(b"x")).silent == ("n2",)
        clock.advance(LEASE_S - 1)
        await one.presence.lease.beat()
        assert (await one.control.ask(b"x")).silent == ("n2",)
        clock.advance(1.0)
        assert (await one.control.ask(b"x")).silent == ()
        assert one.control.silent == 2


async def test_a_node_that_answers_without_a_lease_counts(
    server: RedisServer, keys: RedisKeys
) -> None:
    """It was asleep, or Redis forgot its lease: it has carried out the order all the same."""
    async with open_control_nodes(server, 3, keys=keys) as (one, two, three):
        life = two.presence.lease.life
        server.ask("ZREM", keys.leases[0], life)
        three.sink.blocked = True
        asking = asyncio.create_task(one.control.ask(b"x"))
        await until(lambda: two.sink.orders and three.sink.running)
        # Only the answer of the third node is waited for; the second's has come before.
        await until(
            lambda: (
                one.control._asked
                and all("n2" in asked._answers for asked in one.control._asked.values())
            )
        )
        three.sink.release.set()
        answers = await asking
        assert (set(answers.answers), answers.silent) == ({"n1", "n2", "n3"}, ())


async def test_junk_among_the_leases_is_counted(server: RedisServer, keys: RedisKeys) -> None:
    async with open_control_node(server, keys=keys) as node:
        for life in ("junk", b"\xff \xff", "0123456789abcdef a*b", "x "):
            server.ask("ZADD", keys.leases[0], "9e15", life)
        assert (await node.control.ask(b"x")).silent == ()
        assert node.control.junk == 4


async def test_an_order_that_redis_was_sent_twice_is_carried_out_once(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with (
        MutingProxy(lasting.port) as proxy,
        open_control_node(lasting, "n1", url=proxy.url, keys=keys) as one,
        open_control_node(lasting, "n2", keys=keys) as two,
    ):
        await one.control.ask(b"first")
        proxy.lose = ControlScripts().order.digest.encode()
        answers = await one.control.ask(b"second")
        assert proxy.lost == 1
        assert (set(answers.answers), answers.silent) == ({"n1", "n2"}, ())
        assert await two.broker.settled()
        assert two.sink.orders == one.sink.orders == [b"first", b"second"]


async def test_what_was_taken_is_ours_though_the_answer_was_lost(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with (
        MutingProxy(lasting.port) as proxy,
        open_control_node(lasting, "n1", url=proxy.url, keys=keys) as one,
    ):
        assert await one.control.take("a", 30.0)
        proxy.lose = ControlScripts().take.digest.encode()
        assert await one.control.take("b", 30.0)
        assert proxy.lost == 1
        assert not await one.control.take("b", 30.0)


async def test_an_order_given_while_the_subscription_is_lost_waits_for_it(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    """Its answers would be lost, and every other node taken for silent."""
    async with open_control_nodes(lasting, 2, keys=keys) as (one, two):
        for _ in range(5):
            lasting.kill_clients()
            await until(lambda: not one.broker.listener.restored)
            await until(lambda: two.broker.listener.restored)
            answers = await one.control.ask(b"x")
            assert (set(answers.answers), answers.silent) == ({"n1", "n2"}, ())


async def test_too_many_orders_of_others_are_dropped(server: RedisServer, keys: RedisKeys) -> None:
    async with open_control_node(server, keys=keys) as node:
        node.sink.blocked = True
        with server.open() as client, client.pipeline(transaction=False) as pipe:
            for number in range(1_100):
                pipe.publish(keys.nodes, pack_message(Order(f"{number:032x}", "n2", b"x")))
            pipe.execute()
        await until(lambda: node.control.orders_dropped == 100)
        assert node.sink.running == node.sink.most_running == 100
        # One's own are carried out all the same.
        node.sink.blocked = False
        assert (await node.control.ask(b"own")).answers == {"n1": b"n1:own"}
        node.sink.release.set()
        await until(lambda: len(node.sink.orders) == 1_001)


async def test_recent_orders_are_remembered_within_a_bound(
    server: RedisServer, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pubsub.redis_control._MOST_RECENT", 10)
    async with open_control_node(server, keys=keys) as node:
        for number in (*range(20), 19, 11, 10):
            server.ask("PUBLISH", keys.nodes, pack_message(Order(f"{number:032x}", "n2", b"x")))
        assert await node.broker.settled()
        assert len(node.control._recent) == 10
        await until(lambda: len(node.sink.orders) == 20)


async def test_many_large_answers_do_not_cost_the_connection(
    server: RedisServer, keys: RedisKeys
) -> None:
    """Redis ends pub/sub connections on which too much waits."""
    async with open_control_nodes(server, 3, keys=keys, **BUSY) as nodes:
        for node in nodes:
            node.sink.reply = b"x" * 400_000
        for answers in await asyncio.gather(*(nodes[0].control.ask(b"x") for _ in range(40))):
            assert (len(answers.answers), answers.silent) == (3, ())
        assert nodes[0].broker.reconnects == 0


async def test_a_node_sends_few_large_answers_at_once(
    server: RedisServer, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_control_nodes(server, 2, keys=keys) as (one, two):
        run, sending, most = two.broker.link.run, 0, 0

        async def counted(script: Script, keys: Sequence[str], *parts: Part, **how: bool) -> Any:
            nonlocal sending, most
            sending += 1
            most = max(most, sending)
            try:
                return await run(script, keys, *parts, **how)
            finally:
                sending -= 1

        monkeypatch.setattr(two.broker.link, "run", counted)
        for size, few in ((20_000, True), (2_000, False)):
            most = 0
            one.sink.reply = two.sink.reply = b"x" * size
            found = await asyncio.gather(*(one.control.ask(b"x") for _ in range(30)))
            assert all(len(answers.answers) == 2 for answers in found)
            assert (most <= 4) == few


# ---- notices


async def test_a_late_starter_reads_all_notices(server: RedisServer, keys: RedisKeys) -> None:
    names = numbered(1_234)
    async with open_control_node(server, keys=keys, **BUSY) as one:
        await tell(one, *names)
        await one.control.notify("ticket", "t", 2.5, LATER_S)
        async with open_control_node(server, "n2", keys=keys, control=NEVER) as two:
            assert sorted(two.sink.names()) == names
            assert two.sink.notices[-1] == ("ticket", "t", 2.5, LATER_S)
            assert (two.control.notices.repaired, two.control.junk) == (0, 0)
    # They outlive all nodes.
    async with open_control_node(server, "n3", keys=keys, control=NEVER) as three:
        assert sorted(three.sink.names()) == names


async def test_a_lost_announcement_is_repaired(lasting: RedisServer, keys: RedisKeys) -> None:
    async with (
        MutingProxy(lasting.port) as proxy,
        open_control_node(lasting, "n1", keys=keys, **BUSY) as one,
        open_control_node(lasting, "n2", url=proxy.url, keys=keys, control=NEVER) as two,
    ):
        await tell(one, "u1")
        await until(lambda: two.sink.names() == ["u1"])
        proxy.mute = True
        names = numbered(1_100)
        await tell(one, *names)
        await tell(one, "u1", at_s=2.0)
        assert two.sink.names() == ["u1"]
        await two.control.compare()
        assert sorted(two.sink.names()) == [*names, "u1", "u1"]
        assert two.control.notices.repaired == 1_101
        before = len(two.sink.notices)
        await two.control.compare()
        await one.control.compare()
        assert len(two.sink.notices) == before
        assert one.control.notices.repaired == 0


async def test_who_tells_knows_even_if_the_announcement_is_lost(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with (
        MutingProxy(lasting.port) as proxy,
        open_control_node(lasting, "n1", url=proxy.url, keys=keys, control=NEVER) as one,
    ):
        proxy.mute = True
        await tell(one, "u1")
        assert one.sink.names() == ["u1"]


async def test_a_notice_that_was_only_heard_of_is_restored(
    server: RedisServer, keys: RedisKeys
) -> None:
    """Whoever told it died with what Redis lost, before anyone had read from there."""
    async with open_control_node(server, "n2", keys=keys, control=NEVER) as two:
        async with open_control_node(server, "n1", keys=keys, control=NEVER) as one:
            await tell(one, "u1")
            await until(lambda: two.sink.names() == ["u1"])
        server.ask("DEL", *keys.notices("user"))
        await two.control.compare()
        assert server.ask("HKEYS", keys.notices("user")[0]) == [b"u1"]
        await two.control.compare()
        assert (two.control.notices.restored, len(two.sink.notices)) == (1, 1)


async def test_killed_pubsub_connections_lose_no_notice(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_nodes(lasting, 2, keys=keys, control=OFTEN) as (one, two):
        names = numbered(200)
        for at, name in enumerate(names):
            if at % 20 == 0:
                lasting.kill_clients()
            await tell(one, name)
        await until(lambda: len(two.sink.notices) == 200)
        assert sorted(two.sink.names()) == names
        assert two.broker.reconnects > 0


@AWAY
@GONE
async def test_a_restart_with_a_log_of_writes_loses_nothing(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_nodes(lasting, 2, keys=keys, control=OFTEN) as (one, two):
        await tell(one, "u1")
        assert await one.control.take("t", 600.0)
        await asyncio.to_thread(lasting.restart)
        await until(lambda: one.control.problem() is None and two.control.problem() is None)
        assert not await two.control.take("t", 600.0)
        await tell(two, "u2")
        await until(lambda: one.sink.names() == two.sink.names() == ["u1", "u2"])
        async with open_control_node(lasting, "n3", keys=keys) as three:
            assert three.sink.names() == ["u1", "u2"]
            answers = await three.control.ask(b"x")
            assert (len(answers.answers), answers.silent) == (3, ())


@AWAY
@GONE
async def test_what_a_redis_that_began_anew_has_forgotten_is_restored(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    """A node that started then would have let in whom all others refused."""
    async with open_control_nodes(lasting, 2, keys=keys, control=OFTEN) as (one, two):
        names = numbered(250)
        await tell(one, *names)
        await one.control.notify("ticket", "t", 1.0, LATER_S)
        await until(lambda: len(two.sink.notices) == 251)
        await asyncio.to_thread(lasting.restart, empty=True)
        await until(lambda: one.control.notices.restored + two.control.notices.restored >= 251)
        async with open_control_node(lasting, "n3", keys=keys) as three:
            assert sorted(three.sink.names()) == names
            assert three.sink.names("ticket") == ["t"]
        # Both know it already, so neither is told again.
        assert (len(one.sink.notices), len(two.sink.notices)) == (251, 251)


async def test_a_tail_that_a_failover_lost_is_restored(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_node(server, keys=keys, control=NEVER) as one:
        await tell(one, "u1")
        await one.control.compare()
        old = snapshot(server, keys)
        await tell(one, "u2")
        await one.control.compare()
        restore(server, keys, old)
        await one.control.compare()
        assert one.control.notices.restored == 1
        assert server.ask("HKEYS", keys.notices("user")[0]) == [b"u1", b"u2"]


async def test_a_lost_tail_is_restored_though_newer_notices_hide_it(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_nodes(lasting, 2, keys=keys, control=NEVER) as (one, two):
        await tell(one, "u1")
        old = snapshot(lasting, keys)
        await tell(one, "u2")
        await one.control.compare()
        restore(lasting, keys, old)
        await tell(two, "u3")
        # The connections to the old master were lost.
        lasting.kill_clients()
        await until(lambda: one.broker.reconnects == 1)
        await one.control.compare()
        assert one.control.notices.restored == 1
        assert sorted(lasting.ask("HKEYS", keys.notices("user")[0])) == [b"u1", b"u2", b"u3"]
        await one.control.compare()
        assert one.control.notices.restored == 1


async def test_a_lost_tail_is_restored_though_no_connection_was_lost(
    server: RedisServer, keys: RedisKeys
) -> None:
    """A master of a cluster was replaced, and this node listened at another one.

    With plain pub/sub any server sends everything, so the node's connection stood all the time;
    what it had told was lost, and newer notices hid that for ever.
    """
    async with open_control_nodes(server, 2, keys=keys, control=NEVER) as (one, two):
        await tell(one, "u1")
        old = snapshot(server, keys)
        await tell(one, "u2")
        await one.control.compare()
        restore(server, keys, old)
        await tell(two, "u3")
        one.broker._on_return()
        assert one.broker.reconnects == 0
        await one.control.compare()
        assert one.control.notices.restored == 1
        assert sorted(server.ask("HKEYS", keys.notices("user")[0])) == [b"u1", b"u2", b"u3"]


def snapshot(server: RedisServer, keys: RedisKeys) -> list[Any]:
    return [server.ask("DUMP", key) for key in keys.notices("user")]


def restore(server: RedisServer, keys: RedisKeys, dumps: list[Any]) -> None:
    for key, dump in zip(keys.notices("user"), dumps, strict=True):
        server.ask("RESTORE", key, 0, dump, "REPLACE")


async def test_a_notice_whose_teller_died_with_the_master_is_restored(
    server: RedisServer, keys: RedisKeys
) -> None:
    """Newer notices hid the loss from those who had heard of it; late starters never learned it."""
    async with open_control_node(server, "two", keys=keys, control=NEVER) as two:
        async with open_control_node(server, "one", keys=keys, control=NEVER) as one:
            await tell(one, "u0")
            old = snapshot(server, keys)
            await tell(one, "u1")
            await until(lambda: len(two.sink.notices) == 2)
        restore(server, keys, old)
        await tell(two, "u2")
        two.broker._on_return()
        await two.control.compare()
        assert sorted(server.ask("HKEYS", keys.notices("user")[0])) == [b"u0", b"u1", b"u2"]


async def test_what_has_ended_is_not_restored(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    control = {**NEVER, "now": clock.wall, "monotonic": clock.monotonic}
    async with open_control_node(server, keys=keys, control=control) as node:
        await tell(node, "u1")
        await node.control.notify("user", "u2", 1.0, clock.wall() + 5.0)
        clock.advance(10.0)
        server.ask("DEL", *keys.notices("user"))
        node.control.notices.doubt()
        await node.control.compare()
        assert server.ask("HKEYS", keys.notices("user")[0]) == [b"u1"]


async def test_what_has_ended_leaves_redis(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    options: dict[str, Any] = {
        "clock_ms": lambda: round(clock.wall_s * 1000),
        "control": {**NEVER, "now": clock.wall},
    }
    async with open_control_node(server, keys=keys, lease_s=1e6, **options) as node:
        now = clock.wall()
        for number in range(600):
            await node.control.notify("user", f"u{number}", now, now + 60.0)
        notices, changed, ends, state = keys.notices("user")
        assert [server.ask("PTTL", key) > 60_000 for key in (notices, changed, ends, state)] == [
            True
        ] * 4
        clock.advance(60.0)
        for left in (344, 88, 0):
            # A few at a time.
            await node.control.compare()
            assert server.ask("HLEN", notices) == left
            assert server.ask("ZCARD", changed) == server.ask("ZCARD", ends) == left


@pytest.mark.expect_log("pubsub.redis_notices", "the oldest of user go")
async def test_beyond_the_bound_the_longest_unchanged_goes(
    server: RedisServer, keys: RedisKeys
) -> None:
    control = {**NEVER, "most_notices": 3}
    async with open_control_node(server, keys=keys, control=control) as node:
        for name in ("u1", "u2", "u3"):
            await tell(node, name)
        await tell(node, "u1", at_s=2.0)
        await tell(node, "u4")
        await tell(node, "u5")
        notices, changed, ends, _state = keys.notices("user")
        kept = [b"u1", b"u4", b"u5"]
        assert sorted(server.ask("HKEYS", notices)) == kept
        assert sorted(server.ask("ZRANGE", ends, 0, -1)) == kept
        assert server.ask("ZRANGE", changed, 0, -1) == kept
        assert node.control.notices_dropped == 2
        async with open_control_node(server, "n2", keys=keys, control=control) as late:
            assert late.sink.names() == ["u1", "u4", "u5"]


# ---- a cluster


async def test_control_goes_on_while_its_slot_moves(keys: RedisKeys) -> None:
    cluster = shared_cluster()
    async with open_control_nodes(cluster, 2, keys=keys, control=OFTEN) as (one, two):
        await tell(one, "u1")
        assert await one.control.take("t", 600.0)
        source = cluster.owner(keys.nodes)
        await asyncio.to_thread(cluster.migrate, keys.nodes, cluster.another(source))
        await tell(one, "u2", "u3")
        assert not await two.control.take("t", 600.0)
        await until(lambda: sorted(two.sink.names()) == ["u1", "u2", "u3"])
        await until(lambda: one.broker.problem() is None and two.broker.problem() is None)
        for node in (one, two):
            answers = await node.control.ask(b"x")
            assert (set(answers.answers), answers.silent) == ({"n1", "n2"}, ())
        assert one.sink.orders == two.sink.orders == [b"x", b"x"]


# ---- Redis is away


@AWAY
@GONE
async def test_while_redis_is_away_every_call_fails_in_time(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_node(lasting, keys=keys, control=OFTEN) as node:
        node.broker.link.call_timeout_s = 1.0
        await asyncio.to_thread(lasting.kill)
        await refuses_all(node)
        await until(lambda: node.control.problem() is not None)
        node.broker.link.call_timeout_s = 5.0
        await asyncio.to_thread(lasting.start)
        await until(lambda: node.control.problem() is None)
        assert (await node.control.ask(b"y")).answers == {"n1": b"n1:y"}
        assert node.sink.orders == [b"y"]


@AWAY
@SILENT
@GONE
async def test_while_redis_is_frozen_every_call_fails_in_time(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_node(lasting, keys=keys, timeout_s=0.2, control=NEVER) as node:
        node.broker.link.call_timeout_s = 0.5
        lasting.stop()
        await refuses_all(node)
        node.broker.link.call_timeout_s = 5.0
        lasting.go_on()
        await until(lambda: node.broker.problem() is None)
        assert (await node.control.ask(b"y")).answers == {"n1": b"n1:y"}
        assert node.sink.orders == [b"y"]


async def refuses_all(node: RedisControlNode) -> None:
    """Every call raises in time, and nothing is carried out or told here."""
    loop = asyncio.get_running_loop()
    for _ in range(3):
        for call in (
            node.control.ask(b"x"),
            node.control.take("t", 30.0),
            node.control.notify("user", "u", 1.0, LATER_S),
        ):
            began = loop.time()
            with pytest.raises(BrokerUnavailable):
                await call
            assert loop.time() - began < 5.0
    assert (node.sink.orders, node.sink.notices) == ([], [])


@SILENT
async def test_an_order_fails_when_its_answers_could_not_be_heard(
    lasting: RedisServer, keys: RedisKeys
) -> None:
    async with (
        MutingProxy(lasting.port) as proxy,
        open_control_node(lasting, url=proxy.url, keys=keys, control=NEVER) as node,
    ):
        node.broker.link.call_timeout_s = 0.3
        # Redis confirms nothing on the next connection.
        proxy.mute = True
        lasting.kill_clients()
        await until(lambda: not node.broker.listener.restored)
        with pytest.raises(BrokerUnavailable, match="confirm"):
            await node.control.ask(b"x")
        assert node.sink.orders == []


@AWAY
async def test_it_starts_before_redis_can_be_reached(lasting: RedisServer, keys: RedisKeys) -> None:
    async with open_control_node(lasting, keys=keys) as first:
        await tell(first, "u1")
    await asyncio.to_thread(lasting.kill)
    async with open_control_node(lasting, "n2", keys=keys, wait=False, control=OFTEN) as node:
        assert node.control.problem() == "notices were not read yet"
        with pytest.raises(BrokerUnavailable):
            await node.control.take("t", 1.0)
        assert node.control.problem() == "notices were not read yet"
        await asyncio.to_thread(lasting.start)
        await until(lambda: node.control.problem() is None)
        assert node.sink.names() == ["u1"]


# ---- what nobody should send, or keep


async def test_junk_on_the_channels_is_counted_and_dropped(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_node(server, keys=keys, control=NEVER) as node:
        me = keys.node("n1")
        junk = [
            (keys.nodes, b"junk"),
            (keys.nodes, pack_message(Answer(ID, "n2", b"x"))),
            (keys.nodes, pack_message(Notice("other", "u", 1.0, LATER_S))),
            (me, b""),
            (me, pack_message(Order(ID, "n2", b"x"))),
            (me, pack_message(Notice("user", "u", 1.0, LATER_S))),
        ]
        for address, payload in junk:
            server.ask("PUBLISH", address, payload)
        # None of these is: an answer that nobody waits for, and an order under one's own name.
        server.ask("PUBLISH", me, pack_message(Answer(ID, "n2", b"x")))
        server.ask("PUBLISH", keys.nodes, pack_message(Order(ID, "n1", b"x")))
        assert await node.broker.settled()
        assert node.control.junk == len(junk)
        assert (node.sink.orders, node.sink.notices) == ([], [])
        assert (await node.control.ask(b"x")).silent == ()


async def test_junk_among_the_notices_is_counted_and_dropped(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_node(server, keys=keys, control=NEVER) as one:
        await tell(one, "u1", "u2", "u3")
        notices, changed, _ends, _state = keys.notices("user")
        server.ask("HSET", notices, "u1", "junk", "u2", "nan 5")
        server.ask("ZADD", changed, 1, "nothing")
        server.ask("ZADD", changed, 2, b"\xff")
        server.ask("HSET", notices, b"\xff", "1.0 2.0")
        async with open_control_node(server, "n2", keys=keys, control=NEVER) as two:
            assert two.sink.names() == ["u3"]
            assert two.control.junk == 3
        # It is replaced by what is told next.
        await tell(one, "u1", "u2", at_s=2.0)
        assert server.ask("HGET", notices, "u1") == b"2.0 4000000000.0"


@REFUSED
async def test_notices_that_cannot_be_read_make_a_node_unready(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_node(server, keys=keys, control=OFTEN) as node:
        state = keys.notices("user")[3]
        server.ask("SET", state, "junk")
        await until(lambda: node.control.problem() == "notices cannot be compared")
        server.ask("DEL", state)
        server.ask("HSET", state, "epoch", b"\xff", "revision", "inf")
        junk = node.control.junk
        await until(lambda: node.control.junk > junk)
        assert node.control.problem() == "notices cannot be compared"
        server.ask("DEL", state)
        await until(lambda: node.control.problem() is None)


@pytest.mark.expect_log("pubsub.redis_control", "comparing notices failed")
async def test_a_comparison_that_fails_unexpectedly_is_tried_again(
    server: RedisServer, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_control_node(server, keys=keys, control=OFTEN) as node:
        with monkeypatch.context() as patch:
            patch.setattr(node.control.notices, "compare", lambda: 1 / 0)
            await until(lambda: node.control.problem() == "notices cannot be compared")
        await until(lambda: node.control.problem() is None)


async def test_no_name_stands_in_a_key_that_is_taken(server: RedisServer, keys: RedisKeys) -> None:
    async with open_control_node(server, keys=keys) as node:
        assert await node.control.take("canary" * 1_000, 30.0)
        (key,) = server.ask("KEYS", keys.taken("*").replace("{", "[{]"))
        assert b"canary" not in key
        assert len(key) < 128
        assert 0 < server.ask("PTTL", key) <= 30_000


def test_all_that_concerns_nodes_is_in_one_slot() -> None:
    keys = RedisKeys("x")
    every = [keys.nodes, keys.node("n1"), keys.taken("d"), *keys.notices("user"), *keys.leases]
    assert len(set(every)) == len(every)
    assert {key.partition("}")[0] for key in every} == {"{x:n"}


# ---- life


async def test_only_small_words_are_topics_and_names() -> None:
    broker = redis_broker(shared_redis())
    with pytest.raises(ValueError, match="topic"):
        RedisControl(broker, topics=["user", "A b"])
    odd = redis_broker(shared_redis(), node="a b")
    with pytest.raises(ValueError, match="name"):
        RedisControl(odd, topics=TOPICS)
    await broker.close()
    await odd.close()


async def test_it_may_be_closed_at_any_time(server: RedisServer, keys: RedisKeys) -> None:
    broker = redis_broker(server, keys=keys, node="n1")
    control = RedisControl(broker, topics=TOPICS)
    control.bind(NotedControl("n1"))
    await control.close()
    await control.close()
    late = RedisControl(broker, topics=TOPICS)
    late.bind(NotedControl("n1"))
    # The broker is not started, so nothing is confirmed.
    await late.start()
    asking = asyncio.create_task(late.ask(b"x"))
    await asyncio.sleep(0)
    await late.close()
    with pytest.raises(BrokerUnavailable):
        await asking
    await broker.close()


async def test_a_broker_that_is_closed_first_ends_it(server: RedisServer, keys: RedisKeys) -> None:
    broker = redis_broker(server, keys=keys, node="n1")
    control = RedisControl(broker, topics=TOPICS)
    control.bind(NotedControl("n1"))
    await control.start()
    await asyncio.sleep(0)
    await broker.close()
    task = control._task
    await until(lambda: task is not None and task.done())
    assert control.problem() == "notices were not read yet"
    with pytest.raises(BrokerUnavailable):
        await control.take("t", 1.0)
    await control.close()


async def test_an_answer_that_cannot_be_sent_is_given_up(
    server: RedisServer, keys: RedisKeys
) -> None:
    async with open_control_node(server, keys=keys, control=NEVER) as node:
        node.sink.blocked = True
        server.ask("PUBLISH", keys.nodes, pack_message(Order(ID, "n2", b"x")))
        await until(lambda: node.sink.running)
        await node.broker.link.close()
        node.sink.release.set()
        await until(lambda: not node.control._others._tasks)
        assert node.sink.orders == [b"x"]


async def test_an_order_is_not_carried_out_here_if_it_was_closed_meanwhile(
    server: RedisServer, keys: RedisKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_control_node(server, keys=keys, control=NEVER) as node:
        give = node.control._give

        async def give_and_close(order_id: str, order: bytes) -> list[str]:
            names = await give(order_id, order)
            await node.control.close()
            return names

        monkeypatch.setattr(node.control, "_give", give_and_close)
        with pytest.raises(BrokerUnavailable, match="closed"):
            await node.control.ask(b"x")
        assert not node.control._own._tasks
        assert node.sink.orders == []
