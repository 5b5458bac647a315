import json
import resource
from pathlib import Path

import pytest

from config.settings import Settings
from config.sources import load
from redis_server import RedisServer
from server import cli_check
from server.cli import main
from server.cli_check import Finding, Host, examine, problems, raise_file_limit, this_host
from server.private_redis import NOT_FOUND

Capture = pytest.CaptureFixture[str]
PLENTY = Host(soft_files=1_000_000, hard_files=1_000_000, backlog=4096)


def settings(**changes: str) -> Settings:
    return load({"limits.connections": "1000"} | changes, {}, None).settings


def found(check: str, settings: Settings, host: Host) -> list[Finding]:
    return [each for each in examine(settings, host) if each.check == check]


@pytest.mark.parametrize(
    ("soft", "hard", "connections", "status", "text"),
    [
        (1256, 1256, 1000, "ok", "1256 files may be open"),
        (64, 1256, 1000, "ok", "1256 files may be open; serve raises 64 to that"),
        (64, None, 0, "ok", "unlimited files may be open; serve raises 64 to that"),
        (None, None, 0, "ok", "unlimited files may be open"),
        (64, 1255, 1000, "warn", "needs 1256 open files, but the hard limit is 1255 (soft 64)"),
        (64, 1255, 0, "warn", "limits.connections is 0 (no limit)"),
    ],
)
def test_sessions_need_open_files(
    soft: int | None, hard: int | None, connections: int, status: str, text: str
) -> None:
    host = Host(soft_files=soft, hard_files=hard, backlog=None)
    asked = settings(**{"limits.connections": str(connections)})
    (finding,) = found("files", asked, host)
    assert finding.status == status
    assert text in finding.message


@pytest.mark.parametrize(("backlog", "status"), [(1023, "warn"), (1024, "ok")])
def test_a_wave_of_clients_needs_a_backlog(backlog: int, status: str) -> None:
    host = Host(soft_files=1, hard_files=1, backlog=backlog)
    (finding,) = found("backlog", settings(), host)
    assert finding.status == status
    assert found("backlog", settings(), Host(soft_files=1, hard_files=1, backlog=None)) == []


def test_what_is_hardly_meant_is_a_warning() -> None:
    statuses = [each.status for each in found("settings", settings(), PLENTY)]
    assert statuses == ["ok", "warn"]
    dev = load({"dev": "true"}, {}, None).settings
    assert [each.status for each in found("settings", dev, PLENTY)] == ["ok"]


def test_a_key_that_cannot_be_read_fails() -> None:
    changes = {
        "token.public_key": "-----BEGIN PUBLIC KEY-----\nnonsense\n-----END PUBLIC KEY-----",
        "token.algorithm": "RS256",
    }
    findings = found("settings", settings(**changes), PLENTY)
    assert findings[0] == Finding("settings", "fail", "token.public_key is not a public key in PEM")


def test_several_workers_need_a_program_for_a_private_redis(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cli_check, "find_redis_server", lambda: "/bin/redis-server")
    text = "workers get a private Redis (/bin/redis-server)"
    assert found("broker", settings(workers="2"), PLENTY) == [Finding("broker", "ok", text)]
    monkeypatch.setattr(cli_check, "find_redis_server", lambda: None)
    assert found("broker", settings(workers="2"), PLENTY) == [Finding("broker", "fail", NOT_FOUND)]
    assert found("broker", settings(), PLENTY)[0].status == "ok"


def test_this_machine_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    file = tmp_path / "somaxconn"
    monkeypatch.setattr(cli_check, "_BACKLOG_FILE", file)
    assert this_host().backlog is None
    file.write_text("128\n")
    host = this_host()
    assert host.backlog == 128
    assert host.soft_files == (None if soft == resource.RLIM_INFINITY else soft)
    assert host.hard_files == (None if hard == resource.RLIM_INFINITY else hard)


def test_the_soft_file_limit_is_raised_to_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_limit_that_the_kernel_refuses_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(*limits: object) -> None:
        tried.append(limits)
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    raise_file_limit()
    assert len(tried) == 1


# ---- the command


def test_warnings_alone_do_not_fail(capsys: Capture) -> None:
    assert main(["check"]) == 0
    out, err = capsys.readouterr()
    lines = [line.split(maxsplit=2) for line in out.splitlines()]
    assert ["ok", "settings", "valid"] in lines
    assert ["ok", "broker", "memory:// is in this process"] in lines
    assert ["ok", "archive", "none is used"] in lines
    assert {line[0] for line in lines} == {"ok", "warn"}
    assert err == ""


def test_a_check_as_json(capsys: Capture) -> None:
    assert main(["check", "--dev", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert {"check": "archive", "status": "ok", "message": "none is used"} in answer["checks"]


def test_every_wrong_setting_fails(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALECAST_LOG_LEVEL", "loud")
    assert main(["check", "--port", "many"]) == 1
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [["fail", "settings"]] * 2
    assert "env GALECAST_LOG_LEVEL" in lines[0][2]
    assert "flag --port" in lines[1][2]
    assert main(["check", "--port", "many", "--json"]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is False
    assert [each["status"] for each in answer["checks"]] == ["fail", "fail"]


def test_the_broker_is_reached() -> None:
    with RedisServer(aof=True) as server:
        (finding,) = found("broker", settings(**{"broker.url": server.url}), PLENTY)
    assert finding.status == "ok"
    assert finding.message.startswith("Redis ")


def test_a_broker_that_is_away_fails() -> None:
    (finding,) = found("broker", settings(**{"broker.url": "unix:///nowhere.sock"}), PLENTY)
    assert finding.status == "fail"
    assert finding.message.startswith("cannot be reached: ")


def test_the_address_of_a_broker_may_be_wrong_beyond_its_scheme() -> None:
    wrong = settings(**{"broker.url": "redis://me:hidden@host/0?colour=red"})
    assert problems(wrong) == [
        'broker.url = "redis://me:***@host/0?***": '
        "option 'colour' is unknown, or not for this scheme"
    ]
    assert found("broker", wrong, PLENTY) == []
    (finding,) = found("settings", wrong, PLENTY)[:1]
    assert finding.status == "fail"


def test_serve_does_not_start_with_such_an_address(capsys: Capture) -> None:
    assert main(["serve", "--broker-url", "redis://"]) == 1
    assert 'broker.url = "redis://": a host is missing' in capsys.readouterr().err
