"""Laws of the time made for the straight path, stated in the noise level, so that they serve every process."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.training.times import LevelLaw


@dataclass(frozen=True)
class CosMap(LevelLaw):
    """The noise levels that the path alpha = cos(pi u / 2), sigma = sin(pi u / 2) has at uniform u.

        z = log tan(pi u / 2);          on `RectifiedFlow` t = 1 - 1 / (1 + tan(pi u / 2))

    Reference: Esser et al. 2024 (arXiv 2403.03206), section 3.1, "CosMap".
    """

    def below(self, z: Tensor) -> Tensor:
        return torch.atan(z.exp()) * (2 / math.pi)

    def level(self, share: Tensor) -> Tensor:
        return torch.tan(share * (math.pi / 2)).log()

    def height(self, z: Tensor) -> Tensor:
        return 1 / (math.pi * z.cosh())


@dataclass(frozen=True)
class Mode(LevelLaw):
    """On `RectifiedFlow` the law of t with a mode in the middle, t = u + s (u - sin^2(pi u / 2)) for uniform u.

    Elsewhere t stands for sigma / (alpha + sigma), the time at which the straight path has the same noise level.

    Args:
        s: how much of the law is in the middle, in [-1, 2 / (pi - 2)]; 0 is the uniform law of t.

    Raises:
        ValueError: s is out of its range, where the law would not be one.

    Reference: Esser et al. 2024 (arXiv 2403.03206), eq. 20, with u for their 1 - u.
    """

    s: float = 0.81

    def __post_init__(self) -> None:
        if not -1 <= self.s <= 2 / (math.pi - 2):
            raise ValueError(f"s must lie in [-1, 2 / (pi - 2)] = [-1, 1.752]; got {self.s}.")

    def below(self, z: Tensor) -> Tensor:
        t = torch.sigmoid(-z.abs())  # at most 1/2, where no digits are lost; the law is symmetric
        low, high = torch.zeros_like(t), torch.full_like(t, 0.5)
        for _ in range(60):  # halvings: the map of u to t is monotone
            u = (low + high) / 2
            early = self._time(u) < t
            low, high = torch.where(early, u, low), torch.where(early, high, u)
        return torch.where(z > 0, 1 - high, high)

    def level(self, share: Tensor) -> Tensor:
        return torch.logit(self._time(share))

    def height(self, z: Tensor) -> Tensor:
        t = torch.sigmoid(z)
        slope = 1 + self.s - self.s * (math.pi / 2) * torch.sin(math.pi * self.below(z))
        return t * (1 - t) / slope

    def _time(self, u: Tensor) -> Tensor:
        return u + self.s * (u - torch.sin(u * (math.pi / 2)) ** 2)
