"""The committed inputs of every fuzz target, and a moment of fuzzing where there is atheris."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fuzz_credentials
import fuzz_pieces
import fuzz_targets
from fuzz_corpus import FOLDER, MOST_BYTES, inputs
from fuzz_targets import TARGETS
from pubsub.errors import JunkReceived

# What is imported has put its targets among the others.
MODULES = (fuzz_credentials, fuzz_pieces)


@pytest.mark.parametrize("name", TARGETS)
def test_committed_inputs(name: str) -> None:
    found = inputs(name)
    assert len(found) >= 3
    for data in found:
        try:
            TARGETS[name](data)
        except BaseException as error:
            error.add_note(f"with the input {data!r}")
            raise


def test_every_target_has_a_small_file_of_inputs() -> None:
    files = list(FOLDER.iterdir())
    assert {path.stem for path in files} == TARGETS.keys()
    assert max(path.stat().st_size for path in files) <= 2 * MOST_BYTES


# Not a skip: where there is no atheris, there is none to install either.
if importlib.util.find_spec("atheris") is not None:

    def test_a_moment_of_fuzzing(tmp_path: Path) -> None:
        """All targets in one process, since each needs seconds to begin."""
        command = [sys.executable, "fuzz_run.py", "--seconds", "4", "--target", "all"]
        done = subprocess.run(
            [*command, "--found", str(tmp_path)],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = re.search(r"([\d,]+) runs, (\d+) inputs", done.stdout)
        assert found is not None and int(found[2]) >= sum(len(inputs(name)) for name in TARGETS)


def takes_all(text: bytes, *, depth: int) -> bytes:
    """What `check_json` would be if it looked at nothing."""
    return text


@pytest.mark.parametrize(
    ("name", "function", "broken"),
    [
        ("json_value", "check_json", takes_all),
        ("msgpack_command", "equal", lambda *_: False),
        ("envelope", "pack_draft", lambda _: b""),
        ("envelope", "pack_stored", lambda _: b""),
        ("control", "pack_message", lambda _: b""),
    ],
)
def test_a_broken_promise_shows(
    name: str, function: str, broken: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The committed inputs reach far enough that it is seen."""
    monkeypatch.setattr(fuzz_targets, function, broken)
    with pytest.raises((AssertionError, JunkReceived)):
        for data in inputs(name):
            TARGETS[name](data)
