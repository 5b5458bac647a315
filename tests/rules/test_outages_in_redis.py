"""Rule 23, where Redis was away: no node that lives is taken for dead."""

import asyncio

import pytest

from broker_rig import Clock
from presence_rig import LEASE_S, PresenceNode, open_presence_nodes, rounds, timed
from pubsub.errors import BrokerUnavailable
from pubsub.redis_keys import RedisKeys
from redis_server import RedisServer


async def beat(*nodes: PresenceNode) -> None:
    """Let nodes renew their leases, one after the other: none of them may claim another."""
    for node in nodes:
        await node.store.lease.beat()
        assert node.store.lease.claimed == ""
        assert node.store.lease.lives == 1


async def test_rule_23_nodes_that_live_are_spared_when_redis_was_away(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    """All leases had lapsed, and whoever came first claimed the others."""
    async with open_presence_nodes(server, 3, **timed(clock, keys)) as nodes:
        for number, node in enumerate(nodes):
            await node.enter(f"s{number}")
        await rounds(clock, LEASE_S, *nodes)
        clock.advance(2 * LEASE_S)
        await beat(*nodes)
        await rounds(clock, 2 * LEASE_S, *nodes)
        assert await nodes[0].sessions() == ["s0", "s1", "s2"]


async def test_rule_23_who_had_less_of_its_lease_left_is_spared_too(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    """An outage began when one had just renewed its lease and another was about to. It ended before
    the first lapsed, and so too soon for a pause in which nobody was claimed; whoever came first
    claimed the other, whose sessions left and came anew.
    """
    async with open_presence_nodes(server, 2, **timed(clock, keys)) as (one, other):
        await other.enter("s")
        await rounds(clock, LEASE_S, one, other)
        clock.advance(LEASE_S / 3)
        await beat(one)
        clock.advance(LEASE_S * 2 / 3)
        await beat(one, other)
        for _ in range(6):
            clock.advance(LEASE_S / 3)
            await beat(one, other)
        assert await one.sessions() == ["s"]


@pytest.mark.parametrize("told", [False, True], ids=["unanswered", "told"])
async def test_rule_23_who_found_redis_away_itself_claims_nobody(
    server: RedisServer, keys: RedisKeys, clock: Clock, told: bool
) -> None:
    """A short outage is no gap; but one node may see later than another that it is over."""
    async with open_presence_nodes(server, 2, **timed(clock, keys)) as (one, other):
        await rounds(clock, LEASE_S, one, other)
        clock.advance(LEASE_S / 3)
        await beat(one)
        clock.advance(LEASE_S / 3)
        if told:
            for tell in one.broker.on_return:
                tell()
        else:
            circuit = one.broker.link.circuit
            while not circuit.open:
                circuit.failed()
            with pytest.raises(BrokerUnavailable):
                await one.store.lease.beat()
            circuit.succeeded()
        clock.advance(LEASE_S / 9)
        await beat(one)
        clock.advance(LEASE_S * 2 / 9)
        await beat(one, other)


async def test_rule_23_who_died_while_redis_was_away_leaves_a_lease_later(
    server: RedisServer, keys: RedisKeys, clock: Clock
) -> None:
    async with open_presence_nodes(server, 3, **timed(clock, keys)) as (dead, *others):
        await dead.enter("d")
        await rounds(clock, LEASE_S, dead, *others)
        await dead.die()
        clock.advance(2 * LEASE_S)
        await asyncio.gather(*(node.store.lease.beat() for node in others))
        await rounds(clock, LEASE_S * 2 / 3, *others)
        assert await others[0].sessions() == ["d"]
        await rounds(clock, LEASE_S / 3, *others)
        assert await others[0].sessions() == []
