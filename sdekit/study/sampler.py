"""A sampler but for its number of steps, which follows from what it may cost."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time
from sdekit._value import Value
from sdekit.grid import Grid
from sdekit.methods import Method
from sdekit.prediction import Mixture, Model, Prediction, Velocity
from sdekit.process import Process
from sdekit.sample import solve


@dataclass(frozen=True)
class Sampler(Value):
    """A method on a grid: the equation, the solver, and where the steps fall.

    >>> from sdekit import DDIM, HEUN, VP, Denoised, Denoiser, Eps, LogSNR
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> Sampler(HEUN, Denoised(LogSNR(5))).nfe(model)  # the last step is free of the second stage
    9
    >>> Sampler(HEUN, Denoised(LogSNR(1))).within(10, model).grid
    Denoised(grid=LogSNR(steps=5))
    """

    method: Method
    grid: Grid

    def nfe(self, model: Model) -> int:
        """Return the network calls of one run, counted in a dry run on one number in the model's place."""
        with torch.no_grad():
            return solve(_Blank(model), torch.zeros(1, 1, dtype=torch.float64), self.method, self.grid).nfe

    def within(self, budget: int, model: Model) -> Sampler:
        """Return the sampler with the largest number of steps that costs at most `budget` network calls.

        Raises:
            ValueError: one step costs more than the budget, or the grid's number of steps cannot be chosen.
        """

        def with_steps(steps: int) -> Sampler:
            return replace(self, grid=self.grid.with_steps(steps))

        # the cost grows with the steps, and a step costs a call or more: so the answer lies in 1 ... budget
        steps = bisect.bisect_right(range(1, budget + 1), budget, key=lambda n: with_steps(n).nfe(model))
        if steps == 0:
            raise ValueError(
                f"A budget must pay for one step; {self.method.solver} on {self.grid} asks the network "
                f"{with_steps(1).nfe(model)} times for it, got a budget of {budget}. Raise the budget."
            )
        return with_steps(steps)


class _Blank:
    """Stands in for a model where only the calls count: on its process, at its price, it says nothing but zero."""

    def __init__(self, model: Model) -> None:
        self.process: Process = model.process
        self.calls: int = getattr(model, "calls", 1)

    def __call__(self, x: Tensor, t: Time, /) -> Prediction:
        return _Nothing(self.process, x, as_time(t), torch.zeros_like(x), Velocity())


class _Nothing(Prediction):
    """Zero in every view, also where a view of a true answer would not be finite."""

    def mix(self, mixture: Mixture) -> Tensor:
        return self.answer
