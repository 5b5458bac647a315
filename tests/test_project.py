"""The files around the code say the same thing: locks, image, hooks and CI."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LOCKS = (
    "requirements.lock",
    "requirements-build.lock",
    "requirements-dev.lock",
    "bench/peers/requirements.lock",
)


def pins(lock: str) -> dict[str, str]:
    """Each name of a lock file with its version."""
    text = (ROOT / lock).read_text()
    return dict(re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE))


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_of_a_lock_has_a_hash(lock: str) -> None:
    lines = (ROOT / lock).read_text().replace("\\\n", " ").splitlines()
    entries = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    assert entries
    assert [
        e for e in entries if not re.match(r"[\w.-]+==\S+.* --hash=sha256:[0-9a-f]{64}", e)
    ] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_names_no_index_and_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text()
    assert re.search(r"https?://|file:|--(extra-)?index-url|--find-links| /\w", text) is None


def test_the_locks_agree() -> None:
    every = pins("requirements-dev.lock")
    for lock in ("requirements.lock", "requirements-build.lock"):
        assert pins(lock).items() <= every.items()


def test_the_runtime_lock_holds_what_the_project_declares() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[^\w-]", line)[0].lower() for line in declared}
    assert names <= pins("requirements.lock").keys()
    assert not {"pytest", "ruff", "mypy", "setuptools"} & pins("requirements.lock").keys()


# ---- the image


def dockerfile() -> list[tuple[str, str]]:
    """The instructions in order, continued lines joined, comments left out."""
    lines = [
        line
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if not line.lstrip().startswith("#")
    ]
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        (words[0].upper(), " ".join(words[1:]))
        for line in text.splitlines()
        if (words := line.split())
    ]


def final_stage() -> list[tuple[str, str]]:
    steps = dockerfile()
    last = max(i for i, (instruction, _) in enumerate(steps) if instruction == "FROM")
    return steps[last:]


def of(instruction: str) -> list[str]:
    return [value for name, value in final_stage() if name == instruction]


def test_the_image_does_not_run_as_root() -> None:
    (user,) = of("USER")
    assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", user), (
        "a number, so that an orchestrator can check"
    )


def test_the_image_is_slim_and_copies_only_what_was_built() -> None:
    assert [value.split()[0] for value in of("FROM")] == ["python:3.13-slim"]
    assert len([name for name, _ in dockerfile() if name == "FROM"]) == 2
    assert of("COPY") == ["--from=build /opt/galecast /opt/galecast"]
    assert of("RUN") == []


def test_the_image_trusts_no_folder_and_writes_nothing() -> None:
    environment = " ".join(of("ENV"))
    assert "PYTHONSAFEPATH=1" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    assert "GALECAST_HOST=0.0.0.0" in environment


def test_the_image_starts_stops_and_reports() -> None:
    assert of("ENTRYPOINT") == ['["galecast"]']
    assert of("CMD") == ['["serve"]']
    assert of("STOPSIGNAL") == ["SIGTERM"]
    assert of("EXPOSE") == ["8000"]
    (check,) = of("HEALTHCHECK")
    assert "/healthz" in check
    code = re.search(r'"-c", "(.*)"\]$', check)
    assert code is not None
    compile(code[1], "HEALTHCHECK", "exec")


def test_the_image_installs_by_hash_only() -> None:
    steps = [value for name, value in dockerfile() if name == "RUN"]
    installs = [part for step in steps for part in step.split("&&") if " install " in part]
    assert len(installs) == 3
    for install in installs:
        assert "--require-hashes" in install or "--no-index" in install


def test_what_the_image_copies_exists_and_is_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [
        source
        for name, value in dockerfile()
        if name == "COPY" and "--from" not in value
        for source in value.split()[:-1]
    ]
    assert {"config", "pubsub", "server", "handlers", "static", "requirements.lock"} <= {*sources}
    for source in sources:
        assert (ROOT / source).exists(), source
        assert f"!{source}" in ignored or f"!{source}/" in ignored, source


# ---- hooks, CI, targets


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_every_target_says_what_it_does() -> None:
    """The list of phony targets goes over two lines, which once failed this test."""
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    assert {"run", "test", "check", "bench", "format", "lock", "clean", "help"} <= targets()
    assert set(re.findall(r"^([a-z-]+):.*## \S", text, re.MULTILINE)) == targets()
    (phony,) = re.findall(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert set(phony.split()) == targets()


def test_hooks_call_targets_that_exist() -> None:
    entries = re.findall(r"^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.M)
    assert entries
    assert {entry.split()[0] for entry in entries} == {"make"}
    assert {entry.split()[1] for entry in entries} <= targets()


def test_the_workflow_runs_what_a_person_can_run() -> None:
    workflow = (ROOT / ".github" / "workflows" / "check.yml").read_text()
    assert re.findall(r"run: (.*)", workflow) == [".ci/run"]
    assert "permissions:\n  contents: read\n" in workflow
    for name in ("run", "ferretdb"):
        script = ROOT / ".ci" / name
        assert script.stat().st_mode & 0o111 == 0o111
        assert "set -euo pipefail" in script.read_text()
        subprocess.run(["bash", "-n", script], check=True)
    text = (ROOT / ".ci" / "run").read_text()
    assert "TEST_STRICT=1" in text
    assert "make check" in text


def test_the_licence_is_whole() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_changes_are_told_under_unreleased() -> None:
    assert "\n## Unreleased\n" in (ROOT / "CHANGELOG.md").read_text()
