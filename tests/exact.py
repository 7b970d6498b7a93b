"""What the tests of solvers stand on: a model known exactly, its flow found without sdekit, laws without sampling."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from sdekit import (
    EDM,
    VE,
    VP,
    Cosine,
    Method,
    Prediction,
    ProbabilityFlow,
    Process,
    RectifiedFlow,
    Solver,
    SubVP,
    V,
    solve,
    trajectory,
)
from sdekit.equation import System
from sdekit.grid import Grid
from sdekit.methods import METHODS
from sdekit.noise import Draw, Noise
from sdekit.solvers import Ancestral, Churn, Langevin, Restart, TruncatedSA


@dataclasses.dataclass(frozen=True, kw_only=True)
class Circle(Process):
    """A user's own process: two formulas, nothing else."""

    t_max: float = 0.98

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t * (math.pi / 2))


PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow(), Circle()]


def name(value: object) -> str:
    """Return a short name for a test's parameter."""
    fields = "" if isinstance(value, Process) else str(value).partition("(")[2].removesuffix(")")
    return f"{type(value).__name__}({fields})" if fields else type(value).__name__


PLAIN = {
    name: method
    for name, method in METHODS.items()
    if not isinstance(method.solver, Churn | Restart | Langevin | TruncatedSA)
}
"""The methods whose order is that of their solver, and which are noisy if and only if their equation is."""


def solvers() -> list[Solver]:
    """Return every solver of the plain methods, and the ancestral one, whose methods have a parameter."""
    return list(dict.fromkeys([*(method.solver for method in PLAIN.values()), Ancestral()]))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Mixture(nn.Module):
    """The exact model of data sum_k N(means[k], std^2 I) / K, of any rank: means has shape (K, ...)."""

    means: Tensor

    def __init__(self, process: Process, means: Tensor, std: float) -> None:
        super().__init__()
        self.process, self.std = process, std
        self.register_buffer("means", means)

    def forward(self, x: Tensor, t: Tensor | float) -> Prediction:
        t = self.process.check(t)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        var = (alpha * self.std) ** 2 + sigma**2
        apart = x[:, None] - alpha * self.means
        share = torch.softmax(-(apart**2).flatten(2).sum(2) / (2 * var), 1)
        share = share.reshape(*share.shape, *[1] * (x.ndim - 1))
        pull = (share * apart).sum(1) / var  # minus the score
        x0 = (share * self.means).sum(1) + alpha * self.std**2 * pull
        return Prediction(self.process, x, t, alpha * sigma * pull - sigma * x0, V())

    def draws(self, count: int, seed: int = 0) -> Tensor:
        """Draw data."""
        which = torch.randint(len(self.means), (count,), generator=torch.Generator().manual_seed(seed))
        around = normal(count, *self.means.shape[1:], seed=seed + 1).to(self.means)
        return self.means[which] + self.std * around

    def noisy(self, count: int, t: float, seed: int = 0) -> Tensor:
        """Draw from the marginal at the time t."""
        eps = normal(count, *self.means.shape[1:], seed=seed + 2)
        return self.process.perturb(self.draws(count, seed), t, eps)

    def flow(self, x: Tensor, t: float, s: float) -> Tensor:
        """Return the exact probability flow from time t to s, found without sdekit.

        All processes flow alike: z = x / alpha is a function of lam alone, and so is its rate, dz/dlam = x0_hat - z.
        """
        means = self.means.flatten(1).numpy()

        def rate(lam: float, z: np.ndarray) -> np.ndarray:
            noise = math.exp(-2 * lam)
            apart = z.reshape(-1, 1, means.shape[1]) - means
            log_share = -(apart**2).sum(2) / (2 * (self.std**2 + noise))
            share = np.exp(log_share - log_share.max(1, keepdims=True))
            share /= share.sum(1, keepdims=True)
            return -noise / (self.std**2 + noise) * (share[..., None] * apart).sum(1).ravel()

        ends = float(self.process.lam(t)), float(self.process.lam(s))
        z = (x / self.process.alpha(t)).flatten().numpy()
        end = solve_ivp(rate, ends, z, method="DOP853", rtol=1e-12, atol=1e-13).y[:, -1]
        return torch.from_numpy(end).reshape(x.shape) * self.process.alpha(s)


def ring(process: Process, std: float = 0.4) -> Mixture:
    """Return five bumps on an ellipse in the plane, in float64."""
    angle = torch.arange(5, dtype=torch.float64) * (2 * math.pi / 5)
    return Mixture(process, torch.stack([angle.cos(), 0.6 * angle.sin()], 1), std)


def gaussian(process: Process, mean: float = 0.7, std: float = 0.5) -> Mixture:
    """Return the model of N(mean, std^2) in one dimension; std = 0 makes a point."""
    return Mixture(process, torch.tensor([[mean]], dtype=torch.float64), std)


DRAWS = 3
"""As many as a step makes at most."""


@dataclasses.dataclass(frozen=True)
class Impulses(Noise):
    """No noise, but for a 1 that sample 2 + DRAWS k + j of the batch receives at the j-th draw of step k."""

    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        def of_step(k: int) -> Draw:
            count = itertools.count()

            def draw(t: Tensor, s: Tensor) -> Tensor:
                z, j = torch.zeros_like(x), next(count)
                assert j < DRAWS
                z[2 + DRAWS * k + j] = 1
                return z

            return draw

        return of_step


def law(model: Mixture, method: Method, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the exact mean and standard deviation at every point of a run from the marginal, for `gaussian` data.

    Each state is affine in the start and in every noise, so one run of as many samples shows all coefficients.
    """
    times = grid(model.process)
    x = torch.zeros(2 + DRAWS * (len(times) - 1), 1, dtype=torch.float64)
    x[1] = 1
    mean, std = marginal(model, times[:1])
    points = torch.cat([point.x for point in trajectory(model, x, method, grid, Impulses())], 1)
    base, push = points[0], points[1:] - points[0]
    return base + push[0] * mean, torch.cat([push[:1] * std, push[1:]]).norm(dim=0)


def marginal(model: Mixture, t: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and standard deviation of `gaussian` data at the times t."""
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    return alpha * model.means.flatten(), torch.hypot(alpha * model.std, sigma)


def worst_law(model: Mixture, method: Method, grid: Grid) -> float:
    """Return the largest Wasserstein-2 distance to the marginal along a run, in units of its standard deviation."""
    mean, std = law(model, method, grid)
    true_mean, true_std = marginal(model, grid(model.process))
    return float((torch.hypot(mean - true_mean, std - true_std) / true_std).max())


def measured_order(steps: tuple[int, ...], errors: list[float]) -> float:
    """Return the slope of log error against log steps, turned positive."""
    return -float(np.polyfit(np.log(steps), np.log(errors), 1)[0])


def rms(x: Tensor) -> float:
    """Return the root of the mean square."""
    return float(x.square().mean().sqrt())


def flow(solver: Solver) -> Method:
    """Return the solver on the probability flow."""
    return Method(ProbabilityFlow(), solver)


@cache
def known(process: Process, t: float, s: float) -> tuple[Mixture, Tensor, Tensor]:
    """Return a model, states at t, and where the exact flow takes them at s."""
    model = ring(process)
    x = model.noisy(8, t)
    return model, x, model.flow(x, t, s)


def order_of(process: Process, solver: Solver, grids: list[Grid]) -> float:
    """Return the order of a solver on the ring, from runs on grids with common ends."""
    times = [grid(process) for grid in grids]
    model, x, end = known(process, float(times[0][0]), float(times[0][-1]))
    errors = [rms(solve(model, x, flow(solver), grid).x - end) for grid in grids]
    return measured_order(tuple(len(t) - 1 for t in times), errors)
