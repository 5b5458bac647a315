"""`galecast import`: every line is checked, nothing is doubled, a node in the way is noticed."""

import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from archive_rig import EPOCH, TIME, events, kept
from export_rig import fill, held
from processes import ServerProcess
from pubsub.archive import Purged
from pubsub.archive_check import is_open
from pubsub.sqlite_archive import SqliteArchive
from server import cli_import
from server.cli import main
from server.event_lines import pack_line

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'archive.db'}"


def written(folder: Path, *lines: bytes) -> str:
    path = folder / "events.ndjson"
    path.write_bytes(b"".join(lines))
    return str(path)


GOOD = [pack_line(event) for event in events(4)]


def ids(url: str) -> list[str]:
    return [event.id for found, _ in held(url).values() for event in found]


def test_a_wrong_line_is_named_and_passed_over(url: str, tmp_path: Path, capsys: Capture) -> None:
    file = written(tmp_path, GOOD[0], b"{}\n", b"\n", GOOD[1], b"nonsense", b"\n", GOOD[2][:-1])
    assert main(["import", file, "--archive-url", url, "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out) == {"events": 3, "channels": 1, "wrong_lines": 2}
    assert "line 2 is refused: Object missing required field `channel`" in err
    assert "line 5 is not valid JSON" in err
    assert ids(url) == ["x1", "x2", "x3"]


def test_strict_ends_at_the_first_wrong_line(url: str, tmp_path: Path, capsys: Capture) -> None:
    file = written(tmp_path, GOOD[0], GOOD[1], b"{}\n", GOOD[2])
    assert main(["import", file, "--archive-url", url, "--strict"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "galecast: line 3 is refused" in err
    assert "what stands before it is imported" in err
    assert ids(url) == ["x1", "x2"]


def test_not_every_one_of_many_wrong_lines_is_named(
    url: str, tmp_path: Path, capsys: Capture
) -> None:
    file = written(tmp_path, *[b"{}\n"] * 25)
    assert main(["import", file, "--archive-url", url]) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 21
    assert err[-1] == "galecast: and 5 more lines are wrong"


def test_standard_input_is_taken(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"".join(GOOD)))
    monkeypatch.setattr(sys, "stdin", stdin)
    chosen = ["--from", str(TIME + 20), "--to", str(TIME + 40), "--channel", "a.*"]
    assert main(["import", "--archive-url", url, *chosen]) == 0
    assert ids(url) == ["x2", "x3"]
    assert "2 events of 1 channel imported" in capsys.readouterr().out


def test_how_long_an_event_is_kept_says_the_rule(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "galecast.toml").write_text(
        '[[channels]]\nmatch = "a.*"\narchive = true\narchive_ttl_s = 60\n'
    )
    seen: list[Any] = []
    write = SqliteArchive.write

    async def noted(self: SqliteArchive, entries: Any) -> None:
        seen.extend((entry.event.channel, entry.expires) for entry in entries)
        await write(self, entries)

    monkeypatch.setattr(SqliteArchive, "write", noted)
    other = [pack_line(event) for event in events(1, channel="b")]
    file = written(tmp_path, GOOD[0], *other)
    config = str(tmp_path / "galecast.toml")
    assert main(["import", file, "--archive-url", url, "--config", config]) == 0
    assert seen == [("a.b", TIME + 10 + 60_000), ("b", 0)]
    assert (
        "warning: channels that these settings do not archive: 1; nodes" in capsys.readouterr().err
    )


def test_what_was_purged_stays_away(url: str, tmp_path: Path, capsys: Capture) -> None:
    found = events(4)
    fill(url, [*kept(found), Purged("a.b", found[1].position)])
    file = written(tmp_path, *GOOD)
    assert main(["import", file, "--archive-url", url]) == 0
    assert ids(url) == ["x3", "x4"]


def test_a_damaged_file_is_said(url: str, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "events.gz"
    whole = gzip.compress(b"".join(GOOD))
    for damaged in (whole[:-20], b"no gzip", whole[:20] + b"\xff" * 20 + whole[40:]):
        file.write_bytes(damaged)
        assert main(["import", str(file), "--archive-url", url]) == 1
        assert capsys.readouterr().err.startswith(f"galecast: {file}: line ")
    assert main(["import", str(tmp_path / "none"), "--archive-url", url]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_line_without_end_is_not_held(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(cli_import, "_MOST_LINE_BYTES", 1_000)
    file = written(tmp_path, GOOD[0], b'"' + b"x" * 1_000)
    assert main(["import", file, "--archive-url", url]) == 1
    assert "line 2 is longer than 1000 bytes" in capsys.readouterr().err


def test_a_write_that_fails_says_which_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    from pubsub.errors import ArchiveUnavailable

    async def refuse(self: SqliteArchive, entries: Any) -> None:
        raise ArchiveUnavailable("the disk is full")

    monkeypatch.setattr(SqliteArchive, "write", refuse)
    monkeypatch.setattr(cli_import, "_ENTRIES", 2)
    file = written(tmp_path, *GOOD)
    assert main(["import", file, "--archive-url", f"sqlite:///{tmp_path}/a.db"]) == 1
    assert "lines 1 to 2 were not written: the disk is full" in capsys.readouterr().err


def test_a_node_that_has_the_file_open_is_noticed(
    url: str, tmp_path: Path, capsys: Capture
) -> None:
    """It would give the offsets that are imported to other events."""
    path = url.removeprefix("sqlite:///")
    assert not is_open(path)
    file = written(tmp_path, *GOOD)
    with ServerProcess("--dev", "--archive-url", url):
        assert is_open(path)
        assert main(["import", file, "--archive-url", url]) == 1
        assert f"galecast: {url} is in use: stop the node first" in capsys.readouterr().err
        # It is read meanwhile.
        assert main(["export", "--archive-url", url]) == 0
    assert main(["import", file, "--archive-url", url]) == 0
    assert ids(url) == ["x1", "x2", "x3", "x4"]
    assert not is_open(path)
    (tmp_path / "other").write_bytes(b"x" * 1_000)
    assert not is_open(str(tmp_path / "other"))


def test_a_node_goes_on_behind_what_was_imported(url: str, tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "galecast.toml"
    config.write_text('[[channels]]\nmatch = ">"\narchive = true\n')
    file = written(tmp_path, *GOOD)
    assert main(["import", file, "--archive-url", url]) == 0
    with ServerProcess("--dev", "--archive-url", url, "--config", str(config)) as server:
        port = ["--port", str(server.port)]
        assert main(["publish", "--dev", *port, "a.b", "1", "--json"]) == 0
        position = json.loads(capsys.readouterr().out.splitlines()[-1])["position"]
        assert position.startswith(f"{EPOCH}-5-")


def test_progress_says_how_much_of_the_file_is_read(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(cli_import, "_ENTRIES", 1)
    file = written(tmp_path, *GOOD)
    assert main(["import", file, "--archive-url", url]) == 0
    assert "\r\x1b[K1 event of 1 channel, 25 %" in capsys.readouterr().err
    with gzip.open(tmp_path / "events.gz", "wb") as compressed:
        compressed.writelines(GOOD)
    assert main(["import", str(tmp_path / "events.gz"), "--archive-url", url]) == 0
    assert " 100 %" in capsys.readouterr().err
