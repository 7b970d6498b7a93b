"""Contenders that are plans: given ones, and ones fitted to the model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
from sdekit.study.claims import Claims
from sdekit.study.contender import BudgetError, Drawn
from sdekit.study.failure import Failure, KnownError
from sdekit.study.sampler import Sampler, driving
from sdekit.study.storage import Store

_FITTING = threading.Lock()  # derivatives forwards, which a fit takes, are one thread's business


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
            BudgetError: there is none.
        """
        costs = [_cost(plan, model) for plan in self.plans]
        paid = [i for i, cost in enumerate(costs) if cost <= budget]
        if not paid:
            raise BudgetError(
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
    the plan beside its rows, and the time that the fit took in them. Where it fails, each of the seeds has a row that
    says why, and the next run tries again.

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

        The times of its answers are not known before the fit; of a model that costs more at some times than at others,
        each is taken to cost the most.

        Raises:
            BudgetError: one step costs more than the budget.
            ValueError: the grid's number of steps cannot be chosen.
        """
        return replace(self, grid=Sampler(self.method, self.grid).within(budget, _Dear(model)).grid)

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


class _Dear:
    """A model at the most that it costs at any time."""

    def __init__(self, model: Model) -> None:
        self.model, self.process, self.calls = model, model.process, calls(model)

    def __call__(self, x: Tensor, t: Time, /) -> Prediction:
        """Ask the model."""
        return self.model(x, t)


def once(key: str, fit: Callable[[], Planned], store: Store, claims: Claims) -> tuple[Planned, float]:
    """Return a fitted plan and the seconds that the fit took: from the store, or made now and stored.

    Args:
        key: the fingerprint of what determines the plan.
        fit: makes it.
        store: where plans lie, and the failure of a fit with the run that has tried it.
        claims: of the run, which tries a fit that fails no second time.

    Raises:
        KnownError: the fit has failed, now or before in this run.
    """

    def find() -> tuple[Planned, float] | None:
        stored = store.plan(key) or {}
        if stored.get("run") == claims.run:
            raise KnownError(Failure(*stored["failure"]))
        return (Planned.from_json(stored["planned"]), float(stored["seconds"])) if "planned" in stored else None

    def make() -> tuple[Planned, float]:
        with _FITTING:
            begun = time.perf_counter()
            try:
                planned = fit()
            except Exception as error:
                failure = Failure.of(error)
                store.keep_plan(key, {"run": claims.run, "failure": failure})
                raise KnownError(failure) from error
            seconds = round(time.perf_counter() - begun, 6)
        store.keep_plan(key, {"planned": planned.to_json(), "seconds": seconds})
        return planned, seconds

    return claims.once(key, find, make)


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
