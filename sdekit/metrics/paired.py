"""How far each sample is from the one it should be: a solver's error on the same starts and the same noise."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.metrics.estimate import Estimate, influenced
from sdekit.metrics.features import OnFeatures, rows

__all__ = ["PairedMedian", "PairedRMSE"]


class Paired(OnFeatures):
    """A metric of the errors of samples one by one; sample i belongs to sample i of the reference."""

    features = None

    def __post_init__(self) -> None:
        rows(self.reference)

    @property
    def name(self) -> str:
        return self.label

    def of(self, features: Tensor) -> Estimate:
        """Return the metric of samples, one a row, and its standard error.

        Raises:
            ValueError: there are more samples than references, or they have another shape.
        """
        if len(features) > len(self.reference):
            raise ValueError(
                f"Sample i is compared with reference i; got {len(features)} samples and {len(self.reference)} "
                "references. Draw the references from the same starts."
            )
        a, b = self._pair(features)
        return self._measure((a - b[: len(a)]).square().mean(dim=1))

    @abstractmethod
    def _measure(self, squares: Tensor) -> Estimate: ...


@dataclass(frozen=True, eq=False)
class PairedRMSE(Paired):
    """Root mean square error of samples against their references, over samples and coordinates.

        sqrt(1/n sum_i |x_i - y_i|^2 / d)

    The reference is the exact flow of an oracle, or a fine solution of the same model, from the same starts (and for
    a stochastic sampler the same Brownian paths); then it is the solver's own error, free of sampling noise and of what
    the network does not know. It says nothing of how good the samples are.

    Args:
        reference: shape (m, *shape); n <= m samples are compared with the first n.

    Raises:
        ValueError: a set is empty or not finite.

    >>> PairedRMSE(torch.zeros(4, 2))(torch.full((4, 2), 0.5))
    0.5
    """

    reference: Tensor

    label: ClassVar[str] = "RMSE"

    def _measure(self, squares: Tensor) -> Estimate:
        return Estimate(float(squares.mean()), influenced(squares)).root()


@dataclass(frozen=True, eq=False)
class PairedMedian(Paired):
    """Median over samples of the error sqrt(|x_i - y_i|^2 / d) against the reference: what a few lost ones do not move.

    Args:
        reference: shape (m, *shape); n <= m samples are compared with the first n.

    Raises:
        ValueError: a set is empty or not finite.
    """

    reference: Tensor

    label: ClassVar[str] = "median error"

    def _measure(self, squares: Tensor) -> Estimate:
        """Take half the distance of the order statistics n/2 +- sqrt(n)/2, the ends of an interval of one sigma."""
        errors, n = squares.sqrt().sort().values, len(squares)
        low, high = math.floor((n - math.sqrt(n)) / 2), math.ceil((n + math.sqrt(n)) / 2) - 1
        stderr = float(errors[high] - errors[max(low, 0)]) / 2 if n > 1 else math.nan
        return Estimate(float(torch.quantile(errors, 0.5)), stderr)
