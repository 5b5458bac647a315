"""Fan-out, one publish in flight: ours against every peer, and against the physical limit.

Every event goes to every session, and the next is published over HTTP when the one before was
acknowledged. All that arrives is checked: each session has every event, once and in order. Rounds
take turns; the rates are their medians, the ratios medians of the rounds' ratios.
"""

import sys
from argparse import Namespace
from functools import partial

from _case import Case, beside, claim_ratio, measure, ours, take_turns
from _peers import PEERS
from _results import OURS, Result, Rounds
from server.load_layout import Layout
from server.load_run import Plan

OPTIONS = {
    "sessions": (300, 1000, "subscribers, all of one channel"),
    "seconds": (0.6, 2.5, "how long each is measured in a round"),
    "rounds": (1, 3, "how often"),
    "size": (128, 128, "bytes of an event's data"),
}


def run(options: Namespace, result: Result) -> None:
    """Measure everyone in turns."""
    layout = Layout(sessions=options.sessions)
    plan = Plan(seconds=options.seconds, warmup_s=options.seconds / 5, in_flight=1)

    rounds = Rounds()
    everyone = [ours(), *beside(options, result)]
    turns = [
        (peer.name, partial(measure, peer, layout, plan, size=options.size)) for peer in everyone
    ]
    take_turns(rounds, result, options.rounds, turns)
    result.figures = sorted(rounds.figures(), key=lambda f: -f.values["delivered_per_s"])
    targets = {"nchan": 1.1, "write_message": 5.0}
    for peer in everyone[1:]:
        claim_ratio(
            result,
            rounds,
            f"fanout.{peer.name}",
            f"events delivered per second, against {peer.title}",
            "delivered_per_s",
            OURS,
            peer.name,
            target=targets.get(peer.name),
        )


CASE = Case("fanout", __doc__, OPTIONS, run, peers=[peer.name for peer in PEERS])

if __name__ == "__main__":
    sys.exit(CASE.main())
