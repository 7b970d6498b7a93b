"""Maximum mean discrepancies, without bias: the KID's with its cubic kernel, and that of a Gaussian one."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.metrics.distances import distances, sums
from sdekit.metrics.estimate import Estimate, jackknife
from sdekit.metrics.features import OnFeatures, rows

__all__ = ["GaussianKernel", "Kernel", "KernelDistance", "PolynomialKernel"]


class Kernel(Value):
    """A positive definite function of two points."""

    label: ClassVar[str]

    def fitted(self, reference: Tensor) -> Kernel:
        """Return the kernel with what it takes from the reference, points (m, d)."""
        return self

    @abstractmethod
    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Return k(x_i, y_j), shape (n, m), of points x, (n, d), and y, (m, d)."""


@dataclass(frozen=True)
class PolynomialKernel(Kernel):
    """k(x, y) = (x . y / d + 1)^degree: with degree 3, the kernel of the KID.

    Args:
        degree: at least 1; the distance sees moments up to it.

    Raises:
        ValueError: `degree` is below 1.

    Reference: Binkowski et al. (2018), arXiv:1801.01401, section 3.1.
    """

    degree: int = 3

    label: ClassVar[str] = "KD"

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"The degree of a kernel must be at least 1; got {self.degree}. The KID's is 3.")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        k: Tensor = (x @ y.T / x.shape[1] + 1) ** self.degree
        return k


@dataclass(frozen=True)
class GaussianKernel(Kernel):
    """k(x, y) = exp(-|x - y|^2 / (2 h^2)): sees every difference of two laws, best those of size h.

    Args:
        bandwidth: h; by default it is taken from the reference, 2 h^2 = mean |y_j - y_l|^2 over its pairs.

    Raises:
        ValueError: `bandwidth` is not positive, or the default has no two different points to go by.

    Reference: Gretton et al. (2012), "A kernel two-sample test", section 2.
    """

    bandwidth: float | None = None

    label: ClassVar[str] = "MMD2"

    def __post_init__(self) -> None:
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"The bandwidth of a kernel must be positive; got {self.bandwidth}.")

    def fitted(self, reference: Tensor) -> Kernel:
        if self.bandwidth is not None:
            return self
        return GaussianKernel(float(reference.var(dim=0, correction=1).sum().sqrt()))

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        if self.bandwidth is None:
            raise ValueError("A kernel without bandwidth must be fitted to a reference first: kernel.fitted(y).")
        k: Tensor = (distances(x, y) / self.bandwidth).square_().mul_(-0.5).exp_()
        return k


@dataclass(frozen=True, eq=False)
class KernelDistance(OnFeatures):
    """Squared maximum mean discrepancy to a reference set, as the U-statistic over all pairs.

        M(a, b) = mean_{i != k} k(a_i, a_k) + mean_{j != l} k(b_j, b_l) - 2 mean_{i, j} k(a_i, b_j)

    Without bias at any n, so it may be negative: for equal laws its mean is 0. Of a set with itself it is
    -2/n (mean_i k(a_i, a_i) - mean_{i != k} k(a_i, a_k)). With the cubic kernel in the Inception network's features it
    is the KID, here of the full sets: no subsets, whose spread is no standard error. Memory is bounded, time grows as
    n m.

    Args:
        features: a map from samples, (n, *shape), to features, (n, d); None for the samples themselves.
        reference: the real samples, shape (m, *shape), m >= 2.
        kernel: the kernel, fitted to the reference.

    Raises:
        ValueError: fewer than 2 samples in a set; a set is not finite; the dimensions differ.

    References:
        Gretton et al. (2012), "A kernel two-sample test", eq. 3.
        Binkowski et al. (2018), arXiv:1801.01401, section 3.1.

    >>> metric = KernelDistance(None, torch.tensor([[0.0], [0.0]]))
    >>> metric(torch.tensor([[1.0], [1.0]]))
    7.0
    """

    features: Callable[[Tensor], Tensor] | None
    reference: Tensor
    kernel: Kernel = PolynomialKernel()

    def __post_init__(self) -> None:
        rows(self.reference)

    @property
    def name(self) -> str:
        return f"{self.kernel.label}[{self.extractor.name}]"

    def of(self, features: Tensor) -> Estimate:
        """Return M between features, shape (n, d), and the reference's, and its jackknife standard error."""
        a, b = self._pair(features, least=2)
        n, across, within = len(a), sums(self._kernel, a, b) / len(b), _off_diagonal(self._kernel, a)
        value = float(within.sum() / (n * (n - 1)) - 2 * across.mean()) + self._spread
        if n < 3:
            return Estimate(value, math.nan)
        pairs, single = (n - 1) * (n - 2), n - 1
        without = (within.sum() - 2 * within) / pairs - 2 * (across.sum() - across) / single
        return Estimate(value, jackknife(without))

    @cached_property
    def _kernel(self) -> Kernel:
        return self.kernel.fitted(self._real)

    @cached_property
    def _spread(self) -> float:
        """The reference's own mean over pairs, which no sample changes."""
        m = len(self._real)
        return float(_off_diagonal(self._kernel, self._real).sum()) / (m * (m - 1))


def _off_diagonal(kernel: Kernel, x: Tensor) -> Tensor:
    """Return sum_{k != i} k(x_i, x_k), shape (n,)."""
    own = torch.cat([kernel(point[None], point[None])[0] for point in x])
    return sums(kernel, x, x) - own
