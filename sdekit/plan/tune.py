"""A plan fitted to a model: its grid and its coefficients, held against a fine solution."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.grid import Grid
from sdekit.plan.family import Member, adams, member_of, stretched, tau_of, widened
from sdekit.plan.fine import STEPS, Counted, Fine, solved
from sdekit.plan.fit import Loss, Probe, by_stages, descend, probe, squares
from sdekit.plan.grids import common, even
from sdekit.plan.plan import Plan
from sdekit.plan.run import run
from sdekit.prediction import Model

WIDTH = 4
"""How many past answers a row may use, beside those that it uses in the given plan."""

ROUNDS = 100
"""The runs that the default budget allows."""

LEAST = 12
"""The least number of starts."""

HELD = 4
"""One start in so many is held out."""

HALVINGS = ((4, 0.08), (2, 0.12))
"""So many candidates go on for that share of the runs each; then the best alone for the rest."""


class Errors(NamedTuple):
    """How far the outcomes of held-out starts are from the fine solution, per coordinate of x/(alpha + sigma).

    Args:
        rmse: the root of the mean square over samples, which the worst ones dominate.
        median: the median over samples of the root mean square.
    """

    rmse: float
    median: float

    @classmethod
    def of(cls, squares: Tensor) -> Errors:
        """Return the errors for the squared errors of samples, shape (B,)."""
        return cls(float(squares.mean().sqrt()), float(squares.median().sqrt()))

    def within(self, bound: Errors) -> bool:
        """Tell whether neither is larger than the bound's."""
        return self.rmse <= bound.rmse and self.median <= bound.median


class Tuned(NamedTuple):
    """What tuning has found.

    Args:
        plan: the best plan, an ordinary one.
        before: the errors of the plan that was given.
        after: the errors of the plan that is returned, never more.
        calls: the network calls spent, each on at most the whole batch of starts.
        origin: the grid from which the best plan was fitted; None if from the given plan's own numbers.
    """

    plan: Plan
    before: Errors
    after: Errors
    calls: int
    origin: Grid | None


class _Judge:
    """Compares what was tried by the held-out starts: none may be worse than the given plan in either of its errors.

    Among those the typical error decides, the mean of its root, because the few starts that lie near a border between
    modes make the mean square a matter of luck.
    """

    def __init__(self, held: Tensor, given: Tensor) -> None:
        self.held, self.before = held, Errors.of(given[held])
        self.bound = self.typical(given)

    def typical(self, squares: Tensor) -> float:
        """Return the typical error of held-out starts."""
        return float(squares[self.held].pow(0.25).mean() ** 2)

    def __call__(self, squares: Tensor) -> float:
        """Return the rank of a try, the lower the better; infinite if it may not be returned."""
        typical = self.typical(squares)
        return typical if typical < self.bound and Errors.of(squares[self.held]).within(self.before) else math.inf


class _Rival:
    """A member on its way: its best form so far, and the descent that goes on from it."""

    def __init__(self, origin: Grid | None, member: Member, descent: Iterator[tuple[Member, Tensor]]) -> None:
        self.origin, self.member, self.descent = origin, member, descent
        self.rank = self.hope = math.inf

    def advance(self, judge: _Judge, runs: int) -> int:
        """Let the descent go on for so many runs; return how many it has made."""
        made = 0
        for member, errors in itertools.islice(self.descent, max(runs, 0)):
            made += 1
            self.look(judge, member, errors)
        return made

    def look(self, judge: _Judge, member: Member, errors: Tensor) -> None:
        """Keep a member if it is the best so far; `hope` compares rivals that may not be returned yet."""
        rank = judge(errors)
        if rank < self.rank:
            self.rank, self.member = rank, member
        typical = judge.typical(errors)
        self.hope = min(self.hope, typical if math.isfinite(typical) else math.inf)


def tune(plan: Plan, model: Model, starts: Tensor, budget: int | None = None, seed: int = 0) -> Tuned:
    """Fit a plan's grid and coefficients to a model, so that its outcomes come near to a fine solution.

    Several grids, and the plan's own numbers, are fitted stage by stage by least squares; the best go on by damped
    Gauss-Newton steps through the whole run, on a robust loss. One start in four is held out, and these decide: on them
    the outcome is never worse than the given plan's. The model may be an oracle fitted to data, which costs no network
    call.

    Args:
        plan: a deterministic plan from noise to data; it gives the process, the ends, and the number of answers.
        model: a model on the plan's process; where it cannot be differentiated, less is fitted.
        starts: states at the plan's first time, shape (B, ...), B >= 12; some hundreds are better.
        budget: the most network calls, each for the whole batch or a part of it, backward passes not counted; by
            default 304 for the fine solution and 100 for each answer of the plan.
        seed: of the choice of held-out starts. The same seed gives the same plan.

    Raises:
        ValueError: the plan is stochastic, or not one from noise to data; the starts are too few or of another scale;
            the budget does not suffice for the fine solution.
        FloatingPointError: the fine solution is not finite.

    Reference: Shaul et al. 2024 (arXiv 2403.01329) fit such tables, and Tong et al. 2024 (arXiv 2405.15506) grids, by
        gradient descent through the run.

    >>> from sdekit import DPMpp2M, LogSNR, VP, GaussianMixture
    >>> from sdekit.plan import trace
    >>> model = GaussianMixture(VP(), torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.2)
    >>> starts = torch.randn(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> tuned = tune(trace(DPMpp2M, VP(), LogSNR(5)), model, starts)
    >>> tuned.after.rmse < 0.1 * tuned.before.rmse
    True
    """
    _check(plan, model, starts)
    counted, n = Counted(model), plan.nfe
    budget = (STEPS + 4 + ROUNDS * n) * counted.each if budget is None else budget
    needed = (STEPS + 4 + 3 * n) * counted.each
    if budget < needed:
        raise ValueError(
            f"The budget must cover the fine solution and three runs, {needed} network calls; got {budget}. Allow "
            "more, or fit to an oracle of the data, which costs no network call."
        )
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed))
    held = order[: max(len(starts) // HELD, 2)]
    train = order[len(held) :]
    with torch.no_grad():
        fine = solved(counted, starts, (plan.times[0], plan.times[-1]), train)
        given = squares(_scaled(plan, run(plan, counted, starts)), fine.target)
    judge = _Judge(held, given)
    able = probe(counted, starts, plan.asks[-1][1])
    best = _search(plan, fine, judge, able, ((budget - counted.spent) // (n * counted.each) - 1, seed))
    if best.rank < math.inf:
        found = best.member.plan(plan.answers)
        with torch.no_grad():
            outcome = squares(_scaled(found, run(found, counted, starts)), fine.target)
        if judge(outcome) < math.inf:
            return Tuned(found, judge.before, Errors.of(outcome[held]), counted.spent, best.origin)
    return Tuned(plan, judge.before, judge.before, counted.spent, None)


def _search(plan: Plan, fine: Fine, judge: _Judge, able: Probe, spend: tuple[int, int]) -> _Rival:
    """Return the best of what (runs, seed) find."""
    runs, seed = spend
    found = []
    for origin, member in itertools.islice(members(plan, fine), max(runs // 2, 1)):
        found.append((origin, *by_stages(fine, member)))
        runs -= 1
    loss = Loss(0.01 * min(float(errors[fine.train].median()) for _, _, errors in found) + 1e-300, 1.0)
    rivals = []
    for origin, member, errors in found:
        rivals.append(_Rival(origin, member, descend(fine, member, loss, able, seed)))
        rivals[-1].look(judge, member, errors)
    rivals.sort(key=lambda rival: rival.hope)
    if able.states:
        left = runs
        for count, share in HALVINGS:
            for rival in rivals[:count]:
                left -= rival.advance(judge, min(int(share * runs), left))
            rivals.sort(key=lambda rival: rival.hope)
        rivals[0].advance(judge, left)
    return min(rivals, key=lambda rival: rival.rank)


def members(plan: Plan, fine: Fine) -> Iterator[tuple[Grid | None, Member]]:
    """Yield what the fit may start from: the plan's own numbers, then Adams-Bashforth on several grids."""
    own = member_of(plan)
    if own is not None:
        yield None, widened(own, WIDTH)
    process, n = plan.process, plan.nfe
    ends = tau_of(process, torch.tensor([plan.times[0], plan.times[-1]], dtype=torch.float64))
    for grid in (even(fine, n, 2), *common(n), even(fine, n, 3)):
        try:
            taus = tau_of(process, grid(process))
        except ValueError:  # a grid that needs finite ends, say
            continue
        # between the plan's own ends, which need not be the process's
        member = adams(process, stretched(process, taus, ends), 3)
        member = dataclasses.replace(member, ends=(plan.times[0], plan.times[-1]))
        yield grid, widened(member, WIDTH)


def _scaled(plan: Plan, x: Tensor) -> Tensor:
    """Return y = x/(alpha + sigma) of a plan's outcome."""
    t = torch.tensor(plan.times[-1], dtype=torch.float64)
    return x if plan.times[-1] == plan.process.clean else x / (plan.process.alpha(t) + plan.process.sigma(t))


def _check(plan: Plan, model: Model, starts: Tensor) -> None:
    if plan.draws:
        raise ValueError(
            f"A plan must be deterministic to be fitted to the flow's solution; this one draws {plan.noises} noises, "
            "which no start determines. Trace a method on ProbabilityFlow()."
        )
    process = plan.process
    if plan.points[0] != 0 or plan.times[0] <= plan.times[-1]:
        raise ValueError(
            "A whole plan from noise to data can be tuned; this one is a second part, or goes the other way."
        )
    if model.process != process:
        raise ValueError(f"The model must be on the plan's process, {process}; it is on {model.process}.")
    if not starts.is_floating_point() or starts.ndim < 1 or len(starts) < LEAST:
        raise ValueError(
            f"Starts must be a batch of at least {LEAST} floating-point states, so that some can be held out; got "
            f"{starts.dtype}, shape {tuple(starts.shape)}."
        )
    alpha, sigma = (float(c) for c in (process.alpha(plan.times[0]), process.sigma(plan.times[0])))
    scale = float(starts.double().square().mean().sqrt())
    if not sigma / 4 <= scale or (10 * alpha < sigma and scale > 4 * sigma):
        raise ValueError(
            f"Starts must be states at the plan's first time, t={plan.times[0]:g}, of standard deviation about "
            f"{sigma:g}; theirs is {scale:g}. Multiply standard normal noise by process.sigma(t)."
        )
