"""A sampler but for its number of steps, which follows from what it may cost."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time
from sdekit._value import Value
from sdekit.equation import Equation
from sdekit.grid import Grid
from sdekit.methods import Method
from sdekit.noise import BrownianPath, Keyed, Noise
from sdekit.prediction import Mixture, Model, Prediction, Velocity
from sdekit.process import Process
from sdekit.sample import solve, start
from sdekit.study.contender import BudgetError, Drawn


@dataclass(frozen=True)
class Sampler(Value):
    """A method on a grid: the equation, the solver, and where the steps fall.

    Args:
        method: the equation and the solver.
        grid: the rule of the grid; in a study its number of steps does not matter.
        noise: the source of noise, whose seed does not matter; by default the Brownian path of the seed, which all
            methods of a study share, and `Keyed()` where the equation is deterministic.

    >>> from sdekit import DDIM, HEUN, VP, Denoised, Denoiser, Eps, LogSNR
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> Sampler(HEUN, Denoised(LogSNR(5))).nfe(model)  # the last step is free of the second stage
    9
    >>> Sampler(HEUN, Denoised(LogSNR(1))).within(10, model).grid
    Denoised(grid=LogSNR(steps=5))
    """

    method: Method
    grid: Grid
    noise: Noise | None = None

    def nfe(self, model: Model) -> int:
        """Return the network calls of one run, counted in a dry run on one number in the model's place."""
        with torch.no_grad():
            return solve(_Blank(model), torch.zeros(1, 1, dtype=torch.float64), self.method, self.grid).nfe

    def within(self, budget: int, model: Model) -> Sampler:
        """Return the sampler with the largest number of steps that costs at most `budget` network calls.

        Raises:
            BudgetError: one step costs more than the budget.
            ValueError: the grid's number of steps cannot be chosen.
        """

        def with_steps(steps: int) -> Sampler:
            return replace(self, grid=self.grid.with_steps(steps))

        # a step costs a call or more, so the answer lies in 1 ... budget, and the cost grows with the steps: but for a
        # model that costs more at some times than at others
        counts = range(1, budget + 1)
        if hasattr(model, "calls_at"):
            steps = max((n for n in counts if with_steps(n).nfe(model) <= budget), default=0)
        else:
            steps = bisect.bisect_right(counts, budget, key=lambda n: with_steps(n).nfe(model))
        if steps == 0:
            raise BudgetError(
                f"A budget must pay for one step; {self.method.solver} on {self.grid} asks the network "
                f"{with_steps(1).nfe(model)} times for it, got a budget of {budget}. Raise the budget."
            )
        return with_steps(steps)

    def run(self, model: Model, like: Tensor, seed: int, first: int) -> Drawn:
        """Draw the samples from number `first` of the seed on, as many and of the shape of `like`."""
        noise = driving(self.method.equation, self.noise, seed, first)
        x = start(model, tuple(like.shape), self.grid, noise)
        x, _, nfe = solve(model, x, self.method, self.grid, noise)
        return Drawn(x, nfe, len(self.grid(model.process)) - 1)

    def describe(self) -> dict[str, Any]:
        """Return its JSON, or no more than its type if it holds a function."""
        return described(self)


def driving(equation: Equation, noise: Noise | None, seed: int, first: int) -> Noise:
    """Return the noise of the samples from number `first` of a seed on.

    By default that is the Brownian path, for a stochastic equation, and else `Keyed`; both start from the same states.
    """
    chosen = noise or (BrownianPath() if equation.eta > 0 else Keyed())
    return replace(chosen, seed=seed, first=first)


def described(value: Value) -> dict[str, Any]:
    """Return a value's JSON, or no more than its type if it holds a function."""
    try:
        return value.to_json()
    except TypeError:
        return {"type": type(value).__name__}


class _Blank:
    """Stands in for a model where only the calls count: on its process, at its price, it says nothing but zero."""

    def __init__(self, model: Model) -> None:
        self.process: Process = model.process
        self.calls: int = getattr(model, "calls", 1)
        if hasattr(model, "calls_at"):
            self.calls_at = model.calls_at

    def __call__(self, x: Tensor, t: Time, /) -> Prediction:
        return _Nothing(self.process, x, as_time(t), torch.zeros_like(x), Velocity())


class _Nothing(Prediction):
    """Zero in every view, also where a view of a true answer would not be finite."""

    def mix(self, mixture: Mixture) -> Tensor:
        return self.answer
