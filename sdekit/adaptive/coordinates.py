r"""The probability flow and the reverse SDE in other variables than time, for solvers that know nothing of diffusion.

In lam = log(alpha/sigma), and in the angle theta = atan2(sigma, alpha) with dlam = -n^2 / (alpha sigma) dtheta, the
state y = x / n, n = sqrt(alpha^2 + sigma^2), obeys the same equation on every process:

    dy = v_hat/n dtheta  -  eta sigma/n eps_hat dlam  +  sqrt(2 eta |dlam|) sigma/n z
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import like
from sdekit._value import Value
from sdekit.adaptive.paths import scale
from sdekit.equation import System
from sdekit.process import Process


class Coordinate(Value, ABC):
    """A variable u in place of time, and a scale of the state."""

    @abstractmethod
    def at(self, process: Process, t: Tensor) -> Tensor:
        """Return u at the time `t`."""

    @abstractmethod
    def time(self, process: Process, u: Tensor) -> Tensor:
        """Return the time at which `u` is reached."""

    def scale(self, process: Process, t: Tensor) -> Tensor:
        """Return n, by which a state is divided."""
        return scale(process, t)

    @abstractmethod
    def drift(self, system: System, x: Tensor, t: Tensor) -> Tensor:
        """Return the drift of y = x / n in u, at the state `x` and the time `t`, 0-d. One call of the model."""

    @abstractmethod
    def diffusion(self, system: System, t: Tensor) -> Tensor:
        """Return the diffusion coefficient of y in u at the time `t`, 0-d."""


@dataclass(frozen=True)
class AlongTime(Coordinate):
    """The process's own time and the state itself."""

    def at(self, process: Process, t: Tensor) -> Tensor:
        return t

    def time(self, process: Process, u: Tensor) -> Tensor:
        return u

    def scale(self, process: Process, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def drift(self, system: System, x: Tensor, t: Tensor) -> Tensor:
        return system.drift(x, t)

    def diffusion(self, system: System, t: Tensor) -> Tensor:
        return system.diffusion(t)


class _Scaled(Coordinate):
    """A coordinate for y = x / n."""

    @abstractmethod
    def turn(self, process: Process, t: Tensor) -> Tensor:
        """Return dtheta/du."""

    @abstractmethod
    def pull(self, process: Process, t: Tensor) -> Tensor:
        """Return sigma/n dlam/du, written so that it is finite where it can be."""

    def drift(self, system: System, x: Tensor, t: Tensor) -> Tensor:
        process = system.process
        prediction = system(x, t)
        flow = like(self.turn(process, t) / scale(process, t), x) * prediction.v
        return flow - system.eta * like(self.pull(process, t), x) * prediction.eps if system.eta else flow

    def diffusion(self, system: System, t: Tensor) -> Tensor:
        share = system.process.sigma(t) / scale(system.process, t)
        return (2 * system.eta * share * self.pull(system.process, t).abs()).sqrt()


@dataclass(frozen=True)
class AlongLam(_Scaled):
    """lam = log(alpha/sigma), which must be finite at both ends of the run."""

    def at(self, process: Process, t: Tensor) -> Tensor:
        lam = process.lam(t)
        if not bool(lam.isfinite().all()):
            raise ValueError(
                f"A run in lam needs a finite log-SNR at both ends; {process} has {float(lam):g} at t={float(t):g}. "
                "Use AlongAngle(), or move the ends inwards."
            )
        return lam

    def time(self, process: Process, u: Tensor) -> Tensor:
        return process.time(u)

    def turn(self, process: Process, t: Tensor) -> Tensor:
        return -process.alpha(t) * process.sigma(t) / scale(process, t) ** 2

    def pull(self, process: Process, t: Tensor) -> Tensor:
        return process.sigma(t) / scale(process, t)


@dataclass(frozen=True)
class AlongAngle(_Scaled):
    """The angle atan2(sigma, alpha), finite at every end; with noise, alpha must not vanish."""

    def at(self, process: Process, t: Tensor) -> Tensor:
        return process.angle(t)

    def time(self, process: Process, u: Tensor) -> Tensor:
        u = u.clamp(min=0.0, max=math.pi / 2)
        return process.time(-u.tan().log())

    def turn(self, process: Process, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def pull(self, process: Process, t: Tensor) -> Tensor:
        return -scale(process, t) / process.alpha(t)


class Track:
    """A run in a coordinate, as a function of the way p >= 0 from its start: libraries go forward only.

    Args:
        coordinate: the variable.
        system: the equation of a model; it counts the network calls.
        ends: the times of the start and of the end.
    """

    def __init__(self, coordinate: Coordinate, system: System, ends: tuple[float, float]) -> None:
        self.coordinate, self.system, self.process = coordinate, system, system.process
        self.ends = tuple(torch.tensor(end, dtype=torch.float64) for end in ends)
        first, last = (coordinate.at(self.process, end) for end in self.ends)
        self.first, self.sign = first, float(torch.sign(last - first))
        self.length = float((last - first).abs())

    def time(self, p: Tensor) -> Tensor:
        """Return the time at the way `p`, 0-d, within the run."""
        p = p.detach().to("cpu", torch.float64)
        if float(p) <= 0 or float(p) >= self.length:  # a library may look past the end, and the ends come out exact
            return self.ends[int(float(p) > 0)]
        time = self.coordinate.time(self.process, self.first + self.sign * p)
        return time.clamp(min(map(float, self.ends)), max(map(float, self.ends)))

    def scale(self, p: Tensor) -> Tensor:
        """Return the scale of the state at the way `p`."""
        return self.coordinate.scale(self.process, self.time(p))

    def drift(self, y: Tensor, p: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the drift in p at y, shape (B, ...); the model is asked in `dtype`."""
        t = self.time(p)
        x = (self.coordinate.scale(self.process, t) * y).to(dtype)
        return self.sign * self.coordinate.drift(self.system, x, t).to(y.dtype)

    def diffusion(self, p: Tensor) -> Tensor:
        """Return the diffusion coefficient in p."""
        return self.coordinate.diffusion(self.system, self.time(p))
