"""The leases of nodes: a life that has lapsed is claimed by one other, a live one by none."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from broker_rig import Clock, ready, redis_broker
from pubsub.node_lease import NodeLease
from pubsub.presence_scripts import PresenceScripts
from pubsub.redis_keys import RedisKeys
from redis_server import find_redis_server, shared_redis

pytestmark = pytest.mark.skipif(find_redis_server() is None, reason="there is no redis-server")

LEASE_S = 9.0


class Bench:
    """Leases over one Redis, and the clock that all of them go by."""

    def __init__(self, leases: list[NodeLease], clock: Clock, begun: list[str]) -> None:
        self.leases = leases
        self.clock = clock
        self.begun = begun

    async def pass_time(self, seconds: float, *alive: NodeLease) -> None:
        """Let time pass, in which the live ones beat as they should."""
        while seconds > 0:
            self.clock.advance(min(seconds, LEASE_S / 3))
            seconds -= LEASE_S / 3
            for lease in alive:
                await lease.beat()


@asynccontextmanager
async def bench(count: int) -> AsyncIterator[Bench]:
    clock, begun = Clock(), list[str]()
    broker = redis_broker(shared_redis())
    leases = [
        NodeLease(
            broker.link,
            PresenceScripts(),
            broker.keys,
            node=f"n{number}",
            lease_s=LEASE_S,
            on_new=begun.append,
            monotonic=clock.monotonic,
            clock_ms=lambda: round(clock.wall_s * 1000),
        )
        for number in range(count)
    ]
    try:
        await asyncio.gather(*(lease.beat() for lease in leases))
        found = Bench(leases, clock, begun)
        # Nothing is claimed at first.
        await found.pass_time(LEASE_S, *leases)
        assert [lease.claimed for lease in leases] == [""] * count
        yield found
    finally:
        await broker.close()


def keys_of(lease: NodeLease) -> RedisKeys:
    return lease._keys


async def test_a_life_goes_on_while_it_beats() -> None:
    async with bench(2) as rig:
        one, two = rig.leases
        lives = [one.life, two.life]
        await rig.pass_time(10 * LEASE_S, one, two)
        assert [one.life, two.life] == lives
        assert (one.lives, rig.begun, one.claimed) == (1, ["", ""], "")


async def test_exactly_one_claims_a_life_that_has_lapsed() -> None:
    async with bench(4) as rig:
        dead, *others = rig.leases
        await rig.pass_time(LEASE_S * 2 / 3, *others)
        assert [lease.claimed for lease in others] == ["", "", ""]
        rig.clock.advance(LEASE_S / 3)
        await asyncio.gather(*(lease.beat() for lease in others))
        assert sorted(lease.claimed for lease in others) == ["", "", dead.life]
        # The claim is kept by beating.
        await rig.pass_time(3 * LEASE_S, *others)
        assert sorted(lease.claimed for lease in others) == ["", "", dead.life]


async def test_a_claim_ends_when_the_life_is_buried() -> None:
    async with bench(2) as rig:
        dead, other = rig.leases
        await rig.pass_time(LEASE_S, other)
        assert other.claimed == dead.life
        await other.bury(dead.life)
        assert other.claimed == ""
        await rig.pass_time(LEASE_S, other)
        assert other.claimed == ""
        assert shared_redis().ask("ZCARD", keys_of(other).leases[0]) == 1


async def test_a_claimer_that_dies_is_replaced_and_cannot_bury() -> None:
    async with bench(3) as rig:
        dead, claimer, other = rig.leases
        await rig.pass_time(LEASE_S, claimer, other)
        assert (claimer.claimed, other.claimed) == (dead.life, "")
        await rig.pass_time(LEASE_S * 2 / 3, other)
        assert other.claimed == ""
        await rig.pass_time(LEASE_S / 3, other)
        assert other.claimed in (dead.life, claimer.life)
        await other.bury(other.claimed)
        await other.beat()
        first = other.claimed
        await claimer.bury(first)
        # It was not the claimer's to bury any more.
        await other.beat()
        assert other.claimed == first
        await other.bury(first)
        await other.beat()
        assert other.claimed == ""
        assert shared_redis().ask("ZCARD", keys_of(other).leases[0]) == 1


async def test_who_was_asleep_but_not_claimed_lives_on() -> None:
    async with bench(1) as rig:
        (one,) = rig.leases
        life = one.life
        rig.clock.advance(LEASE_S * 5)
        await one.beat()
        assert (one.life, one.claimed) == (life, "")


async def test_who_was_claimed_while_asleep_begins_a_new_life() -> None:
    async with bench(2) as rig:
        asleep, other = rig.leases
        before = asleep.life
        await rig.pass_time(LEASE_S, other)
        assert other.claimed == before
        # It is asked for something before its heart beats.
        life = await asleep.hold()
        assert asleep.life == life != before
        assert rig.begun[-1] == before
        assert other.claimed == before
        await rig.pass_time(LEASE_S, asleep, other)
        await other.bury(before)
        await rig.pass_time(LEASE_S, asleep, other)
        assert (asleep.lives, asleep.claimed, other.claimed) == (2, "", "")


async def test_when_redis_was_away_nobody_is_declared_dead_before_all_could_beat() -> None:
    """All leases lapse together then; the first to come back would claim the others."""
    async with bench(3) as rig:
        lives = [lease.life for lease in rig.leases]
        rig.clock.advance(LEASE_S * 3)
        await rig.leases[0].beat()
        assert rig.leases[0].claimed == ""
        await rig.pass_time(LEASE_S / 3, rig.leases[0])
        await rig.pass_time(LEASE_S * 3, *rig.leases)
        assert [lease.life for lease in rig.leases] == lives


async def test_who_comes_right_after_an_outage_claims_nobody_for_a_lease() -> None:
    async with bench(3) as rig:
        fresh, *others = rig.leases
        await fresh.end()
        rig.clock.advance(LEASE_S * 3)
        await fresh.beat()
        await rig.pass_time(LEASE_S * 2 / 3, fresh)
        assert fresh.claimed == ""
        # Nothing was heard of the others for a whole lease, in which Redis was there.
        await rig.pass_time(LEASE_S / 3, fresh)
        assert fresh.claimed in [other.life for other in others]


async def test_a_redis_that_goes_back_to_what_it_held_takes_nobody_for_dead() -> None:
    """All leases have lapsed in it, though each node renewed its own a moment ago."""
    async with bench(3) as rig:
        server, keys = shared_redis(), keys_of(rig.leases[0]).leases
        held = {key: server.ask("DUMP", key) for key in keys if server.ask("EXISTS", key)}
        await rig.pass_time(LEASE_S * 3, *rig.leases)
        server.ask("DEL", *keys)
        for key, dumped in held.items():
            server.ask("RESTORE", key, 0, dumped)
        for _ in range(6):
            for lease in rig.leases:
                await lease.beat()
                assert (lease.lives, lease.claimed) == (1, "")
            rig.clock.advance(LEASE_S / 3)


@pytest.mark.parametrize("jump_s", [3_600.0, -3_600.0])
async def test_a_clock_that_jumps_kills_nobody_and_who_dies_then_is_found(jump_s: float) -> None:
    async with bench(3) as rig:
        dead, *others = rig.leases
        rig.clock.wall_s += jump_s
        for lease in rig.leases:
            await lease.beat()
            assert (lease.lives, lease.claimed) == (1, "")
        await rig.pass_time(LEASE_S * 2 / 3, *rig.leases)
        assert [lease.lives for lease in rig.leases] == [1, 1, 1]
        await rig.pass_time(LEASE_S, *others)
        assert sorted(lease.claimed for lease in others) == ["", dead.life]


async def test_who_claims_others_is_forgotten_with_its_lease() -> None:
    async with bench(2) as rig:
        one, two = rig.leases
        steady = keys_of(one).leases[2]
        assert set(shared_redis().ask("HKEYS", steady)) == {one.life.encode(), two.life.encode()}
        await one.end()
        assert shared_redis().ask("HKEYS", steady) == [two.life.encode()]


async def test_a_lease_that_is_trusted_costs_nothing() -> None:
    async with bench(1) as rig:
        (one,) = rig.leases
        shared_redis().ask("DEL", *keys_of(one).leases)
        assert await one.hold() in one.life
        assert one.lives == 1
        rig.clock.advance(LEASE_S)
        held = await asyncio.gather(one.hold(), one.hold(), one.hold())
        assert (one.lives, len(set(held))) == (2, 1)


async def test_who_ends_leaves_nothing_behind() -> None:
    async with bench(2) as rig:
        one, two = rig.leases
        await one.end()
        await one.end()
        assert one.life == ""
        await rig.pass_time(2 * LEASE_S, two)
        assert two.claimed == ""
        assert shared_redis().ask("ZRANGE", keys_of(one).leases[0], 0, -1) == [two.life.encode()]


async def test_a_lease_needs_no_subscription() -> None:
    """Only the calls to Redis, and not its pub/sub, decide over the life of a node."""
    broker = redis_broker(shared_redis())
    try:
        await broker.start()
        await ready(broker)
        lease = NodeLease(
            broker.link,
            PresenceScripts(),
            broker.keys,
            node="n",
            lease_s=LEASE_S,
            on_new=lambda _before: None,
            monotonic=Clock().monotonic,
            clock_ms=None,
        )
        broker.listener.break_off()
        assert await lease.hold() == lease.life != ""
    finally:
        await broker.close()


async def test_junk_among_the_leases_keeps_nobody_from_living() -> None:
    """A life that is no text was claimed, could not be read, and kept its claimer from beating."""
    async with bench(1) as rig:
        (one,) = rig.leases
        leases, claims, _steady = keys_of(one).leases
        shared_redis().ask("ZADD", leases, 1, b"\xff\xfe n")
        await rig.pass_time(LEASE_S, one)
        assert (one.claimed, one.lives) == ("", 1)
        assert shared_redis().ask("ZRANGE", leases, 0, -1) == [one.life.encode()]
        assert shared_redis().ask("HEXISTS", claims, b"\xff\xfe n") == 0
