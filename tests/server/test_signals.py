"""Signals are handled on the loop, and one that comes too late does not kill who is ending."""

import itertools
import signal
import subprocess
import sys

import pytest

from processes import ROOT, ServerProcess

# In a process of its own, which they would end. Any of its threads may get the signal.
_PROCESS = """
import asyncio, os, signal, threading
from server.signals import handled_signals, received_signals

async def main():
    with handled_signals(asyncio.get_running_loop(), {{signal.SIGTERM: int}}):
        {amid}

threading.Thread(target=threading.Event().wait, daemon=True).start()
{before}
{end}
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    os.kill(os.getpid(), number)
print("lives", flush=True)
os._exit(0)
"""
_ENDS = {
    "loop": "asyncio.run(main())",
    "descriptor": "with received_signals(): pass",
}
# One comes with each change of who handles it.
_HAMMERED = """
def change(number, handler):
    before = plain(number, handler)
    if number == signal.SIGTERM:
        os.kill(os.getpid(), number)
    return before

plain, signal.signal = signal.signal, change
"""


def lives(end: str, *, before: str = "", amid: str = "pass") -> bool:
    """Run a process that hears signals until its end, and then still gets some."""
    command = [sys.executable, "-c", _PROCESS.format(end=_ENDS[end], before=before, amid=amid)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (0, "lives\n"), (ended.returncode, ended.stderr)
    return True


@pytest.mark.parametrize("end", _ENDS)
def test_what_comes_after_the_end_is_ignored(end: str) -> None:
    """Where the terminal signals all, the supervisor's own signal found workers that had drained.

    Nobody handled it any more, so they were killed by it, and the exit code was 1.
    """
    assert lives(end)


@pytest.mark.parametrize("end", _ENDS)
def test_at_no_moment_does_nobody_handle_them(end: str) -> None:
    """An event loop puts its handlers away first: a signal that another thread got then killed."""
    assert lives(end, before=_HAMMERED)


def test_a_handler_is_called_for_each_that_comes_and_for_no_other() -> None:
    amid = """
        heard = []
        loop = asyncio.get_running_loop()
        with handled_signals(loop, {signal.SIGHUP: lambda: heard.append(1)}):
            signal.signal(signal.SIGUSR1, lambda *_: None)
            for number in (signal.SIGUSR1, signal.SIGHUP):
                os.kill(os.getpid(), number)
            while not heard:
                await asyncio.sleep(0.001)
        assert heard == [1]
"""
    assert lives("loop", amid=amid)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_who_signals_again_and_again_gets_the_exit_code(workers: str) -> None:
    """The last of them found a process that had put its handlers away: it was killed by it."""
    delayed = {"GALECAST_DRAIN_DELAY_S": "60"}
    with ServerProcess("--dev", "--workers", workers, environ=delayed) as server:
        server.signal(signal.SIGTERM)
        server.await_log("draining")
        again = itertools.cycle((signal.SIGTERM, signal.SIGHUP, signal.SIGINT))
        while not server.ended(within_s=0.0005):
            server.signal(next(again))
        assert server.wait() == 1
