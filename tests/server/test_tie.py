import subprocess
import sys

from config.settings import Settings, dev_origins
from processes import ROOT
from server.tie import Share


def test_the_share_of_a_worker() -> None:
    share = Share(index=2, port=8001, node="n-2", broker_url="unix:///redis.sock")
    settings = Settings(port=0, dev=True, admin_port=9000, node="n", workers=3)
    mine = share.of(settings)
    assert (mine.port, mine.admin_port, mine.node) == (8001, 9002, "n-2")
    assert mine.broker.url == "unix:///redis.sock"
    # The pages that this machine serves there.
    assert mine.origins == dev_origins(8001)
    other = Share(index=1, port=8000, node="n-1", broker_url=None).of(Settings())
    assert other.admin_port == 0
    assert other.origins == ()
    assert other.broker == Settings().broker


# In a process of its own, which it would end. Any of its threads may get the signal.
LATE = """
import asyncio, os, signal, threading
from server.tie import Tie

async def main():
    loop = asyncio.get_running_loop()
    tie = Tie(0, *os.pipe(), b"")
    tie.hold(loop, stop=print, hurry=print, reload=print)
    tie.let_go(loop)

threading.Thread(target=threading.Event().wait, daemon=True).start()
asyncio.run(main())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    os.kill(os.getpid(), number)
print("lives", flush=True)
os._exit(0)
"""


def test_a_worker_that_has_ended_is_not_killed_by_a_signal_that_comes_late() -> None:
    """Where the terminal signals all, the supervisor's own signal found workers that had drained.

    Nobody handled it any more, so they were killed by it, and the exit code was 1.
    """
    command = [sys.executable, "-c", LATE]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout) == (0, "lives\n"), ended.stderr
