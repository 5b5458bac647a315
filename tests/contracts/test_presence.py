"""What any presence store must do: the sentences of `PresenceStore`."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from presence_rig import CHANNELS, PRESENCE_PARAMS, OpenPresence, PresenceRig, member
from pubsub.presence import Member, Members, PresenceChange, PresenceStore


@pytest.fixture(params=PRESENCE_PARAMS)
def open_rig(request: pytest.FixtureRequest) -> OpenPresence:
    rig: OpenPresence = request.param
    return rig


async def version(rig: PresenceRig, channel: str = "a") -> int:
    return (await rig.store.members(channel, limit=1)).version


async def test_who_enters_is_a_member_and_is_announced(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        mia = member("s1", b'{"n":1}', "mia")
        first = await version(rig) + 1
        await rig.store.enter("a", mia)
        await rig.settle()
        assert rig.heard.changes == [PresenceChange("a", "join", mia, first)]
        assert await rig.store.members("a", limit=10) == Members((mia,), 1, first)


async def test_other_info_is_an_update(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        await rig.store.enter("a", member("s1"))
        first = await version(rig)
        changed = member("s1", b'{"away":true}')
        await rig.store.enter("a", changed)
        await rig.settle()
        assert rig.heard.changes[1:] == [PresenceChange("a", "update", changed, first + 1)]
        assert await rig.store.members("a", limit=10) == Members((changed,), 1, first + 1)


async def test_the_same_info_announces_nothing(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        for _ in range(3):
            await rig.store.enter("a", member("s1", b"[1]"))
        await rig.settle()
        assert rig.heard.short() == [("join", "s1")]
        assert await version(rig) == rig.heard.changes[0].version


async def test_who_leaves_is_announced_as_it_was(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        mia = member("s1", b'{"n":1}', "mia")
        await rig.store.enter("a", mia)
        first = await version(rig)
        await rig.store.enter("a", member("s2"))
        await rig.store.leave("a", "s1")
        await rig.settle()
        assert rig.heard.changes[2:] == [PresenceChange("a", "leave", mia, first + 2)]
        assert await rig.store.members("a", limit=10) == Members((member("s2"),), 1, first + 2)


async def test_leaving_without_being_there_is_nothing(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        await rig.store.leave("a", "s1")
        await rig.store.enter("a", member("s1"))
        await rig.store.leave("a", "s2")
        await rig.store.leave("a", "s1")
        await rig.store.leave("a", "s1")
        await rig.settle()
        assert rig.heard.short() == [("join", "s1"), ("leave", "s1")]


async def test_a_channel_nobody_entered_is_empty(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        assert await rig.store.members("a", limit=10) == Members((), 0, await version(rig))
        await rig.settle()
        assert rig.heard.changes == []


async def test_channels_are_apart(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        first = {channel: await version(rig, channel) + 1 for channel in CHANNELS}
        await rig.store.enter("a", member("s1"))
        await rig.store.enter("b", member("s1"))
        await rig.store.leave("a", "s1")
        assert (await rig.store.members("b", limit=10)).total == 1
        await rig.settle()
        assert [(change.channel, change.version) for change in rig.heard.changes] == [
            ("a", first["a"]),
            ("b", first["b"]),
            ("a", first["a"] + 1),
        ]


async def test_a_version_goes_on_when_the_set_was_empty(open_rig: OpenPresence) -> None:
    """A version that began anew looked like an earlier state, so a lost leave stayed lost."""
    async with open_rig() as rig:
        await rig.store.enter("a", member("s1"))
        first = await version(rig)
        await rig.store.leave("a", "s1")
        assert await rig.store.members("a", limit=10) == Members((), 0, first + 1)
        await rig.store.enter("a", member("s2"))
        await rig.settle()
        assert [change.version for change in rig.heard.changes] == [first, first + 1, first + 2]


async def test_pages_are_ordered_by_session(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        sessions = [f"s{n:02}" for n in range(25)]
        for session in reversed(sessions):
            await rig.store.enter("a", member(session))
        last = await version(rig)
        seen: list[str] = []
        cursor: str | None = None
        sizes = []
        while True:
            page = await rig.store.members("a", cursor=cursor, limit=10)
            assert (page.total, page.version) == (25, last)
            seen += [one.session for one in page.members]
            sizes.append(len(page.members))
            if page.cursor is None:
                break
            cursor = page.cursor
        assert seen == sessions
        assert sizes == [10, 10, 5]


async def test_a_full_last_page_has_no_cursor(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        for session in ("s1", "s2"):
            await rig.store.enter("a", member(session))
        assert (await rig.store.members("a", limit=2)).cursor is None
        assert (await rig.store.members("a", limit=1)).cursor is not None


async def test_a_cursor_outlives_the_session_it_stands_on(open_rig: OpenPresence) -> None:
    async with open_rig() as rig:
        for session in ("s1", "s2", "s3", "s4"):
            await rig.store.enter("a", member(session))
        page = await rig.store.members("a", limit=2)
        await rig.store.leave("a", "s2")
        rest = await rig.store.members("a", cursor=page.cursor, limit=2)
        assert [one.session for one in rest.members] == ["s3", "s4"]
        for session in ("s1", "s3", "s4"):
            await rig.store.leave("a", session)
        assert (await rig.store.members("a", cursor=page.cursor, limit=2)).members == ()


@pytest.mark.parametrize("cursor", ["", "s1", "!", "czE=", "czE\n", "é", "\ud800", "_w", "czF"])
async def test_a_cursor_that_nobody_gave_out_is_refused(
    open_rig: OpenPresence, cursor: str
) -> None:
    async with open_rig() as rig:
        await rig.store.enter("a", member("s1"))
        for channel in ("a", "empty"):
            with pytest.raises(ValueError, match="cursor"):
                await rig.store.members(channel, cursor=cursor, limit=10)


steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["s1", "s2", "s3", "Z", "é"]),
        st.sampled_from([b"1", b"2"]),
    ),
    max_size=40,
)


@pytest.mark.parametrize("open_rig", PRESENCE_PARAMS)
@given(steps=steps, limit=st.integers(1, 4))
@settings(max_examples=30)
def test_whoever_follows_the_changes_holds_the_set(
    open_rig: OpenPresence, steps: list[tuple[str, str, str, bytes]], limit: int
) -> None:
    async def body() -> None:
        async with open_rig() as rig:
            await follow(rig, steps, limit)

    asyncio.run(body())


async def follow(rig: PresenceRig, steps: list[tuple[str, str, str, bytes]], limit: int) -> None:
    model: dict[str, dict[str, Member]] = {channel: {} for channel in CHANNELS}
    first = {channel: await version(rig, channel) + 1 for channel in CHANNELS}
    for action, channel, session, info in steps:
        if action == "enter":
            await rig.store.enter(channel, member(session, info))
            model[channel][session] = member(session, info)
        else:
            await rig.store.leave(channel, session)
            model[channel].pop(session, None)
    await rig.settle()
    for channel, expected in model.items():
        changes = [change for change in rig.heard.changes if change.channel == channel]
        numbers = range(first[channel], first[channel] + len(changes))
        assert [change.version for change in changes] == list(numbers)
        followed: dict[str, Member] = {}
        for change in changes:
            there = change.member.session in followed
            assert there == (change.action != "join")
            followed[change.member.session] = change.member
            if change.action == "leave":
                del followed[change.member.session]
        assert followed == expected
        assert await read_all(rig.store, channel, limit) == sorted(expected)


async def read_all(store: PresenceStore, channel: str, limit: int) -> list[str]:
    seen: list[str] = []
    page = await store.members(channel, limit=limit)
    while True:
        seen += [one.session for one in page.members]
        if page.cursor is None:
            assert len(seen) == page.total
            return seen
        page = await store.members(channel, cursor=page.cursor, limit=limit)
