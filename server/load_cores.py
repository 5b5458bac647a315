"""Who is connected here? This file: cores for a load client, other than the server's."""

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec


class Cores(msgspec.Struct, frozen=True):
    """The cores to run on (none: wherever), and what to say of it."""

    own: frozenset[int]
    note: str


def choose(wanted: str, servers: Sequence[int]) -> Cores:
    """Return the cores to run on: `auto`, `none`, or those listed; raises ValueError.

    `auto` takes one that the servers do not use; where each may run everywhere, one that they are
    not on now.
    """
    if wanted == "none":
        return Cores(frozenset(), "")
    usable = os.sched_getaffinity(0)
    if wanted != "auto":
        own = parse_cores(wanted)
        if not own <= usable:
            raise ValueError(f"this process may use {show(usable)} only")
        return Cores(own, f"the load runs on core {show(own)}")
    if not servers:
        return Cores(frozenset(), "")
    return _apart(usable, servers)


def _apart(usable: set[int], servers: Sequence[int]) -> Cores:
    theirs: set[int] = set()
    now: set[int] = set()
    for pid in servers:
        try:
            theirs |= os.sched_getaffinity(pid)
            now.add(_running_on(pid))
        except (OSError, ValueError, IndexError):
            continue
    if free := usable - theirs:
        own = frozenset({max(free)})
        return Cores(own, f"the load runs on core {show(own)}, the server on {show(theirs)}")
    if free := usable - now:
        own = frozenset({max(free)})
        return Cores(
            own,
            f"the load runs on core {show(own)}; the server may run there too "
            "(taskset keeps it apart)",
        )
    return Cores(frozenset(), "there is no core for the load alone: it shares those of the server")


def parse_cores(text: str) -> frozenset[int]:
    """Return the cores of a list such as `0,2-3`; raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        ends = (first, last) if dash else (first, first)
        if not all(each.isascii() and each.isdigit() and len(each) < 6 for each in ends):
            raise ValueError("write auto, none, or cores such as 1 or 0,2-3")
        low, high = map(int, ends)
        if high < low:
            raise ValueError("write auto, none, or cores such as 1 or 0,2-3")
        found.update(range(low, high + 1))
    return frozenset(found)


def show(cores: set[int] | frozenset[int]) -> str:
    """Return cores as such a list."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def _running_on(pid: int) -> int:
    # Behind the name in parentheses, which may hold spaces, the 39th field is the 37th.
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return int(fields[36])
