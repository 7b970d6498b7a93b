"""From densities to probabilities: bits per dimension of continuous data, and of data on a finite set of levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.noise import standard_normal


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """Return -log_prob / (dims log 2): a *density* of continuous data in bits per dimension, shaped like `log_prob`.

    It depends on the unit of the data and may be negative; it is not comparable to a probability of images with
    discrete pixels, for which use `Dequantization.bits_per_dim`.

    Args:
        log_prob: log-density in nats.
        dims: the number of coordinates of a sample.

    Raises:
        ValueError: dims is below 1.

    >>> bits_per_dim(torch.tensor([-2.0]) * math.log(2), dims=2)
    tensor([1.])
    """
    if not isinstance(dims, int) or dims < 1:
        raise ValueError(f"dims must be the number of coordinates of a sample, at least 1; got {dims!r}.")
    return -log_prob / (dims * math.log(2))


@dataclass(frozen=True)
class Dequantization(Value):
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

    levels: int
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.levels, int) or self.levels < 2:
            raise ValueError(f"levels must be a whole number of at least 2; got {self.levels!r}.")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low < high must hold and be finite; got low={self.low}, high={self.high}.")

    @property
    def width(self) -> float:
        """The width of a bin, (high - low) / (levels - 1)."""
        return (self.high - self.low) / (self.levels - 1)

    def apply(self, x: Tensor, seed: int = 0, first: int = 0) -> Tensor:
        """Return `x` with noise uniform over one bin, a draw of the density that a model is asked for.

        Args:
            x: data on the levels, shape (B, ...).
            seed: any whole number; another one for every draw.
            first: the number of the batch's first sample; sample i's noise is a function of (seed, first + i).

        Raises:
            ValueError: a value is not on a level, as when the data were scaled otherwise, or have noise already.
        """
        self._check(x)
        # two parts to the key where the noise of a run has three: the two never meet under one seed
        uniform: Tensor = torch.special.ndtr(standard_normal(x.to(torch.float64), first, (seed, 0)))
        return (x + self.width * (uniform - 0.5)).to(x.dtype)

    def round(self, x: Tensor) -> Tensor:
        """Return the nearest levels, of the shape of `x`: what a model's samples become as data."""
        return (((x - self.low) / self.width).round().clamp(0, self.levels - 1) * self.width) + self.low

    def log_mass(self, log_prob: Tensor, dims: int) -> Tensor:
        """Return log (mean over draws of p) + dims log width: a lower bound, in expectation, of log P in nats, (B,).

        With one draw it is the bound above; with more it is tighter, but then the densities must come from an exact
        trace: the error of random probes, exponentiated, would raise the mean above the bound.

        Args:
            log_prob: log-densities of dequantized data in nats: shape (B,), or (draws, B) for draws of several seeds.
            dims: the number of coordinates of a sample.
        """
        draws = log_prob if log_prob.ndim > 1 else log_prob[None]
        return draws.logsumexp(0) - math.log(len(draws)) + dims * math.log(self.width)

    def bits_per_dim(self, log_prob: Tensor, dims: int) -> Tensor:
        """Return -log_mass / (dims log 2): a *probability*, in expectation an upper bound of -log2 P / dims, (B,).

        Args:
            log_prob: log-densities of dequantized data in nats: shape (B,), or (draws, B) for draws of several seeds.
            dims: the number of coordinates of a sample.

        Raises:
            ValueError: dims is below 1.
        """
        return bits_per_dim(self.log_mass(log_prob, dims), dims)

    def _check(self, x: Tensor) -> None:
        level = (x.to(torch.float64) - self.low) / self.width
        inside = (level > -0.5) & (level < self.levels - 0.5)
        off = ~(inside & ((level - level.round()).abs() < 1e-2))
        if bool(off.any()):
            raise ValueError(
                f"Data must lie on the {self.levels} levels from {self.low:g} to {self.high:g}; {int(off.sum())} of "
                f"{x.numel()} values do not, {float(x[off][0]):g} for one (data run from {float(x.min()):g} to "
                f"{float(x.max()):g}). Set low and high to where the data are stored, and add no noise before."
            )
