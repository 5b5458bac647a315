"""JSON, MessagePack, and both on one channel: what a second encoding costs the fan-out.

A frame is built once for each encoding in use, so a mixed audience should cost one more frame for
an event, and nothing for a session.
"""

import sys
from argparse import Namespace
from functools import partial

from _case import Case, claim_ratio, measure, ours, take_turns
from _results import Result, Rounds
from server.load_galecast import Encoding
from server.load_layout import Layout
from server.load_run import Plan

OPTIONS = {
    "sessions": (300, 1000, "subscribers, all of one channel"),
    "seconds": (0.7, 3.0, "how long each is measured in a round"),
    "rounds": (1, 3, "how often"),
}
ENCODINGS: tuple[Encoding, ...] = ("json", "msgpack", "mixed")


def run(options: Namespace, result: Result) -> None:
    """Measure each in turns."""
    plan = Plan(seconds=options.seconds, warmup_s=options.seconds / 4, in_flight=1)
    everyone = [ours(f"galecast ({each})", encoding=each) for each in ENCODINGS]
    rounds = Rounds()
    turns = []
    for peer in everyone:
        layout = Layout(sessions=options.sessions, wires=peer.wires)
        turns.append((peer.name, partial(measure, peer, layout, plan)))
    take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for peer in everyone[1:]:
        claim_ratio(
            result,
            rounds,
            f"mixed_encodings.{peer.name.partition('(')[2].rstrip(')')}",
            f"events delivered per second, {peer.name} against JSON",
            "delivered_per_s",
            peer.name,
            everyone[0].name,
        )


CASE = Case("mixed_encodings", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
