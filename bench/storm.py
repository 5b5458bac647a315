"""A reconnect storm: all sessions are cut at once, miss some events, come back and resume.

Each session subscribes `since` the last event that it had, and is back when it has all that it
missed. Everyone's events are checked: once, in order, none missing. Reported is how long it takes
until the last one is back, and how often the past had to be read from the broker: the node's memory
of recent events should serve them all. In memory and over Redis.
"""

import json
import re
import sys
from argparse import Namespace
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from _case import Case, note, ours, take_turns
from _results import OURS, Claim, Figure, Result, Rounds
from _servers import Server, galecast, redis
from _talk import Requests, counter, sessions, wanted
from server.load_frames import masked, websocket_frames
from server.load_layout import Layout
from server.load_machine import bottleneck, shares, usage
from server.load_opening import Opening, Wanted
from server.load_target import LoadFailed, mark_of

OPTIONS = {
    "sessions": (500, 5000, "sessions that are cut and come back"),
    "missed": (10, 50, "events that each of them misses"),
    "parallel": (64, 256, "sessions that come back at once"),
    "rounds": (1, 3, "how often"),
}
_CHANNEL = "bench.storm"
_READS = "galecast_history_reads_total"
_BEFORE = 5
_number = re.compile(rb"~ev:(\d{12})").search


class Missed:
    """Takes apart what one session gets, and checks that it is what it missed."""

    def __init__(self, first: int) -> None:
        self.next = first

    def frames(self, data: bytes) -> tuple[list[tuple[int, int]], int]:
        """See load_frames.Framing; raises LoadFailed at an event that should not be the next."""
        bounds, taken = websocket_frames(data)
        for begin, end in bounds:
            if found := _number(data, begin, end):
                if int(found[1]) != self.next:
                    raise LoadFailed(f"event {int(found[1])} came, {self.next} should have")
                self.next += 1
        return bounds, taken


def publish(publisher: Requests, first: int, number: int) -> str:
    """Publish events; return the position of the last."""
    padding = "x" * 100
    events = [
        {"channel": _CHANNEL, "data": mark_of(n).decode() + padding}
        for n in range(first, first + number)
    ]
    answer = json.loads(publisher.ask("POST", "/v1/events", json.dumps(events).encode()))
    return str(answer["results"][-1]["position"])


def storm(start: Callable[[], Server], variant: str, options: Namespace) -> Figure:
    """Cut all sessions and let them come back; return how that went."""
    note(variant)
    with start() as server, Requests(server.port) as publisher:
        wire = ours().target(server.port, Layout(sessions=1)).wires[0]
        numbers = range(options.sessions)
        held = sessions(server.port, [wanted(wire, n, _CHANNEL) for n in numbers])
        position = publish(publisher, 0, _BEFORE)
        for each in held:
            each.sock.close()
        publish(publisher, _BEFORE, options.missed)
        command = {"type": "subscribe", "ref": 2, "channel": _CHANNEL, "since": position}
        everyone: list[Wanted] = []
        told: list[Missed] = []
        for number in numbers:
            missed = Missed(_BEFORE)
            told.append(missed)
            everyone.append(
                wanted(
                    wire,
                    number,
                    _CHANNEL,
                    first=masked(json.dumps(command, separators=(",", ":")).encode()),
                    ready=mark_of(_BEFORE + options.missed - 1),
                    frames=missed.frames,
                )
            )
        reads, spent, before = counter(server, _READS), server.cpu_s(), usage()
        back, opened = Opening("127.0.0.1", server.port, parallel=options.parallel).open(everyone)
        own, spent = shares(before, usage()), server.cpu_s() - spent
        reads = counter(server, _READS) - reads
        for each in back:
            each.sock.close()
    note("")
    if late := [each.next for each in told if each.next != _BEFORE + options.missed]:
        raise LoadFailed(f"{len(late)} sessions did not get all that they missed")
    return Figure(
        who=OURS,
        variant=variant,
        values={
            "all_back_s": opened.seconds,
            "back_per_s": opened.per_s,
            "replayed_per_s": opened.per_s * options.missed,
            "p99_ms": opened.durations.quantile(0.99) * 1000,
            "reads": reads,
        },
        load_cpu=None if own is None else own.cpu,
        load_busy=None if own is None else own.busy,
        server_cpu=spent / opened.seconds,
        warning=bottleneck(own),
    )


def run(options: Namespace, result: Result) -> None:
    """Let the storm come in memory and over Redis, in turns."""
    rounds = Rounds()
    with ExitStack() as stack:
        url = stack.enter_context(redis())

        def over_redis() -> Server:
            server = galecast(settings={"broker_url": url})
            server.await_ready()
            return server

        ways = {"in memory": galecast, "over Redis": over_redis}
        turns = [(OURS, partial(storm, start, variant, options)) for variant, start in ways.items()]
        take_turns(rounds, result, options.rounds, turns)
    result.figures = rounds.figures()
    for figure in result.figures:
        result.claims.append(
            Claim(
                key=f"storm.reads.{figure.variant}",
                what=f"reads of the past for each session that came back, {figure.variant}",
                value=figure.values["reads"] / options.sessions,
                target=0.05,
                at_most=True,
            )
        )


CASE = Case("storm", __doc__, OPTIONS, run)

if __name__ == "__main__":
    sys.exit(CASE.main())
