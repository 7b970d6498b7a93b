"""DPM-Solver and DPM-Solver++ as multistep methods, on the probability flow and on the reverse SDE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.dpm_weights import DATA, NOISE, Integrand, advance, exact, midpoint, zphi


class _Multistep(Solver):
    """A multistep method on x0_hat or eps_hat that ramps up from order 1."""

    points: int
    most: ClassVar[int] = 3
    integrand: ClassVar[Integrand]
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow, ReverseSDE)

    def __post_init__(self) -> None:
        if self.points not in range(1, self.most + 1):
            raise ValueError(
                f"{type(self).__name__} looks at 1 to {self.most} predictions a step; got {self.points!r}. "
                "Exponential has exact weights for more."
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        """As many as there are points, at most 2: the start has order 1."""
        return min(self.points, 2)

    @property
    def memory(self) -> int:  # type: ignore[override]
        """One prediction less than there are points."""
        return self.points - 1

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        now = system(x, t)
        x = advance(self.integrand, system, x, (now, *past[: self.memory]), s, self.rule)
        if system.eta > 0:
            x = x + self.integrand.spread(system, t, s) * noise(t, s)
        return Step(x, now)

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        """Return the weights of the past predictions at lam_t + r_i h."""
        return midpoint(r, z) if len(r) == 1 else _two_back(r, z)


@dataclass(frozen=True)
class DPMppMultistep(_Multistep):
    r"""DPM-Solver++ 1, 2M and 3M on x0_hat; on the reverse SDE, SDE-DPM-Solver++. With z = -(1 + eta) h:

        points = 2:   z phi_1 m_0 + z phi_1/2 D,            D = h (m_0 - m_1) / h_1
        points = 3:   z phi_1 m_0 + z phi_2 D_1 + z phi_3 D_2

    where h_1 is the step before and D_1, D_2 are the slope at t and the second divided difference of the last three,
    in units of h. The integral of the parabola has 2 z phi_3 D_2, so 3M has order 2 like 2M, with a smaller error;
    `Exponential(3)` has the exact weights and order 3.

    Args:
        points: 1, 2 or 3: how many values of x0_hat a step looks at. 1 is DDIM, or DDPM where eta = 1.

    Reference: Lu et al. 2022 (arXiv 2211.01095), algorithm 2 and appendix D; for 3M its authors' code, and
        k-diffusion's dpmpp_2m_sde and dpmpp_3m_sde for every eta.
    """

    points: int = 2
    integrand: ClassVar[Integrand] = DATA


@dataclass(frozen=True)
class DPMppMultistepHeun(DPMppMultistep):
    """DPM-Solver++ 2M with the exact weight z phi_2 D in place of z phi_1/2 D: `Exponential(2)`.

    3M differs from the other kind in its second step only.

    Reference: Lu et al. 2022 (arXiv 2211.01095), eq. 9; diffusers' solver_type "heun", k-diffusion's too.
    """

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        return exact(r, z) if len(r) == 1 else _two_back(r, z)


@dataclass(frozen=True)
class DPMMultistep(_Multistep):
    """DPM-Solver 1, 2 and 3 as multistep methods on eps_hat; on the reverse SDE, SDE-DPM-Solver. With z = h:

        points = 2:   z phi_1 m_0 + z phi_1/2 D,            points = 3:   z phi_1 m_0 + z phi_2 D_1 + z phi_3 D_2

    with the differences of `DPMppMultistep`; here too three points have order 2. On the reverse SDE with eta > 0 it
    differs from `DPMppMultistep` with one point too, and the larger h, the more.

    Args:
        points: 1, 2 or 3: how many values of eps_hat a step looks at. 1 is DDIM on the probability flow.

    Reference: Lu et al. 2022 (arXiv 2206.00927), eq. 3.4, and its authors' code; Lu et al. 2022 (arXiv 2211.01095),
        appendix D for the reverse SDE.
    """

    points: int = 2
    integrand: ClassVar[Integrand] = NOISE


@dataclass(frozen=True)
class DPMMultistepHeun(DPMMultistep):
    """DPM-Solver 2 as a multistep method with the exact weight z phi_2 D in place of z phi_1/2 D.

    Three points differ from the other kind in the second step only.

    Reference: Zhang & Chen 2023 (arXiv 2204.13902), eq. 14-15, in lam; diffusers' solver_type "heun".
    """

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        return exact(r, z) if len(r) == 1 else _two_back(r, z)


def _two_back(r: list[Tensor], z: Tensor) -> list[Tensor]:
    """The papers' weights for two past values, z phi_2 D_1 + z phi_3 D_2 in Newton's form."""
    first, second = zphi(2, z) / r[0], (zphi(3, z) - r[0] * zphi(2, z)) / (r[1] - r[0])
    return [first - second / r[0], second / r[1]]
