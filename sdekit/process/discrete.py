"""A table of betas as a process in continuous time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sdekit._broadcast import as_time
from sdekit.process.base import Process


@dataclass(frozen=True, kw_only=True, repr=False)
class Discrete(Process):
    """The variance-preserving process of a table beta_1 ... beta_T, with step k = 0 ... T-1 at t = (k + 1) / T.

        alpha(t_k)^2 = prod_{j <= k} (1 - beta_j) exactly,     alpha(0) = 1,     sigma^2 = 1 - alpha^2

    Between the nodes log alpha is a monotone cubic, so drift and diffusion exist and are continuous, and every solver
    of continuous time runs on a model trained on the table. `t_min` and `t_max` default to the first and last node.

    >>> ddpm = Discrete.linear()
    >>> round(float(ddpm.alpha(ddpm.t_max)) ** 2, 8)
    4.036e-05

    Raises:
        ValueError: fewer than 2 betas, or a beta outside (0, 1).

    Reference: Ho et al. 2020 (arXiv 2006.11239), section 2; interpolation: Fritsch & Butland 1984.
    """

    betas: tuple[float, ...]
    t_min: float = -1.0
    t_max: float = 1.0

    def __post_init__(self) -> None:
        if len(self.betas) < 2 or not all(0 < b < 1 for b in self.betas):
            raise ValueError(
                f"betas must be at least 2 numbers in (0, 1); got {len(self.betas)} from {min(self.betas, default=0)} "
                f"to {max(self.betas, default=0)}. For a table that ends in pure noise use at most 0.999."
            )
        if self.t_max > 1:
            raise ValueError(f"A table ends at t = 1, its last step, so t_max is at most 1; got {self.t_max}.")
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))
        if self.t_min < 0:
            object.__setattr__(self, "t_min", 1 / len(self.betas))
        super().__post_init__()

    @classmethod
    def linear(cls, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> Self:
        """Return DDPM's table: `steps` betas from beta_min to beta_max, evenly spaced, both ends included."""
        return cls(betas=tuple(np.linspace(beta_min, beta_max, steps).tolist()))

    @classmethod
    def cosine(cls, steps: int = 1000, s: float = 0.008, beta_max: float = 0.999) -> Self:
        """Return the squared-cosine table with betas clipped at beta_max.

        Reference: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17.
        """
        bar = np.cos((np.arange(steps + 1) / steps + s) / (1 + s) * math.pi / 2) ** 2
        return cls(betas=tuple(np.minimum(1 - bar[1:] / bar[:-1], beta_max).tolist()))

    def __repr__(self) -> str:
        betas = f"<{self.steps} from {self.betas[0]:g} to {self.betas[-1]:g}>"
        return f"{type(self).__name__}(betas={betas}, t_min={self.t_min:g}, t_max={self.t_max:g})"

    @property
    def steps(self) -> int:
        """Return T, the number of betas."""
        return len(self.betas)

    def node(self, k: Tensor) -> Tensor:
        """Return the time (k + 1) / T of the table's step k, counted from 0."""
        return (as_time(k) + 1) / self.steps

    @cached_property
    def _cubics(self) -> Tensor:
        """Coefficients (4, T), highest power first, of log alpha on each interval, from its left node."""
        from scipy.interpolate import PchipInterpolator  # only here: it takes long to import

        rises = 0.5 * np.log1p(-np.asarray(self.betas))
        # a step more at either end, like its neighbour, so that the slope there is the table's and never 0
        log_alpha = np.concatenate([[-rises[0], 0.0], np.cumsum([*rises, rises[-1]])])
        return torch.from_numpy(PchipInterpolator(np.arange(-1, self.steps + 2), log_alpha).c[:, 1:-1])

    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log alpha(t), equal to the table's at the nodes."""
        place = t * self.steps
        # a node computed as (k + 1) / T may miss the integer by rounding; the cubics join there, so it does not matter
        k = place.detach().floor().clamp(0, self.steps - 1).long()
        u = place - k
        cubics: Tensor = self._cubics.to(t.device)[:, k]
        return ((cubics[0] * u + cubics[1]) * u + cubics[2]) * u + cubics[3]

    def alpha(self, t: Tensor) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()
