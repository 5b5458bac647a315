"""Fan-out with publishers that saturate it: many publishes in flight on one connection.

Over HTTP the requests follow each other without waiting for answers; ours is measured over a
WebSocket session too. A peer that cannot keep up with so many in flight is simply slower. Latency
is from the moment at which a publish was sent to the moment at which a subscriber has the event.
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
    "in_flight": (64, 64, "publishes that wait for their acknowledgement"),
    "seconds": (1.0, 3.0, "how long each is measured in a round"),
    "rounds": (1, 3, "how often"),
}
OVER_WEBSOCKET = f"{OURS} (ws)"


def run(options: Namespace, result: Result) -> None:
    """Measure everyone in turns."""
    layout = Layout(sessions=options.sessions)
    plan = Plan(
        seconds=options.seconds,
        warmup_s=options.seconds / 4,
        in_flight=options.in_flight,
        # What is compared costs the load more than what is only counted.
        compare_every=16,
        patience_s=15.0,
    )

    rounds = Rounds()
    everyone = [ours(), ours(OVER_WEBSOCKET, publish="ws"), *beside(options, result)]
    turns = [(peer.name, partial(measure, peer, layout, plan)) for peer in everyone]
    take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for peer in everyone[2:]:
        nchan = peer.name == "nchan"
        for key, word, value, target in (
            ("rate", "events delivered per second", "delivered_per_s", 12.0 if nchan else None),
            ("p50", "p50", "p50_ms", 1.0 if nchan else None),
        ):
            claim_ratio(
                result,
                rounds,
                f"saturating.{peer.name}.{key}",
                f"{word}, against {peer.title}",
                value,
                OURS,
                peer.name,
                target=target,
                at_most=key == "p50",
            )


CASE = Case(
    "saturating",
    __doc__,
    OPTIONS,
    run,
    peers=("bare_send", "nchan", "centrifugo", "ws", "websockets"),
)

if __name__ == "__main__":
    sys.exit(CASE.main())
