"""The rows of a table, and how they are written with the fewest terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from sdekit._value import Value

Terms: TypeAlias = tuple[tuple[int, float], ...]
"""A sum: the pairs (index, coefficient)."""

ROUNDING = 1e-13
"""A coefficient smaller than this share of what it was summed from is rounding, and left out."""


@dataclass(frozen=True)
class Row(Value):
    """How one state is made: the sum of earlier states, answers and noise, each with its coefficient.

    Args:
        t: the state's time.
        states: (i, coefficient) for the states X[i].
        answers: (j, coefficient) for the model's answers D[j].
        noises: (j, coefficient) for the standard normal noises Z[j].
    """

    t: float
    states: Terms = ()
    answers: Terms = ()
    noises: Terms = ()

    @property
    def size(self) -> int:
        """The number of terms."""
        return len(self.states) + len(self.answers) + len(self.noises)

    def __add__(self, other: Row) -> Row:
        return Row(
            self.t,
            collected([*self.states, *other.states]),
            collected([*self.answers, *other.answers]),
            collected([*self.noises, *other.noises]),
        )

    def __mul__(self, c: float) -> Row:
        states, answers, noises = (
            tuple((i, c * value) for i, value in terms) for terms in (self.states, self.answers, self.noises)
        )
        return Row(self.t, states, answers, noises)

    def replaced(self, state: int, by: Row) -> Row:
        """Return the row with a state replaced by a sum."""
        c = dict(self.states)[state]
        rest = tuple(term for term in self.states if term[0] != state)
        return dataclasses.replace(self, states=rest) + by * c


def shortened(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Return the rows with inner states replaced by their own sums wherever that leaves fewer terms to add."""
    done: list[Row] = []
    for row in rows:
        for i, _ in row.states:
            candidate = row.replaced(i, done[i]) if i else row
            row = candidate if candidate.size < row.size else row
        done.append(row)
    return tuple(done)


def without_memory(rows: Sequence[Row], needed: Collection[int]) -> dict[int, Row]:
    """Return the rows that remain if no state is made but to be `needed`: to be asked about, or as an outcome.

    A corrector keeps the corrected state beside the predicted one, though the two differ by answers only: the former is
    then written as a sum of the latter and those, and its row goes. Rows are returned by their numbers.
    """
    sums: dict[int, Row] = {}
    kept: dict[int, Row] = {}
    for i, row in enumerate(rows):
        aside = _beside(rows, i, needed) if i not in needed else None
        for k, _ in row.states:
            if k in sums:
                row = row.replaced(k, sums[k])
        if aside is not None:
            sums[i] = aside
        else:
            kept[i] = row
    return kept if sum(row.size for row in kept.values()) < sum(row.size for row in rows) else dict(enumerate(rows))


def _beside(rows: Sequence[Row], i: int, needed: Collection[int]) -> Row | None:
    """Return state i as a sum of a needed one, made just before from the same state, and of answers; or None."""
    if len(rows[i].states) != 1 or rows[i].noises:
        return None
    ((base, c),) = rows[i].states
    for k in range(i - 1, 0, -1):
        if k in needed and len(rows[k].states) == 1 and rows[k].states[0][0] == base and not rows[k].noises:
            ratio = c / rows[k].states[0][1]
            return rows[i] + rows[k] * -ratio + Row(rows[i].t, ((k, ratio),)) if 1e-6 < abs(ratio) < 1e6 else None
    return None


def collected(terms: Iterable[tuple[int, float]]) -> Terms:
    """Sum the coefficients of each index, and leave out what cancels."""
    total: dict[int, float] = {}
    size: dict[int, float] = {}
    for i, c in terms:
        total[i] = total.get(i, 0.0) + c
        size[i] = size.get(i, 0.0) + abs(float(c))
    return tuple((i, c) for i, c in sorted(total.items()) if abs(float(c)) > ROUNDING * size[i])
