"""The Frechet distance between two sets of features, from statistics that can be gathered piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.metrics.estimate import Estimate, Extractor, influenced
from sdekit.metrics.features import BATCH, OnFeatures, as_extractor, evaluating, points, rows
from sdekit.metrics.moments import FeatureStatistics

__all__ = ["FeatureStatistics", "FrechetDistance", "evaluating", "frechet_distance"]


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return the squared Wasserstein-2 distance of the Gaussians with the means and covariances of a and b.

        F(a, b) = |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a^(1/2) S_b S_a^(1/2))^(1/2)

    With factors S = L L^T the last trace is the sum of the singular values of L_a^T L_b. Unlike the
    eigenvalues under the root in the formula, they are exact to rounding also if n < d, and F(a, a) vanishes.

    Finite sets have a bias of order 1/n: two halves of real data are not at 0. Compare at one n, next
    to such a floor.

    Raises:
        ValueError: the dimensions or the extractors differ; a set has fewer than 2 samples; a scatter has negative
            eigenvalues.

    References:
        Dowson and Landau (1982), "The Frechet distance between multivariate normal distributions", eq. 4.
        Heusel et al. (2017), arXiv:1706.08500, eq. 6.

    >>> x = FeatureStatistics.of(torch.tensor([[0.0], [2.0]]))
    >>> y = FeatureStatistics.of(torch.tensor([[3.0], [5.0]]))
    >>> round(frechet_distance(x, y), 12)
    9.0
    """
    a.comparable(b)
    return _distance(a, b, torch.linalg.svdvals(_overlap(a, b)))


def frechet_influence(x: Tensor, a: FeatureStatistics, b: FeatureStatistics) -> tuple[float, Tensor]:
    """Return F(a, b) and the influence on it of each of the points x, (n, d), of which a are the statistics.

        q_i = 2 (mean_a - mean_b) y_i + |y_i|^2 - c_i U s U^T c_i

    with y_i = x_i - mean_a = L_a c_i and the singular values L_a^T L_b = U s V^T,
    up to a constant: the derivative of F along the point mass at x_i.
    """
    (deviations, axes), y = a.axes, x - a.mean
    left, s, _ = torch.linalg.svd(_overlap(a, b), full_matrices=False)
    c = (y @ axes / deviations) @ left
    influence: Tensor = 2 * y @ (a.mean - b.mean) + y.square().sum(dim=1) - c.square() @ s
    return _distance(a, b, s), influence


def _overlap(a: FeatureStatistics, b: FeatureStatistics) -> Tensor:
    """Return L_a^T L_b."""
    (u, p), (v, q) = a.axes, b.axes
    overlap: Tensor = (p * u).T @ (q * v)
    return overlap


def _distance(a: FeatureStatistics, b: FeatureStatistics, s: Tensor) -> float:
    value = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * s.sum()
    return max(float(value), 0.0)  # below 0 by rounding only


@dataclass(frozen=True, eq=False)
class FrechetDistance(OnFeatures):
    """Frechet distance of samples to a reference set, in the space of a feature map.

    The map decides what the number means: with the Inception network's features, after its resizing, it is
    the FID; with any other it is on another scale. The map runs in batches, without gradients; a module runs
    in evaluation mode, and each of its parts returns to the mode it was in.

    Args:
        features: a module or function from samples, (n, *shape), to features, (n, d) or more axes, which are
            flattened; None for the samples themselves.
        reference: the real samples, shape (m, *shape), m >= 2, or the statistics of their features.
        batch: number of samples given to `features` at a time.

    Raises:
        TypeError: `reference` is neither.
        ValueError: fewer than 2 samples; features that are not finite, not one row a sample, or of another
            dimension or map than the reference's; `batch` < 1.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> round(FrechetDistance(None, x)(x + 3), 12)
    9.0
    """

    features: Callable[[Tensor], Tensor] | None
    reference: Tensor | FeatureStatistics
    batch: int = BATCH

    label: ClassVar[str] = "FD"

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"A batch must hold at least 1 sample; got {self.batch}. A usual number is {BATCH}.")
        given: object = self.reference
        if not isinstance(given, Tensor | FeatureStatistics):
            raise TypeError(
                f"A reference must be a tensor of samples or FeatureStatistics; got {type(given).__name__}. Convert "
                "an array, or read published statistics by read_reference(path)."
            )
        if (len(rows(given)) if isinstance(given, Tensor) else given.n) == 1:
            raise ValueError("A covariance needs at least 2 samples; the reference holds 1. Give more.")

    @cached_property
    def extractor(self) -> Extractor:
        """The map from samples to features, in batches of `batch`."""
        return as_extractor(self.features, self.batch)

    def of(self, features: Tensor) -> Estimate:
        """Return the distance of features, shape (n, d), from the reference's, and its standard error.

        The error is that of the infinitesimal jackknife: from the influence of each sample, without drawing anew. A
        bootstrap would repeat samples, which raises the distance itself. It is right to a few per cent where the
        distance is well above its floor, and up to sqrt(2) too large at it.

        Raises:
            ValueError: n < 2; the dimension is not the reference's.
        """
        found = FeatureStatistics.of(features)
        found = FeatureStatistics(found.n, found.mean, found.scatter, self.extractor.fingerprint)
        found.comparable(self.real)
        value, influence = frechet_influence(points(features), found, self.real)
        return Estimate(value, influenced(influence))

    def statistics(self, samples: Tensor) -> FeatureStatistics:
        """Gather the statistics of the features of `samples`, shape (n, *shape)."""
        return FeatureStatistics.measured(self.extractor, samples)

    @cached_property
    def real(self) -> FeatureStatistics:
        """The statistics of the reference's features."""
        return self.statistics(self.reference) if isinstance(self.reference, Tensor) else self.reference
