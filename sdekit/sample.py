"""Running a sampler: the only loop over time, and three ways to call it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdekit.equation import ProbabilityFlow
from sdekit.grid import Denoised, Grid, LogSNR, Reversed
from sdekit.methods import DPMpp2M, Method
from sdekit.noise import Keyed, Noise
from sdekit.prediction import Model


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
    system = method.equation.of(model)
    process, solver = system.process, method.solver
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(f"x must be a batch (B, ...) of floating-point states; got {x.dtype}, shape {tuple(x.shape)}.")
    times = grid(process)
    if method.equation.direction * float(times[-1] - times[0]) < 0:
        raise ValueError(
            f"{method.equation} holds towards {'noise' if method.equation.direction > 0 else 'data'} only; the grid "
            "runs the other way. Use the probability flow, or Reversed(grid)."
        )
    health = _Health(x)
    health.check(x, "start", float(times[0]))
    of_step = (noise or Keyed()).on(system, x)
    past: tuple[Any, ...] = ()
    yield Solution(x, float(times[0]), 0)
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        if process.clean == float(s) < process.t_min:  # the clean end, where no model can be asked: Tweedie's formula
            x = system(x, t).x0
        else:
            x, seen = solver.step(system, x, t, s, past, of_step(k))
            past = () if seen is None else (seen, *past)[: solver.memory]
        health.check(x, f"step {k + 1} of {len(times) - 1}", float(s))
        yield Solution(x, float(s), system.nfe)
    health.report()


def solve(model: Model, x: Tensor, method: Method, grid: Grid, noise: Noise | None = None) -> Solution:
    """Run a sampler from the states `x` at the grid's first time and return its last point. See `trajectory`."""
    for point in trajectory(model, x, method, grid, noise):
        last = point
    return last


@torch.no_grad()
def sample(
    model: Model,
    shape: tuple[int, ...],
    method: Method = DPMpp2M,
    grid: Grid = Denoised(LogSNR(20)),
    seed: int = 0,
) -> Tensor:
    """Draw samples from a model.

    Args:
        model: the model; the samples are made on its device and in the dtype of its parameters or buffers.
        shape: the shape of the batch, (B, ...).
        method: the equation and the solver.
        grid: where the steps fall.
        seed: sample i is a function of (seed, i) alone, up to the network's own rounding.

    >>> from sdekit import VP, GaussianMixture
    >>> x = sample(GaussianMixture(VP(), torch.tensor([[-1.0], [1.0]]), 0.1), (4, 1))
    >>> bool(((x.abs() - 1).abs() < 0.5).all())
    True
    """
    noise = Keyed(seed)
    return solve(model, start(model, shape, grid, noise), method, grid, noise).x


@torch.no_grad()
def encode(model: Model, x: Tensor, method: Method = DPMpp2M, grid: Grid = LogSNR(50)) -> Tensor:
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


def start(model: Model, shape: tuple[int, ...], grid: Grid, noise: Noise) -> Tensor:
    """Return the states from which sampling starts: N(0, sigma^2 I) at the grid's first time.

    They lie on the device of the model's parameters and buffers, float64 if one of those is, else float32.
    """
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    floats = [p for p in tensors if p.is_floating_point()]
    dtype = torch.float64 if any(p.dtype == torch.float64 for p in floats) else torch.float32
    like = torch.empty(shape, dtype=dtype, device=floats[0].device if floats else None)
    return noise.start(like) * model.process.sigma(grid(model.process)[0])


class _Health:
    """Finds the first step at which a state is not finite, without making an accelerator wait."""

    def __init__(self, x: Tensor) -> None:
        self.waits = x.device.type == "cpu"
        self.pending: list[tuple[Tensor, str, float]] = []

    def check(self, x: Tensor, where: str, time: float) -> None:
        # a sum is finite only if its terms are; one read of the state, no copy
        self.pending.append((x.detach().reshape(len(x), -1).sum(1), where, time))
        if self.waits:
            self.report()

    def report(self) -> None:
        for total, where, time in self.pending:
            if not bool(total.isfinite().all()):
                bad = (~total.isfinite()).nonzero().flatten().tolist()
                raise FloatingPointError(
                    f"Every state must stay finite; at {where}, t={time:.6g}, samples {bad[:8]} ({len(bad)} in all) "
                    "are not. Look at the model's answer there, or move t_min and t_max inwards."
                )
        self.pending.clear()
