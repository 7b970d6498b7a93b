"""Increments and areas of one Brownian path per sample, the same path whatever the grid."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.equation import ProbabilityFlow, System
from sdekit.noise.hashing import counters, fill, mixed, standard_normal, word, words
from sdekit.noise.source import Draw, Noise


@dataclass(frozen=True)
class BrownianPath(Noise):
    """Increments of one Brownian path per sample, the same path whatever the grid: for strong errors.

    The path runs in the equation's own clock, e^{2 eta lam} for the reverse SDE, in which its noise is exactly a
    Brownian motion. It is a tree over the log-SNR from t_max to t_min, halved `depth` times, whose intervals know the
    increment and the area. The last are split once more, where the path is asked: the law of any times, one in each of
    them, is exact, while between two times in one the path is smooth. The tree's normals at the present time are kept:
    2 (depth + 2) states, in float64 for states in float64 and else in float32.

    Args:
        depth: the number of halvings, in u = lam / (1 + |lam| / 8), which is finite where alpha = 0. The last
            intervals of the default are 2e-3 of log-SNR long at 0, 8e-3 at -8 and 8, and shorter where the process
            ends sooner: enough for thousands of steps.

    Raises:
        ValueError: the equation is the probability flow, or more is asked of an interval than increment and area.

    Reference: Levy's construction; with areas, Jelincic, Foster & Kidger 2024 (arXiv 2405.06464), section 3.
    """

    depth: int = 13

    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        return self.along(system, x, ())

    def along(self, system: System, x: Tensor, times: Sequence[float]) -> Callable[[int], Draw]:
        path = None if system.eta == 0 else _Path(self, system, x, times)

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
    """The path at a time: its clock, and its value and its integral over the clock as rows of coefficients of normals.

    `place` is that of the smallest interval that holds the time, and `keys` are those of the normals, by level.
    """

    time: float
    clock: float
    rows: Any
    place: int
    keys: Tensor


class _Path:
    """The tree of one batch, seen from one time to the next, as a run meets them.

    The path is linear in the tree's normals, and only coefficients are ever subtracted. Of the point before the present
    one is kept what the normals that the two do not share make of the `asked` first details: `rest`.
    """

    def __init__(self, noise: BrownianPath, system: System, x: Tensor, times: Sequence[float]) -> None:
        self.noise, self.system, self.shape = noise, system, x.shape
        process, dtype = system.process, torch.float64 if x.dtype == torch.float64 else torch.float32
        self.counters = mixed(counters(x, noise.first, (noise.seed, -1), x.shape[1:].numel()))
        self.normals = torch.empty(noise.depth + 2, 2, x.numel(), dtype=dtype, device=x.device)
        self.each = self.normals.flatten(0, 1).unbind()
        self.begun = [word((noise.seed, -1 - level)) for level in range(noise.depth + 2)]
        ends = np.array([process.t_min, process.t_max])
        clocks = self.clocks(ends)
        if not np.isfinite(clocks).all():
            raise ValueError(f"A Brownian path needs a finite log-SNR at both ends of {process}; move them inwards.")
        # the path starts from 0 where its clock starts, or its first increments would drown in its last values
        first = np.argsort(clocks)
        self.range, self.ends = clocks[first], self.squeezed(ends[first])
        told = self.points(tuple({t: None for t in times if process.t_min <= t <= process.t_max}))
        self.told = {point.time: point for point in told}
        self.asked, self.drawn = 1, 0
        self.before = self.here = self.point(process.t_max)
        self.move(self.here)

    def clocks(self, times: Any) -> Any:
        return self.system.equation.clock(self.system.process, torch.from_numpy(times)).numpy()

    def squeezed(self, times: Any) -> Any:
        """Return u = lam / (1 + |lam| / 8), where lam may be infinite."""
        lam = self.system.process.lam(torch.from_numpy(times)).numpy()
        return np.copysign(1 / (1 / np.maximum(abs(lam), np.finfo(float).tiny) + 1 / 8), lam)

    def detail(self, t: float, s: float, count: int) -> Tensor:
        """Return, of the path from t to s, the increment (count 1) or the area (count 2), as standard normals."""
        if count > 2:
            raise ValueError("A Brownian path tells an interval's increment and its area; more was asked of it.")
        if (self.before.time, self.here.time) != (t, s) or count > self.asked:
            self.asked = max(self.asked, count)
            if self.here.time != t:
                self.move(self.point(t))
            self.move(self.point(s))
        new, old = self.weights(count)
        row = new @ self.here.rows
        row[: self.shared] -= old @ self.before.rows[:, : self.shared]
        return self.total(row, 0).sub_(self.rest[count - 1]).reshape(self.shape)

    def weights(self, count: int) -> Any:
        """Return the weights of the value and the integral at the present time, and at the one before, in a detail."""
        way = self.here.clock - self.before.clock
        h = abs(way) or 1.0
        if count == 1:  # W_q - W_p
            return np.array([[1.0, 0], [1.0, 0]]) / math.sqrt(h)
        # the integral I_q - I_p less the chord's, (W_q + W_p) (c_q - c_p) / 2
        sign = math.copysign(1.0, way)
        return math.sqrt(12 / h**3) * np.array([[-h / 2, sign], [h / 2, sign]])

    def total(self, row: Any, start: int) -> Tensor:
        """Return the sum of the normals from number `start` on by their coefficients.

        It is taken in one order for every number: that of a matrix product depends on a sample's place in the batch.
        """
        out = self.normals.new_zeros(self.shape.numel())
        for normal, factor in zip(self.each[start:], row[start:].tolist(), strict=True):
            if factor:
                out.add_(normal, alpha=factor)
        return out

    def point(self, t: float) -> _Point:
        return self.told[t] if t in self.told else self.points((t,))[0]

    def move(self, point: _Point) -> None:
        """Go to a point: draw the two normals of the whole and of every split on the way that are not yet drawn.

        Where the path starts, at 0, none is needed.
        """
        together = len(self.normals) - (self.here.place ^ point.place).bit_length()
        start = min(together, self.drawn)
        self.before, self.here, self.shared = self.here, point, 2 * start
        own = [self.weights(count)[1] @ self.before.rows for count in range(1, self.asked + 1)]
        self.rest = [self.total(row, self.shared) for row in own]
        self.drawn = start
        if point.rows.any():
            fill(self.counters, point.keys[start:], self.normals[start:])
            self.drawn = len(self.normals)

    def points(self, times: tuple[float, ...]) -> list[_Point]:
        """Go down the tree to all these times at once."""
        depth, count = self.noise.depth, len(times)
        lo, hi, u = np.full(count, self.ends[0]), np.full(count, self.ends[1]), self.squeezed(np.array(times))
        mids, uppers = np.empty((depth, count)), np.ones((depth + 1, count), bool)
        places = np.zeros((depth + 2, count), np.int64)  # both halves share the normals of their split
        for k in range(depth):
            mids[k] = mid = (lo + hi) / 2
            uppers[k] = upper = abs(u - self.ends[0]) >= abs(mid - self.ends[0])
            lo, hi = np.where(upper, mid, lo), np.where(upper, hi, mid)
            places[k + 2] = 2 * places[k + 1] + upper
        lam = torch.from_numpy(mids / (1 - abs(mids) / 8))
        clocks = self.clocks(np.concatenate([self.system.process.time(lam).numpy(), np.array([times])]))
        keys = words(self.begun, torch.from_numpy(places.T.copy()))
        ways = zip(times, clocks[depth].tolist(), self.rows(clocks, uppers), places[-1].tolist(), keys, strict=True)
        return [_Point(*way) for way in ways]

    def rows(self, clocks: Any, uppers: Any) -> Any:
        """Return the values and the integrals at times, (times, 2, normals), by the splits on the way to them."""
        depth, count = len(clocks) - 1, clocks.shape[1]
        lo, hi = (np.full(count, end) for end in self.range)
        # rows: value and integral at the interval's start, its increment, and its area over its length
        rows = np.zeros((count, 4, 2 * depth + 4))
        rows[:, 2, 0], rows[:, 3, 1] = np.sqrt(hi - lo), np.sqrt((hi - lo) / 12)
        parts = np.empty((depth + 1, count, 2))
        for k in range(depth + 1):
            # beside a node the clock may round across
            parts[k] = np.stack([clocks[k] - lo, hi - clocks[k]], 1).clip(0)
            lo, hi = np.where(uppers[k], clocks[k], lo), np.where(uppers[k], hi, clocks[k])
        # a time as good as at a node is at it: at its root, the path would show how its clock was rounded
        parts[depth] *= parts[depth] > 1e-6 * parts[depth].sum(1, keepdims=True)
        keep, fresh = _halves(parts, uppers)
        for k in range(depth + 1):
            rows[:, :, : 2 * k + 2] = keep[k] @ rows[:, :, : 2 * k + 2]
            rows[:, :, 2 * k + 2 : 2 * k + 4] = fresh[k]
        return rows[:, :2]


def _halves(parts: Any, upper: Any) -> tuple[Any, Any]:
    """Return how the rows of half an interval follow from those of the whole, and from its split's two normals.

    With the parts' lengths a + b = h, p = a / h, q = b / h and H = area / h, the first half has the increment
    p W + 6 p q H and the area over its length p^2 H, up to two normals; the second has the rest.

    Reference: Jelincic, Foster & Kidger 2024 (arXiv 2405.06464), section 3.
    """
    a, b = parts[..., 0], parts[..., 1]
    h, zero, one = a + b, 0 * a, 0 * a + 1
    root, p = np.sqrt(h), np.divide(a, h, out=one / 2, where=h > 0)
    q = 1 - p
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
    return np.moveaxis(keep, (0, 1), (-2, -1)), np.moveaxis(fresh, (0, 1), (-2, -1))
