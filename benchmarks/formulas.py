r"""Samplers of the literature written once more from their papers, plainly, as a bar for benchmarks.

All of them step z = x / alpha along the noise-to-signal ratio r = sigma / alpha, where every process is the same
equation dz/dr = (z - x0_hat) / r. A sampler is `run(call, z, r)`: call(z, r) is x0_hat, r the grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Call = Callable[[Tensor, float], Tensor]
Run = Callable[[Call, Tensor, list[float]], Tensor]

POINTS, MASSES = np.polynomial.legendre.leggauss(24)
EQUAL = {1: [1.0], 2: [3 / 2, -1 / 2], 3: [23 / 12, -16 / 12, 5 / 12], 4: [55 / 24, -59 / 24, 37 / 24, -9 / 24]}


def integrals(
    factor: Callable[[Floats], Floats], clock: Callable[[Floats], Floats], nodes: list[float], end: float
) -> list[float]:
    """Return the integrals over r from nodes[0] to `end` of `factor` times the Lagrange basis in `clock`."""
    total = np.zeros(len(nodes))
    at = clock(np.array(nodes))
    for left, right in pairwise(np.linspace(math.log(nodes[0]), math.log(end), 4)):
        r = np.exp((left + right) / 2 + (right - left) / 2 * POINTS)
        basis = [math.prod((clock(r) - b) / (a - b) for b in at if b != a) for a in at]
        total += np.array([(factor(r) * r * MASSES * one).sum() * (right - left) / 2 for one in basis])
    return [float(w) for w in total]


def noise_adams(order: int, clock: Callable[[Floats], Floats]) -> Run:
    """eps as a polynomial in a clock: DEIS (Zhang & Chen 2023, arXiv 2204.13902, eq. 14), tAB, rhoAB or in log r."""

    def run(call: Call, z: Tensor, r: list[float]) -> Tensor:
        past: list[tuple[float, Tensor]] = []
        for a, b in pairwise(r):
            past = [(a, (z - call(z, a)) / a), *past][:order]
            weights = integrals(np.ones_like, clock, [p[0] for p in past], b)
            z = z + sum(w * p[1] for w, p in zip(weights, past, strict=True))
        return z

    return run


def data_adams(order: int) -> Run:
    """x0 as a polynomial in log r with exact weights: exponential Adams-Bashforth."""

    def run(call: Call, z: Tensor, r: list[float]) -> Tensor:
        past: list[tuple[float, Tensor]] = []
        for a, b in pairwise(r):
            past = [(a, call(z, a)), *past][:order]
            weights = integrals(lambda q: -(q**-2.0), np.log, [p[0] for p in past], b)
            z = b * (z / a + sum(w * p[1] for w, p in zip(weights, past, strict=True)))
        return z

    return run


def straight_adams(order: int) -> Run:
    """The velocity eps - x0 of the straight path as a polynomial in sigma / (alpha + sigma): Adams-Bashforth there."""

    def run(call: Call, z: Tensor, r: list[float]) -> Tensor:
        past: list[tuple[float, Tensor]] = []
        for a, b in pairwise(r):
            x0 = call(z, a)
            past = [(a, (z - x0) / a - x0), *past][:order]
            weights = integrals(lambda q: (1 + q) ** -2.0, lambda q: q / (1 + q), [p[0] for p in past], b)
            z = (1 + b) * (z / (1 + a) + sum(w * p[1] for w, p in zip(weights, past, strict=True)))
        return z

    return run


def ipndm(order: int) -> Run:
    """Equal-step Adams weights of eps on any grid (Zhang & Chen 2023, arXiv 2204.13902, appendix H.2)."""

    def run(call: Call, z: Tensor, r: list[float]) -> Tensor:
        past: list[Tensor] = []
        for a, b in pairwise(r):
            past = [(z - call(z, a)) / a, *past][:order]
            z = z + (b - a) * sum(w * eps for w, eps in zip(EQUAL[len(past)], past, strict=True))
        return z

    return run


def dpmpp(order: int) -> Run:
    """DPM-Solver++ 2M and 3M (Lu et al. 2022, arXiv 2211.01095, algorithm 2, and its public third order)."""

    def run(call: Call, z: Tensor, r: list[float]) -> Tensor:
        past: list[tuple[float, Tensor]] = []
        for a, b in pairwise(r):
            past = [(-math.log(a), call(z, a)), *past][:order]
            (now, x0), h = past[0], math.log(a / b)
            shrink = -math.expm1(-h)
            z = b / a * z + shrink * x0
            if len(past) > 1:
                first = (x0 - past[1][1]) / ((now - past[1][0]) / h)
            if len(past) == 2:
                z = z + shrink / 2 * first
            if len(past) == 3:
                near, far = (now - past[1][0]) / h, (past[1][0] - past[2][0]) / h
                bend = first - (past[1][1] - past[2][1]) / far
                phi = 1 - shrink / h
                z = z + phi * (first + near / (near + far) * bend) - (phi / h - 0.5) * bend / (near + far)
        return z

    return run


def unipc(order: int, noise: bool) -> Run:
    """UniPC with B_2(h), order 1 last (Zhao et al. 2023, arXiv 2302.04867, eq. 3 and 8), on eps or on x0."""

    def run(call: Call, z: Tensor, r: list[float]) -> Tensor:
        def seen(state: Tensor, at: float) -> Tensor:
            return (state - call(state, at)) / at if noise else call(state, at)

        past = [(-math.log(r[0]), seen(z, r[0]))]
        for k, (a, b) in enumerate(pairwise(r)):
            h, points = math.log(a / b), min(k + 1, order, len(r) - 1 - k)
            sign, size = (h, -b) if noise else (-h, -1.0)
            keep, grow = (1.0 if noise else b / a), math.expm1(sign)
            base = keep * z + size * grow * past[0][1]
            ratios = [(past[i][0] - past[0][0]) / h for i in range(1, points)]
            slopes = [(past[i][1] - past[0][1]) / q for i, q in zip(range(1, points), ratios, strict=True)]
            predict, correct = _unified(ratios, sign)
            z = base + size * grow * sum(w * d for w, d in zip(predict, slopes, strict=True))
            if k < len(r) - 2:
                new = seen(z, b)
                rise = zip(correct, [*slopes, new - past[0][1]], strict=True)
                z = base + size * grow * sum(w * d for w, d in rise)
                past = [(-math.log(b), new), *past][:order]
        return z

    return run


def _unified(ratios: list[float], sign: float) -> tuple[list[float], list[float]]:
    """Return UniPC's weights of the differences for the predictor and for the corrector."""
    points, value, factorial, right = len(ratios) + 1, math.expm1(sign) / sign - 1, 1, []
    for i in range(1, points + 1):
        right.append(value * factorial / math.expm1(sign))
        factorial *= i + 1
        value = value / sign - 1 / factorial
    rows = np.array([[*(q**i for q in ratios), 1.0] for i in range(points)])
    correct = np.linalg.solve(rows, right) if points > 1 else np.array([0.5])
    predict = np.array([0.5]) if points == 2 else np.linalg.solve(rows[:-1, :-1], right[:-1])
    return [float(w) for w in predict], [float(w) for w in correct]


def named() -> Iterator[tuple[str, Run]]:
    """Yield every formula with its name."""
    for order in (2, 3, 4):
        yield f"iPNDM-{order}", ipndm(order)
        yield f"DEIS-rhoAB{order}", noise_adams(order, lambda r: r)
        yield f"DEIS-tAB{order}", noise_adams(order, vp_time)
        yield f"DEIS-log-rho{order}", noise_adams(order, np.log)
        yield f"x0-AB{order}", data_adams(order)
        yield f"v-AB{order}", straight_adams(order)
    for order in (2, 3):
        yield f"DPM++{order}M", dpmpp(order)
        yield f"UniPC-{order}", unipc(order, noise=False)
        yield f"UniPC-{order}-eps", unipc(order, noise=True)


def vp_time(r: Floats) -> Floats:
    """Return the time at which VP (beta from 0.1 to 20) has sigma / alpha = r."""
    size = np.log1p(np.asarray(r) ** 2)
    return 2 * size / (0.1 + np.sqrt(0.01 + 4 * 9.95 * size))
