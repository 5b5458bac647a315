"""Sizes from 64 bytes to 16 KB: events delivered per second, one publish in flight.

`bare_send` is what the kernel allows: its share shows where bytes, not events, are what costs.
"""

import sys
from argparse import Namespace
from functools import partial

from _case import Case, beside, claim_ratio, measure, ours, take_turns
from _results import OURS, Result, Rounds
from server.load_layout import Layout
from server.load_run import Plan

OPTIONS = {
    "sessions": (300, 1000, "subscribers, all of one channel"),
    "seconds": (0.5, 1.6, "how long each is measured in a round"),
    "rounds": (1, 2, "how often"),
}
SIZES = {"64 B": 64, "256 B": 256, "1 KB": 1024, "4 KB": 4096, "16 KB": 16_384}


def run(options: Namespace, result: Result) -> None:
    """Measure everyone in turns, one size after the other."""
    layout = Layout(sessions=options.sessions)
    plan = Plan(
        seconds=options.seconds,
        warmup_s=options.seconds / 4,
        in_flight=1,
        compare_every=16,
        patience_s=15.0,
    )
    everyone = [ours(), *beside(options, result)]
    rounds = Rounds()

    for size in SIZES:
        turns = [
            (peer.name, partial(measure, peer, layout, plan, size=SIZES[size], variant=size))
            for peer in everyone
        ]
        take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for peer in everyone[1:]:
        for size in SIZES:
            claim_ratio(
                result,
                rounds,
                f"sizes.{peer.name}.{size.replace(' ', '')}",
                f"events of {size} delivered per second, against {peer.title}",
                "delivered_per_s",
                OURS,
                peer.name,
                variant=size,
            )


CASE = Case("sizes", __doc__, OPTIONS, run, peers=("nchan", "bare_send"))

if __name__ == "__main__":
    sys.exit(CASE.main())
