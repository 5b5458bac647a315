"""What every benchmark has in common: its options, its rounds, and what becomes of its result."""

import argparse
import platform
import shlex
import statistics
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from _peers import PEERS, Peer, Start
from _results import OURS, Claim, Figure, Result, Rounds, table
from _servers import DEV_KEY, NotStarted, galecast, on_load_core, raise_file_limit
from server.load_engine import Load
from server.load_galecast import Encoding, How
from server.load_galecast import galecast as galecast_target
from server.load_layout import Layout
from server.load_report import LoadReport
from server.load_run import Plan
from server.load_target import LoadFailed, Target

# Each takes turns with the others in every round.
_NAMES: Final = {peer.name: peer for peer in PEERS}


def ours(
    name: str = OURS,
    *,
    publish: How = "http",
    encoding: Encoding = "json",
    start: Start = galecast,
) -> Peer:
    """Return ourselves, to be measured like a peer."""

    def target(port: int, _layout: Layout) -> Target:
        return galecast_target(
            "127.0.0.1", port, credentials=[DEV_KEY], encoding=encoding, publish=publish
        )

    return Peer(
        name=name,
        title="Galecast",
        version=lambda: f"Python {platform.python_version()}",
        missing=lambda: "",
        start=start,
        target=target,
        several=True,
        wires=2 if encoding == "mixed" else 1,
    )


class Case:
    """A benchmark: `options` are its numbers, each with a small value for --quick and the full one.

    `measure` fills in the result.
    """

    def __init__(
        self,
        name: str,
        doc: str,
        options: Mapping[str, tuple[float, float, str]],
        measure: Callable[[Namespace, Result], None],
        peers: Sequence[str] = (),
    ) -> None:
        self.name = name
        self._doc = doc
        self._options = options
        self._measure = measure
        self._peers = peers

    def _parser(self) -> ArgumentParser:
        parser = ArgumentParser(
            description=self._doc, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        for name, (small, full, text) in self._options.items():
            parser.add_argument(
                f"--{name.replace('_', '-')}",
                type=type(full),
                metavar="N",
                help=f"{text} ({full:g}; {small:g} with --quick)",
            )
        if self._peers:
            parser.add_argument(
                "--peers",
                default=",".join(self._peers),
                metavar="NAMES",
                help="who is measured beside us (%(default)s)",
            )
        parser.add_argument("--quick", action="store_true", help="small numbers, a first look")
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the result there too")
        return parser

    def main(self, args: Sequence[str] | None = None) -> int:
        """Run it; print what came out, and say whether it is as asked."""
        parser = self._parser()
        options = parser.parse_args(args)
        for name, (small, full, _) in self._options.items():
            if getattr(options, name) is None:
                setattr(options, name, small if options.quick else full)
        options.peers = [each for each in getattr(options, "peers", "").split(",") if each]
        if unknown := set(options.peers) - set(_NAMES):
            parser.error(f"there is no {', '.join(sorted(unknown))}; only {', '.join(_NAMES)}")
        given = list(sys.argv[1:] if args is None else args)
        result = Result(
            case=self.name,
            title=self._doc.partition("\n")[0],
            command=shlex.join(["python", f"bench/{self.name}.py", *_without_file(given)]),
            options={name: getattr(options, name) for name in self._options},
        )
        raise_file_limit()
        began = time.perf_counter()
        try:
            with on_load_core():
                self._measure(options, result)
        except (LoadFailed, NotStarted) as error:
            result.problems.append(str(error))
        result.seconds = round(time.perf_counter() - began, 1)
        print(table(result), flush=True)
        if options.json is not None:
            options.json.write_bytes(msgspec.json.encode(result))
        return 0 if result.met else 1


def _without_file(args: Sequence[str]) -> list[str]:
    """Return the arguments that say what was measured."""
    kept: list[str] = []
    words = iter(args)
    for word in words:
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            kept.append(word)
    return kept


def beside(options: Namespace, result: Result, *, several: bool = False) -> list[Peer]:
    """Return the peers that are to be measured; those that cannot are named in the result.

    `several`: their sessions need more than one channel.
    """
    found = []
    for name in options.peers:
        peer = _NAMES[name]
        if why := peer.missing():
            result.left_out[name] = why
        elif several and not peer.several:
            result.left_out[name] = "a session is measured on one channel only"
        else:
            found.append(peer)
    return found


def note(text: str) -> None:
    """Say on stderr how far it is."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def measure(
    peer: Peer, layout: Layout, plan: Plan, *, size: int = 128, variant: str = ""
) -> Figure:
    """Start a server, put a load on it, and return what came out; raises LoadFailed.

    What was lost, doubled or out of order is a failure.
    """
    note(f"{peer.name} {variant}")
    with peer.start() as server:
        with Load(peer.target(server.port, layout), layout, size=size) as load:
            load.open()
            before = server.ticks()
            report = load.run(plan, servers=server.pids())
            user, system = (now - then for now, then in zip(server.ticks(), before, strict=True))
    note("")
    if report.problems:
        raise LoadFailed(f"{peer.name} {variant}: {'; '.join(report.problems[:3])}")
    found = figure_of(peer.name, report, variant)
    if user + system:
        found.server_kernel = system / (user + system)
    return found


def figure_of(who: str, report: LoadReport, variant: str = "") -> Figure:
    """Return what is of interest in a report; `delivery_us` is the server's CPU for a delivery."""
    latency = report.latency_ms()
    spent = sum(each.cpu for each in report.servers.values())
    rate = report.delivered_per_s
    return Figure(
        who=who,
        variant=variant,
        values={
            "delivered_per_s": rate,
            "published_per_s": report.published_per_s,
            "delivery_us": spent / rate * 1e6 if rate else 0.0,
            "p50_ms": latency["p50"],
            "p99_ms": latency["p99"],
        },
        load_cpu=None if report.own is None else report.own.cpu,
        load_busy=None if report.own is None else report.own.busy,
        server_cpu=spent,
        warning=report.warning,
    )


def take_turns(
    rounds: Rounds,
    result: Result,
    count: int,
    turns: Sequence[tuple[str, Callable[[], Figure]]],
) -> None:
    """Let everyone have a turn in each of `count` rounds; a peer that fails is left out.

    Our own failures are raised.
    """
    for number in range(count):
        # Whoever comes first in one round comes last in the next.
        for who, turn in turns if number % 2 == 0 else reversed(turns):
            if who in result.left_out:
                continue
            try:
                rounds.add(turn())
            except (LoadFailed, NotStarted) as error:
                if who.startswith(OURS):
                    raise
                result.left_out[who] = str(error).replace("\n", " ")[:300]
                rounds.forget(who)


def claim_ratio(
    result: Result,
    rounds: Rounds,
    key: str,
    what: str,
    value: str,
    who: str,
    other: str,
    *,
    variant: str = "",
    other_variant: str | None = None,
    target: float | None = None,
    at_most: bool = False,
) -> None:
    """Claim a ratio, if both were measured."""
    found = rounds.ratios(value, who, other, variant, other_variant)
    if not found:
        return
    several = len(found) > 1
    result.claims.append(
        Claim(
            key=key,
            what=what,
            value=statistics.median(found),
            target=target,
            at_most=at_most,
            least=min(found) if several else None,
            most=max(found) if several else None,
        )
    )
