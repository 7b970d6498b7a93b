r"""One step of the DPM-Solver family: a prediction held polynomial in lam, and the papers' weights for it.

With h = lam_s - lam_t and the noise level eta, either of two predictions m is the integrand:

    x0:   x_s = sigma_s/sigma_t e^{-eta h} x + C m_0 - alpha_s sum_i w_i (m_i - m_0),            z = -(1 + eta) h
    eps:  x_s = alpha_s/alpha_t x + C m_0 - (1 + eta) sigma_s sum_i w_i (m_i - m_0),             z = h

Here m_0 is the prediction at t, m_i those at lam_t + r_i h, and C is what makes the step exact for a constant m. The
weights w_i are made of z phi_k(z), with phi_1(z) = (e^z - 1)/z and phi_{k+1}(z) = (phi_k(z) - 1/k!)/z.

Reference: Lu et al. 2022 (arXiv 2206.00927), eq. 3.4 and appendix B; Lu et al. 2022 (arXiv 2211.01095), eq. 8-9.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from sdekit.equation import System
from sdekit.prediction import Prediction

Rule: TypeAlias = Callable[[list[Tensor], Tensor], list[Tensor]]
"""rule(r, z): the weights w_i of m_i - m_0 for predictions at lam_t + r_i h."""


class Integrand(ABC):
    """Which prediction is held polynomial, and the coefficients that go with it."""

    @abstractmethod
    def of(self, prediction: Prediction) -> Tensor:
        """Return the integrand's value m in a prediction."""

    @abstractmethod
    def keep(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        """Return the coefficient of the state."""

    @abstractmethod
    def own(self, system: System, t: Tensor, s: Tensor, keep: Tensor) -> Tensor:
        """Return C, the coefficient of m_0 in a step of order 1, given `keep`."""

    @abstractmethod
    def gain(self, system: System, s: Tensor) -> Tensor:
        """Return the factor before the weights."""

    @abstractmethod
    def exponent(self, system: System, h: Tensor) -> Tensor:
        """Return z for the step h in lam."""

    @abstractmethod
    def spread(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        """Return the standard deviation of the fresh noise."""


class DataIntegrand(Integrand):
    """x0_hat. The fresh noise is sigma_s sqrt(1 - e^{-2 eta h}) z."""

    def of(self, prediction: Prediction) -> Tensor:
        return prediction.x0

    def keep(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        process = system.process
        return process.sigma(s) / process.sigma(t) * process.decay(t, s) ** system.eta

    def own(self, system: System, t: Tensor, s: Tensor, keep: Tensor) -> Tensor:
        return system.process.alpha(s) - keep * system.process.alpha(t)

    def gain(self, system: System, s: Tensor) -> Tensor:
        return -system.process.alpha(s)

    def exponent(self, system: System, h: Tensor) -> Tensor:
        return -(1 + system.eta) * h

    def spread(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        fresh = 1 - system.process.decay(t, s) ** (2 * system.eta)
        return system.process.sigma(s) * fresh.clamp(min=0).sqrt()


DATA = DataIntegrand()


class NoiseIntegrand(Integrand):
    """eps_hat. The fresh noise is sqrt(eta) sigma_s sqrt(e^{2h} - 1) z, but that of x0_hat where alpha_t = 0."""

    def of(self, prediction: Prediction) -> Tensor:
        return prediction.eps

    def keep(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        return system.process.alpha(s) / system.process.alpha(t)

    def own(self, system: System, t: Tensor, s: Tensor, keep: Tensor) -> Tensor:
        return (1 + system.eta) * (system.process.sigma(s) - keep * system.process.sigma(t))

    def gain(self, system: System, s: Tensor) -> Tensor:
        return -(1 + system.eta) * system.process.sigma(s)

    def exponent(self, system: System, h: Tensor) -> Tensor:
        return h

    def spread(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        process = system.process
        carried = self.keep(system, t, s) * process.sigma(t)  # sigma_s e^h
        if not bool(carried.isfinite()):
            return DATA.spread(system, t, s)
        return (system.eta * (carried**2 - process.sigma(s) ** 2)).clamp(min=0).sqrt()


NOISE = NoiseIntegrand()


def advance(
    integrand: Integrand, system: System, x: Tensor, seen: Sequence[Prediction], s: Tensor, rule: Rule
) -> Tensor:
    """Return the mean of the state at s, from the state `x` at the time t of `seen[0]`, through all of `seen`.

    Where lam is infinite at t or s, or t = s, the step has order 1, and where it is infinite at t, `x` must be the
    state that was asked there. A prediction where lam is infinite does not count, nor does one at the lam of another.
    """
    process, now = system.process, seen[0]
    h = process.lam(s) - process.lam(now.t)
    keep = integrand.keep(system, now.t, s)
    if not bool(keep.isfinite()):  # x is all noise, or all data: the prediction has both parts
        return now.mix((process.alpha(s), process.sigma(s) * process.decay(now.t, s) ** system.eta, 1.0))
    others, r = _apart(system, seen, h)
    of_now = integrand.own(system, now.t, s, keep)
    weights = [integrand.gain(system, s) * w for w in rule(r, integrand.exponent(system, h))] if others else []
    for weight in weights:
        of_now = of_now - weight
    x = keep * x + of_now * integrand.of(now)
    for weight, prediction in zip(weights, others, strict=True):
        if weight != 0:
            x = x + weight * integrand.of(prediction)
    return x


def _apart(system: System, seen: Sequence[Prediction], h: Tensor) -> tuple[list[Prediction], list[Tensor]]:
    """Return the predictions besides the first that count, and their places r_i."""
    others: list[Prediction] = []
    places: list[Tensor] = []
    if bool(h.isfinite()) and bool(h != 0):
        for prediction in seen[1:]:
            r = (system.process.lam(prediction.t) - system.process.lam(seen[0].t)) / h
            if bool(r.isfinite()) and all(bool(r != taken) for taken in (0, *places)):
                others.append(prediction)
                places.append(r)
    return others, places


_FACTORIALS = torch.tensor([float(math.factorial(j)) for j in range(24)], dtype=torch.float64)


def zphi(k: int, z: Tensor) -> Tensor:
    """Return z phi_k(z), to rounding: e^z - 1 for k = 1."""
    if bool(z.abs() < 1):
        return (z ** torch.arange(18, 0, -1) / _FACTORIALS[k : k + 18].flip(0)).sum()  # the small ones first
    value = torch.expm1(z)
    for j in range(1, k):
        value = value / z - 1 / math.factorial(j)
    return value


def exact(r: list[Tensor], z: Tensor) -> list[Tensor]:
    """Integrate the polynomial through all predictions exactly.

    sum_i w_i r_i^k = k! z phi_{k+1}(z) for k = 1 ... n. Reference: Zhao et al. 2023 (arXiv 2302.04867), theorem 3.1.
    """
    powers = torch.stack([torch.stack(r) ** k for k in range(1, len(r) + 1)])
    moments = torch.stack([math.factorial(k) * zphi(k + 1, z) for k in range(1, len(r) + 1)])
    return list(torch.linalg.solve(powers, moments).unbind())


def midpoint(r: list[Tensor], z: Tensor) -> list[Tensor]:
    """Take phi_2 = phi_1 / 2 for one other prediction. Reference: Lu et al. 2022 (arXiv 2206.00927), algorithm 1."""
    return [zphi(1, z) / (2 * r[0])]
