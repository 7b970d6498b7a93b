"""A metric as a study uses it: on features that are kept, with a fingerprint and an error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from sdekit.metrics import Estimate
from sdekit.metrics.features import Identity
from sdekit.metrics.fingerprint import fingerprint


@dataclass(frozen=True, eq=False)
class Measure:
    """A metric: one on features, with `extractor` and `of`, or any callable from samples to a number.

    Args:
        metric: the metric.
        label: what a study calls it; None for its own name.
    """

    metric: Callable[[Tensor], float]
    label: str | None = None

    @property
    def name(self) -> str:
        """The metric's label, or else its `name`, or that of the function or class."""
        if self.label is not None:
            return self.label
        named: Any = self.metric
        return str(getattr(named, "name", None) or getattr(named, "__name__", type(named).__name__))

    @cached_property
    def print(self) -> str:
        """The fingerprint of the metric with its extractor and reference."""
        return fingerprint(self.metric)

    @cached_property
    def extractor(self) -> Callable[[Tensor], Tensor]:
        """The map from samples to the features that are kept, (n, d)."""
        found: Callable[[Tensor], Tensor] = getattr(self.metric, "extractor", Identity())
        return found

    @cached_property
    def extractor_print(self) -> str:
        """The fingerprint of the extractor; one that names its own is taken at its word."""
        return str(getattr(self.extractor, "fingerprint", None) or fingerprint(self.extractor))

    @property
    def higher_is_better(self) -> bool:
        """Whether more of it is better, as of precision; a metric says so in an attribute of this name."""
        return bool(getattr(self.metric, "higher_is_better", False))

    def of(self, features: Tensor, shape: tuple[int, ...]) -> Estimate:
        """Return the metric of the features of samples of a shape; any callable sees the samples themselves."""
        if hasattr(self.metric, "of"):
            found: Estimate = self.metric.of(features)
            return Estimate(float(found.value), float(found.stderr))
        return Estimate(float(self.metric(features.reshape(-1, *shape))), math.nan)
