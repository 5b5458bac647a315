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
    "seconds": (0.8, 3.0, "how long each is measured in a round"),
    "rounds": (1, 3, "how often"),
}
MEMORY, REDIS = "in memory", "over Redis"
# (variant, where) to the least events per second.
TARGETS = {
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
    ways: dict[str, tuple[How, tuple[Layout, Plan]]] = {
        "HTTP, single": ("http", one_by_one),
        "HTTP, array": ("array", batched),
        "HTTP, NDJSON": ("ndjson", batched),
        "WebSocket": ("ws", session),
    }
    rounds = Rounds()
    with ExitStack() as stack:
        url = stack.enter_context(redis())

        def start_redis() -> Server:
            server = galecast(settings={"broker_url": url})
            server.await_ready()
            return server

        def turn(peer: Peer, variant: str, at: tuple[Layout, Plan]) -> Figure:
            found = measure(peer, *at, variant=variant)
            found.values = {"published_per_s": found.values["published_per_s"]}
            return found

        turns: list[tuple[str, Callable[[], Figure]]] = []
        for where, start in ((MEMORY, galecast), (REDIS, start_redis)):
            for way, (how, at) in ways.items():
                peer, variant = ours(publish=how, start=start), f"{way}, {where}"
                turns.append((OURS, partial(turn, peer, variant, at)))
        for peer in beside(options, result):
            variant = f"HTTP, single, {MEMORY}"
            turns.append((peer.name, partial(turn, peer, variant, one_by_one)))
        take_turns(rounds, result, options.rounds, turns)
    result.figures = sorted(rounds.figures(), key=lambda f: f.variant)
    for (way, where), least in TARGETS.items():
        figure = result.figure(OURS, f"{way}, {where}")
        assert figure is not None
        result.claims.append(
            Claim(
                key=f"publishing.{way}.{where}",
                what=f"events published per second, {way}, {where}",
                value=figure.values["published_per_s"],
                unit="_per_s",
                target=least,
            )
        )
    single = f"HTTP, single, {MEMORY}"
    for name in options.peers:
        claim_ratio(
            result,
            rounds,
            f"publishing.{name}",
            f"single events over HTTP per second, against {name}",
            "published_per_s",
            OURS,
            name,
            variant=single,
        )
    for way in ("HTTP, array", "HTTP, NDJSON", "WebSocket"):
        claim_ratio(
            result,
            rounds,
            f"publishing.{way}.single",
            f"events per second, {way}, against single ones over HTTP",
            "published_per_s",
            OURS,
            OURS,
            variant=f"{way}, {MEMORY}",
            other_variant=single,
        )


CASE = Case("publishing", __doc__, OPTIONS, run, peers=("write_message", "nchan"))

if __name__ == "__main__":
    sys.exit(CASE.main())
