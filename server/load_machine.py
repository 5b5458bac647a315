"""Who is connected here? This file: what a load client knows of the machine that it runs on."""

import os
import resource
import time
from pathlib import Path
from typing import Final

import msgspec

# Above this share of a core a load client cannot be sure that it was not what was slow.
BOTTLENECK: Final = 0.85
_PROC: Final = Path("/proc")


class Usage(msgspec.Struct, frozen=True):
    """What a process has used: CPU, time in which it waited for a core, memory, and when."""

    at_s: float
    cpu_s: float
    waited_s: float
    rss_bytes: int


class Shares(msgspec.Struct, frozen=True):
    """What processes used between two moments, in cores; and the memory at the end."""

    cpu: float
    waited: float
    rss_bytes: int

    @property
    def busy(self) -> float:
        """Return the part of the time in which it ran or would have."""
        return self.cpu + self.waited


def usage(pid: int | None = None) -> Usage | None:
    """Return what a process has used (this one for None), or None when it cannot be read."""
    folder = _PROC / ("self" if pid is None else str(pid))
    try:
        fields = (folder / "stat").read_text().rsplit(") ", 1)[1].split()
        cpu_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        rss_bytes = int(fields[21]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return None
    try:
        waited_s = int((folder / "schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        waited_s = 0.0
    if pid is None:
        # The same, but not in ticks.
        cpu_s = time.process_time()
    return Usage(time.perf_counter(), cpu_s, waited_s, rss_bytes)


def shares(before: Usage | None, after: Usage | None) -> Shares | None:
    """Return what was used between two moments; None if either is not known."""
    if before is None or after is None or after.at_s <= before.at_s:
        return None
    span = after.at_s - before.at_s
    return Shares(
        (after.cpu_s - before.cpu_s) / span,
        (after.waited_s - before.waited_s) / span,
        after.rss_bytes,
    )


def bottleneck(own: Shares | None) -> str:
    """Return a warning if the load client may have been what was slow, else nothing."""
    if own is None or own.busy < BOTTLENECK:
        return ""
    text = "the load generator was the bottleneck; figures are lower bounds"
    shared = f", and waited for it {own.waited:.0%} of the time" if own.waited >= 0.05 else ""
    return f"{text} (it used {own.cpu:.0%} of a core{shared})"


def listeners(port: int) -> list[int]:
    """Return the processes of this machine that listen on a TCP port, as far as one may see."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        try:
            lines = (_PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            # The state 0A is LISTEN; the port is in hexadecimal digits.
            if len(fields) > 9 and fields[3] == "0A" and fields[1].endswith(f":{port:04X}"):
                inodes.add(f"socket:[{fields[9]}]")
    found = []
    for folder in _PROC.iterdir() if inodes else ():
        if folder.name.isdigit() and _holds(folder / "fd", inodes):
            found.append(int(folder.name))
    return sorted(found)


def _holds(folder: Path, inodes: set[str]) -> bool:
    try:
        return any(os.readlink(each) in inodes for each in folder.iterdir())
    except OSError:
        return False


def need_files(count: int) -> bool:
    """Let this process open `count` files; say whether it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return False
        return wanted >= count
    return True
