"""What a study has found of one model by one metric: from rows to figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

from sdekit.study.comparison import Difference, Place, Verdict, compare, rank, verdicts
from sdekit.study.entry import Entry, Goal
from sdekit.study.outcome import Outcome, gathered
from sdekit.study.pareto import Point, Reach, front, order, reach
from sdekit.study.rows import FINE, REAL

__all__ = ["Entry", "Findings", "Outcome"]

Key: TypeAlias = tuple[str, int]
"""A method's label and a budget."""


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
        generated = [outcome.draw for outcome in self._compared]
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
            kinds = sorted({str(row[key]) for row in rows if row[key] is not None})  # a model may not have loaded
            if len(kinds) > 1:
                name = "" if key in (what, "measure") else f" (its {key})"
                raise ValueError(
                    f"The rows of a report must have one {what}{name} to be comparable; got {', '.join(kinds)}. "
                    f"{_ADVICE[key]}"
                )
        self._check_once(drawn)

    def _check_once(self, drawn: Sequence[Mapping[str, Any]]) -> None:
        """Raise if a method has two cells of one budget and seed: another sampler once bore its label."""
        seen: set[tuple[Any, ...]] = set()
        for row in drawn:
            cell = row["method"], row["budget"], row["seed"]
            if cell in seen:
                at = "" if row["budget"] is None else f" at {row['budget']} calls"
                raise ValueError(
                    f"A method must have one row of a seed; {row['method']!r}{at} has several of seed {row['seed']}: "
                    "what bears this label has changed since the first of them. Give the new one a label or a file of "
                    "its own, or take the report that Study.run returns, which is of its own rows alone."
                )
            seen.add(cell)

    @property
    def model(self) -> str:
        """The model's label."""
        return str(self._compared[0].draw["model"])

    @property
    def metric(self) -> str:
        """The metric's name."""
        return next((str(o.value["metric"]) for o in self.outcomes if o.value), "no metric")

    @property
    def print(self) -> str:
        """The model's fingerprint."""
        return str(self._compared[0].draw["print"])

    @property
    def measure(self) -> str | None:
        """The fingerprint of the metric with its extractor and reference, None if there is no value."""
        return next((str(o.value["measure"]) for o in self.outcomes if o.value), None)

    @property
    def device(self) -> str | None:
        """Where the samples were drawn, as far as it is known."""
        return ", ".join(sorted({str(o.draw["device"]) for o in self._compared if o.draw["device"]})) or None

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
        return list(dict.fromkeys(o.draw["method"] for o in self._compared))

    @property
    def budgets(self) -> list[int]:
        """The budgets, rising."""
        return sorted({o.draw["budget"] for o in self._compared})

    @cached_property
    def entries(self) -> dict[Key, Entry]:
        """The entry of each method, by label, at each budget; a seed that others have there and it has not is told."""
        cells: dict[Key, list[Outcome]] = {}
        seeds: dict[int, dict[int, None]] = {}
        for outcome in self._compared:
            draw = outcome.draw
            cells.setdefault((draw["method"], draw["budget"]), []).append(outcome)
            seeds.setdefault(draw["budget"], {})[draw["seed"]] = None
        return {key: gathered(found, missing=_missing(found, seeds[key[1]])) for key, found in cells.items()}

    @cached_property
    def floor(self) -> Entry | None:
        """The entry of real data, None if the study has none."""
        real = [outcome for outcome in self.outcomes if outcome.real]
        if not real:
            return None
        held_out = max(outcome.draw["shape"][0] for outcome in real)
        return gathered(real, shared=min(1.0, self.samples / held_out))

    @cached_property
    def fine(self) -> Entry | None:
        """The entry of the fine solution of the model's flow, None if the study has none: what a solver can reach."""
        fine = [outcome for outcome in self.outcomes if outcome.fine]
        return gathered(fine, missing=_missing(fine, self.seeds)) if fine else None

    @property
    def levels(self) -> dict[str, Entry]:
        """What the methods are held against, whatever the budget: real data and the fine solution."""
        return {name: entry for name, entry in ((REAL, self.floor), (FINE, self.fine)) if entry is not None}

    def behind_fine(self, budget: int) -> dict[str, Difference]:
        """Return how much worse than the fine solution each method is at a budget, paired seed by seed: its own doing.

        The two share the model, the starts and, nearly, the samples' chance, so this is far better known than either.

        Raises:
            ValueError: the budget is not one of the study.
        """
        fine, entries = self.fine, {method: entry for method, entry in self.at(budget).items() if entry.complete}
        if fine is None or not fine.complete:
            return {}
        low = self.goal is Goal.LOW
        return {method: compare(entry, fine) if low else compare(fine, entry) for method, entry in entries.items()}

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
    def _compared(self) -> list[Outcome]:
        """The outcomes of methods at budgets."""
        return [outcome for outcome in self.outcomes if not outcome.real and not outcome.fine]

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
