"""Which nodes there are, and how they stand."""

from node_group import serve_group
from nodes import KEY, api_key, make_token

NARROW = "narrow.0123456789abcdef"
LOAD = {
    "node",
    "version",
    "phase",
    "ready",
    "reasons",
    "uptime_s",
    "sessions",
    "connections",
    "subscriptions",
    "channels",
    "events_in",
    "events_out",
    "unsent_bytes",
    "loop_lag_s",
}


async def test_all_nodes_with_their_load() -> None:
    async with serve_group("n2", "n1") as (_group, (second, first)):
        async with second.session(make_token()) as member:
            await member.call("subscribe", channel="a")
            await member.call("publish", channel="a", data=1)
            second.node.lifecycle.checks.append(lambda: "no backplane")
            nodes = (await first.ask("GET", "/v1/nodes")).json["nodes"]
            assert [each["node"] for each in nodes] == ["n1", "n2"]
            assert all(set(each) - {"rss_bytes"} == LOAD for each in nodes)
            idle, busy = nodes
            assert (idle["ready"], idle["reasons"], idle["phase"]) == (True, [], "ready")
            assert (idle["sessions"], idle["version"]) == (0, "9.8.7")
            assert (busy["ready"], busy["reasons"]) == (False, ["no backplane"])
            named = ("sessions", "connections", "subscriptions", "channels", "events_in")
            assert [busy[name] for name in named] == [1, 1, 1, 1, 1]


async def test_of_a_silent_node_only_the_name_is_known() -> None:
    async with serve_group("n1", "n2", "n3") as (group, (first, *_)):
        group.silent = {"n2"}
        nodes = (await first.ask("GET", "/v1/nodes")).json["nodes"]
        assert nodes[1] == {"node": "n2", "silent": True}
        assert [each["node"] for each in nodes] == ["n1", "n2", "n3"]
        group.away = True
        answer = await first.ask("GET", "/v1/nodes")
        assert (answer.status, answer.json["code"], answer.json["retry"]) == (
            503,
            "unavailable",
            True,
        )


async def test_who_may_not_look() -> None:
    keys = (api_key(KEY), api_key(NARROW, sessions=True))
    async with serve_group("n1", keys=keys) as (_group, (node,)):
        for bearer, status in ((NARROW, 403), (make_token(), 403), (None, 401)):
            assert (await node.ask("GET", "/v1/nodes", bearer=bearer)).status == status
