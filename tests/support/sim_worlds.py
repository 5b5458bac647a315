"""The simulated worlds by name."""

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from multiprocessing.util import Finalize
from typing import Any, Final, Protocol

from redis_server import RedisServer
from sim_archive import archive_world
from sim_delivery import delivery_world
from sim_leases import lease_world
from sim_ledger import ledger_world
from sim_outages import outage_world
from sim_presence import presence_world
from sim_redis import Wire


class Run(Protocol):
    """A world that has not begun to go."""

    course: Any

    def play(self) -> None:
        """Run it all; raises AssertionError if the promise was broken."""

    def met(self) -> Counter[str]:
        """Return what happened in the run."""
        ...

    def trace(self) -> list[object]:
        """Return all that could be seen of it."""
        ...


@cache
def wire() -> Wire:
    """A connection to a Redis of this process's own."""
    # In memory, too, only the number of entries bounds a node of a stream.
    server = RedisServer("stream-node-max-bytes 0")
    server.start()
    # Processes of a pool end without `atexit`.
    Finalize(None, server.close, exitpriority=10)
    return Wire(server)


WORLDS: Final[dict[str, Callable[[int], AbstractContextManager[Run]]]] = {
    "delivery": delivery_world,
    "leases": lease_world,
    "outages": outage_world,
    "archive": archive_world,
    "presence": presence_world,
    "ledger": ledger_world,
}

# How many seeds are run of each if nobody says; the nodes of presence's are whole.
SEEDS: Final = {
    "delivery": 2_000,
    "leases": 2_000,
    "outages": 2_000,
    "archive": 2_000,
    "presence": 200,
    "ledger": 2_000,
}
