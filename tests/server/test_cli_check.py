import json
import re
import resource
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pymongo
import pytest

from archive_rig import events, kept
from config.settings import Settings
from config.sources import load
from export_rig import fill
from mongo_server import MISSING, mongo_is_missing, shared_mongo_url
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


# ---- the archive


def archive(url: str, **changes: str) -> list[Finding]:
    return found("archive", settings(**{"archive.url": url} | changes), PLENTY)


def test_the_size_of_an_sqlite_archive_is_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'archive.db'}"
    text = f"{url}: SQLite; the file is made when a node starts"
    assert archive(url) == [Finding("archive", "ok", text)]
    assert list(tmp_path.iterdir()) == []
    fill(url, [*kept(events(3)), *kept(events(2, channel="c"))])
    (finding,) = archive(url)
    assert finding.status == "ok"
    shown = re.escape(f"{url}: SQLite, ") + r"\d+ KB; channels: 2, events: 5"
    assert re.fullmatch(shown, finding.message)


def test_an_archive_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (finding,) = archive("sqlite:////no/such/folder/a.db")
    assert finding.status == "fail"
    assert "the folder /no/such/folder does not exist" in finding.message
    (tmp_path / "other.db").write_bytes(b"x" * 1_000)
    (finding,) = archive(f"sqlite:///{tmp_path}/other.db")
    assert (finding.status, finding.message.rpartition(": ")[2]) == (
        "fail",
        "file is not a database",
    )
    with closing(sqlite3.connect(tmp_path / "later.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    (finding,) = archive(f"sqlite:///{tmp_path}/later.db")
    assert finding.status == "fail"
    assert "the database is not an archive of Galecast" in finding.message


def test_rights_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.db").touch()
    for refused, text in ((tmp_path, "is not writable"), (tmp_path / "a.db", "the file is not")):
        monkeypatch.setattr("os.access", lambda path, _mode, refused=refused: path != refused)
        (finding,) = archive(f"sqlite:///{tmp_path}/a.db")
        assert finding.status == "fail"
        assert text in finding.message


def test_a_file_is_not_for_several_machines(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    for broker in ("unix:///tmp/no.redis", "redis://127.0.0.1:1", "redis://localhost:1"):
        assert len(archive(url, **{"broker.url": broker})) == 1
    away = {"broker.url": "redis://192.0.2.1:1", "broker.call_timeout_s": "0.1"}
    (_, finding) = archive(url, **away)
    assert finding.status == "warn"
    assert "use a MongoDB" in finding.message


def test_a_mongodb_is_reached() -> None:
    away = {"broker.url": "unix:///tmp/no.redis", "archive.call_timeout_s": "0.1"}
    (finding,) = archive("mongodb://u:secret@127.0.0.1:1/x", **away)
    assert finding.status == "fail"
    assert finding.message.startswith("mongodb://u:***@127.0.0.1:1/x: cannot be reached: MongoDB")


@pytest.mark.skipif(mongo_is_missing(), reason=MISSING)
def test_the_size_of_a_mongodb_is_told() -> None:
    url = f"{shared_mongo_url()}_{secrets.token_hex(6)}"
    with pymongo.MongoClient[dict[str, Any]](url) as client:
        try:
            fill(url, kept(events(3)))
            size, *more = archive(url, **{"broker.url": "unix:///tmp/no.redis"})
            replicated = "setName" in client.admin.command("hello")
        finally:
            client.drop_database(client.get_default_database())
    assert size == Finding("archive", "ok", f"{url}: MongoDB, about 3 events")
    assert [each.status for each in more] == ([] if replicated else ["warn"])


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
