"""Who is connected here? This file: `readings`, which publishes what this machine is doing.

A client of the REST API like any backend; the page at `/` shows what it publishes.
"""

import asyncio
import os
import re
import select
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final

import msgspec

import server
from pubsub.ulid import UlidFactory
from server.cli_output import CommandFailed, tell
from server.cli_publish import Publisher
from server.cli_target import Unreachable

_NAME: Final = "reading"
_PROC: Final = Path("/proc")
_RETRY_S: Final = 1.0
_END_S: Final = 2.0
# All of them in the first line, then each in one of its own.
_CPU: Final = re.compile(r"cpu\d*")
# user, nice, system, idle, iowait, irq, softirq, steal; what guests use is part of user and nice.
_CPU_FIELDS: Final = 8
_IDLE_FIELDS: Final = (3, 4)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What /proc says at one moment: gauges, and counters that only a difference gives sense.

    `at_s` is a monotonic clock. `busy` and `ticks` are CPU time since boot, over all CPUs.
    """

    at_s: float
    load: tuple[float, float, float]
    cpus: int
    busy: int
    ticks: int
    memory_used_bytes: int
    memory_total_bytes: int
    network_in_bytes: int
    network_out_bytes: int


def read_load(text: str) -> tuple[float, float, float]:
    """Return the load averages of 1, 5 and 15 minutes from /proc/loadavg."""
    one, five, fifteen = map(float, text.split()[:3])
    return one, five, fifteen


def read_cpu(text: str) -> tuple[int, int, int]:
    """Return the number of CPUs, busy ticks and all ticks from /proc/stat."""
    rows = [fields for line in text.splitlines() if _CPU.fullmatch((fields := line.split())[0])]
    ticks = [int(field) for field in rows[0][1 : 1 + _CPU_FIELDS]]
    idle = sum(ticks[index] for index in _IDLE_FIELDS if index < len(ticks))
    if not ticks:
        raise ValueError("no CPU time")
    return len(rows) - 1, sum(ticks) - idle, sum(ticks)


def read_memory(text: str) -> tuple[int, int]:
    """Return used and total bytes from /proc/meminfo; used is what no program could have."""
    kib = {
        name: int(value.split()[0])
        for name, colon, value in (line.partition(":") for line in text.splitlines())
        if colon
    }
    total = kib["MemTotal"]
    return (total - kib["MemAvailable"]) * 1024, total * 1024


def read_network(text: str) -> tuple[int, int]:
    """Return bytes received and sent since boot from /proc/net/dev, without the loopback."""
    received = sent = 0
    for line in text.splitlines():
        name, colon, fields = line.partition(":")
        if colon and name.strip() != "lo":
            numbers = fields.split()
            received += int(numbers[0])
            sent += int(numbers[8])
    return received, sent


def take_sample(proc: Path = _PROC, clock: Callable[[], float] = time.monotonic) -> Sample:
    """Return what this machine is doing; raises CommandFailed where that cannot be read."""
    try:
        cpus, busy, ticks = read_cpu((proc / "stat").read_text())
        used, total = read_memory((proc / "meminfo").read_text())
        received, sent = read_network((proc / "net" / "dev").read_text())
        load = read_load((proc / "loadavg").read_text())
    except OSError as error:
        raise CommandFailed(
            f"readings come from {error.filename or proc}, which cannot be read here "
            f"({error.strerror}); only Linux has it"
        ) from None
    except (ValueError, LookupError):
        raise CommandFailed(f"{proc} does not say what this machine is doing") from None
    return Sample(
        at_s=clock(),
        load=load,
        cpus=cpus,
        busy=busy,
        ticks=ticks,
        memory_used_bytes=used,
        memory_total_bytes=total,
        network_in_bytes=received,
        network_out_bytes=sent,
    )


def reading(before: Sample, now: Sample) -> dict[str, Any]:
    """Return what is published of two samples.

    `load` and `cpus` as they stand, `cpu` the busy share from 0 to 1, memory in bytes, network in
    bytes per second. A counter that began anew counts as standing still.
    """
    elapsed_s = now.at_s - before.at_s
    ticks = now.ticks - before.ticks

    def rate(later: int, earlier: int) -> int:
        return round(max(later - earlier, 0) / elapsed_s) if elapsed_s > 0 else 0

    cpu = (now.busy - before.busy) / ticks if ticks > 0 else 0.0
    return {
        "load": list(now.load),
        "cpus": now.cpus,
        "cpu": round(min(max(cpu, 0.0), 1.0), 4),
        "memory_used_bytes": now.memory_used_bytes,
        "memory_total_bytes": now.memory_total_bytes,
        "network_in_bytes_s": rate(now.network_in_bytes, before.network_in_bytes),
        "network_out_bytes_s": rate(now.network_out_bytes, before.network_out_bytes),
    }


def sleep(delay_s: float) -> bool:
    """Wait, and say that there is no end."""
    time.sleep(delay_s)
    return False


def sleep_until_eof(delay_s: float) -> bool:
    """Wait, at most until standard input ends; return whether it has."""
    stdin = sys.stdin.fileno()
    ready, _, _ = select.select([stdin], [], [], delay_s)
    return bool(ready) and not os.read(stdin, 1)


class Readings:
    """Publishes a reading every `every_s` seconds; what the server misses is not kept.

    `wait` waits so many seconds and returns whether to end.
    """

    def __init__(
        self,
        publisher: Publisher,
        channel: str,
        every_s: float,
        *,
        sample: Callable[[], Sample] = take_sample,
        wait: Callable[[float], bool] = sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._publisher = publisher
        self._channel = channel
        self._every_s = every_s
        self._sample = sample
        self._wait = wait
        self._clock = clock
        self._new_id = UlidFactory()
        self._taken = False
        self._away = False
        self._why_away: str | None = None

    def run(self) -> int:
        """Publish until told to end; raises CommandFailed if nothing can be read or was ever taken.

        A server that cannot be reached is tried again and again; the first time this is said.
        """
        before, due_s = self._sample(), self._clock() + self._every_s
        while not self._wait(max(due_s - self._clock(), 0.0)):
            now = self._sample()
            # After a long stop (a laptop that slept) the missed ones are not made up for.
            due_s = max(due_s + self._every_s, self._clock())
            if self._deliver(self._event(reading(before, now)), due_s):
                return 0
            before = now
        return 0

    def _event(self, data: dict[str, Any]) -> bytes:
        # With an id: whatever is sent twice, the retry below included, is published once.
        event = {"channel": self._channel, "name": _NAME, "data": data, "id": self._new_id()}
        return msgspec.json.encode(event)

    def _deliver(self, event: bytes, due_s: float) -> bool:
        """Publish, again and again if need be, while the next is not due; say whether to end."""
        while not self._post(event):
            if self._clock() + _RETRY_S >= due_s:
                return False
            if self._wait(_RETRY_S):
                return True
        return False

    def _post(self, event: bytes) -> bool:
        """Publish once; say whether the server took it."""
        if self._why_away is not None:
            # Not before: whose node was killed amid a reading is told to end in the next moment.
            tell(f"no reading can be published: {self._why_away}; trying until it can")
            self._why_away = None
        try:
            self._publisher.post(event, "application/json")
        except (Unreachable, OSError, HTTPException) as error:
            self._on_away(error)
            return False
        except CommandFailed as refused:
            # A key that was good, or a server that is about to stop: that may change again.
            if not self._taken:
                raise
            self._on_away(refused)
            return False
        if self._away:
            tell("the server is back: readings are published again")
        self._taken, self._away = True, False
        return True

    def _on_away(self, error: Exception) -> None:
        if not self._away:
            self._why_away = str(error) or type(error).__name__
        self._away = True


@asynccontextmanager
async def beside(url: str) -> AsyncIterator[None]:
    """Publish readings to the node at `url`, in development mode, from a process of its own.

    It ends with the block, and if this process dies in whatever way: its standard input ends then.
    """
    command = ("-m", "server.cli", "readings", "--dev", "--url", url, "--until-eof")
    # From where this package is, so that the module is found, and none of another's of that name.
    home = Path(server.__file__).parents[1]
    stdin, held = os.pipe()
    try:
        # In a session of its own: Ctrl-C is for the node, which then ends it.
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=stdin, cwd=home, start_new_session=True
        )
    except OSError as error:
        process = None
        tell(f"no readings: a process for them cannot be started ({error.strerror})")
    finally:
        os.close(stdin)
    try:
        yield
    finally:
        os.close(held)
        if process is not None:
            await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait for a process that was asked to end; kill it if it takes too long."""
    try:
        async with asyncio.timeout(_END_S):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
