"""The library under Node.js: each `*.test.mjs` by node's own runner, against real servers."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

FILES = sorted(path.name for path in Path(__file__).parent.glob("*.test.mjs"))


@pytest.mark.parametrize("file", FILES)
def test_node(run: Callable[..., tuple[int, str]], file: str) -> None:
    code, output = run("node", "--test", "--test-reporter=spec", file)
    if code != 0:
        pytest.fail(output, pytrace=False)
    # A file without tests passes, and so does one whose tests are skipped.
    counts = dict(re.findall(r"^\S+ (pass|skipped) (\d+)$", output, re.MULTILINE))
    assert int(counts["pass"]) > 0
    assert int(counts["skipped"]) == 0
