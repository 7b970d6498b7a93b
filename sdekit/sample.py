"""Running a sampler: point by point, to its end, or from noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdekit.equation import ProbabilityFlow
from sdekit.grid import Beta, Grid, Landed, Reversed
from sdekit.methods import DAMPED_ADAMS, Method
from sdekit.noise import Keyed, Noise
from sdekit.plan import NonlinearError, Plan, march, run, trace, walk
from sdekit.plan.health import Health, check_batch
from sdekit.prediction import Model, Target, V, calls


class Solution(NamedTuple):
    """A point of a run: the states `x` at the time `t`, and the network calls made so far."""

    x: Tensor
    t: float
    nfe: int


def trajectory(model: Model, x: Tensor, method: Method, grid: Grid, noise: Noise | None = None) -> Iterator[Solution]:
    """Yield every point of a run, the start included. Progress bars and early stops are the caller's `for`.

    Args:
        model: the model.
        x: the states at the grid's first time, shape (B, ...), float32 or float64.
        method: the equation and the solver.
        grid: where the steps fall.
        noise: the source of noise, by default `Keyed(seed=0)`.

    Raises:
        ValueError: `x` is not a batch of floating-point states, or the grid does not fit the process or the equation.
        FloatingPointError: a state is not finite, the first one included; the message names the step, the time and the
            samples. On an accelerator, which would have to wait, it is raised at the end of the run.
    """
    grid = grid.suited(x.shape[1:])
    plan = planned(model, method, grid)
    yield from _by_steps(model, x, method, grid, noise) if plan is None else _by_rows(model, x, plan, noise)


def _by_rows(model: Model, x: Tensor, plan: Plan, noise: Noise | None) -> Iterator[Solution]:
    points = iter(plan.points)
    point = next(points, None)
    spent = [calls(model, t) for _, t in plan.asks]
    for i, state in walk(plan, model, x, noise):
        while point == i:
            yield Solution(state, plan.rows[i].t, sum(spent[j] for j in plan.asks_within(0, i)))
            point = next(points, None)


def _by_steps(model: Model, x: Tensor, method: Method, grid: Grid, noise: Noise | None) -> Iterator[Solution]:
    system, times = method.equation.of(model), grid(model.process)
    check_batch(x)
    health = Health(x)
    health.check(x, "start", float(times[0]))
    yield Solution(x, float(times[0]), 0)
    of_step = (noise or Keyed()).along(system, x, times.tolist())
    for k, (state, s, _) in enumerate(march(system, method.solver, x, times, of_step), start=1):
        health.check(state, f"step {k} of {len(times) - 1}", float(s))
        yield Solution(state, float(s), system.nfe)
    health.report()


def planned(model: Model, method: Method, grid: Grid) -> Plan | None:
    """Return the plan of a method for a model, or None where the solver is not linear and runs step by step."""
    predicts = getattr(model, "predicts", None)
    try:
        return trace(method, model.process, grid, predicts if isinstance(predicts, Target) else V())
    except NonlinearError:
        return None


def solve(model: Model, x: Tensor, method: Method, grid: Grid, noise: Noise | None = None) -> Solution:
    """Run a sampler from the states `x` at the grid's first time and return its last point. See `trajectory`."""
    grid = grid.suited(x.shape[1:])
    plan = planned(model, method, grid)
    if plan is not None:
        spent = sum(calls(model, plan.asks[j][1]) for j in plan.asks_within(0, plan.points[-1]))
        return Solution(run(plan, model, x, noise), plan.times[-1], spent)
    for point in _by_steps(model, x, method, grid, noise):
        last = point
    return last


@torch.no_grad()
def sample(
    model: Model,
    shape: tuple[int, ...],
    method: Method | Plan = DAMPED_ADAMS,
    grid: Grid = Landed(Beta(20)),
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Draw samples from a model.

    Args:
        model: the model; the samples are made on its device and in the dtype of its parameters or buffers.
        shape: the shape of the batch, (B, ...).
        method: the equation and the solver; or a plan, which has its own grid.
        grid: where the steps fall.
        seed: sample i is a function of (seed, i) alone, up to the network's own rounding.
        first: the number of the first sample, where a set is drawn in parts: see `share`.

    >>> from sdekit import VP, GaussianMixture
    >>> x = sample(GaussianMixture(VP(), torch.tensor([[-1.0], [1.0]]), 0.1), (4, 1))
    >>> bool(((x.abs() - 1).abs() < 0.5).all())
    True
    """
    noise = Keyed(seed, first)
    if isinstance(method, Plan):
        return run(method, model, start(model, shape, method, noise), noise)
    return solve(model, start(model, shape, grid, noise), method, grid, noise).x


def share(n: int, batch: int, rank: int = 0, ranks: int = 1) -> Iterator[range]:
    """Yield the numbers of the samples that one of many ranks draws of a set of `n`, batch by batch:

        for rows in share(50_000, 500, rank, ranks):
            x = sample(model.given(label=labels[rows]), (len(rows), 1, 8, 8), seed=seed, first=rows.start)

    The batches are the same however many ranks there are, and each rank has a run of them, so that the ranks' samples
    one after another are the set that one rank would draw.

    Raises:
        ValueError: n is negative, batch is not positive, or there is no such rank.
    """
    if n < 0 or batch < 1 or not 0 <= rank < ranks:
        raise ValueError(f"n >= 0, batch >= 1, 0 <= rank < ranks must hold; got {n=}, {batch=}, {rank=}, {ranks=}.")
    batches = -(-n // batch)
    for i in range(batches * rank // ranks, batches * (rank + 1) // ranks):
        yield range(i * batch, min((i + 1) * batch, n))


@torch.no_grad()
def encode(model: Model, x: Tensor, method: Method = DAMPED_ADAMS, grid: Grid = Beta(50)) -> Tensor:
    """Run the probability flow from data to noise: the latent of `x`, from which sampling returns to it.

    Args:
        model: the model.
        x: data, shape (B, ...).
        method: a method on the probability flow.
        grid: the grid that sampling would use; it is run backwards, without a clean end.

    Raises:
        TypeError: the method is stochastic.
    """
    if not isinstance(method.equation, ProbabilityFlow):
        raise TypeError(f"Encode by the probability flow; got {method.equation}. Use Method(ProbabilityFlow(), ...)")
    return solve(model, x, method, Reversed(grid)).x


def start(model: Model, shape: tuple[int, ...], grid: Grid | Plan, noise: Noise) -> Tensor:
    """Return the states from which sampling starts: N(0, sigma^2 I) at the first time of the grid or the plan.

    They lie on the device of the model's parameters and buffers, float64 if one of those is, else float32.
    """
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    floats = [p for p in tensors if p.is_floating_point()]
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in floats) else torch.float32
    like = torch.empty(shape, dtype=dtype, device=floats[0].device if floats else None)
    first = grid.times[0] if isinstance(grid, Plan) else grid.suited(shape[1:])(model.process)[0]
    return noise.start(like) * model.process.sigma(first)
