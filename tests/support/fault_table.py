"""Every fault that is done to a fleet, what it harms, and what may come of it.

A new one is a function in `faults.py`, and a line in `FAULTS`. Those that need no rig of their own
are mixed at random by `soak.py`.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

import faults
from fault_proxy import FaultProxy
from fault_rig import FaultRig, Setup


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A fault: `run` harms the rig, and returns when it is healed.

    `harms` says what: of different things, two can be harmed at the same time.

    `tellings`: how often each client may be told at most that events may be missing. `loses`: it
    may take acknowledged events with it, if that is told. `forgets`: the recent history may begin
    later. `felt`: who has to notice, lest nothing
    was harmed: "publishers", "clients" (their sessions end), "told", "skipped" (events are left
    out for those without a rate). `setup`: the rig it takes.
    """

    name: str
    harms: str
    run: Callable[[FaultRig], Awaitable[None]]
    tellings: int = 0
    loses: bool = False
    forgets: bool = False
    felt: tuple[str, ...] = ()
    setup: Setup = field(default_factory=Setup)


# How they are felt, if they are at all: nodes try again what Redis did not answer.
_FELT: Final = {
    "to redis held": ("publishers",),
    "to redis swallowed up": ("publishers",),
    "to redis swallowed back": ("publishers",),
    "to redis swallowed": ("publishers",),
    "to nodes swallowed up": ("clients",),
    "to nodes swallowed back": ("clients",),
    "to nodes swallowed": ("clients",),
    "to nodes reset": ("clients",),
    "to nodes half closed": ("clients",),
    "to nodes refused": ("clients",),
}


def _network(where: str, which: Callable[[FaultRig], Iterable[FaultProxy]]) -> list[Kind]:
    kinds = []
    for how, run in faults.NETWORK.items():
        name = f"{where} {how}"
        felt = _FELT.get(name, ())
        kinds.append(Kind(name=name, harms="network", felt=felt, run=faults.on(run, which)))
    return kinds


_ARCHIVED: Final = Setup(archive=True)
_DATABASE: Final = Setup(archive=True, database=True)
_SENTINEL: Final = Setup(redis="sentinel")
_CLUSTER: Final = Setup(redis="cluster")
_ALONE: Final = Setup(redis="none", nodes=1, archive=True)


FAULTS: Final = (
    *_network("to redis", lambda rig: [rig.rng.choice(rig.to_redis)]),
    *_network("to nodes", lambda rig: [rig.rng.choice(rig.to_node)]),
    Kind(name="clients wander", harms="clients", felt=("clients",), run=faults.clients_wander),
    Kind(
        name="client stops reading",
        harms="clients",
        felt=("skipped",),
        run=faults.client_stops_reading,
        # One that does not read does not answer to pings either.
        setup=Setup(conflates=True, environ={"GALECAST_SESSION_PING_S": "20"}),
    ),
    Kind(name="answers of redis lost", harms="network", run=faults.publishes_answers_lost),
    Kind(
        name="answers of nodes lost",
        harms="network",
        felt=("publishers",),
        run=faults.http_answers_lost,
    ),
    Kind(name="one node deaf", harms="network", run=faults.deaf),
    Kind(name="node killed", harms="nodes", felt=("clients",), run=faults.node_killed),
    Kind(name="node terminated", harms="nodes", felt=("clients",), run=faults.node_terminated),
    Kind(name="node stopped", harms="nodes", run=faults.node_stopped),
    Kind(name="nodes stall", harms="nodes", run=faults.nodes_stall),
    Kind(name="redis killed", harms="redis", felt=("publishers",), run=faults.redis_killed),
    Kind(name="redis terminated", harms="redis", felt=("publishers",), run=faults.redis_terminated),
    Kind(
        name="redis emptied",
        harms="redis",
        felt=("told",),
        run=faults.redis_emptied,
        tellings=1,
        loses=True,
    ),
    Kind(name="redis stopped", harms="redis", felt=("publishers",), run=faults.redis_stopped),
    Kind(name="redis clients killed", harms="redis", run=faults.redis_clients_killed),
    Kind(
        name="records evicted",
        harms="redis",
        felt=("told",),
        run=faults.records_evicted,
        tellings=1,
        loses=True,
    ),
    Kind(name="memory full", harms="redis", felt=("publishers",), run=faults.memory_full),
    Kind(
        name="history evicted",
        harms="redis",
        felt=("clients",),
        run=faults.history_evicted,
        tellings=3,
        forgets=True,
    ),
    Kind(
        name="failed over",
        harms="redis",
        felt=("publishers",),
        run=faults.failed_over,
        tellings=1,
        loses=True,
        setup=_SENTINEL,
    ),
    Kind(
        name="tail lost",
        harms="redis",
        run=faults.tail_lost,
        tellings=2,
        loses=True,
        felt=("told",),
        setup=_SENTINEL,
    ),
    Kind(
        name="cluster failed over",
        harms="redis",
        felt=("publishers",),
        run=faults.cluster_failed_over,
        tellings=1,
        loses=True,
        setup=_CLUSTER,
    ),
    Kind(
        name="cluster master frozen",
        harms="redis",
        felt=("publishers",),
        run=faults.cluster_master_frozen,
        tellings=1,
        loses=True,
        setup=_CLUSTER,
    ),
    Kind(name="slots moved", harms="redis", run=faults.slots_moved, setup=_CLUSTER),
    Kind(
        name="redis disk full",
        harms="redis",
        felt=("publishers",),
        run=faults.disk_full,
        setup=Setup(disk="redis", aof=False),
    ),
    Kind(
        name="redis clock ahead",
        harms="redis",
        felt=("clients",),
        run=faults.clock_jumps(100),
        setup=Setup(clock="redis"),
    ),
    Kind(
        name="redis clock behind",
        harms="redis",
        felt=("clients",),
        run=faults.clock_jumps(-100),
        setup=Setup(clock="redis"),
    ),
    Kind(
        name="node clock ahead",
        harms="nodes",
        felt=("clients",),
        run=faults.clock_jumps(300),
        setup=Setup(clock="node"),
    ),
    Kind(
        name="node clock behind",
        harms="nodes",
        felt=("clients",),
        run=faults.clock_jumps(-300),
        setup=Setup(clock="node"),
    ),
    Kind(name="few files", harms="nodes", felt=("clients",), run=faults.few_files),
    Kind(name="archive frozen", harms="archive", run=faults.archive_frozen, setup=_ARCHIVED),
    Kind(
        name="archivists killed",
        harms="nodes",
        felt=("clients",),
        run=faults.archivists_killed,
        setup=_ARCHIVED,
    ),
    Kind(name="database frozen", harms="archive", run=faults.database_frozen, setup=_DATABASE),
    Kind(name="database killed", harms="archive", run=faults.database_killed, setup=_DATABASE),
    Kind(
        name="archive disk full",
        harms="archive",
        run=faults.disk_full,
        setup=replace(_ARCHIVED, disk="archive"),
    ),
    Kind(
        name="alone killed", harms="nodes", felt=("clients",), run=faults.node_killed, setup=_ALONE
    ),
    Kind(
        name="alone terminated",
        harms="nodes",
        felt=("clients",),
        run=faults.node_terminated,
        setup=_ALONE,
    ),
    Kind(name="alone stopped", harms="nodes", run=faults.node_stopped, setup=_ALONE),
    Kind(
        name="alone archive frozen",
        harms="nodes",
        felt=("publishers",),
        run=faults.archive_frozen,
        setup=_ALONE,
    ),
    Kind(
        name="alone disk full",
        harms="nodes",
        felt=("publishers",),
        run=faults.disk_full,
        setup=replace(_ALONE, disk="archive"),
    ),
    Kind(
        name="archive frozen and redis killed",
        harms="redis",
        felt=("publishers",),
        run=faults.both(faults.archive_frozen, faults.redis_killed),
        setup=_ARCHIVED,
    ),
)
