"""What a network is told besides the state and the label: how it sees the time, and the size of its context."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from sdekit._value import Value

__all__ = ["Fourier", "Inputs", "Sinusoidal", "TimeFeatures", "sinusoids"]


class TimeFeatures(Value, ABC):
    """How a network sees the time: as cosines and sines at many frequencies."""

    @abstractmethod
    def layer(self, width: int) -> nn.Module:
        """Return the module that gives times a last axis of size `width`, which is even, in the times' precision."""


@dataclass(frozen=True)
class Sinusoidal(TimeFeatures):
    """Frequencies evenly spaced in their logarithm: see `sinusoids`.

    Args:
        low: the lowest frequency, in radians per unit of time.
        high: the highest. The defaults fit times of order one; for times counted in steps of a table, as
            `ByIndex` tells them, take those of the transformer, 1e-4 and 1.

    Raises:
        ValueError: not 0 < low < high.
    """

    low: float = 0.5
    high: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high < math.inf:
            raise ValueError(f"Frequencies must rise from above 0; got {self.low} ... {self.high}. Order them.")

    def layer(self, width: int) -> nn.Module:
        return _Sinusoids(self, width)


@dataclass(frozen=True)
class Fourier(TimeFeatures):
    """Random Fourier features, drawn once and then fixed:

        y = (cos 2 pi w_1 t, ..., cos 2 pi w_k t, sin 2 pi w_1 t, ..., sin 2 pi w_k t),    w ~ N(0, std^2)

    Args:
        std: how finely times are told apart, in periods per unit of time. For times of order one, 1; Song et al.
            take 16 for log sigma.
        seed: of the frequencies. They are stored with the weights.

    Raises:
        ValueError: `std` is not positive.

    References:
        Tancik et al. 2020 (arXiv 2006.10739); as a time embedding: Song et al. 2021 (arXiv 2011.13456).
    """

    std: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"The frequencies' standard deviation must be positive; got std={self.std}. Take 1.")

    def layer(self, width: int) -> nn.Module:
        return _Fourier(self, width)


@dataclass(frozen=True)
class Inputs(Value):
    """What a network is told besides the state and the label.

    Args:
        time: how it sees the time.
        context: the size of one token of its context, to which it attends; None for a network without a context.

    Raises:
        ValueError: `context` is not positive.

    >>> Inputs(Fourier(std=2.0), context=16).to_json()
    {'type': 'Inputs', 'time': {'type': 'Fourier', 'std': 2.0, 'seed': 0}, 'context': 16}
    """

    time: TimeFeatures = Sinusoidal()
    context: int | None = None

    def __post_init__(self) -> None:
        if self.context is not None and self.context < 1:
            raise ValueError(f"A token needs at least 1 number; got {self.context}. Without a context, pass None.")


def sinusoids(t: Tensor, width: int, low: float = 0.5, high: float = 100.0) -> Tensor:
    """Return cosines and sines of times, at frequencies evenly spaced in their logarithm.

        y = (cos w_1 t, ..., cos w_k t, sin w_1 t, ..., sin w_k t),    w = low ... high rad,    k = width / 2

    Args:
        t: times, any shape, float32 or float64; the result has their precision.
        width: size of the last axis of the result, even.
        low: the lowest frequency.
        high: the highest frequency.

    >>> sinusoids(torch.zeros(3), width=4)[0]
    tensor([1., 1., 0., 0.])
    """
    w = torch.linspace(math.log(low), math.log(high), width // 2, dtype=t.dtype, device=t.device).exp()
    return _waves(t[..., None] * w)


def _waves(phase: Tensor) -> Tensor:
    return torch.cat([phase.cos(), phase.sin()], dim=-1)


class _Sinusoids(nn.Module):
    def __init__(self, features: Sinusoidal, width: int) -> None:
        super().__init__()
        self.features, self.width = features, width

    def forward(self, t: Tensor) -> Tensor:
        return sinusoids(t, self.width, self.features.low, self.features.high)


class _Fourier(nn.Module):
    """The frequencies stay in float32 when the weights around them are made coarser: rounded, they would be others."""

    w: Tensor

    def __init__(self, features: Fourier, width: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(features.seed)
        self.register_buffer("w", features.std * torch.randn(width // 2, generator=generator, device="cpu"))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        w = self.w
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.w = self.w if w.is_meta else w.to(self.w.device)
        return self

    def forward(self, t: Tensor) -> Tensor:
        return _waves(2 * math.pi * t[..., None] * self.w.to(t))
