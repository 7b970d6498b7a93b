"""What a study in a file may name: data, features and metrics, those of sdekit and your own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

import sdekit.data
import sdekit.metrics
from sdekit._value import suggest
from sdekit.metrics import FeatureStatistics, FrechetDistance, read_reference
from sdekit.metrics.features import OnFeatures, as_extractor

T = TypeVar("T")


class Registry(Generic[T]):
    """Things to be made by name.

    >>> PAIRS = Registry("a pair")
    >>> PAIRS.add("equal", lambda both: (both, both))
    >>> PAIRS("equal", both=3)
    (3, 3)
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.makers: dict[str, Callable[..., T]] = {}

    def add(self, name: str, make: Callable[..., T]) -> None:
        """Know a name: make(**settings) returns the thing.

        Raises:
            ValueError: the name is taken.
        """
        if name in self.makers:
            raise ValueError(f"Names must differ; {self.what} called {name!r} is known. Take another name.")
        self.makers[name] = make

    def __call__(self, name: str, /, **settings: Any) -> T:
        """Make the thing of that name.

        Raises:
            ValueError: the name or a setting is unknown, or a setting is missing.
        """
        if name not in self.makers:
            raise ValueError(f"There is no {self.what} called {name!r}. {suggest(str(name), list(self.makers))}")
        make = self.makers[name]
        known = [p.name for p in inspect.signature(make).parameters.values() if p.kind != p.VAR_KEYWORD]
        for setting in settings:
            if setting not in known:
                raise ValueError(f"The {self.what} {name!r} has no setting {setting!r}. {suggest(setting, known)}")
        try:
            inspect.signature(make).bind(**settings)
        except TypeError as error:
            raise ValueError(
                f"The {self.what} {name!r} needs its settings: {error}. It has {sorted(known)}."
            ) from error
        return make(**settings)


DATA: Registry[Tensor] = Registry("data set")
"""Tensors of samples or labels: "digits-test", "digits-test-labels", and so on for mnist and patches."""

FEATURES: Registry[Callable[[Tensor], Tensor]] = Registry("feature map")
"""Maps from samples to features: "digits", "mnist", "patches" by classifiers of these, "inception"."""

METRICS: Registry[Callable[[Tensor], float]] = Registry("metric")
"""Metrics by the names of their classes; their `reference` and `features` are named, other settings as in the class."""


def data(name: str) -> Tensor:
    """Return the data of a name, or of a file that ends in .npy or .pt.

    Raises:
        ValueError: there is none such, or something else than a tensor in it.
        OSError: the file cannot be read.
    """
    if not isinstance(name, str):
        raise ValueError(f"Data must be named, 'digits-test' say, or be a path of .npy or .pt; got {name!r}.")
    path = Path(name)
    if path.suffix not in (".npy", ".pt"):
        return DATA(name)
    found = torch.from_numpy(np.load(path)) if path.suffix == ".npy" else torch.load(path, weights_only=True)
    if not isinstance(found, Tensor):
        raise ValueError(f"{path} must hold a tensor; got {type(found).__name__}.")
    return found


def _part(images: str, part: str) -> Tensor:
    found: Tensor = getattr(getattr(sdekit.data, images)(), part)
    return found


def _features(images: str) -> Callable[[Tensor], Tensor]:
    return sdekit.metrics.image_features(getattr(sdekit.data, images)())


def _metric(kind: type[Any]) -> Callable[..., Callable[[Tensor], float]]:
    def make(**settings: Any) -> Callable[[Tensor], float]:
        if not (settings.get("features") is None or callable(settings["features"])):
            settings["features"] = FEATURES(settings["features"])
        reference = settings["reference"]
        statistics = isinstance(reference, str) and reference.endswith(".npz")
        if statistics and not issubclass(kind, FrechetDistance):
            raise ValueError(
                f"A {kind.__name__} needs the samples of its reference, of which {reference} holds mean and covariance "
                "alone. Name data, or take a FrechetDistance."
            )
        if statistics:
            settings["reference"] = read_reference(reference, as_extractor(settings.get("features")))
        elif not isinstance(reference, Tensor | FeatureStatistics):
            settings["reference"] = data(reference)
        found: Callable[[Tensor], float] = kind(**settings)
        return found

    make.__signature__ = inspect.signature(kind)  # type: ignore[attr-defined]
    return make


for _images in ("digits", "mnist", "patches"):
    for _name in ("train", "test"):
        DATA.add(f"{_images}-{_name}", partial(_part, _images, _name))
        DATA.add(f"{_images}-{_name}-labels", partial(_part, _images, f"{_name}_labels"))
    FEATURES.add(_images, partial(_features, _images))
FEATURES.add("inception", lambda: sdekit.metrics.Inception())
for _kind in vars(sdekit.metrics).values():
    if inspect.isclass(_kind) and issubclass(_kind, OnFeatures) and not inspect.isabstract(_kind):
        METRICS.add(_kind.__name__, _metric(_kind))
