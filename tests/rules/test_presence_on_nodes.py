"""Rules 23 and 24, as far as they concern a node."""

import asyncio

import pytest

from delivery_rig import CHANNEL, open_delivery_rig, until


async def test_rule_23_members_come_and_go_with_their_subscriptions() -> None:
    async with open_delivery_rig() as rig:
        watcher = rig.session()
        reply = await watcher.subscribe(presence=True)
        assert reply["members"] == []
        users = [rig.session(principal=rig.user(f"u{n}")) for n in range(3)]
        for user in users:
            await user.subscribe()
        await users[0].ask("unsubscribe", channel=CHANNEL)
        users[1].leave()
        users[2].session.on_slow()
        await until(lambda: len(watcher.connection.of("presence")) == 6)
        told = [(m["action"], m["member"]["user"]) for m in watcher.connection.of("presence")]
        assert told[:3] == [("join", "u0"), ("join", "u1"), ("join", "u2")]
        assert sorted(told[3:]) == [("leave", "u0"), ("leave", "u1"), ("leave", "u2")]
        assert (await rig.presence.members(CHANNEL, limit=10)).total == 0


async def test_rule_23_who_watches_is_told_the_set_and_then_each_change_once() -> None:
    async with open_delivery_rig() as rig:
        first = rig.session(principal=rig.user("u1"))
        reply = await first.subscribe(presence=True)
        assert [m["user"] for m in reply["members"]] == ["u1"]
        second = rig.session(principal=rig.user("u2"))
        reply = await second.subscribe(presence=True)
        assert sorted(m["user"] for m in reply["members"]) == ["u1", "u2"]
        await second.ask("presence", channel=CHANNEL, info={"a": 1})
        await until(lambda: rig.feed().presence.hurry())
        assert [(m["action"], m["member"]["user"]) for m in first.connection.of("presence")] == [
            ("join", "u2"),
            ("update", "u2"),
        ]
        assert [m["action"] for m in second.connection.of("presence")] == ["update"]


async def test_rule_23_a_session_that_unsubscribes_and_subscribes_at_once_is_present() -> None:
    """Its leave was told by a task, after it had entered anew: it was subscribed, and not there."""
    async with open_delivery_rig() as rig:
        user = rig.session(principal=rig.user("u1"))
        await user.subscribe()
        user.say("unsubscribe", channel=CHANNEL)
        await user.subscribe()
        await until(lambda: not rig.hub._tasks)
        page = await rig.presence.members(CHANNEL, limit=10)
        assert [member.user for member in page.members] == ["u1"]
        user.leave()
        await until(lambda: not rig.hub._tasks)
        assert (await rig.presence.members(CHANNEL, limit=10)).total == 0


async def test_rule_24_a_lost_change_is_made_up_for_by_the_whole_set() -> None:
    async with open_delivery_rig() as rig:
        watcher = rig.session()
        await watcher.subscribe(presence=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rig.presence.inner, "_sink", Deaf())
            await rig.session(principal=rig.user("u1")).subscribe()
        assert watcher.connection.of("presence") == []
        await rig.session(principal=rig.user("u2")).subscribe()
        await until(lambda: watcher.connection.of("presence"))
        (sync,) = watcher.connection.of("presence")
        assert sync["action"] == "sync"
        assert sorted(m["user"] for m in sync["members"]) == ["u1", "u2"]
        # From then on it is in step again.
        await rig.session(principal=rig.user("u3")).subscribe()
        await until(lambda: len(watcher.connection.of("presence")) == 2)
        assert watcher.connection.of("presence")[1]["member"]["user"] == "u3"


async def test_rule_24_a_sync_that_is_overtaken_by_changes_is_read_again() -> None:
    """It told the older set after the newer change; the set was wrong until the next change."""
    async with open_delivery_rig() as rig:
        watcher = rig.session()
        await watcher.subscribe(presence=True)
        rig.presence.gates["members"] = asyncio.Event()
        rig.hub.sync_presence(rig.feed())
        rig.hub.sync_presence(rig.feed())
        await until(lambda: rig.presence.calls["members"] == 2)
        await rig.session(principal=rig.user("u1")).subscribe()
        rig.presence.gates["members"].set()
        await until(lambda: len(watcher.connection.of("presence")) == 2)
        join, sync = watcher.connection.of("presence")
        assert (join["action"], sync["action"]) == ("join", "sync")
        assert [member["user"] for member in sync["members"]] == ["u1"]
        assert rig.presence.calls["members"] == 3


class Deaf:
    """A presence sink that hears nothing."""

    def on_presence(self, change: object) -> None:
        """Nothing comes."""
