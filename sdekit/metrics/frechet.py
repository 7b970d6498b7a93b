"""The Frechet distance between two sets of features, from statistics that can be gathered piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor, nn

from sdekit.metrics.distances import points, rows

__all__ = ["FeatureStatistics", "FrechetDistance", "frechet_distance"]


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Number, mean and scatter of a set of features: all that the Frechet distance needs to know of it.

        mean = 1/n sum_i x_i,    scatter = sum_i (x_i - mean) (x_i - mean)^T

    Kept in float64 on the CPU. Statistics of parts merge into those of the whole, in whatever parts it comes.

    Args:
        n: number of samples, at least 1.
        mean: shape (d,), float64.
        scatter: shape (d, d), float64, symmetric.

    Raises:
        ValueError: n < 1; the shapes do not fit; a number is not finite.
        TypeError: `mean` or `scatter` is not a float64 tensor.

    >>> FeatureStatistics.of(torch.tensor([[0.0], [2.0]])).covariance
    tensor([[2.]], dtype=torch.float64)
    """

    n: int
    mean: Tensor
    scatter: Tensor

    def __post_init__(self) -> None:
        d = self.mean.numel()
        if self.n < 1 or self.mean.shape != (d,) or self.scatter.shape != (d, d):
            raise ValueError(
                "Statistics need n >= 1, a mean of shape (d,) and a scatter of shape (d, d); got "
                f"n = {self.n}, {tuple(self.mean.shape)}, {tuple(self.scatter.shape)}. Gather them with `of`."
            )
        if self.mean.dtype != torch.float64 or self.scatter.dtype != torch.float64:
            raise TypeError(
                f"Statistics must be float64; got {self.mean.dtype} and {self.scatter.dtype}. "
                "Sum in float64 from the start, as FeatureStatistics.of does."
            )
        if not (self.mean.isfinite().all() and self.scatter.isfinite().all()):
            raise ValueError("Statistics must be finite; got nan or inf. Check the features.")

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Gather the statistics of features, shape (n, d); more axes are flattened into d.

        Raises:
            ValueError: `features` is empty or not finite.
        """
        x = points(features)
        mean = x.mean(dim=0)
        centred = x - mean
        return cls(len(x), mean, centred.T @ centred)

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Return the statistics of both sets together.

            mean = mean_a + (n_b / n) delta,   scatter = scatter_a + scatter_b + (n_a n_b / n) delta delta^T

        with n = n_a + n_b and delta = mean_b - mean_a.

        Raises:
            ValueError: the features have different dimensions.

        Reference: Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance", eq. 1.5b.
        """
        _same_dimension(self, other)
        n = self.n + other.n
        delta = other.mean - self.mean
        mean = self.mean + (other.n / n) * delta
        scatter = self.scatter + other.scatter + (self.n * other.n / n) * torch.outer(delta, delta)
        return FeatureStatistics(n, mean, scatter)

    @property
    def covariance(self) -> Tensor:
        """The unbiased covariance, scatter / (n - 1), shape (d, d).

        Raises:
            ValueError: n < 2, where there is none.
        """
        if self.n < 2:
            raise ValueError(f"A covariance needs at least 2 samples; got n = {self.n}. Draw more.")
        return self.scatter / (self.n - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return the squared Wasserstein-2 distance of the Gaussians with the means and covariances of a and b.

        F(a, b) = |mean_a - mean_b|^2 + tr S_a + tr S_b - 2 tr (S_a^(1/2) S_b S_a^(1/2))^(1/2)

    With factors S = L L^T the last trace is the sum of the singular values of L_a^T L_b. Unlike the
    eigenvalues under the root in the formula, they are exact to rounding also if n < d, and F(a, a) vanishes.

    Finite sets have a bias of order 1/n: two halves of real data are not at 0. Compare at one n, next
    to such a floor.

    Raises:
        ValueError: the dimensions differ; a set has fewer than 2 samples; a scatter has negative eigenvalues.

    References:
        Dowson and Landau (1982), "The Frechet distance between multivariate normal distributions", eq. 4.
        Heusel et al. (2017), arXiv:1706.08500, eq. 6.

    >>> x = FeatureStatistics.of(torch.tensor([[0.0], [2.0]]))
    >>> y = FeatureStatistics.of(torch.tensor([[3.0], [5.0]]))
    >>> round(frechet_distance(x, y), 12)
    9.0
    """
    _same_dimension(a, b)
    overlap = torch.linalg.svdvals(_factor(a.covariance).T @ _factor(b.covariance)).sum()
    value = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * overlap
    return max(float(value), 0.0)  # below 0 by rounding only


def _factor(covariance: Tensor) -> Tensor:
    """Return L of shape (d, rank) with covariance = L L^T."""
    values, vectors = torch.linalg.eigh(covariance)
    eps, largest = torch.finfo(values.dtype).eps, float(values.abs().max())
    if float(values[0]) < -math.sqrt(eps) * largest:  # more than any summation leaves
        raise ValueError(
            f"A covariance must not have negative eigenvalues; got {float(values[0]):.3g} next to "
            f"{float(values[-1]):.3g}. Gather the statistics with FeatureStatistics.of and merge."
        )
    kept = values > len(values) * eps * largest  # eigh cannot tell the others from 0, and some come out below
    factor: Tensor = vectors[:, kept] * values[kept].sqrt()
    return factor


def _same_dimension(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"Features must have one dimension; got {len(a.mean)} and {len(b.mean)}. Use one map for both."
        )


@dataclass(frozen=True, eq=False)
class FrechetDistance:
    """Frechet distance of samples to a reference set, in the space of a feature map.

    The map decides what the number means: with the Inception network's features, after its resizing, it is
    the FID; with any other it is on another scale. The map runs in batches, without gradients; a module runs
    in evaluation mode, and each of its parts returns to the mode it was in.

    Args:
        features: a module or function from samples, (n, *shape), to features, (n, d) or more axes, which are
            flattened; None for the samples themselves.
        reference: the real samples, shape (m, *shape), m >= 2.
        batch: number of samples given to `features` at a time.

    Raises:
        ValueError: fewer than 2 samples; features that are not finite, not one row a sample, or of another
            dimension than the reference's; `batch` < 1.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> round(FrechetDistance(None, x)(x + 3), 12)
    9.0
    """

    features: Callable[[Tensor], Tensor] | None
    reference: Tensor
    batch: int = 512

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"A batch must hold at least 1 sample; got {self.batch}. A usual number is 512.")
        if len(rows(self.reference)) < 2:
            raise ValueError("A covariance needs at least 2 samples; the reference holds 1. Give more.")

    @property
    def name(self) -> str:
        """The label of the metric in a table: FD and the name of its feature map."""
        if self.features is None:
            return "FD[samples]"
        label = getattr(self.features, "name", None) or getattr(self.features, "__name__", None)
        return f"FD[{label or type(self.features).__name__}]"

    def __call__(self, samples: Tensor) -> float:
        """Return the Frechet distance between `samples`, shape (n, *shape), and the reference; 0 is best."""
        return frechet_distance(self.statistics(samples), self._reference_statistics)

    def statistics(self, samples: Tensor) -> FeatureStatistics:
        """Gather the statistics of the features of `samples`, shape (n, *shape), batch by batch."""
        rows(samples)  # raises for a nan among the samples, before the feature map spreads it
        with torch.no_grad(), evaluating(self.features):
            parts = [FeatureStatistics.of(self._features(x)) for x in samples.split(self.batch)]
        return reduce(FeatureStatistics.merge, parts)

    @cached_property
    def _reference_statistics(self) -> FeatureStatistics:
        return self.statistics(self.reference)

    def _features(self, x: Tensor) -> Tensor:
        if self.features is None:
            return x
        y = self.features(x)
        if not isinstance(y, Tensor) or y.ndim == 0 or len(y) != len(x):
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"Features must be a tensor with one row a sample, ({len(x)}, d); got {got}. Wrap the map."
            )
        return y


@contextmanager
def evaluating(features: object) -> Iterator[None]:
    """Put a module in evaluation mode, and every one of its parts back into the mode it was in."""
    modules = list(features.modules()) if isinstance(features, nn.Module) else []
    modes = [module.training for module in modules]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
