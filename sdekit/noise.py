"""The noise of a run: keyed by sample and step, or increments of one Brownian path shared by all step counts.

Both are computed from counters by a hash, on the device of the state, so a sample's noise depends on nothing but the
seed, the sample's number and the step (or the time): not on the batch, its order, the rank, or other draws.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit._value import Value
from sdekit.equation import System

Draw: TypeAlias = Callable[[Time, Time], Tensor]
"""noise(t, s): standard normal noise of the state's shape, for the interval from t to s."""


@dataclass(frozen=True)
class Noise(Value, ABC):
    """A source of noise.

    Args:
        seed: any whole number.
        first: the number of the batch's first sample; sample i of a batch is sample first + i of the run.
    """

    seed: int = 0
    first: int = 0

    def start(self, like: Tensor) -> Tensor:
        """Return the standard normal noise from which the run starts, shaped like the batch `like`."""
        return standard_normal(like, self.first, (self.seed, 0, 0))

    @abstractmethod
    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        """Return, for a run of `system` from the batch `x`, the function from a step's number to its `Draw`."""


@dataclass(frozen=True)
class Keyed(Noise):
    """Independent noise, keyed by (seed, sample, step, draw within the step).

    Args:
        step: the number of the run's first step, to continue a run that was split.

    >>> x = torch.zeros(3, 2)
    >>> torch.equal(Keyed(seed=1).start(x)[2:], Keyed(seed=1, first=2).start(x[2:]))
    True
    """

    step: int = 0

    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        def of_step(k: int) -> Draw:
            count = itertools.count()
            return lambda t, s: standard_normal(x, self.first, (self.seed, 1 + self.step + k, next(count)))

        return of_step


@dataclass(frozen=True)
class BrownianPath(Noise):
    """Increments of one Brownian path per sample, the same path whatever the grid: for strong errors.

    The path runs in the equation's own clock, e^{2 eta lam} for the reverse SDE, in which its noise is exactly a
    Brownian motion. It is a tree of Brownian bridges over [t_min, t_max], halved `depth` times and linear below.

    Args:
        depth: the number of halvings; intervals are resolved down to (t_max - t_min) / 2^depth.

    Reference: Levy's construction; the tree as in Li et al. 2020 (arXiv 2001.01328), algorithm 3.
    """

    depth: int = 26

    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        if system.eta == 0:  # nothing drives the equation, and its clock stands still
            return lambda k: lambda t, s: torch.zeros_like(x)
        path = _Path(self, system, x)

        def draw(t: Time, s: Time) -> Tensor:
            (c_t, w_t), (c_s, w_s) = path.at(float(t)), path.at(float(s))
            return ((w_s - w_t) / math.sqrt(abs(c_s - c_t))).to(x.dtype)

        return lambda k: draw


class _Path:
    """The bridges of one batch; the way down to the last time asked is kept, for neighbours share most of it."""

    def __init__(self, noise: BrownianPath, system: System, x: Tensor) -> None:
        self.noise, self.system = noise, system
        self.like = torch.zeros_like(x, dtype=torch.float64)
        self.kept: dict[tuple[int, int], tuple[float, Tensor]] = {}
        process = system.process
        ends = process.t_min, process.t_max
        c_lo, c_hi = (self.clock(t) for t in ends)
        if not (math.isfinite(c_lo) and math.isfinite(c_hi)):
            raise ValueError(f"A Brownian path needs a finite log-SNR at both ends of {process}; move them inwards.")
        rise = math.sqrt(abs(c_hi - c_lo)) * self.normal(0, 0)
        # the path starts from 0 where its clock starts, or its first increments would drown in its last values
        w_lo, w_hi = (self.like, rise) if c_lo < c_hi else (rise, self.like)
        self.root = ((ends[0], c_lo, w_lo), (ends[1], c_hi, w_hi))

    def clock(self, t: float) -> float:
        return float(self.system.equation.clock(self.system.process, torch.tensor(t, dtype=torch.float64)))

    def normal(self, level: int, place: int) -> Tensor:
        return standard_normal(self.like, self.noise.first, (self.noise.seed, -1 - level, place))

    def at(self, t: float) -> tuple[float, Tensor]:
        """Return the clock and the path's value at the time t."""
        lo, hi = self.root
        place, way = 0, {}
        for level in range(1, self.noise.depth + 1):
            mid = (lo[0] + hi[0]) / 2
            if (level, place) not in self.kept:
                self.kept[level, place] = self.bridge(lo, hi, mid, self.normal(level, place))
            way[level, place] = c, w = self.kept[level, place]
            if t < mid:
                hi, place = (mid, c, w), 2 * place
            else:
                lo, place = (mid, c, w), 2 * place + 1
        self.kept = way
        a, b = (t - lo[0]) / (hi[0] - lo[0]), (hi[0] - t) / (hi[0] - lo[0])
        return b * lo[1] + a * hi[1], b * lo[2] + a * hi[2]

    def bridge(
        self, lo: tuple[float, float, Tensor], hi: tuple[float, float, Tensor], mid: float, z: Tensor
    ) -> tuple[float, Tensor]:
        c = self.clock(mid)
        a, b = abs(c - lo[1]), abs(hi[1] - c)  # no difference from 1: the clock runs over many powers of ten
        return c, (b * lo[2] + a * hi[2]) / (a + b) + math.sqrt(a * b / (a + b)) * z


_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def standard_normal(like: Tensor, first: int, key: tuple[int, ...]) -> Tensor:
    """Return standard normal noise shaped like the batch `like`: sample i depends on (key, first + i) alone.

    Counters are hashed by SplitMix64 and turned into normals by the inverse distribution function, in float64.

    Reference: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 16.
    """
    state = 0
    for part in key:
        state = _mix(state + _GOLDEN * (part + 1))
    samples = torch.arange(first, first + like.shape[0], device=like.device)
    keys = _mix_all(samples * _signed(_GOLDEN) + _signed(state))
    coordinates = torch.arange(1, like.shape[1:].numel() + 1, device=like.device)
    bits = _shift(_mix_all(keys[:, None] + coordinates * _signed(_GOLDEN)), 11)
    uniform = (2 * bits + (1 - (1 << 53))).to(torch.float64) / (1 << 53)  # odd multiples of 2^-53 in (-1, 1)
    return (torch.erfinv(uniform) * math.sqrt(2)).to(like.dtype).reshape(like.shape)


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _mix(z: int) -> int:
    z &= _WORD
    z = ((z ^ (z >> 30)) * _MIX1) & _WORD
    z = ((z ^ (z >> 27)) * _MIX2) & _WORD
    return z ^ (z >> 31)


def _shift(z: Tensor, n: int) -> Tensor:
    """Shift right without the sign."""
    return (z >> n) & ((1 << (64 - n)) - 1)


def _mix_all(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(_MIX1)
    z = (z ^ _shift(z, 27)) * _signed(_MIX2)
    return z ^ _shift(z, 31)
