"""What metrics are measured on: features of samples, or the samples themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sdekit.metrics.estimate import Estimate, Extractor
from sdekit.metrics.fingerprint import fingerprint

__all__ = ["FeatureMap", "Identity", "OnFeatures", "as_extractor", "evaluating", "points", "rows"]

BATCH = 512


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
class Identity:
    """The samples themselves as features, flattened: (n, *shape) to (n, d), float32 or, if they are that, float64."""

    name: ClassVar[str] = "samples"
    fingerprint: ClassVar[str] = "samples"

    def __call__(self, samples: Tensor) -> Tensor:
        """Return `samples`, one a row."""
        return _stored(rows(samples))


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A module or function as a map from samples to features.

    It runs in batches, without gradients; a module runs in evaluation mode, and each of its parts returns to the mode
    it was in. The features are float32 or, if the map gives that, float64.

    Args:
        map: from samples, (n, *shape), to features, (n, d) or more axes, which are flattened. Its `name` labels it.
        batch: number of samples given to it at a time.

    Raises:
        ValueError: `batch` < 1; features that are not finite or not one row a sample.

    >>> FeatureMap(torch.tanh)(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 64])
    """

    map: Callable[[Tensor], Tensor]
    batch: int = BATCH

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"A batch must hold at least 1 sample; got {self.batch}. A usual number is {BATCH}.")

    @property
    def name(self) -> str:
        """The name of the map: its `name`, or that of the function or class."""
        label = getattr(self.map, "name", None) or getattr(self.map, "__name__", None)
        return str(label or type(self.map).__name__)

    @cached_property
    def fingerprint(self) -> str:
        """The name and a hash of the map's content: a module's weights, a function's code."""
        return f"{self.name}:{fingerprint(self.map)}"

    def __call__(self, samples: Tensor) -> Tensor:
        """Return the features of `samples`, shape (n, *shape), on the CPU."""
        rows(samples)  # raises for a nan among the samples, before the map spreads it
        with torch.no_grad(), evaluating(self.map):
            return torch.cat([self._features(x) for x in samples.detach().split(self.batch)])

    def _features(self, x: Tensor) -> Tensor:
        y = self.map(x)
        if not isinstance(y, Tensor) or y.ndim == 0 or len(y) != len(x):
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ValueError(
                f"Features must be a tensor with one row a sample, ({len(x)}, d); got {got}. Wrap the map."
            )
        return _stored(rows(y))


def as_extractor(features: Callable[[Tensor], Tensor] | None, batch: int = BATCH) -> Extractor:
    """Return what a metric's `features` stands for: the samples if it is None, itself if it is an extractor."""
    if features is None:
        return Identity()
    return features if isinstance(features, Identity | FeatureMap) else FeatureMap(features, batch)


class OnFeatures(ABC):
    """A metric on features: `of` measures them, calling it measures samples.

    A subclass is a frozen dataclass with the fields `features`, a map or None for the samples themselves, and
    `reference`, the real samples (for a Frechet distance their statistics will do).
    """

    features: Callable[[Tensor], Tensor] | None
    reference: Any
    label: ClassVar[str]

    @abstractmethod
    def of(self, features: Tensor) -> Estimate:
        """Return the metric of features, shape (n, d), as `extractor` gives them, and its standard error."""

    @cached_property
    def extractor(self) -> Extractor:
        """The map from samples to features."""
        return as_extractor(self.features)

    @property
    def name(self) -> str:
        """The label of the metric in a table, with the name of its features."""
        return f"{self.label}[{self.extractor.name}]"

    def __call__(self, samples: Tensor) -> float:
        """Return the metric of `samples`, shape (n, *shape)."""
        x = self.extractor(samples)
        if isinstance(self.extractor, Identity) and isinstance(self.reference, Tensor):
            _same_shape(samples.shape[1:], self.reference.shape[1:])
        return self.of(x).value

    @cached_property
    def _real(self) -> Tensor:
        """The reference's features, float64."""
        return points(self.extractor(self.reference))

    def _pair(self, features: Tensor, least: int = 1) -> tuple[Tensor, Tensor]:
        """Return features and the reference's as points, if there are enough and they live in one space."""
        a, b = points(features), self._real
        _same_shape(a.shape[1:], b.shape[1:])
        if min(len(a), len(b)) < least:
            raise ValueError(
                f"{self.name} needs at least {least} samples and as many in the reference; got {len(a)} and {len(b)}."
            )
        return a, b


def _same_shape(samples: torch.Size, reference: torch.Size) -> None:
    if samples != reference:
        raise ValueError(
            f"Samples must have the shape of the reference, {tuple(reference)} each; got {tuple(samples)}. "
            "Reshape one of the two."
        )


def _stored(x: Tensor) -> Tensor:
    """Return features in the type in which they are kept, on the CPU."""
    return x.to(device="cpu", dtype=torch.promote_types(x.dtype, torch.float32))


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
