"""What is done to a fleet: functions that harm a rig, and return when it is healed."""

import asyncio
import os
import resource
import signal
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Final

from fault_proxy import FaultProxy
from fault_rig import CHANNELS, FaultRig, is_there
from fleet_clients import until
from ports import steady_ports
from pubsub.redis_keys import RedisKeys

# Longer than the lease of a node (2 s) lasts.
_BEYOND_LEASE_S: Final = 3.0
# So many events fill the buffers of a connection that is not read.
_FAR_MORE: Final = 500


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


async def _swallowed(rig: FaultRig, proxies: Iterable[FaultProxy]) -> None:
    """A black hole: nobody hears of the other, and no connection ends."""
    for proxy in proxies:
        proxy.up.swallows = proxy.back.swallows = True
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
        lost += 1
        await until(partial(_lose, proxies, of, lost))
        await rig.tried(1)


def _lose(proxies: Iterable[FaultProxy], of: bytes, number: int) -> bool:
    """Say whether so many were lost; else go on: a connection may end before its answer."""
    if sum(proxy.lost for proxy in proxies) >= number:
        return True
    for proxy in proxies:
        proxy.lose = of
    return False


Network = Callable[[FaultRig, Iterable[FaultProxy]], Awaitable[None]]
NETWORK: Final[dict[str, Network]] = {
    "slow": _slow,
    "sliced": _sliced,
    "narrow": _narrow,
    "held": _held,
    "swallowed up": _swallowed_up,
    "swallowed back": _swallowed_back,
    "swallowed": _swallowed,
    "reset": _reset,
    "half closed": _half_closed,
    "refused": _refused,
}


def on(
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
    proxy = rig.rng.choice(rig.to_redis)
    proxy.mute = True
    await asyncio.sleep(2.0)
    proxy.mute = False


# ---- clients


async def clients_wander(rig: FaultRig) -> None:
    """No fault at all: clients come and go."""
    first = 100 * (1 + len(rig.recorder.records))
    them = [rig.client(first + number) for number in range(4)]
    await until(lambda: all(map(is_there, them)))
    for each in them:
        await rig.tried(1)
        await each.depart()


async def client_stops_reading(rig: FaultRig) -> None:
    """Until far more has come than any kernel keeps; then it reads on."""
    client = rig.stalling()
    await until(lambda: is_there(client))
    await rig.flow(2)
    client.reading.clear()
    before = rig.recorder.acknowledged
    # A third of them are large.
    await until(lambda: rig.recorder.acknowledged >= before + _FAR_MORE)
    client.reading.set()


# ---- processes


async def node_killed(rig: FaultRig) -> None:
    node = rig.rng.choice(rig.nodes)
    await asyncio.to_thread(node.kill)
    await rig.tried(2)
    await asyncio.to_thread(node.start)


async def node_terminated(rig: FaultRig) -> None:
    node = rig.rng.choice(rig.nodes)
    await asyncio.to_thread(node.stop)
    await rig.tried(1)
    await asyncio.to_thread(node.start)


async def node_stopped(rig: FaultRig) -> None:
    """It wakes when its lease is over, with requests in it that nobody waits for any more."""
    node = rig.rng.choice(rig.nodes)
    node.signal(signal.SIGSTOP)
    await asyncio.sleep(_BEYOND_LEASE_S)
    node.signal(signal.SIGCONT)


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


async def redis_terminated(rig: FaultRig) -> None:
    """Redis is stopped in an orderly way, as for a new version."""
    await asyncio.to_thread(rig.redis.terminate)
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


async def history_evicted(rig: FaultRig) -> None:
    """The events that Redis keeps are gone; who resumes meanwhile is told."""
    keys = RedisKeys()
    for channel in CHANNELS:
        await asyncio.to_thread(rig.redis.ask, "DEL", keys.stream(channel))
    await _reset(rig, rig.to_node)


async def failed_over(rig: FaultRig) -> None:
    """The master dies, and its replica takes over."""
    servers = rig.sentinels
    assert servers is not None
    await asyncio.to_thread(servers.master.kill)
    await asyncio.to_thread(servers.wait, lambda: servers.promoted(servers.replica))
    await rig.all_ready()


async def tail_lost(rig: FaultRig) -> None:
    """The master dies with events that its replica never got, and the replica takes over."""
    servers = rig.sentinels
    assert servers is not None
    # From here on it hears nothing of its master; soon it must be promoted.
    nowhere = ("REPLICAOF", "127.0.0.1", steady_ports(1)[0])
    await asyncio.to_thread(servers.replica.ask, *nowhere)
    await rig.flow(2)
    await failed_over(rig)


async def cluster_failed_over(rig: FaultRig) -> None:
    """A master of a cluster dies, its replica takes over, and it comes back as a replica."""
    cluster = rig.cluster
    assert cluster is not None
    master = cluster.masters[0]
    await asyncio.to_thread(master.kill)
    await asyncio.to_thread(cluster.await_master, cluster.replica_of(master))
    await rig.all_ready()
    await rig.flow(2)
    await asyncio.to_thread(master.start)
    await asyncio.to_thread(cluster.await_replica, master)


async def cluster_master_frozen(rig: FaultRig) -> None:
    """It wakes as a master, of slots that its replica has taken over meanwhile."""
    cluster = rig.cluster
    assert cluster is not None
    master = cluster.masters[0]
    master.stop()
    await asyncio.to_thread(cluster.await_master, cluster.replica_of(master))
    await rig.tried(2)
    master.go_on()
    await asyncio.to_thread(cluster.await_replica, master)
    await rig.all_ready()


async def slots_moved(rig: FaultRig) -> None:
    """The slots of all channels and of what nodes share move to other masters, and back."""
    cluster, keys = rig.cluster, RedisKeys()
    assert cluster is not None
    names = [*(keys.record(channel) for channel in CHANNELS), keys.leases[0]]
    homes = {name: cluster.owner(name) for name in names}
    for name, home in homes.items():
        target = cluster.another(home)
        await asyncio.to_thread(cluster.begin_migration, name, target)
        # Half of a slot is here, half there.
        await rig.tried(1)
        assert await asyncio.to_thread(cluster.migrate, name, target)
        await rig.flow(1)
    for name, home in homes.items():
        assert await asyncio.to_thread(cluster.migrate, name, home)
    await rig.all_ready()


async def disk_full(rig: FaultRig) -> None:
    """Nothing more can be written, until there is room again."""
    assert rig.disk is not None
    await asyncio.to_thread(rig.disk.fill)
    await rig.tried(3)
    await asyncio.sleep(2.0)
    await asyncio.to_thread(rig.disk.free)
    await rig.all_ready()


def clock_jumps(seconds: int) -> Callable[[FaultRig], Awaitable[None]]:
    async def run(rig: FaultRig) -> None:
        assert rig.clock is not None
        for put_off in (seconds, 0):
            rig.clock.jump(put_off)
            await rig.tried(3)
            for proxy in rig.to_node:
                proxy.reset()
            await rig.tried(2)
            await asyncio.sleep(1.0)

    return run


# ---- resources


async def few_files(rig: FaultRig) -> None:
    """A node may open no file more than it has open: it can take no new connection."""
    node = rig.nodes[0]
    assert node.process is not None
    pid = node.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{pid}/fd")), before[1]))
    rig.to_node[0].reset()
    rig.to_redis[0].reset()
    await rig.tried(3)
    await asyncio.sleep(1.0)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


# ---- the archive


async def archive_frozen(rig: FaultRig) -> None:
    """Somebody holds the database of the archive for longer than any write waits."""
    await asyncio.to_thread(_hold_database, rig.archive_path, 3.0)


def _hold_database(path: Path, seconds: float) -> None:
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        time.sleep(seconds)
        connection.execute("ROLLBACK")
    finally:
        connection.close()


async def database_frozen(rig: FaultRig) -> None:
    """The database of the archive takes what is sent, and answers nothing."""
    assert rig.database is not None
    rig.database.stop()
    await rig.tried(2)
    await asyncio.sleep(_BEYOND_LEASE_S)
    rig.database.go_on()


async def database_killed(rig: FaultRig) -> None:
    """The database of the archive is away, and comes back."""
    assert rig.database is not None
    await asyncio.to_thread(rig.database.kill)
    await rig.tried(3)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(rig.database.start)


async def archivists_killed(rig: FaultRig) -> None:
    """Nodes die in the middle of what they move into the archive, which waits for them."""
    for node in rig.nodes:
        frozen = asyncio.create_task(asyncio.to_thread(_hold_database, rig.archive_path, 0.8))
        await rig.tried(2)
        await asyncio.to_thread(node.kill)
        await frozen
        await asyncio.to_thread(node.start)


def both(*runs: Callable[[FaultRig], Awaitable[None]]) -> Callable[[FaultRig], Awaitable[None]]:
    async def run(rig: FaultRig) -> None:
        await asyncio.gather(*(each(rig) for each in runs))

    return run
