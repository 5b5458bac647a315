"""The ids of published events: generations, their end, and the bound over all channels."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pubsub.idempotency import ChannelIds, PublishedIds
from pubsub.litter import Litter
from pubsub.position import start

AT = start("0" * 16)


def add(ids: PublishedIds, channel: ChannelIds, names: list[str], now: float) -> list[str]:
    """Do what a publish does; return the names that were new."""
    recent, older = ids.open(channel, now)
    new = [n for n in names if n not in recent and not any(n in old for old in older)]
    recent.update(dict.fromkeys(new, AT))
    if new:
        ids.added(len(new), now)
    return new


def held(channel: ChannelIds) -> int:
    return len(channel.recent or ()) + sum(len(old) for old in channel.older)


steps = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from("abcdef"), st.sampled_from([0, 1, 4, 9, 10, 25])),
    max_size=60,
)


@given(steps)
def test_an_id_is_remembered_for_one_window_and_no_longer_than_two(
    steps: list[tuple[int, str, int]],
) -> None:
    ids, now = PublishedIds(10.0, 0, Litter()), 0.0
    channels = (ChannelIds(), ChannelIds())
    taken: dict[tuple[int, str], float] = {}
    for number, name, wait_s in steps:
        now += wait_s
        new = bool(add(ids, channels[number], [name], now))
        age = now - taken.get((number, name), -1_000.0)
        assert new or age < 20
        assert not new or age >= 10
        if new:
            taken[number, name] = now
        assert ids.count >= sum(held(channel) for channel in channels)
    while ids.sweep(now + 20, 1):
        pass
    assert ids.count == sum(held(channel) for channel in channels) == 0


def test_what_has_expired_goes_without_a_publish() -> None:
    ids = PublishedIds(10.0, 0, Litter())
    channels = [ChannelIds() for _ in range(5)]
    for channel in channels:
        add(ids, channel, ["a", "b"], 0.0)
    assert ids.sweep(19.9, 100) == 0
    assert ids.count == 10
    assert ids.sweep(20.0, 2) == 2
    assert ids.count == 6
    assert ids.sweep(20.0, 100) == 3
    assert ids.count == 0
    assert all(channel.recent is None for channel in channels)


@pytest.mark.expect_log("pubsub.idempotency", "more than 16 event ids")
def test_beyond_the_bound_the_oldest_are_forgotten_and_counted() -> None:
    ids = PublishedIds(10.0, 16, Litter())
    old, hot = ChannelIds(), ChannelIds()
    add(ids, old, ["x"], 0.0)
    for number in range(16):
        add(ids, hot, [f"n{number}"], 1.0)
    assert (ids.count, ids.forgotten_early) == (16, 1)
    assert held(old) == 0
    add(ids, hot, ["n16"], 1.0)
    # Of a channel that fills the bound, only the oldest part goes.
    assert (ids.count, ids.forgotten_early) == (15, 3)
    assert add(ids, hot, [f"n{number}" for number in range(17)], 1.0) == ["n0", "n1"]


@pytest.mark.expect_log("pubsub.idempotency", "8 forgotten")
def test_a_batch_greater_than_the_bound_is_forgotten_whole() -> None:
    ids = PublishedIds(10.0, 4, Litter())
    channel = ChannelIds()
    add(ids, channel, [str(number) for number in range(8)], 0.0)
    assert (ids.count, held(channel), ids.forgotten_early) == (0, 0, 8)


@pytest.mark.expect_log("pubsub.idempotency", "forgotten before their time")
def test_the_log_tells_of_it_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    ids, channel = PublishedIds(1_000.0, 1, Litter()), ChannelIds()
    told: list[int] = []
    for now in (0.0, 0.0, 1.0, 59.9, 60.0, 61.0, 125.0):
        add(ids, channel, [f"a{now}{len(told)}"], now)
        told.append(len(caplog.records))
    assert told == [0, 1, 1, 1, 2, 2, 3]


def test_a_big_generation_is_freed_in_pieces() -> None:
    litter = Litter()
    ids, channel = PublishedIds(10.0, 0, litter), ChannelIds()
    add(ids, channel, [str(number) for number in range(5_000)], 0.0)
    assert ids.sweep(20.0, 10) == 1
    assert (ids.count, held(channel)) == (0, 0)
    assert litter
    # A publish takes twice its own part away.
    add(ids, channel, [str(number) for number in range(2_000)], 20.0)
    assert litter.free(10_000) == 1_000


def test_a_window_of_zero_remembers_nothing() -> None:
    ids, channel = PublishedIds(0.0, 0, Litter()), ChannelIds()
    for _ in range(3):
        assert add(ids, channel, ["a"], 5.0) == ["a"]
    assert ids.count <= 1
