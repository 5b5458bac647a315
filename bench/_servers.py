"""What the benchmarks run: servers on one core, the load on another where there is one."""

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

ROOT = Path(__file__).resolve().parent.parent
DEV_KEY = "dev.galecast"
_LISTENING = re.compile(r"listening .*?http://127\.0\.0\.1:(\d+)", re.IGNORECASE)
_START_S = 45.0
_WAIT_S = 0.02
# Before `on_load_core` leaves this process one of them.
_USABLE: Final = tuple(sorted(os.sched_getaffinity(0)))


def raise_file_limit() -> int:
    """Allow as many open files as the machine does; return how many that are."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def cores() -> tuple[set[int], set[int]]:
    """Return the cores for the server and for the load; the same where there is only one."""
    return set(_USABLE[:1]), set(_USABLE[1:2]) or set(_USABLE[:1])


def core_count() -> int:
    """Return how many cores there are for all of it."""
    return len(_USABLE)


@contextmanager
def on_load_core() -> Iterator[None]:
    """Run this process on the core for the load; servers that it starts get theirs all the same."""
    with _on(cores()[1]):
        yield


@contextmanager
def _on(chosen: set[int]) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class NotStarted(RuntimeError):
    """A server did not start; the text has what it said."""


class Server:
    """A server, with all of its processes and threads on one core; ends with the `with` block.

    Its port is the one that it prints, or `port` once something listens there. `spread` lets it
    have all cores.
    """

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str] | None = None,
        *,
        port: int = 0,
        cwd: Path = ROOT,
        spread: bool = False,
    ) -> None:
        self.name = Path(command[0]).name
        # Not a pipe, which nobody would empty.
        self._said = tempfile.TemporaryFile()
        # What is inherited holds for threads and processes to come as well.
        with _on(set(_USABLE) if spread else cores()[0]):
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                env={**os.environ, **(environ or {})},
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self.port = self._await_listening(port)
        except BaseException:
            self.stop()
            raise

    def said(self) -> str:
        """Return what it has printed."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode("utf-8", "replace")

    def _await_listening(self, port: int) -> int:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            if port:
                if not ended and listens(port):
                    return port
            elif found := _LISTENING.search(self.said()):
                return int(found[1])
            if ended:
                break
            time.sleep(_WAIT_S)
        raise NotStarted(f"{self.name} did not start:\n{self.said()[-2000:]}")

    def await_ready(self) -> None:
        """Wait until clients should be sent here."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with socket.create_connection(("127.0.0.1", self.port)) as sock:
                sock.sendall(b"GET /readyz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                if b" 200 " in sock.recv(4096).split(b"\r\n", 1)[0]:
                    return
            time.sleep(0.05)
        raise NotStarted(f"{self.name} did not get ready:\n{self.said()[-2000:]}")

    def await_processes(self, number: int) -> None:
        """Wait until it has so many processes."""
        deadline = time.monotonic() + _START_S
        while len(self.pids()) < number:
            if time.monotonic() > deadline:
                raise NotStarted(f"{self.name} has not {number} processes:\n{self.said()[-2000:]}")
            time.sleep(_WAIT_S)

    def pids(self) -> list[int]:
        """Return its processes."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
                except (OSError, IndexError):
                    continue
                if int(fields[2]) == self._process.pid and fields[0] != "Z":
                    found.append(int(entry.name))
        return sorted(found)

    def _status_bytes(self, name: str) -> int:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(rf"{name}:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def rss_bytes(self) -> int:
        """Return the memory that its first process holds."""
        return self._status_bytes("VmRSS")

    def peak_bytes(self) -> int:
        """Return the most memory that its first process held since `forget_peak`."""
        return self._status_bytes("VmHWM")

    def forget_peak(self) -> None:
        """Let the peak begin anew (proc(5), clear_refs)."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def cpu_s(self) -> float:
        """Return the CPU time that all of it has used."""
        return sum(map(_cpu_s, self.pids()))

    def ticks(self) -> tuple[int, int]:
        """Return the CPU time that all of it has used, user and system, in ticks of the kernel."""
        found = [_ticks(pid) for pid in self.pids()]
        return sum(user for user, _ in found), sum(system for _, system in found)

    def stop(self) -> None:
        """End it at once, with all of its processes; may be called twice."""
        if self._process.poll() is None or self.pids():
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        # Its children are told in the same moment, and end when each has its turn.
        deadline = time.monotonic() + _START_S
        while self.pids() and time.monotonic() < deadline:
            time.sleep(_WAIT_S)
        self._said.close()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _cpu_s(pid: int) -> float:
    """Return how long all threads of a process have run: in ns where the kernel counts them."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return total / 1e9
    except FileNotFoundError:
        return sum(_ticks(pid)) / os.sysconf("SC_CLK_TCK")


def _ticks(pid: int) -> tuple[int, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    except OSError:
        return 0, 0
    return int(fields[11]), int(fields[12])


def listens(port: int) -> bool:
    """Return whether something listens on a port."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a port for a server that cannot choose one by itself."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def galecast(
    *more: str, spread: bool = False, settings: Mapping[str, object] | None = None
) -> Server:
    """Start a node for benchmarks: no limits on how many connect how fast, or publish.

    `settings` are named as in the environment, without its prefix; `more` are options of `serve`.
    """
    environ = {
        "GALECAST_LIMITS_CONNECTIONS_PER_ADDRESS": "0",
        "GALECAST_LIMITS_HANDSHAKES_PER_S": "0",
        "GALECAST_LIMITS_KEY_REQUESTS_PER_S": "0",
        "GALECAST_LIMITS_KEY_PUBLISHES_PER_S": "0",
        "GALECAST_LIMITS_CONTROL_FRAMES_PER_S": "0",
        # Peers send no pings either; and while thousands are opened nobody would answer them.
        "GALECAST_SESSION_PING_S": "600",
        **{f"GALECAST_{name.upper()}": str(value) for name, value in (settings or {}).items()},
    }
    command = [sys.executable, "-m", "server.cli", "serve", "--dev", "--port", "0", *more]
    return Server(command, environ, spread=spread)


@contextmanager
def redis(*more: str) -> Iterator[str]:
    """Run a Redis that keeps nothing on disk, on the servers' core; yield its address.

    `more` are options of its command line.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "redis.sock"
        options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder)
        with _on(cores()[0]):
            process = subprocess.Popen(["redis-server", *options, *more], stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + _START_S
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise NotStarted("redis-server did not start")
                time.sleep(_WAIT_S)
            yield f"unix://{path}"
        finally:
            process.kill()
            process.wait()


def find_mongod() -> str | None:
    """Return the path of a mongod, or None."""
    return os.environ.get("MONGOD") or shutil.which("mongod")


@contextmanager
def mongodb() -> Iterator[str | None]:
    """Run a `mongod` or a `ferretdb`, on the servers' core; yield a database's address.

    They are found on the PATH, or named by MONGOD or FERRETDB; without either it is None.
    """
    mongod = find_mongod()
    ferretdb = os.environ.get("FERRETDB") or shutil.which("ferretdb")
    if mongod is None and ferretdb is None:
        yield None
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
        if mongod is not None:
            command = [mongod, "--bind_ip", "127.0.0.1", "--port", str(port), "--dbpath", folder]
        else:
            assert ferretdb is not None
            command = [
                ferretdb,
                "--handler=sqlite",
                f"--sqlite-url=file:{folder}/",
                f"--listen-addr=127.0.0.1:{port}",
                f"--state-dir={folder}",
                "--debug-addr=-",
                "--telemetry=disable",
                "--log-level=ERROR",
            ]
        with Server(command, port=port):
            yield f"mongodb://127.0.0.1:{port}/bench"
