"""What a study has found: from rows to figures."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import cached_property

from sdekit.study.rows import OK, Row


@dataclass(frozen=True)
class Entry:
    """The values of one method at one budget, over the seeds.

    Args:
        values: the metric, of the seeds that have it.
        nfe: the network calls counted, None if there is no value, or for real data.
        errors: the statuses of the other seeds.
    """

    values: tuple[float, ...]
    nfe: int | None = None
    errors: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """The mean over the seeds, nan if there is no value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """The standard deviation over the seeds (n - 1 in the denominator), nan for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def complete(self) -> bool:
        """Whether every seed has its value; nothing else can be the best."""
        return bool(self.values) and not self.errors


@dataclass(frozen=True, eq=False)
class Findings:
    """The rows of a study, one for each cell, and what they say.

    Raises:
        ValueError: there is no row of a method, or the rows do not compare: they are of several models, metrics or
            numbers of samples.
    """

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        generated = [row for row in self.rows if row["budget"] is not None]
        if not generated:
            raise ValueError(
                f"A report needs a row of at least one method; got {len(self.rows)} rows of none. Run a study."
            )
        for key, rows in (("model", generated), ("metric", self.rows), ("samples", self.rows)):
            kinds = sorted({str(row[key]) for row in rows})  # type: ignore[literal-required]
            if len(kinds) > 1:
                raise ValueError(
                    f"The rows of a report must have one {key} to be comparable; got {', '.join(kinds)}. "
                    "Keep studies in files of their own, or get the report from Study.run."
                )

    @property
    def metric(self) -> str:
        """The metric's name."""
        return self.rows[0]["metric"]

    @property
    def samples(self) -> int:
        """The number of samples behind every value."""
        return self.rows[0]["samples"]

    @property
    def caption(self) -> str:
        """What the figures are, in a line."""
        seeds = len({row["seed"] for row in self.rows})
        spread = f", mean ± sd over {seeds} seeds" if seeds > 1 else ""
        return f"of {self.samples} samples{spread}; lower is better"

    @property
    def methods(self) -> list[str]:
        """The methods' labels, in the order of the study."""
        return list(dict.fromkeys(row["method"] for row in self.rows if row["budget"] is not None))

    @property
    def budgets(self) -> list[int]:
        """The budgets, rising."""
        return sorted({row["budget"] for row in self.rows if row["budget"] is not None})

    @cached_property
    def entries(self) -> dict[tuple[str, int], Entry]:
        """The entry of each method, by label, at each budget."""
        keys = dict.fromkeys((row["method"], row["budget"]) for row in self.rows if row["budget"] is not None)
        return {key: _entry([row for row in self.rows if (row["method"], row["budget"]) == key]) for key in keys}

    @cached_property
    def floor(self) -> Entry | None:
        """The entry of real data, None if the study has none."""
        rows = [row for row in self.rows if row["budget"] is None]
        return _entry(rows) if rows else None

    def best(self, budget: int) -> str | None:
        """Return the method with the lowest mean at a budget; None if none has a value for every seed.

        Raises:
            ValueError: the budget is not one of the study.
        """
        if budget not in self.budgets:
            raise ValueError(f"The budget must be one of the study's, {self.budgets}; got {budget}.")
        means = {m: e.mean for (m, b), e in self.entries.items() if b == budget and e.complete}
        return min(means, key=means.__getitem__, default=None)


def _entry(rows: list[Row]) -> Entry:
    values = tuple(row["value"] for row in rows if row["value"] is not None)
    calls = [row["nfe"] for row in rows if row["status"] == OK and row["nfe"] is not None]
    return Entry(values, max(calls, default=None), tuple(row["status"] for row in rows if row["status"] != OK))
