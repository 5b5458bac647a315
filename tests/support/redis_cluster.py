"""A real Redis Cluster for tests: masters, and replicas where asked for, on ports of 127.0.0.1."""

import atexit
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import redis
from redis.crc import key_slot

from redis_server import RedisServer, encrypted, find_redis_server, free_port, is_redis_6

SLOTS = 16_384
JOIN_S = 30.0


def _wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + JOIN_S
    while not condition():
        assert time.monotonic() < deadline, f"the cluster never was so: {what}"
        time.sleep(0.02)


@contextmanager
def _connected(path: Path) -> Iterator[redis.UnixDomainSocketConnection]:
    # The port may speak TLS only.
    connection = redis.UnixDomainSocketConnection(  # type: ignore[abstract, no-untyped-call]
        str(path), protocol=2, socket_timeout=10
    )
    try:
        yield connection
    finally:
        connection.disconnect()  # type: ignore[no-untyped-call]


class ClusterServer(RedisServer):
    """One server of a cluster; with lines for `tls` it speaks TLS only, to the others too."""

    def __init__(self, *options: str, tls: Sequence[str] = ()) -> None:
        super().__init__(
            "cluster-enabled yes",
            f"cluster-port {free_port()}",
            "cluster-node-timeout 1500",
            "cluster-require-full-coverage no",
            "repl-diskless-sync-delay 0",
            *options,
            tcp=True,
        )
        if tls:
            self._lines += [*encrypted(self.port, tls), "tls-cluster yes"]

    def start(self) -> None:
        program = find_redis_server()
        if program is not None and is_redis_6(program):
            # Before Redis 7 the port of the bus is 10,000 above the other, which must leave room.
            self._lines = [each for each in self._lines if not each.startswith("cluster-port")]
            while self.port > 55_000:
                self._lines.remove(f"port {self.port}")
                self.port = free_port()
                self._lines.append(f"port {self.port}")
        super().start()

    @property
    def bus(self) -> int:
        for line in self._lines:
            if line.startswith("cluster-port "):
                return int(line.split()[1])
        return self.port + 10_000

    @property
    def name(self) -> str:
        """What the cluster calls it."""
        return str(self.ask("CLUSTER", "MYID").decode())

    def cluster(self, *parts: str | bytes | int) -> Any:
        """Run a CLUSTER command; its answer stays as it is."""
        return self.ask_raw("CLUSTER", *parts)

    def ask_raw(self, *parts: str | bytes | int) -> Any:
        """Run a command; its answer stays as it is."""
        with _connected(self.socket) as connection:
            connection.send_command(*parts)  # type: ignore[no-untyped-call]
            return connection.read_response()

    def wait_for(self, replica: "ClusterServer") -> None:
        """Return when a replica has all that was written here so far.

        WAIT would answer for the writes of the connection that asks, which has none.
        """
        offset = self._replication_offset(b"master_repl_offset")
        _wait(
            lambda: replica._replication_offset(b"slave_repl_offset") >= offset,
            "replicated up to now",
        )

    def _replication_offset(self, name: bytes) -> int:
        answer: bytes = self.ask_raw("INFO", "replication")
        return int(answer.split(name + b":")[1].split()[0])

    @property
    def running(self) -> bool:
        return self._process is not None

    def says(self, line: bytes) -> bool:
        return line in self.cluster("INFO")


class RedisCluster:
    """Masters that share the slots evenly; started by `with` or `start`.

    With `replicas`, each master has one; `replicas[n]` is that of `masters[n]`. With `tls`, lines
    that name certificates, all of them speak TLS only.
    """

    def __init__(self, count: int = 3, *, replicas: bool = False, tls: Sequence[str] = ()) -> None:
        self.masters = [ClusterServer(tls=tls) for _ in range(count)]
        self.replicas = [ClusterServer(tls=tls) for _ in range(count if replicas else 0)]
        self._names: dict[str, ClusterServer] = {}

    def __enter__(self) -> "RedisCluster":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def servers(self) -> Sequence[ClusterServer]:
        return [*self.masters, *self.replicas]

    @property
    def url(self) -> str:
        """The address of a cluster of which two servers are named."""
        places = ",".join(f"127.0.0.1:{each.port}" for each in self.masters[:2])
        return f"redis+cluster://{places}"

    def start(self) -> None:
        """Start all servers and let them meet; returns when all know who owns what."""
        for server in self.servers:
            server.start()
        self._names = {server.name: server for server in self.servers}
        count = len(self.masters)
        for at, master in enumerate(self.masters):
            first, last = at * SLOTS // count, (at + 1) * SLOTS // count
            master.cluster("ADDSLOTS", *range(first, last))
            # Else they would give each other numbers first, which takes a while.
            master.cluster("SET-CONFIG-EPOCH", at + 1)
        for server in self.servers[1:]:
            first_one = self.masters[0]
            server.cluster("MEET", "127.0.0.1", first_one.port, first_one.bus)
        known = len(self.servers)
        _wait(
            lambda: all(
                each.says(b"cluster_known_nodes:%d\r\n" % known)
                and each.says(b"cluster_slots_assigned:%d\r\n" % SLOTS)
                and each.says(b"cluster_state:ok")
                for each in self.servers
            ),
            "complete",
        )
        for master, replica in zip(self.masters, self.replicas, strict=False):
            replica.cluster("REPLICATE", master.name)
        if self.replicas:
            _wait(
                lambda: all(
                    b"master_link_status:up" in each.ask_raw("INFO", "replication")
                    for each in self.replicas
                ),
                "replicated",
            )

    def close(self) -> None:
        """End all servers; may be called twice."""
        for server in self.servers:
            server.close()

    def owner(self, key: str) -> ClusterServer:
        """Return who owns the slot of a key, as the first living master says."""
        slot = key_slot(key.encode())
        alive = next(each for each in self.servers if each.running)
        for first, last, place, *_others in alive.cluster("SLOTS"):
            if first <= slot <= last:
                # Not by the port: who asks without TLS is told the one without.
                return self._names[place[2].decode()]
        raise AssertionError(f"nobody owns slot {slot}")

    def replica_of(self, master: ClusterServer) -> ClusterServer:
        """Return the server that began as the replica of a master."""
        return self.replicas[self.masters.index(master)]

    def await_master(self, server: ClusterServer) -> None:
        """Return when a server that was a replica has taken over."""
        _wait(lambda: b"role:master" in server.ask_raw("INFO", "replication"), "taken over")

    def await_replica(self, server: ClusterServer) -> None:
        """Return when a server is a replica that has what its master has."""
        _wait(
            lambda: b"master_link_status:up" in server.ask_raw("INFO", "replication"),
            "again replicated",
        )

    def another(self, than: ClusterServer) -> ClusterServer:
        """Return a master that is not `than`."""
        return next(each for each in self.masters if each is not than)

    def begin_migration(self, key: str, target: ClusterServer) -> ClusterServer:
        """Let the slot of a key migrate; return whose it is. No key moves yet."""
        slot, source = key_slot(key.encode()), self.owner(key)
        target.cluster("SETSLOT", slot, "IMPORTING", source.name)
        source.cluster("SETSLOT", slot, "MIGRATING", target.name)
        return source

    def move_keys(self, key: str, source: ClusterServer, target: ClusterServer) -> int:
        """Move the keys of a slot that migrates one by one; return how many."""
        slot, moved = key_slot(key.encode()), 0
        while names := source.cluster("GETKEYSINSLOT", slot, 10):
            for name in names:
                source.ask_raw("MIGRATE", "127.0.0.1", target.port, name, 0, 5_000)
                moved += 1
        return moved

    def end_migration(self, key: str, source: ClusterServer, target: ClusterServer) -> None:
        """Give a slot, all of whose keys have moved, to its new owner."""
        slot, name = key_slot(key.encode()), target.name
        others = [each for each in self.masters if each not in (source, target)]
        for server in (target, source, *others):
            server.cluster("SETSLOT", slot, "NODE", name)

    def migrate(self, key: str, target: ClusterServer) -> int:
        """Move the slot of a key to another master while it is in use; return how many keys."""
        source = self.begin_migration(key, target)
        while True:
            moved = self.move_keys(key, source, target)
            # Keys may come as long as the source owns the slot; none does while it has none.
            if not source.cluster("COUNTKEYSINSLOT", key_slot(key.encode())):
                self.end_migration(key, source, target)
                return moved


@cache
def shared_cluster() -> RedisCluster:
    """Return one cluster for all tests of this process that use a key prefix of their own."""
    cluster = RedisCluster()
    atexit.register(cluster.close)
    cluster.start()
    return cluster
