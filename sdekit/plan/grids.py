"""Grids fitted alone, for a method with weights of its own: by exact law, by local error, by the shortest way."""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit.grid import Angular, Grid, Karras, LogSNR, Quadratic, Times, Uniform
from sdekit.methods import Method
from sdekit.oracle import Gaussian
from sdekit.plan.family import sizes_of, spaced, stretched, tau_of, time_of
from sdekit.plan.fine import Counted, Fine, solved
from sdekit.plan.law import law, marginal
from sdekit.plan.trace import trace
from sdekit.prediction import Model, V
from sdekit.process import Process

FLOOR = 0.05
"""The share of the steps that is spread evenly in lam, where trajectories are straight."""

ROUNDS = 30
"""The iterations of a descent by the law."""


def common(steps: int) -> list[Grid]:
    """Return the literature's grids of so many steps."""
    return [Angular(steps), Quadratic(steps), LogSNR(steps), Karras(steps), Uniform(steps)]


def by_law(method: Method, process: Process, steps: int, data: Gaussian) -> Times:
    """Return the grid on which a method's outcome on Gaussian data is nearest to the data, by gradient descent.

    No sample is drawn and no network asked. A grid fitted to one Gaussian fits that Gaussian; for other data it need
    not be better than those of the literature, from the best of which the descent starts.

    Args:
        method: the equation and the solver, linear.
        process: the forward process.
        steps: the number of steps.
        data: the exact model, on that process; a covariance of many scales asks for more of a grid.

    Raises:
        NonlinearError: the solver is not linear.
        ValueError: no common grid fits the process, or the data are on another one.
    """
    goal = marginal(data, process.t_min)

    def distance(times: Tensor) -> Tensor:
        return law(trace(method, process, times, V()), data).frechet(goal)

    tried = [times for grid in common(steps) if (times := _times(grid, process)) is not None]
    if not tried:
        raise ValueError(f"No common grid of {steps} steps fits {process}. Give times of your own, as Times.")
    best = min(tried, key=lambda times: float(distance(times)))
    least = float(distance(best))
    ends = tau_of(process, best[[0, -1]])
    gaps = sizes_of(process, tau_of(process, best)).requires_grad_()
    optimizer = torch.optim.LBFGS([gaps], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def placed() -> Tensor:
        return torch.cat([best[:1], time_of(process, spaced(process, ends, gaps)[1:-1]), best[-1:]])

    def closure() -> Tensor:
        nonlocal best, least
        optimizer.zero_grad()
        times = placed()
        value = distance(times)
        if float(value) < least:
            best, least = times.detach(), float(value)
        loss = value.log()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return Times(tuple(best.tolist()))


def equidistributed(model: Model, starts: Tensor, steps: int, order: int = 2) -> Times:
    """Return the grid on which a method of that order makes errors of one size in every step on a model's trajectories.

    Args:
        model: the model.
        starts: states at t_max, shape (B, ...). One fine solution is made from them.
        steps: the number of steps.
        order: the method's.
    """
    return even(_solved(model, starts), steps, order)


def shortest(model: Model, starts: Tensor, steps: int) -> Times:
    """Return the grid whose local errors of Euler steps from fine trajectories have the least sum.

    It is the shortest way of so many steps through the nodes of a fine solution, by dynamic programming.

    Args:
        model: the model.
        starts: states at t_max, shape (B, ...). One fine solution is made from them.
        steps: the number of steps.

    Reference: Chen et al. 2024 (arXiv 2405.11326), the geometry-inspired time scheduling.
    """
    fine = _solved(model, starts)
    kept = torch.linspace(0, len(fine.taus) - 1, min(101, len(fine.taus))).round().long()
    taus, states, slopes = fine.taus[kept], fine.states[kept].flatten(1), fine.slopes[kept].flatten(1)
    if not 1 <= steps < len(taus):
        raise ValueError(f"The way has 1 to {len(taus) - 1} steps; got {steps}.")
    costs = torch.full((len(taus), len(taus)), torch.inf, dtype=torch.float64)
    for i in range(len(taus) - 1):
        reach = (taus[i + 1 :] - taus[i]).to(states)[:, None] * slopes[i]
        costs[i, i + 1 :] = (states[i + 1 :] - states[i] - reach).double().square().mean(1).sqrt().cpu()
    total, came = costs[0], []
    for _ in range(steps - 1):
        total, from_ = (total[:, None] + costs).min(0)
        came.append(from_)
    way = [len(taus) - 1]
    for from_ in reversed(came):
        way.append(int(from_[way[-1]]))
    return Times(tuple(time_of(model.process, taus[[0, *reversed(way)]]).tolist()))


def even(fine: Fine, steps: int, order: int) -> Times:
    """Return the grid of `equidistributed` for a fine solution.

    With P of `order` derivatives in tau, a step of length h adds about h^{order + 1} |P^{(order)}|.
    """
    process, taus, slopes = fine.model.process, fine.taus, fine.slopes.flatten(2).double()
    for k in range(1, order + 1):  # divided differences
        slopes = (slopes[1:] - slopes[:-1]) / (taus[k:] - taus[:-k]).to(slopes)[:, None, None]
    sizes = slopes.square().mean(2).sqrt().median(1).values.cpu()
    middles = torch.stack([taus[k : len(taus) - order + k] for k in range(order + 1)]).mean(0)
    density = sizes.clamp(min=1e-300) ** (1 / (order + 1))
    share = _read(middles.flip(0), density.flip(0), (taus[1:] + taus[:-1]) / 2) * -torch.diff(taus)
    lams = torch.logit(1 - taus.clamp(1e-6, 1 - 1e-6))
    share = (1 - FLOOR) * share / share.sum() + FLOOR * torch.diff(lams) / (lams[-1] - lams[0])
    done = torch.cat([torch.zeros(1, dtype=torch.float64), share.cumsum(0)])
    chosen = _read(done, taus, torch.linspace(0, float(done[-1]), steps + 1, dtype=torch.float64)[1:-1])
    nodes = stretched(process, torch.cat([taus[:1], chosen, taus[-1:]]), taus[[0, -1]])
    return Times(tuple(time_of(process, nodes).tolist()))


def _read(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """Return the piecewise linear function through (x, y), x rising, at the places `at`."""
    k = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    u = ((at - x[k - 1]) / (x[k] - x[k - 1])).clamp(0, 1)
    return torch.lerp(y[k - 1], y[k], u)


def _times(grid: Grid, process: Process) -> Tensor | None:
    try:
        return grid(process)
    except ValueError:  # it needs finite ends, say
        return None


def _solved(model: Model, starts: Tensor) -> Fine:
    process = model.process
    return solved(Counted(model), starts, (process.t_max, process.t_min), torch.arange(len(starts)))
