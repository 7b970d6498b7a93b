"""The processes of the literature, each two formulas long; what else is given is a closed form of what is derived."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.process.base import Process


@dataclass(frozen=True, kw_only=True)
class VP(Process):
    """Variance preserving, with beta(t) linear from beta_min to beta_max on [0, 1]:

        log alpha = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2,     sigma^2 = 1 - alpha^2

    >>> round(float(VP().lam(1.0)), 3)
    -5.025

    Reference: Song et al. 2021 (arXiv 2011.13456), eq. 29 and 32-33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log alpha(t)."""
        return -0.25 * (self.beta_max - self.beta_min) * t**2 - 0.5 * self.beta_min * t

    def beta(self, t: Tensor) -> Tensor:
        """Return beta(t) = beta_min + (beta_max - beta_min) t."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        half = 0.5 * self.beta(t)
        alpha = self.alpha(t)
        return -half * alpha, half * alpha**2 / self.sigma(t)

    def f(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    def g2(self, t: Tensor) -> Tensor:
        return self.beta(t)

    def time(self, lam: Tensor) -> Tensor:
        # log alpha = -log(1 + e^{-2 lam}) / 2 is a quadratic in t; the root is written without cancellation
        rest = torch.nn.functional.softplus(-2 * lam)
        slope = self.beta_max - self.beta_min
        return 2 * rest / (self.beta_min + (self.beta_min**2 + 2 * slope * rest).sqrt())


@dataclass(frozen=True, kw_only=True)
class SubVP(VP):
    """Sub-VP: the drift of VP with less noise, alpha as in VP and sigma = 1 - alpha^2.

    Reference: Song et al. 2021 (arXiv 2011.13456), eq. 29, third line.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        half, alpha = 0.5 * self.beta(t), self.alpha(t)
        return -half * alpha, 2 * half * alpha**2

    def g2(self, t: Tensor) -> Tensor:
        return self.beta(t) * -torch.expm1(4 * self.log_alpha(t))

    def time(self, lam: Tensor) -> Tensor:
        # alpha / (1 - alpha^2) = e^lam, so -log alpha = asinh(e^{-lam} / 2)
        rest = 2 * torch.asinh(torch.exp(-lam) / 2)
        slope = self.beta_max - self.beta_min
        return 2 * rest / (self.beta_min + (self.beta_min**2 + 2 * slope * rest).sqrt())


@dataclass(frozen=True, kw_only=True)
class VE(Process):
    """Variance exploding: alpha = 1 and sigma(t) = sigma_min (sigma_max / sigma_min)^t.

    Noise of size sigma_min is never left at finite times, so the clean end lies at t = -inf.

    Reference: Song et al. 2021 (arXiv 2011.13456), eq. 30.
    """

    t_min: float = 0.0
    sigma_min: float = 0.01
    sigma_max: float = 50.0
    clean: ClassVar[float] = -math.inf

    def __post_init__(self) -> None:
        if not self.sigma_min > 0:
            raise ValueError(f"sigma_min must be positive; got {self.sigma_min}. For sigma down to 0 use EDM.")
        super().__post_init__()

    @property
    def rate(self) -> float:
        """Return log(sigma_max / sigma_min), the growth rate of sigma."""
        return math.log(self.sigma_max / self.sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(self.rate * t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), self.rate * self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / self.rate


@dataclass(frozen=True, kw_only=True)
class EDM(Process):
    """Variance exploding with the noise level as time: alpha = 1 and sigma(t) = t.

    Reference: Karras et al. 2022 (arXiv 2206.00364), table 1, last column.
    """

    t_min: float = 0.002
    t_max: float = 80.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Process):
    """The straight path alpha = 1 - t, sigma = t, with data at t = 0.

    The default ends keep lam finite, which exponential integrators and grids in lam need. Solvers on the velocity
    (Euler, Heun, Runge-Kutta) with grids in time may use the whole path, `RectifiedFlow(t_min=0, t_max=1)`.

    Reference: Liu et al. 2023 (arXiv 2209.03003), eq. 1; Lipman et al. 2023 (arXiv 2210.02747), eq. 20-21.
    """

    t_max: float = 0.999

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.ones_like(t), torch.ones_like(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@dataclass(frozen=True, kw_only=True)
class Cosine(Process):
    """The cosine schedule in continuous time, with theta(t) = (t + s) / (1 + s) pi / 2:

        alpha(t) = cos theta(t) / cos theta(0),     sigma^2 = 1 - alpha^2

    t_max = 0.9946 keeps alpha away from 0.

    Reference: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17; the end as in Lu et al. 2022 (arXiv 2206.00927).
    """

    t_max: float = 0.9946
    s: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.s < math.inf:
            raise ValueError(f"The offset s must be at least 0 and finite; got {self.s}. The paper's is 0.008.")
        super().__post_init__()

    def theta(self, t: Tensor) -> Tensor:
        """Return the angle theta(t) in radians."""
        return (t + self.s) * (math.pi / 2 / (1 + self.s))

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(self.theta(t)) / math.cos(self.s * math.pi / 2 / (1 + self.s))

    def sigma(self, t: Tensor) -> Tensor:
        # 1 - cos^2 a / cos^2 b = sin(a - b) sin(a + b) / cos^2 b, where a - b is a multiple of t: no digits are lost
        b, rise = self.s * math.pi / 2 / (1 + self.s), t * (math.pi / 2 / (1 + self.s))
        return (torch.sin(rise) * torch.sin(rise + 2 * b)).sqrt() / math.cos(b)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = self.s * math.pi / 2 / (1 + self.s)
        da = -torch.sin(self.theta(t)) / math.cos(b) * (math.pi / 2 / (1 + self.s))
        return da, -self.alpha(t) * da / self.sigma(t)

    def time(self, lam: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.nn.functional.softplus(-2 * lam)
        cosine = torch.exp(log_alpha) * math.cos(self.s * math.pi / 2 / (1 + self.s))
        return torch.acos(cosine.clamp(max=1)) * (2 / math.pi * (1 + self.s)) - self.s


@dataclass(frozen=True, kw_only=True)
class TrigFlow(Process):
    """The angle as time: alpha = cos t, sigma = sin t. Its velocity is the v-prediction.

    Reference: Lu & Song 2025 (arXiv 2410.11081), section 3.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.sin(t), torch.cos(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam))
