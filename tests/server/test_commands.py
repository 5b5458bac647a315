"""Commands: what the tests over real sockets cannot bring about."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from live_rig import live, until
from pubsub.broker import History
from pubsub.event import Event
from pubsub.position import Position, start
from pubsub.presence import Member
from server.commands import channel_name, knows, position
from server.errors import BadRequest

EPOCH, OTHER = "a" * 16, "b" * 16


def history(*offsets: int, top: int = 5, epoch: str = EPOCH) -> History:
    events = tuple(
        Event(
            channel="a",
            position=Position(EPOCH, offset, "c" * 16),
            prev="c" * 16,
            id=str(offset),
            name="n",
            data=b"1",
            time=0,
        )
        for offset in offsets
    )
    return History(events=events, top=Position(epoch, top, "c" * 16), floor=0)


def test_channel_names() -> None:
    assert channel_name("a.b") == "a.b"
    with pytest.raises(BadRequest):
        channel_name("a.*")


def test_positions() -> None:
    assert position(None, "since") is None
    assert position(str(start(EPOCH)), "since") == start(EPOCH)
    with pytest.raises(BadRequest, match="since"):
        position("junk", "since")


def test_which_positions_a_channel_knows() -> None:
    at = Position(EPOCH, 4, "c" * 16)
    assert knows(history(2, 3), at)
    assert knows(history(2, 3, epoch=OTHER), at)  # of an epoch whose events are kept still
    assert not knows(history(2, 3), Position(OTHER, 4, "c" * 16))
    assert not knows(history(2, 3), Position(EPOCH, 6, "c" * 16))
    assert knows(history(), at)
    assert not knows(history(), Position(EPOCH, 6, "c" * 16))


async def test_an_entry_that_comes_too_late_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The session went away while its entry was on the way to the presence set."""
    async with live() as rig:
        client = await rig.ws()
        await client.call("subscribe", channel="late.a")
        presence = rig.node.presence
        enter, go, waiting = presence.enter, asyncio.Event(), asyncio.Event()

        async def later(channel: str, member: Member) -> None:
            waiting.set()
            await go.wait()
            await enter(channel, member)

        monkeypatch.setattr(presence, "enter", later)
        await client.send(**client.numbered("presence", channel="late.a", info={"x": 1}))
        await waiting.wait()
        client.reset()
        await until(lambda: not rig.sessions)
        go.set()
        found: list[Any] = [1]
        for _ in range(200):
            found = list((await presence.members("late.a", limit=10)).members)
            if not found:
                break
            await asyncio.sleep(0.005)
        assert not found
