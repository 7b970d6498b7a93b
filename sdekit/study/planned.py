"""Contenders that are plans: given ones, and ones fitted to the model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit._value import Value
from sdekit.grid import Grid
from sdekit.guidance.together import selected
from sdekit.methods import Method
from sdekit.noise import Keyed
from sdekit.plan import Plan, run, trace, tune
from sdekit.prediction import Model, Prediction, Target, V, calls
from sdekit.process import Process
from sdekit.sample import start
from sdekit.study.contender import Drawn
from sdekit.study.sampler import Sampler, driving


@dataclass(frozen=True)
class Planned(Value):
    """Plans, of which the dearest that the budget pays for is run.

    Args:
        plans: a plan, or several of different cost.

    >>> from sdekit import DDIM, VP, Denoised, Denoiser, Eps, LogSNR
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> plans = [trace(DDIM, VP(), Denoised(LogSNR(steps))) for steps in (4, 6)]
    >>> Planned(tuple(plans)).within(5, model).plans[0].nfe
    4
    """

    plans: tuple[Plan, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "plans", (self.plans,) if isinstance(self.plans, Plan) else tuple(self.plans))

    def within(self, budget: int, model: Model) -> Planned:
        """Return the dearest of the plans that asks the network at most `budget` times.

        Raises:
            ValueError: there is none.
        """
        costs = [_cost(plan, model) for plan in self.plans]
        paid = [i for i, cost in enumerate(costs) if cost <= budget]
        if not paid:
            raise ValueError(
                f"A budget must pay for one of the plans, which ask the network {sorted(costs)} times; got a budget of "
                f"{budget}. Raise it, or trace a shorter plan."
            )
        return Planned((self.plans[max(paid, key=costs.__getitem__)],))

    def run(self, model: Model, like: Tensor, seed: int, first: int) -> Drawn:
        """Draw the samples from number `first` of the seed on, as many and of the shape of `like`."""
        plan = self.plans[0]
        noise = driving(plan.equation, None, seed, first)
        x = start(model, tuple(like.shape), plan, noise)
        return Drawn(run(plan, model, x, noise), _cost(plan, model), plan.steps)

    def describe(self) -> dict[str, Any]:
        """Return it as JSON."""
        return self.to_json()


@dataclass(frozen=True)
class Tuned(Value):
    """A method whose plan is fitted to the model for every budget, by `sdekit.plan.tune`.

    The fit is made once for all seeds, on starts of its own seed, and is no part of what a run costs: a study stores
    the plan beside its rows, and the time that the fit took in them.

    Args:
        method: a deterministic method, whose number of answers the plan has.
        grid: the rule of the grid from which the fit starts.
        starts: the number of starts that it is fitted to.
        seed: of the starts; none that the study draws from.
    """

    method: Method
    grid: Grid
    starts: int = 256
    seed: int = 10**6

    def within(self, budget: int, model: Model) -> Tuned:
        """Return it with the largest number of steps that costs at most `budget` network calls, not yet fitted.

        Raises:
            ValueError: one step costs more than the budget, or the grid's number of steps cannot be chosen.
        """
        return replace(self, grid=Sampler(self.method, self.grid).within(budget, model).grid)

    def fit(self, model: Model, like: Tensor) -> Planned:
        """Return the plan that is fitted to a model, for samples of the shape of those of `like`, (b, *shape).

        Raises:
            ValueError: the method has no plan, draws noise, or there are too few starts.
        """
        predicts = getattr(model, "predicts", None)
        grid = self.grid.suited(like.shape[1:])
        plan = trace(self.method, model.process, grid, predicts if isinstance(predicts, Target) else V())
        leading = _Leading(model)
        starts = start(model, (self.starts, *like.shape[1:]), plan, Keyed(self.seed))
        return Planned((tune(plan, leading, starts, seed=self.seed).plan,))

    def run(self, model: Model, like: Tensor, seed: int, first: int) -> Drawn:
        """Draw the samples from number `first` of the seed on, as many and of the shape of `like`."""
        return self.fit(model, like).run(model, like, seed, first)

    def describe(self) -> dict[str, Any]:
        """Return it as JSON."""
        return self.to_json()


class _Leading:
    """A model whose condition is one for each sample, asked about any number of the first ones."""

    def __init__(self, model: Model) -> None:
        self.model, self.calls = model, getattr(model, "calls", 1)
        self.parts: dict[int, Model] = {}

    @property
    def process(self) -> Process:
        return self.model.process

    def __call__(self, x: Tensor, t: Time, /) -> Prediction:
        if len(x) not in self.parts:
            self.parts[len(x)] = selected(self.model, torch.arange(len(x)))
        return self.parts[len(x)](x, t)


def _cost(plan: Plan, model: Model) -> int:
    """Return the network calls of one run."""
    return sum(calls(model, plan.asks[j][1]) for j in plan.asks_within(plan.points[0], plan.points[-1]))
