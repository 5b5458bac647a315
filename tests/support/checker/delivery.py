"""What was seen in a run? This file: whether it is what delivery promises (pure)."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from checker.history import History, Place, Published, Thread, Violation, follows, place
from checker.records import Delivery, Reset, Subscribed


def check_delivery(history: History) -> Iterator[Violation]:
    """Yield what contradicts the promise about events."""
    for thread in history.threads.values():
        yield from _unbroken(history, thread)
        yield from _once(thread)
        yield from _published(history, thread)
        yield from _complete(history, thread)
    yield from _one_event_to_a_place(history)
    yield from _one_place_to_an_event(history)
    yield from _real_order(history)
    yield from _forks_are_told(history)


def _unbroken(history: History, thread: Thread) -> Iterator[Violation]:
    """Each event chains to the one before, and what resumes goes on where it was."""
    conflates = history.conflates(thread)
    session, top = "", None
    for record in thread.records:
        at = place(record.position)
        if isinstance(record, Subscribed):
            if record.recovered and at != top:
                yield Violation("resumed", f"{thread.name} was at {top}, and resumed at {at}")
            session = record.session
        elif record.session != session or top is None:
            yield Violation("unasked", f"{thread.name} got {record} outside of a subscription")
        if isinstance(record, Delivery) and top is not None:
            yield from _step(thread, top, at, record, conflates)
        elif top is not None and at.epoch == top.epoch and at.offset < top.offset:
            yield Violation("order", f"{thread.name} was sent back from {top} to {at}")
        top = at


def _step(
    thread: Thread, top: Place, at: Place, event: Delivery, conflates: bool
) -> Iterator[Violation]:
    if event.skipped and not conflates:
        yield Violation("gap", f"{thread.name} was not sent {event.skipped} before {at}")
    if at.epoch != top.epoch:
        yield Violation("epoch", f"{thread.name} got {at} after {top} and was told nothing")
    elif at.offset <= top.offset:
        yield Violation("order", f"{thread.name} got {at} after {top}")
    elif at.offset != top.offset + 1 + event.skipped:
        yield Violation("gap", f"{thread.name} got {at} after {top}")
    elif not event.skipped and at.check != follows(top.check, event.id):
        yield Violation("chain", f"{thread.name} got {event.id} at {at}, which is not after {top}")


def _once(thread: Thread) -> Iterator[Violation]:
    """No event comes twice, unless its first place went with an epoch, and that was told."""
    known: dict[str, str] = {}
    for event, at in thread.got():
        if known.get(event.id) == at.epoch:
            yield Violation("twice", f"{thread.name} got {event.id} again at {at}")
        known[event.id] = at.epoch


def _published(history: History, thread: Thread) -> Iterator[Violation]:
    """What comes was published, as it was published, and was not refused."""
    for event, _at in thread.got():
        yield from was_published(history, thread.name, thread.channel, event.id, event.data)


def was_published(
    history: History, who: str, channel: str, event_id: str, data: str
) -> Iterator[Violation]:
    """Yield what is wrong with an event that somebody has."""
    published = history.events.get((channel, event_id))
    if published is None:
        yield Violation("unknown", f"{who} got {event_id}, which nobody published")
    elif published.refused:
        yield Violation("refused", f"{who} got {event_id}, which was refused")
    elif published.data != data:
        yield Violation("changed", f"{who} got {event_id} as {data!r}, not {published.data!r}")


def _complete(history: History, thread: Thread) -> Iterator[Violation]:
    """Whoever is there at the end has all that was acknowledged, or was told."""
    if thread.client in history.gone:
        return
    got = {event.id for event, _at in thread.got()}
    tellings = list(thread.tellings())
    newest = dict[str, int]()
    if history.conflates(thread):
        newest = {at.epoch: at.offset for _event, at in thread.got()}
    for event in acknowledged(history, thread.channel):
        at = event.places[-1]
        if event.id in got or newest.get(at.epoch, -1) > at.offset:
            continue
        if not any(each.excuses(event, at) for each in tellings):
            yield Violation("lost", f"{thread.name} never got {event.id} at {at}")


def acknowledged(history: History, channel: str) -> list[Published]:
    """Return the events of a channel that were acknowledged."""
    return [each for each in history.events.values() if each.channel == channel and each.places]


def _witnesses(history: History) -> Iterator[tuple[str, str, Place, str]]:
    """Yield who says of which channel that an event stands at a place."""
    for event in history.events.values():
        for at in event.places:
            yield "the acknowledgement", event.channel, at, event.id
    for thread in history.threads.values():
        for delivered, at in thread.got():
            yield thread.client, thread.channel, at, delivered.id
    for dump in history.dumps:
        for text, event_id, _data in dump.events:
            yield f"the {dump.store}", dump.channel, place(text), event_id


def _one_event_to_a_place(history: History) -> Iterator[Violation]:
    known: dict[tuple[str, Place], tuple[str, str]] = {}
    for who, channel, at, event_id in _witnesses(history):
        first, other = known.setdefault((channel, at), (who, event_id))
        if other != event_id:
            yield Violation(
                "position", f"{channel} {at}: {first} has {other}, {who} has {event_id}"
            )


def _one_place_to_an_event(history: History) -> Iterator[Violation]:
    """An id is published once: in one epoch it has one place, in each of its branches."""
    forks = _forks(history) if history.scope.loses else {}
    known: dict[tuple[str, str, str], tuple[str, Place]] = {}
    for who, channel, at, event_id in _witnesses(history):
        first, other = known.setdefault((channel, at.epoch, event_id), (who, at))
        forked = forks.get((channel, at.epoch), float("inf"))
        if other != at and min(other.offset, at.offset) < forked:
            yield Violation("id", f"{channel} {event_id}: {first} has {other}, {who} has {at}")


def _real_order(history: History) -> Iterator[Violation]:
    """What was begun after another event was acknowledged stands behind it.

    Of the two branches of an epoch that is over, one begins anew where the other was.
    """
    forks = _forks(history) if history.scope.loses else {}
    by_epoch: dict[tuple[str, str], list[tuple[Published, Place]]] = defaultdict(list)
    for event in history.events.values():
        for at in event.places:
            by_epoch[event.channel, at.epoch].append((event, at))
    for (channel, epoch), events in by_epoch.items():
        forked = forks.get((channel, epoch), float("inf"))
        events.sort(key=lambda each: -each[1].offset)
        # From the top down: the earliest that any event further up was acknowledged.
        above = float("inf")
        name = ""
        for event, at in events:
            if event.began > above and at.offset < forked:
                yield Violation(
                    "order", f"{channel}: {event.id} at {at} was begun after {name} was there"
                )
            assert event.acknowledged is not None
            if event.acknowledged < above:
                above, name = event.acknowledged, event.id


def _forks(history: History) -> dict[tuple[str, str], int]:
    """Return the channels and epochs that have two branches, with the first offset of these."""
    checks: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for _who, channel, at, _id in _witnesses(history):
        checks[channel, at.epoch, at.offset].add(at.check)
    lowest: dict[tuple[str, str], int] = {}
    for (channel, epoch, offset), found in checks.items():
        if len(found) > 1:
            known = lowest.get((channel, epoch), offset)
            lowest[channel, epoch] = min(known, offset)
    return lowest


def _forks_are_told(history: History) -> Iterator[Violation]:
    """Where an epoch has two branches, whoever saw either learns that it is over."""
    lowest = _forks(history)
    for thread in history.threads.values():
        if thread.client in history.gone:
            continue
        for (channel, epoch), offset in lowest.items():
            if channel == thread.channel and _stays_on(thread, epoch, offset):
                yield Violation(
                    "fork", f"{thread.name} is in epoch {epoch}, which forked at {offset}"
                )


def _stays_on(thread: Thread, epoch: str, offset: int) -> bool:
    """Say whether the last that a thread saw is of an epoch that forked below."""
    last = place(thread.records[-1].position)
    return last.epoch == epoch and last.offset >= offset


def check_bounds(history: History) -> Iterator[Violation]:
    """Yield where clients were told, or lost their sessions, more often than they may."""
    scope = history.scope
    for thread in history.threads.values():
        told = sum(
            isinstance(each, Reset) or (isinstance(each, Subscribed) and each.recovered is False)
            for each in thread.records
        )
        if told > scope.tellings:
            yield Violation("resets", f"{thread.name} was told {told} times")
        for before, after in pairwise(thread.records):
            if isinstance(after, Subscribed) and after.recovered is None:
                yield Violation("resets", f"{thread.name} began anew after {before}")
    for client, number in history.endings.items():
        if scope.endings is not None and number > scope.endings:
            yield Violation("endings", f"{client} lost {number} sessions")
    for client in {each.client for each in history.threads.values()} - history.gone:
        if client not in history.sessions:
            yield Violation("absent", f"{client} has no session at the end")
