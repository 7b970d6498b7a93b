"""The equations a sampler may solve: the probability-flow ODE, the reverse SDE, the forward SDE."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdekit._broadcast import Time, as_time, like
from sdekit._value import Value
from sdekit.prediction import Model, Prediction, calls
from sdekit.process import Process


class Equation(Value, ABC):
    """An equation for the state. `equation.of(model)` binds it to a model and counts its network calls.

    Attributes:
        eta: the noise level; it multiplies g^2.
        direction: the sign of the time steps for which it holds, -1 towards data, 1 towards noise, 0 for both.
    """

    eta: float = 0.0
    direction: ClassVar[int] = 0

    @abstractmethod
    def drift(self, system: System, x: Tensor, t: Tensor) -> Tensor:
        """Return the drift at the states `x` and the time `t`."""

    def diffusion(self, process: Process, t: Tensor) -> Tensor:
        """Return the diffusion coefficient sqrt(eta) g(t)."""
        return math.sqrt(self.eta) * process.diffusion(t)

    def clock(self, process: Process, t: Tensor) -> Tensor:
        """Return the time of the Brownian motion whose increments drive the equation exactly: e^{2 eta lam}."""
        return (2 * self.eta * process.lam(t)).exp()

    def of(self, model: Model) -> System:
        """Bind the equation to a model."""
        return System(self, model)


@dataclass(frozen=True)
class ProbabilityFlow(Equation):
    """The deterministic flow with the marginals of the process: dx/dt = alpha' x0 + sigma' eps = f x - g^2/2 score.

    Reference: Song et al. 2021 (arXiv 2011.13456), eq. 13.
    """

    def drift(self, system: System, x: Tensor, t: Tensor) -> Tensor:
        return system(x, t).velocity


@dataclass(frozen=True)
class ReverseSDE(Equation):
    """The reverse-time SDE with noise level eta, which has the marginals of the process for every eta:

        dx = [f x - (1 + eta)/2 g^2 score] dt + sqrt(eta) g dw

    eta = 0 is the probability flow, eta = 1 is Anderson's equation.

    Reference: Anderson 1982; Song et al. 2021 (arXiv 2011.13456), eq. 6; Huang et al. 2021 (arXiv 2106.02808), eq. 19.
    """

    eta: float = 1.0
    direction: ClassVar[int] = -1

    def __post_init__(self) -> None:
        if not 0 <= self.eta < float("inf"):
            raise ValueError(f"eta multiplies g^2 and must be finite and at least 0; got {self.eta}.")

    def drift(self, system: System, x: Tensor, t: Tensor) -> Tensor:
        if self.eta == 0:
            return system(x, t).velocity  # finite also where g is not
        process = system.process
        alpha_rate, sigma_rate = process.rates(t)
        # -eta/2 g^2 score = eta g^2 / (2 sigma) eps: one mixture of x0 and eps, like the velocity it is added to
        noise_rate = sigma_rate + self.eta * process.g2(t) / (2 * process.sigma(t))
        return system(x, t).mix((alpha_rate, noise_rate, 1.0))


@dataclass(frozen=True)
class ForwardSDE(Equation):
    """The forward process itself, dx = f x dt + g dw, run from data to noise; it asks the model nothing."""

    eta = 1.0
    direction: ClassVar[int] = 1

    def drift(self, system: System, x: Tensor, t: Tensor) -> Tensor:
        return like(system.process.f(t), x) * x

    def clock(self, process: Process, t: Tensor) -> Tensor:
        return (-2 * process.lam(t)).exp()


class System:
    """An equation of a model, as solvers see it: predictions, drift and diffusion, with the network calls counted.

    Attributes:
        nfe: the network calls made so far.
    """

    def __init__(self, equation: Equation, model: Model) -> None:
        self.equation = equation
        self.model = model
        self.process = model.process
        self.nfe = 0

    @property
    def eta(self) -> float:
        """The equation's noise level."""
        return self.equation.eta

    def __call__(self, x: Tensor, t: Time) -> Prediction:
        """Ask the model at the states `x` and the time `t`."""
        self.nfe += calls(self.model, t)
        return self.model(x, t)

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return the equation's drift at the states `x` and the time `t`."""
        return self.equation.drift(self, x, as_time(t))

    def diffusion(self, t: Time) -> Tensor:
        """Return the equation's diffusion coefficient at the time `t`."""
        return self.equation.diffusion(self.process, as_time(t))
