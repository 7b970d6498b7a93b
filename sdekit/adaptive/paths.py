r"""What an embedded pair integrates: the probability flow with its linear part solved, on one of the model's answers.

On each path the flow from t to s is exact in the answer F along it,

    x_s = keep x + gain_s \int_0^h e^{-kappa (h - u)} F(u) du,          h = u_s - u_t

and a method replaces F by a polynomial in u / h. The coordinate u and the factors differ by path; weights are exact.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit._broadcast import like
from sdekit._value import Value
from sdekit.prediction import Prediction
from sdekit.process import Process

Row = tuple[tuple[float, ...], ...]
"""A polynomial in u / h whose coefficients mix answers: row[k][j] is the share of answer j in the power k."""


class AnswerPath(Value, ABC):
    """A way to write the probability flow; see the head of this file.

    Attributes:
        kappa: the rate of the exponential weight.
        pace: the first step, in units of the coordinate, at a tolerance of 1.
    """

    kappa: ClassVar[float]
    pace: ClassVar[float]

    @abstractmethod
    def at(self, process: Process, t: Tensor) -> Tensor:
        """Return the coordinate u at the times `t`."""

    @abstractmethod
    def time(self, process: Process, u: Tensor) -> Tensor:
        """Return the time at which `u` is reached."""

    @abstractmethod
    def keep(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        """Return the factor of the state."""

    @abstractmethod
    def gain(self, process: Process, s: Tensor) -> Tensor:
        """Return the factor of the integral."""

    @abstractmethod
    def answer(self, prediction: Prediction) -> Tensor:
        """Return the view F of a prediction."""

    def integral(self, answers: list[Tensor], row: Row, h: Tensor, node: float) -> Tensor:
        r"""Return \int_0^{c h} e^{-kappa (c h - u)} P(u / h) du for the polynomial P of a `row`, with c = `node`.

        Args:
            answers: F at the nodes so far, shape (B, ...).
            row: the polynomial.
            h: the steps, shape (B,).
            node: the share of the step.
        """
        weights = torch.zeros(len(answers), len(h), dtype=h.dtype)
        for power, mixture in enumerate(row):
            moment = math.factorial(power) * node ** (power + 1) * h * phi(power + 1, -self.kappa * node * h)
            for j, share in enumerate(mixture):
                weights[j] += share * moment
        terms = [like(w, F) * F for w, F in zip(weights, answers, strict=True) if bool(w.any())]
        return sum(terms[1:], start=terms[0]) if terms else torch.zeros_like(answers[0])


class _AlongLam(AnswerPath):
    """A path in lam = log(alpha/sigma), which must be finite."""

    pace = 1.0

    def at(self, process: Process, t: Tensor) -> Tensor:
        return process.lam(t)

    def time(self, process: Process, u: Tensor) -> Tensor:
        return process.time(u)


@dataclass(frozen=True)
class OnData(_AlongLam):
    r"""x_s = sigma_s/sigma_t x + alpha_s \int e^{-(lam_s - lam)} x0_hat dlam.

    Reference: Lu et al. 2022 (arXiv 2211.01095), eq. 8.
    """

    kappa = 1.0

    def keep(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        return process.sigma(s) / process.sigma(t)

    def gain(self, process: Process, s: Tensor) -> Tensor:
        return process.alpha(s)

    def answer(self, prediction: Prediction) -> Tensor:
        return prediction.x0


@dataclass(frozen=True)
class OnNoise(_AlongLam):
    r"""x_s = alpha_s/alpha_t x - sigma_s \int e^{lam_s - lam} eps_hat dlam.

    Reference: Lu et al. 2022 (arXiv 2206.00927), eq. 3.4 (proposition 3.1).
    """

    kappa = -1.0

    def keep(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        return process.alpha(s) / process.alpha(t)

    def gain(self, process: Process, s: Tensor) -> Tensor:
        return -process.sigma(s)

    def answer(self, prediction: Prediction) -> Tensor:
        return prediction.eps


@dataclass(frozen=True)
class OnVelocity(AnswerPath):
    r"""x_s = n_s/n_t x + n_s \int v_hat/n dtheta, with theta = atan2(sigma, alpha) and n = sqrt(alpha^2 + sigma^2).

    Every process is the same flow of x / n in the angle, which is finite also where alpha or sigma vanishes.

    Reference: Salimans & Ho 2022 (arXiv 2202.00512), appendix D.
    """

    kappa = 0.0
    pace = 0.25

    def at(self, process: Process, t: Tensor) -> Tensor:
        return process.angle(t)

    def time(self, process: Process, u: Tensor) -> Tensor:
        return process.time(-u.tan().log())

    def keep(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        return scale(process, s) / scale(process, t)

    def gain(self, process: Process, s: Tensor) -> Tensor:
        return scale(process, s)

    def answer(self, prediction: Prediction) -> Tensor:
        v = prediction.v
        return v / like(scale(prediction.process, prediction.t), v)


def scale(process: Process, t: Tensor) -> Tensor:
    """Return n = sqrt(alpha^2 + sigma^2), the scale of the marginal for data of unit variance."""
    return torch.hypot(process.alpha(t), process.sigma(t))


def phi(k: int, z: Tensor) -> Tensor:
    r"""Return phi_k(z) = \int_0^1 e^{(1 - r) z} r^{k-1} / (k-1)! dr for k >= 1, to rounding.

    Reference: Hochbruck & Ostermann 2010, eq. 2.10-2.11.
    """
    series = sum(z**j / float(math.factorial(j + k)) for j in range(18))
    value = torch.expm1(z) / z
    for j in range(1, k):  # loses digits where z is small
        value = (value - 1 / math.factorial(j)) / z
    return torch.where(z.abs() < 1, series, value)
