"""Publishes that are acknowledged only once replicas have them (DELIVERY, rule 19)."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from broker_rig import Notes, accepted, draft, drafts, ids
from pubsub.errors import BrokerUnavailable, NotReplicated, TooManyChannels
from pubsub.event import Published
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import RedisKeys
from redis_rig import open_broker, open_redis_node, until
from redis_sentinel import RedisReplica, SentinelRig

AWAY = pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
TOO_FEW = pytest.mark.expect_log("pubsub.redis_link", "NotReplicated", required=False)
REFUSED = pytest.mark.expect_log("pubsub.redis_link", "refused a call", required=False)

KEYS = RedisKeys("w")


class Pair:
    """A master and its replica."""

    def __init__(self, *options: str) -> None:
        self.master = RedisReplica(*options)
        self.replica = RedisReplica()

    def __enter__(self) -> "Pair":
        try:
            self.master.start()
            self.replica.start()
            self.replica.ask("REPLICAOF", "127.0.0.1", self.master.port)
            while self.replica.role() != "slave connected":
                pass
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.replica.close()
        self.master.close()

    def written(self) -> int:
        """How much the master has written for its replica, in bytes."""
        return int(self.master.ask("INFO", "replication")["master_repl_offset"])


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Pair() as opened:
        yield opened


def options(**more: Any) -> dict[str, Any]:
    return {"keys": KEYS, "wait_replicas": 1, "wait_timeout_s": 0.2} | more


async def until_published(broker: RedisBroker, name: str) -> Published:
    """Publish with the same id until it is acknowledged."""
    while True:
        (answer,) = await broker.publish([draft(name)])
        if isinstance(answer, Published):
            return answer
        assert isinstance(answer, NotReplicated)


async def test_rule_19_what_enough_replicas_have_is_acknowledged(pair: Pair) -> None:
    async with open_broker(pair.master, notes := Notes(), **options(wait_timeout_s=3)) as broker:
        await broker.subscribe("a.b")
        answers = await broker.publish([*drafts("x", 300), draft("y", "other")])
        for answer in answers:
            assert not accepted(answer).duplicate
        position = accepted(answers[299]).position
        assert pair.replica.ask("HGET", KEYS.record("a.b"), "check") == position.check.encode()
        assert await broker.settled()
        assert len(notes.events("a.b")) == 300


@TOO_FEW
async def test_rule_19_too_few_replicas_are_told_and_a_retry_says_when_they_are_back(
    pair: Pair,
) -> None:
    async with open_broker(pair.master, notes := Notes(), **options()) as broker:
        await broker.subscribe("a.b")
        pair.replica.stop()
        for _ in range(2):
            (answer,) = await broker.publish([draft("x")])
            assert isinstance(answer, NotReplicated), answer
            assert str(answer) == "0 of 1 replicas have it"
        # It was published, and nothing else waits for replicas, the probe included.
        assert await broker.settled()
        assert ids(notes.events("a.b")) == ["x"]
        assert broker.problem() is None
        pair.replica.go_on()
        published = await until_published(broker, "x")
        assert published.duplicate
        assert published.position == notes.events("a.b")[0].position
        assert not (await until_published(broker, "y")).duplicate
        assert await broker.settled()
        assert ids(notes.events("a.b")) == ["x", "y"]


@TOO_FEW
async def test_rule_19_a_duplicate_writes_before_it_waits(pair: Pair) -> None:
    """The node that is asked again may be another one, whose connections wrote nothing yet."""
    pair.master.ask("CONFIG", "SET", "repl-ping-replica-period", 3600)
    async with (
        open_broker(pair.master, Notes(), keys=KEYS) as first,
        open_broker(pair.master, Notes(), **options(max_channels=1)) as second,
    ):
        await first.publish([draft("x")])
        before = pair.written()
        await first.publish([draft("x")])
        assert pair.written() == before
        assert (await until_published(second, "x")).duplicate
        assert pair.written() > before
        pair.replica.stop()
        (answer,) = await second.publish([draft("x")])
        assert isinstance(answer, NotReplicated)
        pair.replica.go_on()
        # Also where there is no room for a record that was lost.
        await first.publish([draft("z", "other")])
        pair.master.ask("DEL", KEYS.record("a.b"))
        # A channel that is counted still has its place.
        pair.master.ask("ZREM", KEYS.lists(KEYS.partition("a.b"))[0], "a.b")
        second._channels.room.known = 1
        before = pair.written()
        known, new = await second.publish([draft("x"), draft("new")])
        assert isinstance(new, TooManyChannels | NotReplicated)
        assert isinstance(known, NotReplicated) or accepted(known).duplicate
        assert pair.written() > before


@TOO_FEW
async def test_a_large_batch_stops_at_what_was_not_replicated(pair: Pair) -> None:
    async with open_broker(pair.master, Notes(), **options()) as broker:
        await broker.publish([draft("w")])
        pair.replica.stop()
        answers = await broker.publish([*drafts("x", 300), draft("y", "other")])
        kinds = [type(answer) for answer in answers]
        assert kinds == [NotReplicated] * 256 + [BrokerUnavailable] * 44 + [NotReplicated]
        top = await broker.top("a.b")
        assert top is not None
        assert top.offset == 257
        pair.replica.go_on()


@TOO_FEW
async def test_who_waits_for_replicas_holds_up_nobody_else(pair: Pair) -> None:
    limits = options(wait_timeout_s=60, call_timeout_s=90)
    async with open_broker(pair.master, Notes(), **limits) as broker:
        pair.replica.stop()
        waiting = [asyncio.create_task(broker.publish([draft(f"x{n}")])) for n in range(3)]
        while (top := await broker.top("a.b")) is None or top.offset < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert await broker.settled()
        await broker.subscribe("a.b")
        assert not any(task.done() for task in waiting)
        pair.replica.go_on()
        for task in waiting:
            (answer,) = await task
            accepted(answer)


@REFUSED
async def test_a_user_that_may_not_wait_gets_no_false_acknowledgement() -> None:
    with Pair('user node on ">secret" ~* &* +@all -wait') as pair:
        url = f"redis://node:secret@127.0.0.1:{pair.master.port}"
        async with open_broker(pair.master, Notes(), url=url, **options()) as broker:
            (answer,) = await broker.publish([draft("x")])
            assert isinstance(answer, NotReplicated)
            assert "refused to wait" in str(answer)


@AWAY
@REFUSED
async def test_rule_19_a_fail_over_loses_nothing_that_was_acknowledged() -> None:
    """The master and its tail are lost together, and still no subscriber misses or repeats."""
    with SentinelRig(replicas=2) as rig:
        async with (
            open_redis_node(rig.master, url=rig.url, keys=KEYS, interval_s=0.3) as node,
            open_broker(rig.master, Notes(), url=rig.url, **options(wait_timeout_s=1)) as broker,
        ):
            client = await node.subscribe()
            names: list[str] = []
            killing: asyncio.Task[None] | None = None
            while killing is None or not killing.done() or len(names) < 150:
                if len(names) == 60 and killing is None:
                    killing = asyncio.create_task(asyncio.to_thread(rig.master.kill))
                batch = drafts(f"{len(names)}-", 3)
                answers = await broker.publish(batch)
                while not all(isinstance(answer, Published) for answer in answers):
                    await asyncio.sleep(0.05)
                    answers = await broker.publish(batch)
                names += [each.id for each in batch]
            await until(lambda: client.ids()[-1:] == names[-1:])
            assert client.ids() == names
            assert not client.of("reset")
