import json
from typing import Any

import pytest
from msgspec import Raw

from server.cli_following import Following, Said, event_line
from server.cli_output import CommandFailed


def say(following: Following, **fields: Any) -> Any:
    return following.receive(json.dumps(fields))


def opened(*channels: str, since: str | None = None, rewind: int | None = None) -> Following:
    following = Following(channels, since, rewind)
    following.begin(anonymous=False)
    say(following, type="connected", ping_s=10)
    return following


def commands(texts: list[str]) -> list[dict[str, Any]]:
    return [json.loads(text) for text in texts]


def test_without_a_credential_connect_comes_first() -> None:
    following = Following(["a"], None, None)
    assert commands(following.begin(anonymous=True)) == [{"type": "connect", "ref": 1}]
    assert following.begin(anonymous=False) == []


def test_connected_subscribes_to_every_channel_once() -> None:
    following = Following(["a", "b", "a"], None, 5)
    following.begin(anonymous=True)
    heard = say(following, type="connected", ref=1, ping_s=10)
    assert commands(heard.commands) == [
        {"type": "subscribe", "channel": "a", "rewind": 5, "ref": 2},
        {"type": "subscribe", "channel": "b", "rewind": 5, "ref": 3},
    ]
    assert following.opened
    assert following.silence_s == 15


def test_a_new_session_begins_behind_the_last_position_of_each_channel() -> None:
    following = opened("a", "b", "c", rewind=3)
    say(following, type="subscribed", ref=1, channel="a", position="a0")
    say(following, type="subscribed", ref=2, channel="b", position="b0")
    assert say(following, type="event", channel="a", position="a1").event.position == "a1"
    say(following, type="reset", channel="b", position="b7")
    following.begin(anonymous=False)
    again = commands(say(following, type="connected", ping_s=10).commands)
    # `c` was never answered, so it is asked for as in the beginning.
    assert again == [
        {"type": "subscribe", "channel": "a", "since": "a1", "ref": 1},
        {"type": "subscribe", "channel": "b", "since": "b7", "ref": 2},
        {"type": "subscribe", "channel": "c", "rewind": 3, "ref": 3},
    ]


def test_since_is_the_first_position() -> None:
    following = Following(["a"], "p9", None)
    following.begin(anonymous=False)
    (command,) = commands(say(following, type="connected").commands)
    assert command["since"] == "p9"


def test_a_loss_is_told() -> None:
    following = opened("a", since="p9")
    heard = say(following, type="subscribed", ref=1, channel="a", position="q0", recovered=False)
    assert heard.notes == ["a: could not be resumed behind p9; events may be missing"]
    assert say(following, type="reset", channel="a", position="q1").notes == [
        "a: continuity was lost; events may be missing"
    ]
    recovered = say(following, type="subscribed", ref=2, channel="a", position="q", recovered=True)
    assert recovered.notes == []


def test_a_refused_channel_is_given_up_and_the_last_one_ends_all() -> None:
    following = opened("a", "b")
    heard = say(following, type="error", ref=1, code="forbidden", message="no", retry=False)
    assert heard.notes == ["a is followed no more: forbidden: no"]
    assert list(following.positions) == ["b"]
    with pytest.raises(CommandFailed, match="b: forbidden: no longer granted"):
        say(
            following,
            type="unsubscribed",
            channel="b",
            code="forbidden",
            message="no longer granted",
        )


def test_an_event_of_a_channel_that_was_given_up_does_not_bring_it_back() -> None:
    following = opened("a", "b")
    say(following, type="unsubscribed", channel="a", code="forbidden", message="no")
    say(following, type="event", channel="a", position="a1")
    assert list(following.positions) == ["b"]


def test_what_is_refused_for_now_is_asked_for_later() -> None:
    following = opened("a")
    heard = say(following, type="error", ref=1, code="unavailable", message="wait", retry=True)
    assert heard.notes == []
    assert following.later == ["a"]
    assert commands(following.subscribe_later()) == [
        {"type": "subscribe", "channel": "a", "ref": 2}
    ]
    assert following.later == []


def test_no_session_is_an_error_and_later_errors_are_told() -> None:
    following = Following(["a"], None, None)
    following.begin(anonymous=True)
    with pytest.raises(CommandFailed, match="no session: unauthorized: not allowed here"):
        say(following, type="error", ref=1, code="unauthorized", message="not allowed here")
    heard = say(opened("a"), type="error", code="bad_ref", message="what")
    assert heard.notes == ["bad_ref: what"]


def test_an_expiring_token_is_told() -> None:
    assert say(opened("a"), type="expiring", in_s=60).notes == ["the token expires in 60 s"]


def test_what_is_unknown_is_passed_over() -> None:
    heard = say(opened("a"), type="weather", wind="strong")
    assert (heard.event, heard.notes, heard.commands) == (None, [], [])


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[]", b'{"type":1}'])
def test_another_protocol_is_an_error(text: bytes) -> None:
    with pytest.raises(CommandFailed, match="does not speak"):
        opened("a").receive(text)


def test_pings_have_refs_that_grow() -> None:
    following = opened("a")
    assert commands([following.ping(), following.ping()]) == [
        {"type": "ping", "ref": 2},
        {"type": "ping", "ref": 3},
    ]


def test_pauses_grow_are_jittered_and_never_too_long() -> None:
    following = opened("a")
    assert [following.pause_s(attempt, 1.0) for attempt in (0, 1, 2, 10, 10_000)] == [
        0.5,
        1.0,
        2.0,
        30.0,
        30.0,
    ]
    assert following.pause_s(3, 0.0) == 0
    assert following.pause_s(1, 0.25) == 0.25


def test_nobody_comes_back_before_the_hint() -> None:
    following = opened("a")
    say(following, type="closing", code=4001, reason="draining", retry_in_ms=3100)
    assert following.pause_s(0, 0.0) == 3.1
    assert following.pause_s(0, 1.0) == 3.6
    following.begin(anonymous=False)
    assert following.pause_s(0, 0.0) == 0


def test_the_code_decides_whether_to_come_back() -> None:
    following = opened("a")
    assert following.closed(1006, "reset") == "the connection was lost (reset)"
    assert following.closed(4000, "going_away") == "the server ended the session: 4000 going away"
    with pytest.raises(CommandFailed, match="4502 ended"):
        following.closed(4502, "ended")
    say(following, type="closing", code=4501, reason="invalid_token")
    with pytest.raises(CommandFailed, match="4501 invalid token"):
        following.closed(1006, "the close frame was lost")


def test_the_line_of_an_event() -> None:
    event = Said(channel="a.b", name="n", time=1_789_000_000_123)
    date, time, channel, name, data = event_line(event).split()
    assert (channel, name, data) == ("a.b", "n", "null")
    assert len(date) == 10
    assert time.endswith(".123")
    event.time = 1 << 62
    assert event_line(event).startswith("4611686018427387904  a.b")


def test_a_rate_is_asked_for_of_every_channel_and_each_time() -> None:
    following = Following(["a", "b"], None, None, 2.5)
    for _ in range(2):
        following.begin(anonymous=False)
        asked = commands(say(following, type="connected", ping_s=10).commands)
        assert [each["max_rate_hz"] for each in asked] == [2.5, 2.5]


def test_a_line_says_what_was_skipped() -> None:
    event = Said(type="event", channel="a", name="n", data=Raw(b"1"), skipped=3)
    assert event_line(event).endswith("  a  n  1  (3 skipped)")
    event.skipped = 0
    assert event_line(event).endswith("  a  n  1")
