"""Predictor-corrector: after each step, Langevin steps at the time reached."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.equation import Equation, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.runge_kutta import EulerMaruyama


class _Corrected(Solver):
    """A solver's step, and then `rounds` Langevin steps x + a score + sqrt(2 a) z at the time reached.

    Their own error, of the size of a / sigma^2, does not vanish with the number of steps: so no order is claimed.
    They look back at nothing, and after them nothing can be looked back at.
    """

    order = 0
    solver: Solver
    snr: float
    rounds: int

    def __post_init__(self) -> None:
        if not (0 < self.snr < 1 and self.rounds >= 0):
            raise ValueError(f"0 < snr < 1 and rounds >= 0 must hold; got {self.snr} and {self.rounds}.")
        if self.solver.memory:
            raise ValueError(
                f"Langevin steps move the state between two steps; {self.solver} looks back over them. Use a one-step "
                "solver, such as EulerMaruyama() or Exponential(1)."
            )

    @property
    def evals(self) -> int:  # type: ignore[override]
        """The inner solver's, and one for every Langevin step."""
        return self.solver.evals + self.rounds

    @property
    def solves(self) -> tuple[type[Equation], ...]:  # type: ignore[override]
        """The kinds of equation the inner solver is made for."""
        return self.solver.solves

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        x = self.solver.step(system, x, t, s, past, noise).x
        for _ in range(self.rounds):
            x = self.correct(system(x, s), noise(s, s))
        return Step(x)

    @abstractmethod
    def correct(self, now: Prediction, z: Tensor) -> Tensor:
        """Return the state after one Langevin step."""


@dataclass(frozen=True)
class Langevin(_Corrected):
    """Langevin steps whose size is known beforehand, a = 2 (snr sigma)^2: linear, so it runs in plans.

        x + a score + sqrt(2 a) z = x - 2 snr^2 sigma eps_hat + 2 snr sigma z

    It is the norm-driven step with the norms of pure noise, |z| / |score| = sigma.

    Args:
        solver: makes the step before.
        snr: the size of the Langevin steps.
        rounds: Langevin steps after each step.

    Reference: Song & Ermon 2019 (arXiv 1907.05600), algorithm 1; Song et al. 2021 (arXiv 2011.13456), appendix G.
    """

    solver: Solver = EulerMaruyama()
    snr: float = 0.16
    rounds: int = 1

    def correct(self, now: Prediction, z: Tensor) -> Tensor:
        sigma = now.process.sigma(now.t)
        if not bool(sigma > 0):
            return now.x
        return now.x - 2 * self.snr**2 * sigma * now.eps + 2 * self.snr * sigma * z


@dataclass(frozen=True)
class NormLangevin(_Corrected):
    """Langevin steps driven by norms, a = 2 (snr |z| / |score|)^2. It is not linear: it runs, but outside plans.

    The norms are those of each sample, so that no sample depends on its batch; the paper takes their means over it. The
    factor 1 - beta_i of a table's steps, which is 1 in continuous time, is left out.

    Args:
        solver: makes the step before.
        snr: the signal-to-noise ratio of the Langevin steps.
        rounds: Langevin steps after each step.

    Reference: Song et al. 2021 (arXiv 2011.13456), algorithms 4 and 5.
    """

    solver: Solver = EulerMaruyama()
    snr: float = 0.16
    rounds: int = 1

    def correct(self, now: Prediction, z: Tensor) -> Tensor:
        score = now.score
        size = 2 * (self.snr * _norms(z) / _norms(score)) ** 2
        return torch.where(size.isfinite(), now.x + size * score + (2 * size).sqrt() * z, now.x)


def _norms(x: Tensor) -> Tensor:
    """Return every sample's norm, of the shape (B, 1, ..., 1)."""
    squares = x.flatten(1).square().mean(1)
    return squares.sqrt().reshape(-1, *[1] * (x.ndim - 1))
