"""Delivery over a Redis whose master changes: nothing is lost, or subscribers are told."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import ConnectionError as RedisConnectionError

from broker_rig import Notes, accepted, draft, drafts, ids, ready, redis_broker
from config.rules import ChannelRule
from nginx import Issuer
from pubsub.event import Draft, Published
from pubsub.redis_broker import RedisBroker
from pubsub.redis_client import connect
from pubsub.redis_keys import RedisKeys
from pubsub.redis_sentinel import Named, Sentinel
from pubsub.redis_url import Endpoint, parse_redis_url
from redis_rig import open_broker, open_redis_node, until
from redis_sentinel import RedisReplica, SentinelRig
from redis_server import RedisServer, free_port

AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
RESET = pytest.mark.expect_log("server.repair", "feed reset", required=False)
# A server may begin to refuse between two answers.
REFUSED = pytest.mark.expect_log("pubsub.redis_link", "refused a call", required=False)

KEYS = RedisKeys("s")
PATIENCE_S = 25.0


@pytest.fixture
def rig() -> Iterator[SentinelRig]:
    """A master, a replica and three Sentinels."""
    with SentinelRig() as opened:
        yield opened


async def insist(broker: RedisBroker, batch: Sequence[Draft]) -> list[Published]:
    """Publish, as often as it takes, with the same ids."""
    while True:
        answers = await broker.publish(batch)
        found = [each for each in answers if isinstance(each, Published)]
        if len(found) == len(batch):
            return found
        await asyncio.sleep(0.05)


async def fail_over(rig: SentinelRig) -> None:
    """Kill the master, and wait until the Sentinels have made the replica master."""
    await asyncio.to_thread(rig.master.kill)
    await asyncio.to_thread(rig.wait, lambda: rig.promoted(rig.replica))


async def cut_off(rig: SentinelRig) -> None:
    """Let the replica hear no more of the master; soon it must be promoted."""
    await asyncio.to_thread(rig.replica.ask, "REPLICAOF", "127.0.0.1", free_port())


async def held(broker: RedisBroker) -> set[str]:
    """Return the ids of the events that Redis has, of whatever epoch."""
    found = await broker.history("a.b", limit=100_000)
    assert found is not None
    assert found.events[0].position.offset == 1, "the first were trimmed"
    return {event.id for event in found.events}


def subscribers(server: RedisReplica) -> int:
    """How many connections are subscribed to the channel a.b at a server."""
    return int(server.ask("PUBSUB", "NUMSUB", KEYS.address("a.b"))[1])


# ---- fail-over


@AWAY
@RESET
@REFUSED
@pytest.mark.parametrize("tail_lost", [False, True])
async def test_a_killed_master_under_load_loses_nothing_or_says_so(
    rig: SentinelRig, tail_lost: bool
) -> None:
    """With `tail_lost` its replica has none of what was acknowledged last."""
    # How much is published until the fail-over is seen to be over is a matter of speed.
    rule = ChannelRule(match=">", history_size=100_000)
    async with (
        open_redis_node(rig.master, rule, url=rig.url, keys=KEYS, interval_s=0.5) as node,
        open_broker(rig.master, Notes(), (rule,), url=rig.url, keys=KEYS) as publisher,
    ):
        client = await node.subscribe()
        names: list[str] = []
        failing: asyncio.Task[None] | None = None
        turn = 0
        while failing is None or not failing.done() or len(names) < 200:
            if turn == 10 and tail_lost:
                await cut_off(rig)
            if turn == 20:
                failing = asyncio.create_task(fail_over(rig))
            batch = drafts(f"{turn}-", 3)
            await insist(publisher, batch)
            names += [each.id for each in batch]
            turn += 1
        await failing
        if tail_lost:
            # What came before it is not replayed: a client reads its state anew.
            await until(lambda: client.of("reset"), PATIENCE_S)
        after = [each.id for each in drafts("after-", 10)]
        await insist(publisher, drafts("after-", 10))
        await until(lambda: client.ids()[-10:] == after, PATIENCE_S)
        # The master may have died before its replica had all that it acknowledged; only then may
        # subscribers be told so.
        lost = set(names) - await held(publisher)
        assert lost or not tail_lost
        if lost:
            await until(lambda: client.of("reset"), PATIENCE_S)
        else:
            assert client.ids() == names + after
            assert not client.of("reset")
        if not tail_lost:
            assert len(set(client.ids())) == len(client.ids())
        await until(lambda: node.broker.problem() is None, PATIENCE_S)


@AWAY
@RESET
@pytest.mark.parametrize("others", [0, 2, 3])
async def test_rules_1_to_3_a_lost_tail_is_told_to_every_subscriber(
    rig: SentinelRig, others: int
) -> None:
    """The new master has none of what was acknowledged last, or `others` in its place."""
    async with (
        open_redis_node(rig.master, url=rig.url, keys=KEYS, interval_s=0.5) as one,
        open_redis_node(rig.master, url=rig.url, keys=KEYS, interval_s=0.5) as two,
    ):
        clients = [await one.subscribe(), await two.subscribe(), await two.subscribe()]
        before = (await one.publish("x1", "x2"))[1].position
        await asyncio.to_thread(rig.wait, lambda: _has(rig.replica, 2))
        await cut_off(rig)
        await one.publish("x3", "x4")
        await until(lambda: all(client.ids()[-1:] == ["x4"] for client in clients))
        if others:
            await asyncio.to_thread(rig.replica.ask, "REPLICAOF", "NO", "ONE")
            url = rig.replica.tcp_url
            async with open_broker(rig.replica, Notes(), url=url, keys=KEYS) as other:
                answers = await other.publish(drafts("y", others))
                assert accepted(answers[0]).position.offset == before.offset + 1
        await fail_over(rig)
        # Nothing more is published, and yet:
        await until(lambda: all(client.of("reset") for client in clients), PATIENCE_S)
        for node in (one, two):
            await until(lambda node=node: node.broker.problem() is None, PATIENCE_S)  # type: ignore[misc]
            await node.live()
        assert one.feed().top == two.feed().top
        assert one.feed().top.epoch != before.epoch
        await insist(two.broker, [draft("z")])
        await until(lambda: all(client.ids()[-1:] == ["z"] for client in clients))
        for client in clients:
            assert client.ids() == ["x1", "x2", "x3", "x4", "z"]


def _has(server: RedisReplica, offset: int) -> bool:
    return bool(server.ask("HGET", KEYS.record("a.b"), "offset") == b"%d" % offset)


@AWAY
@RESET
async def test_rule_6_an_acknowledged_tail_that_died_is_a_fork_though_nobody_listened(
    rig: SentinelRig,
) -> None:
    async with open_broker(
        rig.master, notes := Notes(), url=rig.url, keys=KEYS, interval_s=0.5
    ) as broker:
        await broker.publish(drafts("x", 2))
        await asyncio.to_thread(rig.wait, lambda: _has(rig.replica, 2))
        await cut_off(rig)
        (last,) = await broker.publish([draft("x3")])
        position = accepted(last).position
        await fail_over(rig)

        async def forked() -> bool:
            top = await broker.top("a.b")
            return top is not None and top.epoch != position.epoch

        await until(lambda: broker.problem() is None, PATIENCE_S)
        while not await forked():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        top = await broker.top("a.b")
        assert top is not None
        assert top.offset == position.offset
        assert notes.events("a.b") == []


@AWAY
@RESET
@REFUSED
async def test_an_old_master_that_comes_back_with_its_tail_changes_nothing() -> None:
    """For some seconds it believes that it is master still, and has what was lost."""
    with SentinelRig("appendonly yes", "appendfsync always") as rig:
        async with open_redis_node(rig.master, url=rig.url, keys=KEYS, interval_s=0.5) as node:
            client = await node.subscribe()
            await node.publish("x1")
            await asyncio.to_thread(rig.wait, lambda: _has(rig.replica, 1))
            await cut_off(rig)
            await node.publish("x2")
            await until(lambda: client.ids() == ["x1", "x2"])
            await fail_over(rig)
            await until(lambda: client.of("reset"), PATIENCE_S)
            await insist(node.broker, [draft("y1")])
            await asyncio.to_thread(rig.master.start)
            assert rig.master.role() == "master"
            assert _has(rig.master, 2)
            await insist(node.broker, [draft("y2")])
            rig.master.ask("REPLICAOF", "127.0.0.1", rig.replica.port)
            await until(lambda: rig.master.role() == "slave connected", PATIENCE_S)
            await insist(node.broker, [draft("y3")])
            await until(lambda: client.ids()[-1:] == ["y3"])
            assert client.ids() == ["x1", "x2", "y1", "y2", "y3"]
            assert len(client.of("reset")) == 1


@AWAY
@REFUSED
async def test_a_master_that_steps_down_alive_gets_no_publish_and_keeps_no_subscriber(
    rig: SentinelRig,
) -> None:
    """The Sentinels let it believe that it is master for some more seconds."""
    async with open_redis_node(rig.master, url=rig.url, keys=KEYS) as node:
        client = await node.subscribe()
        await node.publish("x1")
        topology = node.broker.link.topology
        assert isinstance(topology, Sentinel)
        rig.sentinels[0].ask("SENTINEL", "FAILOVER", "main")
        await until(lambda: topology.master == Endpoint("127.0.0.1", rig.replica.port), PATIENCE_S)
        assert rig.master.role() == "master"
        await insist(node.broker, [draft("x2")])
        await until(lambda: subscribers(rig.replica) == 1)
        assert subscribers(rig.master) == 0
        await until(lambda: client.ids() == ["x1", "x2"])
        assert not client.of("reset")
        assert node.broker.reconnects == 1


@AWAY
async def test_a_connection_that_listens_at_a_former_master_is_cut_at_once(
    rig: SentinelRig,
) -> None:
    """The server looked healthy for hours while nothing was delivered after a fail-over.

    Nobody closed the connections to the old master, which lived on as a replica. Here nothing is
    published and no probe is sent, so that only the Sentinels can tell.
    """
    async with open_redis_node(rig.master, url=rig.url, keys=KEYS) as node:
        client = await node.subscribe()
        for server in rig.sentinels:
            server.ask("SENTINEL", "REMOVE", "main")
        rig.replica.ask("REPLICAOF", "NO", "ONE")
        rig.master.ask("REPLICAOF", "127.0.0.1", rig.replica.port)
        assert subscribers(rig.master) == 1
        for server in rig.sentinels:
            server.ask("SENTINEL", "MONITOR", "main", "127.0.0.1", rig.replica.port, 2)
        await until(lambda: subscribers(rig.replica) == 1, PATIENCE_S)
        await until(lambda: subscribers(rig.master) == 0)
        await insist(node.broker, [draft("x")])
        await until(lambda: client.ids() == ["x"])
        assert not client.of("reset")


async def test_what_a_former_master_answers_once_another_is_known_is_no_answer() -> None:
    """A connection was being made to the old master while the others there were cut.

    It stood afterwards, and what it carried was acknowledged, when nobody compared any more what
    the old master had acknowledged with what the new one holds.
    """
    with RedisServer(tcp=True) as old, RedisServer(tcp=True) as new:
        url = f"redis+sentinel://127.0.0.1:{free_port()}/main"
        topology = Sentinel(parse_redis_url(url), timeout_s=5.0)
        try:
            former = await topology._take(Named(Endpoint("127.0.0.1", old.port), 1))
            connect_there = former.get_connection

            async def late() -> Any:
                await topology._take(Named(Endpoint("127.0.0.1", new.port), 2))
                await asyncio.gather(*topology._cutting)
                return await connect_there()  # type: ignore[no-untyped-call]

            former.get_connection = late  # type: ignore[assignment, method-assign]
            with pytest.raises(RedisConnectionError, match="the master changed"):
                await topology.ask([("INCR", "x")])
            assert old.ask("GET", "x") == b"1"
            assert await topology.ask([("GET", "x")]) == [None]
        finally:
            await topology.close()


@AWAY
@REFUSED
async def test_a_frozen_master_that_wakes_gives_nothing_away(rig: SentinelRig) -> None:
    """What it had not answered it carries out when it wakes, where nobody hears it."""
    async with open_redis_node(rig.master, url=rig.url, keys=KEYS, timeout_s=20.0) as node:
        client = await node.subscribe()
        await node.publish("x1")
        await asyncio.to_thread(rig.wait, lambda: _has(rig.replica, 1))
        rig.master.stop()
        # Far sooner than its time limit: the connection was cut when the master changed.
        (published,) = await insist(node.broker, [draft("x2")])
        assert not published.duplicate
        rig.master.go_on()
        await until(lambda: _has(rig.master, 2), PATIENCE_S)
        await insist(node.broker, [draft("x3")])
        await until(lambda: client.ids() == ["x1", "x2", "x3"], PATIENCE_S)
        assert not client.of("reset")


@REFUSED
async def test_a_master_that_is_a_replica_for_a_moment_is_waited_for(rig: SentinelRig) -> None:
    async with open_broker(rig.master, Notes(), url=rig.master.tcp_url, keys=KEYS) as broker:
        await broker.publish([draft("x")])
        rig.master.ask("REPLICAOF", "127.0.0.1", free_port())
        publishing = asyncio.create_task(broker.publish([draft("y")]))
        # Redis 6.2 says so inside of another error.
        refused = {"errorstat_READONLY", "errorstat_ERR"}
        await until(lambda: refused & set(rig.master.ask("INFO", "errorstats")))
        assert not publishing.done()
        rig.master.ask("REPLICAOF", "NO", "ONE")
        (answer,) = await publishing
        assert not accepted(answer).duplicate


# ---- Sentinels


@AWAY
@REFUSED
async def test_a_sentinel_that_missed_a_fail_over_is_not_believed(
    rig: SentinelRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the old master, which is back and believes that it is master still."""
    late = rig.sentinels[2]
    await asyncio.to_thread(late.kill)
    async with open_redis_node(rig.master, url=rig.url, keys=KEYS, interval_s=0.3) as node:
        client = await node.subscribe()
        await fail_over(rig)
        await insist(node.broker, [draft("x1")])
        for sentinel in rig.sentinels[:2]:
            await asyncio.to_thread(sentinel.kill)
        await asyncio.to_thread(rig.master.start)
        await asyncio.to_thread(late.start)
        assert late.master_port() == rig.master.port
        assert rig.master.role() == rig.replica.role() == "master"
        topology = node.broker.link.topology
        assert isinstance(topology, Sentinel)
        ask, votes = topology._candidates, list[list[int]]()

        async def noted() -> tuple[list[Named], str]:
            candidates, trouble = await ask()
            votes.append([each.votes for each in candidates])
            return candidates, trouble

        # The node asks every second; two who ask at a time would get each other's answers.
        monkeypatch.setattr(topology, "_candidates", noted)
        await until(lambda: [0, 1] in votes)
        for kind in ("normal", "pubsub"):
            rig.replica.kill_clients(kind)
        await insist(node.broker, [draft("x2")])
        await until(lambda: client.ids() == ["x1", "x2"])
        assert topology.master == Endpoint("127.0.0.1", rig.replica.port)
        assert not _has(rig.master, 1)


@AWAY
async def test_without_sentinels_the_known_master_is_used_on(rig: SentinelRig) -> None:
    async with open_redis_node(rig.master, url=rig.url, keys=KEYS, interval_s=0.3) as node:
        client = await node.subscribe()
        for sentinel in rig.sentinels:
            await asyncio.to_thread(sentinel.kill)
        await node.publish("x1")
        for kind in ("normal", "pubsub"):
            rig.master.kill_clients(kind)
        await insist(node.broker, [draft("x2")])
        await until(lambda: client.ids() == ["x1", "x2"])
        await until(lambda: node.broker.problem() is None)
        # A single one is enough to say who is master.
        await asyncio.to_thread(rig.sentinels[2].start)
        rig.master.kill_clients("normal")
        await insist(node.broker, [draft("x3")])
        await until(lambda: client.ids() == ["x1", "x2", "x3"])


@AWAY
async def test_a_start_without_sentinels_says_so_and_recovers(rig: SentinelRig) -> None:
    for sentinel in rig.sentinels:
        await asyncio.to_thread(sentinel.kill)
    broker = redis_broker(rig.master, url=rig.url, keys=KEYS, interval_s=0.05)
    broker.bind(Notes())
    await broker.start()
    await until(lambda: broker.problem() == "no Sentinel answers")
    (answer,) = await broker.publish([draft("x")])
    assert str(answer) == "no Sentinel answers"
    await asyncio.to_thread(rig.sentinels[1].start)
    await ready(broker)
    accepted((await broker.publish([draft("x")]))[0])
    await broker.close()
    await broker.close()


@AWAY
async def test_a_service_that_no_sentinel_knows(rig: SentinelRig) -> None:
    url = rig.url.replace("/main", "/other")
    broker = redis_broker(rig.master, url=url, interval_s=0.05)
    broker.bind(Notes())
    await broker.start()
    await until(lambda: broker.problem() == "the Sentinels know no service 'other'")
    await broker.close()


@AWAY
async def test_a_named_master_that_is_none_is_not_used(rig: SentinelRig) -> None:
    """The Sentinels are late: the master they name has become a replica."""
    rig.master.ask("REPLICAOF", "127.0.0.1", rig.replica.port)
    topology = connect(parse_redis_url(rig.url), timeout_s=20.0)
    assert isinstance(topology, Sentinel)
    with pytest.raises(MasterNotFoundError, match="answers as one"):
        await topology.ask([("PING",)])
    await topology.close()


@AWAY
async def test_a_frozen_sentinel_holds_nobody_up(rig: SentinelRig) -> None:
    rig.sentinels[0].stop()
    loop = asyncio.get_running_loop()
    topology = connect(parse_redis_url(rig.url), timeout_s=60.0)
    began = loop.time()
    assert await topology.ask([("PING",)]) == [b"PONG"]
    assert loop.time() - began < 20.0
    rig.sentinels[0].go_on()
    await topology.close()


USERS = (
    'user node on ">secret" ~s:* ~{s:* resetchannels &s:* &{s:* -@all +ping +select +time +eval '
    "+evalsha +subscribe +unsubscribe +publish +hget +hmget +hset +hsetnx +exists +pexpire "
    "+unlink +xadd +xgroup +xrange +xinfo +zadd +zrem +zcard +zrangebyscore +role +wait"
)


@AWAY
async def test_users_of_the_master_and_of_the_sentinels_and_a_database() -> None:
    watcher = 'user watcher on ">hidden" allchannels -@all +sentinel|master +subscribe'
    with SentinelRig(USERS, sentinel_options=[watcher]) as rig:
        url = rig.url.replace("//", "//node:secret@")
        query = "sentinel_user=watcher&sentinel_password"
        options: dict[str, Any] = {"keys": KEYS, "interval_s": 0.05, "wait_replicas": 1}
        async with open_broker(
            rig.master, notes := Notes(), url=f"{url}/3?{query}=hidden", **options
        ) as broker:
            await broker.subscribe("a.b")
            await broker.publish([draft("x")])
            assert await broker.settled()
            assert ids(notes.events("a.b")) == ["x"]
        assert "db3" in rig.master.ask("INFO", "keyspace")
        refused = redis_broker(rig.master, url=f"{url}?{query}=wrong", interval_s=0.05)
        refused.bind(Notes())
        await refused.start()
        await until(lambda: refused.problem() == "the Sentinels refuse to answer")
        await refused.close()


@AWAY
async def test_everything_over_tls(tmp_path: Path) -> None:
    issuer = Issuer(tmp_path, "tests")
    certificate, key = issuer.issue("redis")
    lines = [
        f"tls-ca-cert-file {issuer.certificate}",
        f"tls-cert-file {certificate}",
        f"tls-key-file {key}",
        "tls-auth-clients no",
    ]
    with SentinelRig(tls=lines) as rig:
        url = f"{rig.url}?tls=true&ca_file={issuer.certificate}"
        async with open_redis_node(rig.master, url=url, keys=KEYS, interval_s=0.5) as node:
            client = await node.subscribe()
            await node.publish("x1")
            await asyncio.to_thread(rig.wait, lambda: _has(rig.replica, 1))
            await fail_over(rig)
            await insist(node.broker, [draft("x2")])
            await until(lambda: client.ids() == ["x1", "x2"], PATIENCE_S)
            assert not client.of("reset")
