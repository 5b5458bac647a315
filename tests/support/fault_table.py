"""Every fault that is done to a fleet: what harms it, how it heals, and what may come of it.

A new fault is a function that harms and heals, and a line in `FAULTS`. Those that need no rig of
their own are mixed at random by the soak (`tests/faults/soak.py`).
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from fault_proxy import FaultProxy
from fault_rig import CHANNELS, FaultRig, Setup
from fleet_clients import until
from pubsub.redis_keys import RedisKeys

# Longer than the lease of a node (2 s) lasts.
_BEYOND_LEASE_S: Final = 3.0


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A fault: `run` harms the rig, and returns when it is healed.

    `tellings`: how often each client may be told at most that events may be missing. `loses`: it
    may take acknowledged events with it, if that is told. `setup`: the rig that it takes.
    """

    name: str
    run: Callable[[FaultRig], Awaitable[None]]
    tellings: int = 0
    loses: bool = False
    setup: Setup = field(default_factory=Setup)


# ---- the network


async def _slow(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    for proxy in proxies:
        for way in (proxy.up, proxy.back):
            way.latency_s, way.jitter_s = 0.02, 0.05
    await rig.flow(3)


async def _sliced(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    for proxy in proxies:
        proxy.up.slice_bytes = proxy.back.slice_bytes = 1
    await rig.flow(2)


async def _narrow(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    for proxy in proxies:
        proxy.up.bytes_per_s = proxy.back.bytes_per_s = 30_000
    await rig.tried(3)


async def _held(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    for proxy in proxies:
        proxy.up.hold()
        proxy.back.hold()
    await asyncio.sleep(_BEYOND_LEASE_S)


async def _swallowed_up(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    for proxy in proxies:
        proxy.up.swallows = True
    await asyncio.sleep(_BEYOND_LEASE_S)


async def _swallowed_back(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    for proxy in proxies:
        proxy.back.swallows = True
    await asyncio.sleep(_BEYOND_LEASE_S)


async def _reset(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    proxies = list(proxies)
    for _ in range(3):
        for proxy in proxies:
            proxy.reset()
        await rig.tried(1)


async def _half_closed(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    proxies = list(proxies)
    for _ in range(2):
        for proxy in proxies:
            proxy.half_close()
        await rig.tried(2)


async def _refused(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    for proxy in proxies:
        proxy.refuse = 5
        proxy.reset()
    await rig.tried(4)


async def _answers_lost(rig: FaultRig, proxies: Iterable[FaultProxy], of: bytes) -> None:
    proxies = list(proxies)
    lost = sum(proxy.lost for proxy in proxies)
    for _ in range(4):
        for proxy in proxies:
            proxy.lose = of
        await rig.tried(1)
        lost += 1
        await until(partial(_have_lost, proxies, lost))


def _have_lost(proxies: Iterable[FaultProxy], number: int) -> bool:
    return sum(proxy.lost for proxy in proxies) >= number


Network = Callable[[FaultRig, Iterable[FaultProxy]], Awaitable[None]]
NETWORK: Final[dict[str, Network]] = {
    "slow": _slow,
    "sliced": _sliced,
    "narrow": _narrow,
    "held": _held,
    "swallowed up": _swallowed_up,
    "swallowed back": _swallowed_back,
    "reset": _reset,
    "half closed": _half_closed,
    "refused": _refused,
}


def _on(
    how: Network, which: Callable[[FaultRig], Iterable[FaultProxy]]
) -> Callable[[FaultRig], Awaitable[None]]:
    async def run(rig: FaultRig) -> None:
        await how(rig, which(rig))
        rig.heal()

    return run


async def publishes_answers_lost(rig: FaultRig) -> None:
    """Redis carries out a publish, and nobody hears of it."""
    await _answers_lost(rig, rig.to_redis, b"EVALSHA")
    rig.heal()


async def http_answers_lost(rig: FaultRig) -> None:
    """A node acknowledges, and the publisher does not hear of it."""
    await _answers_lost(rig, rig.to_node, b"POST /v1/events")
    rig.heal()


async def deaf(rig: FaultRig) -> None:
    """One node's pub/sub connection stands, and nothing comes through it."""
    rig.to_redis[0].mute = True
    await asyncio.sleep(2.0)
    rig.to_redis[0].mute = False


# ---- processes


async def node_killed(rig: FaultRig) -> None:
    node = rig.nodes[-1]
    await asyncio.to_thread(node.kill)
    await rig.tried(2)
    await asyncio.to_thread(node.start)


async def node_terminated(rig: FaultRig) -> None:
    node = rig.nodes[0]
    await asyncio.to_thread(node.stop)
    await rig.tried(1)
    await asyncio.to_thread(node.start)


async def node_stopped(rig: FaultRig) -> None:
    """It wakes when its lease is over, with requests in it that nobody waits for any more."""
    rig.nodes[0].signal(signal.SIGSTOP)
    await asyncio.sleep(_BEYOND_LEASE_S)
    rig.nodes[0].signal(signal.SIGCONT)


async def nodes_stall(rig: FaultRig) -> None:
    """Their loops stand still for a moment, again and again."""
    for _ in range(4):
        for node in rig.nodes:
            node.signal(signal.SIGSTOP)
        await asyncio.sleep(0.4)
        for node in rig.nodes:
            node.signal(signal.SIGCONT)
        await rig.tried(1)


# ---- Redis


async def redis_killed(rig: FaultRig) -> None:
    await asyncio.to_thread(rig.redis.kill)
    await rig.tried(2)
    await asyncio.to_thread(rig.redis.start)
    await rig.all_ready()


async def redis_emptied(rig: FaultRig) -> None:
    await asyncio.to_thread(rig.redis.kill)
    await rig.tried(2)
    await asyncio.to_thread(rig.redis.wipe)
    await asyncio.to_thread(rig.redis.start)
    await rig.all_ready()


async def redis_stopped(rig: FaultRig) -> None:
    rig.redis.stop()
    await asyncio.sleep(_BEYOND_LEASE_S)
    rig.redis.go_on()


async def redis_clients_killed(rig: FaultRig) -> None:
    for kind in ("pubsub", "normal", "pubsub"):
        await asyncio.to_thread(rig.redis.kill_clients, kind)
        await rig.tried(1)


async def records_evicted(rig: FaultRig) -> None:
    """What Redis has of channels but their events is gone, as if it had been evicted."""
    keys = RedisKeys()
    for channel in CHANNELS:
        await asyncio.to_thread(rig.redis.ask, "DEL", keys.record(channel))
    await rig.tried(2)


async def memory_full(rig: FaultRig) -> None:
    await asyncio.to_thread(rig.redis.ask, "CONFIG", "SET", "maxmemory", "1mb")
    await rig.tried(3)
    await asyncio.to_thread(rig.redis.ask, "CONFIG", "SET", "maxmemory", "256mb")


def _network(where: str, which: Callable[[FaultRig], Iterable[FaultProxy]]) -> list[Kind]:
    return [Kind(name=f"{where} {name}", run=_on(how, which)) for name, how in NETWORK.items()]


FAULTS: Final = (
    *_network("to redis", lambda rig: rig.to_redis[:1]),
    *_network("to nodes", lambda rig: rig.to_node[:1]),
    Kind(name="publishes' answers lost", run=publishes_answers_lost),
    Kind(name="http answers lost", run=http_answers_lost),
    Kind(name="one node deaf", run=deaf),
    Kind(name="node killed", run=node_killed),
    Kind(name="node terminated", run=node_terminated),
    Kind(name="node stopped", run=node_stopped),
    Kind(name="nodes stall", run=nodes_stall),
    Kind(name="redis killed", run=redis_killed),
    Kind(name="redis emptied", run=redis_emptied, tellings=1, loses=True),
    Kind(name="redis stopped", run=redis_stopped),
    Kind(name="redis clients killed", run=redis_clients_killed),
    Kind(name="records evicted", run=records_evicted, tellings=1, loses=True),
    Kind(name="memory full", run=memory_full),
)
