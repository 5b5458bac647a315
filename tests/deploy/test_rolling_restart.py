"""All nodes are replaced, one after another, while clients follow and publishers publish."""

import asyncio

import pytest

from fleet import NAMES, Fleet
from fleet_clients import KINDS, following, until
from fleet_publishers import all_came, publishing

CHANNELS = ("orders.eu", "orders.us")


@pytest.mark.timeout(seconds=90)
async def test_no_publish_fails_and_no_event_is_lost_or_repeated(fleet: Fleet) -> None:
    url, tls = fleet.nginx.url, fleet.nginx.tls()
    hows = ["key", "id", "none"]
    async with following(url, tls, CHANNELS, KINDS * 4) as followers:
        async with publishing(url, tls, CHANNELS, 15, hows=hows) as publishers:
            await until(lambda: all(each.acknowledged for each in publishers))
            for node in fleet.nodes:
                there = [one for one in followers if one.node == node.name]
                assert there
                assert await asyncio.to_thread(node.stop) == 0
                # Those that were on it are elsewhere, and go on there.
                await until(
                    lambda n=node, t=there: all(  # type: ignore[misc]
                        one.live and one.node != n.name for one in t
                    )
                )
                await asyncio.to_thread(node.start)
            done = [len(each.acknowledged) for each in publishers]
            await until(
                lambda: all(
                    len(each.acknowledged) >= was + 5
                    for each, was in zip(publishers, done, strict=True)
                )
            )
        assert [each.failures for each in publishers if each.failures] == []
        await all_came(followers, publishers)
        assert any(one.lost for one in followers)
        # No answer of Nginx was one of its own making.
        assert '"status":50' not in fleet.nginx.access_log
    assert {name for one in followers for name in one.nodes} == set(NAMES)
