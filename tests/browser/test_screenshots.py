"""The script that takes the pictures of the documents still finds what it looks for."""

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from chromium import MISSING
from doc_text import read
from processes import ROOT
from screenshots import VIEWS


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_it_takes_every_picture(tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "support" / "screenshots.py")
    command = [sys.executable, script, str(tmp_path), "--seconds", "12"]
    subprocess.run(command, check=True, timeout=90)
    names = {f"{name}.png" for name, *_ in VIEWS}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        head = (tmp_path / name).read_bytes()[:24]
        assert head[1:4] == b"PNG"
        width, height = struct.unpack(">II", head[16:])
        assert width == 1280
        assert height >= 1000


def test_the_documents_show_them() -> None:
    for name, *_ in VIEWS:
        assert f"docs/{name}.png" in read("README.md")
