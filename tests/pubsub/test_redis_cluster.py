"""Delivery over a real Redis Cluster: slots migrate, masters die, shards fall deaf."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ClusterDownError, ConnectionError, ResponseError, TryAgainError

from broker_rig import Notes, accepted, draft, drafts, ids, redis_broker
from muting_proxy import MutingProxy
from nginx import Issuer
from pubsub.errors import BrokerUnavailable, NotReplicated
from pubsub.event import Draft, Published
from pubsub.redis_broker import RedisBroker
from pubsub.redis_client import connect
from pubsub.redis_cluster import Cluster, ShardAway
from pubsub.redis_keys import SEND, RedisKeys
from pubsub.redis_slots import SlotMap, read_slots, slot_of, slot_of_key
from pubsub.redis_url import Endpoint, parse_redis_url
from redis_cluster import ClusterServer, RedisCluster, shared_cluster
from redis_rig import open_broker, open_redis_node, until

AWAY = pytest.mark.expect_log("pubsub.redis_servers", "is away", required=False)
ALL_AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
REFUSED = pytest.mark.expect_log("pubsub.redis_link", "Redis refused a call", required=False)
SILENT = pytest.mark.expect_log("pubsub.redis_watch", "Redis pub/sub is silent", required=False)
RESET = pytest.mark.expect_log("server.repair", "feed reset", required=False)


@pytest.fixture
def cluster() -> Iterator[RedisCluster]:
    """A cluster that the test may break."""
    with RedisCluster() as cluster:
        yield cluster


@pytest.fixture
def replicated() -> Iterator[RedisCluster]:
    """A cluster in which each master has a replica."""
    with RedisCluster(replicas=True) as cluster:
        yield cluster


def topology(cluster: RedisCluster, **options: Any) -> Cluster:
    return Cluster(parse_redis_url(cluster.url), timeout_s=2.0, **options)


def can_shard(cluster: RedisCluster) -> bool:
    """Whether this Redis has sharded pub/sub."""
    return bool(cluster.masters[0].ask_raw("COMMAND", "INFO", "SPUBLISH") != [None])


def channels(keys: RedisKeys) -> list[str]:
    """Return a channel of each partition."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < keys.partitions:
        found.setdefault(keys.partition(f"c.{number}"), f"c.{number}")
        number += 1
    return list(found.values())


def homes(cluster: RedisCluster, keys: RedisKeys) -> dict[ClusterServer, list[str]]:
    """Return a channel of each partition, by the master that has it."""
    found: dict[ClusterServer, list[str]] = {}
    for channel in channels(keys):
        found.setdefault(cluster.owner(keys.record(channel)), []).append(channel)
    return found


async def publish_each(broker: RedisBroker, name: str, names: Sequence[str]) -> list[Any]:
    return await broker.publish([draft(f"{name}-{channel}", channel) for channel in names])


async def published(broker: RedisBroker, event: Draft) -> None:
    """Publish an event until it is taken."""
    while not isinstance((await broker.publish([event]))[0], Published):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


# ---- slots


HERE = Endpoint("here", 1)


def test_slots_are_read() -> None:
    slots = read_slots(
        [
            [0, 99, [b"a", 7000, b"id"], [b"b", 7001, b"id"]],
            [200, 16383, [b"", 7002, b"id"], [None, 7003, b"id", []]],
        ],
        HERE,
    )
    assert slots.owner(0) == slots.owner(99) == Endpoint("a", 7000)
    assert slots.owner(100) is None
    assert slots.owner(16383) == Endpoint("here", 7002)
    assert slots.owners == {Endpoint("a", 7000), Endpoint("here", 7002)}
    assert slots.replicas == {Endpoint("b", 7001), Endpoint("here", 7003)}
    assert slots.moved(5, HERE).owner(5) == HERE
    assert slots.moved(5, HERE) != slots == slots.moved(5, Endpoint("a", 7000))
    assert not read_slots([], HERE)


@pytest.mark.parametrize(
    "answer",
    [7, [7], [[0]], [[0, 16384, [b"a", 1]]], [[5, 4, [b"a", 1]]], [[0, 1, []]], [[0, 1, [7, 1]]]],
)
def test_what_is_no_list_of_slots_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match="slot"):
        read_slots(answer, HERE)


def test_a_command_goes_by_its_first_key() -> None:
    slot = slot_of_key("{a}x")
    assert slot == slot_of_key("{a}y") == slot_of_key("a")
    assert slot_of(("EVALSHA", "d", 2, "{a}x", "{a}y", "z")) == slot
    assert slot_of(("EVAL", "text", 1, b"{a}x")) == slot
    assert slot_of(("ZCARD", "{a}x")) == slot
    assert slot_of((SEND, "{a}x", b"m")) == slot
    assert slot_of(("PING",)) is slot_of(("INFO", "server")) is None


# ---- calls


async def test_a_pipeline_is_split_and_answered_in_order() -> None:
    asked = topology(shared_cluster())
    keys = [f"split:{number}" for number in range(50)]
    assert len({asked.home(key) for key in keys}) == 1
    assert await asked.ask([("SET", key, key) for key in keys]) == [b"OK"] * 50
    assert len({asked.home(key) for key in keys}) == 3
    got = await asked.ask([("PING",), *(("GET", key) for key in keys), ("INCR", keys[0])])
    assert got[:-1] == [b"PONG", *(key.encode() for key in keys)]
    assert isinstance(got[-1], ResponseError)
    assert asked.looks == 1
    with pytest.raises(ResponseError, match="same slot"):
        raise (await asked.ask([("MGET", "a", "b")]))[0]
    await asked.close()
    await asked.close()
    with pytest.raises(ConnectionError):
        await asked.ask([("PING",)])


async def test_a_server_that_is_about_to_be_asked_is_not_let_go_of() -> None:
    """It was, in the turn before its task began, if it owned no slots any more.

    Its connections were closed under the calls, or made anew when nobody would close them.
    """
    asked = topology(shared_cluster())
    keys = [f"let go:{number}" for number in range(50)]
    await asked.ask([("GET", key) for key in keys])
    servers = asked._servers
    asking = asyncio.create_task(asked.ask([("GET", key) for key in keys]))
    await asyncio.sleep(0)
    # All slots are at one other server now.
    servers.slots = SlotMap([Endpoint("127.0.0.1", 1)] * 16_384)
    await servers._forget()
    assert {asked.home(key) for key in keys} == {Endpoint("127.0.0.1", 1)}
    assert await asking == [None] * 50
    await servers._forget()
    assert not servers._servers
    await asked.close()


async def test_a_script_is_learned_by_each_master() -> None:
    """The second of several calls of an unknown script brings no text, and goes elsewhere."""
    cluster = shared_cluster()
    async with open_broker(cluster, notes := Notes()) as broker:
        names = channels(broker.keys)
        for name in names:
            await broker.subscribe(name)
        for turn in range(2):
            for server in cluster.masters:
                server.ask("SCRIPT", "FLUSH")
            answers = await publish_each(broker, f"x{turn}", names)
            assert [accepted(each).position.offset for each in answers] == [turn + 1] * len(names)
        assert await broker.settled()
        for name in names:
            assert ids(notes.events(name)) == [f"x0-{name}", f"x1-{name}"]


async def test_a_server_that_has_no_cluster_is_no_success() -> None:
    lonely = ClusterServer()
    with lonely:
        asked = Cluster(parse_redis_url(f"redis+cluster://127.0.0.1:{lonely.port}"), timeout_s=2.0)
        with pytest.raises(ConnectionError, match="no slots"):
            await asked.ask([("PING",)])
        await asked.close()


async def test_slots_that_nobody_owns_pass(cluster: RedisCluster) -> None:
    asked = topology(cluster)
    await asked.prepare()
    slot = slot_of_key("x")
    for server in cluster.masters:
        server.cluster("DELSLOTS", slot)
    assert isinstance((await asked.ask([("GET", "x")]))[0], ClusterDownError)
    await until(lambda: asked.home("x") is None)
    answers = await asked.ask([("GET", "x"), ("PING",)])
    assert isinstance(answers[0], ClusterDownError)
    assert answers[1] == b"PONG"
    await asked.close()


async def test_moved_and_asked_calls_are_sent_on(cluster: RedisCluster) -> None:
    asked = topology(cluster)
    await asked.ask([("SET", "{m}1", "1")])
    target = cluster.another(cluster.owner("{m}"))
    source = cluster.begin_migration("{m}", target)
    # A key that the source has not is asked for at the target.
    assert await asked.ask([("SET", "{m}2", "2"), ("GET", "{m}1")]) == [b"OK", b"1"]
    assert target.cluster("COUNTKEYSINSLOT", slot_of_key("{m}")) == 1
    split = await asked.ask([("MGET", "{m}1", "{m}2")])
    assert isinstance(split[0], TryAgainError)
    cluster.move_keys("{m}", source, target)
    assert await asked.ask([("MGET", "{m}1", "{m}2")]) == [[b"1", b"2"]]
    cluster.end_migration("{m}", source, target)
    before = asked.looks
    answers = await asyncio.gather(*(asked.ask([("GET", "{m}1")]) for _ in range(12)))
    assert answers == [[b"1"]] * 12
    assert asked.home("{m}") == Endpoint("127.0.0.1", target.port)
    await until(lambda: asked.looks > before)
    assert asked.looks <= before + 2
    await asked.close()


@AWAY
async def test_one_dead_master_costs_its_own_calls_only(cluster: RedisCluster) -> None:
    asked = topology(cluster)
    keys = [f"k{number}" for number in range(30)]
    await asked.ask([("SET", key, key) for key in keys])
    dead = cluster.owner("k0")
    alive = [key for key in keys if cluster.owner(key) is not dead]
    await asyncio.to_thread(dead.kill)
    kinds = set()
    for _ in range(10):
        answers = dict(zip(keys, await asked.ask([("GET", key) for key in keys]), strict=True))
        assert [answers[key] for key in alive] == [key.encode() for key in alive]
        kinds |= {type(answers[key]) for key in keys if key not in alive}
        assert await asked.ask([("PING",)]) == [b"PONG"]
        # Another master answers, so the cluster is there.
        assert isinstance((await asked.ask([("GET", "k0")]))[0], ConnectionError | ShardAway)
    assert ShardAway in kinds
    await asyncio.to_thread(dead.start)

    async def back() -> bool:
        return (await asked.ask([("GET", "k0")]))[0] is None

    while not await back():  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    for server in cluster.masters:
        await asyncio.to_thread(server.kill)
    with pytest.raises((ConnectionError, ResponseError)):
        for _ in range(10):
            await asked.ask([("GET", key) for key in keys])
    await asked.close()


async def test_calls_may_wait_for_replicas(replicated: RedisCluster) -> None:
    asked = topology(replicated)
    commands = [("SET", f"k{number}", "v") for number in range(20)]
    answers = await asked.ask(commands, replicas=1, replicas_timeout_ms=5_000)
    assert answers == [b"OK"] * 20
    answers = await asked.ask(commands, replicas=2, replicas_timeout_ms=1)
    assert all(isinstance(each, NotReplicated) for each in answers)
    await asked.close()


# ---- pub/sub


@pytest.mark.parametrize("sharded", [True, False, None])
async def test_events_travel_sharded_or_plain(sharded: bool | None) -> None:
    cluster = shared_cluster()
    able = can_shard(cluster)
    if sharded and not able:
        pytest.skip("this Redis has no sharded pub/sub")
    keys = RedisKeys(f"kind{sharded}")
    names = channels(keys)
    asked = topology(cluster, sharded=sharded)
    async with (
        open_broker(cluster, notes := Notes(), keys=keys, topology=asked) as one,
        open_broker(
            cluster, Notes(), keys=keys, topology=topology(cluster, sharded=sharded)
        ) as two,
    ):
        for name in names:
            await one.subscribe(name)
        shard, plain = set(), set()
        for server in cluster.masters:
            plain |= set(server.ask_raw("PUBSUB", "CHANNELS", f"{{{keys.prefix}:*"))
            if able:
                mine = server.ask_raw("PUBSUB", "SHARDCHANNELS", f"{{{keys.prefix}:*")
                shard |= set(mine)
                assert all(cluster.owner(each.decode()) is server for each in mine)
        addresses = {keys.address(name).encode() for name in names}
        if sharded or (sharded is None and able):
            assert asked.sharded
            assert addresses <= shard
            assert not plain
        else:
            assert not asked.sharded
            assert addresses <= plain
            assert not shard
        for turn in range(3):
            await publish_each(two, str(turn), names)
        assert await one.settled()
        # What another master sent may still be under way on plain pub/sub.
        for name in names:
            assert ids(notes.events(name)) == [f"{turn}-{name}" for turn in range(3)]
        for name in names:
            await one.unsubscribe(name)
        await one.compare()
        assert one.doubts == one.surprises == one.reconnects == 0


async def test_the_whole_pubsub_is_back_after_it_was_cut(cluster: RedisCluster) -> None:
    keys = RedisKeys("cut")
    names = channels(keys)
    async with open_broker(cluster, notes := Notes(), keys=keys, interval_s=0.3) as broker:
        for name in names:
            await broker.subscribe(name)
        for server in cluster.masters:
            server.ask("CLIENT", "KILL", "TYPE", "pubsub")
        lines = 3 if can_shard(cluster) else 1
        await until(lambda: broker.reconnects >= lines and broker.problem() is None)
        await publish_each(broker, "x", names)
        assert await broker.settled()
        for name in names:
            assert ids(notes.events(name)) == [f"x-{name}"]


@SILENT
@RESET
async def test_rule_16_one_deaf_shard_of_three_is_found(cluster: RedisCluster) -> None:
    """Each connection has a probe of its own, else two that hear would hide one that is deaf."""
    keys = RedisKeys("deaf")
    mine = homes(cluster, keys)
    deaf = cluster.masters[1]
    if not can_shard(cluster):
        pytest.skip("this Redis has no sharded pub/sub")
    async with MutingProxy(deaf.port) as proxy:
        deaf.ask("CONFIG", "SET", "cluster-announce-port", proxy.port)
        await until(lambda: all(_announced(each, proxy.port) for each in cluster.masters))
        async with (
            open_redis_node(cluster, keys=keys, interval_s=0.4) as node,
            open_broker(cluster, Notes(), keys=keys) as publisher,
        ):
            here, there = mine[deaf][0], mine[cluster.masters[0]][0]
            clients = [await node.subscribe(here), await node.subscribe(there)]
            proxy.mute = True
            for channel in (here, there):
                for each in drafts("x", 3, channel):
                    (answer,) = await publisher.publish([each])
                    accepted(answer)
            await until(lambda: clients[1].ids() == ["x1", "x2", "x3"])
            await until(lambda: node.broker.silences)
            assert node.broker.problem() is not None
            proxy.mute = False
            await until(lambda: clients[0].ids() == ["x1", "x2", "x3"])
            await until(lambda: node.broker.problem() is None)
            assert node.broker.reconnects <= node.broker.silences


def _announced(server: ClusterServer, port: int) -> bool:
    return any(place[1] == port for _first, _last, place, *_rest in server.cluster("SLOTS"))


async def test_a_slot_that_nobody_owned_for_a_while_is_heard_again(cluster: RedisCluster) -> None:
    keys = RedisKeys("nobody")
    name = channels(keys)[0]
    owner, slot = cluster.owner(keys.record(name)), slot_of_key(keys.record(name))
    async with open_broker(cluster, notes := Notes(), keys=keys, interval_s=0.3) as broker:
        await broker.subscribe(name)
        for server in cluster.masters:
            server.cluster("DELSLOTS", slot)
        broker.link.call_timeout_s = 1.0
        (answer,) = await broker.publish([draft("x", name)])
        assert isinstance(answer, BrokerUnavailable)
        broker.link.call_timeout_s = 5.0
        await until(lambda: broker.listener.home(keys.address(name)) is None)
        await until(lambda: broker.problem() is not None)
        for server in cluster.masters:
            if server is owner:
                server.cluster("ADDSLOTS", slot)
            else:
                server.cluster("SETSLOT", slot, "NODE", owner.name)
        await published(broker, draft("y", name))
        await until(lambda: ids(notes.events(name)) == ["y"])
        await until(lambda: broker.problem() is None)


@AWAY
@ALL_AWAY
@REFUSED
async def test_a_cluster_that_comes_later_is_found(cluster: RedisCluster) -> None:
    keys = RedisKeys("later")
    for server in cluster.masters:
        await asyncio.to_thread(server.kill)
    broker = redis_broker(cluster, keys=keys, interval_s=0.3, call_timeout_s=1.0)
    broker.bind(notes := Notes())
    await broker.start()
    subscribing = asyncio.create_task(broker.subscribe("a.b"))
    (answer,) = await broker.publish([draft("x")])
    assert isinstance(answer, BrokerUnavailable)
    with pytest.raises(BrokerUnavailable):
        await subscribing
    assert broker.problem() is not None
    broker.link.call_timeout_s = 5.0
    for server in cluster.masters:
        await asyncio.to_thread(server.start)
    await until(lambda: broker.problem() is None)
    await broker.subscribe("a.b")
    await broker.publish([draft("x")])
    await until(lambda: ids(notes.events("a.b")) == ["x"])
    await broker.close()


# ---- slots migrate


@RESET
async def test_slots_that_migrate_under_load_lose_nothing(cluster: RedisCluster) -> None:
    """Publishers on all partitions, subscribers on another node."""
    keys = RedisKeys("moving")
    names = channels(keys)
    stop = asyncio.Event()
    published: dict[str, list[str]] = {name: [] for name in names}
    longest = 0.0

    async def publish(broker: RedisBroker, mine: Sequence[str]) -> None:
        nonlocal longest
        loop = asyncio.get_running_loop()
        turn = 0
        while not stop.is_set():
            began = loop.time()
            answers = await publish_each(broker, str(turn), mine)
            longest = max(longest, loop.time() - began)
            for name, answer in zip(mine, answers, strict=True):
                assert isinstance(answer, Published), (name, answer)
                published[name].append(answer.id)
            turn += 1
            await asyncio.sleep(0.005)

    async with (
        open_redis_node(cluster, keys=keys, interval_s=0.3) as node,
        open_broker(cluster, Notes(), keys=keys) as one,
        open_broker(cluster, Notes(), keys=keys) as two,
    ):
        clients = {name: await node.subscribe(name) for name in names}
        tasks = [
            asyncio.create_task(publish(one, names[:32])),
            asyncio.create_task(publish(two, names[32:])),
        ]
        await until(lambda: all(len(each) > 3 for each in published.values()))
        for name in names[::8]:
            tag = keys.record(name)
            source = await asyncio.to_thread(cluster.owner, tag)
            target = cluster.another(source)
            assert await asyncio.to_thread(cluster.migrate, tag, target) > 0
            before = len(published[name])
            await until(lambda name=name, n=before: len(published[name]) > n + 2)  # type: ignore[misc]
        stop.set()
        await asyncio.gather(*tasks)
        for name, client in clients.items():
            await until(lambda name=name, c=client: len(c.ids()) >= len(published[name]))  # type: ignore[misc]
            assert client.ids() == published[name]
            assert not client.of("reset")
        assert longest < node.broker.link.call_timeout_s
        await until(lambda: node.broker.problem() is None)
        assert (node.broker.surprises > 0) is can_shard(cluster)
        assert node.broker.reconnects == 0
        # All is heard where it is sent now, not only found by comparing.
        doubts = node.broker.doubts
        await publish_each(one, "last", names)
        assert await node.broker.settled()
        assert [client.ids()[-1] for client in clients.values()] == [f"last-{n}" for n in names]
        await node.broker.compare()
        assert node.broker.doubts == doubts


async def test_rule_17_a_publish_waits_while_its_keys_are_in_two_places(
    cluster: RedisCluster,
) -> None:
    keys = RedisKeys("halves")
    async with open_broker(cluster, notes := Notes(), keys=keys, interval_s=0.3) as broker:
        await broker.subscribe("a.b")
        await broker.publish(drafts("x", 3))
        tag = keys.record("a.b")
        target = cluster.another(cluster.owner(tag))
        source = cluster.begin_migration(tag, target)
        source.ask("MIGRATE", "127.0.0.1", target.port, keys.record("a.b"), 0, 5_000)
        publishing = asyncio.create_task(broker.publish([draft("y")]))
        (done, _) = await asyncio.wait([publishing], timeout=0.3)
        assert not done
        cluster.move_keys(tag, source, target)
        (answer,) = await publishing
        assert accepted(answer).position.offset == 4
        assert not accepted(answer).duplicate
        cluster.end_migration(tag, source, target)
        await until(lambda: broker.surprises or not can_shard(cluster))
        assert await broker.settled()
        found = await broker.history("a.b", limit=10)
        assert found is not None
        assert ids(found.events) == ["x1", "x2", "x3", "y"]
        assert (await broker.publish([draft("y")]))[0] == Published(
            "a.b", accepted(answer).position, "y", duplicate=True
        )
        await broker.publish([draft("z")])
        await until(lambda: ids(notes.events("a.b"))[-1:] == ["z"])


# ---- masters die


@AWAY
@REFUSED
@RESET
async def test_a_dead_master_fails_its_slots_at_once_and_the_others_go_on(
    cluster: RedisCluster,
) -> None:
    keys = RedisKeys("dies")
    mine = homes(cluster, keys)
    dead = cluster.masters[2]
    lost = mine[dead][0]
    kept = [mine[server][0] for server in cluster.masters[:2]]
    async with (
        open_redis_node(cluster, keys=keys, interval_s=0.3) as node,
        open_broker(cluster, Notes(), keys=keys, call_timeout_s=3.0) as publisher,
    ):
        clients = {name: await node.subscribe(name) for name in (lost, *kept)}
        await publish_each(publisher, "x1", (lost, *kept))
        await asyncio.to_thread(dead.kill)
        loop = asyncio.get_running_loop()
        for turn in range(2, 6):
            began = loop.time()
            answers = await publish_each(publisher, f"x{turn}", (lost, *kept))
            assert isinstance(answers[0], BrokerUnavailable)
            assert all(isinstance(answer, Published) for answer in answers[1:])
            assert loop.time() - began < 4.0
        began = loop.time()
        for _ in range(20):
            assert isinstance((await publisher.publish([draft("n", lost)]))[0], BrokerUnavailable)
        # Each would wait for 3 s.
        assert loop.time() - began < 20.0
        for name in kept:
            wanted = [f"x{turn}-{name}" for turn in range(1, 6)]
            await until(lambda n=name, w=wanted: clients[n].ids() == w)  # type: ignore[misc]
        assert publisher.circuit_openings == node.broker.circuit_openings == 0
        await until(lambda: node.broker.problem() is not None)
        # It comes back without its data.
        await asyncio.to_thread(dead.start)
        await until(lambda: node.broker.problem() is None)
        await until(lambda: clients[lost].of("reset"))
        await node.live(lost)
        await published(publisher, draft("z", lost))
        await until(lambda: clients[lost].ids()[-1:] == ["z"])


@AWAY
@ALL_AWAY
@REFUSED
@RESET
async def test_a_replica_that_takes_over_carries_on(replicated: RedisCluster) -> None:
    keys = RedisKeys("over")
    dead, heir = replicated.masters[0], replicated.replicas[0]
    names = channels(keys)
    mine = homes(replicated, keys)[dead]
    async with (
        open_redis_node(replicated, keys=keys, interval_s=0.3) as node,
        open_broker(replicated, Notes(), keys=keys) as publisher,
    ):
        clients = {name: await node.subscribe(name) for name in names[:16] + mine[:1]}
        await publish_each(publisher, "x", names)
        replicated.masters[0].wait_for(replicated.replicas[0])
        await asyncio.to_thread(dead.kill)
        assert heir.cluster("FAILOVER", "TAKEOVER") == b"OK"
        left = list(names)
        while left:
            answers = await publish_each(publisher, "y", left)
            left = [n for n, a in zip(left, answers, strict=True) if not isinstance(a, Published)]
            await asyncio.sleep(0.05)
        await until(lambda: node.broker.problem() is None)
        for name, client in clients.items():
            wanted = [f"x-{name}", f"y-{name}"]
            await until(lambda c=client, w=wanted: c.ids() == w or c.of("reset"))  # type: ignore[misc]
        heard = [name for name, client in clients.items() if len(client.ids()) == 2]
        assert set(heard) >= set(clients) - set(mine)
        spread = node.broker.listener.spread
        assert spread is not None
        place = Endpoint("127.0.0.1", heir.port)
        await until(lambda: spread.home(keys.address(mine[0])) == place)
        await publish_each(publisher, "z", names)
        for name, client in clients.items():
            await until(lambda c=client, n=name: c.ids()[-1:] == [f"z-{n}"])  # type: ignore[misc]


@AWAY
@REFUSED
async def test_rule_6_plain_pubsub_looks_for_what_a_new_master_lost(
    replicated: RedisCluster,
) -> None:
    """The connection that listens stands all the while, so nothing else would tell."""
    keys = RedisKeys("plain")
    dead, heir = replicated.masters[0], replicated.replicas[0]
    name = homes(replicated, keys)[dead][0]
    asked = topology(replicated, sharded=False)
    async with open_broker(
        replicated, Notes(), keys=keys, topology=asked, interval_s=1.0
    ) as broker:
        # Any server may be the one that it listens to.
        while dead.ask_raw("PUBSUB", "CHANNELS", "{plain:*"):
            broker.listener.break_off()
            await until(lambda: not broker.listener.restored)
            await until(lambda: broker.listener.restored)
        reconnects = broker.reconnects
        await broker.publish([draft("x1", name)])
        dead.wait_for(heir)
        dead.ask("ACL", "SETUSER", "default", "-psync", "-sync")
        dead.ask("CLIENT", "KILL", "TYPE", "replica")
        (answer,) = await broker.publish([draft("x2", name)])
        before = accepted(answer).position
        await asyncio.to_thread(dead.kill)
        heir.cluster("FAILOVER", "TAKEOVER")

        async def forked() -> bool:
            try:
                now = await broker.top(name)
            except BrokerUnavailable:
                return False
            return now is not None and now.epoch != before.epoch

        while not await forked():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        assert broker.reconnects == reconnects
        found = await broker.history(name, limit=10)
        assert found is not None
        assert ids(found.events) == ["x1"]


@AWAY
@REFUSED
@SILENT
async def test_a_frozen_master_does_not_keep_the_others_from_taking_events(
    cluster: RedisCluster,
) -> None:
    keys = RedisKeys("frozen")
    mine = homes(cluster, keys)
    frozen = cluster.masters[1]
    there, here = mine[frozen][0], mine[cluster.masters[0]][0]
    asked = Cluster(parse_redis_url(cluster.url), timeout_s=0.5)
    async with open_broker(
        cluster, notes := Notes(), keys=keys, topology=asked, interval_s=0.3
    ) as broker:
        await broker.subscribe(here)
        await broker.subscribe(there)
        frozen.stop()
        answers = await asyncio.gather(
            *(broker.publish([draft(f"x{n}", name)]) for n in range(5) for name in (here, there))
        )
        assert all(isinstance(each[0], Published) for each in answers[::2])
        assert all(isinstance(each[0], BrokerUnavailable) for each in answers[1::2])
        if can_shard(cluster):
            # On plain pub/sub the frozen one may be the one that is listened to.
            await until(lambda: len(notes.events(here)) == 5)
        assert broker.circuit_openings == 0
        frozen.go_on()
        # It may not have been missed by the probes yet, but by the calls.
        for number in range(5):
            await published(broker, draft(f"x{number}", there))
        await until(lambda: broker.problem() is None)
        found = await broker.history(there, limit=10)
        assert found is not None
        assert sorted(ids(found.events)) == [f"x{number}" for number in range(5)]


async def test_a_cluster_is_what_its_address_says() -> None:
    made = connect(parse_redis_url("redis+cluster://127.0.0.1:1,127.0.0.1:2"), timeout_s=1.0)
    assert isinstance(made, Cluster)
    with pytest.raises(ConnectionError):
        await made.ask([("PING",)])
    await made.close()


# ---- TLS


def came_or_was_told(notes: Notes, channel: str, event_id: str) -> None:
    """An event that was sent before its new master was listened to is told of by its position."""
    assert notes.kinds(channel)[1] == "top" or ids(notes.events(channel))[-1] == event_id


@AWAY
@ALL_AWAY
@REFUSED
@pytest.mark.timeout(seconds=120)
async def test_everything_over_tls(tmp_path: Path) -> None:
    """All masters are met, a slot that moves is followed, and a replica that takes over."""
    issuer = Issuer(tmp_path, "tests")
    certificate, key = issuer.issue("redis")
    lines = [
        f"tls-ca-cert-file {issuer.certificate}",
        f"tls-cert-file {certificate}",
        f"tls-key-file {key}",
        "tls-auth-clients no",
    ]
    with RedisCluster(replicas=True, tls=lines) as cluster:
        url = f"{cluster.url}?tls=true&ca_file={issuer.certificate}"
        async with open_broker(cluster, notes := Notes(), url=url, interval_s=0.5) as broker:
            places = homes(cluster, broker.keys)
            assert set(places) == set(cluster.masters)
            names = [name for channels_there in places.values() for name in channels_there]
            for name in names:
                await broker.subscribe(name)
            for answer in await publish_each(broker, "a", names):
                accepted(answer)
            await until(lambda: all(notes.events(name) for name in names))

            moving = names[0]
            record = broker.keys.record(moving)
            target = cluster.another(cluster.owner(record))
            assert await asyncio.to_thread(cluster.migrate, record, target) > 0
            await published(broker, draft("b", moving))
            await until(lambda: len(notes.kinds(moving)) > 1)
            came_or_was_told(notes, moving, "b")

            dying = cluster.masters[-1]
            name = places[dying][-1]
            dying.wait_for(cluster.replicas[-1])
            await asyncio.to_thread(dying.kill)
            await published(broker, draft("c", name))
            await until(lambda: len(notes.kinds(name)) > 1, 30.0)
            came_or_was_told(notes, name, "c")
            assert cluster.owner(broker.keys.record(name)) is cluster.replicas[-1]
            await until(lambda: broker.problem() is None, 30.0)


@ALL_AWAY
async def test_a_cluster_whose_certificate_nobody_signed_is_not_spoken_to(tmp_path: Path) -> None:
    issuer, stranger = Issuer(tmp_path, "tests"), Issuer(tmp_path, "stranger")
    certificate, key = issuer.issue("redis")
    lines = [
        f"tls-ca-cert-file {issuer.certificate}",
        f"tls-cert-file {certificate}",
        f"tls-key-file {key}",
        "tls-auth-clients no",
    ]
    with RedisCluster(tls=lines) as cluster:
        url = f"{cluster.url}?tls=true&ca_file={stranger.certificate}"
        broker = redis_broker(cluster, url=url, interval_s=0.05)
        broker.bind(Notes())
        await broker.start()
        await until(lambda: broker.circuit_openings)
        assert broker.problem() is not None
        await broker.close()
