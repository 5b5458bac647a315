"""`galecast export`: an archive as lines, whole, bounded in memory, and again after an end."""

import gzip
import json
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import export_rig
from archive_rig import TIME, events, kept
from export_rig import KINDS, NewUrl, fill, held, many
from processes import ROOT
from server import cli_export
from server.cli import main
from server.cli_archive import Channels, parse_time
from server.cli_output import CommandFailed
from server.cli_progress import Progress

Capture = pytest.CaptureFixture[str]
new_url = export_rig.new_url


def lines(path: Path) -> list[dict[str, Any]]:
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in data.splitlines()]


def sqlite(folder: Path, count: int = 3) -> str:
    """The address of an archive with a few events of the channel a.b."""
    url = f"sqlite:///{folder / 'archive.db'}"
    fill(url, kept(events(count)))
    return url


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_that_is_imported_reads_the_same(
    new_url: NewUrl, tmp_path: Path, capsys: Capture
) -> None:
    one, two = new_url(), new_url()
    fill(one, many())
    file = tmp_path / "events.ndjson.gz"
    assert main(["export", "--archive-url", one, str(file)]) == 0
    assert capsys.readouterr().out == "1,243 events of 3 channels exported\n"
    assert main(["import", str(file), "--archive-url", two]) == 0
    assert held(two) == held(one)
    assert main(["import", str(file), "--archive-url", two, "--json"]) == 0
    assert held(two) == held(one)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told == {"events": 1_243, "channels": 3, "wrong_lines": 0}


@pytest.mark.parametrize("page", [1, 2, 3, 7])
def test_pages_part_nothing_that_belongs_together(
    page: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Two events of one offset, at the end of a page, used to be one."""
    monkeypatch.setattr(cli_export, "_PAGE", page)
    one = f"sqlite:///{tmp_path / 'one.db'}"
    fill(one, many()[-9:])
    assert main(["export", "--archive-url", one]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ids = [line["id"] for line in found if line["channel"] == "forked"]
    assert sorted(ids) == ["x1", "x2", "x3", "y2"]


def test_channels_and_times_can_be_chosen(tmp_path: Path, capsys: Capture) -> None:
    url = f"sqlite:///{tmp_path / 'archive.db'}"
    found = [event for name in ("a.b", "a.c", "d") for event in events(5, channel=name)]
    fill(url, kept(found))
    chosen = ["--channel", "a.*", "--channel", "x", "--from", str(TIME + 20)]
    assert main(["export", "--archive-url", url, *chosen, "--to", "2026-09-10T00:26:40.040Z"]) == 0
    out, err = capsys.readouterr()
    ids = [(line["channel"], line["id"]) for line in map(json.loads, out.splitlines())]
    assert ids == [(name, f"x{n}") for name in ("a.b", "a.c") for n in (2, 3)]
    assert err == "galecast: 4 events of 2 channels exported\n"


def test_an_export_goes_on_where_it_was_broken_off(tmp_path: Path, capsys: Capture) -> None:
    url = f"sqlite:///{tmp_path / 'archive.db'}"
    fill(url, many())
    file, part = tmp_path / "events", tmp_path / "events.part"
    export = ["export", "--archive-url", url, str(file)]
    assert main(export) == 0
    whole = file.read_bytes()
    assert not part.exists()
    for size in (0, 10, 200, 500, 1_000, len(whole) // 2, len(whole) - 1, len(whole)):
        part.write_bytes(whole[:size])
        assert main([*export, "--resume"]) == 0
        assert file.read_bytes() == whole
    # Without, it begins anew.
    part.write_bytes(b"nonsense\n")
    assert main(export) == 0
    assert file.read_bytes() == whole
    part.write_bytes(b"nonsense\n")
    assert main([*export, "--resume"]) == 1
    assert "a line is not valid JSON" in capsys.readouterr().err


def test_a_file_has_its_name_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    url = sqlite(tmp_path)
    file = tmp_path / "events"
    file.write_bytes(b"of before")
    read = cli_export.Export.entries

    async def broken(self: cli_export.Export) -> Any:
        async for entry in read(self):
            yield entry
            raise KeyboardInterrupt

    monkeypatch.setattr(cli_export.Export, "entries", broken)
    assert main(["export", "--archive-url", url, str(file)]) == 130
    assert file.read_bytes() == b"of before"
    assert len(lines(tmp_path / "events.part")) == 1
    assert "--resume goes on with" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["export", "--archive-url", url, str(file), "--resume"]) == 0
    assert len(lines(file)) == 3
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "there is no archive: name one"),
        (["--archive-url", "sqlite:///no/such.db"], "there is no such file"),
        (["--archive-url", "http://x"], "the archive's address: unknown scheme"),
        (["--channel", "a b"], "--channel a b: "),
        (["--from", "yesterday"], "--from yesterday: ms since 1970"),
        (["--to", "1900-01-01"], "--to 1900-01-01: not a time after 1970"),
        (["--resume"], "--resume goes on with a file"),
        (["--resume", "x.gz"], "--resume goes on with a file that is not compressed"),
        (["/no/such/folder/x"], "/no/such/folder/x: No such file"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: list[str], text: str, capsys: Capture) -> None:
    assert main(["export", *arguments]) == 1
    assert text in capsys.readouterr().err


def test_a_database_that_is_away_is_said(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("GALECAST_ARCHIVE_CALL_TIMEOUT_S", "0.1")
    assert main(["export", "--archive-url", "mongodb://u:secret@127.0.0.1:1/x"]) == 1
    said = "galecast: mongodb://u:***@127.0.0.1:1/x: MongoDB"
    assert capsys.readouterr().err.startswith(said)


def test_who_reads_may_go(tmp_path: Path) -> None:
    url = sqlite(tmp_path, 20_000)
    command = [sys.executable, "-m", "server.cli", "export", "--archive-url", url]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=-1) as process:
        assert process.stdout is not None and process.stderr is not None
        assert json.loads(process.stdout.readline())["id"] == "x1"
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0", 0),
        ("1789000000123", 1_789_000_000_123),
        ("20260101", 1_767_225_600_000),
        ("2026-01-01", 1_767_225_600_000),
        ("2026-01-01T01:00:00.5+01:00", 1_767_225_600_500),
    ],
)
def test_a_time_is_read(text: str, ms: int) -> None:
    assert parse_time(text, "--from") == ms


@pytest.mark.parametrize("text", ["", "-1", "9" * 17, "2026-13-01", "\u0661" * 13])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(CommandFailed, match="--to"):
        parse_time(text, "--to")


def test_all_channels_are_meant_without_a_pattern() -> None:
    assert "a.b" in Channels([])
    assert "a.b" in Channels(["x", "a.>"])
    assert "a" not in Channels(["x", "a.>"])


def test_progress_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    now = 1.0
    progress = Progress(lambda: now)
    progress.show(lambda: "hidden")
    progress.end()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(lambda: now)
    progress.show(lambda: "one")
    progress.show(lambda: "too soon")
    now += 1
    progress.show(lambda: "two")
    progress.end()
    progress.end()
    assert capsys.readouterr().err == "\r\x1b[Kone\r\x1b[Ktwo\r\x1b[K"


def test_an_export_needs_little_memory(tmp_path: Path) -> None:
    """What is read is a page, however many events there are."""
    url = sqlite(tmp_path, 1)
    small = _peak_kb(url)
    fill(url, kept(events(40_000, channel="large", data=b'"' + b"x" * 1_000 + b'"')))
    assert _peak_kb(url) - small < 20_000


def _peak_kb(url: str) -> int:
    code = (
        "import sys; from pathlib import Path; from server.cli import main; main(sys.argv[1:]);"
        "print(Path('/proc/self/status').read_text(), file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "export", "--archive-url", url, "-"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=-1, check=True)
    match = re.search(rb"VmHWM:\s*(\d+) kB", done.stderr)
    assert match is not None
    return int(match[1])
