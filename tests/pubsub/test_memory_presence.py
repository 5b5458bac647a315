"""The presence store in memory: what it remembers of sets that became empty."""

import pytest

from pubsub.memory_presence import MemoryPresence
from pubsub.presence import Member, PresenceChange


class Versions:
    def __init__(self) -> None:
        self.of: dict[str, list[int]] = {}

    def on_presence(self, change: PresenceChange) -> None:
        self.of.setdefault(change.channel, []).append(change.version)

    def watched(self) -> dict[str, int]:
        raise AssertionError("this store loses nothing, so it does not ask")

    def on_presence_version(self, channel: str, version: int) -> None:
        raise AssertionError("this store loses nothing, so it does not compare")


@pytest.fixture
def versions() -> Versions:
    return Versions()


@pytest.fixture
def store(versions: Versions) -> MemoryPresence:
    made = MemoryPresence(max_empty=2)
    made.bind(versions)
    return made


async def come_and_go(store: MemoryPresence, channel: str, times: int = 1) -> None:
    for _ in range(times):
        await store.enter(channel, Member("s", None))
        await store.leave(channel, "s")


async def test_the_last_empty_sets_keep_their_versions(
    store: MemoryPresence, versions: Versions
) -> None:
    await come_and_go(store, "a", 3)
    await come_and_go(store, "b")
    await come_and_go(store, "a")
    assert versions.of == {"a": [1, 2, 3, 4, 5, 6, 7, 8], "b": [1, 2]}


async def test_a_forgotten_version_never_goes_backwards(
    store: MemoryPresence, versions: Versions
) -> None:
    """Whoever saw version 6 of `a` must not take a later set for that one."""
    await come_and_go(store, "a", 3)
    await come_and_go(store, "b")
    await come_and_go(store, "c")
    assert (await store.members("a", limit=1)).version == 6
    assert (await store.members("b", limit=1)).version == 2
    await come_and_go(store, "d")
    assert versions.of["d"] == [7, 8]
    await come_and_go(store, "a")
    assert versions.of["a"][6:] == [7, 8]


async def test_the_longest_empty_is_forgotten_first(
    store: MemoryPresence, versions: Versions
) -> None:
    for channel in ("a", "b", "a", "c"):
        await come_and_go(store, channel)
    assert (await store.members("a", limit=1)).version == 4
    assert (await store.members("b", limit=1)).version == 2
    await come_and_go(store, "b")
    assert versions.of["b"] == [1, 2, 3, 4]


async def test_a_limit_of_zero_asks_for_the_total(store: MemoryPresence) -> None:
    await store.enter("a", Member("s", None))
    page = await store.members("a", limit=0)
    assert (page.members, page.total, page.cursor) == ((), 1, None)
