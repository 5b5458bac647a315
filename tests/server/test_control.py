"""What a node does when it is given an order, or told that something holds."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from config.limits import LimitSettings
from config.rules import ChannelRule
from delivery_rig import NotedConnection, as_connection, until
from node_group import Group, StreamWire, open_group, opened, streaming, user
from nodes import make_settings
from server import control as control_module
from server.closing import Closing
from server.node import Node
from server.orders import (
    AnyAnswer,
    AnyOrder,
    CountSubscribers,
    DescribeNode,
    Ended,
    EndSession,
    EndUser,
    Failed,
    ListSessions,
    NodeState,
    SubscribersCounted,
    SubscribeUser,
    Unknown,
    UnsubscribeUser,
    UserSubscribed,
    UserUnsubscribed,
    pack,
    read_answer,
)
from server.principal import Principal
from server.session import Session
from server.stream import StreamSession, Wanted

MARKUP = "<img src=x onerror=alert(1)>"


async def say(session: Session, connection: NotedConnection, **command: Any) -> dict[str, Any]:
    """Send a command, return its reply."""
    session.on_messages([json.dumps(command).encode()])
    found = [m for m in connection.messages() if m.get("ref") == command["ref"]]
    await until(lambda: [m for m in connection.messages() if m.get("ref") == command["ref"]])
    found = [m for m in connection.messages() if m.get("ref") == command["ref"]]
    assert len(found) == 1
    return found[0]


async def give(group: Group, order: AnyOrder, name: str = "n1") -> AnyAnswer | None:
    return read_answer(await group.sinks[name].on_order(pack(order)))


def outcomes(node: Node) -> dict[str, int]:
    return {k: v for k, v in node.metrics._orders.items() if v}


# ---- orders


async def test_an_order_of_a_newer_version_is_answered_plainly() -> None:
    async with open_group("n1") as (group, (node,)):
        for order in ({"order": "Dance.1"}, {"order": "EndSession.1", "session": "s", "x": 1}, 7):
            answer = await group.sinks["n1"].on_order(msgspec.msgpack.encode(order))
            assert read_answer(answer) == Unknown()
        assert outcomes(node) == {"unknown": 3}


@pytest.mark.expect_log("server.control", "order failed")
async def test_what_nobody_expected_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_group("n1") as (group, (node,)):
        monkeypatch.setattr(node.hub, "subscriptions", lambda: 1 // 0)
        assert await give(group, DescribeNode()) == Failed()
        assert outcomes(node) == {"failed": 1}


async def test_ending_a_session() -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = opened(node, user(node))
        _other, apart = opened(node, user(node))
        assert await give(group, EndSession("s9")) == Ended(0)
        assert await give(group, EndSession(session.id)) == Ended(1)
        assert await give(group, EndSession(session.id)) == Ended(0)
        assert (connection.closed, apart.closed) == (Closing.ENDED, None)
        assert outcomes(node) == {"done": 3}


async def test_counting_and_describing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = opened(node, user(node))
        await say(session, connection, type="subscribe", ref=1, channel="a")
        assert await give(group, CountSubscribers(["a", "b"])) == SubscribersCounted([1, 0])
        node.lifecycle.checks.append(lambda: "no backplane")
        state = await give(group, DescribeNode())
        assert isinstance(state, NodeState)
        assert (state.version, state.phase, state.reasons) == ("9.8.7", "ready", ["no backplane"])
        assert (state.sessions, state.subscriptions, state.channels) == (1, 1, 1)
        assert state.uptime_s >= 0
        assert state.rss_bytes is None or state.rss_bytes > 1_000_000
        monkeypatch.setattr(control_module, "_MEMORY", Path("/nothing/here"))
        state = await give(group, DescribeNode())
        assert isinstance(state, NodeState) and state.rss_bytes is None


# ---- the end of a user


async def test_a_user_s_end_counts_what_the_notice_ended_before_the_order() -> None:
    """The notice goes first, so on most nodes the order found nobody left to count."""
    async with open_group("n1") as (group, (node,)):
        opened(node, user(node))
        opened(node, user(node))
        node_sink = group.sinks["n1"]
        node_sink.on_notice("user", "u1", 2_000.0, 9e9)
        node_sink.on_notice("user", "u1", 2_000.0, 9e9)
        assert not node.hub.sessions
        assert await give(group, EndUser("u1", 2_000.0, 9e9)) == Ended(2)
        assert await give(group, EndUser("u1", 2_000.0, 9e9)) == Ended(0)
        opened(node, user(node, issued_at=2_500.0))
        assert await give(group, EndUser("u1", 3_000.0, 9e9)) == Ended(1)
        opened(node, user(node, issued_at=3_500.0))
        node_sink.on_notice("user", "u1", 4_000.0, 9e9)
        assert await give(group, EndUser("u1", 3_900.0, 9e9)) == Ended(0)
        assert await give(group, EndUser("u1", 4_000.0, 9e9)) == Ended(1)


async def test_a_late_notice_leaves_sessions_with_a_newer_token() -> None:
    async with open_group("n1") as (group, (node,)):
        _old, first = opened(node, user(node, issued_at=1_000.0))
        _new, second = opened(node, user(node, issued_at=3_000.0))
        _none, third = opened(node, Principal(kind="user", user="u1"))
        _other, fourth = opened(node, user(node, "u2", issued_at=1_000.0))
        group.sinks["n1"].on_notice("user", "u1", 2_000.0, 9e9)
        assert first.closed is Closing.ENDED
        assert third.closed is Closing.ENDED  # nobody knows when that was issued
        assert (second.closed, fourth.closed) == (None, None)
        assert node.auth.current(user(node, issued_at=1_000.0)) is None
        assert node.auth.current(user(node, issued_at=3_000.0)) is not None


async def test_the_counts_that_wait_are_bounded() -> None:
    settings = make_settings(limits=LimitSettings(connections_per_address=0))
    async with open_group("n1", limits=settings.limits) as (group, (node,)):
        for number in range(1_002):
            opened(node, user(node, f"u{number}"))
            group.sinks["n1"].on_notice("user", f"u{number}", 2_000.0, 9e9)
        assert len(group.sinks["n1"]._counts) == 1_000  # type: ignore[attr-defined]
        assert await give(group, EndUser("u0", 2_000.0, 9e9)) == Ended(0)
        assert await give(group, EndUser("u1001", 2_000.0, 9e9)) == Ended(1)


async def test_what_no_node_would_tell_is_passed_over() -> None:
    async with open_group("n1") as (group, (node,)):
        for topic, name in (
            ("weather", "u1"),
            ("user", "a\nb"),
            ("user", "x" * 256),
            ("ticket", "short"),
            ("ticket", "\u00e9" * 22),
        ):
            group.sinks["n1"].on_notice(topic, name, 1.0, 9e9)
        assert len(node.auth.revocations) == 0
        assert not node.auth.tickets._ended
        group.sinks["n1"].on_notice("ticket", "x" * 22, 1.0, 9e9)
        assert list(node.auth.tickets._ended) == [b"x" * 22]


async def test_a_stream_whose_user_was_ended_before_it_began_does_not_begin() -> None:
    async with open_group("n1") as (group, (node,)):
        connection = NotedConnection()
        node.occupancy.enter("127.0.0.1", "u1")
        principal = user(node)
        session = StreamSession(
            node, StreamWire(), as_connection(connection), "127.0.0.1", principal, proof=None
        )
        session.begin([Wanted("a")], 1000)
        group.sinks["n1"].on_notice("user", "u1", 2_000.0, 9e9)
        await until(lambda: connection.closed)
        assert not node.hub.sessions
        assert not connection.of("connected")


# ---- subscriptions that the server makes


async def test_a_user_is_subscribed_without_a_grant() -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = opened(node, user(node, MARKUP))
        other, apart = opened(node, user(node, "u2"))
        order = SubscribeUser(user=MARKUP, channel="closed.b")
        assert await give(group, order) == UserSubscribed(1, 0)
        (told,) = connection.of("subscribed")
        assert "ref" not in told and told["channel"] == "closed.b"
        assert await give(group, order) == UserSubscribed(1, 0)  # they are, as asked
        assert len(connection.of("subscribed")) == 1
        session.drop_ungranted()
        assert "closed.b" in session.subscriptions
        # It stands for no other grant.
        for ref, command in enumerate(("history", "publish", "presence"), 1):
            reply = await say(
                session, connection, type=command, ref=ref, channel="closed.b", data=1
            )
            assert reply["code"] == "forbidden"
        assert not other.subscriptions and not apart.of("subscribed")
        assert await give(group, SubscribeUser(user="u9", channel="a")) == UserSubscribed(0, 0)


async def test_a_subscription_of_the_client_s_own_stays_and_needs_no_grant_any_more() -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = opened(node, user(node))
        await say(session, connection, type="subscribe", ref=1, channel="a")
        assert await give(group, SubscribeUser(user="u1", channel="a")) == UserSubscribed(1, 0)
        session.renew(user(node, b=["subscribe"]))
        assert "a" in session.subscriptions
        assert not connection.of("unsubscribed")


async def test_history_and_presence_as_asked_for() -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = opened(node, user(node, b=["subscribe"]))
        for number in range(3):
            draft = node.publishing.draft(
                Principal(kind="service", grants=user(node).grants),
                channel="a",
                name="x",
                data=b"1",
                tags={},
                event_id=f"e{number}",
            )
            await node.publishing.publish([draft])
        order = SubscribeUser(user="u1", channel="a", rewind=2, presence=True)
        assert await give(group, order) == UserSubscribed(1, 0)
        await until(lambda: len(connection.ids()) == 2)
        assert connection.ids() == ["e1", "e2"]
        (told,) = connection.of("subscribed")
        assert [each["session"] for each in told["members"]] == [session.id]
        session.drop_ungranted()
        assert "a" in session.subscriptions
        # Presence that no rule keeps any more cannot be seen by anyone.
        node.rules.replace([ChannelRule(match=">")])
        session.drop_ungranted()
        assert connection.of("unsubscribed")[0]["channel"] == "a"


async def test_limits_hold_and_are_counted_apart() -> None:
    limits = LimitSettings(subscriptions_per_session=1)
    async with open_group("n1", limits=limits) as (group, (node,)):
        full, connection = opened(node, user(node))
        opened(node, user(node))
        await say(full, connection, type="subscribe", ref=1, channel="a")
        assert await give(group, SubscribeUser(user="u1", channel="b")) == UserSubscribed(1, 1)
        assert await give(group, SubscribeUser(user="u1", channel="a")) == UserSubscribed(1, 1)


async def test_a_broker_that_is_away_fails_the_order() -> None:
    async with open_group("n1") as (group, (node,)):
        session, _connection = opened(node, user(node))
        await node.broker.close()
        assert await give(group, SubscribeUser(user="u1", channel="a")) == Failed()
        assert not session.subscriptions
        since = SubscribeUser(user="u1", channel="a", since="nowhere")
        assert await give(group, since) == Failed()


async def test_a_stream_keeps_the_channels_of_its_address_but_may_lose_one() -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = await streaming(node, user(node))
        assert await give(group, SubscribeUser(user="u1", channel="b")) == UserSubscribed(0, 0)
        assert list(session.subscriptions) == ["a"]
        assert await give(group, UnsubscribeUser("u1", "a")) == UserUnsubscribed(1)
        (told,) = connection.of("unsubscribed")
        assert (told["channel"], told["code"]) == ("a", "forbidden")


async def test_a_user_is_unsubscribed_from_one_channel() -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = opened(node, user(node))
        other, apart = opened(node, user(node, "u2"))
        await give(group, SubscribeUser(user="u1", channel="b"))
        for each, heard in ((session, connection), (other, apart)):
            await say(each, heard, type="subscribe", ref=1, channel="a")
        assert await give(group, UnsubscribeUser("u1", "a")) == UserUnsubscribed(1)
        assert await give(group, UnsubscribeUser("u1", "a")) == UserUnsubscribed(0)
        assert list(session.subscriptions) == ["b"] and list(other.subscriptions) == ["a"]
        (told,) = connection.of("unsubscribed")
        assert told == {
            "type": "unsubscribed",
            "channel": "a",
            "code": "forbidden",
            "message": "unsubscribed by the server",
        }
        # Who is granted it may have it again.
        reply = await say(session, connection, type="subscribe", ref=2, channel="a")
        assert reply["type"] == "subscribed"


async def test_a_subscription_that_ends_while_it_begins_is_not_counted() -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = opened(node, user(node))
        ordered = node.hub.spawn(give(group, SubscribeUser(user="u1", channel="b")))
        await until(lambda: "b" in session.subscriptions)
        assert await give(group, UnsubscribeUser("u1", "b")) == UserUnsubscribed(1)
        assert await ordered == UserSubscribed(0, 0)
        assert not session.subscriptions and not connection.of("subscribed")


async def test_a_session_that_ends_meanwhile_is_not_counted() -> None:
    async with open_group("n1") as (group, (node,)):
        session, _connection = opened(node, user(node))
        ordered = node.hub.spawn(give(group, SubscribeUser(user="u1", channel="b")))
        await until(lambda: "b" in session.subscriptions)
        session.end(Closing.ENDED)
        assert await ordered == UserSubscribed(0, 0)


# ---- a client that comes back to what the server made


async def test_a_client_s_own_subscribe_takes_the_place_of_the_server_s() -> None:
    """A client that comes back while the server subscribes it resumes all the same.

    It was refused (`conflict`) and what came while it was away was lost in silence.
    """
    async with open_group("n1") as (group, (node,)):
        service = Principal(kind="service", grants=user(node).grants)
        session, connection = opened(node, user(node, b=["subscribe"]))
        await give(group, SubscribeUser(user="u1", channel="a"))
        position = connection.of("subscribed")[0]["position"]
        draft = node.publishing.draft(
            service, channel="a", name="x", data=b"1", tags={}, event_id="e1"
        )
        await node.publishing.publish([draft])
        await until(lambda: connection.ids() == ["e1"])
        reply = await say(session, connection, type="subscribe", ref=1, channel="a", since=position)
        assert (reply["type"], reply["recovered"]) == ("subscribed", True)
        await until(lambda: connection.ids() == ["e1", "e1"])
        session.drop_ungranted()
        assert "a" in session.subscriptions
        assert not connection.of("unsubscribed")
        # What it had no grant for it still has none for, and nothing changes.
        refused = await say(session, connection, type="subscribe", ref=2, channel="a", rewind=1)
        assert refused["code"] == "forbidden"
        assert "a" in session.subscriptions


async def test_a_subscription_that_could_not_take_the_place_is_told() -> None:
    async with open_group("n1") as (group, (node,)):
        session, connection = opened(node, user(node))
        await give(group, SubscribeUser(user="u1", channel="a"))
        await node.broker.close()
        position = f"{'a' * 16}-9-{'b' * 16}"
        reply = await say(session, connection, type="subscribe", ref=1, channel="a", since=position)
        assert reply["code"] == "unavailable"
        assert connection.of("unsubscribed")[0]["code"] == "unavailable"
        assert not session.subscriptions


# ---- listing


async def test_sessions_by_id() -> None:
    async with open_group("n1") as (group, (node,)):
        opened(node, user(node))
        opened(node, user(node, "u2"))
        opened(node, user(node))
        everyone = await give(group, ListSessions(None, "", 2))
        assert [e.session for e in everyone.sessions] == ["s1-n1", "s2-n1"]  # type: ignore[union-attr]
        mine = await give(group, ListSessions("u1", "s1-n1", 2))
        assert [(e.session, e.user) for e in mine.sessions] == [("s3-n1", "u1")]  # type: ignore[union-attr]
