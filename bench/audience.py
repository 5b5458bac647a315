"""What a delivery costs with 10 to 15,000 subscribers, and how long a broadcast holds the loop.

The server's CPU for each further delivery, which is what an event costs beyond one with a single
subscriber, at so few events a second that none waits for another: it should be the same for every
size of the audience.

Then, with the largest audience: while an event goes to all of them, another session sends pings
without a pause. A ping is answered in the turn of the loop that reads it, so the longest time until
an answer is how long the loop was held. Nothing else runs on the load's core meanwhile: what
subscribers got is read afterwards.
"""

import json
import math
import statistics
import sys
import time
from argparse import Namespace
from collections.abc import Sequence

from _case import Case, note, ours
from _results import OURS, Claim, Figure, Result
from _servers import Server, galecast
from _talk import Pings, Requests, drained, lags, sessions, wanted
from server.load_engine import Load
from server.load_frames import websocket_frames
from server.load_layout import Layout
from server.load_opening import Open
from server.load_run import Plan
from server.load_target import LoadFailed

OPTIONS = {
    "most": (3000, 15_000, "subscribers, at most"),
    "deliveries": (20_000, 300_000, "deliveries at each size, about"),
    "broadcasts": (5, 20, "broadcasts during which the loop is watched"),
    "rounds": (1, 2, "how often"),
}
SIZES = (10, 100, 1000, 5000, 15_000)
# So that no event waits for the one before: deliveries per second, and events per second.
_DELIVERIES_PER_S = 60_000
_EVENTS_PER_S = 400.0
_LEAST_EVENTS = 20
_ENOUGH = 100
_PATIENCE_S = 10.0
MOST_STALL_MS = 10.0
MOST_SPREAD = 2.0
MOST_BEND = 1.5


def cpu_per_event(subscribers: int, deliveries: int) -> float:
    """Return the server's CPU (s) for each event that goes to so many."""
    layout = Layout(sessions=subscribers)
    rate = min(_EVENTS_PER_S, _DELIVERIES_PER_S / max(1, subscribers))
    events = max(_LEAST_EVENTS, min(int(rate * 8), deliveries // max(1, subscribers)))
    plan = Plan(rate=rate, warmup_s=0.0, seconds=events / rate + 1.0, events=events)
    note(f"{subscribers} subscribers")
    peer = ours()
    with galecast() as server, Load(peer.target(server.port, layout), layout) as load:
        load.open()
        spent = server.cpu_s()
        report = load.run(plan)
        spent = server.cpu_s() - spent
    note("")
    if report.problems:
        raise LoadFailed("; ".join(report.problems[:3]))
    return spent / report.published


def stalls(
    server: Server, subscribers: int, broadcasts: int
) -> tuple[list[float], list[float], float]:
    """Return the longest time until an answer during each broadcast, and as often without one, and
    below which bound the loop's lag was as the node measures it; all in ms.
    """
    channel = "bench.stall"
    wire = ours().target(server.port, Layout(sessions=1)).wires[0]
    held = sessions(server.port, [wanted(wire, n, channel) for n in range(subscribers)])
    body = json.dumps({"channel": channel, "data": "x" * 126}).encode()
    during, without = [], []
    before = lags(server)
    with Pings(server.port, wire) as pings, Requests(server.port) as publisher:
        # Warm, and to know how long a broadcast takes.
        publisher.ask("POST", "/v1/events", body)
        took_s = 0.05 + collect(held)
        for number in range(broadcasts):
            without.append(pings.longest_ms(took_s))
            publisher.send("POST", "/v1/events", body)
            during.append(pings.longest_ms(took_s))
            publisher.receive()
            collect(held)
            note(f"broadcast {number + 1} of {broadcasts}")
    note("")
    late = {bound: count - before[bound] for bound, count in lags(server).items()}
    for each in held:
        each.sock.close()
    most = next(bound for bound, count in late.items() if count == late[math.inf])
    return during, without, most


def collect(held: Sequence[Open]) -> float:
    """Read until everyone has one event; return how long it took."""
    began = time.perf_counter()
    for each in held:
        data = b""
        while not (found := websocket_frames(data)[0]):
            data += drained(each.sock)
            if time.perf_counter() - began > _PATIENCE_S:
                raise LoadFailed("a subscriber did not get a broadcast")
        if len(found) > 1:
            raise LoadFailed("a subscriber got a broadcast twice")
    return time.perf_counter() - began


def claim_line(result: Result, costs: dict[int, float]) -> None:
    """Say how straight the line is on which the cost of an event (s) lies, by its subscribers."""
    most = max(costs)
    slope = (costs[most] - costs[1]) / (most - 1)
    line = {size: costs[1] + slope * (size - 1) for size in costs}
    # Of few deliveries the rest of an event's cost hides what each of them costs.
    each = [(costs[size] - costs[1]) / (size - 1) for size in costs if size >= _ENOUGH]
    if slope <= 0 or (each and min(each) <= 0):
        # Too few events to tell.
        return
    result.claims.append(
        Claim(
            key="audience.line",
            what=f"CPU for an event with 1 to {most:,} subscribers, farthest from a straight line",
            value=max(max(costs[n] / line[n], line[n] / costs[n]) for n in costs),
            target=MOST_BEND,
            at_most=True,
        )
    )
    if each:
        result.claims.append(
            Claim(
                key="audience.spread",
                what="CPU for a further delivery, the dearest against the cheapest,"
                f" {_ENOUGH} to {most:,} subscribers",
                value=max(each) / min(each),
                target=MOST_SPREAD,
                at_most=True,
            )
        )


def run(options: Namespace, result: Result) -> None:
    """Measure each size, then watch the loop."""
    sizes = [size for size in SIZES if size < options.most] + [options.most]
    costs: dict[int, list[float]] = {}
    for _ in range(options.rounds):
        for size in (1, *sizes):
            costs.setdefault(size, []).append(cpu_per_event(size, options.deliveries))
    alone = statistics.median(costs[1])
    each_us = {size: (statistics.median(costs[size]) - alone) / (size - 1) * 1e6 for size in sizes}
    for size in sizes:
        values = {
            "delivery_us": each_us[size],
            "event_us": statistics.median(costs[size]) * 1e6,
        }
        variant = f"{size:,} subscribers"
        result.figures.append(
            Figure(who=OURS, variant=variant, values=values, rounds=options.rounds)
        )
    claim_line(result, {1: alone, **{size: statistics.median(costs[size]) for size in sizes}})
    with galecast() as server:
        during, without, lag_ms = stalls(server, options.most, options.broadcasts)
    for key, what, found in (
        ("stall", f"longest time without an answer during a broadcast to {options.most:,}", during),
        ("quiet", "longest time without an answer in as much time without one", without),
    ):
        middle = statistics.median(found)
        result.claims.append(
            Claim(
                key=f"audience.{key}",
                what=f"{what}, median of {len(found)}",
                value=middle,
                unit="_ms",
                target=MOST_STALL_MS if key == "stall" else None,
                at_most=True,
            )
        )
        result.claims.append(
            Claim(
                key=f"audience.{key}.most",
                what=f"{what}, the longest of {len(found)}",
                value=max(found),
                unit="_ms",
                at_most=True,
            )
        )

    result.claims.append(
        Claim(
            key="audience.lag",
            what="lag of the loop as the node measures it, at most",
            value=lag_ms,
            unit="_ms",
            at_most=True,
        )
    )


CASE = Case("audience", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
