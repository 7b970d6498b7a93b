"""Dequantization of data on a finite set of levels: uniform, truncated Gaussian, or learned noise in every bin."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from sdekit.likelihood.dequantizer import (
    Dequantized,
    Dequantizer,
    bits_per_dim,
    check_answer,
    check_floating,
    check_order,
    check_values,
)
from sdekit.noise import standard_normal
from sdekit.process import Process

__all__ = ["Dequantization", "Levels", "TruncatedGaussian", "Variational", "bits_per_dim"]


@dataclass(frozen=True)
class Levels(Dequantizer, ABC):
    """Data on evenly spaced levels, k = 0 ... levels - 1 stored at low + width k; a subclass says what noise they get.

    Args:
        levels: the number of levels: 256 for 8-bit images, 17 for the digits of `sdekit.data`.
        low: where level 0 is stored.
        high: where level levels - 1 is stored.

    Raises:
        ValueError: fewer than 2 levels, or low < high does not hold.
    """

    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or self.levels < 2:
            raise ValueError(f"levels must be a whole number of at least 2; got {self.levels!r}.")
        if not (math.isfinite(self.low) and math.isfinite(self.high)):
            raise ValueError(f"low < high must hold and be finite; got low={self.low}, high={self.high}.")
        check_order(self.low, self.high)

    @abstractmethod
    def noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise u in units of a bin, within [-1/2, 1/2], shaped like `x`, and log q(u | x), shape (B,).

        Args:
            x: data on the levels, shape (B, ...).
            z: standard normal numbers of the same shape, float64, from which the noise is made.
        """

    @property
    def width(self) -> float:
        """The width of a bin, (high - low) / (levels - 1)."""
        return (self.high - self.low) / (self.levels - 1)

    def draw(self, x: Tensor, seed: int = 0, first: int = 0, number: int = 0) -> Dequantized:
        self._check(x)
        # two parts to the key where the noise of a run has three: the two never meet under one seed
        u, log_noise = self.noise(x, standard_normal(x.detach().to(torch.float64), first, (seed, number)))
        return Dequantized((x + self.width * u).to(x.dtype), log_noise)

    def round(self, x: Tensor) -> Tensor:
        """Return the nearest levels, of the shape of `x`: what a model's samples become as data."""
        return (((x - self.low) / self.width).round().clamp(0, self.levels - 1) * self.width) + self.low

    def _check(self, x: Tensor) -> None:
        check_floating(x)
        level = (x.to(torch.float64) - self.low) / self.width
        inside = (level > -0.5) & (level < self.levels - 0.5)
        off = ~(inside & ((level - level.round()).abs() < 1e-2))
        what = f"lie on the {self.levels} levels from {self.low:g} to {self.high:g}"
        check_values(x, off, what)


@dataclass(frozen=True)
class Dequantization(Levels):
    """Uniform dequantization of data on evenly spaced levels, k = 0 ... levels - 1 stored at low + width k.

    Noise uniform over one bin, centred on the level, turns a probability P of levels into a density p of numbers, and

        log P(k) = log E_u p(x_k + u) + dims log width  >=  E_u log p(x_k + u) + dims log width

    Args:
        levels: the number of levels: 256 for 8-bit images, 17 for the digits of `sdekit.data`.
        low: where level 0 is stored.
        high: where level levels - 1 is stored.

    Raises:
        ValueError: fewer than 2 levels, or low < high does not hold.

    Reference: Theis et al. 2016 (arXiv 1511.01844), section 3.1; several draws: Burda et al. 2016 (arXiv 1509.00519).

    >>> images = Dequantization(levels=256)
    >>> x = images.apply(torch.tensor([[-1.0, 1.0]]))
    >>> bool((x.abs() - 1).abs().max() < images.width / 2)
    True
    """

    def noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.special.ndtr(z) - 0.5, torch.zeros(len(x), dtype=torch.float64, device=x.device)

    def _flat(self) -> float:
        return 0.0


@dataclass(frozen=True)
class TruncatedGaussian(Levels):
    """Gaussian noise truncated to the bin, in units of which its standard deviation was `std`:

        q(u) = N(u; 0, std^2) / Z on [-1/2, 1/2],         Z = erf(1 / (2 sqrt(2) std))

    For models trained on the levels themselves: their density has a peak of width sigma / alpha at every level, which
    uniform noise misses; see `at`. A model trained on uniformly dequantized data wants `Dequantization`.

    Args:
        levels: the number of levels.
        low: where level 0 is stored.
        high: where level levels - 1 is stored.
        std: the standard deviation before truncation, in units of a bin; large ones make the noise uniform.

    Raises:
        ValueError: std is not positive, fewer than 2 levels, or low < high does not hold.

    Reference: Zheng et al. 2023 (arXiv 2305.03935), its truncated-normal dequantization.

    >>> noise = TruncatedGaussian(levels=256, std=0.1).draw(torch.ones(1, 3))
    >>> bool((noise.x - 1).abs().max() < 1 / 255), tuple(noise.log_noise.shape)
    (True, (1,))
    """

    std: float = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be positive and finite; got {self.std}.")

    @classmethod
    def at(cls, process: Process, levels: int, low: float = -1.0, high: float = 1.0) -> Self:
        """Return the noise that the process has put on the data at t_min: std = sigma / (alpha width).

        With it x_{t_min} = alpha (x_k + width u) is what a model trained on the levels was shown; the density of
        x_k + width u is that of x_{t_min} at t_min, and dims log alpha.
        """
        alpha, sigma = (float(f(process.t_min)) for f in (process.alpha, process.sigma))
        return cls(levels, low, high, std=sigma / alpha * (levels - 1) / (high - low))

    def noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        inside = math.erf(0.5**1.5 / self.std)
        u = (self.std * torch.special.ndtri(0.5 + inside * (torch.special.ndtr(z) - 0.5))).clamp(-0.5, 0.5)
        log_q = -0.5 * (u / self.std).square() - math.log(self.std * math.sqrt(2 * math.pi) * inside)
        return u, log_q.reshape(len(x), -1).sum(1)


@dataclass(frozen=True)
class Variational(Levels):
    """Noise of one's own, learned or not: a function of the data and of standard normal numbers.

    Args:
        levels: the number of levels.
        low: where level 0 is stored.
        high: where level levels - 1 is stored.
        flow: the function (x, z) -> (u, log_q), as described at `Levels.noise`: x the data on the levels, (B, ...), z
            standard normal numbers of the same shape in float64, u the noise in units of a bin, within [-1/2, 1/2],
            and log_q its log-density given x, in nats, (B,). Gradients flow through both. It cannot be stored as JSON.

    Raises:
        ValueError: fewer than 2 levels, or low < high does not hold; on a draw, noise that leaves the bin or is of
            another shape.

    Reference: Ho et al. 2019 (arXiv 1902.00275), section 3.1.

    >>> uniform = Variational(17, flow=lambda x, z: (torch.special.ndtr(z) - 0.5, 0 * z.sum(1)))
    >>> x = torch.ones(1, 3)
    >>> torch.equal(uniform.apply(x), Dequantization(17).apply(x))
    True
    """

    flow: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = field(kw_only=True)

    def noise(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        u, log_q = self.flow(x, z)
        if u.shape != x.shape or not bool((u.detach().abs() <= 0.5 + 1e-6).all()):
            raise ValueError(
                f"The flow's noise must be shaped like the data, {tuple(x.shape)}, and lie within [-1/2, 1/2], in "
                f"units of a bin; got shape {tuple(u.shape)}, {float(u.min()):g} to {float(u.max()):g}. End the flow "
                "in a sigmoid, less 1/2."
            )
        return u, check_answer("The flow's log_q", log_q, x)
