"""The way back: a process from the drift and diffusion of its stochastic differential equation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdekit._broadcast import as_time
from sdekit.process.base import Process


@dataclass(frozen=True, kw_only=True)
class FromDrift(Process):
    r"""The process of dx = f(t) x dt + g(t) dw started from data at t = 0:

        log alpha(t) = \int_0^t f,          sigma(t)^2 = alpha(t)^2 \int_0^t g^2 / alpha^2

    The integrals are Gauss-Legendre sums in float64, exact to rounding for smooth f and g.

    Args:
        rate: f, a function of a tensor of times.
        noise: g, a function of a tensor of times.

    Raises:
        ValueError: the sums have not converged, because f or g is not smooth or t_max is too large.

    >>> ou = FromDrift(rate=lambda t: -0.5 * torch.ones_like(t), noise=torch.ones_like, t_max=10.0)
    >>> round(float(ou.sigma(1.0)) ** 2, 6)  # 1 - 1/e
    0.632121
    """

    rate: Callable[[Tensor], Tensor]
    noise: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        t = torch.linspace(self.t_min, self.t_max, 9, dtype=torch.float64)
        for order in (48, 64):
            log_alpha, scaled = self._integrals(t, order)
            if order == 48:
                coarse = torch.stack([log_alpha, scaled.log()])
        worst = float((torch.stack([log_alpha, scaled.log()]) - coarse).abs().max())
        if not worst < 1e-8:
            raise ValueError(
                "f and g must be smooth on [0, t_max] so that their integrals converge; 48 and 64 Gauss points differ "
                f"by {worst:.1e} in log alpha or log sigma. Give alpha and sigma as formulas, or a smaller t_max."
            )
        super().__post_init__()

    def _log_alpha(self, t: Tensor, order: int) -> Tensor:
        nodes, weights = _gauss(order, t)
        return t * (self.rate(t[..., None] * nodes) * weights).sum(-1)

    def _integrals(self, t: Tensor, order: int = 64) -> tuple[Tensor, Tensor]:
        """Return log alpha and the integral of g^2 / alpha^2, from 0 to t."""
        nodes, weights = _gauss(order, t)
        u = t[..., None] * nodes
        density = self.noise(u) ** 2 * torch.exp(-2 * self._log_alpha(u, order))
        return self._log_alpha(t, order), t * (density * weights).sum(-1)

    def alpha(self, t: Tensor) -> Tensor:
        return self._log_alpha(t, 64).exp()

    def sigma(self, t: Tensor) -> Tensor:
        log_alpha, scaled = self._integrals(t)
        return log_alpha.exp() * scaled.sqrt()

    def f(self, t: Tensor) -> Tensor:
        return as_time(self.rate(t))

    def g2(self, t: Tensor) -> Tensor:
        return as_time(self.noise(t)) ** 2

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma, f = self.alpha(t), self.sigma(t), self.f(t)
        return f * alpha, f * sigma + self.g2(t) / (2 * sigma)


_legendre = functools.cache(np.polynomial.legendre.leggauss)


def _gauss(order: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = _legendre(order)
    return torch.from_numpy((nodes + 1) / 2).to(like), torch.from_numpy(weights / 2).to(like)
