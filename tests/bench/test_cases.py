"""Each benchmark runs, tiny, against a node of ours; what it finds says nothing here."""

import importlib
import math
from pathlib import Path

import msgspec
import pytest

import publishing
from _case import Case
from _results import OURS, Result
from run import CASES

# The least with which each still does all of what it does in full.
TINY = {
    "fanout": ("--sessions", "20", "--seconds", "0.2", "--peers", "write_message"),
    "saturating": ("--sessions", "20", "--in-flight", "8", "--seconds", "0.2", "--peers", ""),
    "latency": ("--sessions", "20", "--seconds", "0.2", "--peers", ""),
    "many_channels": (
        *("--channels", "40", "--subscribers", "2", "--per-session", "4"),
        *("--sessions", "8", "--seconds", "0.2", "--peers", ""),
    ),
    "mixed_encodings": ("--sessions", "20", "--seconds", "0.2"),
    "sizes": ("--sessions", "20", "--seconds", "0.1", "--peers", ""),
    "publishing": ("--connections", "2", "--seconds", "0.2", "--peers", ""),
    "handshakes": ("--sessions", "20", "--peers", "write_message"),
    "storm": ("--sessions", "20", "--missed", "5"),
    "idle": ("--sessions", "50", "--seconds", "0.2", "--peers", ""),
    "across": ("--seconds", "0.3"),
    "workers": ("--sessions", "20", "--publishers", "2", "--seconds", "0.2", "--most", "2"),
    "audience": ("--most", "30", "--deliveries", "200", "--broadcasts", "2"),
    "slow": ("--sessions", "20", "--seconds", "0.5", "--peers", ""),
    "compression": ("--sessions", "10", "--events", "5"),
    "archive": ("--events", "1000", "--batch", "100", "--live-seconds", "0.3"),
    "archive_queue": ("--events", "100", "--rounds", "1"),
    "redis_memory": ("--channels", "300", "--events", "10"),
}

# Of what is measured one after the other, few.
FEW: dict[str, dict[str, object]] = {
    "latency": {"RATES": (20,)},
    "mixed_encodings": {"ENCODINGS": ("json", "mixed")},
    "sizes": {"SIZES": {"64 B": 64, "16 KB": 16_384}},
    "publishing": {"WAYS": {"HTTP, array": publishing.WAYS["HTTP, array"]}},
    "idle": {"SETTLE_S": 0.1},
    "compression": {"SIZES": {"500 B": 500}, "LARGEST": ("4 KB", 4000)},
}


def test_every_case_is_run() -> None:
    assert set(TINY) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_case_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    case = module.CASE
    assert isinstance(case, Case)
    for constant, few in FEW.get(name, {}).items():
        monkeypatch.setattr(module, constant, few)
    path = tmp_path / "result.json"
    case.main(["--quick", *TINY[name], "--json", str(path)])
    result = msgspec.json.decode(path.read_bytes(), type=Result)
    assert result.case == name
    # Nothing lost, doubled or out of order, and all of it came to an end.
    assert result.problems == []
    assert any(figure.who.startswith(OURS) for figure in result.figures)
    values = [value for figure in result.figures for value in figure.values.values()]
    assert values
    assert all(map(math.isfinite, values))
    assert f"bench/{name}.py" in result.command
    assert str(path) not in result.command
