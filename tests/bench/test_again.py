"""Some cases are measured again, and the others stay as they were found."""

from pathlib import Path

import msgspec
import pytest

import run
from _documents import written
from _results import Machine, Result, Suite

SECTION = "<!-- figures: machine -->\n<!-- end of figures -->\n"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The result of two cases; each case that is run says how often it was."""
    times: dict[str, int] = {}

    def run_case(name: str, *, quick: bool) -> Result:
        assert quick
        times[name] = times.get(name, 0) + 1
        return Result(case=name, title=f"{name} {times[name]}", command="", options={})

    commits = iter(("aaa", "aaa", "aaa", "bbb", "bbb", "bbb"))
    monkeypatch.setattr(run, "run_case", run_case)
    monkeypatch.setattr(run, "commit", lambda: next(commits))
    path = tmp_path / "result.json"
    run.main(["--only", "fanout,slow", "--out", str(path)])
    return path


def read(path: Path) -> Suite:
    return msgspec.json.decode(path.read_bytes(), type=Suite)


def test_what_is_measured_again_takes_its_place(kept: Path) -> None:
    run.main(["--only", "fanout,idle", "--again", "--out", str(kept)])
    found = read(kept)
    assert [each.title for each in found.results] == ["fanout 2", "slow 1", "idle 1"]
    assert found.commit == "aaa"
    text = written(SECTION, found, {})
    assert "measured again at `bbb`: fanout, idle" in text


def test_what_fails_does_not_take_the_place_of_what_was_found(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_case(name: str, *, quick: bool) -> Result:
        return Result(case=name, title="failed", command="", options={}, problems=["it did"])

    monkeypatch.setattr(run, "run_case", run_case)
    assert run.main(["--only", "fanout", "--again", "--out", str(kept)]) == 1
    assert [each.title for each in read(kept).results] == ["fanout 1", "slow 1"]


def test_what_is_measured_anew_stands_alone(kept: Path) -> None:
    run.main(["--only", "fanout", "--out", str(kept)])
    found = read(kept)
    assert [each.title for each in found.results] == ["fanout 2"]
    assert "again" not in written(SECTION, found, {})


def test_figures_of_two_machines_are_not_mixed(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other() -> Machine:
        return msgspec.structs.replace(read(kept).machine, kernel="Linux 1.0")

    before = kept.read_bytes()
    monkeypatch.setattr(run, "machine", other)
    with pytest.raises(SystemExit, match="another machine"):
        run.main(["--only", "fanout", "--again", "--out", str(kept)])
    assert kept.read_bytes() == before
