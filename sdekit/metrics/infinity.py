"""The Frechet distance of infinitely many samples, from that of fewer and fewer of those there are."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit.metrics.estimate import Estimate
from sdekit.metrics.features import points
from sdekit.metrics.frechet import FrechetDistance, frechet_distance
from sdekit.metrics.moments import FeatureStatistics

__all__ = ["Extrapolation", "FrechetInfinity"]


class Extrapolation(NamedTuple):
    """The line through Frechet distances against the reciprocal of the number of samples.

    value: where it meets 1/n = 0. fit_error: the standard error of that, from the residuals alone. r_squared: the share
    of the variance of the distances that the line explains; below 0.9 the value is not to be trusted. inverse, values:
    the points, 1/n and the mean distance.
    """

    value: float
    fit_error: float
    r_squared: float
    inverse: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class FrechetInfinity(FrechetDistance):
    """Frechet distance extrapolated to infinitely many samples: FD-infinity.

        FD_n = FD_inf + slope / n

    The samples are cut by lot into 1, 2, ... `parts` equal parts; the distance at n = N/k is the mean over the k parts,
    in which every sample counts once. That takes the bias of few samples away; the bias of few reference samples stays,
    so a model is compared with the floor as before: real samples extrapolated against the same reference.

    Args:
        features, reference, batch: as for `FrechetDistance`.
        parts: the largest number of parts, at least 3; each should hold many more samples than the features have
            dimensions, or the line is none: see `fit`.
        seed: of the lot, which starts from the sorted features: their order does not matter.

    Raises:
        ValueError: as `FrechetDistance`; `parts` < 3, or fewer than 2 samples a part.

    Reference: Chong and Forsyth (2020), arXiv:1911.07023, section 4.
    """

    parts: int = 5
    seed: int = 0

    label: ClassVar[str] = "FD_inf"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parts < 3:
            raise ValueError(f"A line and its error need at least 3 parts; got {self.parts}. Take 5.")

    def of(self, features: Tensor) -> Estimate:
        """Return the extrapolated distance and its standard error.

        That is the root of the sum of the squares of the error of the fit and of the sampling error of FD itself, which
        has the same influence of each sample to first order.
        """
        line = self.fit(features)
        return Estimate(line.value, math.hypot(line.fit_error, super().of(features).stderr))

    def fit(self, features: Tensor) -> Extrapolation:
        """Return the line through the distances of parts of features, shape (n, d), with the quality of the fit."""
        x = points(features)
        if len(x) < 2 * self.parts:
            raise ValueError(
                f"{self.parts} parts of at least 2 samples need {2 * self.parts}; got {len(x)}. Draw more."
            )
        order = torch.from_numpy(np.lexsort(x.numpy().T))
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        x = x[order[torch.randperm(len(x), generator=generator, device="cpu")]]
        cuts = [x.tensor_split(k) for k in range(1, self.parts + 1)]
        inverse = [math.fsum(1 / len(part) for part in cut) / len(cut) for cut in cuts]
        values = [math.fsum(map(self._distance, cut)) / len(cut) for cut in cuts]
        return _line(np.array(inverse), np.array(values))

    def _distance(self, x: Tensor) -> float:
        found = dataclasses.replace(FeatureStatistics.of(x), extractor=self.real.extractor)
        return frechet_distance(found, self.real)


def _line(x: np.ndarray, y: np.ndarray) -> Extrapolation:
    """Return the least squares line of y against x, at x = 0, with its error."""
    count, mean, spread = len(x), float(x.mean()), float(np.square(x - x.mean()).sum())
    slope = float((x - mean) @ y) / spread
    value = float(y.mean()) - slope * mean
    residual, whole = float(np.square(y - value - slope * x).sum()), float(np.square(y - y.mean()).sum())
    error = math.sqrt(residual / (count - 2) * (1 / count + mean**2 / spread))
    r_squared = 1 - residual / whole if whole else math.nan
    return Extrapolation(value, error, r_squared, tuple(x.tolist()), tuple(y.tolist()))
