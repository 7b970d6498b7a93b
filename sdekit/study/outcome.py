"""What became of a cell by one metric, and what the cells of several seeds come to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sdekit.study.entry import Entry, Spent
from sdekit.study.rows import FINE, OK


class Outcome(NamedTuple):
    """One cell by one metric: the row of what was drawn, and the row of its value, None if there is none yet."""

    draw: Mapping[str, Any]
    value: Mapping[str, Any] | None

    @property
    def number(self) -> float | None:
        """The value, None if there is none that is finite."""
        number = self.value["value"] if self.value and self.error is None else None
        return None if number is None else float(number)

    @property
    def error(self) -> str | None:
        """Why there is no value, None if there is one."""
        if self.draw["status"] != OK:
            return str(self.draw["status"])
        if self.value is None:
            return "no value yet"
        if self.value["status"] != OK:
            return str(self.value["status"])
        number = self.value["value"]
        return None if number is not None and math.isfinite(number) else "not finite"

    @property
    def real(self) -> bool:
        """Whether it is of real data."""
        return self.draw["budget"] is None

    @property
    def fine(self) -> bool:
        """Whether it is of the fine solution, which is no method."""
        return bool(self.draw["method"] == FINE)


def gathered(found: Sequence[Outcome], missing: Sequence[int] = (), shared: float = 0.0) -> Entry:
    """Return the entry of one method at one budget from the outcomes of its seeds.

    Args:
        found: the outcomes.
        missing: the seeds that have none yet.
        shared: the part of its samples that any two seeds have in common.
    """
    good = [(outcome, number) for outcome in found if (number := outcome.number) is not None]
    calls = [o.draw["nfe"] for o in found if o.draw["status"] == OK and o.draw["nfe"] is not None]
    blocks = tuple(tuple((o.value or {}).get("blocks") or ()) for o, _ in good)
    errors = [error for outcome in found if (error := outcome.error)]
    return Entry(
        tuple(number for _, number in good),
        max(calls, default=None),
        (*errors, *(f"no row yet of seed {seed}" for seed in missing)),
        tuple(o.draw["seed"] for o, _ in good),
        tuple(_or_nan((o.value or {}).get("stderr")) for o, _ in good),
        blocks if all(blocks) else (),
        _spent([outcome.draw for outcome, _ in good]),
        shared,
    )


def _spent(draws: Sequence[Mapping[str, Any]]) -> Spent:
    """Return the means over the draws of what is known of all of them."""

    def mean(numbers: Iterable[float | None]) -> float:
        known = [number for number in numbers if number is not None]
        return statistics.fmean(known) if len(known) == len(draws) > 0 else math.nan

    def overhead(draw: Mapping[str, Any]) -> float | None:
        known = [draw["seconds"], draw["nfe"], draw.get("call_seconds")]
        return None if None in known else known[0] - known[1] * known[2]

    times = [mean(draw[key] for draw in draws) for key in ("seconds", "cpu_seconds", "fit_seconds")]
    return Spent(times[0], times[1], mean(map(overhead, draws)), times[2])


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else float(number)
