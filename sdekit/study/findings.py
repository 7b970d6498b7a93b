"""What a study has found of one model by one metric: from rows to figures."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

from sdekit.study.comparison import Difference, Place, Verdict, compare, rank, verdicts
from sdekit.study.entry import Entry, Goal
from sdekit.study.pareto import Point, Reach, front, order, reach
from sdekit.study.rows import OK

__all__ = ["Entry", "Findings", "Outcome"]

Key: TypeAlias = tuple[str, int]
"""A method's label and a budget."""


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


@dataclass(frozen=True, eq=False)
class Findings:
    """The outcomes of the cells of one model, and of real data, by one metric, and what they say.

    Raises:
        ValueError: there is no outcome of a method, or they do not compare: they are of several models, metrics
            (which includes the extractor and the reference) or numbers of samples.
    """

    outcomes: tuple[Outcome, ...]

    def __post_init__(self) -> None:
        drawn = [outcome.draw for outcome in self.outcomes]
        generated = [row for row in drawn if row["budget"] is not None]
        valued = [outcome.value for outcome in self.outcomes if outcome.value]
        if not generated:
            raise ValueError(
                f"A report needs a row of at least one method; got {len(drawn)} rows of none. Run a study."
            )
        for what, rows, key in (
            ("model", generated, "model"),
            ("model", generated, "print"),
            ("metric", valued, "metric"),
            ("measure", valued, "measure"),
            ("samples", drawn, "samples"),
        ):
            kinds = sorted({str(row[key]) for row in rows})
            if len(kinds) > 1:
                name = "" if key in (what, "measure") else f" (its {key})"
                raise ValueError(
                    f"The rows of a report must have one {what}{name} to be comparable; got {', '.join(kinds)}. "
                    f"{_ADVICE[key]}"
                )

    @property
    def model(self) -> str:
        """The model's label."""
        return next(str(o.draw["model"]) for o in self.outcomes if o.draw["budget"] is not None)

    @property
    def metric(self) -> str:
        """The metric's name."""
        return next((str(o.value["metric"]) for o in self.outcomes if o.value), "no metric")

    @property
    def goal(self) -> Goal:
        """Which way the metric is better: lower, unless the rows say otherwise."""
        return Goal.HIGH if any(o.value and o.value.get("higher_is_better") for o in self.outcomes) else Goal.LOW

    @property
    def samples(self) -> int:
        """The number of samples behind every value."""
        return int(self.outcomes[0].draw["samples"])

    @property
    def seeds(self) -> list[int]:
        """The seeds, rising."""
        return sorted({o.draw["seed"] for o in self.outcomes})

    @property
    def caption(self) -> str:
        """What the figures are, in a line."""
        spread = f", mean ± 95% interval over {len(self.seeds)} seeds" if len(self.seeds) > 1 else ""
        return f"of {self.samples} samples{spread}; {self.goal.value}"

    @property
    def methods(self) -> list[str]:
        """The methods' labels, in the order of the study."""
        return list(dict.fromkeys(o.draw["method"] for o in self.outcomes if o.draw["budget"] is not None))

    @property
    def budgets(self) -> list[int]:
        """The budgets, rising."""
        return sorted({o.draw["budget"] for o in self.outcomes if o.draw["budget"] is not None})

    @cached_property
    def entries(self) -> dict[Key, Entry]:
        """The entry of each method, by label, at each budget; a seed that others have there and it has not is told."""
        cells: dict[Key, list[Outcome]] = {}
        seeds: dict[int, dict[int, None]] = {}
        for outcome in self.outcomes:
            draw = outcome.draw
            if draw["budget"] is not None:
                cells.setdefault((draw["method"], draw["budget"]), []).append(outcome)
                seeds.setdefault(draw["budget"], {})[draw["seed"]] = None
        return {key: _entry(found, missing=_missing(found, seeds[key[1]])) for key, found in cells.items()}

    @cached_property
    def floor(self) -> Entry | None:
        """The entry of real data, None if the study has none."""
        real = [outcome for outcome in self.outcomes if outcome.draw["budget"] is None]
        if not real:
            return None
        held_out = max(outcome.draw["shape"][0] for outcome in real)
        return _entry(real, shared=min(1.0, self.samples / held_out))

    def at(self, budget: int) -> dict[str, Entry]:
        """Return the entries at one budget, by their methods.

        Raises:
            ValueError: the budget is not one of the study.
        """
        if budget not in self.budgets:
            raise ValueError(f"The budget must be one of the study's, {self.budgets}; got {budget}.")
        return {method: entry for (method, b), entry in self.entries.items() if b == budget}

    def best(self, budget: int) -> str | None:
        """Return the method with the best mean at a budget; None if none has a value for every seed.

        Raises:
            ValueError: the budget is not one of the study.
        """
        return next((place.method for place in self.ranking(budget)), None)

    def verdicts(self, budget: int) -> dict[tuple[str, str], Verdict]:
        """Return the verdict on every pair of methods at a budget, by (better mean, other); failures have none.

        Raises:
            ValueError: the budget is not one of the study.
        """
        entries = self.at(budget)
        if budget not in self._verdicts:
            self._verdicts[budget] = verdicts(entries, self.goal)
        return self._verdicts[budget]

    def ranking(self, budget: int) -> tuple[Place, ...]:
        """Return the places of the methods at a budget, ties told, the best mean first; failures have none.

        Raises:
            ValueError: the budget is not one of the study.
        """
        return rank(self.at(budget), self.verdicts(budget), self.goal)

    def contenders(self, budget: int) -> list[str]:
        """Return the best method at a budget and those that cannot be told from it, of which one is the best of all.

        Raises:
            ValueError: the budget is not one of the study.
        """
        return [place.method for place in self.ranking(budget) if not place.told]

    def difference(self, first: Key, second: Key) -> Difference:
        """Return first minus second, each a method at a budget, paired over the seeds; below 0, the first is lower.

        Raises:
            ValueError: there is no such entry, or they have no seed in common.
        """
        for key in (first, second):
            if key not in self.entries:
                raise ValueError(
                    f"A comparison is of a method at a budget of the study; {key} is none of {self.methods}."
                )
        return compare(self.entries[first], self.entries[second])

    def reach(self, quality: float) -> dict[str, Reach]:
        """Return of every method the fewest network calls that bring its mean, and its interval, to `quality`."""
        return {method: reach(entries, quality, self.goal) for method, entries in self.lines.items()}

    @property
    def front(self) -> tuple[Point, ...]:
        """The Pareto front of quality against time: no other entry is at once as fast and better."""
        return front({key: entry for key, entry in self.entries.items() if entry.complete}, self.goal)

    @property
    def orders(self) -> dict[str, float]:
        """The order of each method seen over its two largest budgets: -d log(mean) / d log(NFE).

        A convergence order only where the metric is an error that goes to 0; one with a floor flattens out.
        """
        return {method: order(entries) for method, entries in self.lines.items()}

    @property
    def lines(self) -> dict[str, list[Entry]]:
        """The complete entries of every method that has any, by rising budget."""
        lines: dict[str, list[Entry]] = {method: [] for method in self.methods}
        for (method, _), entry in sorted(self.entries.items(), key=lambda item: item[0][1]):
            if entry.complete and entry.nfe:
                lines[method].append(entry)
        return {method: entries for method, entries in lines.items() if entries}

    @cached_property
    def _verdicts(self) -> dict[int, dict[tuple[str, str], Verdict]]:
        return {}


_ADVICE = {
    "model": "Keep studies in files of their own, or ask for one model: report.of(model=...).",
    "print": "Two models share a label: give each its own.",
    "metric": "Ask for one metric: report.of(metric=...).",
    "measure": "The metric has changed, or its extractor or reference: keep the two in files of their own.",
    "samples": "Keep studies in files of their own, or get the report from Study.run.",
}


def _missing(found: Sequence[Outcome], seeds: Iterable[int]) -> list[int]:
    return sorted(set(seeds) - {outcome.draw["seed"] for outcome in found})


def _entry(found: Sequence[Outcome], missing: Sequence[int] = (), shared: float = 0.0) -> Entry:
    """Gather the outcomes of the seeds of one method at one budget."""
    good = [(outcome, number) for outcome in found if (number := outcome.number) is not None]
    calls = [o.draw["nfe"] for o in found if o.draw["status"] == OK and o.draw["nfe"] is not None]
    blocks = tuple(tuple((o.value or {}).get("blocks") or ()) for o, _ in good)
    seconds = [o.draw["seconds"] for o, _ in good if o.draw["seconds"] is not None]
    errors = [error for outcome in found if (error := outcome.error)]
    return Entry(
        tuple(number for _, number in good),
        max(calls, default=None),
        (*errors, *(f"no row yet of seed {seed}" for seed in missing)),
        tuple(o.draw["seed"] for o, _ in good),
        tuple(_or_nan((o.value or {}).get("stderr")) for o, _ in good),
        blocks if all(blocks) else (),
        sum(seconds) / len(seconds) if seconds else math.nan,
        shared,
    )


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else float(number)
