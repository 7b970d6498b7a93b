"""ER-SDE-Solvers: Taylor's series of x0_hat in sigma / alpha, for any noise scale function."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.level import VaryingSDE, advance, integrals, keep, spread, total


@dataclass(frozen=True)
class ER(Solver):
    r"""ER-SDE-Solver-1, 2 and 3. With u = sigma / alpha, y = x / alpha and the noise scale function phi(u):

        y_s = phi(u_s)/phi(u_t) y + (1 - phi(u_s)/phi(u_t)) D + [u_s - u_t + phi(u_s) \int_{u_s}^{u_t} du/phi] D'
              + [(u_s - u_t)^2 / 2 + phi(u_s) \int_{u_s}^{u_t} (u - u_t)/phi du] D''
              + sqrt(u_s^2 - u_t^2 phi(u_s)^2/phi(u_t)^2) z

    where D' = (D_0 - D_1) / (u_0 - u_1) and D'' = 2 (D'_0 - D'_1) / (u_0 - u_2) are made of the last values of x0_hat.
    phi belongs to the equation: `VaryingSDE(NoiseScale())` has the paper's choice, and phi(u) = u^{1 + eta} is
    `ReverseSDE(eta)`. Without noise, ER-SDE-Solver-1 is DDIM. The integrals are computed to rounding; the paper sums
    100 terms. The second derivative is that of a series about the last node, not of the polynomial through three, so
    the third value adds no order.

    Args:
        values: 1, 2 or 3, how many values of x0_hat are used. The first steps use as many as there are.

    Reference: Cui et al. 2023 (arXiv 2309.06169), algorithms 1 to 5.
    """

    values: int = 3
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow, ReverseSDE, VaryingSDE)

    def __post_init__(self) -> None:
        if self.values not in (1, 2, 3):
            raise ValueError(f"ER-SDE-Solver uses 1, 2 or 3 values; got {self.values}.")

    @property
    def order(self) -> int:  # type: ignore[override]
        """At most 2."""
        return min(2, self.values)

    @property
    def memory(self) -> int:  # type: ignore[override]
        """One prediction less than the values used."""
        return self.values - 1

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        known = (system(x, t), *past)
        x = advance(system, x, t, s, [*zip(self.weights(system, s, known), known, strict=False)])
        if bool(keep(system, t, s) < 1):
            x = x + spread(system, t, s) * noise(t, s)
        return Step(x, known[0])

    def weights(self, system: System, s: Tensor, known: tuple[Prediction, ...]) -> list[Tensor]:
        """Return the weights of the known values of x0_hat, newest first; those of no use are left out."""
        process, t = system.process, known[0].t
        whole = total(system, t, s)
        u = [(-process.lam(p.t)).exp() for p in known]
        fits = [bool(a.isfinite() and a != b and b.isfinite()) for a, b in itertools.pairwise(u)]
        if not (fits and fits[0] and bool(process.lam(s).isfinite()) and bool(t != s)):
            return [whole]
        first, second = integrals(system, t, s, lambda lam: ((a := (-lam).exp() - u[0]), a**2 / 2))
        slope, zero = first / (u[0] - u[1]), torch.zeros_like(whole)
        weights = [whole + slope, -slope]
        if len(u) > 2 and fits[1]:
            bend = second * 2 / (u[0] - u[2])
            near, far = bend / (u[0] - u[1]), bend / (u[1] - u[2])
            weights = [a + b for a, b in zip([*weights, zero], [near, -near - far, far], strict=True)]
        return weights
