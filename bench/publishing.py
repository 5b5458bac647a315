"""Publishing alone: over HTTP one by one, in arrays and as NDJSON, and over a WebSocket session.

Every event is acknowledged; nobody subscribes. Single events follow each other on each of several
connections, one in flight on each; batches are of 100. In memory and over Redis. Beside us a plain
Tornado `RequestHandler` that reads JSON and answers (the loop over `write_message`, with nobody
to write to), and nchan.
"""

import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import msgspec

from _case import Case, beside, claim_ratio, measure, ours, take_turns
from _peers import Peer
from _results import OURS, Claim, Figure, Result, Rounds
from _servers import Server, galecast, redis
from server.load_galecast import How
from server.load_layout import Layout
from server.load_run import Plan

OPTIONS = {
    "connections": (16, 16, "connections that publish single events"),
    "in_flight": (64, 64, "publishes in flight on the WebSocket session"),
    "batch": (100, 100, "events of an array, or lines of a request of NDJSON"),
    "seconds": (0.6, 2.0, "how long each is measured in a round"),
    "rounds": (1, 3, "how often"),
}
MEMORY, REDIS = "in memory", "over Redis"
HANDLER = "write_message"
SINGLE = f"HTTP, single, {MEMORY}"
# How events are sent, and whether many of them at once.
WAYS: dict[str, tuple[How, bool]] = {
    "HTTP, single": ("http", False),
    "HTTP, array": ("array", True),
    "HTTP, NDJSON": ("ndjson", True),
    "WebSocket": ("ws", False),
}
# The least events per second where a plain handler takes HANDLER_PER_S, as it was when they were
# set. Asked is the ratio of the two, which holds on any machine.
HANDLER_PER_S = 8_800
LEAST_PER_S = {
    ("HTTP, single", MEMORY): 11_000,
    ("HTTP, array", MEMORY): 150_000,
    ("HTTP, array", REDIS): 50_000,
    ("WebSocket", MEMORY): 40_000,
}


def layout_of(publishers: int) -> Layout:
    """Return a layout without subscribers: a channel for each publisher."""
    return Layout(sessions=0, channels=max(4, publishers), publishers=publishers)


def run(options: Namespace, result: Result) -> None:
    """Measure every way in turns, in memory and over Redis."""
    base = Plan(seconds=options.seconds, warmup_s=options.seconds / 4)
    one_by_one = (layout_of(options.connections), base)
    batched = (layout_of(4), msgspec.structs.replace(base, batch=options.batch, in_flight=2))
    session = (layout_of(1), msgspec.structs.replace(base, in_flight=options.in_flight))
    rounds = Rounds()

    def turn(peer: Peer, variant: str, at: tuple[Layout, Plan]) -> Figure:
        found = measure(peer, *at, variant=variant)
        found.values = {"published_per_s": found.values["published_per_s"]}
        return found

    with ExitStack() as stack:
        url = stack.enter_context(redis())

        def over_redis() -> Server:
            server = galecast(settings={"broker_url": url})
            server.await_ready()
            return server

        turns: list[tuple[str, Callable[[], Figure]]] = []
        for where, start in ((MEMORY, galecast), (REDIS, over_redis)):
            for way, (how, many) in WAYS.items():
                peer, variant = ours(publish=how, start=start), f"{way}, {where}"
                at = batched if many else session if how == "ws" else one_by_one
                turns.append((OURS, partial(turn, peer, variant, at)))
        for peer in beside(options, result):
            turns.append((peer.name, partial(turn, peer, SINGLE, one_by_one)))
        take_turns(rounds, result, options.rounds, turns)
    result.figures = sorted(rounds.figures(), key=lambda f: f.variant)
    claim(result, rounds)


def claim(result: Result, rounds: Rounds) -> None:
    """Say what is asked of each way, and how they compare."""
    for (way, where), least in LEAST_PER_S.items():
        variant = f"{way}, {where}"
        figure = result.figure(OURS, variant)
        if figure is None:
            continue
        result.claims.append(
            Claim(
                key=f"publishing.{variant}",
                what=f"events published per second, {variant}",
                value=figure.values["published_per_s"],
                unit="_per_s",
            )
        )
        claim_ratio(
            result,
            rounds,
            f"publishing.{variant}.handler",
            f"events published per second, {variant}, against single events to a plain"
            f" `RequestHandler` ({least:,} where that takes {HANDLER_PER_S:,})",
            "published_per_s",
            OURS,
            HANDLER,
            variant=variant,
            other_variant=SINGLE,
            target=least / HANDLER_PER_S,
        )
    claim_ratio(
        result,
        rounds,
        "publishing.nchan",
        "single events over HTTP per second, against nchan",
        "published_per_s",
        OURS,
        "nchan",
        variant=SINGLE,
    )


CASE = Case("publishing", __doc__, OPTIONS, run, peers=(HANDLER, "nchan"))

if __name__ == "__main__":
    sys.exit(CASE.main())
