"""What was seen in a run? This file: whether the stores have what was acknowledged (pure)."""

from collections.abc import Iterator

from checker.delivery import acknowledged, was_published
from checker.history import History, Place, Published, Violation, follows, place
from checker.records import Dump


def check_stores(history: History) -> Iterator[Violation]:
    """Yield where a store is not the acknowledged events, or does not tell what is missing."""
    dumped = {dump.channel for dump in history.dumps if dump.store == "archive"}
    for channel in history.scope.archived:
        if channel not in dumped:
            yield Violation("archive", f"nobody read the archive of {channel}")
    for dump in history.dumps:
        who = f"the {dump.store} of {dump.channel}"
        for _position, event_id, data in dump.events:
            yield from was_published(history, who, dump.channel, event_id, data)
        yield from _one_chain(dump, who)
        yield from _complete(history, dump, who)


def _missing(dump: Dump) -> list[tuple[Place, Place]]:
    return [(place(after), place(upto)) for after, upto in dump.missing]


def _one_chain(dump: Dump, who: str) -> Iterator[Violation]:
    """Events stand in order, once, each after the one before, but for what is told missing."""
    told = {(after.epoch, after.offset): upto for after, upto in _missing(dump)}
    known = set[str]()
    before: Place | None = None
    for text, event_id, _data in dump.events:
        at = place(text)
        if event_id + at.epoch in known:
            yield Violation("twice", f"{who} has {event_id} twice")
        known.add(event_id + at.epoch)
        if before is not None:
            upto = told.get((before.epoch, before.offset))
            if at.offset <= before.offset and at.epoch == before.epoch:
                yield Violation("order", f"{who} has {at} after {before}")
            elif upto is not None:
                if at.offset != upto.offset + 1:
                    yield Violation("gap", f"{who} has {at} after a gap up to {upto}")
            elif at.epoch == before.epoch and at.offset != before.offset + 1:
                yield Violation("gap", f"{who} has {at} after {before}, and tells no gap")
            elif at.epoch == before.epoch and at.check != follows(before.check, event_id):
                yield Violation("chain", f"{who} has {event_id} at {at}, not after {before}")
        before = at


def _complete(history: History, dump: Dump, who: str) -> Iterator[Violation]:
    kept = {event_id for _position, event_id, _data in dump.events}
    missing = _missing(dump)
    begins = place(dump.events[0][0]).offset if dump.events else float("inf")
    forgets = dump.store == "history" and history.scope.forgets
    for event in acknowledged(history, dump.channel):
        at = event.places[-1]
        if event.id in kept or any(
            after.offset < at.offset <= upto.offset for after, upto in missing
        ):
            continue
        if forgets and at.offset < begins:
            continue
        if not (history.scope.loses and _was_told(history, event, at)):
            yield Violation(dump.store, f"{who} does not have {event.id} at {at}")


def _was_told(history: History, event: Published, at: Place) -> bool:
    """Say whether subscribers were told that the epoch of an event is over."""
    return any(
        telling.place.epoch != at.epoch and event.began < telling.at
        for thread in history.threads.values()
        if thread.channel == event.channel
        for telling in thread.tellings()
    )
