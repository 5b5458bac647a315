"""How results read in the documents: tables and sentences of Markdown (pure)."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from _results import OURS, Figure, Result, Suite, cpu_shown, shown, worded

_SECTION: Final = re.compile(
    r"(<!-- figures: (?P<name>[\w ]+) -->\n)(?P<text>.*?)(<!-- end of figures -->\n)", re.DOTALL
)

# Above this load average for each core a machine did other things beside.
_BUSY: Final = 0.3


def written(document: str, suite: Suite, titles: dict[str, str]) -> str:
    """Return a document with each of its sections of figures written anew.

    A section stands between `<!-- figures: NAME -->` and `<!-- end of figures -->`; NAME is one of
    SECTIONS, or a case. `titles` are those of the peers. Raises KeyError for any other name.
    """

    def section(found: re.Match[str]) -> str:
        name = found["name"]
        if make := SECTIONS.get(name):
            text = make(suite, titles)
        elif result := suite.result(name):
            text = of_case(result)
        else:
            raise KeyError(name)
        return f"{found[1]}\n{text}\n\n{found[4]}"

    return _SECTION.sub(section, document)


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def of_machine(suite: Suite, titles: dict[str, str]) -> str:
    """Say where, when and how a run took place, and who took part."""
    found = suite.machine
    gigabytes = found.memory_bytes / 1e9
    lines = [
        f"- `{suite.command}`, {suite.date}, commit `{suite.commit}`,"
        f" {suite.seconds / 60:.0f} minutes",
        f"- {found.cores} cores ({found.processor}), {gigabytes:.0f} GB, {found.kernel},"
        f" Python {found.python}; load average before: {found.load_before:g}",
    ]
    again: dict[str, list[str]] = {}
    for each in suite.results:
        if each.commit not in ("", suite.commit):
            again.setdefault(each.commit, []).append(each.case)
    lines += [f"- measured again at `{at}`: {', '.join(cases)}" for at, cases in again.items()]
    if suite.quick:
        lines.append(
            "- **A quick run**: every case small and measured once. It shows that all of it works;"
            " its figures say little."
        )
    lines += [f"- {titles.get(name, name)}: {text}" for name, text in suite.versions.items()]
    left_out = {who: why for each in suite.results for who, why in each.left_out.items()}
    lines += [f"- left out: {titles.get(who, who)}: {why}" for who, why in left_out.items()]
    return "\n".join(lines)


def of_budgets(suite: Suite, _titles: dict[str, str]) -> str:
    """Return every number of which something is asked, and what came out."""
    return _rows(
        ("what", "asked", "measured", "", "command"),
        (
            (
                claim.what,
                f"{'at most' if claim.at_most else 'at least'} {shown(claim.unit, claim.target)}",
                claim.measured,
                "met" if claim.met else "**not met**",
                f"`python bench/{result.case}.py`",
            )
            for result in suite.results
            for claim in result.claims
            if claim.target is not None
        ),
    )


def of_peers(suite: Suite, titles: dict[str, str]) -> str:
    """Return what each peer delivers: one publish in flight, and saturated."""
    alone, many = suite.result("fanout"), suite.result("saturating")

    def cells(who: str) -> list[str]:
        one = alone.figure(who) if alone else None
        saturated = many.figure(who) if many else None
        ratio = alone.claim(f"fanout.{who}") if alone else None
        return [
            titles.get(who, "Galecast"),
            _value(one, "delivered_per_s"),
            "" if ratio is None else f"{ratio.value:.2g}",
            _value(saturated, "delivered_per_s"),
            _value(saturated, "p50_ms"),
        ]

    names = [figure.who for figure in alone.figures] if alone else []
    return _rows(
        (
            "",
            "delivered, one publish in flight",
            "ours is so many times as fast",
            "delivered, saturated",
            "p50, saturated",
        ),
        map(cells, names),
    )


def _value(figure: Figure | None, name: str) -> str:
    return "" if figure is None else shown(name, figure.values[name])


def of_case(result: Result) -> str:
    """Return the figures of a case as a table, and what it claims as a list."""
    names = list(dict.fromkeys(name for figure in result.figures for name in figure.values))
    busy = any(figure.load_cpu is not None for figure in result.figures)
    varied = any(figure.variant for figure in result.figures)
    head = [*([""] if varied else []), "who", *map(worded, names)]
    kernel = any(figure.server_kernel is not None for figure in result.figures)
    head += ["CPU of the load", "of the server"] if busy else []
    head += ["of that in the kernel"] if kernel else []
    rows = []
    for figure in result.figures:
        row = [figure.variant] if varied else []
        row += [figure.who, *(_cell(figure, name) for name in names)]
        if busy:
            limit = " (the limit)" if figure.warning else ""
            row += [cpu_shown(figure.load_cpu) + limit, cpu_shown(figure.server_cpu)]
        if kernel:
            row.append(cpu_shown(figure.server_kernel))
        rows.append(row)
    lines = [_rows(head, rows)]
    if result.claims:
        lines.append("")
        lines += [f"- {claim.what}: {claim.measured}" for claim in result.claims]
    lines += [f"\n**{each}**" for each in result.problems]
    return "\n".join(lines)


def _cell(figure: Figure, name: str) -> str:
    return shown(name, figure.values[name]) if name in figure.values else ""


def of_readme(suite: Suite, _titles: dict[str, str]) -> str:
    """Return the few rows that say it in short."""
    rows = []
    for case, what, say in _IN_SHORT:
        result = suite.result(case)
        if result is not None and (text := say(result)):
            rows.append((what, text, f"`python bench/{case}.py`"))
    lines = [_rows(("", "measured", "command"), rows), "", _where(suite)]
    return "\n".join(lines)


def _where(suite: Suite) -> str:
    found = suite.machine
    text = (
        f"{found.cores} cores, one for the server and one for the load, Python {found.python},"
        " events of 128 bytes. Take the ratios; the rates are of that machine."
    )
    if suite.quick:
        text = f"{text} A quick run, whose figures say little."
    if found.load_before > _BUSY * found.cores:
        text = f"{text} Others worked on it meanwhile (load average {found.load_before:g})."
    return text


def _times(result: Result, key: str) -> str:
    claim = result.claim(key)
    return "" if claim is None else f"{claim.value:.2g}"


def _both(result: Result, *names: tuple[str, str]) -> str:
    """Say how many times as fast as each, of those that were measured."""
    found = [
        f"{_times(result, key)} times the rate of {name}"
        for key, name in names
        if result.claim(key) is not None
    ]
    return ", ".join(found)


def _fanout(result: Result) -> str:
    text = _both(result, ("fanout.nchan", "nchan"), ("fanout.write_message", "`write_message`"))
    return f"{text} ({_value(result.figure(OURS), 'delivered_per_s')})"


def _saturating(result: Result) -> str:
    text = _both(result, ("saturating.nchan.rate", "nchan"))
    figure = result.figure(OURS)
    rate, p50 = _value(figure, "delivered_per_s"), _value(figure, "p50_ms")
    return f"{text} ({rate}), p50 {p50}" if text else f"{rate}, p50 {p50}"


def _latency(result: Result) -> str:
    found = []
    for who in (OURS, "nchan"):
        figure = result.figure(who, "100 events/s")
        if figure is not None:
            p50, p99 = (shown(f"{p}_ms", figure.values[f"{p}_ms"]) for p in ("p50", "p99"))
            found.append(f"{'' if who == OURS else f'{who} '}p50 {p50}, p99 {p99}")
    return "; ".join(found)


def _idle(result: Result) -> str:
    figure = result.figure(OURS)
    if figure is None:
        return ""
    size = shown("session_bytes", figure.values["session_bytes"])
    cpu = shown("cpu_share", figure.values["cpu_share"])
    return f"{size} a session, {cpu} of one core"


def _across(result: Result) -> str:
    found = []
    for variant, before in (
        ("across two nodes, over Redis", ""),
        ("one node, in memory", "alone "),
    ):
        figure = result.figure(OURS, variant)
        if figure is not None:
            p50, p99 = (shown(f"{p}_ms", figure.values[f"{p}_ms"]) for p in ("p50", "p99"))
            found.append(f"{before}p50 {p50}, p99 {p99}")
    return "; ".join(found)


def _replayed(result: Result) -> str:
    figure = result.figure(OURS, "memory and SQLite")
    if figure is None:
        return ""
    rate = shown("_per_s", figure.values["replay_from_per_s"])
    return (
        f"{rate}; the node's memory grew by {figure.values['growth_bytes'] / 1e6:.0f} MB, another"
        f" channel's p99 went from {shown('_ms', figure.values['others_p99_ms'])}"
        f" to {shown('_ms', figure.values['others_replay_p99_ms'])}"
    )


def _archived(result: Result) -> str:
    claim = result.claim("archive.published.memory and SQLite")
    return "" if claim is None else f"{claim.value:.2g} times the rate without an archive"


_IN_SHORT: Final[tuple[tuple[str, str, Callable[[Result], str]], ...]] = (
    ("fanout", "sessions of one channel, one publish in flight: events delivered", _fanout),
    ("saturating", "the same, 64 publishes in flight", _saturating),
    ("latency", "the same at 100 events/s: from the publish to the subscriber", _latency),
    ("idle", "idle sessions with a subscription each: memory, and CPU of all", _idle),
    ("across", "publish on one node, receive on another, 50 events/s", _across),
    ("archive", "archived events (SQLite) replayed to a client that goes live", _replayed),
    ("archive", "publishing them in arrays, acknowledged when on the disk", _archived),
)

SECTIONS: Final[dict[str, Callable[[Suite, dict[str, str]], str]]] = {
    "machine": of_machine,
    "budgets": of_budgets,
    "peers": of_peers,
    "in short": of_readme,
}
