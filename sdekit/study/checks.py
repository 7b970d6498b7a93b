"""What a study is made of, looked over before anything is run."""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from sdekit.grid import Grid
from sdekit.methods import Method
from sdekit.plan import Plan
from sdekit.study.contender import Contender
from sdekit.study.measure import Measure
from sdekit.study.planned import Tuned
from sdekit.study.reference import Reference, check_model
from sdekit.study.rows import FINE, REAL


def whole(name: str, values: Any, least: int) -> tuple[int, ...]:
    """Return numbers as a tuple, if they are whole, of at least `least`, and one or more.

    Raises:
        TypeError: they are no sequence.
        ValueError: there are none, or one is not whole or too small.
    """
    if isinstance(values, int) or not hasattr(values, "__len__") or isinstance(values, str | bytes | Mapping):
        raise TypeError(f"{name} must be a sequence of whole numbers; got {_kind(values)}. Pass a tuple, (4,) say.")
    found = [number for number in map(_number, values) if number is not None and number >= least]
    if not found or len(found) < len(tuple(values)):
        raise ValueError(f"{name} must hold whole numbers of at least {least}, one or more; got {_told(values)}.")
    return tuple(found)


def distinct(name: str, values: tuple[int, ...]) -> None:
    """Raise a ValueError if one of the numbers is there twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must all differ; got {_told(values)}. Leave out the repeated ones.")


def check_methods(methods: Any, seeds: Sequence[int]) -> None:
    """Raise if methods are not what a study can run, by their labels, or are fitted on one of the seeds.

    Raises:
        TypeError: a method or a label is not one.
        ValueError: there are none; a label or a seed is taken.
    """
    _check_labels("methods", methods, "{'DDIM': DDIM}")
    for name, method in methods.items():
        if isinstance(method, type) or not isinstance(method, Method | Plan | Contender):
            raise TypeError(
                f"A method must be a Method, a Plan, or a contender such as Sampler; {name!r} is {_kind(method)}. "
                "Pass DDIM, Sampler(DDIM, Uniform(1)), or Function(solver), say."
            )
        if isinstance(method, Tuned) and method.seed in seeds:
            raise ValueError(f"A plan must not be fitted on a seed that it is measured on; {name!r} has {method.seed}.")
    for name, what in ((REAL, "the floor"), (FINE, "what a FlowError compares with")):
        if name in methods:
            raise ValueError(f"A method must not be called {name!r}, which names {what}; give it another label.")


def check_models(models: Any) -> None:
    """Raise if models, by their labels, are neither models nor where to find one.

    Raises:
        TypeError: a model or a label is not one.
        ValueError: there are none.
    """
    _check_labels("models", models, "{'mine': model}")
    for name, model in models.items():
        if not isinstance(model, Reference):
            check_model(model, repr(name))


def check_metrics(metric: Any, measures: Sequence[Measure]) -> None:
    """Raise if metrics are not such, or cannot be told apart in a report.

    Args:
        metric: as they are given, one or several, by labels or not.
        measures: of each.

    Raises:
        TypeError: a metric or a label is not one.
        ValueError: there are none, or two are equal or have one name.
    """
    if isinstance(metric, Mapping):
        _check_labels("metric", metric, "{'FD': FrechetDistance(None, reference)}")
    if not measures:
        raise ValueError("A study needs at least one metric; got none. Pass FrechetDistance(None, reference), say.")
    for measure in measures:
        if isinstance(measure.metric, type) or not callable(measure.metric):
            raise TypeError(
                f"metric must be a callable from samples to a number, or several; got {_kind(measure.metric)}. Pass "
                "FrechetDistance(None, reference), or a function, say."
            )
    for i, one in enumerate(measures):
        for other in measures[:i]:
            if one.print == other.print:
                raise ValueError(
                    f"Metrics must all differ; {other.name!r} and {one.name!r} are one. Leave out one of the two."
                )
            if one.name == other.name:
                raise ValueError(
                    f"Metrics must have names of their own; two are called {one.name!r}. Give them labels, as in "
                    "metric={'to train': one, 'to test': another}."
                )


def check_floor(floor: Any, shape: tuple[int, ...]) -> None:
    """Raise if there is a floor, but not of real samples of the shape of those drawn.

    Raises:
        TypeError: it is no tensor.
        ValueError: it is of another shape, or empty.
    """
    if floor is None:
        return
    if not isinstance(floor, Tensor):
        raise TypeError(f"The floor must be a tensor of real samples; got {_kind(floor)}. Convert it.")
    if floor.ndim == 0 or len(floor) == 0 or tuple(floor.shape[1:]) != shape[1:]:
        raise ValueError(
            f"The floor must hold real samples of the shape drawn, {shape[1:]} each; got a batch of shape "
            f"{tuple(floor.shape)}. Reshape one of the two."
        )


def check_grid(grid: Any) -> None:
    """Raise a TypeError if something is no grid."""
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a Grid; got {_kind(grid)}. Pass Denoised(LogSNR(1)), say.")


def _check_labels(name: str, of: Any, example: str) -> None:
    if not isinstance(of, Mapping):
        raise TypeError(f"{name} must be a mapping from labels; got {_kind(of)}. Pass {example}, say.")
    if not of:
        raise ValueError(f"A study needs at least one {name.removesuffix('s')}; got none. Pass {example}, say.")
    for label in of:
        if not isinstance(label, str) or not label.strip():
            raise TypeError(f"The labels of {name} must be strings, and not empty; got {_told(label)}. Pass {example}.")


def _number(value: Any) -> int | None:
    """Return a whole number of any kind as an int, None for what is none."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except (TypeError, ValueError):
        return None


def _kind(value: Any) -> str:
    """Return what something is, however large it may be."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself, not one of its instances"
    return _told(value) if value is None or isinstance(value, str | int | float) else type(value).__name__


def _told(value: Any) -> str:
    return reprlib.repr(value).replace("\n", " ")
