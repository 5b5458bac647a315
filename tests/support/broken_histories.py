"""Histories that break a promise, for the tests of the checker; `PLANTED` has them all."""

from collections.abc import Callable, Sequence

import msgspec

from checker.records import (
    Closed,
    Delivery,
    Drained,
    Dump,
    Publish,
    Record,
    Reset,
    Scope,
    Seen,
    Strange,
    Subscribed,
)
from made_history import World


def made(world: World) -> list[Record]:
    """Return a small history in which everything is well."""
    a1 = world.clients[0]
    for channel in "abc":
        for _ in range(4):
            world.publish(channel, "acknowledged")
    world.deliver(a1, 2)
    world.go(a1)
    world.come(a1, True)
    world.publish("a", "refused")
    world.publish("a", "unknown")
    world.publish("a", "unknown", happens=False)
    world.enter(True)
    world.enter(False)
    world.enter(True)
    return world.finish()


def places(records: Sequence[Record], kind: type[Record], **fields: object) -> list[int]:
    """Return where records of a kind stand that have these fields."""
    return [
        place
        for place, record in enumerate(records)
        if isinstance(record, kind)
        and all(getattr(record, name) == value for name, value in fields.items())
    ]


def changed(records: list[Record], place: int, **fields: object) -> None:
    """Change one record."""
    records[place] = msgspec.structs.replace(records[place], **fields)


def lose_one(records: list[Record]) -> None:
    """The last event of a client never comes: no gap shows."""
    del records[places(records, Delivery, client="b2")[-1]]


def lose_in_the_middle(records: list[Record]) -> None:
    del records[places(records, Delivery, client="a2")[2]]


def lose_all(records: list[Record]) -> None:
    for place in reversed(places(records, Delivery, client="a2")):
        del records[place]


def lose_on_resuming(records: list[Record]) -> None:
    """It says that it resumed, and goes on further up."""
    (place,) = places(records, Subscribed, client="a1", recovered=True)
    following = records[places(records, Delivery, client="a1")[2]]
    assert isinstance(following, Delivery)
    changed(records, place, position=following.position)
    records.remove(following)


def conflate_the_newest(records: list[Record]) -> None:
    """Where only the newest event is promised, that one is."""
    del records[places(records, Delivery, client="c1")[-1]]


def conflate_in_silence(records: list[Record]) -> None:
    (place,) = places(records, Delivery, client="c1")
    changed(records, place, skipped=1)


def _rate(records: list[Record]) -> list[int]:
    """Give client a2 a rate, skip one event for it as it may be; return where its others stand."""
    scope = records[0]
    assert isinstance(scope, Scope)
    changed(records, 0, rated=("a2",))
    skip_elsewhere(records)
    return places(records, Delivery, client="a2")


def miscount_for_a_rate(records: list[Record]) -> None:
    changed(records, _rate(records)[-1], skipped=2)


def withhold_the_newest_for_a_rate(records: list[Record]) -> None:
    """All that comes is right, but for its end: what was acknowledged last never leaves."""
    for place in reversed(_rate(records)[-2:]):
        del records[place]


def repeat_for_a_rate(records: list[Record]) -> None:
    last = _rate(records)[-1]
    records.insert(last + 1, records[last])


def skip_elsewhere(records: list[Record]) -> None:
    last = places(records, Delivery, client="a2")[-1]
    changed(records, last, skipped=1)
    del records[last - 1]


def repeat_at_once(records: list[Record]) -> None:
    place = places(records, Delivery, client="a2")[1]
    records.insert(place + 1, records[place])


def repeat_elsewhere(records: list[Record]) -> None:
    """An id comes again, as the next event."""
    first, *_, last = places(records, Delivery, client="a2")
    delivery = records[first]
    assert isinstance(delivery, Delivery)
    changed(records, last, id=delivery.id, data=delivery.data)


def repeat_after_being_told(records: list[Record]) -> None:
    """Being told is no licence to repeat within an epoch."""
    place = places(records, Delivery, client="a2")[2]
    first = records[places(records, Delivery, client="a2")[0]]
    assert isinstance(first, Delivery)
    records.insert(place + 1, first)
    position = first.position.replace("-1-", "-0-")
    records.insert(
        place + 1,
        Reset(at=first.at, client="a2", session=first.session, channel="a", position=position),
    )


def swap_two(records: list[Record]) -> None:
    _first, one, two, *_ = places(records, Delivery, client="a2")
    records[one], records[two] = records[two], records[one]


def begin_an_epoch_in_silence(records: list[Record]) -> None:
    place = places(records, Delivery, client="a2")[-1]
    delivery = records[place]
    assert isinstance(delivery, Delivery)
    changed(records, place, position="0" * 16 + delivery.position[16:])


def break_the_chain(records: list[Record]) -> None:
    place = places(records, Delivery, client="a2")[2]
    delivery = records[place]
    assert isinstance(delivery, Delivery)
    changed(records, place, position=delivery.position[:-16] + "0" * 16)


def order_against_time(records: list[Record]) -> None:
    """What was published later stands before."""
    one, two = places(records, Publish, channel="b", outcome="acknowledged")[:2]
    first, second = records[one], records[two]
    assert isinstance(first, Publish)
    assert isinstance(second, Publish)
    changed(records, one, position=second.position)
    changed(records, two, position=first.position)


def acknowledge_another(records: list[Record]) -> None:
    one, two = places(records, Publish, channel="b", outcome="acknowledged")[:2]
    first = records[one]
    assert isinstance(first, Publish)
    changed(records, two, position=first.position)


def acknowledge_again_elsewhere(records: list[Record]) -> None:
    """A repeated publish is acknowledged as if it were another event."""
    one, two = places(records, Publish, channel="b", outcome="acknowledged")[:2]
    first, second = records[one], records[two]
    assert isinstance(first, Publish)
    assert isinstance(second, Publish)
    records.insert(two + 1, msgspec.structs.replace(first, position=second.position))


def deliver_what_was_refused(records: list[Record]) -> None:
    place = places(records, Publish, channel="b", outcome="acknowledged")[0]
    changed(records, place, outcome="refused", position="")


def deliver_what_nobody_published(records: list[Record]) -> None:
    del records[places(records, Publish, channel="b", outcome="acknowledged")[0]]


def deliver_something_else(records: list[Record]) -> None:
    changed(records, places(records, Delivery, client="b1")[0], data="something else")


def deliver_after_the_end(records: list[Record]) -> None:
    place = places(records, Delivery, client="b1")[1]
    changed(records, place, session="another")


def fork_in_silence(records: list[Record]) -> None:
    """Two clients are on two branches of one epoch."""
    last = places(records, Delivery, client="b1")[-1]
    delivery = records[last]
    assert isinstance(delivery, Delivery)
    changed(records, last, position=delivery.position[:-16] + "0" * 16)


def see_a_ghost(records: list[Record]) -> None:
    place = places(records, Seen, client="a1")[0]
    seen = records[place]
    assert isinstance(seen, Seen)
    assert seen.members is not None
    records.insert(place, msgspec.structs.replace(seen, members=(*seen.members, "ghost")))
    for each in places(records, Seen, client="a1")[1:]:
        after = records[each]
        assert isinstance(after, Seen)
        assert after.members is not None
        changed(records, each, members=(*after.members, "ghost"))
    later(records, 60)


def miss_a_member(records: list[Record]) -> None:
    changed(records, places(records, Seen, client="a1")[-1], members=())
    later(records, 60)


def later(records: list[Record], seconds: float) -> None:
    """Let the end come later."""
    (place,) = places(records, Drained)
    drained = records[place]
    changed(records, place, at=drained.at + seconds)


def dump(records: Sequence[Record]) -> tuple[int, tuple[tuple[str, str, str], ...]]:
    """Return where the dump of channel b stands, and its events."""
    (place,) = places(records, Dump, channel="b")
    found = records[place]
    assert isinstance(found, Dump)
    return place, found.events


def archive_less(records: list[Record]) -> None:
    place, events = dump(records)
    changed(records, place, events=events[:-1])


def archive_a_hole(records: list[Record]) -> None:
    place, events = dump(records)
    changed(records, place, events=(events[0], *events[2:]))


def archive_twice(records: list[Record]) -> None:
    place, events = dump(records)
    changed(records, place, events=(*events, events[-1]))


def archive_in_disorder(records: list[Record]) -> None:
    place, events = dump(records)
    changed(records, place, events=events[::-1])


def archive_another(records: list[Record]) -> None:
    place, events = dump(records)
    changed(records, place, events=(*events[:-1], (events[-1][0], *events[0][1:])))


def archive_nothing(records: list[Record]) -> None:
    place, _events = dump(records)
    del records[place]


def tell_a_wrong_gap(records: list[Record]) -> None:
    place, events = dump(records)
    gap = (events[0][0], events[1][0])
    changed(records, place, events=(events[0], *events[3:]), missing=(gap,))


def reset_for_ever(records: list[Record]) -> None:
    """It resets where nothing was lost."""
    last = places(records, Delivery, client="a2")[-1]
    delivery = records[last]
    assert isinstance(delivery, Delivery)
    reset = Reset(
        at=delivery.at,
        client="a2",
        session=delivery.session,
        channel="a",
        position=delivery.position,
    )
    records[last + 1 : last + 1] = [reset] * 1_001


def begin_anew(records: list[Record]) -> None:
    """It forgets where the client was."""
    (place,) = places(records, Subscribed, client="a1", recovered=True)
    changed(records, place, recovered=None)


def end_a_session(records: list[Record]) -> None:
    scope = records[0]
    assert isinstance(scope, Scope)
    changed(records, 0, endings=0)


def _close(records: list[Record], at: float, **fields: object) -> None:
    """Let a session of client a2 end where the history has come to its end, at some time."""
    (place,) = places(records, Drained)
    session = records[places(records, Delivery, client="a2")[-1]]
    assert isinstance(session, Delivery)
    closed = Closed(at=at, client="a2", session=session.session)
    records.insert(place, msgspec.structs.replace(closed, **fields))


def end_before_any_fault(records: list[Record]) -> None:
    """By a code that is documented, and told; but nothing had happened."""
    _close(records, 0, code=4001, told=True)


def _at_the_end(records: list[Record]) -> float:
    (place,) = places(records, Drained)
    return records[place].at


def end_by_a_failure(records: list[Record]) -> None:
    _close(records, _at_the_end(records), code=1011, told=True)


def end_for_good(records: list[Record]) -> None:
    """Nobody did what a client is told to stay away for."""
    _close(records, _at_the_end(records), code=4504, told=True)


def end_untold(records: list[Record]) -> None:
    _close(records, _at_the_end(records), code=4001)


def end_long_after_a_fault(records: list[Record]) -> None:
    later(records, 60)
    _close(records, _at_the_end(records))


def never_come_back(records: list[Record]) -> None:
    (place,) = places(records, Drained)
    session = records[places(records, Delivery, client="a2")[-1]]
    assert isinstance(session, Delivery)
    records.insert(place, Closed(at=session.at, client="a2", session=session.session))


def answer_strangely(records: list[Record]) -> None:
    records.insert(1, Strange(at=0, who="p", text="500"))


def never_end(records: list[Record]) -> None:
    del records[places(records, Drained)[0]]


PLANTED: list[tuple[Callable[[list[Record]], None], str]] = [
    (lose_one, "lost"),
    (lose_in_the_middle, "gap"),
    (lose_in_the_middle, "lost"),
    (lose_all, "lost"),
    (lose_on_resuming, "resumed"),
    (conflate_the_newest, "lost"),
    (conflate_in_silence, "gap"),
    (skip_elsewhere, "gap"),
    (miscount_for_a_rate, "gap"),
    (withhold_the_newest_for_a_rate, "lost"),
    (repeat_for_a_rate, "order"),
    (repeat_for_a_rate, "twice"),
    (repeat_at_once, "twice"),
    (repeat_at_once, "order"),
    (repeat_elsewhere, "twice"),
    (repeat_after_being_told, "twice"),
    (repeat_after_being_told, "order"),
    (swap_two, "order"),
    (begin_an_epoch_in_silence, "epoch"),
    (break_the_chain, "chain"),
    (order_against_time, "order"),
    (acknowledge_another, "position"),
    (acknowledge_again_elsewhere, "id"),
    (deliver_what_was_refused, "refused"),
    (deliver_what_nobody_published, "unknown"),
    (deliver_something_else, "changed"),
    (deliver_after_the_end, "unasked"),
    (fork_in_silence, "fork"),
    (see_a_ghost, "presence"),
    (miss_a_member, "presence"),
    (archive_less, "archive"),
    (archive_a_hole, "gap"),
    (archive_a_hole, "archive"),
    (archive_twice, "twice"),
    (archive_in_disorder, "order"),
    (archive_another, "position"),
    (archive_nothing, "archive"),
    (tell_a_wrong_gap, "gap"),
    (reset_for_ever, "resets"),
    (begin_anew, "resets"),
    (end_a_session, "endings"),
    (end_before_any_fault, "endings"),
    (end_by_a_failure, "endings"),
    (end_for_good, "endings"),
    (end_untold, "endings"),
    (end_long_after_a_fault, "endings"),
    (never_come_back, "absent"),
    (answer_strangely, "strange"),
    (never_end, "drained"),
]
