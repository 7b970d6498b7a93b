"""What a run with chosen steps comes back with, and what can choose the steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.prediction import Model


class Status(IntEnum):
    """How the run of a sample ended.

    DONE: the time asked for was reached. BUDGET: one more step would have cost more network calls than are left.
    STUCK: no step that can be represented meets the tolerance. NOT_FINITE: the model's answer is not finite, however
    small the step.
    """

    DONE = 0
    BUDGET = 1
    STUCK = 2
    NOT_FINITE = 3


class Adapted(NamedTuple):
    """The outcome of a run whose steps were chosen on the way. A run that ends early says so in `status`.

    Attributes:
        x: the last states that were accepted, of the shape and dtype of the start.
        t: the time of each, float64, shape (B,).
        nfe: the network calls made for each sample, shape (B,).
        calls: the calls of the model, each with a batch of the samples still running.
        status: a `Status` for each sample, shape (B,).
        error: the estimated errors of a sample's steps, added up: the root mean square over its coordinates, in units
            of the marginal's scale sqrt(alpha^2 + sigma^2); shape (B,), NaN where a library keeps its estimate.
    """

    x: Tensor
    t: Tensor
    nfe: Tensor
    calls: int
    status: Tensor
    error: Tensor

    @property
    def done(self) -> Tensor:
        """Whether each sample reached the time asked for, shape (B,)."""
        return self.status == Status.DONE


class Control(Value, ABC):
    """Something that chooses the steps of a run: `Embedded`, or a solver of a library."""

    @abstractmethod
    def run(self, model: Model, x: Tensor, t: float, s: float) -> Adapted:
        """Integrate from the states `x` at the time t to the time s, both in [t_min, t_max]. See `adapt`."""


def shared(x: Tensor, t: float, nfe: int, calls: int, status: Status) -> Adapted:
    """Return the outcome of a run whose steps the whole batch has in common."""
    count = len(x)
    return Adapted(
        x=x,
        t=torch.full((count,), t, dtype=torch.float64),
        nfe=torch.full((count,), nfe),
        calls=calls,
        status=torch.full((count,), int(status)),
        error=torch.full((count,), torch.nan, dtype=torch.float64),
    )


def check_tolerances(rtol: float, atol: float, budget: int) -> None:
    """Raise ValueError if a tolerance is not positive and finite, or the budget no whole number of at least 1."""
    if not (0 < rtol < float("inf") and 0 < atol < float("inf")):
        raise ValueError(f"Tolerances must be positive and finite; got rtol={rtol}, atol={atol}.")
    if not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget must be a whole number of network calls, at least 1; got {budget!r}.")
