"""Sessions: the order of commands, what ends them, and that nothing of them remains."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from handlers.wires import WS_JSON
from live_rig import Rig, live, token, until, within
from pubsub.errors import BrokerUnavailable
from pubsub.event import Draft
from pubsub.position import Position
from server.closing import Closing
from server.principal import Principal
from server.session import Session, State, seconds_left
from server.stream import parse_cursor


class Line:
    """A connection that keeps what it was given."""

    def __init__(self) -> None:
        self.sent = b""
        self.unsent = 0
        self.closing: Closing | None = None
        self.reading = True

    def send(self, data: bytes) -> None:
        self.sent += data

    def clear(self) -> bool:
        return True

    def pause(self) -> None:
        self.reading = False

    def resume(self) -> None:
        self.reading = True

    def close(self, closing: Closing, last: bytes = b"") -> None:
        self.sent += last
        self.closing = closing

    async def drained(self) -> bool:
        return self.closing is None

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages in the frames that were sent."""
        found, data = [], self.sent
        while data:
            size, start = data[1], 2
            if size == 126:
                size, start = int.from_bytes(data[2:4], "big"), 4
            found.append(json.loads(data[start : start + size]))
            data = data[start + size :]
        return found


def enter(rig: Rig, principal: Principal | None = None) -> tuple[Session, Line]:
    """Make a session that is open."""
    line = Line()
    rig.node.occupancy.enter("192.0.2.1")
    session = Session(rig.node, WS_JSON, line, "192.0.2.1")
    session.open(rig.node.auth.anonymous() if principal is None else principal)
    return session, line


def command(ref: int, type_: str = "ping", **fields: Any) -> bytes:
    return json.dumps({"type": type_, "ref": ref, **fields}).encode()


class SlowBroker:
    """Publishes when it is let go."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go = asyncio.Event()
        self.waiting = 0
        publish = rig.node.broker.publish

        async def later(drafts: Sequence[Draft]) -> Any:
            self.waiting += 1
            await self.go.wait()
            return await publish(drafts)

        monkeypatch.setattr(rig.node.broker, "publish", later)


async def test_commands_are_carried_out_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with live() as rig:
        slow = SlowBroker(rig, monkeypatch)
        session, line = enter(rig)
        session.on_messages([command(1, "publish", channel="a", data=1), command(2)])
        session.on_messages([command(3)])
        await until(lambda: slow.waiting)
        assert [each["type"] for each in line.messages] == ["connected"]
        slow.go.set()
        await until(lambda: len(line.messages) == 4)
        assert [each.get("ref") for each in line.messages] == [None, 1, 2, 3]
        assert session.last_ref == 3
        session.on_lost()


async def test_it_reads_no_more_while_many_commands_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live(limits__session_commands_per_s=0) as rig:
        slow = SlowBroker(rig, monkeypatch)
        session, line = enter(rig)
        session.on_messages([command(1, "publish", channel="a", data=1)])
        await until(lambda: slow.waiting)
        session.on_messages([command(ref) for ref in range(2, 200)])
        assert not line.reading
        slow.go.set()
        await until(lambda: line.reading)
        await until(lambda: len(line.messages) == 200)
        session.on_lost()


async def test_many_commands_leave_turns_to_others() -> None:
    async with live(limits__session_commands_per_s=0) as rig:
        session, _line = enter(rig)
        turns = 0
        session.on_messages([command(n, "subscribe", channel=f"t.{n}") for n in range(1, 900)])
        while session.last_ref < 899:
            await asyncio.sleep(0)
            turns += 1
        assert turns >= 10
        session.on_lost()


async def test_what_is_unexpected_is_told_by_a_fixed_phrase(
    monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    expect_log("server.session", "command failed")
    async with live() as rig:

        async def fail(_drafts: object) -> None:
            raise RuntimeError("the secret inside")

        monkeypatch.setattr(rig.node.broker, "publish", fail)
        session, line = enter(rig)
        session.on_messages([command(1, "publish", channel="a", data=1), command(2)])
        await until(lambda: len(line.messages) == 3)
        error, pong = line.messages[1:]
        assert (error["ref"], error["code"], error["retry"]) == (1, "internal", True)
        assert "secret" not in error["message"] and pong["type"] == "pong"
        assert rig.refusals("internal") == 1
        session.on_lost()


async def test_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live() as rig:

        async def fail(*_args: object, **_more: object) -> None:
            raise BrokerUnavailable("gone")

        for name in ("publish", "history", "subscribe"):
            monkeypatch.setattr(rig.node.broker, name, fail)
        session, line = enter(rig)
        session.on_messages(
            [
                command(1, "publish", channel="a", data=1),
                command(2, "history", channel="a"),
                command(3, "subscribe", channel="a"),
                command(4),
            ]
        )
        await until(lambda: len(line.messages) == 5)
        for error in line.messages[1:4]:
            assert (error["code"], error["retry"]) == ("unavailable", True)
        assert not session.subscriptions
        session.on_lost()
        await until(rig.nobody_left)


async def test_the_end_says_what_waits_and_why_and_then_nothing() -> None:
    async with live() as rig:
        session, line = enter(rig)
        session.on_messages([command(1, "subscribe", channel="a")])
        await until(lambda: session.subscriptions and line.messages[-1]["type"] == "subscribed")
        (feed,) = rig.node.hub.feeds.values()
        session.end(Closing.DRAINING, retry_in_ms=7)
        session.end(Closing.ENDED)
        session.on_slow()
        session.on_violation(Closing.PROTOCOL_ERROR)
        session.on_messages([command(2)])
        assert line.closing is Closing.DRAINING
        assert line.messages[-1] == {
            "type": "closing",
            "code": 4001,
            "reason": "draining",
            "retry_in_ms": 7,
        }
        said = len(line.sent)
        assert feed.holds == 0 and session.state is State.ENDED
        await rig.publish("a", 1)
        session.on_lost()
        assert len(line.sent) == said
        assert rig.nobody_left()


async def test_the_end_amid_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live() as rig:
        slow = SlowBroker(rig, monkeypatch)
        session, line = enter(rig)
        session.on_messages([command(1, "publish", channel="a", data=1), command(2)])
        await until(lambda: slow.waiting)
        session.on_lost()
        said = line.sent
        slow.go.set()
        await until(lambda: session._worker is None)
        assert line.sent == said and session.last_ref == 1
        assert rig.node.metrics.events_in == 1
        assert rig.nobody_left()


async def test_goodbye_waits_for_what_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live() as rig:
        slow = SlowBroker(rig, monkeypatch)
        session, line = enter(rig)
        answers: list[int] = []
        session.on_messages([command(1, "publish", channel="a", data=1), command(2)])
        session.on_goodbye(lambda: answers.append(len(line.messages)))
        await until(lambda: slow.waiting)
        assert not answers and session.id in rig.node.hub.sessions
        slow.go.set()
        await until(lambda: answers)
        assert answers == [3]
        assert session.state is State.ENDED and rig.nobody_left()


async def test_goodbye_with_nothing_to_do_is_answered_at_once() -> None:
    async with live() as rig:
        session, _line = enter(rig)
        answers: list[bool] = []
        session.on_goodbye(lambda: answers.append(rig.nobody_left()))
        assert answers == [True]


async def test_a_lost_connection_is_not_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live() as rig:
        slow = SlowBroker(rig, monkeypatch)
        session, _line = enter(rig)
        session.on_messages([command(1, "publish", channel="a", data=1)])
        answers: list[int] = []
        session.on_goodbye(lambda: answers.append(1))
        await until(lambda: slow.waiting)
        session.on_lost()
        slow.go.set()
        await until(lambda: session._worker is None)
        assert not answers


async def test_too_many_errors_end_a_session() -> None:
    async with live(limits__errors_per_minute=2) as rig:
        session, line = enter(rig)
        session.on_messages([b"junk", b"junk"])
        await until(lambda: len(line.messages) == 3)
        assert line.closing is None
        session.on_messages([b"junk"])
        await until(lambda: line.closing)
        assert line.closing is Closing.TOO_MANY_ERRORS


async def test_refused_subscriptions_do_not_end_a_session() -> None:
    """A client with many channels came back with a token that granted none of them, and was sent
    away for good, its one granted subscription with it.
    """
    async with live(limits__errors_per_minute=2) as rig:
        session, line = enter(rig, rig.node.auth.token(token("u1", {"a": ["subscribe"]})))
        wanted = [command(n, "subscribe", channel=f"no.{n}") for n in range(1, 9)]
        session.on_messages([*wanted, command(9, "subscribe", channel="a")])
        await until(lambda: line.messages[-1]["type"] == "subscribed")
        assert [each["code"] for each in line.messages[1:-1]] == ["forbidden"] * 8
        assert line.closing is None


async def test_an_older_presence_grant_does_not_go_on() -> None:
    """A session that lost the grant by a refresh went on to be told who came and went."""
    async with live() as rig:
        auth = rig.node.auth
        both = auth.token(token("u1", {"a": ["subscribe", "presence"]}))
        session, line = enter(rig, both)
        session.on_messages([command(1, "subscribe", channel="a", presence=True)])
        await until(lambda: line.messages[-1]["type"] == "subscribed")
        session.renew(auth.token(token("u1", {"a": ["subscribe", "presence"]})))
        assert session.subscriptions
        session.renew(auth.token(token("u1", {"a": ["subscribe"]})))
        assert not session.subscriptions
        assert line.messages[-1]["type"] == "unsubscribed"
        session.on_lost()
        await until(lambda: not rig.node.hub._tasks)


async def test_seconds_left() -> None:
    assert seconds_left(Principal(kind="anonymous")) is None
    assert seconds_left(Principal(kind="user", user="u", expires_at=0.0)) == 0


# ---- streams


async def test_a_stream_whose_feed_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    expect_log("server.stream", "stream failed")
    async with live() as rig:

        async def fail(_channel: str) -> None:
            raise RuntimeError("the secret inside")

        monkeypatch.setattr(rig.node.hub, "hold", fail)
        stream = await rig.sse("channel=a")
        text = await stream.rest()
        assert b'"code":4006' in text and b"secret" not in text
        stream.close()
        await until(rig.nobody_left)


async def test_a_stream_that_is_gone_before_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live() as rig:
        go = asyncio.Event()
        subscribe = rig.node.broker.subscribe

        async def later(channel: str) -> Position:
            await go.wait()
            return await subscribe(channel)

        monkeypatch.setattr(rig.node.broker, "subscribe", later)
        stream = await rig.sse("channel=a&channel=b")
        await until(lambda: rig.node.hub.feeds)
        stream.close()
        await until(lambda: not rig.app.live.connections())
        go.set()
        await until(rig.nobody_left)


async def test_a_stream_that_is_gone_between_two_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    async with live() as rig:
        subscribe = rig.node.commands.subscribe

        async def once(session: Session, channel: str, **more: Any) -> None:
            await subscribe(session, channel, **more)
            session.end(Closing.ENDED)

        monkeypatch.setattr(rig.node.commands, "subscribe", once)
        stream = await rig.sse("channel=a&channel=b")
        text = await within(stream.rest())
        assert text.count(b'"subscribed"') == 1 and b'"code":4502' in text
        stream.close()
        await until(rig.nobody_left)


def test_cursors() -> None:
    one, two = Position("a" * 16, 1, "b" * 16), Position("c" * 16, 2, "d" * 16)
    assert parse_cursor(f"{one},{two}", ["x", "y"]) == [one, two]
    assert parse_cursor(f",{two}", ["x", "y"]) == [None, two]
    assert parse_cursor("", ["x"]) == [None]


def test_close_codes() -> None:
    codes = [each.code for each in Closing]
    assert len(set(codes)) == len(codes) == len({each.reason for each in Closing})
    assert all(4000 <= code <= 4999 for code in codes)
    assert {each for each in Closing if not each.come_back} == {
        Closing.PROTOCOL_ERROR,
        Closing.INVALID_TOKEN,
        Closing.ENDED,
        Closing.ORIGIN_REFUSED,
        Closing.TOO_MANY_ERRORS,
        Closing.TOO_LARGE,
    }
