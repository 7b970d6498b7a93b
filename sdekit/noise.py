"""The noise of a run: keyed by sample and step, or increments of one Brownian path shared by all step counts.

Both are computed from counters by a hash, on the device of the state, so a sample's noise depends on nothing but the
seed, the sample's number and the step (or the time): not on the batch, its order, the rank, or other draws.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit._value import Value
from sdekit.equation import ProbabilityFlow, System

Draw: TypeAlias = Callable[[Time, Time], Tensor]
"""Called as noise(t, s), it returns standard normal noise of the state's shape for the interval from t to s.

It is the Brownian motion's increment over its standard deviation. Asked for the same interval again within a step, it
tells more of the path: sqrt(12/h^3) times the area between the path and its chord, h being the interval's length in the
equation's clock, independent of the increment. For an interval of no length, noise(t, t), it belongs to no path.
"""


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
    Brownian motion. It is a tree over [t_min, t_max], halved `depth` times, whose intervals know the increment and the
    area; below, it is the path expected from these two, a parabola.

    Args:
        depth: the number of halvings; intervals are resolved down to (t_max - t_min) / 2^depth.

    Raises:
        ValueError: the equation is the probability flow, or more is asked of an interval than increment and area.

    Reference: Levy's construction; with areas, Jelincic, Foster & Kidger 2024 (arXiv 2405.06464), section 3.
    """

    depth: int = 26

    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        path = None if system.eta == 0 else _Path(self, system, x)

        def of_step(k: int) -> Draw:
            asked, fresh = Counter[tuple[float, float]](), itertools.count()

            def draw(t: Time, s: Time) -> Tensor:
                interval = float(t), float(s)
                if interval[0] == interval[1]:
                    return standard_normal(x, self.first, (self.seed, 1 + k, next(fresh)))
                if path is None:
                    return _still(system, x)
                asked[interval] += 1
                return path.detail(*interval, asked[interval]).to(x.dtype)

            return draw

        return of_step


def _still(system: System, x: Tensor) -> Tensor:
    if isinstance(system.equation, ProbabilityFlow):
        raise ValueError(
            "A Brownian path drives a stochastic equation; got the probability flow. Churn and restarts draw noise "
            "that belongs to no path: use Keyed(seed)."
        )
    return torch.zeros_like(x)  # nothing drives the equation, and its clock stands still


class _Point(NamedTuple):
    """The path at a time: its clock, its value and its integral over the clock as rows of coefficients of normals."""

    clock: float
    value: Any
    integral: Any
    places: list[int]
    normals: Tensor


class _Path:
    """The tree of one batch. The path is linear in the tree's normals, so only coefficients are ever subtracted."""

    def __init__(self, noise: BrownianPath, system: System, x: Tensor) -> None:
        self.noise, self.system = noise, system
        self.like = torch.zeros_like(x, dtype=torch.float64)
        self.points: dict[float, _Point] = {}
        process, ends = system.process, (system.process.t_min, system.process.t_max)
        c_lo, c_hi = self.clocks(ends)
        if not math.isfinite(c_lo + c_hi):
            raise ValueError(f"A Brownian path needs a finite log-SNR at both ends of {process}; move them inwards.")
        # the path starts from 0 where its clock starts, or its first increments would drown in its last values
        self.ends = ends if c_lo < c_hi else ends[::-1]
        self.range = min(c_lo, c_hi), max(c_lo, c_hi)

    def clocks(self, times: tuple[float, ...]) -> list[float]:
        at = torch.tensor(times, dtype=torch.float64)
        return list(map(float, self.system.equation.clock(self.system.process, at)))

    def detail(self, t: float, s: float, count: int) -> Tensor:
        """Return, of the path from t to s, the increment (count 1) or the area (count 2), as standard normals."""
        p, q = (self.at(t), self.at(s))[:: 1 if t < s else -1]
        h, sign = abs(q.clock - p.clock), math.copysign(1.0, q.clock - p.clock)
        if count == 1:
            scale = math.copysign(1.0, s - t) / math.sqrt(h)
            new, old = scale * q.value, scale * p.value
        elif count == 2:  # the integral I_q - I_p less the chord's, (W_q + W_p) (c_q - c_p) / 2
            scale = math.sqrt(12 / h**3)
            new = scale * (sign * q.integral - h / 2 * q.value)
            old = scale * (sign * p.integral + h / 2 * p.value)
        else:
            raise ValueError("A Brownian path tells an interval's increment and its area; more was asked of it.")
        shared = 2 * _shared(p.places, q.places)
        new[:shared] -= old[:shared]
        total = torch.from_numpy(new).to(q.normals) @ q.normals
        return (total - torch.from_numpy(old[shared:]).to(total) @ p.normals[shared:]).reshape(self.like.shape)

    def at(self, t: float) -> _Point:
        """Return the path at the time t. The last two points are kept: a run asks for neighbours."""
        if t not in self.points:
            self.points = dict([*self.points.items()][-1:]) | {t: self.point(t)}
        return self.points[t]

    def point(self, t: float) -> _Point:
        """Go down the tree to the time t."""
        (lo, hi), place = self.ends, 0
        places, mids, uppers = [0], [], []
        for _ in range(self.noise.depth):
            mids.append((lo + hi) / 2)
            uppers.append(abs(t - lo) >= abs(mids[-1] - lo))
            places.append(place)  # both halves share the normals of their split
            lo, hi, place = (mids[-1], hi, 2 * place + 1) if uppers[-1] else (lo, mids[-1], 2 * place)
        *clocks, clock = self.clocks((*mids, t))
        c_lo, c_hi = self.range
        # rows: value and integral at the interval's start, its increment, and its area over its length
        rows = np.zeros((4, 2 * len(places)))
        rows[2, 0], rows[3, 1] = math.sqrt(c_hi - c_lo), math.sqrt((c_hi - c_lo) / 12)
        parts = []
        for c, upper in zip(clocks, uppers, strict=True):
            parts.append((c - c_lo, c_hi - c))
            c_lo, c_hi = (c, c_hi) if upper else (c_lo, c)
        keep, fresh = _halves(np.array([*parts, (clock - c_lo, c_hi - clock)]), np.array([*uppers, True]))
        for k in range(len(parts)):
            rows = keep[k] @ rows
            rows[:, 2 * k + 2 : 2 * k + 4] = fresh[k]
        value, integral = keep[-1, :2] @ rows
        return _Point(clock, value, integral, places, self.normals(places))

    def normals(self, places: list[int]) -> Tensor:
        """Return the two normals of the whole and of every split on the way, one a row; those known are reused."""
        known = max(self.points.values(), key=lambda point: _shared(point.places, places), default=None)
        start = _shared(known.places, places) if known else 0
        words = [_word((self.noise.seed, -1 - level, places[level])) for level in range(start, len(places))]
        size = max(1, 2**17 // max(1, self.like.numel()))
        count, groups = self.like[:1].numel(), (words[k : k + size] for k in range(0, len(words), size))
        drawn = (_pairs(self.like, self.noise.first, group, count) for group in groups)
        rows = [pair.flatten(2).flatten(0, 1) for pair in drawn]
        return torch.cat([known.normals[: 2 * start], *rows] if known else rows)


def _shared(a: list[int], b: list[int]) -> int:
    """Return how far two ways down the tree go together."""
    return sum(x == y for x, y in zip(a, b, strict=True))


def _halves(parts: Any, upper: Any) -> tuple[Any, Any]:
    """Return how the rows of half an interval follow from those of the whole, and from its split's two normals.

    With the parts' lengths a + b = h, p = a / h, q = b / h and H = area / h, the first half has the increment
    p W + 6 p q H and the area over its length p^2 H, up to two normals; the second has the rest.

    Reference: Jelincic, Foster & Kidger 2024 (arXiv 2405.06464), section 3.
    """
    a, b = parts.T
    h = np.maximum(a + b, np.finfo(float).tiny)
    p, q, root, zero, one = a / h, b / h, np.sqrt(h), 0 * a, 0 * a + 1
    cubes = p**3 + q**3
    rise, bow = root * np.sqrt(p * q * cubes), 6 * p * q
    own = [-root * p**2.5 * np.sqrt(q / cubes) / 2, root * np.sqrt(p * q**3 / cubes / 12)]
    rest = [-root * q**2.5 * np.sqrt(p / cubes) / 2, -root * np.sqrt(p**3 * q / cubes / 12)]
    none = [zero, zero]
    first = [[one, *none, zero], [zero, one, *none], [*none, p, bow], [*none, zero, p**2]]
    second = [[one, zero, p, bow], [a, one, a * p / 2, a * p * (p + 3 * q)], [*none, q, -bow], [*none, zero, q**2]]
    pushed = [[rise, zero], [a * (own[0] + rise / 2), a * own[1]], [-rise, zero], rest]
    keep = np.where(upper, np.array(second), np.array(first))
    fresh = np.where(upper, np.array(pushed), np.array([none, none, [rise, zero], own]))
    return keep.transpose(2, 0, 1), fresh.transpose(2, 0, 1)


_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1


def standard_normal(like: Tensor, first: int, key: tuple[int, ...]) -> Tensor:
    """Return standard normal noise shaped like the batch `like`: sample i depends on (key, first + i) alone.

    Counters are hashed by SplitMix64. Every word makes two normals in float64, of radius sqrt(-2 log u), u in (0, 1)
    being its upper half, and of the angle in its lower half: the largest normal is 6.8.

    Reference: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 16; Box & Muller 1958.
    """
    size = like.shape[1:].numel()
    pairs = _pairs(like, first, [_word(key)], (size + 1) // 2)
    return pairs[0].movedim(0, -1).reshape(len(like), -1)[:, :size].to(like.dtype).reshape(like.shape)


def _word(key: tuple[int, ...]) -> int:
    """Fold a key into one word."""
    state = 0
    for part in key:
        state = _mix(state + _GOLDEN * (part + 1))
    return _signed(state)


def _pairs(like: Tensor, first: int, words: list[int], count: int) -> Tensor:
    """Return, for every word and every sample, `count` pairs of normals: shape (words, 2, B, count), float64."""
    device = like.device
    samples = torch.arange(first, first + len(like), device=device) * _signed(_GOLDEN)
    keys = _mix_all(samples + torch.tensor(words, device=device)[:, None])
    bits = _mix_all(keys[..., None] + torch.arange(1, count + 1, device=device) * _signed(_GOLDEN))
    angle = (bits << 32).to(torch.float64).mul_(math.pi / 2**63)
    radius = _shift(bits, 32).to(torch.float64).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    return torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], 1)


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
    return (z >> n).bitwise_and_((1 << (64 - n)) - 1)


def _mix_all(z: Tensor) -> Tensor:
    for n, factor in ((30, _MIX1), (27, _MIX2)):
        z = _shift(z, n).bitwise_xor_(z).mul_(_signed(factor))
    return _shift(z, 31).bitwise_xor_(z)
