r"""Exponential integrators in lam = log(alpha/sigma), for the probability flow and the reverse SDE alike.

With h = lam_s - lam_t, r = e^{-h}, and the noise level eta, the linear part of either equation is solved exactly:

    x_s = sigma_s/sigma_t r^eta x  +  alpha_s (1 + eta) \int e^{-(1 + eta)(lam_s - lam)} x0_hat dlam
                                   +  sigma_s sqrt(1 - r^{2 eta}) z

and x0_hat is replaced by the polynomial in lam through its last values. Order 1 is DDIM (eta = 0) or DDPM (eta = 1).
It is the path DATA in the clock lam; there are exponential integrators on other paths as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.leg import Known, Leg, advance, combine, regular
from sdekit.solvers.multistep import STAGES, Adams, OneStep, Start, climb
from sdekit.solvers.path import DATA, Clock, InLam, Path


@dataclass(frozen=True)
class Exponential(Adams):
    """The exponential multistep integrator on x0_hat with exact weights: `Multistep(DATA, InLam(), order)`.

    The first step of orders 3 and 4 is a one-step method of one order less, which costs order - 2 network calls more;
    so on the probability flow the order is reached globally (but for a start where alpha = 0, whose first step has
    order 1 and caps it at 2). On the reverse SDE the weak order is at most 2.

    Args:
        order: 1 to 4: how many values of x0_hat the polynomial passes through.

    Reference: Hochbruck & Ostermann 2010, section 2.5 (Adams); Lu et al. 2022 (arXiv 2211.01095), eq. 8-9;
        Zhang & Chen 2023 (arXiv 2204.13902), eq. 14-15; Gonzalez et al. 2023 (arXiv 2305.14267), eq. 9 for eta.
    """

    order: int = 2
    path = DATA
    clock = InLam()
    start: ClassVar[Start] = OneStep()  # type: ignore[misc]
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow, ReverseSDE)

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise ValueError(f"Exponential has orders 1, 2, 3 and 4; got {self.order!r}.")

    @property
    def points(self) -> int:  # type: ignore[override]
        """As many as the order."""
        return self.order

    def advance(self, system: System, x: Tensor, known: Known, s: Tensor) -> Tensor:
        leg = regular(DATA, system, known[0].t, s)
        if leg.path != DATA:
            return combine(leg, x, known, [leg.total])
        return combine(
            leg, x, known, [leg.alpha_s * weight for weight in self.weights(system, [p.t for p in known], s)]
        )

    def weights(self, system: System, times: list[Tensor], s: Tensor) -> list[Tensor]:
        """Return the weights of x0_hat at `times` (the step's own time first), which sum to 1 - r^{1 + eta}.

        They are (1 + eta) times the integrals of e^{-(1 + eta)(lam_s - lam)} against the polynomial's basis.
        """
        leg = Leg(DATA, system, times[0], s)
        return [gain / leg.alpha_s for gain in leg.gains(self.clock, times)]


@dataclass(frozen=True)
class Ancestral(Solver):
    """The first-order step that draws from the posterior q(x_s | x_t, x0_hat), with its variance scaled by eta:

        x_s = alpha_s x0_hat + sigma_s sqrt(1 - eta (1 - r^2)) eps_hat + sigma_s sqrt(eta (1 - r^2)) z

    DDIM's own eta, which scales the standard deviation, is the square root of the equation's. For eta = 0 and 1 the
    step equals `Exponential(1)`.

    Reference: Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16.
    """

    order: int = 1
    solves: ClassVar[tuple[type[Equation], ...]] = (ReverseSDE,)

    def __post_init__(self) -> None:
        if self.order != 1:
            raise ValueError(f"The ancestral step has order 1; got {self.order}. Use Exponential({self.order}).")

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        process, now = system.process, system(x, t)
        decay = process.decay(t, s)
        keep = (1 - system.eta * (1 - decay**2)).sqrt()
        x = process.sigma(s) / process.sigma(t) * keep * x + process.alpha(s) * (1 - decay * keep) * now.x0
        return Step(x + self.spread(system, t, s) * noise(t, s) if system.eta > 0 else x)

    def spread(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        """Return the standard deviation of the fresh noise."""
        fresh = (1 - system.process.decay(t, s) ** 2).clamp(min=0)
        return system.process.sigma(s) * (system.eta * fresh).sqrt()


@dataclass(frozen=True)
class AncestralLarge(Ancestral):
    """The ancestral step with the larger of DDPM's two variances, sigma_t^2 (1 - r^2), called beta_t there.

    It does not keep the marginals at finite steps, only in the limit.

    Reference: Ho et al. 2020 (arXiv 2006.11239), section 3.2; Song et al. 2021 (arXiv 2010.02502), sigma-hat.
    """

    def spread(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        process = system.process
        return math.sqrt(system.eta) * process.sigma(t) * (1 - process.decay(t, s) ** 2).clamp(min=0).sqrt()


@dataclass(frozen=True)
class ExponentialRK(Solver):
    """The exponential Runge-Kutta method of 1, 2, 3 or 5 stages for the orders 1 to 4, on any path and in any clock.

    Every stage, and the step itself, integrates exactly the polynomial through one to three stages before it. On DATA
    or NOISE in the clock lam the coefficients are phi functions; orders 2 and 3 are then those of the reference.

    Args:
        order: 1 to 4.
        path: what is predicted, and the coordinates in which it is integrated.
        clock: in what it is a polynomial, and where the stages lie.

    Reference: Hochbruck & Ostermann 2010, section 2.3; 2005, section 5, where order 4 takes five stages as well.
    """

    order: int = 2
    path: Path = DATA
    clock: Clock = InLam()

    def __post_init__(self) -> None:
        if self.order not in STAGES:
            raise ValueError(f"ExponentialRK has orders 1 to 4; got {self.order!r}.")

    @property
    def evals(self) -> int:  # type: ignore[override]
        """One network call a stage."""
        return len(STAGES[self.order])

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        def go(known: Known, at: Tensor) -> Tensor:
            return advance(self.path, self.clock, system, x, known, at)

        return Step(climb(self.order, self.clock, go, system, system(x, t), s)[0])
