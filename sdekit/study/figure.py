"""Work-precision diagrams: metrics against network calls or seconds, on logarithmic axes, names where lines end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from sdekit.study.entry import Entry
from sdekit.study.findings import Findings
from sdekit.study.rows import REAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which every kind of colour vision tells apart; its yellow is too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "<", "p", ">", "h")
_INK, _GREY, _PALE = "#333333", "#757575", "#e8e8e8"
_WIDTH, _HEIGHT = 7.0, 4.4  # inches, of one diagram
_BOX = (0.09, 0.12, 0.68, 0.72)  # left, bottom, width and height of the axes, in parts of a diagram
_FONT = 9.0  # points


class Cost(Enum):
    """What quality is set against, by the words on the axis."""

    CALLS = "network calls (NFE)"
    SECONDS = "seconds for the samples of a seed"

    def of(self, entry: Entry) -> float:
        """Return what an entry costs, nan if that is not known."""
        return entry.seconds if self is Cost.SECONDS else float(entry.nfe or math.nan)


class _End(NamedTuple):
    """The end of a line, where its name goes."""

    name: str
    colour: str
    x: float
    y: float


def draw(findings: Mapping[str, Findings], cost: Cost = Cost.CALLS) -> Figure:
    """Return the figure of findings by their headings, one below another. It belongs to nobody: no state of pyplot.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot() needs matplotlib: pip install "sdekit[plot]"') from error
    count = len(findings)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * count))
    left, bottom, width, height = _BOX
    for k, (heading, found) in enumerate(findings.items(), 1):
        axes = figure.add_axes((left, (count - k + bottom) / count, width, height / count))
        lines = costed(found, cost)
        _scale(axes, found, lines, cost)
        ends = [_line(axes, line, k, cost) for k, line in enumerate(lines.items())]
        ends += [_level(axes, name, entry) for name, entry in found.levels.items() if entry.complete]
        _dress(axes, heading, found.caption, cost)
        _name(axes, ends)
    return figure


def costed(findings: Findings, cost: Cost) -> dict[str, list[Entry]]:
    """Return the complete entries of every method whose cost is known, by rising budget."""
    lines = {name: [e for e in line if cost.of(e) > 0] for name, line in findings.lines.items()}
    return {name: line for name, line in lines.items() if line}


def _scale(axes: Axes, findings: Findings, lines: Mapping[str, list[Entry]], cost: Cost) -> None:
    """Choose logarithmic axes, and ticks that are read as plain numbers: the budgets, and 1, 2, 5 of a decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    entries = [entry for line in lines.values() for entry in line]
    costs = [cost.of(entry) for entry in entries]
    axes.set_xscale("log")
    axes.xaxis.set(minor_locator=NullLocator(), major_formatter=plain)
    if cost is Cost.CALLS:
        costs += findings.budgets
        axes.xaxis.set_major_locator(FixedLocator(findings.budgets))
    else:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    if costs:
        axes.set_xlim(min(costs) / 1.15, max(costs) * 1.15)
    means = [entry.mean for entry in (*entries, *findings.levels.values()) if entry.complete]
    if means and min(means) > 0:
        steps = (1.0, 2.0, 5.0) if max(means) < 500 * min(means) else (1.0,)
        axes.set_yscale("log")
        axes.yaxis.set(major_locator=LogLocator(subs=steps), minor_locator=NullLocator(), major_formatter=plain)


def _line(axes: Axes, line: tuple[str, list[Entry]], k: int, cost: Cost) -> _End:
    """Draw the means of the k-th method, in the band of their 95% intervals."""
    method, entries = line
    colour = _COLOURS[k % len(_COLOURS)]
    x, y = [cost.of(entry) for entry in entries], [entry.mean for entry in entries]
    ends = [ends_of(entry) for entry in entries]
    for at, (low, high) in zip(x, ends, strict=True):
        axes.vlines(at, low, high, colour, linewidth=2.5, alpha=0.28, zorder=3)
    axes.fill_between(x, [low for low, _ in ends], [high for _, high in ends], color=colour, alpha=0.1, linewidth=0)
    marker = _MARKERS[k % len(_MARKERS)]
    dashes = "-" if k < len(_COLOURS) else (0, (4, 2))
    (drawn,) = axes.plot(x, y, color=colour, marker=marker, markersize=6, markeredgecolor="white", zorder=4)
    drawn.set(linewidth=1.7, linestyle=dashes)
    return _End(method, colour, x[-1], y[-1])


def _level(axes: Axes, name: str, level: Entry) -> _End:
    """Draw a line; of real data, which no method shares its chance with, in the band of its 95% interval."""
    if name == REAL:
        axes.axhspan(*ends_of(level), color=_PALE, linewidth=0, zorder=1)
    axes.axhline(level.mean, color=_GREY, linewidth=1.2, linestyle=(0, (5, 3) if name == REAL else (1, 2)), zorder=2)
    return _End(name, _GREY, axes.get_xlim()[1], level.mean)


def ends_of(entry: Entry) -> tuple[float, float]:
    """Return the ends of an interval as drawn: never at 0 or below, which a logarithmic axis does not have."""
    mean = entry.interval
    if math.isnan(mean.high):
        return mean.value, mean.value
    return max(mean.low, mean.value - 0.7 * abs(mean.value)), mean.high


def _dress(axes: Axes, heading: str, caption: str, cost: Cost) -> None:
    """Add the words, and take away the lines that say nothing."""
    title = axes.annotate(heading, (0, 1), (0, 25), xycoords="axes fraction", textcoords="offset points")
    title.set(color=_INK, fontsize=12, fontweight="bold")
    subtitle = axes.annotate(caption, (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points")
    subtitle.set(color=_GREY, fontsize=_FONT)
    axes.set_xlabel(cost.value, color=_INK, fontsize=_FONT)
    axes.tick_params(colors=_INK, labelsize=_FONT, length=0, axis="y")
    axes.tick_params(colors=_INK, labelsize=_FONT, length=3, axis="x")
    axes.grid(axis="y", color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_GREY)


def _name(axes: Axes, ends: list[_End]) -> None:
    """Write the names to the right of the axes, each in its colour, tied to its line, none over another."""
    axes.set_ylim(axes.get_ylim())
    to_parts = axes.transData + axes.transAxes.inverted()
    ends = sorted(ends, key=lambda end: end.y)
    heights = [float(to_parts.transform((end.x, end.y))[1]) for end in ends]
    gap = 1.3 * _FONT / (72 * _HEIGHT * _BOX[3])
    for end, height in zip(ends, apart(heights, gap), strict=True):
        tie = {"arrowstyle": "-", "color": end.colour, "alpha": 0.5, "linewidth": 0.8, "shrinkB": 5, "relpos": (0, 0.5)}
        text = axes.annotate(end.name, (end.x, end.y), (1.035, height), textcoords="axes fraction", arrowprops=tie)
        text.set(color=end.colour, fontsize=_FONT, verticalalignment="center")


def apart(places: list[float], gap: float) -> list[float]:
    """Return the nearest places, in the mean square, that lie at least `gap` apart; the places given rise.

    Without k gap, the k-th must not fall: a regression by pooling what does. Reference: Ayer et al. 1955, theorem 2.1.

    >>> apart([0.0, 1.0, 1.0], gap=0.5)
    [0.0, 0.75, 1.25]
    """
    pools: list[list[float]] = []
    for k, place in enumerate(places):
        pools.append([place - k * gap])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [_mean(pool) for pool in pools for _ in pool]
    return [place + k * gap for k, place in enumerate(level)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
