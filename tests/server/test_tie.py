import asyncio
import os
import signal

from config.settings import Settings, dev_origins
from server.tie import HANDLED, Share, Tie


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


async def test_a_worker_that_has_ended_is_not_killed_by_a_signal_that_comes_late() -> None:
    """Where the terminal signals all, the supervisor's own signal found workers that had drained.

    Nobody handled it any more, so they were killed by it, and the exit code was 1.
    """
    ends = os.pipe()
    before = {number: signal.getsignal(number) for number in HANDLED}
    tie = Tie(0, *ends, b"")
    loop = asyncio.get_running_loop()

    def pass_by() -> None:
        """Nothing comes while it is held."""

    tie.hold(loop, stop=pass_by, hurry=pass_by, reload=pass_by)
    tie.let_go()
    try:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            loop.remove_signal_handler(number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signal.SIGTERM in signal.sigpending()
        assert signal.sigwait({signal.SIGTERM}) == signal.SIGTERM
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        loop.remove_reader(ends[0])
        for end in ends:
            os.close(end)
