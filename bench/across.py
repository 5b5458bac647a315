"""Publish on one node, receive on another, under light load; against one node, in the same run.

From the moment at which an event was due to be published over HTTP to the moment when it is read
from the subscriber's WebSocket. Three ways take turns: one node with its broker in memory, one node
over Redis, and two nodes over Redis with the publisher at one and the subscriber at the other.
Servers share a core, the load has another where there is one. Needs a redis-server on the PATH.
"""

import sys
from argparse import Namespace
from contextlib import ExitStack
from functools import partial

import msgspec

from _case import Case, claim_ratio, figure_of, note, ours, take_turns
from _results import OURS, Claim, Figure, Result, Rounds
from _servers import Server, galecast, redis
from server.load_engine import Load
from server.load_layout import Layout
from server.load_run import Plan
from server.load_target import LoadFailed

OPTIONS = {
    "rate": (50, 50, "events per second"),
    "seconds": (1.5, 6.0, "how long each is measured in a round"),
    "rounds": (1, 3, "how often"),
}
MOST_MS = {"p50": 2.0, "p99": 8.0}
ALONE, OVER, ACROSS = "one node, in memory", "one node, over Redis", "across two nodes, over Redis"


def across(publishing: Server, receiving: Server, variant: str, plan: Plan) -> Figure:
    """Publish on one node and receive on another; return how long events took."""
    layout = Layout(sessions=1)
    note(variant)
    target = msgspec.structs.replace(
        ours().target(receiving.port, layout), publish_port=publishing.port
    )
    with Load(target, layout) as load:
        load.open()
        report = load.run(plan, servers=sorted({*publishing.pids(), *receiving.pids()}))
    note("")
    if report.problems:
        raise LoadFailed(f"{variant}: {'; '.join(report.problems[:3])}")
    found = figure_of(OURS, report, variant)
    found.values = {name: found.values[name] for name in ("p50_ms", "p99_ms")}
    return found


def run(options: Namespace, result: Result) -> None:
    """Measure the three ways in turns."""
    plan = Plan(seconds=options.seconds, warmup_s=options.seconds / 10, rate=options.rate)
    rounds = Rounds()
    with ExitStack() as stack:
        url = stack.enter_context(redis())
        alone = stack.enter_context(galecast())
        one, two = (stack.enter_context(galecast(settings={"broker_url": url})) for _ in range(2))
        for server in (one, two):
            server.await_ready()
        ways = {ALONE: (alone, alone), OVER: (one, one), ACROSS: (one, two)}
        turns = [(OURS, partial(across, *pair, variant, plan)) for variant, pair in ways.items()]
        take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    found = result.figure(OURS, ACROSS)
    assert found is not None
    for part, most in MOST_MS.items():
        result.claims.append(
            Claim(
                key=f"across.{part}",
                what=f"{part} across two nodes",
                value=found.values[f"{part}_ms"],
                unit="_ms",
                target=most,
                at_most=True,
            )
        )
        claim_ratio(
            result,
            rounds,
            f"across.{part}.alone",
            f"{part} across two nodes, against one node in memory",
            f"{part}_ms",
            OURS,
            OURS,
            variant=ACROSS,
            other_variant=ALONE,
        )


CASE = Case("across", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
