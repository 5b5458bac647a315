"""Who is connected here? This file: a load run as a drawing, SVG that stands alone (pure)."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from server.load_report import QUANTILES, Slice

_WIDTH: Final = 860
_HEIGHT: Final = 512
_LEFT: Final = 78
_RIGHT: Final = 70
_TOPS: Final = (96, 312)
_TALL: Final = 160

_STYLE: Final = """\
  svg { background: #ffffff }
  text { fill: #1f2937; font: 13px system-ui, -apple-system, "Segoe UI", sans-serif }
  .title { font-size: 16px; font-weight: 600 }
  .faint { fill: #57606a }
  .grid { stroke: #d0d7de; stroke-width: 1 }
  .line { fill: none; stroke-width: 2; stroke-linejoin: round }
  .rate { stroke: #1f6feb } .area { fill: #1f6feb; opacity: 0.12 }
  .p50 { stroke: #1a7f37 } .p90 { stroke: #9a6700 } .p99 { stroke: #cf222e }
  @media (prefers-color-scheme: dark) {
    svg { background: #0d1117 }
    text { fill: #e6edf3 }
    .faint { fill: #9aa5b1 }
    .grid { stroke: #30363d }
    .rate { stroke: #5b9bf0 } .area { fill: #5b9bf0 }
    .p50 { stroke: #3fb950 } .p90 { stroke: #d29922 } .p99 { stroke: #f85149 }
  }
"""

_Scale = Callable[[float], float]


def plot(title: str, subtitle: str, slices: Sequence[Slice]) -> str:
    """Return events delivered per second and latency over time, as the text of an SVG file.

    It needs nothing else, and follows the reader's light or dark scheme.
    """
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-labelledby="t d">',
        f'<title id="t">{_text(title)}</title>',
        f'<desc id="d">{_text(subtitle)}</desc>',
        f"<style>\n{_STYLE}</style>",
        f'<text class="title" x="{_LEFT}" y="28">{_text(title)}</text>',
        f'<text class="faint" x="{_LEFT}" y="48">{_text(subtitle)}</text>',
    ]
    if slices:
        parts += _rates(slices)
        parts += _latencies(slices)
    else:
        parts.append(f'<text x="{_LEFT}" y="{_TOPS[0] + 40}">nothing was measured</text>')
    return "\n".join([*parts, "</svg>", ""])


def ticks(most: float) -> list[float]:
    """Return round numbers from 0 on, evenly apart, of which the last is `most` or a little more.

    There are between three and seven.
    """
    if most <= 0:
        return [0.0, 0.5, 1.0]
    power = 10.0 ** math.floor(math.log10(most))
    step = next(power * each for each in (0.2, 0.5, 1, 2) if power * each * 6 >= most)
    return [step * i for i in range(math.ceil(round(most / step, 9)) + 1)]


def decades(least: float, most: float) -> list[float]:
    """Return powers of ten, of which the first is not above `least` and the last not below `most`.

    Both have to be above zero.
    """
    first = math.floor(math.log10(least))
    last = max(first + 1, math.ceil(math.log10(most)))
    return [10.0**each for each in range(first, last + 1)]


def _rates(slices: Sequence[Slice]) -> list[str]:
    marks = ticks(max(each.delivered_per_s for each in slices))
    top = _TOPS[0]

    def y(value: float) -> float:
        return top + _TALL * (1 - value / marks[-1])

    across = _across(slices)
    values = [each.delivered_per_s for each in slices]
    points = _points(slices, values, across, y)
    parts = _frame(top, "events delivered per second", [(y(each), _short(each)) for each in marks])
    begin, end = across(_middle(slices[0])), across(_middle(slices[-1]))
    floor = f"{top + _TALL:.1f}"
    parts.append(f'<path class="area" d="M{begin:.1f} {floor} L{points} L{end:.1f} {floor}Z"/>')
    parts.append(f'<path class="line rate" d="M{points}"/>')
    return parts + _times(slices, across, top)


def _latencies(slices: Sequence[Slice]) -> list[str]:
    top = _TOPS[1]
    found = [each for each in slices if each.latency.total]
    title = "latency in ms, from the time at which an event was due"
    across = _across(slices)
    if not found:
        return [*_frame(top, title, []), *_times(slices, across, top)]
    values = {
        name: [max(1e-6, each.latency.quantile(share)) * 1000 for each in found]
        for name, share in QUANTILES.items()
    }
    marks = decades(
        min(min(each) for each in values.values()), max(max(each) for each in values.values())
    )
    span = math.log(marks[-1] / marks[0])

    def y(value: float) -> float:
        return top + _TALL * (1 - math.log(value / marks[0]) / span)

    parts = _frame(top, title, [(y(each), _short(each)) for each in marks])
    # Names stand at the ends of their lines, but not over each other.
    below = top + _TALL + 14.0
    for name, line in values.items():
        parts.append(f'<path class="line {name}" d="M{_points(found, line, across, y)}"/>')
        below = min(below - 14, y(line[-1]) + 4)
        parts.append(f'<text x="{_WIDTH - _RIGHT + 8}" y="{below:.1f}">{name}</text>')
    return parts + _times(slices, across, top)


def _across(slices: Sequence[Slice]) -> _Scale:
    begin, end = slices[0].begin_s, slices[-1].end_s
    wide = _WIDTH - _LEFT - _RIGHT
    return lambda at: _LEFT + wide * (at - begin) / max(1e-9, end - begin)


def _middle(each: Slice) -> float:
    return (each.begin_s + each.end_s) / 2


def _points(slices: Sequence[Slice], values: Sequence[float], across: _Scale, y: _Scale) -> str:
    places = [
        f"{across(_middle(each)):.1f} {y(value):.1f}"
        for each, value in zip(slices, values, strict=True)
    ]
    # A line of one point would not be seen.
    return " L".join(places * 2 if len(places) == 1 else places)


def _frame(top: int, title: str, marks: Sequence[tuple[float, str]]) -> list[str]:
    parts = [f'<text x="{_LEFT}" y="{top - 8}">{_text(title)}</text>']
    for y, name in marks:
        parts.append(
            f'<path class="grid" d="M{_LEFT} {y:.1f}H{_WIDTH - _RIGHT}"/>'
            f'<text class="faint" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
        )
    return parts


def _times(slices: Sequence[Slice], across: _Scale, top: int) -> list[str]:
    begin, end = slices[0].begin_s, slices[-1].end_s
    return [
        f'<text class="faint" x="{across(begin + at):.1f}" y="{top + _TALL + 20}" '
        f'text-anchor="middle">{_short(at)} s</text>'
        for at in ticks(end - begin)
        if begin + at <= end + 1e-9
    ]


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.10g}{letter}"
    return f"{value:.6g}"


def _text(text: str) -> str:
    # What cannot be printed is nothing for XML either.
    return escape(
        "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)
    )
