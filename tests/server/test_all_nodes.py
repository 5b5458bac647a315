"""What all nodes are asked and told, when some are silent, of another version, or out of reach."""

import msgspec
import pytest

from delivery_rig import until
from node_group import open_group, opened, streaming, user
from server.errors import NotFound, Refused, Unavailable
from server.node import Node
from server.orders import (
    MOST_CHANNELS,
    Failed,
    SubscribersCounted,
    SubscribeUser,
    Unknown,
    pack,
)
from server.principal import Principal

NAMES = ("n1", "n2", "n3")
STRANGE = {
    "older": pack(Unknown()),
    "failed": pack(Failed()),
    "newer": msgspec.msgpack.encode({"answer": "Ended.2", "ended": []}),
    "junk": b"\xff\x00",
    "another's": pack(SubscribersCounted([1])),
}


async def test_a_session_is_ended_wherever_it_is() -> None:
    async with open_group(*NAMES) as (_group, (first, _second, third)):
        session, connection = opened(third, user(third))
        await first.nodes.end_session(session.id)
        assert connection.closed is not None
        with pytest.raises(NotFound):
            await first.nodes.end_session(session.id)


async def test_not_found_is_only_said_when_all_have_answered() -> None:
    async with open_group(*NAMES) as (group, (first, second, third)):
        session, _connection = opened(second, user(second))
        _hidden, _ = opened(third, user(third))
        group.silent = {"n3"}
        await first.nodes.end_session(session.id)
        with pytest.raises(Unavailable, match="n3") as caught:
            await first.nodes.end_session("s1-n3")
        assert caught.value.retry
        orders = group.orders
        with pytest.raises(NotFound):
            await first.nodes.end_session("s" * 65)
        assert group.orders == orders


@pytest.mark.parametrize("answer", STRANGE.values(), ids=STRANGE)
async def test_a_node_that_did_not_carry_it_out_counts_as_silent(answer: bytes) -> None:
    async with open_group("n1", "n2") as (group, (first, _second)):
        group.garbled = {"n2": answer}
        with pytest.raises(Unavailable, match="n2"):
            await first.nodes.end_session("s1")
        assert await first.nodes.end_user("u1") == (0, ["n2"])
        assert await first.nodes.unsubscribe_user("u1", "a") == (0, ["n2"])
        page = await first.nodes.sessions(None, "", 5)
        assert (page.sessions, page.more, page.silent) == ([], False, ["n2"])
        if answer != STRANGE["another's"]:
            assert await first.nodes.subscribers(["a"]) == ([0], ["n2"])
        assert (await first.nodes.describe()).silent == ["n2"]


async def test_counts_of_other_channels_are_not_taken() -> None:
    async with open_group("n1", "n2") as (group, (first, _second)):
        group.garbled = {"n2": pack(SubscribersCounted([1, 2]))}
        assert await first.nodes.subscribers(["a"]) == ([0], ["n2"])
        group.garbled["n1"] = group.garbled["n2"]
        assert await first.nodes.subscribers(["a"]) == ([0], ["n1", "n2"])


async def test_while_the_broker_is_away_nothing_is_claimed() -> None:
    async with open_group("n1", "n2") as (group, (first, second)):
        session, connection = opened(second, user(second))
        group.away = True
        for call in (
            lambda: first.nodes.end_session(session.id),
            lambda: first.nodes.end_user("u1"),
            lambda: first.nodes.subscribe_user(SubscribeUser(user="u1", channel="a")),
            lambda: first.nodes.unsubscribe_user("u1", "a"),
            lambda: first.nodes.sessions(None, "", 1),
            lambda: first.nodes.subscribers(["a"]),
            lambda: first.nodes.describe(),
            lambda: first.nodes.take_ticket("ticket:1", 30),
        ):
            with pytest.raises(Unavailable):
                await call()
        assert connection.closed is None
        assert len(first.auth.revocations) == 0


async def test_a_notice_that_cannot_be_kept_ends_nobody() -> None:
    async with open_group("n1", "n2") as (group, (first, second)):
        _session, connection = opened(second, user(second))
        group.fails = {"notify"}
        orders = group.orders
        with pytest.raises(Unavailable):
            await first.nodes.end_user("u1")
        assert (group.orders, connection.closed) == (orders, None)


# ---- the end of a user


async def test_a_user_is_ended_on_all_nodes_and_counted_over_all() -> None:
    async with open_group(*NAMES) as (_group, nodes):
        first, second, third = nodes
        mine = [opened(node, user(node))[1] for node in (first, second, second, third)]
        _other, apart = opened(third, user(third, "u2"))
        assert await first.nodes.end_user("u1") == (4, [])
        assert all(each.closed for each in mine) and apart.closed is None
        assert all(node.auth.current(user(node)) is None for node in nodes)
        assert await second.nodes.end_user("u1") == (0, [])


async def test_a_silent_node_hears_of_it_by_the_notice() -> None:
    async with open_group(*NAMES) as (group, (first, second, third)):
        for node in (first, second, third):
            opened(node, user(node))
        group.silent, group.late = {"n2", "n3"}, {"n3"}
        assert await first.nodes.end_user("u1") == (1, ["n2", "n3"])
        assert not second.hub.sessions_of("u1")
        assert len(third.hub.sessions_of("u1")) == 1
        newer, _ = opened(third, user(third, issued_at=9e9))
        group.catch_up()
        assert third.hub.sessions_of("u1") == [newer]


# ---- lists


async def test_pages_of_sessions_leave_nothing_out() -> None:
    async with open_group(*NAMES) as (group, nodes):
        expected = set()
        for number, node in enumerate(nodes, 1):
            for _ in range(3 * number):
                session, _connection = opened(node, user(node, f"u{number}"))
                expected.add((node.name, session.id))
        for limit in (1, 2, 5, 17, 18, 100):
            found: list[tuple[str, str]] = []
            after, more = "", True
            while more:
                page = await nodes[0].nodes.sessions(None, after, limit)
                assert len(page.sessions) <= limit and not page.silent
                found += [(name, each.session) for name, each in page.sessions]
                more, after = page.more, found[-1][1]
            assert [each for _, each in found] == sorted(each for _, each in found)
            assert len(found) == len(expected) and set(found) == expected
        group.silent = {"n2"}
        page = await nodes[0].nodes.sessions("u2", "", 10)
        assert (page.sessions, page.silent) == ([], ["n2"])


async def test_subscribers_of_very_many_channels() -> None:
    async with open_group("n1", "n2") as (group, nodes):
        names = [f"c{number:04}" for number in range(2 * MOST_CHANNELS + 1)]
        for node in nodes:
            for channel in (names[0], names[MOST_CHANNELS], names[-1]):
                await node.hub.hold(channel)
        counts, silent = await nodes[0].nodes.subscribers(names)
        assert (len(counts), sum(counts), silent) == (len(names), 6, [])
        assert (counts[0], counts[MOST_CHANNELS], counts[-1]) == (2, 2, 2)
        assert group.orders == 3
        assert await nodes[0].nodes.subscribers([]) == ([], [])
        assert group.orders == 3


async def test_how_the_nodes_stand() -> None:
    async with open_group("n1", "n2") as (group, (first, second)):
        opened(second, user(second))
        heard = await first.nodes.describe()
        assert {name: state.sessions for name, state in heard.answers.items()} == {"n1": 0, "n2": 1}
        group.silent = {"n2"}
        heard = await first.nodes.describe()
        assert (list(heard.answers), heard.silent) == (["n1"], ["n2"])


async def test_a_user_is_subscribed_on_all_nodes() -> None:
    async with open_group(*NAMES) as (group, nodes):
        first, second, third = nodes
        heard = [opened(node, user(node))[1] for node in (second, third, third)]
        order = SubscribeUser(user="u1", channel="b")
        assert await first.nodes.subscribe_user(order) == (3, 0, [])
        assert all(each.of("subscribed") for each in heard)
        group.silent = {"n3"}
        assert await first.nodes.subscribe_user(order) == (1, 0, ["n3"])
        assert await first.nodes.unsubscribe_user("u1", "b") == (1, ["n3"])


# ---- tickets


async def test_a_ticket_is_used_first_on_one_node_only() -> None:
    async with open_group("n1", "n2") as (_group, (first, second)):
        ticket = first.auth.ticket(user(first))
        name = first.auth.redeem(ticket).name
        assert second.auth.redeem(ticket).name == name
        assert await first.nodes.take_ticket(name, 30)
        assert not await second.nodes.take_ticket(name, 30)
        assert not await first.nodes.take_ticket(name, 30)


def redeemable(node: Node, ticket: str, proof: bytes) -> bool:
    try:
        node.auth.redeem(ticket, f"{proof.decode()}.c")
    except Refused:
        return False
    return True


async def test_the_ticket_of_a_stream_that_was_ended_is_ended_on_all_nodes() -> None:
    async with open_group("n1", "n2") as (group, (first, second)):
        ticket = first.auth.ticket(Principal(kind="user", user="u1", expires_at=9e9))
        proof = first.auth.redeem(ticket).proof
        group.fails = {"notify"}
        first.nodes.end_ticket(proof, 9e9)
        assert not redeemable(first, ticket, proof)
        assert redeemable(second, ticket, proof)
        group.fails = set()  # it was tried in vain, and is tried again
        await until(lambda: not redeemable(second, ticket, proof))
        assert group.notices[0][:2] == ("ticket", proof.decode())
        assert group.notices[0][3] == 9e9


async def test_a_ticket_that_cannot_be_told_is_given_up_some_time() -> None:
    async with open_group("n1") as (group, (node,)):
        group.fails = {"notify"}
        node.nodes.end_ticket(b"x" * 22, None)
        await until(lambda: not node.hub._tasks)
        assert not group.notices


async def test_ending_a_stream_ends_its_ticket_everywhere() -> None:
    async with open_group("n1", "n2") as (_group, (first, second)):
        ticket = second.auth.ticket(user(second))
        proof = second.auth.redeem(ticket).proof
        session, _connection = await streaming(second, user(second), proof)
        await first.nodes.end_session(session.id)
        await until(lambda: not redeemable(first, ticket, proof))
        assert not redeemable(second, ticket, proof)
