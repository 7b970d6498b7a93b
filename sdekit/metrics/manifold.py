"""Fidelity and diversity apart: which samples lie among the real ones, and which real ones lie among the samples.

A set's *manifold* is the union of balls about its points, each with the distance to the point's k-th nearest neighbour
in the set, itself left out, as radius. All distances are exact, and taken block by block: memory is bounded.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdekit.metrics.distances import blocks, distances
from sdekit.metrics.estimate import Estimate, influenced, jackknife
from sdekit.metrics.features import OnFeatures, rows

__all__ = ["Coverage", "Density", "OnManifolds", "Precision", "Recall"]


@dataclass(frozen=True, eq=False)
class OnManifolds(OnFeatures):
    """A metric on the manifolds of two sets; larger is better, and 1 is what two draws of one law tend to at best.

    Args:
        features: a map from samples, (n, *shape), to features, (n, d); None for the samples themselves.
        reference: the real samples, shape (m, *shape), m > k.
        k: which nearest neighbour gives the radius.

    Raises:
        ValueError: `k` < 1, or a set has no k + 1 samples; a set is not finite; the dimensions differ.
    """

    features: Callable[[Tensor], Tensor] | None
    reference: Tensor
    k: int = 5

    higher_is_better: ClassVar[bool] = True

    def __post_init__(self) -> None:
        rows(self.reference)
        if self.k < 1:
            raise ValueError(f"A radius needs a neighbour, k >= 1; got {self.k}. Usual numbers are 3 and 5.")

    def of(self, features: Tensor) -> Estimate:
        """Return the metric of features, shape (n, d), and its standard error."""
        return self._measure(*self._pair(features, least=self.k + 1))

    @abstractmethod
    def _measure(self, a: Tensor, b: Tensor) -> Estimate: ...

    @cached_property
    def _radii(self) -> Tensor:
        """The radii of the reference's balls."""
        return neighbours(self._real, self.k).distance[:, -1]


@dataclass(frozen=True, eq=False)
class Precision(OnManifolds):
    """Share of the samples that lie in the manifold of the reference: how many are realistic.

        P = 1/n sum_i [some j: |a_i - b_j| <= r(b_j)]

    A single real outlier with its wide ball is enough to let a bad sample pass: see `Density`.

    Reference: Kynkaanniemi et al. (2019), arXiv:1904.06991, section 2.
    """

    k: int = 3

    label: ClassVar[str] = "precision"

    def _measure(self, a: Tensor, b: Tensor) -> Estimate:
        return _mean((_counts(a, b, self._radii) > 0).to(a.dtype))


@dataclass(frozen=True, eq=False)
class Density(OnManifolds):
    """Number of the reference's balls that a sample lies in, on average and over k: how realistic the samples are.

        D = 1/(k n) sum_i sum_j [|a_i - b_j| <= r(b_j)]

    It is not bounded by 1: that is its mean for two draws of one law; samples crowded where the real ones are have
    more. Of a set with itself it is (k + 1) / k, as each point lies in its own ball.

    Reference: Naeem et al. (2020), arXiv:2002.09797, section 3.
    """

    label: ClassVar[str] = "density"

    def _measure(self, a: Tensor, b: Tensor) -> Estimate:
        return _mean(_counts(a, b, self._radii).to(a.dtype) / self.k)


@dataclass(frozen=True, eq=False)
class Coverage(OnManifolds):
    """Share of the reference's balls that hold a sample: how much of the real variety there is.

        C = 1/m sum_j [some i: |a_i - b_j| <= r(b_j)]

    It grows with n: for two draws of one law with n = m large its mean is near 1 - 2^(-k).

    Reference: Naeem et al. (2020), arXiv:2002.09797, section 3.
    """

    label: ClassVar[str] = "coverage"

    def _measure(self, a: Tensor, b: Tensor) -> Estimate:
        change, covered = torch.zeros(len(a), dtype=a.dtype), 0
        for y, radii in zip(blocks(b, len(a)), blocks(self._radii, len(a)), strict=True):
            inside = distances(y, a) <= radii[:, None]
            count = inside.sum(dim=1)
            covered += int((count > 0).sum())
            change -= inside[count == 1].sum(dim=0)  # what is gone without a sample: the balls that it alone is in
        return Estimate(covered / len(b), jackknife(change / len(b)))


@dataclass(frozen=True, eq=False)
class Recall(OnManifolds):
    """Share of the real samples that lie in the manifold of the samples: how much of the real variety there is.

        R = 1/m sum_j [some i: |b_j - a_i| <= r(a_i)]

    Samples spread too widely have wide balls, and so a high recall: see `Coverage`.

    Reference: Kynkaanniemi et al. (2019), arXiv:1904.06991, section 2.
    """

    k: int = 3

    label: ClassVar[str] = "recall"

    def _measure(self, a: Tensor, b: Tensor) -> Estimate:
        near = neighbours(a, self.k + 1) if len(a) > self.k + 1 else neighbours(a, self.k)
        change, covered = torch.zeros(len(a), dtype=a.dtype), 0
        for y in blocks(b, len(a)):
            d = distances(y, a)
            inside = d <= near.distance[:, self.k - 1]
            covered += int(inside.any(dim=1).sum())
            change += _recall_change(inside, d <= near.distance[:, -1], near.which[:, : self.k])
        return Estimate(covered / len(b), jackknife(change / len(b)))


class Neighbours(NamedTuple):
    """The nearest neighbours of points, the nearest first: their distances and indices, both (n, k)."""

    distance: Tensor
    which: Tensor


def neighbours(x: Tensor, k: int) -> Neighbours:
    """Return the k nearest neighbours of every point, (n, d), among the others."""
    found, first = [], 0
    for part in blocks(x, len(x)):
        d = distances(part, x)
        d[range(len(part)), range(first, first + len(part))] = math.inf
        found.append(d.topk(k, dim=1, largest=False))
        first += len(part)
    return Neighbours(torch.cat([f.values for f in found]), torch.cat([f.indices for f in found]))


def _counts(a: Tensor, b: Tensor, radii: Tensor) -> Tensor:
    """Return in how many of the balls about b each of the points a lies, (n,)."""
    return torch.cat([(distances(x, b) <= radii).sum(dim=1) for x in blocks(a, len(b))])


def _mean(values: Tensor) -> Estimate:
    return Estimate(float(values.mean()), influenced(values))


def _recall_change(inside: Tensor, wider: Tensor, neighbour: Tensor) -> Tensor:
    """Return how many more real points are covered without each of the samples, (n,), negative for fewer.

    Without sample i its ball is gone, and the balls of which it is among the k nearest grow to the (k+1)-th.

    Args:
        inside: whether a real point is in a sample's ball, (b, n).
        wider: whether it is in the ball with the (k+1)-th neighbour's distance, (b, n).
        neighbour: the k nearest neighbours of the samples, (n, k).
    """
    count = inside.sum(dim=1)
    real, ball = (wider & ~inside & (count <= 1)[:, None]).nonzero(as_tuple=True)
    saved = torch.zeros_like(inside)  # whether a real point would be in a ball grown for want of a sample
    saved[real[:, None], neighbour[ball]] = True
    lost = (inside & (count == 1)[:, None] & ~saved).sum(dim=0)
    gained = (saved & (count == 0)[:, None]).sum(dim=0)
    change: Tensor = gained - lost
    return change
