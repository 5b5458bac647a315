"""What any presence store must do: the sentences of `PresenceStore`."""

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.memory_presence import MemoryPresence
from pubsub.presence import Member, Members, PresenceChange, PresenceStore


@dataclass(slots=True)
class Heard:
    changes: list[PresenceChange] = field(default_factory=list)

    def on_presence(self, change: PresenceChange) -> None:
        self.changes.append(change)

    def short(self) -> list[tuple[str, str]]:
        return [(change.action, change.member.session) for change in self.changes]


class MakeStore(Protocol):
    def __call__(self) -> PresenceStore: ...


STORES: dict[str, MakeStore] = {"memory": MemoryPresence}


@pytest.fixture(params=list(STORES.values()), ids=list(STORES))
def store(request: pytest.FixtureRequest) -> PresenceStore:
    made: PresenceStore = request.param()
    return made


@pytest.fixture
def heard(store: PresenceStore) -> Heard:
    sink = Heard()
    store.bind(sink)
    return sink


def member(session: str, info: bytes = b"{}", user: str | None = None) -> Member:
    return Member(session, user, info)


async def test_who_enters_is_a_member_and_is_announced(store: PresenceStore, heard: Heard) -> None:
    mia = member("s1", b'{"n":1}', "mia")
    await store.enter("a", mia)
    assert heard.changes == [PresenceChange("a", "join", mia, 1)]
    assert await store.members("a", limit=10) == Members((mia,), 1, 1)


async def test_other_info_is_an_update(store: PresenceStore, heard: Heard) -> None:
    await store.enter("a", member("s1"))
    changed = member("s1", b'{"away":true}')
    await store.enter("a", changed)
    assert heard.changes[1:] == [PresenceChange("a", "update", changed, 2)]
    assert await store.members("a", limit=10) == Members((changed,), 1, 2)


async def test_the_same_info_announces_nothing(store: PresenceStore, heard: Heard) -> None:
    for _ in range(3):
        await store.enter("a", member("s1", b"[1]"))
    assert heard.short() == [("join", "s1")]
    assert (await store.members("a", limit=10)).version == 1


async def test_who_leaves_is_announced_as_it_was(store: PresenceStore, heard: Heard) -> None:
    mia = member("s1", b'{"n":1}', "mia")
    await store.enter("a", mia)
    await store.enter("a", member("s2"))
    await store.leave("a", "s1")
    assert heard.changes[2:] == [PresenceChange("a", "leave", mia, 3)]
    assert await store.members("a", limit=10) == Members((member("s2"),), 1, 3)


async def test_leaving_without_being_there_is_nothing(store: PresenceStore, heard: Heard) -> None:
    await store.leave("a", "s1")
    await store.enter("a", member("s1"))
    await store.leave("a", "s2")
    await store.leave("a", "s1")
    await store.leave("a", "s1")
    assert heard.short() == [("join", "s1"), ("leave", "s1")]


async def test_a_channel_nobody_entered_is_empty(store: PresenceStore, heard: Heard) -> None:
    assert await store.members("a", limit=10) == Members((), 0, 0)
    assert heard.changes == []


async def test_channels_are_apart(store: PresenceStore, heard: Heard) -> None:
    await store.enter("a", member("s1"))
    await store.enter("b", member("s1"))
    await store.leave("a", "s1")
    assert (await store.members("b", limit=10)).total == 1
    assert [(change.channel, change.version) for change in heard.changes] == [
        ("a", 1),
        ("b", 1),
        ("a", 2),
    ]


async def test_a_version_goes_on_when_the_set_was_empty(store: PresenceStore, heard: Heard) -> None:
    """A version that began anew looked like an earlier state, so a lost leave stayed lost."""
    await store.enter("a", member("s1"))
    await store.leave("a", "s1")
    assert await store.members("a", limit=10) == Members((), 0, 2)
    await store.enter("a", member("s2"))
    assert [change.version for change in heard.changes] == [1, 2, 3]


async def test_pages_are_ordered_by_session(store: PresenceStore, heard: Heard) -> None:
    sessions = [f"s{n:02}" for n in range(25)]
    for session in reversed(sessions):
        await store.enter("a", member(session))
    seen: list[str] = []
    cursor: str | None = None
    sizes = []
    while True:
        page = await store.members("a", cursor=cursor, limit=10)
        assert (page.total, page.version) == (25, 25)
        seen += [one.session for one in page.members]
        sizes.append(len(page.members))
        if page.cursor is None:
            break
        cursor = page.cursor
    assert seen == sessions
    assert sizes == [10, 10, 5]


async def test_a_full_last_page_has_no_cursor(store: PresenceStore, heard: Heard) -> None:
    for session in ("s1", "s2"):
        await store.enter("a", member(session))
    assert (await store.members("a", limit=2)).cursor is None
    assert (await store.members("a", limit=1)).cursor is not None


async def test_a_cursor_outlives_the_session_it_stands_on(
    store: PresenceStore, heard: Heard
) -> None:
    for session in ("s1", "s2", "s3", "s4"):
        await store.enter("a", member(session))
    page = await store.members("a", limit=2)
    await store.leave("a", "s2")
    rest = await store.members("a", cursor=page.cursor, limit=2)
    assert [one.session for one in rest.members] == ["s3", "s4"]
    for session in ("s1", "s3", "s4"):
        await store.leave("a", session)
    assert (await store.members("a", cursor=page.cursor, limit=2)).members == ()


@pytest.mark.parametrize("cursor", ["", "s1", "!", "czE=", "czE\n", "é", "\ud800", "_w", "czF"])
async def test_a_cursor_that_nobody_gave_out_is_refused(
    store: PresenceStore, heard: Heard, cursor: str
) -> None:
    await store.enter("a", member("s1"))
    for channel in ("a", "empty"):
        with pytest.raises(ValueError, match="cursor"):
            await store.members(channel, cursor=cursor, limit=10)


steps = st.lists(
    st.tuples(
        st.sampled_from(["enter", "leave"]),
        st.sampled_from(["a", "b"]),
        st.sampled_from(["s1", "s2", "s3", "Z", "é"]),
        st.sampled_from([b"1", b"2"]),
    ),
    max_size=40,
)


@pytest.mark.parametrize("make", list(STORES.values()), ids=list(STORES))
@given(steps=steps, limit=st.integers(1, 4))
def test_whoever_follows_the_changes_holds_the_set(
    make: MakeStore, steps: list[tuple[str, str, str, bytes]], limit: int
) -> None:
    async def body() -> None:
        store, heard = make(), Heard()
        store.bind(heard)
        model: dict[str, dict[str, Member]] = {"a": {}, "b": {}}
        for action, channel, session, info in steps:
            if action == "enter":
                await store.enter(channel, member(session, info))
                model[channel][session] = member(session, info)
            else:
                await store.leave(channel, session)
                model[channel].pop(session, None)
        for channel, expected in model.items():
            changes = [change for change in heard.changes if change.channel == channel]
            assert [change.version for change in changes] == list(range(1, len(changes) + 1))
            followed: dict[str, Member] = {}
            for change in changes:
                there = change.member.session in followed
                assert there == (change.action != "join")
                followed[change.member.session] = change.member
                if change.action == "leave":
                    del followed[change.member.session]
            assert followed == expected
            assert await read_all(store, channel, limit) == sorted(expected)

    asyncio.run(body())


async def read_all(store: PresenceStore, channel: str, limit: int) -> list[str]:
    seen: list[str] = []
    page = await store.members(channel, limit=limit)
    while True:
        seen += [one.session for one in page.members]
        if page.cursor is None:
            assert len(seen) == page.total
            return seen
        page = await store.members(channel, cursor=page.cursor, limit=limit)
