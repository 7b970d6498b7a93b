"""A report as a picture: the metric against the network calls, on logarithmic axes, with names where the lines end."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from sdekit.study.findings import Entry, Findings
from sdekit.study.rows import REAL

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The palette of Okabe and Ito, which every kind of colour vision tells apart; its yellow is too pale for a line.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "<", "p", ">", "h")
_INK, _GREY, _PALE = "#333333", "#757575", "#e8e8e8"
_SIZE = (7.0, 4.4)  # inches
_BOX = (0.09, 0.12, 0.68, 0.72)  # left, bottom, width and height of the axes, in parts of the figure
_FONT = 9.0  # points


class _End(NamedTuple):
    """The end of a line, where its name goes."""

    name: str
    colour: str
    x: float
    y: float


def draw(findings: Findings) -> Figure:
    """Return the figure of a findings. It belongs to nobody: no window, no state of pyplot.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('plot() needs matplotlib: pip install "sdekit[plot]"') from error
    figure = Figure(figsize=_SIZE)
    axes = figure.add_axes(_BOX)
    _scale(axes, findings)
    ends = [_line(axes, entries, k) for k, entries in enumerate(_lines(findings).items())]
    if findings.floor and findings.floor.complete:
        ends.append(_floor(axes, findings.floor))
    _dress(axes, findings)
    _name(axes, ends)
    return figure


def _lines(findings: Findings) -> dict[str, list[Entry]]:
    """Return the complete entries of every method that has any, by rising budget."""
    lines: dict[str, list[Entry]] = {method: [] for method in findings.methods}
    for (method, _), entry in sorted(findings.entries.items(), key=lambda item: item[0][1]):
        if entry.complete and entry.nfe:
            lines[method].append(entry)
    return {method: entries for method, entries in lines.items() if entries}


def _scale(axes: Axes, findings: Findings) -> None:
    """Choose logarithmic axes, and ticks that are read as plain numbers: the budgets, and 1, 2, 5 of a decade."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    entries = [entry for line in _lines(findings).values() for entry in line]
    calls = [*findings.budgets, *(entry.nfe or 1 for entry in entries)]
    axes.set_xscale("log")
    axes.set_xlim(min(calls) / 1.15, max(calls) * 1.15)
    axes.xaxis.set(major_locator=FixedLocator(findings.budgets), minor_locator=NullLocator(), major_formatter=plain)
    means = [entry.mean for entry in [*entries, *([findings.floor] if findings.floor else [])] if entry.complete]
    if means and min(means) > 0:
        steps = (1.0, 2.0, 5.0) if max(means) < 500 * min(means) else (1.0,)
        axes.set_yscale("log")
        axes.yaxis.set(major_locator=LogLocator(subs=steps), minor_locator=NullLocator(), major_formatter=plain)


def _line(axes: Axes, line: tuple[str, list[Entry]], k: int) -> _End:
    """Draw the means of the k-th method, with the sd of the seeds."""
    method, entries = line
    colour = _COLOURS[k % len(_COLOURS)]
    x, y = [float(entry.nfe or 1) for entry in entries], [entry.mean for entry in entries]
    for at, mean, (below, above) in zip(x, y, map(_reach, entries), strict=True):
        axes.vlines(at, mean - below, mean + above, colour, linewidth=3.5, alpha=0.28, zorder=3)
    marker = _MARKERS[k % len(_MARKERS)]
    axes.plot(x, y, color=colour, marker=marker, markersize=6, markeredgecolor="white", linewidth=1.7, zorder=4)
    return _End(method, colour, x[-1], y[-1])


def _floor(axes: Axes, floor: Entry) -> _End:
    """Draw what real data gets: a line, and the band of its sd."""
    below, above = _reach(floor)
    axes.axhspan(floor.mean - below, floor.mean + above, color=_PALE, linewidth=0, zorder=1)
    axes.axhline(floor.mean, color=_GREY, linewidth=1.2, linestyle=(0, (5, 3)), zorder=2)
    return _End(REAL, _GREY, axes.get_xlim()[1], floor.mean)


def _reach(entry: Entry) -> tuple[float, float]:
    """Return how far an error bar goes down and up: never to 0 or below, which a logarithmic axis does not have."""
    sd = 0.0 if math.isnan(entry.sd) else entry.sd
    return min(sd, 0.9 * abs(entry.mean)), sd


def _dress(axes: Axes, findings: Findings) -> None:
    """Add the words, and take away the lines that say nothing."""
    title = axes.annotate(findings.metric, (0, 1), (0, 25), xycoords="axes fraction", textcoords="offset points")
    title.set(color=_INK, fontsize=12, fontweight="bold")
    subtitle = axes.annotate(findings.caption, (0, 1), (0, 10), xycoords="axes fraction", textcoords="offset points")
    subtitle.set(color=_GREY, fontsize=_FONT)
    axes.set_xlabel("network calls (NFE)", color=_INK, fontsize=_FONT)
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
    gap = 1.3 * _FONT / (72 * _SIZE[1] * _BOX[3])
    for end, height in zip(ends, _apart(heights, gap), strict=True):
        tie = {"arrowstyle": "-", "color": end.colour, "alpha": 0.5, "linewidth": 0.8, "shrinkB": 5, "relpos": (0, 0.5)}
        text = axes.annotate(end.name, (end.x, end.y), (1.035, height), textcoords="axes fraction", arrowprops=tie)
        text.set(color=end.colour, fontsize=_FONT, verticalalignment="center")


def _apart(places: list[float], gap: float) -> list[float]:
    """Return the nearest places, in the mean square, that lie at least `gap` apart; the places given rise.

    Without k gap, the k-th must not fall: a regression by pooling what does. Reference: Ayer et al. 1955, theorem 2.1.

    >>> _apart([0.0, 1.0, 1.0], gap=0.5)
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
