"""Metrics on samples: how far a set of samples is from a reference set, with a standard error; lower is better.

`Precision`, `Recall`, `Density` and `Coverage` alone have `higher_is_better`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from sdekit.metrics.classifier import ImageClassifier, ImageFeatures, image_classifier, image_features
from sdekit.metrics.digits import digit_classifier, digit_features
from sdekit.metrics.distances import EnergyDistance, SlicedWasserstein
from sdekit.metrics.estimate import Estimate, Extractor, floor
from sdekit.metrics.exact import Wasserstein
from sdekit.metrics.features import FeatureMap, Identity
from sdekit.metrics.frechet import FrechetDistance, frechet_distance
from sdekit.metrics.inception import Inception
from sdekit.metrics.infinity import Extrapolation, FrechetInfinity
from sdekit.metrics.kernel import GaussianKernel, Kernel, KernelDistance, PolynomialKernel
from sdekit.metrics.manifold import Coverage, Density, Precision, Recall
from sdekit.metrics.moments import FeatureStatistics, read_reference
from sdekit.metrics.paired import PairedMedian, PairedRMSE

__all__ = [
    "Coverage",
    "Density",
    "EnergyDistance",
    "Estimate",
    "Extractor",
    "Extrapolation",
    "FeatureMap",
    "FeatureStatistics",
    "FrechetDistance",
    "FrechetInfinity",
    "GaussianKernel",
    "Identity",
    "ImageClassifier",
    "ImageFeatures",
    "Inception",
    "Kernel",
    "KernelDistance",
    "Metric",
    "PairedMedian",
    "PairedRMSE",
    "PolynomialKernel",
    "Precision",
    "Recall",
    "SlicedWasserstein",
    "Wasserstein",
    "digit_classifier",
    "digit_features",
    "floor",
    "frechet_distance",
    "image_classifier",
    "image_features",
    "read_reference",
]


class Metric(Protocol):
    """A distance from samples, (n, *shape), to a reference that the metric holds; lower is better.

    All metrics of sdekit follow it, and any function object with a `name` can stand beside them. Those of sdekit also
    have `extractor`, the map from samples to features, and `of`, from features to an `Estimate`.
    """

    @property
    def name(self) -> str:
        """The label of the metric in a table."""
        ...

    def __call__(self, samples: Tensor) -> float:
        """Return the distance of `samples`, shape (n, *shape), from the reference."""
        ...
