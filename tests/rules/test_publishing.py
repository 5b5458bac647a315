"""Rules 17, 18, 21 and 22: what one script does, and what travels."""

import asyncio
from typing import Any

import pytest
from redis.exceptions import TryAgainError

from broker_rig import Notes, OpenRig, accepted, draft, drafts, ids
from muting_proxy import MutingProxy
from pubsub import redis_client
from pubsub.envelope import pack_events, pack_mark
from pubsub.errors import BrokerUnavailable
from pubsub.event import Published
from pubsub.position import Position, start
from pubsub.redis_client import converse as redis_client_converse
from pubsub.redis_keys import RedisKeys
from pubsub.redis_scripts import RedisScripts
from redis_rig import open_broker, until
from redis_server import RedisServer, shared_redis
from rule_rig import AWAY, back, calls, history, kept, rule


async def test_rule_17_a_duplicate_answers_the_first_position(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        (first,) = await rig.publish(draft("x"))
        await rig.publish(draft("y"))
        (again,) = await rig.publish(draft("x", data=b"2"))
        assert again == Published("a.b", first.position, "x", duplicate=True)


async def test_rule_17_a_duplicate_writes_nothing(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(ttl_s=10)]) as rig:
        await rig.broker.subscribe("a.b")
        await rig.publish(*drafts("x", 2))
        before = await history(rig)
        await rig.advance(6)
        await rig.publish(draft("x1"), draft("x2"))
        assert await history(rig) == before
        assert ids(rig.notes.events("a.b")) == ["x1", "x2"]
        await rig.advance(6)
        assert (await history(rig)).events == ()


async def test_rule_17_a_duplicate_within_one_batch(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        await rig.broker.subscribe("a.b")
        batch = [draft("x"), draft("x"), draft("o", "other"), draft("x"), draft("y")]
        answers = await rig.publish(*batch)
        assert [answer.duplicate for answer in answers] == [False, True, False, True, False]
        assert answers[0].position == answers[1].position == answers[3].position
        assert ids(rig.notes.events("a.b")) == ["x", "y"]


async def test_rule_17_an_id_is_remembered_for_the_window(open_rig: OpenRig) -> None:
    """Whenever in the life of its generation the id came."""
    for wait_s in (0.0, 1.0, 150.0, 299.0, 301.0):
        async with open_rig(idempotency_window_s=300) as rig:
            await rig.publish(draft("early"))
            await rig.advance(wait_s)
            (first,) = await rig.publish(draft("x"))
            for step in range(3):
                await rig.advance(99.9)
                await rig.publish(draft(f"y{step}"))
                await rig.tidy()
                (again,) = await rig.publish(draft("x"))
                assert again == Published("a.b", first.position, "x", duplicate=True)


async def test_rule_17_an_id_is_free_after_two_windows(open_rig: OpenRig) -> None:
    async with open_rig(idempotency_window_s=300) as rig:
        await rig.publish(draft("x"))
        await rig.advance(601)
        (again,) = await rig.publish(draft("x"))
        assert (again.duplicate, again.position.offset) == (False, 2)


async def test_rule_17_an_id_outlives_its_event(open_rig: OpenRig) -> None:
    async with open_rig(rules=[rule(size=2)]) as rig:
        (first,) = await rig.publish(draft("x"))
        await rig.publish(*drafts("y", 5))
        await rig.broker.purge("a.b")
        await rig.broker.contradict("a.b", Position(first.position.epoch, 99, "0" * 16))
        (again,) = await rig.publish(draft("x"))
        assert again == Published("a.b", first.position, "x", duplicate=True)


async def test_rule_17_an_id_belongs_to_its_channel(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        answers = await rig.publish(draft("x", "a"), draft("x", "b"))
        assert [answer.duplicate for answer in answers] == [False, False]


async def test_rule_17_calling_again_with_the_same_drafts_is_safe(open_rig: OpenRig) -> None:
    async with open_rig() as rig:
        batch = [*drafts("x", 3, "a"), *drafts("x", 3, "b")]
        first = await rig.publish(*batch[:4])
        again = await rig.publish(*batch)
        assert [answer.position for answer in again[:4]] == [a.position for a in first]
        assert [answer.duplicate for answer in again] == [True] * 4 + [False] * 2


async def test_rule_17_all_keys_of_a_channel_lie_in_one_slot() -> None:
    """A server in cluster mode refuses calls whose declared keys do not."""
    with RedisServer("cluster-enabled yes", tcp=True) as server:
        server.ask("CLUSTER", "ADDSLOTS", *range(16_384))
        await asyncio.to_thread(lambda: _await_cluster(server))
        async with open_broker(server, Notes(), max_channels=50) as broker:
            names = [f"c{number}" for number in range(20)]
            for name in names:
                await broker.subscribe(name)
            answers = await broker.publish([draft("x", name) for name in names])
            top = accepted(answers[0]).position
            await broker.purge("c0")
            await broker.contradict("c0", Position(top.epoch, 9, top.check))
            await broker.compare()
            await broker.sweep()
            await broker.unsubscribe("c0")
            states = await broker.channels(prefix="c", after="", limit=100)
            assert [state.channel for state in states] == sorted(names[1:])


def _await_cluster(server: RedisServer) -> None:
    while b"cluster_state:ok" not in server.ask("CLUSTER", "INFO"):
        pass


async def test_rule_18_a_batch_of_one_channel_is_one_envelope(server: RedisServer) -> None:
    async with open_broker(server, notes := Notes()) as broker:
        await broker.subscribe("a.b")
        mixed = [
            each for number in range(20) for each in (draft(f"x{number}"), draft(f"{number}", "c"))
        ]
        answers = await broker.publish(mixed)
        assert await broker.settled()
        assert notes.kinds("a.b") == ["events"]
        assert [accepted(each).id for each in answers] == [each.id for each in mixed]
        assert ids(notes.events("a.b")) == [f"x{number}" for number in range(20)]


async def test_rule_18_a_publish_whose_answer_was_lost_is_not_a_second_event(
    reachable: RedisServer,
) -> None:
    async with (
        MutingProxy(reachable.port) as proxy,
        open_broker(reachable, notes := Notes(), url=proxy.url) as broker,
    ):
        await broker.subscribe("a.b")
        proxy.lose = b"lost-id"
        (answer,) = await broker.publish([draft("lost-id")])
        assert proxy.lost == 1
        assert accepted(answer).duplicate
        assert accepted(answer).position.offset == 1
        assert await broker.settled()
        assert ids(notes.events("a.b")) == ["lost-id"]


async def test_rule_18_a_purge_whose_answer_was_lost_is_not_tried_again(
    reachable: RedisServer,
) -> None:
    """The second one would take what was published between them."""
    async with (
        MutingProxy(reachable.port) as proxy,
        open_broker(reachable, notes := Notes(), url=proxy.url) as broker,
    ):
        await broker.subscribe("a.b")
        await broker.publish([draft("x")])
        # Redis knows the script from here on.
        assert await broker.purge("other") is None
        proxy.lose = RedisScripts().purge.digest.encode()
        with pytest.raises(BrokerUnavailable):
            await broker.purge("a.b")
        assert await broker.settled()
        assert notes.kinds("a.b") == ["events", "purge"]


async def test_rule_21_the_highest_revision_of_the_settings_applies(server: RedisServer) -> None:
    keys = RedisKeys("revisions")
    async with (
        open_broker(server, Notes(), [rule(size=5)], keys=keys, revision=lambda: 7) as new,
        open_broker(server, Notes(), [rule(size=2)], keys=keys, revision=lambda: 6) as old,
    ):
        await old.publish(drafts("x", 4))
        assert await kept(new) == ["x3", "x4"]
        await new.publish(drafts("y", 4))
        assert await kept(old) == ["x4", "y1", "y2", "y3", "y4"]
        await old.publish(drafts("z", 2))
        assert await kept(old) == ["y2", "y3", "y4", "z1", "z2"]


async def test_rule_22_junk_on_our_channels_is_counted_and_dropped() -> None:
    server = shared_redis()
    async with open_broker(server, notes := Notes()) as broker:
        keys = broker.keys
        await broker.subscribe("a.b")
        junk = [
            b"",
            b"junk",
            b"\x92\x02\x91\xa4fork",
            b"\xdd\xff\xff\xff\xff" * 50,
            b"\x93" * 5_000,
        ]
        for payload in junk:
            server.ask("PUBLISH", keys.address("a.b"), payload)
            server.ask("PUBLISH", keys.address("$probe.x"), payload)
        await broker.publish([draft("x")])
        assert await broker.settled()
        assert broker.junk == len(junk)
        assert ids(notes.events("a.b")) == ["x"]


async def test_rule_22_junk_in_a_stream_is_counted_and_dropped() -> None:
    server = shared_redis()
    async with open_broker(server, Notes()) as broker:
        keys = broker.keys
        await broker.publish(drafts("x", 2))
        server.ask("XADD", keys.stream("a.b"), "3-0", "e", b"junk")
        (answer,) = await broker.publish([draft("y")])
        assert accepted(answer).position.offset == 4
        found = await broker.history("a.b", limit=10)
        assert found is not None
        assert ids(found.events) == ["x1", "x2", "y"]
        assert broker.junk == 1


@AWAY
async def test_rule_22_a_publish_while_redis_is_away_fails_in_time(lasting: RedisServer) -> None:
    async with open_broker(lasting, Notes(), call_timeout_s=1.0) as broker:
        await asyncio.to_thread(lasting.kill)
        for _ in range(5):
            async with asyncio.timeout(10):
                (answer,) = await broker.publish([draft("x")])
            assert isinstance(answer, BrokerUnavailable)
        assert broker.problem() is not None
        assert broker.circuit_openings == 1
        with pytest.raises(BrokerUnavailable):
            await broker.history("a.b", limit=1)
        await asyncio.to_thread(lasting.start)
        await back(broker)
        assert not accepted((await broker.publish([draft("x")]))[0]).duplicate


@AWAY
async def test_rule_22_a_frozen_redis_gives_no_false_acknowledgement(lasting: RedisServer) -> None:
    """What it did when it woke shows as a duplicate, so the event stands in the channel once."""
    async with open_broker(lasting, Notes(), call_timeout_s=2.0, timeout_s=0.5) as broker:
        lasting.stop()
        (answer,) = await broker.publish([draft("x")])
        assert isinstance(answer, BrokerUnavailable)
        with pytest.raises(BrokerUnavailable):
            await broker.subscribe("a.b")
        lasting.go_on()
        await back(broker)
        assert accepted((await broker.publish([draft("x")]))[0]).position.offset == 1
        found = await broker.history("a.b", limit=10)
        assert found is not None
        assert ids(found.events) == ["x"]


async def test_rule_17_ids_are_in_two_keys_however_many_they_are(
    server: RedisServer, keys: RedisKeys
) -> None:
    """A slot that migrates refuses a script some of whose keys are there: two are soon moved."""
    async with open_broker(server, Notes(), keys=keys) as broker:
        await broker.publish(drafts("x", 300))
        mine = server.ask("KEYS", f"{{{keys.prefix}:p{keys.partition('a.b')}}}*:a.b")
        expected = {keys.record("a.b"), keys.stream("a.b"), *keys.ids("a.b")}
        assert {key.decode() for key in mine} == expected
        assert all(
            key.partition("}")[0] == keys.record("a.b").partition("}")[0] for key in expected
        )


async def test_rule_17_nothing_is_deleted_and_made_again(
    server: RedisServer, keys: RedisKeys
) -> None:
    """A stream that was deleted forgot the highest offset that it ever had."""
    async with open_broker(server, Notes(), keys=keys) as broker:
        await broker.publish(drafts("x", 3))
        await broker.purge("a.b")
        server.ask("DEL", keys.record("a.b"))
        (answer,) = await broker.publish([draft("y")])
        assert accepted(answer).position.offset == 4


@pytest.mark.parametrize("times", [1, 4])
async def test_rule_17_a_slot_that_migrates_is_asked_again(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    async with open_broker(server, Notes()) as broker:
        refused = migrate(monkeypatch, times)
        (answer,) = await broker.publish([draft("migrates")])
        assert accepted(answer).position.offset == 1
        assert not accepted(answer).duplicate
        assert len(refused) == times


async def test_rule_17_a_slot_that_migrates_for_too_long_fails_at_the_deadline(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_broker(server, Notes(), call_timeout_s=1.0) as broker:
        refused = migrate(monkeypatch, 1_000)
        (answer,) = await broker.publish([draft("migrates")])
        assert isinstance(answer, BrokerUnavailable)
        assert len(refused) > 1


def migrate(monkeypatch: pytest.MonkeyPatch, times: int) -> list[object]:
    """Let Redis refuse the publish of `migrates`, as it does while a slot is on its way."""
    refused: list[object] = []

    async def converse(connection: Any, commands: Any, *rest: Any) -> list[Any]:
        if len(refused) < times and any(b"migrates" in repr(each).encode() for each in commands):
            refused.append(commands)
            return [TryAgainError("TRYAGAIN Multiple keys request during rehashing of slot")]
        return await redis_client_converse(connection, commands, *rest)

    monkeypatch.setattr(redis_client, "converse", converse)
    return refused


async def test_rule_18_one_script_does_all_of_a_publish() -> None:
    with RedisServer() as server:
        async with open_broker(server, notes := Notes()) as broker:
            keys = broker.keys
            await broker.publish([draft("known", "other")])
            before = calls(server)
            (answer,) = await broker.publish([draft("x")])
            assert calls(server) - before == 1
            position = accepted(answer).position
            record = server.ask("HMGET", keys.record("a.b"), "epoch", "offset", "check")
            assert record == [position.epoch.encode(), b"1", position.check.encode()]
            assert server.ask("XLEN", keys.stream("a.b")) == 1
            assert any(server.ask("HEXISTS", key, "x") for key in keys.ids("a.b"))
            known, active, due = keys.lists(keys.partition("a.b"))
            for key in (known, active, due):
                assert server.ask("ZSCORE", key, "a.b") is not None
            await broker.subscribe("a.b")
            before = calls(server)
            await broker.publish([draft("y")])
            await until(lambda: ids(notes.events("a.b")) == ["y"])
            assert calls(server) - before == 1


async def test_rule_18_without_a_window_nothing_is_published_twice(
    reachable: RedisServer,
) -> None:
    """No id would tell whether what is repeated was done before."""
    async with (
        MutingProxy(reachable.port) as proxy,
        open_broker(reachable, Notes(), url=proxy.url, idempotency_window_s=0.0) as broker,
    ):
        proxy.lose = b"lost-id"
        (answer,) = await broker.publish([draft("lost-id")])
        assert isinstance(answer, BrokerUnavailable)
        found = await broker.history("a.b", limit=10)
        assert found is not None
        assert ids(found.events) == ["lost-id"]


async def test_rule_22_envelopes_of_another_version_are_junk(server: RedisServer) -> None:
    async with open_broker(server, notes := Notes()) as broker:
        top = await broker.subscribe("a.b")
        fork = pack_mark("fork", start("b" * 16, 7))
        event = pack_events(top, 1, [draft("z")])
        for envelope in (fork, event):
            assert envelope[:2] == b"\x92\x01"
            server.ask("PUBLISH", broker.keys.address("a.b"), b"\x92\x02" + envelope[2:])
        assert await broker.settled()
        assert (notes.calls, broker.junk) == ([], 2)


@AWAY
async def test_rule_22_the_deadline_is_that_of_the_call_not_of_the_connection() -> None:
    with RedisServer() as server:
        async with open_broker(server, Notes(), call_timeout_s=0.3, timeout_s=20.0) as broker:
            server.stop()
            async with asyncio.timeout(10):
                (answer,) = await broker.publish([draft("x")])
            assert isinstance(answer, BrokerUnavailable)
            server.go_on()
