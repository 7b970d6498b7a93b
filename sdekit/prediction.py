r"""One answer of a network, seen as x0, eps, score, v or velocity.

What a network is trained to output, and what a solver wants to know, are the same kind of thing, a *target*: a mixture
c F = a x0 + b eps of data and noise. With x = alpha x0 + sigma eps, an answer F to one target gives any other, F', by
a 2 x 2 linear system:

    c' F' = a' x0 + b' eps = (a' b - b' a) / D x + c (alpha b' - sigma a') / D F,          D = alpha b - sigma a
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time, like
from sdekit._value import Value
from sdekit.process import Process

Mixture: TypeAlias = tuple[Tensor | float, Tensor | float, Tensor | float]
"""The coefficients (a, b, c) of c F = a x0 + b eps."""


class Target(Value, ABC):
    """What a network outputs: F with c F = a x0 + b eps. A subclass gives the coefficients (a, b, c), no more."""

    @abstractmethod
    def mixture(self, process: Process, t: Tensor) -> Mixture:
        """Return (a, b, c) at the times `t`, each a number or of the shape of `t`, finite wherever it can be."""

    def of(self, process: Process, t: Time, x0: Tensor, eps: Tensor) -> Tensor:
        """Return the target itself, (a x0 + b eps) / c, for known data and noise: what a network is trained on."""
        a, b, c = self.mixture(process, as_time(t))
        if isinstance(c, Tensor) or c != 1:
            a, b = a / c, b / c
        if _absent(a):
            return _scaled(b, eps)
        return _scaled(a, x0) if _absent(b) else combined(a, x0, b, eps)

    def gain(self, process: Process, t: Time) -> Tensor:
        """Return c_out = d x0 / d F = -sigma c / D, the factor from an error of the network to an error of x0."""
        t = as_time(t)
        return as_time(exchange(process, t, self.mixture(process, t), X0().mixture(process, t))[1]).expand_as(t)

    def scale_in(self, process: Process, t: Tensor) -> Tensor | float:
        """Return c_in, by which the state is multiplied before the network sees it."""
        return 1.0


@dataclass(frozen=True)
class X0(Target):
    """The clean data x0."""

    def mixture(self, process: Process, t: Tensor) -> Mixture:
        return 1.0, 0.0, 1.0


@dataclass(frozen=True)
class Eps(Target):
    """The noise eps. Reference: Ho et al. 2020 (arXiv 2006.11239), eq. 11."""

    def mixture(self, process: Process, t: Tensor) -> Mixture:
        return 0.0, 1.0, 1.0


@dataclass(frozen=True)
class Score(Target):
    """The score grad log p_t(x) = -eps / sigma. Reference: Vincent 2011; Song et al. 2021 (arXiv 2011.13456), eq. 7."""

    def mixture(self, process: Process, t: Tensor) -> Mixture:
        return 0.0, -1.0, process.sigma(t)


@dataclass(frozen=True)
class V(Target):
    """The v-prediction alpha eps - sigma x0. Reference: Salimans & Ho 2022 (arXiv 2202.00512), section 4."""

    def mixture(self, process: Process, t: Tensor) -> Mixture:
        return -process.sigma(t), process.alpha(t), 1.0


@dataclass(frozen=True)
class Velocity(Target):
    """The velocity of the flow, alpha' x0 + sigma' eps: the drift of the probability-flow ODE.

    Reference: Lipman et al. 2023 (arXiv 2210.02747), eq. 15; Liu et al. 2023 (arXiv 2209.03003).
    """

    def mixture(self, process: Process, t: Tensor) -> Mixture:
        return *process.rates(t), 1.0


@dataclass(frozen=True)
class Preconditioned(Target):
    """EDM's preconditioning on any process, with n^2 = sigma^2 + alpha^2 sigma_data^2:

        F = (sigma x0 / sigma_data - alpha sigma_data eps) / n,          c_in = 1 / n

    It is the v-prediction of data in units of sigma_data, with the sign turned; input and target have variance 1.

    Args:
        sigma_data: standard deviation of the data, over all coordinates.

    Reference: Karras et al. 2022 (arXiv 2206.00364), table 1 and appendix B.6.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, the data's standard deviation; got {self.sigma_data}.")

    def mixture(self, process: Process, t: Tensor) -> Mixture:
        sigma, signal = process.sigma(t), self.sigma_data * process.alpha(t)
        return sigma / self.sigma_data, -signal, torch.hypot(sigma, signal)

    def scale_in(self, process: Process, t: Tensor) -> Tensor:
        return 1 / torch.hypot(process.sigma(t), self.sigma_data * process.alpha(t))


@dataclass(frozen=True, eq=False)
class Prediction:
    """A model's answer at the state `x` and time `t`: read it as `.x0`, `.eps`, `.score`, `.v` or `.velocity`.

    Args:
        process: the forward process that relates data and noise.
        x: the state, shape (B, ...).
        t: the time, 0-d or shape (B,).
        answer: what the model said, of the shape of `x`.
        target: what that answer means.

    Asking for what was answered returns it untouched. A view that the answer cannot determine (x0 from eps where
    alpha = 0, eps from x0 where sigma = 0) is not finite there.
    """

    process: Process
    x: Tensor
    t: Tensor
    answer: Tensor
    target: Target

    def view(self, target: Target) -> Tensor:
        """Return the answer as another target."""
        return self.answer if target == self.target else self.mix(target.mixture(self.process, self.t))

    def mix(self, mixture: Mixture) -> Tensor:
        """Return (a' x0 + b' eps) / c' for the coefficients (a', b', c')."""
        given = self.target.mixture(self.process, self.t)
        of_x, of_answer = exchange(self.process, self.t, given, mixture)
        part = like(of_answer, self.x) * self.answer
        return part if _absent(of_x) else like(of_x, self.x) * self.x + part

    @cached_property
    def x0(self) -> Tensor:
        """The expected clean data E[x0 | x]."""
        return self.view(X0())

    @cached_property
    def eps(self) -> Tensor:
        """The expected noise E[eps | x]."""
        return self.view(Eps())

    @cached_property
    def score(self) -> Tensor:
        """The score grad log p_t(x) = -eps / sigma."""
        return self.view(Score())

    @cached_property
    def v(self) -> Tensor:
        """The v-prediction alpha eps - sigma x0."""
        return self.view(V())

    @cached_property
    def velocity(self) -> Tensor:
        """The velocity alpha' x0 + sigma' eps of the probability flow."""
        return self.view(Velocity())


@dataclass(frozen=True, eq=False)
class WithVariance(Prediction):
    """A prediction that also says how large the variance of the step is.

    Args:
        place: where log variance lies between log beta-tilde (-1) and log beta (1), of the shape of `x`.

    Reference: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15, whose v is (1 + place) / 2.
    """

    place: Tensor


def exchange(process: Process, t: Tensor, given: Mixture, wanted: Mixture) -> tuple[Tensor | float, Tensor | float]:
    """Return the coefficients of x and of the answer in the wanted target: the system at the head of this file.

    Args:
        process: the forward process.
        t: the time.
        given: the coefficients (a, b, c) of what was answered.
        wanted: those of what is wanted, (a', b', c').
    """
    (a, b, c), (a_, b_, c_) = given, wanted
    if _absent(a) and _absent(a_):  # both all noise, or both all data: the state does not enter, nor may its ends
        return 0.0, c * b_ / (c_ * b)
    if _absent(b) and _absent(b_):
        return 0.0, c * a_ / (c_ * a)
    alpha, sigma = process.alpha(t), process.sigma(t)
    scale = 1 / (c_ * (alpha * b - sigma * a))
    return (a_ * b - b_ * a) * scale, c * (alpha * b_ - sigma * a_) * scale


def combined(a: Tensor | float, x0: Tensor, b: Tensor | float, eps: Tensor) -> Tensor:
    """Return a x0 + b eps for coefficients that are numbers, 0-d, or of shape (B,)."""
    b = like(b, eps)
    return torch.addcmul(_scaled(a, x0), b, eps) if isinstance(b, Tensor) else _scaled(a, x0) + b * eps


def _scaled(coefficient: Tensor | float, x: Tensor) -> Tensor:
    return x if not isinstance(coefficient, Tensor) and coefficient == 1 else like(coefficient, x) * x


def _absent(coefficient: Tensor | float) -> bool:
    return not isinstance(coefficient, Tensor) and coefficient == 0


class Model(Protocol):
    """Anything that predicts: a `Denoiser` around a network, an oracle, a guided model.

    A model that asks its network more than once per call says so in an attribute `calls`, and if that depends on the
    time in a method `calls_at(t)` too: see `calls`. One that always answers in the same target may name it in an
    attribute `predicts`.
    """

    @property
    def process(self) -> Process:
        """The forward process the model belongs to."""

    def __call__(self, x: Tensor, t: Time, /) -> Prediction:
        """Predict at the states `x`, shape (B, ...), and the time `t`, a scalar or of shape (B,)."""


def calls(model: Model, t: Time | None = None) -> int:
    """Return the network calls of one prediction at the time `t`, or the most there are at any time.

    They are what the model says in `calls_at(t)` and `calls`; one that says nothing makes one.
    """
    at = None if t is None else getattr(model, "calls_at", None)
    return int(getattr(model, "calls", 1) if at is None else at(t))
