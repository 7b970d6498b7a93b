"""Solvers that add noise back and then step: EDM's churn and Restart. The noise level is u = sigma / alpha."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.equation import Equation, System
from sdekit.noise import Draw
from sdekit.process import Process
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.runge_kutta import Heun


class _Noisier(Solver):
    """A solver around another, which solves what that one solves."""

    solver: Solver

    @property
    def order(self) -> int:  # type: ignore[override]
        """The inner solver's."""
        return self.solver.order

    @property
    def evals(self) -> int:  # type: ignore[override]
        """The inner solver's."""
        return self.solver.evals

    @property
    def memory(self) -> int:  # type: ignore[override]
        """The inner solver's."""
        return self.solver.memory

    @property
    def solves(self) -> tuple[type[Equation], ...]:  # type: ignore[override]
        """The kinds of equation the inner solver is made for."""
        return self.solver.solves


@dataclass(frozen=True)
class Churn(_Noisier):
    """EDM's stochastic sampler: raise the noise level from u to u_hat = (1 + gamma) u, then step from there.

        gamma = min(churn / steps, sqrt(2) - 1)  where  lo <= u <= hi,  else 0

    The state is raised by the process's own transition law, at most to t_max. With gamma = 0 it is the inner solver.
    The noise belongs to no Brownian path. Steps towards noise are the inner solver's.

    Args:
        solver: makes the step; the paper's is Heun's method, on the EDM process.
        churn: S_churn, the noise added in all.
        steps: N, the number of steps over which it is shared out.
        lo: S_tmin, the lowest noise level sigma / alpha that is raised.
        hi: S_tmax, the highest.
        boost: S_noise, the factor on the fresh noise; above 1 the marginals are not kept.

    Reference: Karras et al. 2022 (arXiv 2206.00364), algorithm 2.
    """

    solver: Solver = Heun()
    churn: float = 40.0
    steps: int = 256
    lo: float = 0.0
    hi: float = math.inf
    boost: float = 1.0

    def __post_init__(self) -> None:
        if not (self.churn >= 0 and self.steps > 0 and self.lo <= self.hi and self.boost >= 0):
            raise ValueError(f"churn >= 0, steps > 0, lo <= hi and boost >= 0 must hold; got {self}.")

    @property
    def starts(self) -> int:  # type: ignore[override]
        """The inner solver's."""
        return self.solver.starts

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        process = system.process
        gamma = min(self.churn / self.steps, math.sqrt(2) - 1)
        level = (-process.lam(t)).exp()
        if gamma > 0 and bool(s < t) and bool(level.isfinite()) and bool((self.lo <= level) & (level <= self.hi)):
            up = _time(process, (1 + gamma) * level)
            if bool(up > t):
                x, t = _raise(process, x, (t, up), self.boost * noise(t, up)), up
        return self.solver.step(system, x, t, s, past, noise)


@dataclass(frozen=True)
class Restart(_Noisier):
    """Restart: when the noise level first falls to `lo`, raise it to `hi` again and come back, `times` times over.

    Each way back is made in `steps` steps, even in rho-th roots of the noise level, to the very time reached. For
    several intervals, wrap a Restart in another. A grid's last step to the clean end is no step of a solver, so the
    grid must pass `lo` before. The noise belongs to no Brownian path.

    Args:
        solver: makes all the steps, the main ones and those of the ways back.
        lo: the interval's lower noise level sigma / alpha.
        hi: its upper one, at most that of t_max.
        times: K, how often the interval is repeated.
        steps: the steps of each way back.
        rho: 7 in the paper.

    Reference: Xu et al. 2023 (arXiv 2306.14878), algorithm 1 and eq. 4.
    """

    solver: Solver = Heun()
    lo: float = 0.1
    hi: float = 0.3
    times: int = 4
    steps: int = 3
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not (0 < self.lo < self.hi and self.times >= 0 and self.steps > 0 and self.rho > 0):
            raise ValueError(f"0 < lo < hi, times >= 0, steps > 0 and rho > 0 must hold; got {self}.")

    @property
    def starts(self) -> int:  # type: ignore[override]
        """The calls of all ways back, which some one step makes, and of the first steps after each."""
        again = self.times * (self.steps * self.solver.evals + self.solver.starts)
        return again + self.solver.starts * (1 + bool(self.times))

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        done = self.solver.step(system, x, t, s, past, noise)
        before, after = ((-system.process.lam(time)).exp() for time in (t, s))
        up = _time(system.process, torch.tensor(self.hi, dtype=torch.float64))
        if not (self.times and bool(after <= self.lo) and bool(before > self.lo) and bool(up > s)):
            return done
        x = done.x
        for _ in range(self.times):
            x = self._again(system, _raise(system.process, x, (s, up), noise(s, up)), (up, s), noise)
        return Step(x)

    def _again(self, system: System, x: Tensor, span: tuple[Tensor, Tensor], noise: Draw) -> Tensor:
        process, (up, s) = system.process, span
        first, last = ((-process.lam(time) / self.rho).exp() for time in span)
        inner = [_time(process, (first + (last - first) * k / self.steps) ** self.rho) for k in range(1, self.steps)]
        past: tuple[Any, ...] = ()
        for a, b in itertools.pairwise((up, *inner, s)):
            x, seen = self.solver.step(system, x, a, b, past, noise)
            past = () if seen is None else (seen, *past)[: self.memory]
        return x


def _time(process: Process, level: Tensor) -> Tensor:
    """Return the time of a noise level, or t_max if it is higher than there."""
    return process.time(torch.maximum(-level.log(), process.lam(process.t_max)))


def _raise(process: Process, x: Tensor, span: tuple[Tensor, Tensor], z: Tensor) -> Tensor:
    """Return a draw from the transition x_up given x_t = x: alpha_up/alpha_t x + sigma_up sqrt(1 - e^{-2h}) z."""
    t, up = span
    fresh = (1 - process.decay(up, t) ** 2).clamp(min=0).sqrt()
    return process.alpha(up) / process.alpha(t) * x + process.sigma(up) * fresh * z
