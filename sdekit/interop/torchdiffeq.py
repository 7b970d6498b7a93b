"""The solvers of torchdiffeq as contenders: on the probability flow in the process's own time."""

from __future__ import annotations

import bisect
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit._value import Value, suggest
from sdekit.grid import Grid, Times, Uniform
from sdekit.guidance.together import selected
from sdekit.interop.driving import library
from sdekit.noise import Keyed
from sdekit.prediction import Model, calls
from sdekit.process import Process
from sdekit.sample import start
from sdekit.study import BudgetError, Drawn
from sdekit.study.contender import Counting

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams")
ADAPTIVE = ("dopri5", "bosh3", "fehlberg2", "adaptive_heun", "dopri8")
TOLERANCES = tuple(10 ** (1 - k / 2) for k in range(15))
"""Relative and absolute, from 10 to 1e-6, of which the tightest that the budget pays for is taken."""

Rate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Torchdiffeq(Value):
    """torchdiffeq.odeint on dx/dt = alpha' x0 + sigma' eps, from t_max to t_min, with every call counted.

    A solver with fixed steps takes those of the grid. An adaptive one is given the tightest tolerance whose run stays
    within the budget, which dry runs find; they are not counted, but are in the time. Its steps are those that suit a
    whole batch, which is one of its own, from sample 0 on, so that a sample does not depend on how many are drawn at a
    time; their number must be a multiple of that batch, if it is not that of all samples.

    Args:
        solver: a method of torchdiffeq.
        grid: the rule of the grid of fixed steps.
        budget: of network calls, for adaptive steps; in a study it is the study's.
        batch: how many samples share their adaptive steps.

    Raises:
        ValueError: there is no such solver here, or batch < 1; when it is run: batches would be cut.
        BudgetError: when it is run: no tolerance is loose enough.

    Reference: https://github.com/rtqichen/torchdiffeq.
    """

    solver: str = "dopri5"
    grid: Grid = Uniform(1)
    budget: int = 0
    batch: int = 256

    def __post_init__(self) -> None:
        if self.solver not in FIXED + ADAPTIVE:
            raise ValueError(f"There is no solver called {self.solver!r} here. {suggest(self.solver, _SOLVERS)}")
        if self.batch < 1:
            raise ValueError(f"Some samples must share their steps, at least 1; got a batch of {self.batch}.")

    def within(self, budget: int, model: Model) -> Torchdiffeq:
        """Return it with the most steps, or the budget, that costs at most `budget` network calls.

        Raises:
            BudgetError: one step costs more.
        """
        if self.solver in ADAPTIVE:
            return replace(self, budget=budget)
        steps = most_steps(budget, lambda n: replace(self, grid=self.grid.with_steps(n))._cost(model))
        if steps == 0:
            raise BudgetError(f"A budget must pay for a step of {self.solver}; {budget} does not. Raise the budget.")
        return replace(self, grid=self.grid.with_steps(steps), budget=budget)

    def run(self, model: Model, like: Tensor, seed: int, first: int) -> Drawn:
        """Draw the samples from number `first` of the seed on, as many and of the shape of `like`."""
        process = model.process
        times = self._times(process)
        x = start(model, tuple(like.shape), Times(tuple(times.tolist())), Keyed(seed, first)).to(like)
        if self.solver in FIXED:
            asked = _Asked(model, self._cost(model))
            return Drawn(_end(asked, x, times, method=self.solver), asked.spent, len(times) - 1)
        if first % self.batch:
            raise ValueError(
                f"The number drawn at a time must be a multiple of the {self.batch} samples that share the steps of "
                f"{self.solver}; got samples from {first} on. Draw {self.batch} at a time, or set its `batch`."
            )
        model = model.model if isinstance(model, Counting) else model
        parts = torch.arange(len(x)).split(self.batch)
        found = [self._adaptive(selected(model, part), x[part.to(x.device)], times) for part in parts]
        return Drawn(torch.cat([drawn.x for drawn in found]), max(drawn.nfe for drawn in found))

    def describe(self) -> dict[str, Any]:
        """Return its JSON, and the version of the library."""
        return {**self.to_json(), "library": library("torchdiffeq")}

    def _times(self, process: Process) -> Tensor:
        if self.solver in FIXED:
            return self.grid(process)
        return torch.tensor([process.t_max, process.t_min], dtype=torch.float64)

    def _cost(self, model: Model) -> int:
        """Return the network calls of a run with fixed steps, by one that asks nothing."""
        asked = _Asked(model, 10**9)
        _end(lambda t, x: asked.paid(t) * x, torch.zeros(1), self._times(model.process), method=self.solver)
        return asked.spent

    def _adaptive(self, model: Model, x: Tensor, times: Tensor) -> Drawn:
        """Return the run with the tightest tolerance that the budget pays for; looser ones may cost more."""
        for tolerance in reversed(TOLERANCES):
            asked = _Asked(model, self.budget)
            try:
                return Drawn(_end(asked, x, times, method=self.solver, rtol=tolerance, atol=tolerance), asked.spent)
            except _OverBudgetError:
                continue
        raise BudgetError(
            f"A budget must pay for a run of {self.solver} at a tolerance of {TOLERANCES[0]:g}; {self.budget} does "
            "not. Raise the budget."
        )


def most_steps(budget: int, cost: Callable[[int], int]) -> int:
    """Return the most steps that a budget pays for, 0 if it pays for none; more steps cost more."""
    return bisect.bisect_right(range(1, budget + 1), budget, key=cost)


_SOLVERS = [*FIXED, *ADAPTIVE]


class _OverBudgetError(Exception):
    """More was asked than is paid for."""


class _Asked:
    """The rate of the flow, which counts what it is asked and stops where that is too much."""

    def __init__(self, model: Model, budget: int) -> None:
        self.model, self.budget, self.spent = model, budget, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.paid(t)
        return self.model(x, self._within(t)).velocity

    def paid(self, t: Tensor) -> float:
        """Count a question, and return 0."""
        self.spent += calls(self.model, self._within(t))
        if self.spent > self.budget:
            raise _OverBudgetError
        return 0.0

    def _within(self, t: Tensor) -> Tensor:
        """Return the time, or the end of the process that a trial step has passed."""
        return t.double().clamp(self.model.process.t_min, self.model.process.t_max)


def _end(rate: Rate, x: Tensor, times: Tensor, **options: Any) -> Tensor:
    found: Tensor = importlib.import_module("torchdiffeq").odeint(rate, x, times, **options)
    return found[-1]
