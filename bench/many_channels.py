"""Many channels: 10,000 with 10 subscribers each, and sessions that are on 20 channels each.

Publishes are spread evenly over the channels, over HTTP, 16 in flight on one connection; and, for
ours, over a WebSocket session as well, with as many in flight. In the
first layout a session has 20 of the channels as well, so that 100,000 subscriptions need no more
than 5,000 sockets; nchan has a session follow several channels by its own means.
"""

import sys
from argparse import Namespace
from functools import partial

from _case import Case, beside, claim_ratio, measure, ours, take_turns
from _results import OURS, Result, Rounds
from server.load_layout import Layout
from server.load_run import Plan

OPTIONS = {
    "channels": (1000, 10_000, "channels with few subscribers"),
    "subscribers": (10, 10, "of each of them"),
    "per_session": (20, 20, "channels of a session"),
    "sessions": (200, 1000, "sessions on few channels, in the second layout"),
    "in_flight": (16, 16, "publishes that wait for their acknowledgement"),
    "seconds": (1.0, 4.0, "how long each is measured in a round"),
    "rounds": (1, 2, "how often"),
}
BY_SESSION = "galecast (ws)"


def run(options: Namespace, result: Result) -> None:
    """Measure both layouts in turns."""
    each = options.per_session
    layouts = {
        "few subscribers": Layout(
            sessions=options.channels * options.subscribers // each,
            channels=options.channels,
            per_session=each,
        ),
        "few channels": Layout(sessions=options.sessions, channels=each, per_session=each),
    }
    plan = Plan(
        seconds=options.seconds,
        warmup_s=options.seconds / 4,
        in_flight=options.in_flight,
        patience_s=15.0,
    )
    everyone = [ours(), ours(BY_SESSION, publish="ws"), *beside(options, result, several=True)]
    rounds = Rounds()

    for variant in layouts:
        turns = [
            (peer.name, partial(measure, peer, layouts[variant], plan, variant=variant))
            for peer in everyone
        ]
        take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for peer in everyone[2:]:
        for variant, key in (("few subscribers", "spread"), ("few channels", "shared")):
            for who, way in ((OURS, ""), (BY_SESSION, ", published over a WebSocket session")):
                claim_ratio(
                    result,
                    rounds,
                    f"many_channels.{peer.name}.{key}{'.ws' if way else ''}",
                    f"events delivered per second, {variant}{way}, against {peer.title}",
                    "delivered_per_s",
                    who,
                    peer.name,
                    variant=variant,
                )


CASE = Case("many_channels", __doc__, OPTIONS, run, peers=("nchan",))

if __name__ == "__main__":
    sys.exit(CASE.main())
