"""The broker over Redis: what it alone does, beyond what any broker must do."""

import asyncio
import random

import pytest

from broker_rig import Clock, Notes, accepted, draft, drafts, ids, ready, redis_broker
from config.rules import ChannelRule
from pubsub import redis_publishing
from pubsub.envelope import MOST_OFFSET, Batch, pack_events, read_envelope
from pubsub.errors import BrokerUnavailable, TooManyChannels
from pubsub.event import Draft
from pubsub.position import Position, start
from pubsub.redis_broker import RedisBroker
from pubsub.redis_keys import PARTITIONS, RedisKeys
from redis_rig import open_broker, until
from redis_server import RedisServer, shared_redis


@pytest.fixture
def server() -> RedisServer:
    return shared_redis()


def rule(size: int = 500, ttl_s: float = 300.0) -> list[ChannelRule]:
    return [ChannelRule(match=">", history_size=size, history_ttl_s=ttl_s)]


async def history(broker: RedisBroker, *, hidden: bool = False, after: int = 0) -> list[str]:
    found = await broker.history("a.b", limit=10_000, hidden=hidden, after=after)
    assert found is not None
    return ids(found.events)


# ---- publishing


async def test_a_large_batch_goes_in_pieces_and_keeps_its_order(server: RedisServer) -> None:
    async with open_broker(server, notes := Notes()) as broker:
        await broker.subscribe("a.b")
        answers = await broker.publish(drafts("x", 700))
        assert [accepted(each).position.offset for each in answers] == list(range(1, 701))
        large = [draft(f"y{number}", data=b'"%s"' % (b"y" * 200_000)) for number in range(7)]
        await broker.publish(large)
        assert await broker.settled()
        assert [len(what) for _, _, what in notes.calls if isinstance(what, list)] == [
            256,
            256,
            188,
            3,
            3,
            1,
        ]
        assert [each.position.offset for each in notes.events("a.b")] == list(range(1, 708))


async def test_what_the_script_sends_is_what_is_described(server: RedisServer) -> None:
    async with open_broker(server, Notes()) as broker:
        client = server.open()
        listening = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        listening.subscribe(broker.keys.address("a.b"))
        listening.get_message(timeout=1)
        top = await broker.subscribe("a.b")
        batch = [Draft("a.b", "i1", "n", b'"\xc3\xa9"', {"k": "v"}, "u", "s"), draft("i2")]
        await broker.publish(batch)
        message = None
        while message is None:
            message = listening.get_message(timeout=1)
        content = read_envelope("a.b", message["data"])
        assert isinstance(content, Batch)
        assert content == read_envelope("a.b", pack_events(top, content.events[0].time, batch))
        listening.close()
        client.close()


async def test_a_redis_that_forgot_the_scripts_is_told_them_again(server: RedisServer) -> None:
    async with open_broker(server, Notes()) as broker:
        await broker.publish([draft("x")])
        server.ask("SCRIPT", "FLUSH")
        calls = [broker.publish([draft(f"y{number}", f"c{number % 5}")]) for number in range(50)]
        answers = await asyncio.gather(*calls, broker.publish([draft("x")]))
        assert sum(accepted(each[0]).duplicate for each in answers) == 1


async def test_a_window_of_zero_remembers_nothing_beyond_the_call(server: RedisServer) -> None:
    async with open_broker(server, Notes(), idempotency_window_s=0.0) as broker:
        first = await broker.publish([draft("x"), draft("x"), draft("y")])
        assert [accepted(each).duplicate for each in first] == [False, True, False]
        (again,) = await broker.publish([draft("x")])
        assert (accepted(again).duplicate, accepted(again).position.offset) == (False, 3)
        assert server.ask("EXISTS", *broker.keys.ids("a.b")) == 0


async def test_a_cancelled_publish_disturbs_no_other(server: RedisServer) -> None:
    async with open_broker(server, notes := Notes()) as broker:
        await broker.subscribe("a.b")
        tasks = [asyncio.create_task(broker.publish([draft(f"x{n}")])) for n in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(each, asyncio.CancelledError) for each in answers] == [True, False] * 10
        assert await broker.settled()
        heard = ids(notes.events("a.b"))
        assert set(heard) >= {f"x{number}" for number in range(1, 20, 2)}
        assert len(heard) == len(set(heard))


async def test_too_many_waiting_calls_are_refused(server: RedisServer) -> None:
    async with open_broker(server, Notes(), most_waiting=10) as broker:
        batch = [draft("x", f"c{number}") for number in range(15)]
        answers = await broker.publish(batch)
        refused = [each for each in answers if isinstance(each, BrokerUnavailable)]
        assert len(refused) == 5
        assert "too many" in str(refused[0])


@pytest.mark.expect_log("pubsub.redis_link", "call: .*(OutOfMemory|OOM)", required=False)
async def test_a_redis_that_is_full_takes_no_events_and_says_so() -> None:
    with RedisServer() as server:
        async with open_broker(server, Notes(), interval_s=0.05) as broker:
            server.ask("CONFIG", "SET", "maxmemory", 1)
            (answer,) = await broker.publish([draft("x")])
            assert isinstance(answer, BrokerUnavailable)
            await until(lambda: broker.problem() == "Redis takes no events")
            server.ask("CONFIG", "SET", "maxmemory", 0)
            await until(lambda: broker.problem() is None)
            assert not accepted((await broker.publish([draft("x")]))[0]).duplicate


@pytest.mark.expect_log("pubsub.redis_link", "call: .*(OutOfMemory|OOM)", required=False)
async def test_a_node_is_ready_soon_after_a_probe_was_refused() -> None:
    """Not only when the next probe is due, which is an hour later here."""
    with RedisServer() as server:
        broker = redis_broker(server)
        broker.bind(Notes())
        server.ask("CONFIG", "SET", "maxmemory", 1)
        await broker.start()
        await until(lambda: broker.problem() == "Redis takes no events")
        server.ask("CONFIG", "SET", "maxmemory", 0)
        await ready(broker)
        await broker.close()


# ---- what is kept


async def test_what_is_kept_frees_itself(server: RedisServer) -> None:
    """Every key has a time to live, but for the lists, which are swept."""
    async with open_broker(server, Notes(), position_ttl_s=50, idempotency_window_s=20) as broker:
        await broker.subscribe("a.b")
        await broker.publish(drafts("x", 3))
        keys = broker.keys
        alive = {key: server.ask("PTTL", key) for key in (keys.record("a.b"), keys.stream("a.b"))}
        assert alive[keys.record("a.b")] > alive[keys.stream("a.b")] > 290_000
        for key in keys.ids("a.b"):
            assert 0 < server.ask("PTTL", key) <= 40_000
        assert server.ask("PTTL", keys.record(f"$probe.{broker.node}")) > 0


async def test_offsets_are_exact_up_to_the_highest(server: RedisServer) -> None:
    """Numbers in Lua are doubles, and its text of them is rounded from 10^14 on."""
    async with open_broker(server, notes := Notes()) as broker:
        top = await broker.subscribe("a.b")
        high = MOST_OFFSET - 10
        assert (await broker.contradict("a.b", Position(top.epoch, high, "0" * 16))).offset == high
        answers = await broker.publish(drafts("x", 3))
        assert [accepted(each).position.offset for each in answers] == [
            high + 1,
            high + 2,
            high + 3,
        ]
        assert await broker.settled()
        assert [each.position for each in notes.events("a.b")] == [
            accepted(each).position for each in answers
        ]
        assert await history(broker, after=high + 1) == ["x2", "x3"]
        with pytest.raises(BrokerUnavailable):
            await broker.contradict("a.b", Position(top.epoch, MOST_OFFSET + 1, "0" * 16))


# ---- lists


async def test_channels_are_paged_over_all_partitions(server: RedisServer) -> None:
    async with open_broker(server, Notes(), max_channels=0) as broker:
        names = [f"p{random.randrange(10**9)}.{number}" for number in range(1_500)]
        await broker.publish([draft("x", name) for name in names])
        assert len({broker.keys.partition(name) for name in names}) == PARTITIONS
        for limit in (7, 100, 1_000):
            found: list[str] = []
            while page := await broker.channels(
                prefix="p", after=found[-1] if found else "", limit=limit
            ):
                assert len(page) <= limit
                found += [state.channel for state in page]
            assert found == sorted(names)


async def test_a_list_passes_over_many_that_are_active_no_more(server: RedisServer) -> None:
    clock = Clock()

    def now() -> int:
        return round(clock.wall_s * 1000)

    async with open_broker(server, Notes(), rule(ttl_s=10), clock_ms=now) as broker:
        await broker.publish([draft("x", f"gone.{number}") for number in range(300)])
        clock.advance(11)
        await broker.publish([draft("x", "here"), draft("x", "zz")])
        states = await broker.channels(prefix="", after="", limit=2)
        assert [state.channel for state in states] == ["here", "zz"]
        active = [broker.keys.lists(each)[1] for each in range(PARTITIONS)]
        assert sum(server.ask("ZCARD", key) for key in active) == 302
        await broker.sweep()
        assert sum(server.ask("ZCARD", key) for key in active) == 2


async def test_room_is_made_when_channels_lapse(server: RedisServer) -> None:
    clock = Clock()
    async with open_broker(
        server,
        Notes(),
        rule(ttl_s=10),
        max_channels=2,
        position_ttl_s=1_000,
        clock_ms=lambda: round(clock.wall_s * 1000),
    ) as broker:
        await broker.publish([draft("x", "a"), draft("x", "b")])
        (answer,) = await broker.publish([draft("x", "c")])
        assert isinstance(answer, TooManyChannels)
        assert str(answer) == "2 channels are kept, as many as allowed"
        clock.advance(1_010)
        await broker.sweep()
        accepted((await broker.publish([draft("x", "c")]))[0])
        await broker.subscribe("d")
        with pytest.raises(TooManyChannels):
            await broker.subscribe("e")


async def test_a_channel_that_is_counted_takes_no_further_place(server: RedisServer) -> None:
    """At the bound a channel whose record was evicted was refused: it was counted itself, up to
    when its record would have lapsed."""
    async with open_broker(server, Notes(), max_channels=3) as broker:
        await broker.publish([draft("x", name) for name in ("a", "b", "c")])
        lost = [await broker.top(name) for name in ("a", "b", "c")]
        server.ask("DEL", *map(broker.keys.record, ("a", "b", "c")))
        (answer,) = await broker.publish([draft("y", "a")])
        evidence = Position("e" * 16, 5, "f" * 16)
        found = [
            accepted(answer).position,
            await broker.subscribe("b"),
            await broker.contradict("c", evidence),
        ]
        assert [at.offset for at in found] == [2, 1, 5]
        assert all(old and old.epoch != at.epoch for old, at in zip(lost, found, strict=True))
        (refused,) = await broker.publish([draft("x", "d")])
        assert str(refused) == "3 channels are kept, as many as allowed"


async def test_reserved_places_that_were_not_taken_refuse_nobody(server: RedisServer) -> None:
    """Two publishes to a channel that is there already left no room for a third that is new."""
    async with open_broker(server, Notes(), max_channels=2) as broker:
        await broker.publish([draft("x", "a")])
        answers = await asyncio.gather(
            *(broker.publish([draft(f"y{n}", "a")]) for n in range(5)),
            broker.publish([draft("x", "b")]),
        )
        assert [accepted(each[0]).position.offset for each in answers][-1] == 1


# ---- subscriptions


@pytest.mark.expect_log("pubsub.redis_link", "Redis is away", required=False)
async def test_a_node_that_starts_before_redis_is_ready_as_soon_as_it_can() -> None:
    with RedisServer() as server:
        server.kill()
        broker = redis_broker(server, interval_s=0.05)
        broker.bind(notes := Notes())
        await broker.start()
        answer = (await broker.publish([draft("x")]))[0]
        assert isinstance(answer, BrokerUnavailable)
        await asyncio.to_thread(server.start)
        await ready(broker)
        await broker.subscribe("a.b")
        await broker.publish([draft("x")])
        await until(lambda: ids(notes.events("a.b")) == ["x"])
        await broker.close()


async def test_many_subscriptions_survive_a_reconnect(server: RedisServer) -> None:
    async with open_broker(server, notes := Notes(), call_timeout_s=30.0) as broker:
        names = [f"many.{number}" for number in range(1_200)]
        await asyncio.gather(*map(broker.subscribe, names))
        assert broker.listening == len(names)
        broker.listener.break_off()
        await until(lambda: not broker.listener.restored)
        await until(lambda: broker.listener.restored)
        await broker.publish([draft("x", name) for name in names])
        assert await broker.settled()
        assert {channel for _, channel, _ in notes.calls} == set(names)
        assert broker.reconnects == 1


async def test_a_lease_ends_when_a_node_died(server: RedisServer) -> None:
    clock = Clock()
    keys = RedisKeys("leases")

    def now() -> int:
        return round(clock.wall_s * 1000)

    async with open_broker(server, Notes(), keys=keys, clock_ms=now) as other:
        async with open_broker(server, Notes(), keys=keys, clock_ms=now) as dying:
            await dying.subscribe("a.b")
            await other.subscribe("a.b")
        await other.unsubscribe("a.b")
        assert await names(other) == ["a.b"]
        clock.advance(60)
        assert await names(other) == []


async def names(broker: RedisBroker) -> list[str]:
    return [state.channel for state in await broker.channels(prefix="", after="", limit=100)]


# ---- history


async def test_the_newest_and_the_oldest_over_leaps_of_epochs(server: RedisServer) -> None:
    async with open_broker(server, Notes(), rule(size=4)) as broker:
        expected: list[str] = []
        top = await broker.subscribe("a.b")
        for turn in range(4):
            for answer in await broker.publish(drafts(f"{turn}-", 2)):
                top = accepted(answer).position
            expected += [f"{turn}-1", f"{turn}-2"]
            leap = Position(top.epoch, top.offset + 10**turn, "0" * 16)
            top = await broker.contradict("a.b", leap)
            assert top == start(top.epoch, leap.offset)
            assert await history(broker) == expected[-4:]
            newest = await broker.history("a.b", limit=3, newest=True)
            assert newest is not None
            assert ids(newest.events) == expected[-4:][-3:]


def test_pieces_are_small_enough_for_the_stack_of_lua() -> None:
    """`unpack` of more than about 8,000 values fails."""
    assert 2 * redis_publishing._MOST_EVENTS + 2 < 4_000


@pytest.mark.expect_log("pubsub.redis_watch", "another node is called twin")
async def test_two_nodes_with_one_name_are_not_ready_and_say_so() -> None:
    """Orders to one of the two missed the other's sessions, and nothing told of it."""
    with RedisServer() as server:
        keys = RedisKeys("twins")
        async with open_broker(server, Notes(), node="twin", keys=keys, interval_s=0.1) as one:
            other = redis_broker(server, node="twin", keys=keys, interval_s=0.1)
            other.bind(Notes())
            await other.start()
            await until(lambda: one.problem() == "another node is called twin")
            await until(lambda: other.problem() == "another node is called twin")
            await other.close()
            await until(lambda: one.problem() is None)
