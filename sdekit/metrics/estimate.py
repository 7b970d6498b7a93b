"""A value and how far it can be trusted: what every metric of sdekit gives."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["Estimate", "Extractor", "Measured", "floor", "influenced", "jackknife"]


class Estimate(NamedTuple):
    """A metric of finitely many samples, and its sampling error.

    value: the metric.
    stderr: the standard error of `value` over draws of the samples, with the reference held as it is; NaN where none is
        known.
    """

    value: float
    stderr: float

    def root(self) -> Estimate:
        """Return the estimate of the square root: sqrt(v), and stderr / (2 sqrt(v)) to first order."""
        value = math.sqrt(max(self.value, 0.0))
        return Estimate(value, self.stderr / (2 * value) if value > 0 else math.nan)


class Extractor(Protocol):
    """A map from samples, (n, *shape), to features, (n, d), in which metrics are measured."""

    @property
    def name(self) -> str:
        """The label of the features in a table."""
        ...

    @property
    def fingerprint(self) -> str:
        """The name, and a hash of all that determines the features: weights and preprocessing."""
        ...

    def __call__(self, samples: Tensor) -> Tensor:
        """Return the features, (n, d), float32 or float64 on the CPU."""
        ...


class Measured(Protocol):
    """A metric with an error, measured on features that can be kept."""

    @property
    def extractor(self) -> Extractor:
        """The map to the features."""
        ...

    def of(self, features: Tensor) -> Estimate:
        """Return the metric of features, (n, d), and its standard error."""
        ...


def jackknife(without: Tensor) -> float:
    """Return the standard error of a statistic from its values without each of the n samples in turn.

        stderr^2 = (n - 1) / n  sum_i (v_i - mean v)^2

    It is on average too large rather than too small, at most by a factor sqrt(2) where the statistic is quadratic about
    its minimum, as the squared distance of two equal laws is.

    Args:
        without: shape (n,).

    Reference: Efron and Stein (1981), "The jackknife estimate of variance", theorem 2.
    """
    n = len(without)
    return math.sqrt((n - 1) / n * float((without - without.mean()).square().sum())) if n > 1 else math.nan


def influenced(influence: Tensor) -> float:
    """Return the standard error of a smooth statistic from what each sample adds to it, shape (n,): sd / sqrt(n).

    The influence of x is the derivative of the statistic along (1 - e) P + e delta_x at e = 0, up to a constant. That
    is the jackknife in the limit of small deletions: it depends on no choice of blocks.

    Reference: Efron (1982), "The jackknife, the bootstrap and other resampling plans", section 6.3.
    """
    n = len(influence)
    return float(influence.std(correction=1)) / math.sqrt(n) if n > 1 else math.nan


def floor(metric: Measured, real: Tensor, n: int, seed: int = 0) -> Estimate:
    """Return the metric of n real samples: what no model can be expected to beat at that n.

    The samples are split by lot into as many sets of n as there are; the value is the mean over them.

    Args:
        metric: the metric; its reference must hold none of `real`.
        real: real samples, shape (N, *shape), N >= n.
        n: the number of generated samples that the metric is to be given.
        seed: of the lot.

    Returns:
        The mean and its standard error; of a single set, that of the metric.

    Raises:
        ValueError: n is below 1 or above N.

    >>> from sdekit.metrics import EnergyDistance
    >>> floor(EnergyDistance(torch.zeros(5, 1)), torch.ones(6, 1), n=3)
    Estimate(value=2.0, stderr=0.0)
    """
    if not 1 <= n <= len(real):
        raise ValueError(f"The floor at n needs at least n real samples, n >= 1; got n={n} of {len(real)}.")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    lot = torch.randperm(len(real), generator=generator, device="cpu").to(real.device)
    sets = [metric.of(metric.extractor(real[part])) for part in lot.split(n) if len(part) == n]
    if len(sets) == 1:
        return sets[0]
    values = torch.tensor([one.value for one in sets], dtype=torch.float64)
    return Estimate(float(values.mean()), influenced(values))
