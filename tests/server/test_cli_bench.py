import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from load_rig import wire_server
from processes import ROOT, ServerProcess
from scripted_server import Refusal, scripted
from server.cli import main
from server.cli_bench import explain
from server.load_machine import Shares
from server.load_opening import Refusal as Refused
from server.load_publisher import PublishRefused
from server.load_target import LoadFailed
from server.load_verdict import Standard, Verdict

Capture = pytest.CaptureFixture[str]
# Short: what is asked is whether it works, not how fast.
QUICK = ("--seconds", "0.4", "--warm-up", "0.1", "--cores", "none")


@pytest.fixture(scope="module")
def node() -> Iterator[ServerProcess]:
    """A node that takes thirty sessions of one address."""
    limits = {"GALECAST_LIMITS_CONNECTIONS_PER_ADDRESS": "30"}
    with ServerProcess("--dev", environ=limits) as server:
        yield server


def bench(node: ServerProcess, *argv: str) -> int:
    return main(["bench", "--url", node.url, "--key", "dev.galecast", *QUICK, *argv])


def measured(node: ServerProcess, capsys: Capture, *argv: str) -> dict[str, Any]:
    """Return what a run tells that had time to measure: one that was held up begins anew."""
    for _ in range(10):
        assert bench(node, "--json", *argv) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        if found["measured_s"] > 0.3:
            break
    return found


@pytest.mark.parametrize(
    "argv",
    [
        ("--encoding", "json"),
        ("--encoding", "msgpack"),
        ("--encoding", "mixed"),
        ("--in-flight", "16"),
        ("--in-flight", "16", "--encoding", "msgpack"),
        ("--rate", "100"),
        ("--rate", "100", "--publishers", "3", "--encoding", "mixed"),
        ("--publish", "http"),
        ("--publish", "http", "--in-flight", "8"),
        ("--publish", "array", "--batch", "20"),
        ("--publish", "ndjson"),
        ("--channels", "12", "--per-session", "5", "--encoding", "mixed", "--in-flight", "4"),
        ("--size", "16384"),
        ("--publishers", "3", "--in-flight", "4"),
    ],
    ids=" ".join,
)
def test_every_event_reaches_everyone(
    node: ServerProcess, capsys: Capture, argv: tuple[str, ...]
) -> None:
    found = measured(node, capsys, "--sessions", "12", *argv)
    asked = found["asked"]
    assert found["problems"] == []
    assert found["acknowledged"] == found["published"] > 0
    if asked["channels"] == 1:
        assert found["delivered"] == 12 * found["published"]
    assert found["published_per_s"] > 0
    assert found["delivered_per_s"] > 0
    latency = found["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert 0 < found["load_cpu"] < 1.5
    assert [each["rss_bytes"] > 10_000_000 for each in found["servers"]] == [True]
    if "--rate" in argv:
        assert found["published"] == 50
        assert found["latency_samples"] == 40 * 12


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_sessions_outlive_the_pings_of_the_server(capsys: Capture, encoding: str) -> None:
    """A session that is not heard from one ping to the next is closed (4003)."""
    environ = {"GALECAST_SESSION_PING_S": "2.5", "GALECAST_SESSION_CLOSE_TIMEOUT_S": "0.1"}
    with ServerProcess("--dev", environ=environ) as server:
        # The publisher has nothing else to say in that time.
        shape = ("--sessions", "40", "--encoding", encoding, "--rate", "0.15")
        assert bench(server, *shape, "--seconds", "6", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["delivered"] == 40 * found["published"]


def test_a_person_gets_a_table_and_a_drawing(
    node: ServerProcess, capsys: Capture, tmp_path: Path
) -> None:
    picture = tmp_path / "a.svg"
    # Longer, so that there is something to tell also if it is held up.
    assert bench(node, "--sessions", "5", "--plot", str(picture), "--seconds", "3") == 0
    out = capsys.readouterr().out
    names = [re.split(r"  +", line)[0] for line in out.splitlines()]
    assert names[:6] == ["server", "load", "sessions", "published", "delivered", "latency"]
    assert names[6] == "load client"
    assert names[7].startswith("process ")
    assert "every event came once and in order to all 5 sessions" in out
    root = ElementTree.parse(picture).getroot()  # noqa: S314 - our own
    assert root.tag.endswith("svg")


def test_more_sessions_than_the_server_takes(node: ServerProcess, capsys: Capture) -> None:
    assert bench(node, "--sessions", "40") == 1
    err = capsys.readouterr().err
    assert "limit_exceeded" in err
    assert "limits.connections_per_address" in err


def test_a_wrong_key(node: ServerProcess, capsys: Capture) -> None:
    assert main(["bench", "--url", node.url, "--key", "wrong.key", *QUICK]) == 1
    assert "a session was refused: unauthorized" in capsys.readouterr().err


def test_too_large_an_event(node: ServerProcess, capsys: Capture) -> None:
    assert bench(node, "--sessions", "2", "--size", "70000") == 1
    err = capsys.readouterr().err
    assert "a publish was refused: too_large" in err
    assert "limits.data_bytes" in err


@pytest.mark.parametrize("encoding", ["json", "msgpack"])
def test_too_large_a_frame(node: ServerProcess, capsys: Capture, encoding: str) -> None:
    assert bench(node, "--sessions", "2", "--size", "200000", "--encoding", encoding) == 1
    err = capsys.readouterr().err
    assert "a publisher's session was closed: too_large (see limits.data_bytes" in err


def test_too_small_an_event(node: ServerProcess, capsys: Capture) -> None:
    assert bench(node, "--size", "5") == 1
    assert "cannot be smaller than 18 bytes" in capsys.readouterr().err


def test_a_session_that_may_not_subscribe(capsys: Capture) -> None:
    """A token with no grant: the server says which action on which channel is missing."""
    with ServerProcess("--dev") as server:
        assert main(["token", "u1", "--dev", "--grant", "other.*=subscribe"]) == 0
        token = capsys.readouterr().out.strip()
        assert main(["bench", "--url", server.url, "--key", token, *QUICK]) == 1
    err = capsys.readouterr().err
    assert "a session was refused: forbidden" in err


def test_there_is_no_server(capsys: Capture) -> None:
    with wire_server() as server:
        port = server.port
    assert main(["bench", "--url", f"http://127.0.0.1:{port}", *QUICK]) == 1
    assert f"no connection to 127.0.0.1:{port}: Connection refused" in capsys.readouterr().err


def test_tls_is_refused(capsys: Capture) -> None:
    assert main(["bench", "--url", "https://127.0.0.1", *QUICK]) == 1
    assert "speaks no TLS" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--plot", "/no/such/folder/a.svg"), "there is no such folder"),
        (("--cores", "9999"), "this process may use"),
        (("--cores", "x"), "write auto, none, or cores"),
    ],
)
def test_what_cannot_be_done_is_said(
    node: ServerProcess, capsys: Capture, argv: tuple[str, ...], says: str
) -> None:
    assert bench(node, *argv) == 1
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--per-session", "2"), "more channels than --channels"),
        (("--batch", "2"), "--batch goes with --publish array or ndjson"),
        (("--rate", "1", "--in-flight", "2"), "not allowed with"),
        (("--sessions", "0"), "a whole number from 1"),
        (("--rate", "nan"), "a number from"),
        (("--seconds", "0"), "a number from"),
        (("--prefix", "$x"), "parted by dots"),
        (("--prefix", "a."), "parted by dots"),
        (("--url", "http://a", "--port", "1"), "leave --host and --port out"),
    ],
)
def test_wrong_usage(capsys: Capture, argv: tuple[str, ...], says: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *argv])
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_it_warns_when_it_was_the_bottleneck_itself(
    node: ServerProcess, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.load_run.shares", lambda *_: Shares(0.97, 0.0, 1))
    assert bench(node, "--sessions", "2") == 0
    assert "warning: the load generator was the bottleneck" in capsys.readouterr().err
    assert bench(node, "--sessions", "2", "--json") == 0
    assert "lower bounds" in json.loads(capsys.readouterr().out)["warning"]


def test_a_problem_is_told_and_fails(
    node: ServerProcess, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine finds is in its own tests; here, that the command says so."""
    judged = Verdict(3, 2, ["session 1: 9 bytes less"])
    monkeypatch.setattr(Standard, "judge", lambda *_: judged)
    assert bench(node, "--sessions", "2") == 1
    told = capsys.readouterr()
    assert "NOT every event came once and in order" in told.out
    assert "error: session 1: 9 bytes less" in told.err


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (HTTPStatus.FORBIDDEN, "a session was refused: HTTP status 403"),
        (HTTPStatus.BAD_GATEWAY, "a session was refused: HTTP status 502"),
    ],
)
def test_a_server_that_is_not_ours(capsys: Capture, status: HTTPStatus, says: str) -> None:
    refusal: Refusal = (status, "<html>", {})
    with scripted(refusal) as url:
        assert main(["bench", "--url", url, "--sessions", "1", *QUICK]) == 1
    assert says in capsys.readouterr().err


def test_handshakes_that_are_too_many_at_once_are_put_off(capsys: Capture) -> None:
    limits = {"GALECAST_LIMITS_HANDSHAKES_PER_S": "20"}
    with ServerProcess("--dev", environ=limits) as server:
        assert bench(server, "--sessions", "30", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sessions"] == 30
    assert found["handshakes_put_off"] > 0


def test_ctrl_c_ends_it_with_what_was_measured(node: ServerProcess) -> None:
    argv = ["bench", "--url", node.url, "--key", "dev.galecast", "--sessions", "5"]
    more = ["--seconds", "60", "--warm-up", "0", "--json", "--prefix", "bench.here"]
    with subprocess.Popen(
        [sys.executable, "-m", "server.cli", *argv, *more],
        cwd=ROOT,
        env=os.environ.copy(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            while not _is_running(node):
                assert process.poll() is None
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=20)
        finally:
            if process.poll() is None:
                process.kill()
    assert process.returncode == 0, err
    report = json.loads(out)
    assert report["partial"] is True
    assert report["problems"] == []
    assert report["published"] > 0
    assert report["measured_s"] < 60
    assert "ended early" in err


def _is_running(node: ServerProcess) -> bool:
    """Say whether it publishes."""
    link = HTTPConnection("127.0.0.1", node.port, timeout=10)
    try:
        path = "/v1/channels/bench.here.000000/events?limit=1"
        link.request("GET", path, headers={"Authorization": "Bearer dev.galecast"})
        answer = json.loads(link.getresponse().read())
    finally:
        link.close()
    return bool(answer.get("events"))


@pytest.mark.parametrize(
    ("failed", "says"),
    [
        (LoadFailed("plain"), "plain"),
        (Refused(b""), "the server closed the connection"),
        (
            Refused(b'\x81\x30{"type":"error","ref":2,"code":"forbidden","message":"no \\"x\\""}'),
            'a session was refused: forbidden: no "x" (an API key needs the scopes',
        ),
        (
            PublishRefused(b"\x82\x20\x84\xa4type\xa5error\xa4code\xa9forbidden\xa7message\xa2no"),
            "a publish was refused: forbidden: no (an API key needs the scopes",
        ),
        (PublishRefused(b"what is this"), "a publish was refused: what is this"),
        (
            Refused(b"HTTP/1.1 429 Too Many Requests\r\n\r\n" + b'{"code":"limit_exceeded"}'),
            "a session was refused: limit_exceeded (see limits.connections_per_address",
        ),
    ],
)
def test_what_a_server_says_no_with(failed: LoadFailed, says: str) -> None:
    assert explain(failed).startswith(says)
