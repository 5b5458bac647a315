"""Every command of the protocol and its reply, in both encodings, over real sockets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from config.rules import ChannelRule
from live_rig import ALL, JSON, MSGPACK, Client, Rig, live, token, until

both = pytest.mark.parametrize("encoding", [JSON, MSGPACK])

VALUES: list[Any] = [
    None,
    True,
    0,
    -(2**63),
    2**64 - 1,
    1.5,
    "",
    "grüße \u2028 \x00 😀",
    [],
    {},
    {"a": [1, {"b": None}], "": "empty key"},
    "x" * 60_000,
]


def only(message: dict[str, Any], *names: str) -> None:
    assert set(message) == set(names), message


@both
async def test_ping(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        assert await client.call("ping") == {"type": "pong", "ref": 2}


@both
async def test_subscribe_publish_event(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding, token=token("u1"))
        subscribed = await client.call("subscribe", channel="chat.a")
        only(subscribed, "type", "ref", "channel", "position")
        published = await client.call(
            "publish", channel="chat.a", name="said", data={"x": [1]}, tags={"k": "v"}, id="e1"
        )
        only(published, "type", "ref", "channel", "position", "id", "duplicate")
        assert published["id"] == "e1" and published["duplicate"] is False
        event = await client.next("event")
        only(event, "type", "channel", "position", "id", "name", "data", "tags", "time", "user")
        assert event | {"time": 0} == {
            "type": "event",
            "channel": "chat.a",
            "position": published["position"],
            "id": "e1",
            "name": "said",
            "data": {"x": [1]},
            "tags": {"k": "v"},
            "time": 0,
            "user": "u1",
        }
        assert event["time"] > 1_600_000_000_000


@both
async def test_defaults_of_publish(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        await client.call("subscribe", channel="chat.a")
        published = await client.call("publish", channel="chat.a", data=None)
        event = await client.next("event")
        assert event["name"] == "message" and event["tags"] == {} and "user" not in event
        assert len(published["id"]) == 26 and event["id"] == published["id"]


@both
@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
async def test_values_come_out_as_they_went_in(encoding: str, value: Any) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        other = await rig.ws(MSGPACK if encoding == JSON else JSON)
        for each in (client, other):
            await each.call("subscribe", channel="v.a")
        await client.call("publish", channel="v.a", data=value)
        for each in (client, other):
            assert (await each.next("event"))["data"] == value
        await rig.publish("v.a", value)
        for each in (client, other):
            assert (await each.next("event"))["data"] == value


@both
async def test_the_same_id_again(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        await client.call("subscribe", channel="dup.a")
        first = await client.call("publish", channel="dup.a", data=1, id="same")
        again = await client.call("publish", channel="dup.a", data=2, id="same")
        assert again["duplicate"] is True and again["position"] == first["position"]
        await client.call("publish", channel="dup.a", data=3)
        assert [each["data"] for each in await client.events(2)] == [1, 3]


@both
async def test_without_an_echo(encoding: str) -> None:
    async with live() as rig:
        client, other = await rig.ws(encoding), await rig.ws(encoding)
        for each in (client, other):
            await each.call("subscribe", channel="echo.a")
        await client.call("publish", channel="echo.a", data=1, echo=False)
        await client.call("publish", channel="echo.a", data=2, echo=True)
        assert [each["data"] for each in await other.events(2)] == [1, 2]
        assert (await client.next("event"))["data"] == 2
        assert [each for each in client.passed if each["type"] == "event"] == []


@both
async def test_nothing_is_scheduled(encoding: str) -> None:
    """Else a client would take for later what is delivered now."""
    async with live() as rig:
        client = await rig.ws(encoding)
        times: list[Any] = [2**50, 0, None, "x", {}]
        for at in times:
            refused = await client.call("publish", channel="late.a", data=1, deliver_at=at)
            assert (refused["code"], refused["retry"]) == ("bad_request", False)
            assert refused["message"] == "deliver_at is taken over HTTP only"


@both
async def test_unsubscribe(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        await client.call("subscribe", channel="un.a")
        await client.call("subscribe", channel="un.b")
        reply = await client.call("unsubscribe", channel="un.a")
        assert reply == {"type": "unsubscribed", "ref": client.ref, "channel": "un.a"}
        await rig.publish("un.a", 1)
        await rig.publish("un.b", 2)
        assert (await client.next("event"))["data"] == 2
        assert (await client.call("unsubscribe", channel="un.a"))["code"] == "not_found"
        assert (await client.call("subscribe", channel="un.a"))["type"] == "subscribed"


@both
async def test_subscribing_twice(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        await client.call("subscribe", channel="twice.a")
        error = await client.call("subscribe", channel="twice.a")
        assert (error["code"], error["retry"]) == ("conflict", False)
        await rig.publish("twice.a", 1)
        await rig.publish("twice.a", 2)
        assert [each["data"] for each in await client.events(2)] == [1, 2]


@both
async def test_since_and_rewind(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        start = (await client.call("subscribe", channel="s.a"))["position"]
        acks = [await rig.publish("s.a", number) for number in range(5)]

        async def again(**how: Any) -> tuple[dict[str, Any], list[Any]]:
            other = await rig.ws(encoding)
            reply = await other.call("subscribe", channel="s.a", **how)
            mark = await rig.publish("s.a", "mark")
            seen: list[Any] = []
            while not seen or seen[-1]["id"] != mark["id"]:
                seen.append(await other.next("event"))
            other.close()
            return reply, [each["data"] for each in seen if each["data"] != "mark"]

        reply, seen = await again()
        assert "recovered" not in reply and seen == []
        reply, seen = await again(since=start)
        assert reply["recovered"] is True and reply["position"] == start
        assert seen == [0, 1, 2, 3, 4]
        reply, seen = await again(since=acks[2]["position"])
        assert reply["recovered"] is True and seen == [3, 4]
        reply, seen = await again(rewind=100)
        assert "recovered" not in reply and seen == [0, 1, 2, 3, 4]
        assert reply["position"] == start
        # Both: `rewind` counts only when `since` cannot be continued.
        reply, seen = await again(since=acks[3]["position"], rewind=100)
        assert reply["recovered"] is True and seen == [4]
        other_channel = (await client.call("subscribe", channel="s.b"))["position"]
        reply, seen = await again(since=other_channel)
        assert reply["recovered"] is False and seen == []
        reply, seen = await again(since=other_channel, rewind=100)
        assert reply["recovered"] is False and seen == [0, 1, 2, 3, 4]


@both
async def test_resuming_twice_in_a_row(encoding: str) -> None:
    """Recovered events carried no position elsewhere, so the second reconnect repeated them."""
    async with live() as rig:
        client = await rig.ws(encoding)
        last = (await client.call("subscribe", channel="r.a"))["position"]
        seen = []
        for number in range(1, 6):
            client.close()
            await rig.publish("r.a", number * 2)
            await rig.publish("r.a", number * 2 + 1)
            client = await rig.ws(encoding)
            reply = await client.call("subscribe", channel="r.a", since=last)
            assert reply["recovered"] is True
            for event in await client.events(2):
                seen.append(event["data"])
                last = event["position"]
        assert seen == list(range(2, 12))


@both
async def test_positions_that_cannot_be_continued(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        position = (await client.call("subscribe", channel="p.a"))["position"]
        epoch, offset, check = position.split("-")
        for wrong in (
            f"{'0' * 16}-{offset}-{check}",  # another epoch
            f"{epoch}-999999999-{check}",  # beyond the top
            f"{epoch}-{offset}-{'0' * 16}",  # another history
        ):
            other = await rig.ws(encoding)
            reply = await other.call("subscribe", channel="p.a", since=wrong)
            assert reply["recovered"] is False and reply["position"] == position
        for junk in ("", "junk", position + "0", f"{epoch}-01-{check}", f"{epoch}--1-{check}"):
            other = await rig.ws(encoding)
            assert (await other.call("subscribe", channel="p.a", since=junk))["code"] == (
                "bad_request"
            )


@both
async def test_presence(encoding: str) -> None:
    async with live() as rig:
        first = await rig.ws(encoding, token=token("u1"))
        reply = await first.call("subscribe", channel="room.a", presence=True)
        (me,) = reply["members"]
        assert me["user"] == "u1" and me["info"] == {} and "more" not in reply
        second = await rig.ws(encoding, token=token("u2"))
        await second.call("subscribe", channel="room.a")
        join = await first.next("presence")
        only(join, "type", "channel", "action", "member")
        assert join["action"] == "join" and join["member"]["user"] == "u2"

        reply = await second.call("presence", channel="room.a", info={"mood": "grün"})
        only(reply, "type", "ref", "channel", "members")
        assert {each["user"]: each["info"] for each in reply["members"]} == {
            "u1": {},
            "u2": {"mood": "grün"},
        }
        update = await first.next("presence")
        assert update["action"] == "update"
        assert update["member"]["info"] == {"mood": "grün"}

        assert len((await first.call("presence", channel="room.a"))["members"]) == 2
        await second.call("unsubscribe", channel="room.a")
        leave = await first.next("presence")
        assert leave["action"] == "leave" and leave["member"]["user"] == "u2"
        # Who did not ask is told nothing.
        assert [each["type"] for each in second.passed] == []


@both
async def test_a_lost_connection_leaves(encoding: str) -> None:
    async with live() as rig:
        first, second = await rig.ws(encoding), await rig.ws(encoding)
        await first.call("subscribe", channel="room.b", presence=True)
        await second.call("subscribe", channel="room.b")
        assert (await first.next("presence"))["action"] == "join"
        second.reset()
        assert (await first.next("presence"))["action"] == "leave"


@both
async def test_pages_of_members(encoding: str) -> None:
    async with live(limits__members_per_reply=2) as rig:
        for _ in range(5):
            await (await rig.ws(encoding)).call("subscribe", channel="room.c")
        client = await rig.ws(encoding)
        reply = await client.call("subscribe", channel="room.c", presence=True)
        assert len(reply["members"]) == 2 and reply["more"] is True
        seen: list[str] = []
        cursor: dict[str, Any] = {}
        for _ in range(4):
            page = await client.call("presence", channel="room.c", **cursor)
            seen += [each["session"] for each in page["members"]]
            if "cursor" not in page:
                break
            cursor = {"cursor": page["cursor"]}
        assert len(seen) == len(set(seen)) == 6
        bad = await client.call("presence", channel="room.c", cursor="*junk*")
        assert bad["code"] == "bad_request"


async def test_presence_where_it_is_off_or_not_granted() -> None:
    rules = (ChannelRule(match="off.*", client_publish=True),)
    async with live(channels=rules) as rig:
        client = await rig.ws(token=token("u1", {"off.*": ALL, "on.*": ["subscribe"]}))
        for call in ("presence", "subscribe"):
            for channel in ("off.a", "on.a"):
                reply = await client.call(call, channel=channel, presence=True, info=1)
                assert reply["code"] == "forbidden"
        assert "off" in (await client.call("presence", channel="off.a"))["message"]
        assert (await client.call("subscribe", channel="off.a"))["type"] == "subscribed"


async def test_presence_that_a_reload_switches_off_is_watched_no_longer() -> None:
    on, off = (ChannelRule(match="room.*", presence=each) for each in (True, False))
    async with live(channels=(on,)) as rig:
        watching = await rig.ws(token=token("u1"))
        await watching.call("subscribe", channel="room.a", presence=True)
        other = await rig.ws(token=token("u2"))
        await other.call("subscribe", channel="room.a")
        assert (await watching.next("presence"))["action"] == "join"
        rig.app.reload(msgspec.structs.replace(rig.app.settings, channels=(off,)))
        ended = await watching.next("unsubscribed")
        assert (ended["channel"], ended["code"]) == ("room.a", "forbidden")
        # Who only listens goes on, and so does who comes back without asking for presence.
        assert (await watching.call("subscribe", channel="room.a"))["type"] == "subscribed"
        await rig.publish("room.a", 1)
        for client in (watching, other):
            assert (await client.next("event"))["data"] == 1


async def test_an_entry_needs_a_subscription() -> None:
    async with live() as rig:
        client = await rig.ws()
        reply = await client.call("presence", channel="room.d", info={"a": 1})
        assert reply["code"] == "conflict"
        reply = await client.call("presence", channel="room.d")
        assert reply["members"] == []


async def history(client: Client, **how: Any) -> dict[str, Any]:
    return await client.call("history", channel="h.a", **how)


@both
async def test_history(encoding: str) -> None:
    async with live(limits__history_per_reply=4) as rig:
        client = await rig.ws(encoding)
        empty = await history(client)
        assert empty == {"type": "events", "ref": client.ref, "channel": "h.a", "events": []}
        acks = [await rig.publish("h.a", number) for number in range(6)]
        reply = await history(client)
        only(reply, "type", "ref", "channel", "events", "cursor")
        assert [each["data"] for each in reply["events"]] == [2, 3, 4, 5]
        assert reply["cursor"] == acks[2]["position"]
        item = reply["events"][0]
        only(item, "channel", "position", "id", "name", "data", "tags", "time")
        reply = await history(client, before=reply["cursor"])
        assert [each["data"] for each in reply["events"]] == [0, 1] and "cursor" not in reply
        reply = await history(client, limit=1)
        assert [each["data"] for each in reply["events"]] == [5]
        reply = await history(client, before=acks[0]["position"])
        assert reply["events"] == []


@both
async def test_history_before_a_position_of_nobody(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        ack = await rig.publish("h.a", 1)
        await rig.publish("h.b", 1)
        other = await rig.publish("h.b", 2)
        epoch, _offset, check = ack["position"].split("-")
        foreign = f"deadbeefdeadbeef-1-{check}"
        for wrong in (other["position"], f"{epoch}-77-{check}", foreign, "junk", ""):
            assert (await history(client, before=wrong))["code"] == "bad_request", wrong
        # What a cursor says is never refused, also when nothing is left before it.
        await rig.publish("h.a", 2)
        page = await history(client, limit=1)
        last = await history(client, limit=1, before=page["cursor"])
        assert [each["data"] for each in last["events"]] == [1]
        assert "cursor" not in last
        for limit in (0, -1, 100_001, "5", 1.5):
            assert (await history(client, limit=limit))["code"] == "bad_request", limit


async def test_grants_for_each_action() -> None:
    actions: dict[str, dict[str, Any]] = {
        "subscribe": {"type_": "subscribe"},
        "publish": {"type_": "publish", "data": 1},
        "history": {"type_": "history"},
        "presence": {"type_": "presence"},
    }
    async with live() as rig:
        for granted in actions:
            client = await rig.ws(token=token("u1", {"g.*": [granted]}))
            for action, call in actions.items():
                reply = await client.call(channel="g.a", **call)
                assert (reply["type"] != "error") == (action == granted), (granted, action)
                if action != granted:
                    assert reply["code"] == "forbidden" and reply["retry"] is False
        # To look back is to read history; to resume is not.
        client = await rig.ws(token=token("u1", {"g.*": ["subscribe"]}))
        assert (await client.call("subscribe", channel="g.a", rewind=5))["code"] == "forbidden"
        position = (await client.call("subscribe", channel="g.a"))["position"]
        await client.call("unsubscribe", channel="g.a")
        reply = await client.call("subscribe", channel="g.a", since=position)
        assert reply["recovered"] is True


async def test_channels_that_take_no_publishes_from_clients() -> None:
    async with live(channels=(ChannelRule(match="news.*"),)) as rig:
        client = await rig.ws(token=token("u1"))
        await client.call("subscribe", channel="news.a")
        assert (await client.call("publish", channel="news.a", data=1))["code"] == "forbidden"
        service = await rig.ws(connect=False, Authorization="Bearer dev.galecast")
        await service.message()
        await service.call("publish", channel="news.a", data=2)
        assert (await client.next("event"))["data"] == 2


async def test_replies_come_in_the_order_of_the_commands() -> None:
    async with live() as rig:
        client = await rig.ws()
        commands = [
            client.numbered("subscribe", channel="o.a"),
            client.numbered("publish", channel="o.a", data=1),
            client.numbered("unsubscribe", channel="o.a"),
            client.numbered("subscribe", channel="o.a", rewind=10),
            client.numbered("ping"),
        ]
        await client.write(b"".join(map(client.encode, commands)))
        said = [await client.message() for _ in range(7)]
        assert [each["ref"] for each in said if "ref" in each] == [2, 3, 4, 5, 6]
        rest = [
            each["type"] for each in said[said.index(next(e for e in said if e.get("ref") == 5)) :]
        ]
        assert rest[:2] == ["subscribed", "event"]


async def test_a_session_is_excluded_over_rest() -> None:
    async with live() as rig:
        client, other = await rig.ws(), await rig.ws()
        for each in (client, other):
            await each.call("subscribe", channel="ex.a")
        me = next(s for s in rig.sessions if s.subscriptions and s.connection.peer is s).id
        await rig.publish("ex.a", 1, exclude=me)
        await rig.publish("ex.a", 2)
        assert sorted(
            [(await client.next("event"))["data"], (await other.next("event"))["data"]]
        ) == [1, 2]


async def watched(rig: Rig, client: Client) -> None:
    await client.call("subscribe", channel="sync.a", presence=True)
    await until(lambda: rig.node.hub.feeds["sync.a"].presence.audiences)


@both
async def test_a_sync_replaces_the_whole_set(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding, token=token("u1"))
        await watched(rig, client)
        rig.node.hub.sync_presence(rig.node.hub.feeds["sync.a"])
        message = await client.next("presence")
        only(message, "type", "channel", "action", "members")
        assert message["action"] == "sync"
        assert [each["user"] for each in message["members"]] == ["u1"]


@both
async def test_a_reset_is_told(encoding: str) -> None:
    async with live() as rig:
        client = await rig.ws(encoding)
        position = (await client.call("subscribe", channel="fork.a"))["position"]
        await rig.publish("fork.a", 1)
        await client.next("event")
        feed = rig.node.hub.feeds["fork.a"]
        await rig.node.broker.contradict(
            "fork.a", msgspec.structs.replace(feed.top, check="0" * 16)
        )
        reset = await client.next("reset")
        only(reset, "type", "channel", "position")
        assert reset["position"] != position
        await rig.publish("fork.a", 2)
        assert (await client.next("event"))["data"] == 2
        # What the reset said is where one resumes from.
        other = await rig.ws(encoding)
        reply = await other.call("subscribe", channel="fork.a", since=reset["position"])
        assert reply["recovered"] is True and (await other.next("event"))["data"] == 2
