"""`galecast readings`: what /proc says, how it is published, and that it ends with its node."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from processes import ROOT, ServerProcess
from redis_server import free_port
from server.cli import main
from server.cli_output import CommandFailed
from server.cli_publish import Publisher
from server.cli_readings import (
    Readings,
    Sample,
    beside,
    read_cpu,
    read_load,
    read_memory,
    read_network,
    reading,
    sleep_until_eof,
    take_sample,
)
from server.cli_target import Credential, Unreachable, parse_url

Capture = pytest.CaptureFixture[str]

LOADAVG = "0.52 0.48 1.07 3/412 20817\n"
STAT = """\
cpu  100 20 30 800 50 5 7 8 90 10
cpu0 50 10 15 400 25 2 3 4 45 5
cpu1 50 10 15 400 25 3 4 4 45 5
intr 12345 0 1
ctxt 99
cpufreq_is_no_cpu 1
"""
MEMINFO = """\
MemTotal:       16000 kB
MemFree:         1000 kB
MemAvailable:    6000 kB
HugePages_Total:       0
"""
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo: 9999999 66 0 0 0 0 0 0 9999999 66 0 0 0 0 0 0
  eth0: 1000 7 0 0 0 0 0 0 300 4 0 0 0 0 0 0
wlan0:2000 7 0 0 0 0 0 0 40 4 0 0 0 0 0 0
"""
PATIENCE_S = 15.0


def proc(folder: Path) -> Path:
    (folder / "net").mkdir()
    for name, text in (
        ("loadavg", LOADAVG),
        ("stat", STAT),
        ("meminfo", MEMINFO),
        ("net/dev", NET_DEV),
    ):
        (folder / name).write_text(text)
    return folder


# ---- what /proc says


def test_the_parts_of_proc() -> None:
    assert read_load(LOADAVG) == (0.52, 0.48, 1.07)
    # 800 idle and 50 waiting; what guests have used is counted by user and nice already.
    assert read_cpu(STAT) == (2, 170, 1020)
    assert read_memory(MEMINFO) == (10_000 * 1024, 16_000 * 1024)
    assert read_network(NET_DEV) == (3000, 340)


def test_an_old_kernel_has_fewer_columns() -> None:
    assert read_cpu("cpu  10 0 10 80\ncpu0 10 0 10 80\n") == (1, 20, 100)


def test_a_machine_without_a_network() -> None:
    assert read_network("\n".join(NET_DEV.splitlines()[:3])) == (0, 0)


def test_a_sample_is_what_proc_says(tmp_path: Path) -> None:
    assert take_sample(proc(tmp_path), lambda: 7.0) == Sample(
        at_s=7.0,
        load=(0.52, 0.48, 1.07),
        cpus=2,
        busy=170,
        ticks=1020,
        memory_used_bytes=10_240_000,
        memory_total_bytes=16_384_000,
        network_in_bytes=3000,
        network_out_bytes=340,
    )


def test_a_machine_without_proc(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"stat, which cannot be read here .*only Linux has it"):
        take_sample(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("loadavg", ""),
        ("loadavg", "0.1 high 0.2"),
        ("stat", ""),
        ("stat", "cpu"),
        ("stat", "cpu some"),
        ("meminfo", "MemTotal: 10 kB\n"),
        ("meminfo", "MemTotal: much\n"),
        ("net/dev", "eth0: 1 2 3\n"),
    ],
)
def test_a_proc_that_says_something_else(tmp_path: Path, name: str, text: str) -> None:
    folder = proc(tmp_path)
    (folder / name).write_text(text)
    with pytest.raises(CommandFailed, match="does not say what this machine is doing"):
        take_sample(folder)


def sample(**fields: Any) -> Sample:
    plain = Sample(
        at_s=10.0,
        load=(1.0, 2.0, 3.0),
        cpus=4,
        busy=100,
        ticks=1000,
        memory_used_bytes=5,
        memory_total_bytes=9,
        network_in_bytes=1000,
        network_out_bytes=500,
    )
    return msgspec.structs.replace(plain, **fields)


def test_a_reading_is_the_difference_of_two_samples() -> None:
    now = sample(at_s=12.0, busy=150, ticks=1200, network_in_bytes=5001, network_out_bytes=500)
    assert reading(sample(), now) == {
        "load": [1.0, 2.0, 3.0],
        "cpus": 4,
        "cpu": 0.25,
        "memory_used_bytes": 5,
        "memory_total_bytes": 9,
        "network_in_bytes_s": 2000,
        "network_out_bytes_s": 0,
    }


def test_counters_that_begin_anew_give_nothing_below_zero() -> None:
    """An interface that goes away takes its count with it."""
    found = reading(sample(), sample(at_s=11.0, busy=0, ticks=1100, network_in_bytes=0))
    assert (found["network_in_bytes_s"], found["cpu"]) == (0, 0.0)
    same = reading(sample(), sample())
    assert (same["network_out_bytes_s"], same["cpu"]) == (0, 0.0)


# ---- publishing


class Post(Publisher):
    """Stands where a server would be away: what happens to each post is planned."""

    def __init__(self, *plan: Exception | None) -> None:
        super().__init__(parse_url("http://127.0.0.1:1"), Credential())
        self.plan = list(plan)
        self.events: list[dict[str, Any]] = []

    def post(self, body: bytes, content_type: str) -> bytes:
        assert content_type == "application/json"
        self.events.append(json.loads(body))
        if outcome := self.plan.pop(0):
            raise outcome
        return b"{}"


class Clock:
    """Time that passes only by waiting; ends when the plan of the post is done."""

    def __init__(self, post: Post) -> None:
        self.now_s = 0.0
        self.waits: list[float] = []
        self._post = post

    def wait(self, delay_s: float) -> bool:
        self.now_s += delay_s
        self.waits.append(delay_s)
        return not self._post.plan

    def __call__(self) -> float:
        return self.now_s


def publishing(post: Post, every_s: float) -> tuple[Readings, Clock]:
    clock = Clock(post)
    made = Readings(
        post, "a.b", every_s, sample=lambda: sample(at_s=clock()), wait=clock.wait, clock=clock
    )
    return made, clock


def test_one_event_every_interval(capsys: Capture) -> None:
    post = Post(None, None, None)
    readings, clock = publishing(post, 2.0)
    assert readings.run() == 0
    assert clock.waits == [2.0, 2.0, 2.0, 2.0]
    assert [event["channel"] for event in post.events] == ["a.b"] * 3
    assert {event["name"] for event in post.events} == {"reading"}
    assert len({event["id"] for event in post.events}) == 3
    assert post.events[0]["data"]["memory_total_bytes"] == 9
    assert capsys.readouterr().err == ""


def test_a_server_that_is_away_is_told_once_and_tried_again(capsys: Capture) -> None:
    post = Post(None, Unreachable("cannot reach it"), ConnectionResetError("gone"), None, None)
    readings, _ = publishing(post, 1.0)
    assert readings.run() == 0
    assert capsys.readouterr().err.splitlines() == [
        "galecast: no reading can be published: cannot reach it; trying until it can",
        "galecast: the server is back: readings are published again",
    ]


def test_a_retry_is_the_same_event(capsys: Capture) -> None:
    """Whose answer was lost may be published: by its id the second is known for the same."""
    post = Post(TimeoutError(), TimeoutError(), None, None)
    readings, clock = publishing(post, 10.0)
    assert readings.run() == 0
    ids = [event["id"] for event in post.events]
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert clock.waits == [10.0, 1.0, 1.0, 8.0, 10.0]
    assert "TimeoutError; trying until it can" in capsys.readouterr().err


def test_a_reading_that_is_out_of_date_is_given_up() -> None:
    post = Post(*[OSError("away")] * 4, None)
    readings, _ = publishing(post, 2.5)
    assert readings.run() == 0
    ids = [event["id"] for event in post.events]
    assert ids[0] == ids[1] == ids[2] != ids[3] == ids[4]


def test_the_end_comes_also_while_the_server_is_away(capsys: Capture) -> None:
    """A node that was killed amid a reading took its publisher along, which still complained."""
    post = Post(OSError("away"))
    readings, clock = publishing(post, 60.0)
    assert readings.run() == 0
    assert clock.waits == [60.0, 1.0]
    assert capsys.readouterr().err == ""


def test_what_is_refused_from_the_start_is_an_error() -> None:
    readings, _ = publishing(Post(CommandFailed("refused: unauthorized")), 1.0)
    with pytest.raises(CommandFailed, match="unauthorized"):
        readings.run()


def test_what_is_refused_later_is_tried_again(capsys: Capture) -> None:
    """A server that is about to stop refuses too; it is not the publisher that is wrong."""
    post = Post(None, CommandFailed("refused: unavailable"), None)
    assert publishing(post, 1.0)[0].run() == 0
    assert len(post.events) == 3
    assert "refused: unavailable" in capsys.readouterr().err


def test_after_a_long_stop_nothing_is_made_up_for() -> None:
    post = Post(None, None, None)
    readings, clock = publishing(post, 1.0)
    plain = clock.wait

    def sleepy(delay_s: float) -> bool:
        if len(clock.waits) == 1:
            clock.now_s += 3600
        return plain(delay_s)

    readings._wait = sleepy
    assert readings.run() == 0
    assert clock.waits == [1.0, 1.0, 0.0, 1.0]


def test_the_end_of_standard_input_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    reading_end, writing_end = os.pipe()
    with open(reading_end) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert sleep_until_eof(0) is False
        os.write(writing_end, b"x")
        assert sleep_until_eof(60) is False
        os.close(writing_end)
        assert sleep_until_eof(60) is True


# ---- the command, and a real server


def test_the_command_says_when_there_is_no_proc(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Readings.__init__.__kwdefaults__
    assert found is not None
    monkeypatch.setitem(found, "sample", lambda: take_sample(tmp_path))
    assert main(["readings", "--url", "http://127.0.0.1:1"]) == 1
    assert "only Linux has it" in capsys.readouterr().err


def test_serve_refuses_readings_without_development_mode(capsys: Capture) -> None:
    assert main(["serve", "--readings", "--port", "0"]) == 1
    assert "--readings publishes with the key of development mode: add --dev" in (
        capsys.readouterr().err
    )


def await_true(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def history(port: int, channel: str) -> list[dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        path = f"/v1/channels/{channel}/events"
        connection.request("GET", path, headers={"Authorization": "Bearer dev.galecast"})
        events: list[dict[str, Any]] = json.loads(connection.getresponse().read())["events"]
        return events
    finally:
        connection.close()


@contextmanager
def command(*argv: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "server.cli", "readings", *argv],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_the_command_publishes_what_this_machine_does() -> None:
    with ServerProcess() as server:
        argv = ("--dev", "--port", str(server.port), "--channel", "a.b", "--every", "0.1")
        with command(*argv) as process:
            await_true(lambda: len(history(server.port, "a.b")) >= 3)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""
        event = history(server.port, "a.b")[-1]
        assert event["name"] == "reading"
        data = event["data"]
        assert data["cpus"] >= 1
        assert 0 <= data["cpu"] <= 1
        assert 0 < data["memory_used_bytes"] < data["memory_total_bytes"]
        assert len(data["load"]) == 3
        assert data["network_in_bytes_s"] >= 0


def test_the_command_outlives_a_server_that_is_away() -> None:
    """It does not matter which of the two is started first, nor that one is started again."""
    port = free_port()
    argv = ("--dev", "--port", str(port), "--channel", "a.b", "--every", "0.1")
    with command(*argv) as process:
        assert process.stderr is not None
        assert "cannot reach http://127.0.0.1" in process.stderr.readline()
        for _ in range(2):
            with ServerProcess("--dev", "--port", str(port)):
                assert "published again" in process.stderr.readline()
                await_true(lambda: history(port, "a.b"))
            assert "no reading can be published" in process.stderr.readline()


def child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    found = await_true(lambda: children.read_text().split())
    (child,) = map(int, found)
    return child


def gone(pid: int) -> bool:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    # One that has ended, and that nobody has waited for.
    return re.search(r"\) Z ", text) is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_publisher_ends_with_its_node(number: signal.Signals) -> None:
    with ServerProcess("--dev", "--readings") as server:
        child = child_of(server.pid)
        await_true(lambda: history(server.port, "machine.readings"))
        server.signal(number)
        assert server.wait() == (-number if number == signal.SIGKILL else 0)
        await_true(lambda: gone(child))
        assert "no reading can be published" not in server.log


def test_a_publisher_that_does_not_end_is_killed() -> None:
    with ServerProcess("--dev", "--readings") as server:
        child = child_of(server.pid)
        # Not while it is being started: the node waits for that.
        await_true(lambda: history(server.port, "machine.readings"))
        # It cannot even see that it should.
        os.kill(child, signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        await_true(lambda: gone(child))


def test_a_node_goes_on_without_its_publisher() -> None:
    with ServerProcess("--dev", "--readings") as server:
        child = child_of(server.pid)
        os.kill(child, signal.SIGKILL)
        await_true(lambda: gone(child))
        assert isinstance(history(server.port, "machine.readings"), list)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


async def test_a_node_goes_on_if_no_process_can_be_started(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    async with beside("http://127.0.0.1:1"):
        pass
    assert "no readings: a process for them cannot be started" in capsys.readouterr().err
