"""What a study has found, in words: which method is best at each budget, how sure that is, what failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sdekit.study.comparison import Difference, Place
from sdekit.study.entry import Entry, Goal
from sdekit.study.findings import Findings
from sdekit.study.rows import FINE, REAL
from sdekit.study.scores import Mean
from sdekit.study.table import figures, interval


class Answer(NamedTuple):
    """What is best at a budget.

    Attributes:
        budget: the network calls.
        method: the one with the best mean, None if none has a value for every seed.
        value: its mean and interval.
        text: how sure that is.
    """

    budget: int
    method: str | None
    value: str
    text: str


def answers(findings: Findings) -> list[Answer]:
    """Return the answer at every budget."""
    return [_answer(findings, budget) for budget in findings.budgets]


def _answer(findings: Findings, budget: int) -> Answer:
    places = findings.ranking(budget)
    failed = [method for method, entry in findings.at(budget).items() if not entry.complete]
    ends = f" Not ranked, for want of values: {', '.join(failed)}." if failed else ""
    if not places:
        return Answer(budget, None, "–", f"No method has a value for every seed.{ends}")
    best, *others = places
    tied = [place for place in others if not place.told]
    beaten = [place for place in others if place.told]
    parts = []
    if tied:
        parts.append(f"It cannot be told from {_named(tied)}.")
    if beaten:
        parts.append(f"It beats {_next(beaten[0])}{_rest(beaten[1:])}.")
    if not others:
        parts.append("There is nothing to compare it with.")
    if findings.floor:
        parts.append(_floor(best.entry, findings.floor, findings.goal))
    if gaps := findings.behind_fine(budget):
        parts.append(_fine(gaps))
    return Answer(budget, best.method, interval(best.entry), " ".join(parts) + ends)


def _named(tied: Sequence[Place]) -> str:
    """Name up to three methods with their p, and count the others."""
    named = [f"{place.method} ({p_value(place.behind.p)})" for place in tied[:3] if place.behind]
    if len(tied) > 3:
        named.append(f"{len(tied) - 3} more")
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"


def _next(place: Place) -> str:
    assert place.behind is not None
    gap = place.behind.gap.interval
    return f"{place.method} by {between(gap)}, {p_value(place.behind.p)}"


def _rest(beaten: Sequence[Place]) -> str:
    if not beaten:
        return ""
    most = max(place.behind.p for place in beaten if place.behind)
    others = "one more method" if len(beaten) == 1 else f"{len(beaten)} more methods"
    return f", and {others} ({p_value(most)}{' or less' if len(beaten) > 1 and most >= 0.001 else ''})"


def _floor(best: Entry, floor: Entry, goal: Goal) -> str:
    ours, real = best.interval, floor.interval
    if real.low <= ours.high and ours.low <= real.high:
        return f"Its interval overlaps that of {REAL}, {interval(floor)}."
    ratio = ours.value / real.value if real.value > 0 and goal is Goal.LOW else 0.0
    return f"{REAL.capitalize()} gets {interval(floor)}" + (f", {ratio:.3g} times less." if ratio > 1 else ".")


def _fine(gaps: Mapping[str, Difference]) -> str:
    """Say which methods have reached the fine solution."""
    there = [method for method, gap in gaps.items() if gap.interval.low <= 0]
    if not there:
        return f"Every method is worse than the {FINE}."
    if len(there) == len(gaps) > 1:
        return f"No method can be told to be worse than the {FINE}."
    return f"As good as the {FINE}, so far as can be told: {', '.join(there)}."


def p_value(p: float) -> str:
    """Return "p = 0.012", or "p < 0.001".

    >>> p_value(0.0123), p_value(1e-9), p_value(1.0)
    ('p = 0.012', 'p < 0.001', 'p = 1')
    """
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def between(mean: Mean) -> str:
    """Return a mean with the ends of its interval, "0.520 (0.480 to 0.560)"."""
    value, low, high = (figures(number, math.nan) for number in (mean.value, mean.low, mean.high))
    return value if math.isnan(mean.high) else f"{value} ({low} to {high})"


def method_notes(findings: Findings) -> list[str]:
    """Return what must be said of how sure any comparison of this study can be."""
    seeds = len(findings.seeds)
    blocks = {v.gap.blocks for budget in findings.budgets for v in findings.verdicts(budget).values()}
    notes = [
        f"Methods are compared in pairs, seed by seed, over {seeds} seed{'s' * (seeds > 1)}, for all of them start "
        "from the same noise. p-values are two-sided and adjusted for all pairs at a budget (Holm): with 95% "
        "confidence no “beats” at that budget is wrong."
    ]
    if blocks and blocks != {0}:
        count = max(blocks)
        notes.append(
            f"The error of a difference is from {count} blocks of samples within each seed (jackknife, the same "
            "samples of both methods left out), pooled with the spread over the seeds."
        )
    elif seeds > 1:
        notes.append(
            f"The error of a difference is from the spread over {seeds} seeds alone, by Student's t with {seeds - 1} "
            f"degree{'s' * (seeds > 2)} of freedom. Sign flips, which assume no law, can give no p below "
            f"{2.0 ** (1 - seeds):.2g} with {seeds} seeds. Blocks of samples decide more: see resample()."
        )
    return notes
