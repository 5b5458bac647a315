"""Three nodes behind Nginx are one server, whoever publishes and listens where."""

from contextlib import AsyncExitStack

from fleet import NAMES, Fleet
from fleet_clients import KINDS, Follower, following, until
from fleet_publishers import all_came, publishing

CHANNELS = ("orders.eu", "orders.us")


async def test_everyone_gets_everything_exactly_once_and_in_order(fleet: Fleet) -> None:
    url, tls = fleet.nginx.url, fleet.nginx.tls()
    async with AsyncExitStack() as stack:
        followers: list[Follower] = []
        for kind in KINDS:
            them = await stack.enter_async_context(following(url, tls, CHANNELS, [kind] * 6))
            assert {one.node for one in them} == set(NAMES)
            followers += them
        hows = ["key", "id", "none"]
        async with publishing(url, tls, CHANNELS, 20, hows=hows) as publishers:
            await until(lambda: sum(len(each.acknowledged) for each in publishers) >= 1_000)
        assert [each.failures for each in publishers if each.failures] == []
        await all_came(followers, publishers)
        assert [one.nodes for one in followers if one.lost or len(one.nodes) > 1] == []
    # The publishers were spread as well.
    assert set(requests_by_node(fleet)) == set(NAMES)


def requests_by_node(fleet: Fleet) -> list[str]:
    """Return the nodes that answered publishes, by their own count."""
    line = 'galecast_http_requests_total{method="POST",route="/v1/events",status="200"}'
    return [node.name for node in fleet.nodes if line in node.ask_admin("/metrics")[1]]
