import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from config.settings import DEV_KEY, Settings
from config.sources import Loaded
from redis_server import free_port
from server import app, cli_check, cli_credentials
from server.cli import main

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).parents[2]
GALECAST = (sys.executable, "-m", "server.cli")
PATIENCE_S = 30.0


@contextmanager
def running(*argv: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Run `galecast` as a process of its own, which is ended at the end if it has not yet."""
    with subprocess.Popen(
        [*GALECAST, *argv],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def line_with(text: str, stream: Any) -> str:
    """Return the first line that holds `text`."""
    for line in stream:
        if text in line:
            return str(line)
    raise AssertionError(f"no line holds {text!r}")


@contextmanager
def serving(port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run a node in development mode and yield its address."""
    argv = ("serve", "--dev", "--port", str(port))
    with running(*argv, GALECAST_DRAIN_RETRY_SPREAD_MS="0") as process:
        found = re.search(
            r"http://127\.0\.0\.1:\d+", line_with("listening on http", process.stderr)
        )
        assert found is not None
        yield found[0], process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0


# ---- settings


def test_every_problem_of_the_settings_is_told(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "galecast.toml"
    file.write_text("prot = 1\n")
    monkeypatch.setenv("GALECAST_LOG_LEVEL", "loud")
    argv = ("--config", str(file), "--port", "many", "--broker-url", "x://", "--admin-port", "-1")
    for command in ("serve", "config"):
        assert main([command, *argv]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        for text in (
            f"galecast: prot: unknown setting; did you mean port? (file {file})",
            "galecast: log.level = ",
            "galecast: port = ",
            "galecast: broker.url = ",
            "(flag --admin-port)",
        ):
            assert text in err
        assert len(err.splitlines()) == 5


def test_config_says_where_each_setting_came_from(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a secret that nobody else may ever see"
    monkeypatch.setenv("GALECAST_TOKEN_SECRET", secret)
    monkeypatch.setenv("GALECAST_ORIGINS", "https://a.example")
    assert main(["config", "--port", "8901"]) == 0
    out = capsys.readouterr().out
    assert secret not in out
    lines = [line.split() for line in out.splitlines()]
    assert ["port", "8901", "(flag", "--port)"] in lines
    assert ["token.secret", '"***"', "(env", "GALECAST_TOKEN_SECRET)"] in lines
    assert ["origins", '["https://a.example"]', "(env", "GALECAST_ORIGINS)"] in lines
    assert ["host", '"127.0.0.1"', "(default)"] in lines


def test_config_as_json(capsys: Capture) -> None:
    assert main(["config", "--dev", "--json"]) == 0
    found = {each["key"]: each for each in json.loads(capsys.readouterr().out)["settings"]}
    assert found["dev"] == {"key": "dev", "value": True, "origin": "flag --dev"}
    assert found["token.secret"] == {"key": "token.secret", "value": "***", "origin": "dev"}
    assert found["keys"]["value"][0]["hash"] == "***"


def test_any_port_needs_a_url(capsys: Capture) -> None:
    assert main(["publish", "--port", "0", "a", "1"]) == 1
    assert "--url" in capsys.readouterr().err


def test_with_a_url_the_settings_are_not_read(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GALECAST_PORT", "many")
    for command in (["publish", "a", "1"], ["tail", "a"]):
        assert main([*command, "--url", "http://nobody.invalid"]) == 1
        assert "cannot reach http://nobody.invalid" in capsys.readouterr().err


# ---- serve

Served = tuple[Loaded, Callable[[], Settings | None]]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Served]:
    """What `serve` handed over to run."""
    found: list[Served] = []

    def serve(loaded: Loaded, reread: Callable[[], Settings | None], beside: object) -> int:
        found.append((loaded, reread))
        return 7

    monkeypatch.setattr(app, "serve", serve)
    monkeypatch.setattr(cli_check, "raise_file_limit", lambda: None)
    return found


def test_serve_runs_a_node_with_the_settings(served: list[Served], capsys: Capture) -> None:
    assert main(["serve", "--port", "8901"]) == 7
    ((loaded, _),) = served
    assert loaded.settings.port == 8901
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("galecast: warning: There are no API keys")


def test_development_mode_says_so(served: list[Served], capsys: Capture) -> None:
    assert main(["serve", "--dev"]) == 7
    err = capsys.readouterr().err
    assert "Development mode" in err
    assert DEV_KEY in err


def test_a_key_that_cannot_be_read_stops_the_start(
    served: list[Served], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----"
    monkeypatch.setenv("GALECAST_TOKEN_PUBLIC_KEY", pem)
    monkeypatch.setenv("GALECAST_TOKEN_ALGORITHM", "RS256")
    assert main(["serve"]) == 1
    assert served == []
    assert "token.public_key is not a public key" in capsys.readouterr().err


@pytest.mark.expect_log("galecast", r"not reloaded: port = .* \(file ")
def test_a_reload_reads_all_sources_again(served: list[Served], tmp_path: Path) -> None:
    file = tmp_path / "galecast.toml"
    file.write_text("port = 8901\n")
    assert main(["serve", "--config", str(file), "--admin-port", "8902"]) == 7
    ((_, reread),) = served
    file.write_text("port = 8903\n")
    settings = reread()
    assert settings is not None
    assert (settings.port, settings.admin_port) == (8903, 8902)
    file.write_text("port = 'many'\n")
    assert reread() is None


# ---- how it ends


def test_who_interrupts_a_command_is_not_shown_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def interrupt(*_: Any, **__: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_credentials, "make_key", interrupt)
    assert main(["key", "orders", "--scope", "tokens"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_has_gone_is_no_failure_to_tell() -> None:
    reader, writer = os.pipe()
    # Before anything is written: what a pipe holds is written with success.
    os.close(reader)
    try:
        done = subprocess.run(
            [*GALECAST, "config"],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_is_quick_since_it_imports_nothing_heavy() -> None:
    code = """
import sys
from server.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"tornado", "msgspec", "msgpack", "websocket", "jwt", "asyncio", "ssl", "http"}
print(sorted(heavy & sys.modules.keys()))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert result.stdout.splitlines()[-1] == "[]"


# ---- with a real node


def test_what_is_published_is_followed(capsys: Capture, tmp_path: Path) -> None:
    with serving() as (url, _):
        assert main(["token", "u7", "--dev", "--grant", "a.*=subscribe,history"]) == 0
        token = tmp_path / "token"
        token.write_text(capsys.readouterr().out)
        argv = ["publish", "--url", url, "--dev", "a.b"]
        assert main([*argv, '{"x": 1}', "--id", "i1", "--tag", "k=v"]) == 0
        assert main([*argv, '{"x": 1}', "--id", "i1", "--json"]) == 0
        first, second = capsys.readouterr().out.splitlines()
        answer = json.loads(second)
        assert answer["duplicate"] is True
        assert first == f"a.b: position {answer['position']}, id i1"

        follow = ["tail", "--url", url, "a.b", "--rewind", "5", "--max-rate", "5", "--count", "1"]
        follow.append("--json")
        for who in (["--dev"], [], ["--key-file", str(token)]):
            assert main([*follow, *who]) == 0
            event = json.loads(capsys.readouterr().out)
            assert event["type"] == "event"
            assert (event["id"], event["data"], event["tags"]) == ("i1", {"x": 1}, {"k": "v"})
            assert event["position"] == answer["position"]

        assert main(["tail", "--url", url, "b.c", "--key-file", str(token)]) == 1
        assert "b.c: forbidden" in capsys.readouterr().err
        assert main(["publish", "--url", url, "a.b", "1", "--key", "dev.wrong"]) == 1
        assert "refused: unauthorized" in capsys.readouterr().err


def test_lines_are_published_in_order(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "events"
    numbers = list(range(700))
    file.write_text("".join(f"{number}\n" for number in numbers))
    with serving() as (url, _), file.open() as lines:
        monkeypatch.setattr(sys, "stdin", lines)
        assert main(["publish", "--url", url, "--dev", "a", "--ndjson", "--json"]) == 0
        published = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        follow = ["tail", "--url", url, "--dev", "a", "--count", "500", "--json"]
        assert main([*follow, "--since", published[199]["position"]]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [event["data"] for event in events] == numbers[200:]
        assert [event["position"] for event in events] == [
            each["position"] for each in published[200:]
        ]


def test_tail_survives_a_node_that_is_replaced(capsys: Capture) -> None:
    with serving(free_port()) as (url, node):
        with running("tail", "--url", url, "--dev", "a", "--rewind", "1") as tail:
            assert main(["publish", "--url", url, "--dev", "a", '"before"']) == 0
            assert '"before"' in line_with("a  message", tail.stdout)
            node.send_signal(signal.SIGTERM)
            assert "4001 draining" in line_with("coming back", tail.stderr)
            assert node.wait(PATIENCE_S) == 0
            with serving(int(url.rpartition(":")[2])):
                # The memory went with the old node.
                line_with("a: could not be resumed", tail.stderr)
                assert main(["publish", "--url", url, "--dev", "a", '"after"']) == 0
                assert '"after"' in line_with("a  message", tail.stdout)
                tail.send_signal(signal.SIGINT)
                assert tail.wait(PATIENCE_S) == 0
    capsys.readouterr()
