"""A real master with replicas and the Sentinels that watch them, all on loopback."""

import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
import redis

from redis_server import RedisServer, encrypted, find_redis_server
from spawning import spawned

SERVICE = "main"
START_S = 20.0
# A Sentinel that stood still for 2 s trusts nothing for so long, and does nothing (TILT mode). The
# default is 30 s, after which a replica that hears no more of its master is not promoted any more.
TILT_MS = 2_000


class RedisReplica(RedisServer):
    """A server that may be master or replica; it listens on a port, with lines for `tls` so."""

    def __init__(self, *options: str, tls: Sequence[str] = ()) -> None:
        super().__init__(
            # Neither waits for company when it copies, nor for long when its master is gone.
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
            "repl-ping-replica-period 1",
            "repl-timeout 60",
            *options,
            tcp=True,
        )
        self._lines += encrypted(self.port, tls)

    def role(self) -> str:
        """Return master or slave, and for a replica that copies, its state."""
        answer = self.ask("ROLE")
        name: str = answer[0].decode()
        return name if name == "master" else f"slave {answer[3].decode()}"


class SentinelServer(RedisServer):
    """One Sentinel; what it has learned stays in its file when it is killed."""

    def __init__(self, master: RedisServer, *options: str, tls: Sequence[str] = ()) -> None:
        super().__init__(tcp=True)
        self._lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket}",
            f"dir {self.folder}",
            f"logfile {self.folder / 'log'}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 2",
            f"sentinel down-after-milliseconds {SERVICE} 600",
            f"sentinel failover-timeout {SERVICE} 3000",
            *options,
            *encrypted(self.port, tls),
        ]

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = find_redis_server()
        if program is None:
            pytest.skip("there is no redis-server")
        config = self.folder / "sentinel.conf"
        if not config.exists():
            config.write_text("\n".join(self._lines) + "\n")
        self.socket.unlink(missing_ok=True)
        with (self.folder / "output").open("wb") as output:
            self._process = spawned(
                lambda: subprocess.Popen(
                    [program, str(config), "--sentinel"], stdout=output, stderr=output
                )
            )
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                files = [self.folder / name for name in ("output", "log")]
                raise AssertionError("\n".join(f.read_text() for f in files if f.exists()))
            time.sleep(0.01)
        with suppress(redis.ResponseError):
            # Redis 6.2 cannot be told.
            self.ask("SENTINEL", "DEBUG", "tilt-period", TILT_MS)

    def master_port(self) -> int:
        """Return the port of the master that it names."""
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])


class SentinelRig:
    """A master, `replicas` replicas and three Sentinels; `options` are lines of their files.

    With `tls`, lines that name certificates, all of them speak TLS only.
    """

    def __init__(
        self,
        *options: str,
        replicas: int = 1,
        sentinel_options: Sequence[str] = (),
        tls: Sequence[str] = (),
    ) -> None:
        self.servers = [RedisReplica(*options, tls=tls) for _ in range(replicas + 1)]
        self.sentinels = [SentinelServer(self.master, *sentinel_options, tls=tls) for _ in range(3)]

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{places}/{SERVICE}"

    @property
    def master(self) -> RedisReplica:
        """The server that is master at first."""
        return self.servers[0]

    @property
    def replica(self) -> RedisReplica:
        """The first that is replica at first."""
        return self.servers[1]

    def __enter__(self) -> "SentinelRig":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start everything, and wait until the Sentinels know each other and all replicas."""
        for server in self.servers:
            server.start()
        for server in self.servers[1:]:
            server.ask("REPLICAOF", "127.0.0.1", self.master.port)
        self.wait(lambda: all(each.role() == "slave connected" for each in self.servers[1:]))
        for sentinel in self.sentinels:
            sentinel.start()
        self.wait(lambda: all(map(self._knows_all, self.sentinels)))

    def _knows_all(self, sentinel: SentinelServer) -> bool:
        answer = sentinel.ask("SENTINEL", "MASTER", SERVICE)
        fields = dict(zip(answer[::2], answer[1::2], strict=True))
        return (
            fields[b"flags"] == b"master"
            and int(fields[b"num-slaves"]) == len(self.servers) - 1
            and int(fields[b"num-other-sentinels"]) == len(self.sentinels) - 1
        )

    def wait(self, condition: Callable[[], Any]) -> None:
        """Wait until `condition` holds; blocks."""
        deadline = time.monotonic() + START_S
        while not condition():
            assert time.monotonic() < deadline, "it never came to be"
            time.sleep(0.02)

    def promoted(self, server: RedisReplica) -> bool:
        """Say whether most Sentinels name this server, and it is master."""
        names = [each.master_port() == server.port for each in self.sentinels if each.running]
        return sum(names) > len(names) // 2 and server.role() == "master"

    def close(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.close()
