"""Latency at a steady rate: p50 and p99 beside nchan, from the moment at which an event was due.

Events are sent by the clock, whatever the server does, and each is counted from when it should have
been sent: a server that stalls pays for what waited meanwhile (no coordinated omission).
"""

import sys
from argparse import Namespace
from functools import partial

from _case import Case, beside, claim_ratio, measure, ours, take_turns
from _peers import Peer
from _results import OURS, Figure, Result, Rounds
from server.load_layout import Layout
from server.load_run import Plan

OPTIONS = {
    "sessions": (300, 1000, "subscribers, all of one channel"),
    "seconds": (1.0, 4.0, "how long each is measured in a round"),
    "rounds": (1, 15, "how often"),
}
RATES = (20, 100, 150)
# Of nchan's, at most; what comes at 150/s is reported.
TARGETS = {20: 1.25, 100: 1.25}


def run(options: Namespace, result: Result) -> None:
    """Measure everyone in turns, one rate after the other."""
    layout = Layout(sessions=options.sessions)
    rounds = Rounds()
    everyone = [ours(), *beside(options, result)]

    def turn(peer: Peer, rate: int) -> Figure:
        plan = Plan(seconds=options.seconds, warmup_s=options.seconds / 8, rate=rate)
        return measure(peer, layout, plan, variant=f"{rate} events/s")

    for rate in RATES:
        turns = [(peer.name, partial(turn, peer, rate)) for peer in everyone]
        take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for peer in everyone[1:]:
        for rate in RATES:
            for part in ("p50", "p99"):
                claim_ratio(
                    result,
                    rounds,
                    f"latency.{peer.name}.{rate}.{part}",
                    f"{part} at {rate} events/s, against {peer.title}",
                    f"{part}_ms",
                    OURS,
                    peer.name,
                    variant=f"{rate} events/s",
                    target=TARGETS.get(rate) if peer.name == "nchan" else None,
                    at_most=True,
                )


CASE = Case("latency", __doc__, OPTIONS, run, peers=("nchan",))

if __name__ == "__main__":
    sys.exit(CASE.main())
