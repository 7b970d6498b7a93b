"""Quality against cost: the fewest calls that reach a quality, the Pareto front in time, the order of convergence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sdekit.study.entry import Entry, Goal


class Reach(NamedTuple):
    """The fewest network calls, of those tried, at which a method reaches a quality; None where none does.

    Attributes:
        calls: where its mean is there.
        earliest: where the better end of its 95% interval is.
        surely: where the worse end is.
    """

    calls: int | None
    earliest: int | None
    surely: int | None


class Point(NamedTuple):
    """A method at a budget on the Pareto front."""

    method: str
    budget: int
    entry: Entry


def reach(entries: Sequence[Entry], quality: float, goal: Goal = Goal.LOW) -> Reach:
    """Return the fewest network calls of the entries of a method that reach a quality."""

    def first(ends: Mapping[int, float]) -> int | None:
        good = [calls for calls, end in ends.items() if goal.loss(end) <= goal.loss(quality)]
        return min(good, default=None)

    known = [(entry.nfe, entry.interval) for entry in entries if entry.complete and entry.nfe]
    means = {calls: mean.value for calls, mean in known}
    lows = {calls: mean.value if math.isnan(mean.low) else mean.low for calls, mean in known}
    highs = {calls: mean.value if math.isnan(mean.high) else mean.high for calls, mean in known}
    better, worse = (lows, highs) if goal is Goal.LOW else (highs, lows)
    return Reach(first(means), first(better), first(worse))


def front(entries: Mapping[tuple[str, int], Entry], goal: Goal = Goal.LOW) -> tuple[Point, ...]:
    """Return the entries that no other beats in the mean in as little time, from the fastest to the best."""
    timed = [Point(method, budget, entry) for (method, budget), entry in entries.items() if entry.seconds >= 0]
    found: list[Point] = []
    for point in sorted(timed, key=lambda point: (point.entry.seconds, goal.loss(point.entry.mean))):
        if not found or goal.loss(point.entry.mean) < goal.loss(found[-1].entry.mean):
            found.append(point)
    return tuple(found)


def order(entries: Sequence[Entry]) -> float:
    """Return the slope -d log(mean) / d log(NFE) over the two dearest entries, nan if it cannot be taken.

    >>> round(order([Entry((1.0,), 5), Entry((0.25,), 10)]), 9)
    2.0
    """
    known = {entry.nfe: entry.mean for entry in entries if entry.complete and entry.nfe and entry.mean > 0}
    if len(known) < 2:
        return math.nan
    (n, error), (m, better) = sorted(known.items())[-2:]
    return math.log(error / better) / math.log(m / n)
