"""Metrics on samples: how far a set of samples is from a reference set. Lower is better, 0 is best."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sdekit.metrics.digits import DigitClassifier, DigitFeatures, digit_classifier, digit_features
from sdekit.metrics.distances import EnergyDistance, SlicedWasserstein
from sdekit.metrics.frechet import FeatureStatistics, FrechetDistance, frechet_distance

__all__ = [
    "DigitClassifier",
    "DigitFeatures",
    "EnergyDistance",
    "FeatureStatistics",
    "FrechetDistance",
    "Metric",
    "SlicedWasserstein",
    "digit_classifier",
    "digit_features",
    "frechet_distance",
]


class Metric(Protocol):
    """A distance from samples, (n, *shape), to a reference that the metric holds; lower is better.

    All metrics of sdekit follow it, and any function object with a `name` can stand beside them.
    """

    @property
    def name(self) -> str:
        """The label of the metric in a table."""
        ...

    def __call__(self, samples: Tensor) -> float:
        """Return the distance of `samples`, shape (n, *shape), from the reference."""
        ...
