"""Work-precision diagrams as SVG for a page: in the page's colours, light or dark, named at the ends of the lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from sdekit.study.entry import Entry
from sdekit.study.figure import Cost, apart, costed, ends_of
from sdekit.study.findings import Findings
from sdekit.study.rows import REAL
from sdekit.study.table import interval

COLOURS = 8
"""The number of colours in the page's style sheet; lines beyond are dashed."""

_WIDTH, _HEIGHT = 760.0, 420.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 542.0, 14.0, 370.0
_MARKS = (
    "M-4.2,0a4.2,4.2 0 1,0 8.4,0a4.2,4.2 0 1,0 -8.4,0",
    "M-3.9,-3.9h7.8v7.8h-7.8z",
    "M0,-5L4.7,3.6H-4.7z",
    "M0,-5.2L5.2,0L0,5.2L-5.2,0z",
    "M0,5L4.7,-3.6H-4.7z",
)


class Scale(NamedTuple):
    """An axis: from `low` to `high`, drawn from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = True

    def at(self, value: float) -> float:
        """Return where a value is drawn, within the axis."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, self.within(value)))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def within(self, value: float) -> float:
        """Return the value of the axis that is nearest."""
        return min(max(value, self.low), self.high)

    @property
    def ticks(self) -> list[float]:
        """Round numbers on the axis, three to about ten: 1, 2, 5 of each decade, or decades alone, or even steps."""
        if not self.logarithmic or self.high < 4 * self.low:
            return self._even()
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high < 1000 * self.low else (1,)
        return [v for k in decades for m in steps if self.low <= (v := float(f"{m}e{k}")) <= self.high]

    def _even(self) -> list[float]:
        rough = (self.high - self.low) / 5
        unit = 10.0 ** math.floor(math.log10(rough))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
        first = math.ceil(self.low / step)
        return [float(f"{k * step:.12g}") for k in range(first, math.floor(self.high / step) + 1)]


def chart(findings: Findings, cost: Cost, title: str) -> str:
    """Return the SVG of the metric against a cost; "" if no cost is known."""
    lines = costed(findings, cost)
    if not lines:
        return ""
    x, y = _scales(findings, [entry for line in lines.values() for entry in line], cost)
    names = findings.methods
    levels = {name: entry for name, entry in findings.levels.items() if entry.complete}
    series = [_series(names.index(name), name, line, (x, y), cost) for name, line in lines.items()]
    ends = {name: (cost.of(line[-1]), line[-1].mean, _style(names.index(name))) for name, line in lines.items()}
    ends |= {name: (x.high, entry.mean, "--c:var(--muted)") for name, entry in levels.items()}
    label = f"{title}: {findings.metric} against {cost.value}, {len(lines)} methods. The figures are in the table."
    return "\n".join(
        [
            f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(label)}">',
            *_axes(x, y, findings.budgets if cost is Cost.CALLS else x.ticks, cost),
            *(_band(name, entry, x, y) for name, entry in levels.items()),
            *series,
            *_names(ends, x, y),
            "</svg>",
        ]
    )


def _scales(findings: Findings, entries: Sequence[Entry], cost: Cost) -> tuple[Scale, Scale]:
    """Return both axes: as wide as the means and the levels, and as much of the intervals as leaves them room."""
    costs = [*map(cost.of, entries), *(findings.budgets if cost is Cost.CALLS else ())]
    shown = [*entries, *(level for level in findings.levels.values() if level.complete)]
    means = [entry.mean for entry in shown]
    low, high = min(means), max(means)
    bottoms, tops = zip(*map(ends_of, shown), strict=True)
    x = Scale(min(costs) / 1.12, max(costs) * 1.12, _LEFT, _RIGHT)
    if low > 0:
        room = max(1.3, (high / low) ** 0.25)
        return x, Scale(max(min(bottoms), low / room) / 1.06, min(max(tops), high * room) * 1.06, _BOTTOM, _TOP)
    room = 0.25 * (high - low) or 1.0
    return x, Scale(max(min(bottoms), low - room) - 0.04 * room, min(max(tops), high + room), _BOTTOM, _TOP, False)


def _axes(x: Scale, y: Scale, at: Sequence[float], cost: Cost) -> list[str]:
    """Return grid lines, ticks and the name of the horizontal axis."""
    parts = ['<g class="axes">']
    for value in y.ticks:
        height = f"{y.at(value):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT:g}" x2="{_RIGHT:g}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{_LEFT - 8:g}" y="{height}" dy=".32em" text-anchor="end">{value:g}</text>')
    parts.append(f'<line class="base" x1="{_LEFT:g}" x2="{_RIGHT:g}" y1="{_BOTTOM:g}" y2="{_BOTTOM:g}"/>')
    for value in at:
        place = f"{x.at(value):.1f}"
        parts.append(f'<line class="base" x1="{place}" x2="{place}" y1="{_BOTTOM:g}" y2="{_BOTTOM + 4:g}"/>')
        parts.append(f'<text x="{place}" y="{_BOTTOM + 18:g}" text-anchor="middle">{value:g}</text>')
    middle = (_LEFT + _RIGHT) / 2
    parts.append(f'<text class="name" x="{middle:g}" y="{_BOTTOM + 40:g}" text-anchor="middle">{cost.value}</text>')
    return [*parts, "</g>"]


def _style(k: int) -> str:
    """Return the colour of the k-th method, and dashes where the colours are used up."""
    return f"--c:var(--c{k % COLOURS})" + (";--d:5 3" if k >= COLOURS else "")


def _series(k: int, name: str, line: Sequence[Entry], scales: tuple[Scale, Scale], cost: Cost) -> str:
    """Return a method's band, line and marks; a mark says its figures when pointed at."""
    x, y = scales
    at = [f"{x.at(cost.of(entry)):.1f}" for entry in line]
    means = [f"{place},{y.at(entry.mean):.1f}" for place, entry in zip(at, line, strict=True)]
    ends = [ends_of(entry) for entry in line]
    lows = [f"{place},{y.at(low):.1f}" for place, (low, _) in zip(at, ends, strict=True)]
    highs = [f"{place},{y.at(high):.1f}" for place, (_, high) in zip(at, ends, strict=True)]
    bars = "".join(f"M{low}L{high}" for low, high in zip(lows, highs, strict=True))
    marks = "".join(
        f'<path class="mark" d="{_MARKS[k % len(_MARKS)]}" transform="translate({place})"><title>{escape(name)}: '
        f"{interval(entry)} at {entry.nfe} network calls{_seconds(entry)}</title></path>"
        for place, entry in zip(means, line, strict=True)
    )
    return (
        f'<g class="series" data-s="{k}" style="{_style(k)}"><polygon class="band" points="{" ".join(lows)} '
        f'{" ".join(reversed(highs))}"/><path class="bars" d="{bars}"/><polyline class="line" '
        f'points="{" ".join(means)}"/>{marks}</g>'
    )


def _seconds(entry: Entry) -> str:
    return "" if math.isnan(entry.seconds) else f", {entry.seconds:.3g} s"


def _band(name: str, level: Entry, x: Scale, y: Scale) -> str:
    """Return the line of a level; real data, which no method shares its chance with, in the band of its interval."""
    low, high = (y.at(end) for end in ends_of(level))
    mean = f"{y.at(level.mean):.1f}"
    band = f'<rect x="{_LEFT:g}" width="{_RIGHT - _LEFT:g}" y="{high:.1f}" height="{low - high:.1f}"/>'
    return (
        f'<g class="floor">{band * (name == REAL)}<line x1="{_LEFT:g}" x2="{_RIGHT:g}" y1="{mean}" y2="{mean}"/>'
        f"<title>{name}: {interval(level)}</title></g>"
    )


def _names(ends: dict[str, tuple[float, float, str]], x: Scale, y: Scale) -> list[str]:
    """Return the names to the right of the axes, each tied to its line, none over another."""
    rising = sorted(ends.items(), key=lambda item: y.at(item[1][1]))
    heights = apart([y.at(mean) for _, (_, mean, _) in rising], gap=16.0)
    shift = min(0.0, _BOTTOM - heights[-1]) if heights[0] > _TOP else 0.0
    parts = []
    for (name, (cost, mean, style)), height in zip(rising, heights, strict=True):
        end = f"{x.at(cost) + 7:.1f},{y.at(mean):.1f}"
        text = name if len(name) <= 24 else f"{name[:23]}…"
        parts.append(
            f'<g class="end" style="{style}"><polyline points="{end} {_RIGHT + 12:g},{height + shift:.1f}"/>'
            f'<text x="{_RIGHT + 16:g}" y="{height + shift:.1f}" dy=".32em">{escape(text)}</text></g>'
        )
    return parts
