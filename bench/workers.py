"""Scaling with workers: one node, and several behind one port over Redis, which all cores serve.

Workers and the load share the cores of this machine, so with few of them the load is the limit:
what grows with workers shows only on a machine that has cores for all. Events go to `sessions`
subscribers, and publishers saturate one worker with HTTP requests in flight.
"""

import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from _case import Case, claim_ratio, measure, ours, take_turns
from _results import Result, Rounds
from _servers import Server, core_count, galecast, redis
from server.load_layout import Layout
from server.load_run import Plan

OPTIONS = {
    "sessions": (300, 1000, "subscribers, all of one channel"),
    "publishers": (4, 4, "connections that publish, shared among the workers by the kernel"),
    "in_flight": (16, 16, "publishes in flight on each of them"),
    "most": (2, max(2, core_count()), "workers, at most; from 1 on, doubled"),
    "seconds": (1.0, 3.0, "how long each is measured in a round"),
    "rounds": (1, 2, "how often"),
}


def run(options: Namespace, result: Result) -> None:
    """Measure each number of workers in turns."""
    layout = Layout(sessions=options.sessions, publishers=options.publishers)
    plan = Plan(
        seconds=options.seconds,
        warmup_s=options.seconds / 3,
        in_flight=options.in_flight,
        compare_every=0,
        patience_s=15.0,
    )

    @contextmanager
    def start(workers: int) -> Iterator[Server]:
        with redis() as url:
            # An admin port of 0 gives each worker one.
            more = ("--workers", str(workers)) if workers > 1 else ()
            with galecast(*more, spread=True, settings={"broker_url": url}) as server:
                server.await_ready()
                yield server

    numbers = [1]
    while numbers[-1] * 2 <= options.most:
        numbers.append(numbers[-1] * 2)
    everyone = [ours(f"galecast ({n})", start=partial(start, n)) for n in numbers]
    rounds = Rounds()
    turns = [(peer.name, partial(measure, peer, layout, plan)) for peer in everyone]
    take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for number, peer in list(zip(numbers, everyone, strict=True))[1:]:
        claim_ratio(
            result,
            rounds,
            f"workers.{number}",
            f"events delivered per second with {number} workers, against one"
            f" ({core_count()} cores, the load included)",
            "delivered_per_s",
            peer.name,
            everyone[0].name,
        )


CASE = Case("workers", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
