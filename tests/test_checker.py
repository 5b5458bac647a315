"""The checker of histories: it passes what keeps every promise, and finds every broken one."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import checker
from broken_histories import PLANTED, changed, dump, later, made, places, skip_elsewhere
from checker import check
from checker.records import (
    Closed,
    Delivery,
    Drained,
    Fault,
    Present,
    Publish,
    Record,
    Reset,
    Seen,
    Subscribed,
    read_history,
    write_history,
)
from made_history import ROOM, World

STEPS = st.lists(st.integers(0, 2_000), max_size=60)


def rules(records: Sequence[Record]) -> set[str]:
    """Return which rules a history breaks."""
    return {violation.rule for violation in check(records)}


def test_an_empty_history_has_no_end() -> None:
    assert rules([]) == {"drained"}
    assert rules([Drained(at=1)]) == set()


def test_what_keeps_every_promise_passes() -> None:
    assert check(made(World())) == []


@given(STEPS, st.integers(0, 99))
def test_whatever_happens_nothing_is_found_while_promises_are_kept(
    steps: list[int], seed: int
) -> None:
    world = World(seed)
    for step in steps:
        world.step(step)
    assert check(world.finish()) == []


def test_a_history_is_the_same_in_a_file(tmp_path: Path) -> None:
    world = World()
    for step in range(400):
        world.step(step * 7)
    records = world.finish()
    write_history(tmp_path / "history.jsonl", records)
    assert list(read_history(tmp_path / "history.jsonl")) == records
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"kind":"rumour","at":1}\n')
    with pytest.raises(msgspec.ValidationError):
        list(read_history(tmp_path / "history.jsonl"))


def test_a_client_with_a_rate_may_be_sent_the_newest_only() -> None:
    records = made(World())
    skip_elsewhere(records)
    assert rules(records) == {"gap", "lost"}
    changed(records, 0, rated=("a2",))
    assert rules(records) == set()


# ---- each kind of violation


@pytest.mark.parametrize(("plant", "rule"), PLANTED)
def test_what_is_planted_is_found(plant: Callable[[list[Record]], None], rule: str) -> None:
    records = made(World())
    plant(records)
    assert rule in rules(records)


def test_every_rule_of_the_table_is_planted() -> None:
    assert checker.__doc__ is not None
    rows = [line.split("|")[1] for line in checker.__doc__.splitlines() if line.startswith("| ")]
    told = {name.strip() for row in rows[2:] for name in row.split(",")}
    assert told == {rule for _plant, rule in PLANTED} | {"history"}


@given(STEPS, st.integers(0, 99), st.data())
def test_whatever_happens_one_broken_delivery_is_found(
    steps: list[int], seed: int, data: st.DataObject
) -> None:
    """Take out one delivery (of a channel that does not conflate), or repeat or swap it."""
    world = World(seed)
    for step in steps:
        world.step(step)
    records = world.finish()
    assume(found := [p for ch in "ab" for p in places(records, Delivery, channel=ch)])
    place = data.draw(st.sampled_from(found))
    how = data.draw(st.sampled_from(["gone", "again", "other", "changed"]))
    delivery = records[place]
    assert isinstance(delivery, Delivery)
    if how == "gone":
        # What was not acknowledged may be missing where nothing follows; a telling excuses all.
        own = [
            each
            for each in records[place + 1 :]
            if isinstance(each, Delivery | Subscribed | Reset)
            and (each.client, each.channel) == (delivery.client, delivery.channel)
        ]
        if not own:
            assume(places(records, Publish, id=delivery.id, outcome="acknowledged"))
        else:
            assume(isinstance(own[0], Delivery) or getattr(own[0], "recovered", False))
        del records[place]
    elif how == "again":
        records.insert(place + 1, delivery)
    elif how == "other":
        changed(records, place, position=delivery.position[:-16] + "0" * 16)
    else:
        changed(records, place, data="something else")
    assert rules(records)


# ---- what is no violation


def test_a_client_that_went_need_not_have_everything() -> None:
    records = made(World())
    last = places(records, Delivery, client="a2")[-1]
    delivery = records[last]
    assert isinstance(delivery, Delivery)
    records[last] = Closed(at=delivery.at, client="a2", session=delivery.session, last=True)
    assert check(records) == []


def test_an_unknown_publish_may_or_may_not_have_happened() -> None:
    world = World()
    world.publish("a", "unknown")
    world.publish("a", "unknown", happens=False)
    assert check(world.finish()) == []


def test_what_was_lost_with_an_epoch_was_told() -> None:
    """A fail-over loses a tail that one client saw; both are told, and it is published again."""
    world = World()
    channel, a1 = world.channels["a"], world.clients[0]
    world.publish("a", "acknowledged")
    world.deliver(a1)
    world.publish("a", "acknowledged")
    lost = channel.kept.pop()
    world.deliver(a1)
    world.fork(channel)
    channel.add(lost[1], lost[2])
    records = world.finish()
    assert check(records) == []
    # Whoever is not told of it is found, be it that it saw the branch or that it missed it.
    for client in ("a1", "a2"):
        silent = list(records)
        del silent[places(silent, Reset, client=client)[0]]
        assert rules(silent) & {"epoch", "lost"}
    # And where nothing may be lost, the archive has to have it.
    kept = list(records)
    changed(kept, 0, loses=False)
    del kept[places(kept, Publish, id=lost[1])[0]]
    assert rules(kept)


def test_an_event_may_stand_in_both_branches_of_an_epoch_that_is_over() -> None:
    """A master that was replaced wakes: it sends out at one place what is acknowledged at another.

    A publish waited in it, and was sent again to the master that had taken over meanwhile.
    """
    world = World()
    channel, a1 = world.channels["a"], world.clients[0]
    world.publish("a", "acknowledged")
    world.deliver(a1)
    before = channel.top
    world.publish("a", "unknown")
    world.deliver(a1)
    _place, event_id, data = channel.kept.pop()
    first = next(each for each in world.records if getattr(each, "id", "") == event_id)
    channel.kept.append((channel.top, event_id, data))
    # The branch of the new master has another event first.
    channel.top = before
    world.publish("a", "acknowledged")
    again = channel.add(event_id, data)
    assert isinstance(first, Publish)
    world.add(
        Publish,
        began=world.now,
        publisher="p",
        channel="a",
        id=event_id,
        data=data,
        outcome="acknowledged",
        position=again,
    )
    world.fork(channel)
    channel.kept = [each for each in channel.kept if each[1] != event_id or each[0] == again]
    records = world.finish()
    assert check(records) == []
    changed(records, 0, loses=False)
    assert "id" in rules(records)


def test_a_branch_begins_anew_where_the_other_had_acknowledged_events() -> None:
    """What was acknowledged there before is lost, so nothing has to stand behind it."""
    world = World()
    channel, a1 = world.channels["a"], world.clients[0]
    before = channel.top
    for _ in range(2):
        world.publish("a", "acknowledged")
        world.deliver(a1)
        channel.kept.pop()
    channel.top = before
    world.publish("a", "acknowledged")
    world.fork(channel)
    records = world.finish()
    assert check(records) == []
    changed(records, 0, loses=False)
    assert "order" in rules(records)


def test_a_gap_in_the_archive_that_is_told_is_none() -> None:
    records = made(World())
    place, events = dump(records)
    gap = (events[0][0], events[2][0])
    changed(records, place, events=(events[0], *events[3:]), missing=(gap,))
    assert check(records) == []


def test_a_wrong_room_is_excused_while_a_fault_lasts() -> None:
    world = World()
    world.stale()
    records = world.finish()
    assert check(records) == []
    faultless = [record for record in records if not isinstance(record, Fault)]
    assert rules(faultless) == {"presence"}


def test_nobody_sees_a_wrong_room_who_sees_none() -> None:
    world = World()
    world.enter(True)
    records = world.finish()
    (place,) = places(records, Present)
    client = records[places(records, Seen, client="a1")[0]]
    records.insert(place, Seen(at=client.at, client="a1", channel=ROOM, members=None))
    for each in reversed(places(records, Seen, client="a1")[1:]):
        del records[each]
    later(records, 60)
    assert check(records) == []
