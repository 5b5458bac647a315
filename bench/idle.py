"""What an idle session costs: memory and CPU with very many of them, each with one subscription.

Memory is what the server's process grows by (RSS), per session; the kernel's socket buffers are not
in it. CPU is over some time in which the node pings every session about once, and each answers.
Beside it the memory of Tornado's own `WebSocketHandler`.
"""

import sys
import time
from argparse import Namespace
from functools import partial

import msgspec

from _case import Case, beside, claim_ratio, note, ours, take_turns
from _peers import Peer
from _results import OURS, Claim, Figure, Result, Rounds
from _servers import galecast
from server.load_engine import Load
from server.load_layout import Layout
from server.load_run import Plan

OPTIONS = {
    "sessions": (2000, 10_000, "idle sessions"),
    "seconds": (3.0, 25.0, "how long CPU is measured"),
}
MOST_BYTES = 4096
# What was opened or closed has been dealt with.
SETTLE_S = 1.5
_WARM_UP = 200
_PING_S = 25.0  # the default


def turn(peer: Peer, options: Namespace) -> Figure:
    """Open all sessions and leave them alone."""
    note(peer.name)
    with peer.start() as server:
        layout = Layout(sessions=_WARM_UP, publishers=0)
        # Whatever is loaded or grown once is there before the first reading.
        with Load(peer.target(server.port, layout), layout) as load:
            load.open()
        time.sleep(SETTLE_S)
        layout = Layout(sessions=options.sessions, publishers=0)
        target = peer.target(server.port, layout)
        wires = tuple(
            msgspec.structs.replace(wire, keepalive_s=_PING_S if wire.keepalive_s else 0.0)
            for wire in target.wires
        )
        before = server.rss_bytes()
        with Load(msgspec.structs.replace(target, wires=wires), layout) as load:
            load.open()
            time.sleep(SETTLE_S)
            each = (server.rss_bytes() - before) / options.sessions
            spent, began = server.cpu_s(), time.perf_counter()
            report = load.run(Plan(seconds=options.seconds, warmup_s=0.0))
            share = (server.cpu_s() - spent) / (time.perf_counter() - began)
    note("")
    return Figure(
        who=peer.name,
        values={"session_bytes": each, "cpu_share": share},
        load_cpu=None if report.own is None else report.own.cpu,
    )


def run(options: Namespace, result: Result) -> None:
    """Measure ours and a plain handler, once each: memory hardly differs from run to run."""
    rounds = Rounds()
    start = partial(galecast, settings={"session_ping_s": _PING_S})
    everyone = [ours(start=start), *beside(options, result)]
    take_turns(rounds, result, 1, [(peer.name, partial(turn, peer, options)) for peer in everyone])
    result.figures = rounds.figures()
    figure = result.figure(OURS)
    assert figure is not None
    result.claims.append(
        Claim(
            key="idle.bytes",
            what="memory of an idle session with one subscription",
            value=figure.values["session_bytes"],
            unit="_bytes",
            target=MOST_BYTES,
            at_most=True,
        )
    )
    for peer in everyone[1:]:
        claim_ratio(
            result,
            rounds,
            f"idle.{peer.name}",
            f"memory of an idle session, {peer.name} against ours",
            "session_bytes",
            peer.name,
            OURS,
        )


CASE = Case("idle", __doc__, OPTIONS, run, peers=("write_message",))

if __name__ == "__main__":
    sys.exit(CASE.main())
