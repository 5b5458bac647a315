"""The wheel holds all that runs and nothing else, and its command works away from the sources.

The wheel is built offline with the setuptools of this environment. It is installed alone into a
new environment; what it depends on is not installed again but lent from this environment, by a
path that comes after its own. So this proves what the wheel contains and that it does not lean on
the source tree, not that its dependencies can be had: the lock files are for that. That every
package imported is also declared has a test of its own below.
"""

import ast
import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("config", "pubsub", "server", "handlers", "static")


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command with nothing of this process's environment but PATH and HOME."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=kept | env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the source tree stays clean."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for room in (*ROOMS, "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "node_modules")
        shutil.copytree(ROOT / room, source / room, ignore=ignored)
    result = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = (source / "dist").glob("galecast-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a new environment with the wheel in it."""
    home = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    result = run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=home)
    assert result.returncode == 0, result.stdout + result.stderr
    # A path in a .pth file comes last, and .pth files beneath it (an editable install of these
    # very sources, say) are not read.
    lent = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages,) = (home / "lib").glob("python*/site-packages")
    (packages / "lent.pth").write_text("".join(f"{path}\n" for path in sorted(lent)))
    return home / "bin"


def test_every_file_of_every_room_is_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - inside == set()
    assert "static/__init__.py" in expected
    assert any(path.endswith(".html") for path in expected)


def test_nothing_else_is_shipped(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(ROOMS)
    assert not [name for name in names if "test" in Path(name).name]
    assert [name for name in names if name.endswith("/licenses/LICENSE")]


def test_the_command_works_from_an_unrelated_folder(installed: Path, tmp_path: Path) -> None:
    result = run(installed / "galecast", "check", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert result.returncode == 0, result.stdout + result.stderr
    assert str(ROOT) not in result.stdout + result.stderr


def test_a_wrong_setting_fails_the_check(installed: Path, tmp_path: Path) -> None:
    environment = {"PYTHONSAFEPATH": "1", "GALECAST_PORT": "many"}
    result = run(installed / "galecast", "check", cwd=tmp_path, **environment)
    assert result.returncode == 1
    assert "many" in result.stdout + result.stderr


def test_the_rooms_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    rooms = ", ".join(ROOMS)
    code = f"import {rooms}\nfor room in ({rooms}): print(room.__file__)"
    result = run(installed / "python", "-c", code, cwd=tmp_path, PYTHONSAFEPATH="1")
    assert result.returncode == 0, result.stderr
    places = [Path(line) for line in result.stdout.splitlines()]
    assert len(places) == len(ROOMS)
    assert all(place.is_relative_to(installed.parent) for place in places)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_declared_and_no_more(wheel: Path) -> None:
    imported: set[str] = set()
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    imported |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                    imported.add(node.module.partition(".")[0])
    distributions = packages_distributions()
    used = {
        normal(distribution)
        for name in imported - sys.stdlib_module_names - set(ROOMS)
        for distribution in distributions.get(name, [f"{name} (unknown)"])
    }
    archive = zipfile.ZipFile(wheel)
    (metadata,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
    required = email.message_from_bytes(archive.read(metadata)).get_all("Requires-Dist") or []
    # What an extra brings is not imported: a program, or what another package imports.
    always = [line for line in required if "extra ==" not in line]
    declared = {normal(re.split(r"[^\w.-]", line)[0]) for line in always}
    extras = (
        {"cryptography"} if any(line.startswith("pyjwt[crypto]") for line in required) else set()
    )
    assert used - declared - extras == set()
    assert declared - used == set()


def test_the_version_stands_in_one_place(wheel: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert wheel.name == f"galecast-{project['version']}-py3-none-any.whl"
