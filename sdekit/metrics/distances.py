"""Distances between two sets of points, straight from their coordinates.

Like all metrics of sdekit they are computed in float64 on the CPU: a figure must not depend on the device on
which the samples were drawn, and some devices have no float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.metrics.estimate import Estimate, influenced, jackknife
from sdekit.metrics.features import OnFeatures, points, rows

__all__ = ["EnergyDistance", "SlicedWasserstein", "blocks", "distances", "points", "rows"]

_BLOCK = 2048  # rows and columns of one block of pairwise distances: 32 MB


@dataclass(frozen=True, eq=False)
class SlicedWasserstein(OnFeatures):
    """Sliced Wasserstein-2 distance to a reference set.

        SW2(a, b)^2 = mean over unit vectors u of  integral_0^1 (Q[a u](q) - Q[b u](q))^2 dq

    where Q[a u] is the quantile function of the points a projected on u. The integral is exact, also for sets
    of different size. The directions come in orthonormal frames, each vector uniform on the sphere, so that a
    shift by v is measured as |v| / sqrt(d), without error if `projections` is a multiple of the dimension d.

    Args:
        reference: the real samples, shape (m, *shape).
        projections: number of directions u.
        seed: of the directions; compare values of one seed only.
        features: a map to the features in which to measure; None for the samples themselves.

    Raises:
        ValueError: `projections` < 1; a set is empty or not finite; the shapes of the two sets differ.

    References:
        Bonneel et al. (2015), "Sliced and Radon Wasserstein barycenters of measures", section 3. For the
        frames: Rowland et al. (2019), "Orthogonal estimation of Wasserstein distances" (arXiv 1903.03784).

    >>> a = torch.tensor([[0.0], [1.0]])
    >>> SlicedWasserstein(a, projections=1)(a + 3)
    3.0
    """

    reference: Tensor
    projections: int = 256
    seed: int = 0
    features: Callable[[Tensor], Tensor] | None = None

    label: ClassVar[str] = "SW2"

    def __post_init__(self) -> None:
        rows(self.reference)
        if self.projections < 1:
            raise ValueError(f"There must be at least 1 projection; got {self.projections}. Take 256.")

    @property
    def name(self) -> str:
        return self.label if self.features is None else super().name

    def of(self, features: Tensor) -> Estimate:
        """Return SW2 between features, shape (n, d), and the reference's, and its standard error.

        The influence of a sample on SW2^2 is its potential in the optimal transports along the directions, averaged.
        """
        a, b = self._pair(features)
        total, influence = 0.0, torch.zeros(len(a), dtype=a.dtype)
        for frame in _frames(a.shape[1], self.projections, self.seed):
            x, y = a @ frame, b @ frame
            total += float(_squared_w2(x, y).sum())
            influence += _potentials(x, y).sum(dim=1)
        return Estimate(total / self.projections, influenced(influence / self.projections)).root()


@dataclass(frozen=True, eq=False)
class EnergyDistance(OnFeatures):
    """Energy distance to a reference set, as the V-statistic.

        E(a, b) = 2 mean |a_i - b_j| - mean |a_i - a_k| - mean |b_j - b_l|

    All pairs enter the means, also i = k and j = l. It is therefore the distance of the two sets as they are,
    never negative and 0 only if they agree. As an estimate for the two laws it is biased: sets of n and m
    draws of one law have the mean (1/n + 1/m) E|x - x'|, so compare at one n. Its square root is a metric;
    this is not the root. Memory is bounded, time grows as n m.

    Args:
        reference: the real samples, shape (m, *shape).
        features: a map to the features in which to measure; None for the samples themselves.

    Raises:
        ValueError: a set is empty or not finite; the shapes of the two sets differ.

    Reference: Szekely and Rizzo (2013), "Energy statistics: a class of statistics based on distances".

    >>> EnergyDistance(torch.zeros(1, 2))(torch.tensor([[3.0, 4.0]]))
    10.0
    """

    reference: Tensor
    features: Callable[[Tensor], Tensor] | None = None

    label: ClassVar[str] = "energy"

    def __post_init__(self) -> None:
        rows(self.reference)

    @property
    def name(self) -> str:
        return self.label if self.features is None else super().name

    def of(self, features: Tensor) -> Estimate:
        """Return E between features, shape (n, d), and the reference's, and its jackknife standard error."""
        a, b = self._pair(features)
        n, across, within = len(a), sums(distances, a, b) / len(b), sums(distances, a, a)
        value = float(2 * across.mean() - within.sum() / n**2) - self._spread
        if n < 2:
            return Estimate(value, jackknife(across))
        without = 2 * (across.sum() - across) / (n - 1) - (within.sum() - 2 * within) / (n - 1) ** 2
        return Estimate(value, jackknife(without))

    @cached_property
    def _spread(self) -> float:
        """The reference's own mean |b_j - b_l|, which no sample changes."""
        return float(sums(distances, self._real, self._real).sum()) / len(self._real) ** 2


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Return |a_i - b_j|, shape (n, m)."""
    # Through a matrix product, |x|^2 - 2 x.y + |y|^2, close points would lose half their digits.
    d: Tensor = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
    return d


def blocks(a: Tensor, width: int | None = None) -> tuple[Tensor, ...]:
    """Return the rows of a in parts so small that a part's pairs with `width` others fit into one block."""
    parts: tuple[Tensor, ...] = a.split(max(1, _BLOCK**2 // (width or _BLOCK)))
    return parts


def sums(pairwise: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Return sum_j pairwise(a_i, b_j), shape (n,), block by block."""
    parts = [torch.stack([pairwise(x, y).sum(dim=1) for y in blocks(b)]).sum(dim=0) for x in blocks(a)]
    return torch.cat(parts)


def _frames(d: int, count: int, seed: int) -> Iterator[Tensor]:
    """Yield `count` unit vectors of dimension d as columns, in orthonormal frames of at most d vectors."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for first in range(0, count, d):
        k = min(d, count - first)
        gauss = torch.randn(d, k, generator=generator, dtype=torch.float64, device="cpu")
        frame: Tensor = torch.linalg.qr(gauss).Q
        yield frame


def _squared_w2(a: Tensor, b: Tensor) -> Tensor:
    """Return, per column, the squared Wasserstein-2 distance on the line.

    Q[a] jumps at multiples of 1/n, Q[b] at those of 1/m: in units of 1/(n m) they are integers, hence exact.
    """
    n, m = len(a), len(b)
    jumps = torch.cat([torch.arange(0, n * m + 1, step, device=a.device) for step in (m, n)]).unique()
    start, width = jumps[:-1], jumps.diff().to(a.dtype) / (n * m)
    gap = a.sort(dim=0).values[start // m] - b.sort(dim=0).values[start // n]
    w2: Tensor = width @ gap.square()
    return w2


def _potentials(a: Tensor, b: Tensor) -> Tensor:
    """Return, per column, the optimal dual potential of each point of a for the transport to b, up to a constant.

    From one point of a to the next it rises by (x' - x) (x' + x - 2 y), with y where the mass between them goes: Q[b]
    at k/n, or the middle of its jump there.
    """
    n, m = len(a), len(b)
    (x, order), y = a.sort(dim=0), b.sort(dim=0).values
    mass = torch.arange(1, n, device=a.device) * m
    middle = (y[(mass - 1) // n] + y[mass // n]) / 2
    rises = x.diff(dim=0) * (x[1:] + x[:-1] - 2 * middle)
    potential = torch.cat([torch.zeros_like(x[:1]), rises.cumsum(dim=0)])
    potential -= potential.mean(dim=0)
    return torch.empty_like(potential).scatter_(0, order, potential)
