"""Figures come into the documents by a program, and those that stand there are the kept ones."""

import re
from pathlib import Path

import msgspec
import pytest

import report
from _documents import SECTIONS, written
from _results import OURS, Claim, Figure, Machine, Result, Suite
from report import DOCUMENTS, KEPT, differing, read
from run import CASES, conclude


def suite(*results: Result, quick: bool = False) -> Suite:
    machine = Machine(
        processor="a processor",
        cores=2,
        memory_bytes=8_000_000_000,
        kernel="Linux 6.1",
        python="3.11.7",
        load_before=0.1,
    )
    return Suite(
        command="python bench/run.py --full",
        commit="abc1234",
        date="2026-01-01",
        seconds=600,
        quick=quick,
        machine=machine,
        versions={"nchan": "1.3.6"},
        results=list(results),
    )


def fanout(*claims: Claim) -> Result:
    figures = [
        Figure(who=OURS, values={"delivered_per_s": 251_000.0}, load_cpu=0.5, warning="limit"),
        Figure(who="nchan", values={"delivered_per_s": 200_000.0}, load_cpu=0.4, server_cpu=1.0),
    ]
    return Result(
        case="fanout",
        title="Fan-out.",
        command="python bench/fanout.py",
        options={},
        figures=figures,
        claims=list(claims),
        left_out={"ws": "there is no node"},
    )


def section(name: str) -> str:
    return f"Before.\n\n<!-- figures: {name} -->\nold\n<!-- end of figures -->\n\nAfter.\n"


MET = Claim(key="fanout.nchan", what="against nchan", value=1.255, target=1.1)
UNMET = Claim(key="fanout.x", what="p99", value=9.0, unit="_ms", target=8.0, at_most=True)


def test_what_stands_around_figures_stays() -> None:
    text = written(section("budgets"), suite(fanout(MET, UNMET)), {})
    assert text.startswith("Before.\n\n<!-- figures: budgets -->\n")
    assert text.endswith("<!-- end of figures -->\n\nAfter.\n")
    assert "old" not in text
    assert "| against nchan | at least 1.10 times | 1.25 times | met | `python bench/" in text
    assert "| p99 | at most 8 ms | 9 ms | **not met** | `python bench/fanout.py` |" in text
    # Written again it is the same.
    assert written(text, suite(fanout(MET, UNMET)), {}) == text


def test_who_was_the_limit_and_who_was_left_out_is_told() -> None:
    text = written(section("fanout"), suite(fanout()), {})
    assert "| galecast | 251k/s | 50 % (the limit) |  |" in text
    assert "| nchan | 200k/s | 40 % | 100 % |" in text
    text = written(section("machine"), suite(fanout()), {"ws": "`ws`"})
    assert "left out: `ws`: there is no node" in text
    assert "quick" not in text
    assert "**A quick run**" in written(section("machine"), suite(quick=True), {})


def test_a_section_without_a_case_is_an_error() -> None:
    with pytest.raises(KeyError, match="fanout"):
        written(section("fanout"), suite(), {})


@pytest.mark.parametrize("name", SECTIONS)
def test_a_summary_leaves_out_what_was_not_measured(name: str) -> None:
    assert "old" not in written(section(name), suite(), {})


def test_documents_hold_the_kept_result() -> None:
    assert differing(read(KEPT), DOCUMENTS) == {}


def test_every_case_has_its_section() -> None:
    text = DOCUMENTS[0].read_text(encoding="utf-8")
    names = re.findall(r"<!-- figures: ([\w ]+) -->", text)
    assert set(names) - set(SECTIONS) == set(CASES)
    assert text.count("<!-- end of figures -->") == len(names)
    for name in CASES:
        assert f"`python bench/{name}.py`" in text


def test_a_report_is_written_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document, kept, found = tmp_path / "a.md", tmp_path / "kept.json", tmp_path / "found.json"
    document.write_text(section("fanout"))
    monkeypatch.setattr(report, "DOCUMENTS", (document,))
    monkeypatch.setattr(report, "KEPT", kept)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    found.write_bytes(msgspec.json.encode(suite(fanout(MET))))
    assert report.main([str(found)]) == 0
    assert report.main(["--check"]) == 0
    document.write_text(document.read_text().replace("251k", "999k"))
    assert report.main(["--check"]) == 1
    assert "a.md is not what kept.json makes of it" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{}", "nothing"])
def test_what_is_no_result_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "found.json"
    path.write_text(text)
    assert report.main([str(path)]) == 1
    assert "is no result" in capsys.readouterr().err


def test_a_result_without_a_case_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document, found = tmp_path / "a.md", tmp_path / "found.json"
    document.write_text(section("fanout"))
    monkeypatch.setattr(report, "DOCUMENTS", (document,))
    monkeypatch.setattr(report, "KEPT", tmp_path / "kept.json")
    found.write_bytes(msgspec.json.encode(suite()))
    assert report.main([str(found)]) == 1
    assert document.read_text() == section("fanout")
    assert not (tmp_path / "kept.json").exists()


@pytest.mark.parametrize(
    ("claim", "problem", "quick", "code"),
    [
        (MET, "", False, 0),
        (UNMET, "", False, 1),
        # A quick run says too little to be held to it; what was lost is lost all the same.
        (UNMET, "", True, 0),
        (MET, "lost", True, 1),
    ],
)
def test_a_run_fails_when_it_should(
    claim: Claim, problem: str, quick: bool, code: int, tmp_path: Path
) -> None:
    found = fanout(claim)
    found.problems = [problem] if problem else []
    assert conclude(suite(found, quick=quick), tmp_path / "x") == code
