"""Run the benchmarks, one after the other, and keep what they found in one file.

Quick by default: every case small, a first look in a few minutes, whose figures say little.
`--full` measures what the documents tell. Peers that are not installed are named and left out
(`make peers` installs them). `bench/report.py` writes a result into the documents.
"""

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from _peers import PEERS
from _results import Machine, Result, Suite
from _servers import ROOT, core_count

# What the others build on comes first.
CASES: Final = (
    "fanout",
    "saturating",
    "latency",
    "many_channels",
    "mixed_encodings",
    "sizes",
    "publishing",
    "handshakes",
    "storm",
    "idle",
    "across",
    "workers",
    "audience",
    "slow",
    "compression",
    "archive",
    "archive_queue",
    "redis_memory",
)
LATEST: Final = ROOT / "bench" / ".results" / "latest.json"
_MOST_S: Final = 900.0


def machine() -> Machine:
    """Return what this machine is."""
    processor = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return Machine(
        processor=processor,
        cores=core_count(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        load_before=round(os.getloadavg()[0], 2),
    )


def commit() -> str:
    """Return which commit this is, or `unknown`; `+` stands for changes."""
    try:
        command = ("git", "describe", "--always", "--dirty=+", "--exclude=*")
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def run_case(name: str, *, quick: bool) -> Result:
    """Run one case in a process of its own; what it prints passes through."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "result.json"
        command = [sys.executable, str(ROOT / "bench" / f"{name}.py"), "--json", str(path)]
        if quick:
            command.append("--quick")
        problem = ""
        try:
            subprocess.run(command, timeout=_MOST_S)
        except subprocess.TimeoutExpired:
            problem = f"it did not end within {_MOST_S:g} s"
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=Result)
        return Result(
            case=name,
            title=name,
            command=shlex.join(["python", f"bench/{name}.py"]),
            options={},
            problems=[problem or "it failed; see what it printed"],
        )


def earlier(path: Path, suite: Suite) -> Suite:
    """Return the result in a file, if it is one of the same kind and machine; exits else."""
    kept = msgspec.json.decode(path.read_bytes(), type=Suite)
    same = msgspec.structs.replace(suite.machine, load_before=kept.machine.load_before)
    if (kept.quick, kept.machine, kept.versions) != (suite.quick, same, suite.versions):
        sys.exit(f"{path} is of another machine, other peers, or not as full")
    return kept


def main(args: Sequence[str] | None = None) -> int:
    """Run them; say whether nothing was lost and, in full, whether every target is met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="measure in full")
    parser.add_argument(
        "--only", default=",".join(CASES), metavar="CASES", help="which, in this order"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="keep what the result holds of other cases, and put the new figures in their place",
    )
    parser.add_argument(
        "--out", type=Path, default=LATEST, metavar="FILE", help="the result (%(default)s)"
    )
    options = parser.parse_args(args)
    names = [each for each in options.only.split(",") if each]
    if unknown := set(names) - set(CASES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; only {', '.join(CASES)}")
    given = sys.argv[1:] if args is None else args
    began = time.perf_counter()
    suite = Suite(
        command=shlex.join(["python", "bench/run.py", *given]),
        commit=commit(),
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        seconds=0.0,
        quick=not options.full,
        machine=machine(),
        versions={peer.name: peer.version() for peer in PEERS if not peer.missing()},
        results=[],
    )
    if options.again:
        suite = earlier(options.out, suite)
    for peer in PEERS:
        if why := peer.missing():
            print(f"left out: {peer.name}: {why}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    for name in names:
        result = run_case(name, quick=suite.quick)
        result.commit = commit()
        places = {each.case: place for place, each in enumerate(suite.results)}
        if name not in places:
            suite.results.append(result)
        elif result.problems:
            failed.append(name)
        else:
            suite.results[places[name]] = result
        if not options.again:
            suite.seconds = round(time.perf_counter() - began)
        # After each, so that what was found is kept when a later one is interrupted.
        options.out.write_bytes(msgspec.json.format(msgspec.json.encode(suite)) + b"\n")
        print(flush=True)
    code = conclude(suite, options.out)
    if failed:
        print(f"failed, so that the earlier result is kept: {', '.join(failed)}")
    return 1 if failed else code


def conclude(suite: Suite, path: Path) -> int:
    """Print how it went; return the exit code."""
    unmet = sum(not claim.met for result in suite.results for claim in result.claims)
    failed = [result.case for result in suite.results if result.problems]
    print(f"{len(suite.results)} cases in {suite.seconds:.0f} s; result: {path}")
    if unmet:
        few = " (quick: that says little)" if suite.quick else ""
        print(f"{unmet} targets not met{few}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed or (unmet and not suite.quick) else 0


if __name__ == "__main__":
    sys.exit(main())
