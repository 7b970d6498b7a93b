"""Distances between two sets of points, straight from their coordinates.

Like all metrics of sdekit they are computed in float64 on the CPU: a figure must not depend on the device on
which the samples were drawn, and some devices have no float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["EnergyDistance", "SlicedWasserstein", "points", "rows"]

_BLOCK = 2048  # rows and columns of one block of pairwise distances: 32 MB


def rows(samples: Tensor) -> Tensor:
    """Return samples of any shape as points, one a row, after looking whether they are fit to be measured.

    Args:
        samples: shape (n, *shape), n >= 1; the points have shape (n, d) with d the product of `shape`.

    Raises:
        TypeError: `samples` is not a tensor.
        ValueError: it is empty, has no batch axis, or is not finite.

    >>> rows(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 64])
    """
    if not isinstance(samples, Tensor):
        raise TypeError(f"Samples must be a tensor; got {type(samples).__name__}. Convert them.")
    if samples.ndim == 0 or samples.numel() == 0:
        raise ValueError(
            f"Samples must have shape (n, *shape) and not be empty; got {tuple(samples.shape)}. Draw some."
        )
    x = samples.detach().reshape(len(samples), -1)
    if not x.isfinite().all():
        bad = int((~x.isfinite()).any(dim=1).sum())
        raise ValueError(f"Samples must be finite; got nan or inf in {bad} of {len(x)}. Check their maker.")
    return x


def points(samples: Tensor) -> Tensor:
    """Return the `rows` of samples in float64 on the CPU."""
    return rows(samples).to(device="cpu", dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class SlicedWasserstein:
    """Sliced Wasserstein-2 distance to a reference set.

        SW2(a, b)^2 = mean over unit vectors u of  integral_0^1 (Q[a u](q) - Q[b u](q))^2 dq

    where Q[a u] is the quantile function of the points a projected on u. The integral is exact, also for sets
    of different size. The directions come in orthonormal frames, each vector uniform on the sphere, so that a
    shift by v is measured as |v| / sqrt(d), without error if `projections` is a multiple of the dimension d.

    Args:
        reference: the real samples, shape (m, *shape).
        projections: number of directions u.
        seed: of the directions; compare values of one seed only.

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

    name = "SW2"

    def __post_init__(self) -> None:
        rows(self.reference)
        if self.projections < 1:
            raise ValueError(f"There must be at least 1 projection; got {self.projections}. Take 256.")

    def __call__(self, samples: Tensor) -> float:
        """Return SW2 between `samples`, shape (n, *shape), and the reference; 0 is best."""
        a, b = _pair(samples, self.reference)
        frames = _frames(a.shape[1], self.projections, self.seed)
        total = sum(float(_squared_w2(a @ frame, b @ frame).sum()) for frame in frames)
        return math.sqrt(total / self.projections)


@dataclass(frozen=True, eq=False)
class EnergyDistance:
    """Energy distance to a reference set, as the V-statistic.

        E(a, b) = 2 mean |a_i - b_j| - mean |a_i - a_k| - mean |b_j - b_l|

    All pairs enter the means, also i = k and j = l. It is therefore the distance of the two sets as they are,
    never negative and 0 only if they agree. As an estimate for the two laws it is biased: sets of n and m
    draws of one law have the mean (1/n + 1/m) E|x - x'|, so compare at one n. Its square root is a metric;
    this is not the root. Memory is bounded, time grows as n m.

    Args:
        reference: the real samples, shape (m, *shape).

    Raises:
        ValueError: a set is empty or not finite; the shapes of the two sets differ.

    Reference: Szekely and Rizzo (2013), "Energy statistics: a class of statistics based on distances".

    >>> EnergyDistance(torch.zeros(1, 2))(torch.tensor([[3.0, 4.0]]))
    10.0
    """

    reference: Tensor

    name = "energy"

    def __post_init__(self) -> None:
        rows(self.reference)

    def __call__(self, samples: Tensor) -> float:
        """Return E between `samples`, shape (n, *shape), and the reference; 0 is best."""
        a, b = _pair(samples, self.reference)
        return 2 * _mean_distance(a, b) - _mean_distance(a, a) - self._spread

    @cached_property
    def _spread(self) -> float:
        """The reference's own mean |b_j - b_l|, which no sample changes."""
        b = points(self.reference)
        return _mean_distance(b, b)


def _pair(samples: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets as points, after making sure that they live in one space."""
    a, b = points(samples), points(reference)
    if samples.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"Samples must have the shape of the reference, {tuple(reference.shape[1:])} each; "
            f"got {tuple(samples.shape[1:])}. Reshape one of the two."
        )
    return a, b


def _frames(d: int, count: int, seed: int) -> Iterator[Tensor]:
    """Yield `count` unit vectors of dimension d as columns, in orthonormal frames of at most d vectors."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for first in range(0, count, d):
        k = min(d, count - first)
        gauss = torch.randn(d, k, generator=generator, dtype=torch.float64, device="cpu")
        frame: Tensor = torch.linalg.qr(gauss).Q
        yield frame


def _squared_w2(a: Tensor, b: Tensor) -> Tensor:
    """Return integral_0^1 (Q[a] - Q[b])^2 dq per column, the squared Wasserstein-2 distance on the line.

    Q[a] jumps at multiples of 1/n, Q[b] at those of 1/m: in units of 1/(n m) they are integers, hence exact.
    """
    n, m = len(a), len(b)
    jumps = torch.cat([torch.arange(0, n * m + 1, step, device=a.device) for step in (m, n)]).unique()
    start, width = jumps[:-1], jumps.diff().to(a.dtype) / (n * m)
    gap = a.sort(dim=0).values[start // m] - b.sort(dim=0).values[start // n]
    w2: Tensor = width @ gap.square()
    return w2


def _mean_distance(a: Tensor, b: Tensor) -> float:
    """Return mean |a_i - b_j| over all pairs, block by block."""
    total = torch.zeros((), dtype=a.dtype, device=a.device)
    for x in a.split(_BLOCK):
        for y in b.split(_BLOCK):
            # Through a matrix product, |x|^2 - 2 x.y + |y|^2, close points would lose half their digits.
            total += torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").sum()
    return float(total) / (len(a) * len(b))
