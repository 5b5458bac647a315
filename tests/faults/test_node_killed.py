"""A node dies under load, without a word to anyone."""

import asyncio
import signal
from contextlib import AsyncExitStack

import pytest

from fleet import TIMES, Fleet
from fleet_clients import KINDS, Follower, WebSocketFollower, following, until
from fleet_publishers import all_came, publishing

CHANNELS = ("orders.eu", "orders.us")
ROOM = ("chat.lobby",)
_LEASE_S = float(TIMES["GALECAST_BROKER_LEASE_S"])
# From the crash: the lease, a heartbeat of the others, who sweep then, and what a busy machine
# takes. Where it stands still for longer than a lease, all get another one.
LEAVE_S = _LEASE_S + _LEASE_S / 3 + 10.0


@pytest.mark.timeout(seconds=90)
async def test_its_clients_miss_nothing_and_the_others_notice_nothing(fleet: Fleet) -> None:
    url, tls = fleet.nginx.url, fleet.nginx.tls()
    victim = fleet.nodes[1]
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        followers: list[Follower] = []
        for kind in KINDS:
            them = await enter(following(url, tls, CHANNELS, [kind] * 3))
            assert victim.name in {one.node for one in them}
            followers += them
        people = await enter(following(url, tls, ROOM, [WebSocketFollower] * 6, users="u"))
        await until(lambda: all(one.channels[ROOM[0]].members == present(people) for one in people))

        hit = [one for one in [*followers, *people] if one.node == victim.name]
        spared = [one for one in [*followers, *people] if one.node != victim.name]
        dead = {one.session for one in people if one in hit}
        assert dead
        # Whoever gives an id may publish again; with the key Nginx does it.
        keyed = await enter(publishing(url, tls, CHANNELS, 8, hows=["key"]))
        async with publishing(url, tls, CHANNELS, 8, hows=["id"], patient=True) as patient:
            await until(lambda: sum(len(each.acknowledged) for each in patient) >= 200)
            # It dies with requests in it that it will never answer.
            victim.signal(signal.SIGSTOP)
            await until(lambda: sum(each.stuck for each in keyed) >= 2)
            await until(lambda: sum(each.stuck for each in patient) >= 2)
            left = asyncio.create_task(until(lambda: not seen(spared, dead), LEAVE_S))
            await asyncio.to_thread(victim.kill)
            # What the dead node entered goes within the time of its lease; below: and nothing else.
            await left
            await until(lambda: all(one.live and one.node != victim.name for one in hit))
            room = [one.channels[ROOM[0]] for one in people]
            await until(lambda: all(followed.members == present(people) for followed in room))
            assert not dead & present(people)
            done = sum(len(each.acknowledged) for each in patient)
            await until(lambda: sum(len(each.acknowledged) for each in patient) >= done + 100)
        for each in keyed:
            await each.close()

        assert [each.failures for each in keyed if each.failures] == []
        failures = [failure for each in patient for failure in each.failures]
        assert {status for status, _body, _took_s in failures} == {503}
        await all_came(followers, [*keyed, *patient])
        assert [one.lost for one in hit] == [1] * len(hit)
        assert [one.nodes for one in spared if one.lost or one.refused or len(one.nodes) > 1] == []
        assert [one for one in people if one.channels[ROOM[0]].cuts or one.unexpected] == []


def seen(spared: list[Follower], dead: set[str]) -> set[str]:
    """Return who of the dead stands in the room still, for those whose node lives."""
    rooms = [one.channels[ROOM[0]].members for one in spared if ROOM[0] in one.channels]
    assert rooms, "everybody was at the node that died"
    return dead & set().union(*rooms)


def present(people: list[Follower]) -> set[str]:
    """Return the sessions that people have now."""
    return {one.session for one in people}
