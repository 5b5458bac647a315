"""Handshakes per second: WebSocket, a token of its own for each session, and one subscription.

Ours checks a JWT (HS256) for each session, and the session has subscribed when it counts. Beside it
the same without a token, and Tornado's own `WebSocketHandler`, which checks nothing and subscribes
to the only channel that there is.
"""

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from functools import partial

import jwt

from _case import Case, beside, claim_ratio, note, ours, take_turns
from _peers import Peer
from _results import OURS, Figure, Result, Rounds
from config.settings import DEV_SECRET
from server.load_engine import Load
from server.load_galecast import galecast as galecast_target
from server.load_layout import Layout
from server.load_machine import bottleneck, shares, usage
from server.load_target import Target

OPTIONS = {
    "sessions": (500, 5000, "sessions that are opened"),
    "parallel": (64, 64, "handshakes under way at once"),
    "rounds": (1, 3, "how often"),
}
Speaking = Callable[[int, Layout], Target]
WITHOUT = f"{OURS}, no token"


def tokens(count: int) -> list[str]:
    """Return a token for each session, all different."""
    until = int(time.time()) + 3600
    return [
        jwt.encode(
            {"sub": f"u{n}", "exp": until, "grants": {"bench.*": ["subscribe"]}},
            DEV_SECRET,
            "HS256",
        )
        for n in range(count)
    ]


def open_all(peer: Peer, target: Speaking, options: Namespace) -> Figure:
    """Open all sessions; return how fast that went."""
    layout = Layout(sessions=options.sessions, publishers=0)
    with peer.start() as server:
        note(peer.name)
        with Load(target(server.port, layout), layout) as load:
            spent, before = server.cpu_s(), usage()
            opened = load.open(parallel=options.parallel)
            own, spent = shares(before, usage()), server.cpu_s() - spent
        note("")
    return Figure(
        who=peer.name,
        values={
            "opened_per_s": opened.per_s,
            "p50_ms": opened.durations.quantile(0.5) * 1000,
            "p99_ms": opened.durations.quantile(0.99) * 1000,
            "server_us": spent / options.sessions * 1e6,
        },
        load_cpu=None if own is None else own.cpu,
        load_busy=None if own is None else own.busy,
        server_cpu=spent / opened.seconds,
        warning=bottleneck(own),
    )


def run(options: Namespace, result: Result) -> None:
    """Open all sessions of each in turns."""
    shown = tokens(options.sessions)

    def with_tokens(port: int, _layout: Layout) -> Target:
        return galecast_target("127.0.0.1", port, credentials=shown)

    def without(port: int, _layout: Layout) -> Target:
        return galecast_target("127.0.0.1", port)

    everyone: list[tuple[Peer, Speaking]] = [(ours(), with_tokens), (ours(WITHOUT), without)]
    everyone += [(peer, peer.target) for peer in beside(options, result)]
    rounds = Rounds()
    turns = [(peer.name, partial(open_all, peer, target, options)) for peer, target in everyone]
    take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for name in (WITHOUT, *options.peers):
        claim_ratio(
            result,
            rounds,
            f"handshakes.{name}",
            f"handshakes with token and subscription per second, against {name}",
            "opened_per_s",
            OURS,
            name,
        )


CASE = Case("handshakes", __doc__, OPTIONS, run, peers=("write_message", "nchan"))

if __name__ == "__main__":
    sys.exit(CASE.main())
