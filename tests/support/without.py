"""Takes the rules of delivery out of the product, one by one, and sees whether their tests notice.

    python tests/support/without.py [--rule 15] [--jobs 3] [--simulation]

Each entry of tests/rules/mutations.toml is applied alone to a copy of the product, in which the
tests of its rule are run: one of them must fail. The exit code is 1 if none does, if the tests fail
without any change, or if an entry no longer fits the source.

With `--simulation` a simulated world has to notice instead, of those entries that one runs into.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
TABLE: Final = ROOT / "tests" / "rules" / "mutations.toml"
RULES: Final = tuple(range(1, 31))
# Where the rules are tested; rule 19 is of one part of the product, and tested there.
TESTS: Final = ("tests/rules", "tests/pubsub/test_wait_replicas.py")
COPIED: Final = ("config", "handlers", "pubsub", "server", "static", "tests/conftest.py")
SUPPORT: Final = ("tests/support", "pyproject.toml")

# What the simulated worlds run into: rules, and what stands for them.
SIMULATED: Final[Mapping[str, tuple[tuple[int, ...], tuple[str, ...]]]] = {
    "delivery": (
        (1, 2, 3, 8, 9, 10, 11, 12, 13, 15),
        ("server/", "pubsub/heard.py", "pubsub/redis_watch.py"),
    ),
    "leases": (
        (23,),
        ("pubsub/lease.lua", "pubsub/depart.lua", "pubsub/redis_presence.py", "pubsub/node_lease"),
    ),
    "outages": ((23,), ("pubsub/lease.lua",)),
    "archive": (
        (1, 26, 27),
        (
            *("pubsub/publish.lua", "pubsub/purge.lua", "pubsub/collect.lua", "pubsub/queue.lua"),
            *("pubsub/share.lua", "pubsub/archivist.py"),
        ),
    ),
    "ledger": ((5, 29, 30), ("pubsub/durable_", "pubsub/memory_broker.py")),
    "presence": (
        (23, 24),
        ("server/", "pubsub/versions.lua", "pubsub/redis_presence.py", "pubsub/redis_watch.py"),
    ),
}
# Seeds that are to notice.
_SEEDS: Final = {
    "delivery": 1_000,
    "leases": 1_000,
    "outages": 1_000,
    "archive": 500,
    "presence": 150,
    "ledger": 1_000,
}

# Tests that hang are not tests that fail.
LIMIT_S: Final = 60.0
TEST_LIMIT_S: Final = 10
ALL_LIMIT_S: Final = 300.0

_is_test = re.compile(r"^(?:async )?def (test_rule_(\d\d)_\w+)", re.MULTILINE)
_is_failed = re.compile(r"^(FAILED|ERROR) \S+::(\S+)(?: - (.*))?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Mutation:
    """What takes a rule out: `old`, which stands in `file` exactly once, becomes `new`."""

    rule: int
    without: str
    file: str
    old: str
    new: str

    def fault(self) -> str | None:
        """Return why this fits the source no longer, or None."""
        path = ROOT / self.file
        found = path.read_text().count(self.old) if path.exists() else 0
        if found == 1 and self.old != self.new and self.rule in RULES:
            return None
        return f"rule {self.rule}, {self.without}: found {found} times in {self.file}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the tests of a rule: `failed` names one, `why` says how; neither: survived."""

    failed: str = ""
    why: str = ""


def read_table() -> list[Mutation]:
    """Return all mutations, by rule."""
    entries = tomllib.loads(TABLE.read_text())["mutation"]
    return sorted((Mutation(**entry) for entry in entries), key=lambda each: each.rule)


def tested_rules() -> set[int]:
    """Return the rules that have a test."""
    paths = [ROOT / place for place in TESTS]
    files = [file for path in paths for file in (path.glob("*.py") if path.is_dir() else [path])]
    return {int(found[2]) for file in files for found in _is_test.finditer(file.read_text())}


def copy_product(target: Path) -> None:
    """Copy all that the tests of the rules need."""
    leave_out = shutil.ignore_patterns("__pycache__", "node_modules", "*.pyc")
    for name in (*COPIED, *SUPPORT, *TESTS):
        source, place = ROOT / name, target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=leave_out)
        elif source.exists():
            shutil.copy2(source, place)


@contextmanager
def applied(mutation: Mutation, product: Path) -> Iterator[None]:
    """Change a copy of the product, and change it back."""
    path = product / mutation.file
    text = path.read_text()
    if text.count(mutation.old) != 1:
        raise ValueError(mutation.fault())
    path.write_text(text.replace(mutation.old, mutation.new))
    try:
        yield
    finally:
        path.write_text(text)


def run_tests(product: Path, chosen: str, limit_s: float) -> tuple[int | None, str]:
    """Run the chosen tests in a copy; return the exit code (None: out of time) and what it said."""
    scratch = product / "tmp"
    scratch.mkdir(exist_ok=True)
    places = [name for name in TESTS if (product / name).exists()]
    command = [sys.executable, "-m", "pytest", *places, "-k", chosen, "-x", "-q", "--tb=line"]
    command += ["-p", "no:cacheprovider", f"--async-test-timeout={TEST_LIMIT_S}"]
    # What a failed test leaves behind would end the run before it has said which one failed.
    command += ["-p", "no:unraisableexception"]
    process = subprocess.Popen(
        command,
        cwd=product,
        env=os.environ | {"TMPDIR": str(scratch), "COLUMNS": "400"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        # With the servers that its tests have started.
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return None, said
    return process.returncode, said


def judge(mutation: Mutation, products: "SimpleQueue[Path]") -> Verdict:
    """Say what the tests of a rule make of its being gone."""
    product = products.get()
    try:
        with applied(mutation, product):
            # One Redis shows as much as a cluster, and starts sooner.
            chosen = f"test_rule_{mutation.rule:02} and not cluster"
            code, said = run_tests(product, chosen, LIMIT_S)
    finally:
        products.put(product)
    if code == 0:
        return Verdict()
    # What a test leaves behind tells less than why it failed.
    found = sorted(_is_failed.findall(said), reverse=True)
    if code == 1 and found:
        _, failed, why = found[0]
        return Verdict(failed, why)
    why = "out of time" if code is None else said.strip().rpartition("\n")[2]
    return Verdict(why=f"NO VERDICT: {why}")


def simulate(product: Path, world: str) -> Verdict:
    """Say what a world makes of a product: only a run that broke its promise is a failure."""
    program = product / "tests/support/simulate.py"
    command = [sys.executable, str(program), world, "--jobs", "1", "--seeds", str(_SEEDS[world])]
    try:
        done = subprocess.run(
            command, cwd=product, capture_output=True, text=True, timeout=4 * LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return Verdict(why="NO VERDICT: out of time")
    if done.returncode == 0:
        return Verdict()
    said = done.stdout.splitlines()
    if done.returncode == 1 and any(line.startswith(f"{world} ") for line in said):
        found = [x for x in said if x[:1] != " " and ("Error" in x or "Stuck" in x)]
        return Verdict(f"world: {world}", found[0] if found else "")
    return Verdict(why=f"NO VERDICT: {done.stderr.strip().rpartition(chr(10))[2]}")


def judge_by_simulation(mutation: Mutation, products: "SimpleQueue[Path]") -> Verdict:
    """Say what the simulation makes of a rule's being gone."""
    product = products.get()
    verdict = Verdict()
    try:
        with applied(mutation, product):
            for world in worlds_of(mutation):
                verdict = simulate(product, world)
                if verdict.failed or verdict.why:
                    break
    finally:
        products.put(product)
    return verdict


def worlds_of(mutation: Mutation) -> list[str]:
    """Return the simulated worlds that run into what a mutation changes."""
    return [
        world
        for world, (rules, files) in SIMULATED.items()
        if mutation.rule in rules and mutation.file.startswith(files)
    ]


def report(mutations: Sequence[Mutation], jobs: int, *, simulation: bool = False) -> int:
    """Judge all, print a line for each; return how many survived or could not be judged."""
    with tempfile.TemporaryDirectory(prefix="without-") as folder:
        products: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            product = Path(folder, str(number))
            copy_product(product)
            products.put(product)
        rules = " or ".join(f"test_rule_{rule:02}" for rule in {each.rule for each in mutations})
        if simulation:
            for world in sorted({world for each in mutations for world in worlds_of(each)}):
                sound = simulate(product, world)
                if sound.failed or sound.why:
                    print(sound.why, f"The world {world} fails, with all rules in.", sep="\n")
                    return 1
        else:
            code, said = run_tests(product, f"({rules}) and not cluster", ALL_LIMIT_S)
            if code != 0:
                print(said, "The tests fail, with all rules in.", sep="\n")
                return 1
        left = 0
        print(f"{'rule':>4}  {'taken out':<60}  failed test")
        with ThreadPoolExecutor(jobs) as pool:
            how = judge_by_simulation if simulation else judge
            verdicts = pool.map(partial(how, products=products), mutations)
            for mutation, verdict in zip(mutations, verdicts, strict=True):
                left += not verdict.failed
                told = verdict.failed or verdict.why or "SURVIVED"
                print(f"{mutation.rule:>4}  {mutation.without:<60}  {told}", flush=True)
                if verdict.failed and verdict.why:
                    print(f"{'':>68}{verdict.why[:120]}")
        return left


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rule", type=int, help="only this one")
    parser.add_argument("--jobs", type=int, default=3, help="how many at a time (default: 3)")
    parser.add_argument("--simulation", action="store_true", help="let a simulated world notice")
    asked = parser.parse_args()
    mutations = [each for each in read_table() if asked.rule in (None, each.rule)]
    if asked.simulation:
        mutations = [each for each in mutations if worlds_of(each)]
    if faults := [fault for each in mutations if (fault := each.fault())]:
        print("\n".join(faults))
        return 1
    left = report(mutations, asked.jobs, simulation=asked.simulation)
    print(f"{len(mutations)} taken out, {left} of them unnoticed" if left else "All were noticed.")
    return int(left > 0)


if __name__ == "__main__":
    sys.exit(main())
