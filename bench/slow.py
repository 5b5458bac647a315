"""Slow readers: p99 of the others while 1 % of the sessions do not read at all.

The same load with and without them, in turns; events of 4 KB, so that the buffers of the kernel are
full at once, and our limit of 1 MB is reached in less than three seconds. Ours ends a session that
is over its limit of unsent bytes, and it can come back and resume; nchan keeps them.
"""

import socket
import sys
from argparse import Namespace
from contextlib import ExitStack
from functools import partial

from _case import Case, beside, claim_ratio, figure_of, note, ours, take_turns
from _peers import Peer
from _results import OURS, Figure, Result, Rounds
from _talk import counter
from server.load_engine import Load
from server.load_layout import Layout
from server.load_run import Plan
from server.load_target import LoadFailed, Target

OPTIONS = {
    "sessions": (300, 1000, "subscribers, all of one channel"),
    "share": (0.01, 0.01, "the part of them that does not read"),
    "rate": (100, 100, "events per second"),
    "size": (4096, 4096, "bytes of an event's data"),
    "seconds": (3.0, 5.0, "how long each is measured in a round"),
    "rounds": (1, 3, "how often"),
}
ALL, SOME = "all read", "some do not"
MOST = 1.25
_RECEIVE_BYTES = 4096
_SEGMENT_BYTES = 536
_TIMEOUT_S = 20.0


def deaf(target: Target, channel: str, stack: ExitStack) -> None:
    """Open a session that subscribes and then reads nothing."""
    wire = target.wires[0]
    sock = stack.enter_context(socket.socket())
    # Before the connection is there: what is agreed on then says how much the kernels hold.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT_BYTES)
    sock.settimeout(_TIMEOUT_S)
    sock.connect((target.host, target.port))
    sock.sendall(wire.hello(0))
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(1024)
    sock.sendall(wire.first([channel]))
    while wire.ready not in data:
        data += sock.recv(1024)


def turn(peer: Peer, variant: str, options: Namespace) -> Figure:
    """Measure those who read, with or without others that do not."""
    slow = max(1, round(options.sessions * options.share)) if variant == SOME else 0
    layout = Layout(sessions=options.sessions - slow)
    plan = Plan(
        seconds=options.seconds,
        warmup_s=options.seconds / 5,
        rate=options.rate,
        compare_every=16,
        patience_s=15.0,
    )
    note(f"{peer.name} {variant}")
    with peer.start() as server, ExitStack() as stack:
        target = peer.target(server.port, layout)
        for _ in range(slow):
            deaf(target, layout.name(0), stack)
        with Load(target, layout, size=options.size) as load:
            load.open()
            report = load.run(plan, servers=server.pids())
        if report.problems:
            raise LoadFailed(f"{peer.name} {variant}: {'; '.join(report.problems[:3])}")
        found = figure_of(peer.name, report, variant)
        found.values = {name: found.values[name] for name in ("p50_ms", "p99_ms")}
        found.values["slow"] = slow
        if peer.name == OURS:
            found.values["slow_ended"] = counter(server, "galecast_slow_closes_total")
    note("")
    return found


def run(options: Namespace, result: Result) -> None:
    """Measure everyone with and without, in turns."""
    rounds = Rounds()
    everyone = [ours(), *beside(options, result)]
    turns = [
        (peer.name, partial(turn, peer, variant, options))
        for peer in everyone
        for variant in (ALL, SOME)
    ]
    take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for peer in everyone:
        for part in ("p50", "p99"):
            claim_ratio(
                result,
                rounds,
                f"slow.{peer.name}.{part}",
                f"{part} of the others with slow sessions, against without, {peer.name}",
                f"{part}_ms",
                peer.name,
                peer.name,
                variant=SOME,
                other_variant=ALL,
                target=MOST if peer.name == OURS and part == "p99" else None,
                at_most=True,
            )


CASE = Case("slow", __doc__, OPTIONS, run, peers=("nchan",))

if __name__ == "__main__":
    sys.exit(CASE.main())
