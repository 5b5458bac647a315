"""What was seen in a run? This file: whether everybody saw who was there (pure)."""

from collections.abc import Iterator, Sequence

from checker.history import History, Violation
from checker.records import Fault, Present, Seen


def check_presence(history: History) -> Iterator[Violation]:
    """Yield who saw a wrong room for longer than the bound, counted while no fault lasts."""
    end = history.drained
    if end is None:
        return
    quiet = quiet_times(history.faults, end)
    for (client, channel), views in history.seen.items():
        wrong = _wrong_times(views, history.present[channel], end)
        for member, began, ended in wrong:
            for start, stop in quiet:
                length = min(ended, stop) - max(began, start)
                if length > history.scope.presence_s:
                    yield Violation(
                        "presence", f"{client} saw {member} wrong in {channel} for {length:.1f} s"
                    )


def quiet_times(faults: Sequence[Fault], end: float) -> list[tuple[float, float]]:
    """Return when no fault lasted, up to `end`."""
    found, since, lasting = [], 0.0, set[str]()
    for fault in faults:
        if fault.begins:
            if not lasting:
                found.append((since, fault.at))
            lasting.add(fault.name)
        else:
            lasting.discard(fault.name)
            if not lasting:
                since = fault.at
    if not lasting:
        found.append((since, end))
    return found


def _wrong_times(
    views: Sequence[Seen], truths: Sequence[Present], end: float
) -> Iterator[tuple[str, float, float]]:
    """Yield for whom a view was wrong, from when to when; never while nothing is seen."""
    steps: list[Seen | Present] = sorted([*views, *truths], key=lambda each: each.at)
    here, view = set[str](), None
    since: dict[str, float] = {}
    for step in steps:
        match step:
            case Seen(members=members):
                view = None if members is None else set(members)
            case Present(member=member):
                if step.here:
                    here.add(member)
                else:
                    here.discard(member)
        now_wrong = set() if view is None else here ^ view
        for member in [each for each in since if each not in now_wrong]:
            yield member, since.pop(member), step.at
        for member in now_wrong:
            since.setdefault(member, step.at)
    for member, began in since.items():
        yield member, began, end
