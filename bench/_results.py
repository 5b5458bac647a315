"""What a benchmark found, as figures that can be kept in a file and read again (pure)."""

import statistics
from collections.abc import Sequence
from typing import Final

import msgspec

OURS: Final = "galecast"


class Figure(msgspec.Struct, kw_only=True):
    """What one server reached in one variant of a case: medians over the rounds.

    `values` are named with their unit (`_per_s`, `_ms`, `_us`, `_bytes`, `_s`; a share has none).
    CPU is in cores; `load_busy` counts also the time in which the load waited for its core. Where
    that is too much, `warning` says that the figures are lower bounds. `server_kernel` is the part
    of the server's CPU that the kernel took: system calls, and what they copy.
    """

    who: str
    variant: str = ""
    values: dict[str, float]
    load_cpu: float | None = None
    load_busy: float | None = None
    server_cpu: float | None = None
    server_kernel: float | None = None
    warning: str = ""
    rounds: int = 1


class Claim(msgspec.Struct, kw_only=True):
    """One number that says it all, mostly a ratio within a run; and what is asked of it, if so.

    `key` names it for the documents. With a `target` the value has to be at least that, or at most
    if `at_most`. `unit` is `times` for a ratio. `least` and `most` are what single rounds found, if
    there were several.
    """

    key: str
    what: str
    value: float
    unit: str = "times"
    target: float | None = None
    at_most: bool = False
    least: float | None = None
    most: float | None = None

    @property
    def measured(self) -> str:
        """The value with its unit, and between what it lay from round to round."""
        value = shown(self.unit, self.value)
        if self.least is None or self.most is None:
            return value
        return f"{value} ({self.least:.3g} to {self.most:.3g})"

    @property
    def met(self) -> bool:
        """Whether it is as asked; true if nothing is."""
        if self.target is None:
            return True
        return self.value <= self.target if self.at_most else self.value >= self.target


class Result(msgspec.Struct, kw_only=True):
    """One case: what was run, what came out, who was left out and why, and what went wrong.

    `commit` differs from the suite's if the case was measured again later.
    """

    case: str
    title: str
    command: str
    options: dict[str, float]
    figures: list[Figure] = []
    claims: list[Claim] = []
    left_out: dict[str, str] = {}
    problems: list[str] = []
    seconds: float = 0.0
    commit: str = ""

    def claim(self, key: str) -> Claim | None:
        """Return the claim with that key, or None."""
        return next((each for each in self.claims if each.key == key), None)

    def figure(self, who: str, variant: str = "") -> Figure | None:
        """Return the figure of one server in one variant, or None."""
        return next((f for f in self.figures if (f.who, f.variant) == (who, variant)), None)

    @property
    def met(self) -> bool:
        """Whether nothing went wrong and everything is as asked."""
        return not self.problems and all(each.met for each in self.claims)


class Machine(msgspec.Struct, kw_only=True):
    """Where a run took place. Figures of other machines cannot be compared with its own."""

    processor: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    load_before: float


class Suite(msgspec.Struct, kw_only=True):
    """One run of many cases."""

    command: str
    commit: str
    date: str
    seconds: float
    quick: bool
    machine: Machine
    versions: dict[str, str]
    results: list[Result]

    def result(self, case: str) -> Result | None:
        """Return the result of a case, or None."""
        return next((each for each in self.results if each.case == case), None)


class Rounds:
    """Collects what rounds found; medians of them make figures, medians of their ratios claims."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str, str], list[Figure]] = {}

    def add(self, figure: Figure) -> None:
        """Take what a round found; rounds of one server and variant have the same values."""
        self._taken.setdefault((figure.who, figure.variant), []).append(figure)

    def forget(self, who: str) -> None:
        """Drop all of one server, of which a round failed."""
        self._taken = {key: taken for key, taken in self._taken.items() if key[0] != who}

    def figures(self) -> list[Figure]:
        """Return the medians, in the order in which they were first seen."""
        return [_median(taken) for taken in self._taken.values()]

    def ratios(
        self, value: str, who: str, other: str, variant: str = "", other_variant: str | None = None
    ) -> list[float]:
        """Return the rounds' ratios of one value; of these a claim is the median.

        Each round sets two against each other that ran one after the other, so that what else the
        machine did weighs on both.
        """
        beside = variant if other_variant is None else other_variant
        pairs = zip(
            self._taken.get((who, variant), ()), self._taken.get((other, beside), ()), strict=False
        )
        return [
            mine.values[value] / theirs.values[value]
            for mine, theirs in pairs
            if theirs.values[value]
        ]


def _median(taken: Sequence[Figure]) -> Figure:
    first = taken[0]
    return Figure(
        who=first.who,
        variant=first.variant,
        values={name: statistics.median(f.values[name] for f in taken) for name in first.values},
        load_cpu=_middle([f.load_cpu for f in taken]),
        load_busy=_middle([f.load_busy for f in taken]),
        server_cpu=_middle([f.server_cpu for f in taken]),
        server_kernel=_middle([f.server_kernel for f in taken]),
        # One round that was held up is outvoted by others that were not.
        warning=sorted(f.warning for f in taken)[len(taken) // 2],
        rounds=len(taken),
    )


def _middle(values: Sequence[float | None]) -> float | None:
    known = [each for each in values if each is not None]
    return statistics.median(known) if known else None


_UNITS: Final = {
    "_per_s": "/s",
    "_ms": " ms",
    "_us": " us",
    "_bytes": " bytes",
    "_s": " s",
    "times": " times",
}


def shown(name: str, value: float) -> str:
    """Return a value for people; `name` ends in its unit, or is one."""
    unit = next((text for end, text in _UNITS.items() if name.endswith(end)), "")
    if unit == "/s" or (unit == " bytes" and value >= 100):
        return f"{_short(value)}{unit}" if unit == "/s" else f"{value:,.0f}{unit}"
    if name.endswith("share"):
        return f"{value * 100:.2g} %"
    if value >= 100 or value == int(value):
        return f"{value:,.0f}{unit}"
    return f"{value:,.2f}{unit}" if value < 10 else f"{value:,.1f}{unit}"


def _short(value: float) -> str:
    if value >= 999_500:
        return f"{value / 1e6:.2f}M"
    if value >= 99_950:
        return f"{value / 1e3:.0f}k"
    return f"{value / 1e3:.1f}k" if value >= 1000 else f"{value:.0f}"


def table(result: Result) -> str:
    """Return a result as lines for a terminal."""
    lines = [f"{result.title}  ({result.seconds:.0f} s)"]
    rows = [
        [
            figure.variant,
            figure.who,
            *(f"{worded(name)} {shown(name, value)}" for name, value in figure.values.items()),
            _cpu("load", figure.load_cpu),
            _cpu("server", figure.server_cpu),
            "LOAD WAS THE LIMIT" if figure.warning else "",
        ]
        for figure in result.figures
    ]
    columns = max((len(row) for row in rows), default=0)
    for row in rows:
        row[-3:-3] = [""] * (columns - len(row))
    widths = [max(len(row[i]) for row in rows) for i in range(columns)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True) if width)
        lines.append(("  " + "  ".join(cells)).rstrip())
    for claim in result.claims:
        lines.append(f"  {'' if claim.met else 'NOT MET: '}{said(claim)}")
    lines += [f"  left out: {who}: {why}" for who, why in result.left_out.items()]
    lines += [f"  PROBLEM: {each}" for each in result.problems]
    return "\n".join(lines)


def said(claim: Claim) -> str:
    """Return a claim as a sentence."""
    asked = ""
    if claim.target is not None:
        asked = f" (at {'most' if claim.at_most else 'least'} {shown(claim.unit, claim.target)})"
    return f"{claim.what}: {claim.measured}{asked}"


def worded(name: str) -> str:
    """Return what a value is, without its unit, for people."""
    end = next((end for end in _UNITS if name.endswith(end)), "")
    return name.removesuffix(end).replace("_", " ")


def cpu_shown(cores: float | None) -> str:
    """Return CPU for people, in percent of a core; nothing if it is not known."""
    return "" if cores is None else f"{cores * 100:.0f} %"


def _cpu(who: str, cores: float | None) -> str:
    return "" if cores is None else f"{who} CPU {cpu_shown(cores)}"
