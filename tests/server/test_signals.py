"""A signal that comes when nobody handles it any more: it must not kill who is ending."""

import itertools
import signal
import subprocess
import sys

import pytest

from processes import ROOT, ServerProcess

# In a process of its own, which they would end. Any of its threads may get the signal.
_LATE = """
import asyncio, os, signal, threading
from server.signals import ignore_signals, received_signals

async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, print)
    ignore_signals(loop)

threading.Thread(target=threading.Event().wait, daemon=True).start()
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


@pytest.mark.parametrize("end", _ENDS)
def test_what_comes_after_the_end_is_ignored(end: str) -> None:
    """Where the terminal signals all, the supervisor's own signal found workers that had drained.

    Nobody handled it any more, so they were killed by it, and the exit code was 1.
    """
    command = [sys.executable, "-c", _LATE.format(end=_ENDS[end])]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, "lives\n"), ended.stderr


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
