"""What nodes ask of each other: strictly read orders, answers that may grow."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.orders import (
    MOST_CHANNELS,
    MOST_SESSIONS,
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
    SessionEntry,
    SessionsFound,
    SubscribersCounted,
    SubscribeUser,
    Unknown,
    UnsubscribeUser,
    UserSubscribed,
    UserUnsubscribed,
    pack,
    read_answer,
    read_order,
)

ENTRY = SessionEntry("s1", "user", "<b>u</b>", "ws", "json", "::1", 1_789_000_000_123, 3)
STATE = NodeState(
    version="1.0",
    phase="draining",
    reasons=["draining"],
    uptime_s=1.5,
    sessions=1,
    connections=2,
    subscriptions=3,
    channels=4,
    events_in=5,
    events_out=6,
    unsent_bytes=7,
    loop_lag_s=0.001,
)


@pytest.mark.parametrize(
    "order",
    [
        EndSession("s1"),
        EndUser("<script>", 1.5, 2.5),
        SubscribeUser(user="u", channel="a.b"),
        SubscribeUser(user="u", channel="a.b", since="x", rewind=5, presence=True),
        UnsubscribeUser("u", "a.b"),
        ListSessions(None, "", 1),
        ListSessions("u", "s1", MOST_SESSIONS),
        CountSubscribers(["a"] * MOST_CHANNELS),
        DescribeNode(),
    ],
    ids=lambda order: type(order).__name__,
)
def test_an_order_is_read_as_it_was_given(order: AnyOrder) -> None:
    assert read_order(pack(order)) == order
    assert read_answer(pack(order)) is None


@pytest.mark.parametrize(
    "answer",
    [
        Ended(1),
        UserSubscribed(2, 1),
        UserUnsubscribed(0),
        SessionsFound([ENTRY]),
        SubscribersCounted([0, 3]),
        STATE,
        Unknown(),
        Failed(),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_an_answer_is_read_as_it_was_given(answer: AnyAnswer) -> None:
    assert read_answer(pack(answer)) == answer
    assert read_order(pack(answer)) is None


@pytest.mark.parametrize(
    "order",
    [
        {"order": "EndSession.2", "session": "s1"},
        {"order": "EndSession", "session": "s1"},
        {"order": "Shutdown.1"},
        {"order": "EndSession.1", "session": "s1", "gently": True},
        {"order": "EndSession.1", "session": "s" * 65},
        {"order": "EndSession.1"},
        {"order": "EndUser.1", "user": "", "at_s": 1, "until_s": 2},
        {"order": "EndUser.1", "user": "u", "at_s": "now", "until_s": 2},
        {"order": "ListSessions.1", "user": None, "after": "", "limit": MOST_SESSIONS + 1},
        {"order": "ListSessions.1", "user": None, "after": "", "limit": 0},
        {"order": "CountSubscribers.1", "channels": ["a"] * (MOST_CHANNELS + 1)},
        {"order": "SubscribeUser.1", "user": "u", "channel": "a", "rewind": 0},
        [],
        "EndSession.1",
    ],
)
def test_half_an_order_is_none(order: object) -> None:
    """What a newer version added to an order may change what it means."""
    assert read_order(msgspec.msgpack.encode(order)) is None


def test_an_answer_may_say_more_than_is_known() -> None:
    assert read_answer(msgspec.msgpack.encode({"answer": "Ended.1", "ended": 2, "why": "x"})) == (
        Ended(2)
    )
    assert read_answer(msgspec.msgpack.encode({"answer": "Ended.2", "ended": 2})) is None


@given(st.binary(max_size=64))
def test_junk_is_neither(payload: bytes) -> None:
    assert read_order(payload) is None
    assert read_answer(payload) is None


def test_deep_nesting_is_neither() -> None:
    assert read_order(b"\x91" * 100_000) is None
    assert read_answer(b"\x91" * 100_000) is None
