"""Fuzz what reads bytes of others, guided by coverage: `make fuzz SECONDS=60 TARGET=frames`.

Each target runs in a process of its own, for so many seconds, from the committed inputs and from
what earlier runs found (`.fuzz/`). An input that breaks a promise is printed: make it a test beside
those of the module that broke it. `--keep` adds to the committed inputs those
that reach something new.

Needs atheris, which has wheels for Linux on x86-64.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from hashlib import sha1
from pathlib import Path
from types import FrameType
from typing import Any

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent.parent
sys.path[:0] = [str(_ROOT), str(_ROOT / "tests" / "support"), str(_HERE)]

from fuzz_corpus import FOLDER, inputs, write  # noqa: E402 - the paths come first

MODULES = ("fuzz_targets", "fuzz_credentials", "fuzz_pieces")
_INSTRUMENTED = ["config", "handlers", "pubsub", "server", "fuzz_reference", *MODULES]
_MOST_INPUT_BYTES = 2_048
ALL = "all"
_ROOMS = tuple(f"{_ROOT}/{room}/" for room in ("config", "handlers", "pubsub", "server"))

Step = tuple[str, int, int]


def names() -> list[str]:
    """Return the targets: those that have inputs."""
    return sorted(path.stem for path in FOLDER.glob("*.txt"))


def load(name: str) -> Any:
    """Return a target; `all` is the one that the first byte names."""
    for module in MODULES:
        importlib.import_module(module)
    targets = importlib.import_module(MODULES[0]).TARGETS
    if name != ALL:
        return targets[name]
    each = [targets[one] for one in names()]

    def any_of_them(data: bytes) -> None:
        if data:
            each[data[0] % len(each)](data[1:])

    return any_of_them


def fuzz(name: str, arguments: list[str]) -> None:
    """Run a target in this process; it ends with it."""
    atheris: Any = importlib.import_module("atheris")
    with atheris.instrument_imports(include=_INSTRUMENTED):
        function = load(name)
    atheris.Setup([sys.argv[0], *arguments], function)
    atheris.Fuzz()


def in_process(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a target in a process of its own."""
    command = [sys.executable, __file__, "--within", name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, errors="replace")


def fill(folder: Path, name: str) -> Path:
    """Put the committed inputs into a folder, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == ALL:
        found = [bytes((at,)) + data for at, one in enumerate(names()) for data in inputs(one)]
    else:
        found = inputs(name)
    for data in found:
        (folder / sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    return folder


def run(name: str, seconds: int, folder: Path) -> str | None:
    """Fuzz a target; return what went wrong, or None."""
    fill(folder, name)
    with tempfile.TemporaryDirectory() as found:
        began = time.monotonic()
        done = in_process(
            name,
            str(folder),
            f"-max_total_time={seconds}",
            f"-max_len={_MOST_INPUT_BYTES}",
            f"-artifact_prefix={found}/",
            "-timeout=10",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
        )
        runs = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        count = f"{int(runs[1]):,} runs, " if runs else ""
        print(f"{count}{len(list(folder.iterdir()))} inputs, {time.monotonic() - began:.0f} s")
        if done.returncode == 0:
            return None
        culprits = [repr(path.read_bytes()) for path in Path(found).iterdir()]
        return "\n".join([done.stdout + done.stderr[-3_000:], "the input:", *culprits])


def keep(name: str, folder: Path) -> None:
    """Add to the committed inputs, the short ones first, those that reach what none before did."""
    function, reached, kept = load(name), set[Step](), inputs(name)
    for data in kept:
        reached |= steps_of(function, data)
    found = {path.read_bytes() for path in folder.iterdir()}
    for data in sorted(found, key=lambda data: (len(data), data)):
        steps = steps_of(function, data)
        if not steps <= reached:
            reached |= steps
            kept.append(data)
    write(name, kept)


def steps_of(function: Callable[[bytes], None], data: bytes) -> set[Step]:
    """Return the steps from line to line that a target takes in the product."""
    steps: set[Step] = set()

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(_ROOMS):
            return None
        last = 0

        def line(frame: FrameType, event: str, _argument: object) -> Any:
            nonlocal last
            steps.add((frame.f_code.co_filename, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    sys.settrace(trace)
    try:
        function(data)
    finally:
        sys.settrace(None)
    return steps


def main() -> int:
    if sys.argv[1:2] == ["--within"]:
        fuzz(sys.argv[2], sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument(
        "--target", choices=[*names(), ALL], help="this one only; all: in turn, as one"
    )
    parser.add_argument("--found", type=Path, default=_ROOT / ".fuzz", help="what runs leave here")
    parser.add_argument("--keep", action="store_true", help="add to the committed inputs")
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        print("There is no atheris for this Python or this machine.", file=sys.stderr)
        return 1
    failed = 0
    for name in [given.target] if given.target else names():
        print(f"{name:18}", end="", flush=True)
        problem = run(name, given.seconds, given.found / name)
        if problem is not None:
            failed = 1
            print(problem)
        elif given.keep and name != ALL:
            keep(name, given.found / name)
    return failed


if __name__ == "__main__":
    os.chdir(_ROOT)
    sys.exit(main())
