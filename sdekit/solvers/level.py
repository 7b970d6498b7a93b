r"""Noise levels that vary: eta as a function of lam, and what exponential integrators need of it.

With K(t, s) = e^{-\int eta dlam}, the share of the predicted noise that is kept, the reverse SDE is solved by

    x_s = sigma_s/sigma_t K(t, s) x + alpha_s \int x0_hat dP + sigma_s sqrt(1 - K^2) z
    dP  = (1 + eta) e^{-\int_lam^{lam_s} (1 + eta)} dlam,         \int dP = 1 - r K
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.equation import Equation, System
from sdekit.prediction import Prediction
from sdekit.process import Process
from sdekit.solvers.quadrature import gauss


class Level(Value, ABC):
    """A noise level that varies with lam. A subclass gives eta and its primitive."""

    @abstractmethod
    def eta(self, process: Process, lam: Tensor) -> Tensor:
        """Return eta at `lam`, of the shape of `lam`."""

    @abstractmethod
    def primitive(self, process: Process, lam: Tensor) -> Tensor:
        """Return a function of `lam` whose derivative is eta, of the shape of `lam`."""

    def jumps(self, process: Process) -> tuple[float, ...]:
        """Return the values of lam at which eta jumps."""
        return ()

    def keep(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        r"""Return K(t, s) = e^{-\int eta dlam}, the share of the predicted noise that is kept from t to s."""
        return (self.primitive(process, process.lam(t)) - self.primitive(process, process.lam(s))).exp()


@dataclass(frozen=True)
class Constant(Level):
    """The same eta everywhere."""

    level: float = 1.0

    def eta(self, process: Process, lam: Tensor) -> Tensor:
        return torch.full_like(lam, self.level)

    def primitive(self, process: Process, lam: Tensor) -> Tensor:
        return self.level * lam

    def keep(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        return process.decay(t, s) ** self.level


@dataclass(frozen=True)
class Between(Level):
    """One eta at the times from `lo` to `hi`, another outside. What is kept is exact, wherever the steps fall.

    Args:
        lo: the earlier time, nearer to the data.
        hi: the later time.
        level: eta from lo to hi.
        outside: eta elsewhere.

    Reference: Karras et al. 2022 (arXiv 2206.00364), section 4, for noise in an interval alone; Xue et al. 2023
        (arXiv 2309.05019), section 6.1, for the interval of sigmas with tau^2 = eta.
    """

    lo: float
    hi: float
    level: float = 1.0
    outside: float = 0.0

    def __post_init__(self) -> None:
        if not self.lo < self.hi:
            raise ValueError(f"lo < hi must hold, both being times; got lo={self.lo}, hi={self.hi}.")
        if not (0 <= self.level < math.inf and 0 <= self.outside < math.inf):
            raise ValueError(f"A noise level must be finite and at least 0; got {self.level} and {self.outside}.")

    def eta(self, process: Process, lam: Tensor) -> Tensor:
        a, b = self.jumps(process)
        return torch.where((lam > a) & (lam < b), self.level, self.outside).to(lam.dtype)

    def primitive(self, process: Process, lam: Tensor) -> Tensor:
        a, b = self.jumps(process)
        return self.outside * lam + (self.level - self.outside) * lam.clamp(a, b)

    def jumps(self, process: Process) -> tuple[float, ...]:
        return tuple(float(process.lam(t)) for t in (self._ends(process)[::-1]))

    def keep(self, process: Process, t: Tensor, s: Tensor) -> Tensor:
        ends = self._ends(process)
        inner, last = t.clamp(*ends), s.clamp(*ends)
        outer = process.decay(t, inner) * process.decay(last, s)
        return process.decay(inner, last) ** self.level * outer**self.outside

    def _ends(self, process: Process) -> tuple[float, float]:
        lo, hi = (min(max(t, process.t_min), process.t_max) for t in (self.lo, self.hi))
        return lo, hi


@dataclass(frozen=True)
class NoiseScale(Level):
    """The level of ER-SDE's noise scale function phi(u) = u (e^{u^power} + offset), u = sigma / alpha:

        K(t, s) = phi(u_s) u_t / (phi(u_t) u_s),          eta = d log(phi / u) / d log u

    phi(u) = u^p is `Constant(p - 1)`: u is the flow and u^2 is Anderson's equation.

    Reference: Cui et al. 2023 (arXiv 2309.06169), section 4.2, the function called ER SDE 5.
    """

    power: float = 0.3
    offset: float = 10.0

    def eta(self, process: Process, lam: Tensor) -> Tensor:
        raised = (-self.power * lam).exp()
        return self.power * raised / (1 + self.offset * (-raised).exp())

    def primitive(self, process: Process, lam: Tensor) -> Tensor:
        return -torch.logaddexp((-self.power * lam).exp(), torch.full_like(lam, self.offset).log())


@dataclass(frozen=True)
class VaryingSDE(Equation):
    """The reverse SDE whose noise level varies: dx = [f x - (1 + eta)/2 g^2 score] dt + sqrt(eta) g dw, eta = eta(t).

    It has the marginals of the process for every level.

    Args:
        level: eta as a function of lam.

    Reference: Xue et al. 2023 (arXiv 2309.05019), eq. 6; Cui et al. 2023 (arXiv 2309.06169), eq. 7.
    """

    level: Level
    eta = math.nan  # no single one
    direction: ClassVar[int] = -1

    def drift(self, system: System, x: Tensor, t: Tensor) -> Tensor:
        process = system.process
        alpha_rate, sigma_rate = process.rates(t)
        eta = self.level.eta(process, process.lam(t))
        return system(x, t).mix((alpha_rate, sigma_rate + eta * process.g2(t) / (2 * process.sigma(t)), 1.0))

    def diffusion(self, process: Process, t: Tensor) -> Tensor:
        return self.level.eta(process, process.lam(t)).sqrt() * process.diffusion(t)

    def clock(self, process: Process, t: Tensor) -> Tensor:
        return (2 * self.level.primitive(process, process.lam(t))).exp()


def level_of(system: System) -> Level:
    """Return the noise level of a system's equation."""
    equation = system.equation
    return equation.level if isinstance(equation, VaryingSDE) else Constant(equation.eta)


def keep(system: System, t: Tensor, s: Tensor) -> Tensor:
    """Return K(t, s), the share of the predicted noise that is kept."""
    return torch.ones_like(t) if bool(t == s) else level_of(system).keep(system.process, t, s)


def total(system: System, t: Tensor, s: Tensor) -> Tensor:
    """Return the weight of a constant x0_hat, 1 - r K."""
    return torch.zeros_like(t) if bool(t == s) else 1 - system.process.decay(t, s) * keep(system, t, s)


def spread(system: System, t: Tensor, s: Tensor) -> Tensor:
    """Return the standard deviation of the fresh noise, sigma_s sqrt(1 - K^2)."""
    return system.process.sigma(s) * (1 - keep(system, t, s) ** 2).clamp(min=0).sqrt()


def integrals(system: System, t: Tensor, s: Tensor, basis: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    r"""Return the integrals \int f dP from t to s of functions f of lam, to rounding. lam_s must be finite.

    Args:
        system: the equation and the process.
        t: the time where the step begins; alpha may vanish there.
        s: the time where it ends.
        basis: from the nodes lam, shape (n,), to the functions' values there, each of shape (n,).
    """
    process, level = system.process, level_of(system)
    end = process.lam(s)
    start = torch.maximum(process.lam(t), end - 45)  # where e^{-45} is left of the weight
    jumps = sorted(j for j in level.jumps(process) if start < j < end)
    cuts = [start, *torch.tensor(jumps, dtype=torch.float64), end]
    nodes, weights = [], []
    for a, b in itertools.pairwise(cuts):
        at, share = gauss(max(1, math.ceil(abs(float(b - a)) / 3)))
        nodes.append(a + (b - a) * at)
        weights.append((b - a) * share)
    lam = torch.cat(nodes)
    left = level.primitive(process, lam) - level.primitive(process, end)
    density = torch.cat(weights) * (1 + level.eta(process, lam)) * (lam - end + left).exp()
    return [(density * f).sum() for f in basis(lam)]


def advance(system: System, x: Tensor, t: Tensor, s: Tensor, terms: Sequence[tuple[Tensor, Prediction]]) -> Tensor:
    """Return sigma_s/sigma_t K x + alpha_s sum_j w_j x0_hat_j for the terms (w_j, prediction_j)."""
    process = system.process
    x = process.sigma(s) / process.sigma(t) * keep(system, t, s) * x
    for weight, prediction in terms:
        x = x + process.alpha(s) * weight * prediction.x0
    return x
