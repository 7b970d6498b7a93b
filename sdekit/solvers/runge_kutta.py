"""Runge-Kutta methods in time, each a tableau, and Euler-Maruyama."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdekit.equation import Equation, ForwardSDE, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step


class RungeKutta(Solver):
    """An explicit Runge-Kutta method, given by its tableau. With h = s - t and c_i = sum_j a_ij:

        k_i = drift(x + h sum_j a_ij k_j, t + c_i h),          x_s = x + h sum_i b_i k_i

    Attributes:
        a: the rows below the diagonal, the first stage's empty row left out.
        b: the weights, as many as there are stages.

    Reference: Butcher 1964; Hairer, Norsett & Wanner 1993, section II.1.
    """

    a: ClassVar[tuple[tuple[float, ...], ...]]
    b: ClassVar[tuple[float, ...]]

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        h = s - t
        slopes: list[Tensor] = []
        for row in ((), *self.a):
            c = sum(row)
            at = s if c == 1 else t + c * h
            slopes.append(system.drift(_advance(x, h, row, slopes), at))
        return Step(_advance(x, h, self.b, slopes))


def _advance(x: Tensor, h: Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x + h * weight * slope
    return x


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method."""

    a = ()
    b = (1.0,)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's second-order method, the trapezoidal rule with an Euler predictor."""

    order = 2
    evals = 2
    a = ((1.0,),)
    b = (0.5, 0.5)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical fourth-order method. Reference: Kutta 1901."""

    order = 4
    evals = 4
    a = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    b = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler's method for a stochastic equation: x_s = x + (s - t) drift + sqrt(|s - t|) diffusion(t) z.

    Reference: Maruyama 1955; Kloeden & Platen 1992, section 10.2.
    """

    solves: ClassVar[tuple[type[Equation], ...]] = (ReverseSDE, ForwardSDE)

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        h = s - t
        return Step(x + h * system.drift(x, t) + h.abs().sqrt() * system.diffusion(t) * noise(t, s))
