"""The lease protocol while Redis is away again and again: no living node is taken for dead.

The world is that of `sim_leases.py`; nodes may die, but none stalls, and all that harms their calls
is that Redis is away, and that some see late that it is back. So none that lives has a reason to
lose its life, however many outages there are and however long, and whatever was left of its lease.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from memory_redis import MemoryRedis
from sim_leases import LEASE_S, Course, Home, LeaseWorld, lease_scheduler
from sim_redis import Server
from sim_scheduler import Scheduler

# So long a node may take to see that Redis is back; see `pubsub/circuit.py`.
LATEST_S: Final = 3.0


class OutageWorld(LeaseWorld):
    """Nodes whose Redis is away now and then, for anything up to some leases."""

    def __init__(self, scheduler: Scheduler, server: Server) -> None:
        self.outages = 0
        self._late_s = 0.0
        rng = scheduler.rng
        # Time that passes though something could go on would be a stall.
        course = Course(
            steps=rng.choice((4, 8)),
            nodes=rng.choice((2, 3, 3, 4)),
            hurry=0.0,
            crashes=rng.random() < 0.3,
        )
        super().__init__(scheduler, course, server)

    def away(self) -> None:
        """Redis is away: for any time, or until about when leases lapse that were not new."""
        rng, run_for = self.rng, self.scheduler.run_for
        self.outages += 1
        self.outage()
        lasts_s = LEASE_S * rng.choice((rng.uniform(0.05, 1), rng.uniform(0.3, 0.7), 3))
        run_for(lasts_s)
        # The longer it was away, the later nodes try whether it is back.
        self._late_s = min(lasts_s, LATEST_S)
        self.outage()
        run_for(rng.choice((0.3, 1.0, LEASE_S / 3)))

    def _return(self) -> None:
        for home in self.alive():
            home.link.shut = True
            late_s = self.rng.choice((0.0, self.rng.uniform(0, self._late_s)))
            home.process.call(partial(home.process.loop.call_later, late_s, self._try, home))

    def _try(self, home: Home) -> None:
        if self.store.away:
            home.process.loop.call_later(LATEST_S * self.rng.random(), self._try, home)
        elif home.link.shut:
            home.link.shut = False
            home.returned()

    def run(self) -> None:
        choices: dict[Any, float] = {
            self.away: 30,
            self.come: 10,
            self.go: 4,
            self.tend: 4,
            self.sleep: 8,
            self.crash: 5 * self.course.crashes,
        }
        # By then each may claim what others left behind.
        self.scheduler.run_for(LEASE_S * 4 / 3)
        for _ in range(self.course.steps):
            self.scheduler.act(choices, (0, 5, 15))

    def check(self) -> None:
        super().check()
        lives = [each.presence.lease.lives for each in self.homes]
        assert max(lives) == 1, f"a living node was taken for dead: {lives}"

    def met(self) -> Counter[str]:
        return super().met() + Counter(outages=self.outages)


@contextmanager
def outage_world(seed: int) -> Iterator[OutageWorld]:
    """A world that has not begun to go; its Redis is in memory."""
    with lease_scheduler(seed) as scheduler:
        yield OutageWorld(scheduler, MemoryRedis(scheduler.clock.wall_ms))
