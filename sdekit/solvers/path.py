r"""The coordinates in which the probability flow is a plain integral, and the clocks in which predictions are smooth.

Let P = a x0 + b eps be a mixture of the two predictions and kappa the scale that fits it. Then, exactly,

    y = x / kappa,          dy = P dtau,          dtau = pace W / kappa^2 dt,          W = alpha sigma' - sigma alpha'

and, on the reverse SDE of noise level eta, with q = kappa / alpha, rho = sigma / alpha and z of variance 1:

    x_s = keep x  +  (1 + eta) kappa_s \int_t^s (q_s / q)^eta P dtau  +  spread z
    keep = kappa_s / kappa_t (q_s / q_t)^eta
    spread^2 = 2 eta (kappa_s / alpha_s)^{2 + 2 eta} alpha_s^2 \int_{rho_s}^{rho_t} q^{-2 - 2 eta} rho drho

What is left to a solver is to say how P goes on: as a polynomial in some clock c(t), through the values that it knows.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.prediction import Mixture, Prediction
from sdekit.process import Process

if TYPE_CHECKING:
    from sdekit.solvers.leg import Leg


class Clock(Value, ABC):
    """A quantity that runs with the time, in which a prediction is taken for a polynomial."""

    @abstractmethod
    def at(self, process: Process, t: Tensor) -> Tensor:
        """Return the clock c at the times `t`; it may be infinite where alpha or sigma vanishes."""

    @abstractmethod
    def lam(self, process: Process, c: Tensor) -> Tensor:
        """Return lam = log(alpha/sigma) where the clock shows `c`."""

    def along(self, process: Process, lam: Tensor) -> Tensor:
        """Return the clock where log(alpha/sigma) is `lam`, finite."""
        return self.at(process, process.time(lam))

    def between(self, process: Process, t: Tensor, s: Tensor, share: float) -> Tensor:
        """Return the time at which that share of the clock's way from t to s is done; of t's own, if it is infinite."""
        ends = self.at(process, t), self.at(process, s)
        if share == 1 or bool(ends[0] == ends[1]):
            return s
        if not all(bool(torch.isfinite(end)) for end in ends):
            return torch.lerp(t, s, share)
        return process.time(self.lam(process, torch.lerp(*ends, share)))


@dataclass(frozen=True)
class InLam(Clock):
    """The clock lam = log(alpha/sigma). Reference: Lu et al. 2022 (arXiv 2206.00927), section 3.1."""

    def at(self, process: Process, t: Tensor) -> Tensor:
        return process.lam(t)

    def lam(self, process: Process, c: Tensor) -> Tensor:
        return c

    def along(self, process: Process, lam: Tensor) -> Tensor:
        return lam


@dataclass(frozen=True)
class InTime(Clock):
    """The process's own time as the clock. Reference: Zhang & Chen 2023 (arXiv 2204.13902), section 3.2 (tAB)."""

    def at(self, process: Process, t: Tensor) -> Tensor:
        return t

    def lam(self, process: Process, c: Tensor) -> Tensor:
        return process.lam(c)

    def between(self, process: Process, t: Tensor, s: Tensor, share: float) -> Tensor:
        return s if share == 1 else torch.lerp(t, s, share)


class Path(Clock):
    """A prediction P, the scale kappa and the clock tau with d(x / kappa) = P dtau. It is its own natural clock."""

    @abstractmethod
    def of(self, prediction: Prediction) -> Tensor:
        """Return P, of the shape of the states."""

    @abstractmethod
    def kappa(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the scale, homogeneous in (alpha, sigma) of degree 1."""

    @abstractmethod
    def tau(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Return the clock, homogeneous in (alpha, sigma) of degree 0."""

    @property
    def pace(self) -> float:
        """The factor of |W| / kappa^2 in dtau, with its sign."""
        return 1.0

    def at(self, process: Process, t: Tensor) -> Tensor:
        return self.tau(process.alpha(t), process.sigma(t))

    def along(self, process: Process, lam: Tensor) -> Tensor:
        return self.tau(*ray(lam))

    def total(self, leg: Leg) -> Tensor:
        """Return the factor of P in a step in which it does not change."""
        if leg.eta == 0:
            return leg.scale * (leg.tau_s - leg.tau_t)
        rule = leg.in_lam(leg.eta)
        return torch.full_like(leg.t, math.nan) if rule is None else rule[1].sum()

    def spread(self, leg: Leg) -> Tensor:
        """Return the standard deviation of a step's fresh noise."""
        rule = leg.in_lam(2 * leg.eta)
        if rule is None:
            return torch.full_like(leg.t, math.nan)
        share = 2 * leg.eta / (1 + 2 * leg.eta) / self.pace  # the rule has the factor 1 + 2 eta, and the pace
        return (-share * leg.scale * (rule[1] * torch.exp(-rule[0])).sum()).clamp(min=0).sqrt()


@dataclass(frozen=True)
class Mix(Path):
    """The path of a constant mixture P = a x0 + b eps: kappa = |b alpha - a sigma|, tau = sigma / (b kappa).

    `DATA`, `NOISE` and `STRAIGHT` are (1, 0), (0, 1) and (-1, 1).

    Args:
        a: the share of the data.
        b: the share of the noise, of the other sign than a; one of them may be 0.
    """

    a: float
    b: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.a) and math.isfinite(self.b) and self.a * self.b <= 0 and self.a != self.b):
            raise ValueError(
                f"kappa = |b alpha - a sigma| must not vanish; got a={self.a}, b={self.b}. Choose a and b of opposite "
                "signs, or one of them 0."
            )

    def of(self, prediction: Prediction) -> Tensor:
        if self == DATA:
            return prediction.x0
        if self == NOISE:
            return prediction.eps
        mixture: Mixture = (self.a, self.b, 1.0)
        return prediction.mix(mixture)

    def kappa(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return abs(self.b) * alpha + abs(self.a) * sigma

    def tau(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (sigma / self.b if self.b else alpha / self.a) / self.kappa(alpha, sigma)

    @property
    def pace(self) -> float:
        return math.copysign(1.0, self.b or -self.a)

    def lam(self, process: Process, c: Tensor) -> Tensor:
        if self.b == 0:
            return torch.log(c * abs(self.a) * self.a)
        share = c * self.b  # sigma / kappa, hence |b| alpha / kappa = 1 - |a| share
        return torch.log((1 - abs(self.a) * share) / (abs(self.b) * share))

    def total(self, leg: Leg) -> Tensor:
        if self.a == 0 or (leg.eta == 0 and self.b != 0):
            return (1 + leg.eta) * leg.scale * (leg.tau_s - leg.tau_t)
        return leg.alpha_s / self.a * (1 - leg.growth ** (1 + leg.eta))

    def spread(self, leg: Leg) -> Tensor:
        if self.b == 0:  # where growth is r
            return leg.sigma_s * (1 - leg.growth ** (2 * leg.eta)).clamp(min=0).sqrt()
        if self.a == 0:  # alpha_s sqrt(eta (rho_t^2 - rho_s^2)), which does not cancel
            lost = leg.system.process.decay(leg.t, leg.s) ** 2
            return leg.alpha_s * leg.sigma_t / leg.alpha_t * (leg.eta * (1 - lost)).clamp(min=0).sqrt()
        return super().spread(leg)


@dataclass(frozen=True)
class Turn(Path):
    """The path of the angle tau = atan2(sigma, sigma_data alpha), whose P is EDM's network output with the sign turned:

        P = (sigma_data alpha eps - sigma x0 / sigma_data) / kappa,         kappa^2 = sigma^2 + sigma_data^2 alpha^2

    For sigma_data = 1 and a variance-preserving process, P is the v-prediction.

    Args:
        sigma_data: the standard deviation of the data, for which P has variance 1.

    Reference: Salimans & Ho 2022 (arXiv 2202.00512), appendix D; Karras et al. 2022 (arXiv 2206.00364), table 1.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise ValueError(f"sigma_data must be positive, the data's standard deviation; got {self.sigma_data}.")

    def of(self, prediction: Prediction) -> Tensor:
        process, t = prediction.process, prediction.t
        alpha, sigma = process.alpha(t), process.sigma(t)
        return prediction.mix((-sigma / self.sigma_data, self.sigma_data * alpha, self.kappa(alpha, sigma)))

    def kappa(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.hypot(self.sigma_data * alpha, sigma)

    def tau(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.atan2(sigma, self.sigma_data * alpha)

    @property
    def pace(self) -> float:
        return self.sigma_data

    def lam(self, process: Process, c: Tensor) -> Tensor:
        return -torch.log(self.sigma_data * torch.tan(c))


DATA, NOISE, STRAIGHT = Mix(1.0, 0.0), Mix(0.0, 1.0), Mix(-1.0, 1.0)


def ray(lam: Tensor) -> tuple[Tensor, Tensor]:
    """Return (alpha, sigma) with log(alpha/sigma) = lam and alpha^2 + sigma^2 = 1, both to full relative precision."""
    return torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
