"""How strongly a guide acts, and at which noise levels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeAlias

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.process import Process

Scale: TypeAlias = float | Callable[[Tensor], Tensor]
"""The exponent of a guide: a number, or a function of lam = log(alpha / sigma), elementwise."""


@dataclass(frozen=True)
class Interval(Value):
    """The noise levels at which a guide acts, low <= lam < high with lam = log(alpha / sigma).

    Args:
        low: the noisy end.
        high: the clean end.

    Raises:
        ValueError: low < high does not hold.

    >>> from sdekit import EDM
    >>> bool(Interval.of_noise(0.28, 2.9).holds(EDM().lam(1.0)))
    True

    Reference: Kynkaanniemi et al. 2024 (arXiv 2404.07724) where the interval is (sigma_lo, sigma_hi].
    """

    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low < high must hold for the log-SNR of an interval; got {self.low}, {self.high}.")

    @classmethod
    def of_noise(cls, low: float, high: float) -> Self:
        """Return the interval low < sigma / alpha <= high; on a process with alpha = 1 that is sigma itself."""
        lam_high, lam_low = (-torch.tensor([low, high], dtype=torch.float64).log()).tolist()
        return cls(lam_low, lam_high)

    def holds(self, lam: Tensor) -> Tensor:
        """Return whether a guide acts at `lam`, of its shape."""
        return (lam >= self.low) & ((lam < self.high) | (self.high == math.inf))


ALWAYS = Interval()


def strength(process: Process, t: Tensor, scale: Scale, within: Interval) -> Tensor:
    """Return the scale at the times `t`, of their shape, float64; 0 outside the interval."""
    if not callable(scale) and within == ALWAYS:
        return torch.full_like(t, scale, dtype=torch.float64)
    lam = process.lam(t)
    value = torch.as_tensor(scale(lam) if callable(scale) else scale, dtype=torch.float64, device=t.device)
    if value.ndim and value.shape != t.shape:
        raise ValueError(
            f"A scale must be a number for every lam, of shape {tuple(t.shape)}; the function returned "
            f"{tuple(value.shape)}. Compute it elementwise."
        )
    return torch.where(within.holds(lam), value, 0.0)
