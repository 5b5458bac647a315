"""A node dies and all of its sessions come back elsewhere: Redis must not feel it."""

import json
import os
import re
import resource
import selectors
import socket
import time
from base64 import b64encode
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection
from signal import SIGKILL
from typing import Any, Final

import pytest

from processes import ServerProcess
from redis_server import RedisServer

SESSIONS: Final = 10_000
CHANNELS: Final = 50
MISSED: Final = 3
# Sockets of the test itself, of the server and of what else is open.
SPARE_FILES: Final = 1_000
PATIENCE_S: Final = 90.0
# A connection that the kernel has not answered is tried again, as a client would.
TRY_AGAIN_S: Final = 15.0


def sessions() -> int:
    """10,000, or as many as this machine lets a process open; fewer are a failure if strict."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = SESSIONS if hard == resource.RLIM_INFINITY else min(SESSIONS, hard - SPARE_FILES)
    strict = os.environ.get("TEST_STRICT", "") not in ("", "0")
    assert most >= (SESSIONS if strict else 1_000), f"only {hard} files may be open"
    return most


def node(redis: RedisServer) -> ServerProcess:
    quiet = {
        "GALECAST_BROKER_URL": redis.url,
        # All come within a second or two, and the machine may be busy with other things.
        "GALECAST_BROKER_CALL_TIMEOUT_S": "30",
        "GALECAST_SESSION_CONNECT_TIMEOUT_S": "120",
        # These clients answer no ping, and to let all come may take a busy machine longer.
        "GALECAST_SESSION_PING_S": "600",
        "GALECAST_LIMITS_CONNECTIONS_PER_ADDRESS": "0",
        "GALECAST_LIMITS_HTTP_CONNECTIONS_PER_ADDRESS": "0",
        "GALECAST_LIMITS_HANDSHAKES_PER_S": "0",
        "GALECAST_LIMITS_KEY_PUBLISHES_PER_S": "0",
    }
    return ServerProcess("--dev", environ=quiet)


def ask(server: ServerProcess, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_S)
    head = {"Authorization": "Bearer dev.galecast", "Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), head)
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        connection.close()


def await_ready(server: ServerProcess) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while ask(server, "GET", "/readyz")[0] != 200:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def history_reads(server: ServerProcess) -> int:
    found = re.search(
        rb"^galecast_broker_history_reads_total (\S+)", ask(server, "GET", "/metrics")[1], re.M
    )
    assert found is not None
    return int(float(found[1]))


def script_calls(redis: RedisServer) -> int:
    """All scripts that Redis was asked to run: publishes, reads, subscriptions, heartbeats."""
    stats = redis.ask("INFO", "commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


def channel_of(number: int) -> str:
    return f"storm.{number % CHANNELS}"


def publish(server: ServerProcess, names: Sequence[str]) -> None:
    """Publish one event for each name to every channel."""
    for name in names:
        events = [{"channel": channel_of(n), "data": 0, "id": name} for n in range(CHANNELS)]
        status, body = ask(server, "POST", "/v1/events", events)
        assert status == 200, body


def masked(message: dict[str, Any]) -> bytes:
    payload = json.dumps(message).encode()
    size = len(payload)
    head = bytes((0x81, 0x80 | size)) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return head + bytes(4) + payload


class Session:
    """A client at its rawest: handshake and commands go out in one piece."""

    def __init__(self, number: int) -> None:
        self.channel = channel_of(number)
        self.position = ""
        self.ids: list[str] = []
        self.resets = 0
        self.sock: socket.socket | None = None
        self.dialled = 0.0
        self._buffer = bytearray()
        self.open = False

    def dial(self, port: int) -> socket.socket:
        """Begin to connect."""
        self.close()
        self._buffer.clear()
        self.open = False
        self.dialled = time.monotonic()
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", port))
        return self.sock

    def greet(self) -> None:
        """Send all that there is to say."""
        subscribe = {"type": "subscribe", "ref": 2, "channel": self.channel}
        if self.position:
            subscribe["since"] = self.position
        key = b64encode(os.urandom(16)).decode()
        request = (
            "GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade"
            f"\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert self.sock is not None
        self.sock.send(request.encode() + masked({"type": "connect", "ref": 1}) + masked(subscribe))

    def read(self) -> None:
        """Take what came; raises ConnectionError if that is the end, or it has to come again."""
        assert self.sock is not None
        data = self.sock.recv(65_536)
        if not data:
            raise ConnectionError("closed")
        self._buffer += data
        if not self.open:
            head, end, rest = bytes(self._buffer).partition(b"\r\n\r\n")
            if not end:
                return
            assert b" 101 " in head.split(b"\r\n", 1)[0], head
            self._buffer[:] = rest
            self.open = True
        for message in self._messages():
            if message["type"] in ("subscribed", "event"):
                self.position = message["position"]
            if message["type"] == "event":
                self.ids.append(message["id"])
            elif message["type"] == "reset" or message.get("recovered") is False:
                self.resets += 1
            elif message["type"] == "error" and message["retry"]:
                # A node that gets no time from a busy machine takes Redis for away.
                raise ConnectionError(message["code"])
            else:
                assert message["type"] in ("connected", "subscribed"), message

    def _messages(self) -> Iterator[dict[str, Any]]:
        buffer, at = self._buffer, 0
        while len(buffer) - at >= 2:
            opcode, size, start = buffer[at] & 15, buffer[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
            if len(buffer) < start + size:
                break
            at = start + size
            if opcode == 1:
                yield json.loads(buffer[start:at])
        del buffer[:at]

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
            self.sock = None


def bring(
    everyone: Sequence[Session], ports: Sequence[int], ids: list[str], spread_s: float = 0.0
) -> None:
    """Connect all within `spread_s`, in turn to `ports`, and wait until each has just `ids`."""
    waiting = set(range(len(everyone)))
    with selectors.DefaultSelector() as selector:

        def dial(number: int) -> None:
            # Each channel is on each node.
            sock = everyone[number].dial(ports[number // CHANNELS % len(ports)])
            selector.register(sock, selectors.EVENT_WRITE, number)

        began = time.monotonic()
        deadline = began + spread_s + PATIENCE_S
        look_again = 0.0
        dialled = 0
        while waiting:
            now = time.monotonic()
            assert now < deadline, f"{len(waiting)} sessions still wait"
            part = (now - began) / spread_s if spread_s else 1.0
            due = min(len(everyone), 1 + int(part * len(everyone)))
            for number in range(dialled, due):
                dial(number)
            dialled = due
            for key, mask in selector.select(1.0 if dialled == len(everyone) else 0.01):
                number = key.data
                session = everyone[number]
                try:
                    if mask & selectors.EVENT_WRITE:
                        session.greet()
                        selector.modify(key.fileobj, selectors.EVENT_READ, number)
                    else:
                        session.read()
                except (ConnectionError, BlockingIOError):
                    selector.unregister(key.fileobj)
                    dial(number)
                    continue
                if session.position and session.ids == ids:
                    waiting.discard(number)
            if now < look_again:
                continue
            look_again = now + TRY_AGAIN_S / 10
            late = now - TRY_AGAIN_S
            for late_one in [n for n in waiting if n < dialled and everyone[n].dialled < late]:
                sock = everyone[late_one].sock
                if sock is not None and not everyone[late_one].open:
                    selector.unregister(sock)
                    dial(late_one)


@pytest.mark.parametrize("spread_s", [0.0, 5.0], ids=["at once", "spread"])
def test_ten_thousand_sessions_come_back_and_redis_is_asked_a_few_times(spread_s: float) -> None:
    """Events that were missed are read once for each channel and node, not for each session.

    Those who come at once share a read. Spread over seconds, as clients are told to come, each read
    for itself, since what the first one read was kept for nobody.
    """
    everyone = [Session(number) for number in range(sessions())]
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tcp=False))
        dying, *others = (stack.enter_context(node(redis)) for _ in range(3))
        for server in (dying, *others):
            await_ready(server)
        try:
            bring(everyone, [dying.port], [], 5.0)
            dying.signal(SIGKILL)
            dying.wait()
            missed = [f"e{number}" for number in range(MISSED)]
            publish(others[0], missed)
            reads, calls = sum(map(history_reads, others)), script_calls(redis)
            bring(everyone, [server.port for server in others], missed, spread_s)
            reads = sum(map(history_reads, others)) - reads
            calls = script_calls(redis) - calls
            assert all(session.ids == missed and not session.resets for session in everyone)
            print(f"{reads} reads of history, {calls} calls of scripts")
            # One for each channel and node would do.
            assert 0 < reads <= CHANNELS * len(others) * 2, reads
            # Entries into presence that come at once are joined, others are a call each.
            entries = len(everyone) if spread_s else 0
            assert calls < entries + len(everyone) / 5, calls
            # What comes now reaches them all, where they are.
            publish(others[1], ["last"])
            follow(everyone, [*missed, "last"])
        finally:
            for session in everyone:
                session.close()


def follow(everyone: Sequence[Session], ids: list[str]) -> None:
    """Wait, without reconnecting, until each has just `ids`."""
    with selectors.DefaultSelector() as selector:
        for session in everyone:
            assert session.sock is not None
            selector.register(session.sock, selectors.EVENT_READ, session)
        waiting = {id(session) for session in everyone if session.ids != ids}
        deadline = time.monotonic() + PATIENCE_S
        while waiting:
            assert time.monotonic() < deadline
            for key, _mask in selector.select(1.0):
                key.data.read()
                if key.data.ids == ids:
                    waiting.discard(id(key.data))
