"""What the tests of the library need: Node.js, and what package.json beside this file names."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LIMIT_S = 170

Run = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def run() -> Run:
    """A function that runs a command here: `run("node", "--test", ...)`.

    It returns the exit code and all that was written. What the command has started ends with it,
    servers included. `node` and the programs of node_modules are found by their name.
    """
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no Node.js on this machine")
    # npm writes this file when all the rest is there.
    if not (HERE / "node_modules" / ".package-lock.json").exists():
        pytest.skip("tests/browser/node_modules is not there; `make test` makes it if there is npm")

    def run(program: str, *arguments: str) -> tuple[int, str]:
        path = node if program == "node" else str(HERE / "node_modules" / ".bin" / program)
        process = subprocess.Popen(
            [path, *arguments],
            cwd=HERE,
            env={**os.environ, "TEST_PYTHON": sys.executable},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"{program} took more than {LIMIT_S} s:\n{output}", pytrace=False)
        return process.returncode, output

    return run
