"""Load for the benchmarks: servers on a core of their own, and clients that cost little."""

import base64
import json
import os
import re
import resource
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
_LISTENING = re.compile(r"http://127\.0\.0\.1:(\d+)")
_START_S = 20.0


def raise_file_limit() -> None:
    """Allow as many sockets as the machine does."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cores() -> tuple[set[int], set[int]]:
    """Return the cores for the server and for the load; the same where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return {usable[0]}, set(usable[1:2]) or {usable[0]}


class Server:
    """A server in a process of its own, on a core of its own; ends with the `with` block."""

    def __init__(self, command: Sequence[str], environ: dict[str, str] | None = None) -> None:
        server_cores, _load = cores()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        os.sched_setaffinity(self._process.pid, server_cores)
        self.port = self._await_port()

    def _await_port(self) -> int:
        assert self._process.stdout is not None
        deadline = time.monotonic() + _START_S
        seen = ""
        while time.monotonic() < deadline:
            line = self._process.stdout.readline()
            if not line:
                break
            seen += line
            match = _LISTENING.search(line)
            if match and "listening" in line.lower():
                return int(match[1])
        raise RuntimeError(f"the server did not start:\n{seen}")

    def await_ready(self) -> None:
        """Wait until clients should be sent here."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline:
            with socket.create_connection(("127.0.0.1", self.port)) as sock:
                sock.sendall(b"GET /readyz HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
                if b" 200 " in sock.recv(4096).split(b"\r\n", 1)[0]:
                    return
            time.sleep(0.05)
        raise RuntimeError("the server did not get ready")

    def rss_bytes(self) -> int:
        """Return the memory that the process holds."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def peak_bytes(self) -> int:
        """Return the most memory that the process held since `forget_peak`."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def forget_peak(self) -> None:
        """Let the peak begin anew (proc(5), clear_refs)."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def cpu_s(self) -> float:
        """Return the CPU time that the process has used, user and system."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def galecast(**settings: object) -> Server:
    """Start a node for benchmarks: no limits on how many connect how fast."""
    environ = {
        "GALECAST_LIMITS_CONNECTIONS_PER_ADDRESS": "0",
        "GALECAST_LIMITS_HANDSHAKES_PER_S": "0",
        "GALECAST_LIMITS_KEY_REQUESTS_PER_S": "0",
        "GALECAST_LIMITS_KEY_PUBLISHES_PER_S": "0",
        **{f"GALECAST_{name.upper()}": str(value) for name, value in settings.items()},
    }
    command = [sys.executable, "-m", "server.cli", "serve", "--dev", "--port", "0"]
    return Server(command, environ)


def naive() -> Server:
    """Start the yardstick: a loop over Tornado's `write_message`."""
    return Server([sys.executable, "bench/_naive.py"])


@contextmanager
def redis(*more: str) -> Iterator[str]:
    """Run a Redis that keeps nothing on disk, on the servers' core; yield its address.

    `more` are options of its command line.
    """
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "redis.sock"
        options = ("--port", "0", "--unixsocket", str(path), "--save", "", "--dir", folder)
        process = subprocess.Popen(["redis-server", *options, *more], stdout=subprocess.DEVNULL)
        try:
            os.sched_setaffinity(process.pid, cores()[0])
            deadline = time.monotonic() + _START_S
            while not path.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("redis-server did not start")
                time.sleep(0.02)
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
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
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
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            os.sched_setaffinity(process.pid, cores()[0])
            deadline = time.monotonic() + _START_S
            while not _listens(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start")
                time.sleep(0.05)
            yield f"mongodb://127.0.0.1:{port}/bench"
        finally:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def on_load_core() -> Iterator[None]:
    """Run this process on the core for the load."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores()[1])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def mask(payload: bytes) -> bytes:
    """Return a text frame of a client; the mask is zero, which costs nothing and is legal."""
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + b"\0\0\0\0" + payload


def _read_frame(sock: socket.socket, buffer: bytearray) -> bytes:
    while True:
        if len(buffer) >= 2:
            size, head = buffer[1], 2
            if size == 126 and len(buffer) >= 4:
                size, head = int.from_bytes(buffer[2:4], "big"), 4
            if size != 126 and len(buffer) >= head + size:
                payload = bytes(buffer[head : head + size])
                del buffer[: head + size]
                return payload
        data = sock.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        buffer += data


def subscriber(
    port: int, channel: str | None, path: str = "/v1/ws", headers: str = ""
) -> socket.socket:
    """Open a session; subscribe to `channel` if one is given (else the server just sends).

    `headers` are more lines of the handshake, each with its end.
    """
    sock = socket.create_connection(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    sock.sendall(
        (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"{headers}\r\n"
        ).encode()
    )
    buffer = bytearray()
    while b"\r\n\r\n" not in buffer:
        data = sock.recv(4096)
        if not data:
            raise ConnectionError(f"no handshake: {bytes(buffer)!r}")
        buffer += data
    if not buffer.startswith(b"HTTP/1.1 101"):
        raise ConnectionError(f"no handshake: {bytes(buffer)!r}")
    del buffer[: buffer.index(b"\r\n\r\n") + 4]
    if channel is not None:
        commands = (
            {"type": "connect", "ref": 1},
            {"type": "subscribe", "ref": 2, "channel": channel},
        )
        sock.sendall(b"".join(mask(json.dumps(each).encode()) for each in commands))
        for expected in ("connected", "subscribed"):
            message = json.loads(_read_frame(sock, buffer))
            assert message["type"] == expected, message
    assert not buffer
    sock.setblocking(False)
    return sock


class Publisher:
    """Publishes over one HTTP connection, one event at a time, each acknowledged."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        """Return the socket's number, for a selector."""
        return self._sock.fileno()

    def send(self, body: bytes) -> None:
        """Send a request; its response is to be read with `receive`."""
        head = (
            "POST /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer dev.galecast\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._sock.sendall(head.encode() + body)

    def receive(self) -> bytes:
        """Return the response's body; raises if it is no success."""
        data = bytearray()
        while b"\r\n\r\n" not in data:
            data += self._sock.recv(65536)
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"publish failed: {bytes(data)!r}")
        found = re.search(rb"(?i)content-length: (\d+)", head)
        assert found is not None
        while len(body) < int(found[1]):
            body += self._sock.recv(65536)
        return body

    def close(self) -> None:
        """End the connection."""
        self._sock.close()


class Fleet:
    """Subscribers that keep what they receive until `take`, read by one selector."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.sockets = sockets
        self.received: list[list[bytes]] = [[] for _ in sockets]
        self._selector = selectors.DefaultSelector()
        for place, sock in enumerate(sockets):
            self._selector.register(sock, selectors.EVENT_READ, place)

    def add(self, publisher: Publisher) -> None:
        """Wait for a publisher's responses too."""
        self._selector.register(publisher, selectors.EVENT_READ, -1)

    def poll(self, timeout_s: float = 5.0) -> list[int]:
        """Read what came; return the places of who had something (-1: the publisher)."""
        places = []
        for key, _mask in self._selector.select(timeout_s):
            place: int = key.data
            if place >= 0:
                data = self.sockets[place].recv(1 << 20)
                if not data:
                    raise ConnectionError("the server closed a session")
                self.received[place].append(data)
            places.append(place)
        return places

    def close(self) -> None:
        """End all connections."""
        self._selector.close()
        for sock in self.sockets:
            sock.close()


def frames(data: bytes) -> Iterator[bytes]:
    """Yield the payloads of the text frames in what a server sent."""
    at = 0
    while at < len(data):
        opcode, size, at = data[at] & 0x0F, data[at + 1], at + 2
        if size == 126:
            size, at = int.from_bytes(data[at : at + 2], "big"), at + 2
        elif size == 127:
            size, at = int.from_bytes(data[at : at + 8], "big"), at + 8
        if opcode == 1:
            yield data[at : at + size]
        at += size
