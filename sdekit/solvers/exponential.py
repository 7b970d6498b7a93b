r"""Exponential integrators in lam = log(alpha/sigma), for the probability flow and the reverse SDE alike.

With h = lam_s - lam_t, r = e^{-h}, and the noise level eta, the linear part of either equation is solved exactly:

    x_s = sigma_s/sigma_t r^eta x  +  alpha_s (1 + eta) \int e^{-(1 + eta)(lam_s - lam)} x0_hat dlam
                                   +  sigma_s sqrt(1 - r^{2 eta}) z

and x0_hat is replaced by the polynomial in lam through its last values. Order 1 is DDIM (eta = 0) or DDPM (eta = 1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step


@dataclass(frozen=True)
class Exponential(Solver):
    """The exponential multistep integrator on x0_hat with exact weights.

    The first step of order 3 is a one-step method of order 2, which costs one network call more; so on the probability
    flow the order is reached globally (but for a start where alpha = 0, whose first step has order 1 and caps it at
    2). On the reverse SDE the weak order is at most 2.

    Args:
        order: 1, 2 or 3: how many values of x0_hat the polynomial passes through.

    Reference: Hochbruck & Ostermann 2010, section 2.5 (Adams); Lu et al. 2022 (arXiv 2211.01095), eq. 8-9;
        Zhang & Chen 2023 (arXiv 2204.13902), eq. 14-15; Gonzalez et al. 2023 (arXiv 2305.14267), eq. 9 for eta.
    """

    order: int = 2
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow, ReverseSDE)

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"Exponential has orders 1, 2 and 3; got {self.order!r}.")

    @property
    def memory(self) -> int:  # type: ignore[override]
        """One prediction less than the order."""
        return self.order - 1

    @property
    def starts(self) -> int:  # type: ignore[override]
        """One more network call where the first step must be of order 2."""
        return int(self.order > 2)

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        now = system(x, t)
        seen = (now, *past)
        if self.starts and not past:
            middle = (t + s) / 2
            seen = (now, system(self._advance(system, x, (now,), middle), middle))
        x = self._advance(system, x, seen, s)
        if system.eta > 0:
            x = x + self.spread(system, t, s) * noise(t, s)
        return Step(x, now)

    def _advance(self, system: System, x: Tensor, seen: tuple[Prediction, ...], s: Tensor) -> Tensor:
        process, t = system.process, seen[0].t
        x = process.sigma(s) / process.sigma(t) * self.keep(system, t, s) * x
        for weight, prediction in zip(self.weights(system, [p.t for p in seen], s), seen, strict=False):
            x = x + process.alpha(s) * weight * prediction.x0
        return x

    def keep(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        """Return the share of the predicted noise that is kept, r^eta."""
        return system.process.decay(t, s) ** system.eta

    def spread(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        """Return the standard deviation of the fresh noise, sigma_s sqrt(1 - keep^2)."""
        return system.process.sigma(s) * (1 - self.keep(system, t, s) ** 2).clamp(min=0).sqrt()

    def weights(self, system: System, times: list[Tensor], s: Tensor) -> list[Tensor]:
        """Return the weights of x0_hat at `times` (the step's own time first), which sum to 1 - r^{1 + eta}.

        They are (1 + eta) times the integrals of e^{-(1 + eta)(lam_s - lam)} against the polynomial's basis, in
        Newton's form: a node with lam = -inf (where alpha = 0) then drops out by itself.
        """
        process, kappa = system.process, 1 + system.eta
        total = 1 - process.decay(times[0], s) * self.keep(system, times[0], s)
        lams = [process.lam(t) for t in times]
        h = process.lam(s) - lams[0]
        if len(times) == 1 or not bool(torch.isfinite(h)):
            return [total]
        u = [lam - lams[0] for lam in lams]
        moments = [total, *(_moment(k, kappa, h) for k in range(1, len(u)))]
        return _newton_weights(u, moments)


@dataclass(frozen=True)
class TruncatedExponential(Exponential):
    """DPM-Solver++ 2M: the second-order integrator with the paper's weights, which cut the series of the exact ones.

        w_0 = (1 - r^{1 + eta}) (1 + h / 2 h_1),          w_1 = -(1 - r^{1 + eta}) h / 2 h_1

    where h_1 is the step before.

    Reference: Lu et al. 2022 (arXiv 2211.01095), algorithm 2, and appendix D for eta = 1.
    """

    def __post_init__(self) -> None:
        if self.order != 2:
            raise ValueError(
                f"The truncated weights exist for order 2; got {self.order}. Use Exponential({self.order})."
            )

    def weights(self, system: System, times: list[Tensor], s: Tensor) -> list[Tensor]:
        (total,) = super().weights(system, times[:1], s)
        lams = [system.process.lam(t) for t in times]
        h = system.process.lam(s) - lams[0]
        if len(times) == 1 or not bool(torch.isfinite(h)):
            return [total]
        slope = h / (2 * (lams[0] - lams[1]))
        return [total * (1 + slope), -total * slope]


@dataclass(frozen=True)
class Ancestral(Exponential):
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

    def keep(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        return (1 - system.eta * (1 - system.process.decay(t, s) ** 2)).sqrt()

    def spread(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        fresh = (1 - system.process.decay(t, s) ** 2).clamp(min=0)  # not 1 - keep^2, which cancels for a small eta
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


def _moment(k: int, kappa: float, h: Tensor) -> Tensor:
    r"""Return kappa \int_0^h e^{-kappa (h - u)} u^k du = k! kappa h^{k+1} phi_{k+1}(-kappa h), to rounding."""
    z = kappa * h
    small = z.abs() < 1
    series = sum((-z) ** j / math.factorial(j + k + 1) for j in range(18)) * math.factorial(k) * z * h**k
    value = -torch.expm1(-z)
    for j in range(1, k + 1):  # by parts; loses digits where z is small
        value = h**j - j / kappa * value
    return torch.where(small, series, value)


def _newton_weights(u: list[Tensor], moments: list[Tensor]) -> list[Tensor]:
    """Weights of the values at the nodes u (u[0] = 0), from the integrals `moments` of the powers of u."""
    weights = [torch.zeros_like(u[0]) for _ in u]
    basis = [torch.ones_like(u[0])]  # coefficients of prod_{i<k} (x - u_i), lowest power first
    for k, node in enumerate(u):
        integral = torch.stack([c * m for c, m in zip(basis, moments, strict=False)]).sum()
        for j in range(k + 1):
            gaps = [u[j] - u[i] for i in range(k + 1) if i != j]  # the divided difference's denominator
            weights[j] = weights[j] + integral / math.prod(gaps, start=torch.ones_like(integral))
        if k + 1 < len(u):
            raised, lowered = [torch.zeros_like(node), *basis], [*basis, torch.zeros_like(node)]
            basis = [up - node * low for up, low in zip(raised, lowered, strict=True)]
    return weights
