"""The guarantees that are told are those that tests show: docs/guarantees.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from doc_text import ROOT, prose, read, references, tables
from fault_table import FAULTS, Kind
from without import RULES, TESTS

DOCUMENT = "docs/guarantees.md"
SCENARIOS = "tests/faults/test_scenarios.py::test_nothing_is_lost"
FACTS = ("acknowledged events", "order", "duplicates", "presence", "sessions", "archive")
KINDS = {kind.name.replace(" ", "-"): kind for kind in FAULTS}

_LINKED = re.compile(r"\[([^\]]+)\]\[([^\]]+)\]")


class Row:
    """A row of the table: its scenarios, and what it says of them by column."""

    def __init__(self, cells: list[str]) -> None:
        fault, scenarios, *facts = cells
        self.fault = fault
        self.names = re.findall(r"`([\w-]+)`", scenarios)
        self.facts = dict(zip(FACTS, facts, strict=True))

    def said(self, fact: str) -> str:
        """What a cell says of the scenarios of the row, empty if nothing."""
        return "; ".join(
            text for text, label in _LINKED.findall(self.facts[fact]) if label == "scenario"
        )


ROWS = [Row(cells) for cells in tables(DOCUMENT)["What survives what"]]
PLAYED = [(row, KINDS[name]) for row in ROWS for name in row.names if name in KINDS]
each_played = pytest.mark.parametrize(
    ("row", "kind"), PLAYED, ids=[kind.name.replace(" ", "-") for _row, kind in PLAYED]
)


def path_of(link: str) -> Path:
    return ((ROOT / DOCUMENT).parent / link).resolve().relative_to(ROOT.resolve())


# ---- links


def test_every_test_that_is_named_can_be_run() -> None:
    ids = [f"{SCENARIOS}[{name}]" for row in ROWS for name in row.names]
    for path, title in references(DOCUMENT).values():
        if title and path.endswith(".py"):
            ids.append(f"{path_of(path)}::{title}")
    # A run inside of a run, which may be one of several that share the work.
    environ = {name: os.environ[name] for name in os.environ if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider"]
    done = subprocess.run([*command, *ids], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_every_test_of_the_library_that_is_named_is_there() -> None:
    named = [each for each in references(DOCUMENT).values() if each.path.endswith(".mjs")]
    assert named
    for path, title in named:
        assert f'\ntest("{title}", ' in (ROOT / path_of(path)).read_text()


def test_every_label_is_defined_and_used() -> None:
    used = {label for _text, label in _LINKED.findall(prose(DOCUMENT))}
    assert used == set(references(DOCUMENT))


# ---- the table


def test_every_scenario_stands_in_one_row() -> None:
    assert sorted(name for row in ROWS for name in row.names) == sorted(KINDS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.fault)
def test_every_cell_leads_to_the_test_that_shows_it(row: Row) -> None:
    labels = references(DOCUMENT)
    for fact, cell in row.facts.items():
        found = _LINKED.findall(cell)
        assert bool(found) is (cell != "–"), fact
        assert all(labels[label].title for _text, label in found), fact
        assert row.names or not row.said(fact), f"{fact}: there is no scenario"
    assert row.names or any(cell != "–" for cell in row.facts.values())


@each_played
def test_what_the_scenarios_assert_is_what_is_told(row: Row, kind: Kind) -> None:
    """A row says what its scenarios are held to, neither more nor less."""
    events, sessions = row.said("acknowledged events"), row.said("sessions")
    assert ("told" in events) is (kind.tellings > 0)
    assert ("once" in events) is (kind.tellings == 1)
    assert events.startswith("gone") is ("told" in kind.felt)
    assert ("the newest" in events) is ("skipped" in kind.felt) is kind.setup.conflates
    assert ("some publishes fail" in events) is ("publishers" in kind.felt)
    assert ("in an epoch" in row.said("duplicates")) is (kind.tellings > 0)
    assert ("in each epoch" in row.said("order")) is kind.loses
    assert row.said("presence") == "right"
    assert not sessions or ("some end" in sessions) is ("clients" in kind.felt)
    assert "stay" not in sessions, "no scenario asserts this"
    assert (row.said("archive") == "complete") is kind.setup.archive


# ---- the rules


def test_every_rule_leads_to_its_tests() -> None:
    rows = tables(DOCUMENT)["Rules"]
    assert [int(row[0]) for row in rows] == [*RULES]
    labels = references(DOCUMENT)
    for number, _text, cell in rows:
        paths = [str(path_of(labels[label].path)) for _text, label in _LINKED.findall(cell)]
        assert paths, number
        for path in paths:
            assert path.startswith(TESTS), f"make rules does not run {path}"
            assert f"def test_rule_{int(number):02}_" in read(path), f"{number}: {path}"
