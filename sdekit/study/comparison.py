"""Paired comparison: what two methods differ by on the same seeds, how sure that is, and who is told from whom."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy.special import fdtri, ndtr, ndtri, stdtr, stdtrit

from sdekit.study.entry import LEVEL, Entry, Goal
from sdekit.study.scores import Mean

_MOST_FLIPS = 12  # seeds: 2^12 patterns of signs are counted in no time
_SAME = 1e-9  # of the values' size: rounding, where nothing is random


@dataclass(frozen=True)
class Difference:
    """What one entry is above another, paired seed by seed: below zero, the first is better.

    All methods of a seed start from the same noise, so what the two have in common cancels.

    Args:
        deltas: first minus second, seed by seed.
        error: the standard error of their mean, nan if it cannot be known.
        dof: the degrees of freedom of that error, inf where it is taken as known.
        blocks: the number of blocks of samples behind the error, 0 if it is from the seeds alone.
    """

    deltas: tuple[float, ...]
    error: float
    dof: float
    blocks: int = 0

    @property
    def value(self) -> float:
        """The mean over the seeds."""
        return statistics.fmean(self.deltas)

    @property
    def interval(self) -> Mean:
        """The mean and its 95% interval, by Student's t."""
        reach = _quantile(self.dof) * self.error
        return Mean(self.value, self.value - reach, self.value + reach, len(self.deltas))

    @property
    def p(self) -> float:
        """The two-sided p-value of no difference, by Student's t; 1 if the error cannot be known."""
        if math.isnan(self.error):
            return 1.0
        if self.error == 0:
            return 0.0 if self.value else 1.0
        t = -abs(self.value) / self.error
        return float(2 * (ndtr(t) if math.isinf(self.dof) else stdtr(self.dof, t)))

    @property
    def flips(self) -> float:
        """The two-sided p-value by exact sign flips, which assumes no law; nan for more than 12 seeds.

        The share of the 2^S patterns of signs that give a mean at least as far from zero. S seeds can give no less
        than 2 / 2^S: three of them 0.25, six 0.031.

        Reference: Fisher (1935), The Design of Experiments, section 21.
        """
        if len(self.deltas) > _MOST_FLIPS:
            return math.nan
        far = abs(sum(self.deltas)) * (1 - _SAME)
        patterns = itertools.product((1, -1), repeat=len(self.deltas))
        sums = [abs(sum(sign * d for sign, d in zip(signs, self.deltas, strict=True))) for signs in patterns]
        return sum(total >= far for total in sums) / len(sums)

    @property
    def least(self) -> float:
        """The least that `flips` can be with so many seeds."""
        return 2.0 ** (1 - len(self.deltas))


def compare(first: Entry, second: Entry) -> Difference:
    """Return the paired difference of two entries, over the seeds that both have.

    With the values left without each of G blocks of samples (`Entry.blocks`), the same samples of both entries in a
    block, the variance of a seed's difference is known from within the seed, by the jackknife:

        w = (G - 1) / G sum_g (delta_g - mean_g delta_g)^2

    As the seeds differ by their samples alone, it is pooled with the variance over the S seeds, to S G - 1 degrees of
    freedom: so three seeds can decide. If the seeds differ by more than that explains (by an F-test at 1%), or without
    blocks, there is Student's t over the seeds, of S - 1. With one seed and no blocks, the two stderrs are added in the
    root mean square, as if the two were independent, which is the cautious side of common noise.

    Raises:
        ValueError: no seed has a value in both.

    Reference: Quenouille (1956), "Notes on bias in estimation"; Busing, Meijer and Van der Leeden (1999) for blocks.
    """
    pairs = _pairs(first, second)
    if not pairs:
        raise ValueError(
            f"A paired difference needs a seed with a value in both; got {first.seeds} and {second.seeds}. Run more."
        )
    deltas = tuple(first.values[i] - second.values[j] for i, j in pairs)
    scale = max(max(map(abs, first.values)), max(map(abs, second.values)))
    if all(abs(delta) <= _SAME * scale for delta in deltas):
        return Difference((0.0,) * len(deltas), 0.0, math.inf)
    within = [_jackknife(first.blocks[i], second.blocks[j]) for i, j in pairs if first.blocks and second.blocks]
    if within and not any(map(math.isnan, within)):
        return _by_blocks(deltas, statistics.fmean(within), len(first.blocks[0]))
    if len(deltas) == 1:
        return Difference(deltas, math.hypot(first.stderr, second.stderr), math.inf)
    return Difference(deltas, _over_seeds(deltas), len(deltas) - 1)


def _pairs(first: Entry, second: Entry) -> list[tuple[int, int]]:
    """Return the places of the seeds that two entries share."""
    places = {seed: j for j, seed in enumerate(second.seeds)}
    return [(i, places[seed]) for i, seed in enumerate(first.seeds) if seed in places]


def _over_seeds(deltas: Sequence[float]) -> float:
    spread = statistics.stdev(deltas)
    return 0.0 if spread <= _SAME * max(map(abs, deltas)) else spread / math.sqrt(len(deltas))


def _jackknife(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the variance of a difference from what it is without each block; nan if the blocks are not the same."""
    if len(first) != len(second) or len(first) < 2:
        return math.nan
    return (len(first) - 1) * statistics.pvariance([a - b for a, b in zip(first, second, strict=True)])


def _by_blocks(deltas: tuple[float, ...], within: float, blocks: int) -> Difference:
    """Return the difference with the variance of the seeds pooled with that from within them."""
    seeds, inner = len(deltas), len(deltas) * (blocks - 1)
    outer = seeds - 1
    between = statistics.variance(deltas) if outer else 0.0
    if outer and between > within * float(fdtri(outer, inner, 0.99)):
        return Difference(deltas, _over_seeds(deltas), outer)
    pooled = (outer * between + inner * within) / (outer + inner)
    return Difference(deltas, math.sqrt(pooled / seeds), outer + inner, blocks)


def _quantile(dof: float) -> float:
    return float(ndtri(1 - LEVEL / 2) if math.isinf(dof) else stdtrit(dof, 1 - LEVEL / 2))


def holm(ps: Sequence[float]) -> list[float]:
    """Return p-values adjusted so that with all below a level called true, any is false with at most that probability.

    Reference: Holm (1979), "A simple sequentially rejective multiple test procedure".

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, highest = [1.0] * len(ps), 0.0
    for place, k in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - place) * ps[k]))
        adjusted[k] = highest
    return adjusted


class Verdict(NamedTuple):
    """What is between two methods at one budget.

    Attributes:
        gap: the paired difference of the two, positive where the better mean is that of the first.
        p: its p-value, adjusted for all pairs at the budget (Holm).
    """

    gap: Difference
    p: float

    @property
    def told(self) -> bool:
        """Whether the two can be told apart: the one beats the other."""
        return self.p < LEVEL


class Place(NamedTuple):
    """A method's place at one budget.

    Attributes:
        method: its label.
        rank: one more than the number of methods that beat it; equal ranks are ties.
        entry: its values.
        behind: how far it is from the best, None for the best itself.
    """

    method: str
    rank: int
    entry: Entry
    behind: Verdict | None

    @property
    def told(self) -> bool:
        """Whether the method can be told from the best."""
        return self.behind is not None and self.behind.told


def verdicts(entries: Mapping[str, Entry], goal: Goal = Goal.LOW) -> dict[tuple[str, str], Verdict]:
    """Return the verdict on every pair of complete entries at one budget, by (better mean, other).

    All pairs are adjusted together: with 95% confidence, no "beats" at this budget is wrong, and the best of all is
    among those that cannot be told from the one with the best mean.
    """
    pairs = list(itertools.combinations(_order(entries, goal), 2))
    gaps = [compare(entries[b], entries[a]) if goal is Goal.LOW else compare(entries[a], entries[b]) for a, b in pairs]
    adjusted = holm([gap.p for gap in gaps])
    return {pair: Verdict(gap, p) for pair, gap, p in zip(pairs, gaps, adjusted, strict=True)}


def rank(
    entries: Mapping[str, Entry], pairs: Mapping[tuple[str, str], Verdict], goal: Goal = Goal.LOW
) -> tuple[Place, ...]:
    """Return the places of complete entries at one budget, from the best mean down; the others have none."""
    order, places = _order(entries, goal), []
    for k, method in enumerate(order):
        beaten = sum(pairs[other, method].told for other in order[:k])
        places.append(Place(method, 1 + beaten, entries[method], pairs.get((order[0], method))))
    return tuple(places)


def _order(entries: Mapping[str, Entry], goal: Goal) -> list[str]:
    whole = [method for method, entry in entries.items() if entry.complete]
    return sorted(whole, key=lambda method: goal.loss(entries[method].mean))
