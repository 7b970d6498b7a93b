"""SEEDS: exponential Runge-Kutta methods for the reverse SDE, with the noise of the stages correlated exactly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.process import Process
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.level import VaryingSDE, advance, keep, spread, total


@dataclass(frozen=True)
class SEEDS(Solver):
    """SEEDS-1 and SEEDS-2 for predictions of the data, at any noise level. SEEDS-2 asks at lam_m = (lam_t + lam_s) / 2:

        x_m = sigma_m/sigma_t K(t, m) x + alpha_m (1 - r K)(t, m) x0_hat(x, t) + n_m
        x_s = sigma_s/sigma_t K(t, s) x + alpha_s (1 - r K)(t, s) x0_hat(x_m, m) + n_s
        n_m = sigma_m sqrt(1 - K(t, m)^2) z,       n_s = sigma_s/sigma_m K(m, s) n_m + sigma_s sqrt(1 - K(m, s)^2) z'

    Args:
        order: 1 or 2. SEEDS-1 is the exponential integrator of order 1.

    Reference: Gonzalez et al. 2023 (arXiv 2305.14267), section 4; SEEDS-2 with its node at the middle.
    """

    order: int = 2
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow, ReverseSDE, VaryingSDE)

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"SEEDS has orders 1 and 2 here; got {self.order}.")

    @property
    def evals(self) -> int:  # type: ignore[override]
        """As many network calls a step as the order."""
        return self.order

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        noisy = bool(keep(system, t, s) < 1)
        if self.order == 1:
            x = advance(system, x, t, s, [(total(system, t, s), system(x, t))])
            return Step(x + spread(system, t, s) * noise(t, s) if noisy else x)
        m = middle(system.process, t, s)
        at_m = advance(system, x, t, m, [(total(system, t, m), system(x, t))])
        if not noisy:
            return Step(advance(system, x, t, s, [(total(system, t, s), system(at_m, m))]))
        first, second = noise(t, m), noise(m, s)
        at_m = at_m + spread(system, t, m) * first
        x = advance(system, x, t, s, [(total(system, t, s), system(at_m, m))])
        kept = system.process.sigma(s) / system.process.sigma(m) * keep(system, m, s) * spread(system, t, m)
        return Step(x + kept * first + spread(system, m, s) * second)


def middle(process: Process, t: Tensor, s: Tensor) -> Tensor:
    """Return the time halfway in lam, or in time where lam is infinite."""
    lam = (process.lam(t) + process.lam(s)) / 2
    return process.time(lam) if bool(torch.isfinite(lam)) and bool(t != s) else (t + s) / 2
