"""Runs seeds of the simulated worlds, and tells which of them broke the promise.

    python tests/support/simulate.py [WORLD...] [--seeds N] [--first 0] [--jobs 2]

The same seed is the same run, on any machine: times, chance and the order of things come from the
seed alone. One that failed is seen again with `--first SEED --seeds 1`, and then with its trace.
The exit code is 1 if one failed.
"""

import argparse
import gc
import logging
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

# Failures after which the rest is not tried.
MOST_FAILURES = 5
_PIECE = 50


@dataclass(slots=True)
class Result:
    """What became of some seeds: how many ran, what they met, and how they failed."""

    seeds: int = 0
    met: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, other: "Result") -> None:
        self.seeds += other.seeds
        self.met += other.met
        self.failures += other.failures


@cache
def spare_collector() -> None:
    """Let what was imported be left alone: each world is full of cycles, and to look takes long."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 5, 100)


def run_piece(world: str, seeds: Iterable[int], story: bool = False) -> Result:
    """Run some seeds of a world."""
    # Not before this is a process of its own.
    from sim_worlds import WORLDS

    spare_collector()

    result = Result()
    for seed in seeds:
        result.seeds += 1
        run: Any = None
        try:
            with WORLDS[world](seed) as run:
                run.play()
                result.met += run.met()
        except Exception as error:
            text = "".join(traceback.format_exception(error)[-2:]).rstrip()
            result.failures.append(f"{world} {seed}, {run and run.course}\n{text}")
            if story and run is not None:
                result.failures.append("\n".join(map(str, run.trace())))
        if len(result.failures) >= MOST_FAILURES:
            break
    return result


def pieces(first: int, count: int) -> Iterator[range]:
    for begin in range(first, first + count, _PIECE):
        yield range(begin, min(begin + _PIECE, first + count))


def run_seeds(world: str, first: int, count: int, jobs: int) -> Result:
    """Run seeds in some processes."""
    result = Result()
    run: Callable[[range], Result] = partial(run_piece, world, story=count == 1)
    if jobs == 1 or count <= _PIECE:
        results: Iterable[Result] = map(run, pieces(first, count))
        for each in results:
            result.add(each)
            if len(result.failures) >= MOST_FAILURES:
                break
        return result
    with ProcessPoolExecutor(jobs) as pool:
        # A few at a time, so that it ends soon after a failure.
        todo = pieces(first, count)
        while some := list(islice(todo, 4 * jobs)):
            for each in pool.map(run, some):
                result.add(each)
            if len(result.failures) >= MOST_FAILURES:
                break
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("worlds", nargs="*", help="those of sim_worlds.py (default: all)")
    parser.add_argument("--seeds", type=int, help="how many of each (2000, of presence 200)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    jobs = min(2, os.cpu_count() or 1)
    parser.add_argument("--jobs", type=int, default=jobs, help=f"processes ({jobs})")
    asked = parser.parse_args()
    from sim_worlds import SEEDS, WORLDS

    # What the seeds provoke is not to be read.
    logging.disable(logging.WARNING)
    failed = 0
    for world in asked.worlds or WORLDS:
        began = time.perf_counter()
        result = run_seeds(world, asked.first, asked.seeds or SEEDS[world], asked.jobs)
        took = time.perf_counter() - began
        failed += len(result.failures)
        for failure in result.failures:
            print(failure, end="\n\n")
        met = ", ".join(f"{number} {name}" for name, number in sorted(result.met.items()))
        print(
            f"{world}: {result.seeds} seeds in {took:.1f} s, {result.seeds / took:.0f} per s; {met}"
        )
    return int(failed > 0)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        # The order of sets of texts would be another each time.
        os.execve(  # noqa: S606 - this program itself
            sys.executable, [sys.executable, *sys.argv], os.environ | {"PYTHONHASHSEED": "0"}
        )
    # The product beside which this stands, whatever is installed.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main())
