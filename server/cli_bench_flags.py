"""Who is connected here? This file: what the command line of `bench` takes, and what it means."""

import argparse
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from server.cli_bench import Wanted

BENCH_MORE: Final = """\
example:
  galecast bench --dev --sessions 500 --in-flight 64 --seconds 10
  galecast bench --key-file bench.key --url http://10.0.0.7:8000 --rate 100 --plot bench.svg

Latency counts from the time at which an event was due, so with --rate a server that is slow cannot
hide it. The key needs the scopes publish and history on bench.> (or what --prefix says). A node
takes 1,000 sessions of one address unless limits.connections_per_address says more. The exit code
is 1 if an event was lost, came twice or out of order, or if it could not be measured, and 2 if the
command was wrong; with --json the report is written in the first case only. Ctrl-C ends it with
what it has so far.
"""
_SEGMENT: Final = r"[A-Za-z0-9_~@:=-]+"
_PREFIX: Final = re.compile(rf"{_SEGMENT}(\.{_SEGMENT})*")
_LONGEST_PREFIX: Final = 200
_BATCHES: Final = ("array", "ndjson")
_STANDARD_BATCH: Final = 100
_COMPARE_EVERY: Final = 16


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `bench`, but those of every client."""
    number = parser.add_argument
    number(
        "--sessions", type=_whole(100_000), default=100, metavar="N", help="sessions (%(default)d)"
    )
    number(
        "--channels", type=_whole(100_000), default=1, metavar="C", help="channels (%(default)d)"
    )
    number(
        "--per-session",
        type=_whole(1_000),
        default=1,
        metavar="K",
        help="channels of each session (%(default)d)",
    )
    number(
        "--size",
        type=_whole(1 << 24),
        default=128,
        metavar="BYTES",
        help="size of each event's data in JSON (%(default)d)",
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--rate",
        type=_number(0.01, 10_000_000),
        metavar="R",
        help="events per second in all, whatever the server does",
    )
    pace.add_argument(
        "--in-flight",
        type=_whole(100_000),
        default=1,
        metavar="W",
        help="requests that wait for their answer on each connection (%(default)d)",
    )
    number(
        "--seconds",
        type=_number(0.1, 86_400),
        default=10.0,
        metavar="S",
        help="how long to measure (%(default)g)",
    )
    number(
        "--warm-up",
        type=_number(0.0, 3_600),
        default=1.0,
        metavar="S",
        help="how long to run before that (%(default)g)",
    )
    number(
        "--encoding",
        choices=("json", "msgpack", "mixed"),
        default="json",
        help="what sessions speak (%(default)s)",
    )
    number(
        "--publish",
        choices=("ws", "http", *_BATCHES),
        default="ws",
        help="publish over a session, or by requests of one event, an array, or lines "
        "(%(default)s)",
    )
    number(
        "--batch",
        type=_whole(100_000),
        metavar="N",
        help=f"events in an array or in lines ({_STANDARD_BATCH})",
    )
    number(
        "--publishers",
        type=_whole(1_000),
        default=1,
        metavar="P",
        help="connections that publish (%(default)d)",
    )
    number(
        "--prefix",
        type=_prefix,
        default="bench",
        metavar="NAME",
        help="how the names of the channels begin (%(default)s)",
    )
    number(
        "--cores",
        default="auto",
        metavar="LIST",
        help="cores to run on, such as 1 or 2-3; none: any; auto: one that the server is not on",
    )
    number("--plot", metavar="FILE", help="draw delivery and latency over time (SVG)")


def wrong(args: argparse.Namespace) -> str:
    """Return what is wrong with the arguments taken together, or nothing."""
    if args.per_session > args.channels:
        return "--per-session: a session cannot be on more channels than --channels"
    if args.batch is not None and args.publish not in _BATCHES:
        return f"--batch goes with --publish {' or '.join(_BATCHES)}"
    return ""


def wanted(args: argparse.Namespace) -> "Wanted":
    """Return what is asked for."""
    from server.cli_bench import Wanted
    from server.load_layout import Layout
    from server.load_run import Plan

    batch = args.batch or (_STANDARD_BATCH if args.publish in _BATCHES else 1)
    layout = Layout(
        sessions=args.sessions,
        channels=args.channels,
        per_session=args.per_session,
        publishers=args.publishers,
        wires=2 if args.encoding == "mixed" else 1,
        prefix=args.prefix,
    )
    plan = Plan(
        seconds=args.seconds,
        warmup_s=args.warm_up,
        in_flight=args.in_flight,
        rate=args.rate,
        batch=batch,
        # A checksum of everything would cost more than to receive it.
        compare_every=1 if args.rate is None and args.in_flight * batch == 1 else _COMPARE_EVERY,
    )
    return Wanted(
        layout=layout,
        plan=plan,
        size=args.size,
        encoding=args.encoding,
        publish=args.publish,
        cores=args.cores,
    )


def _whole(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:12]) <= most:
            raise argparse.ArgumentTypeError(f"{text}: a whole number from 1 to {most}")
        return int(text)

    return parse


def _number(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text}: a number from {least:g} to {most:,g}")
        return value

    return parse


def _prefix(text: str) -> str:
    if len(text) > _LONGEST_PREFIX or not _PREFIX.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text}: channels begin with words of letters, digits and"
            f" _~@:=-, parted by dots; at most {_LONGEST_PREFIX} characters"
        )
    return text
