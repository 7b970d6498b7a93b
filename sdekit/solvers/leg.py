"""One step on a path: what becomes of the state, of the predictions and of the noise."""

from __future__ import annotations

import functools
import math
from typing import TypeAlias

import torch
from torch import Tensor

from sdekit.equation import System
from sdekit.prediction import Prediction
from sdekit.solvers.path import DATA, STRAIGHT, Clock, Path, ray
from sdekit.solvers.quadrature import Rule, gauss

Known: TypeAlias = tuple[Prediction, ...]


class Leg:
    """A step from t to s on a path, with the scales at both ends computed once.

    Args:
        path: the coordinates.
        system: the equation of a model, for its process and its noise level.
        t: the time from which the step goes, 0-d.
        s: the time to which it goes, 0-d.

    Attributes:
        scale: kappa_s.
        growth: q_s / q_t, with q = kappa / alpha.
        keep: the factor of the state.
    """

    def __init__(self, path: Path, system: System, t: Tensor, s: Tensor) -> None:
        process = system.process
        self.path, self.system, self.t, self.s, self.eta = path, system, t, s, system.eta
        self.alpha_t, self.sigma_t = process.alpha(t), process.sigma(t)
        self.alpha_s, self.sigma_s = process.alpha(s), process.sigma(s)
        self.tau_t, self.tau_s = path.tau(self.alpha_t, self.sigma_t), path.tau(self.alpha_s, self.sigma_s)
        self.scale = path.kappa(self.alpha_s, self.sigma_s)
        ratio = self.scale / path.kappa(self.alpha_t, self.sigma_t)
        self.growth = ratio * (self.alpha_t / self.alpha_s)
        self.keep = ratio if self.eta == 0 else ratio * self.growth**self.eta

    @functools.cached_property
    def total(self) -> Tensor:
        """The factor of P where it does not change within the step."""
        return self.path.total(self)

    @functools.cached_property
    def spread(self) -> Tensor:
        """The standard deviation of the fresh noise."""
        return self.path.spread(self)

    @property
    def finite(self) -> bool:
        """Whether the path has finite coordinates at both ends."""
        parts = self.keep * self.total
        return math.isfinite(float(parts if self.eta == 0 else parts * self.spread))

    def gains(self, clock: Clock, times: list[Tensor]) -> list[Tensor]:
        """Return the factors of P's values at `times`, the step's own first, for a polynomial in the clock.

        A value where the clock is infinite, or at the same place as one before it, has no part in it; nor has any but
        the first where lam is infinite at an end of the step, unless the clock is the path's own.
        """
        zero, own = torch.zeros_like(self.t), clock == self.path and self.eta == 0
        constant = [self.total, *(zero for _ in times[1:])]
        if len(times) == 1:
            return constant
        places = [clock.at(self.system.process, time) for time in times]
        used = [j for j, c in enumerate(places) if math.isfinite(float(c)) and c not in places[:j]]
        rule = self._in_tau() if own else self.in_lam(self.eta)
        if rule is None or len(used) < 2 or used[0] != 0:
            return constant
        at, weights = rule[0] if own else clock.along(self.system.process, rule[0]), rule[1]
        gains = [zero for _ in times]
        for j in used:
            basis = math.prod((at - places[i]) / (places[j] - places[i]) for i in used if i != j)
            gains[j] = (weights * basis).sum()
        return gains

    def in_lam(self, power: float) -> Rule | None:
        """Return a quadrature of (1 + power) kappa_s (q_s / q)^power dtau: its places in lam and its weights."""
        start, end = self.system.process.lam(self.t), self.system.process.lam(self.s)
        h = end - start
        if not math.isfinite(float(h)):
            return None
        places, weights = gauss(1 + int((1 + power) * abs(float(h)) / 2))
        lams = start + places * h
        (alpha, sigma), (a, b) = ray(lams), ray(end)
        kappa = self.path.kappa(alpha, sigma)
        density = -self.path.pace * alpha * sigma / kappa**2
        if power:
            density = (1 + power) * density * (self.path.kappa(a, b) / a * alpha / kappa) ** power
        return lams, self.scale * h * weights * density

    def _in_tau(self) -> Rule | None:
        rise = self.tau_s - self.tau_t
        if not math.isfinite(float(rise)):
            return None
        places, weights = gauss(1)
        return self.tau_t + places * rise, self.scale * rise * weights


def regular(path: Path, system: System, t: Tensor, s: Tensor) -> Leg:
    """Return the step on the path, or on one whose coordinates are finite at both ends if those of the path are not."""
    leg = Leg(path, system, t, s)
    return leg if leg.finite else Leg(STRAIGHT if system.eta == 0 else DATA, system, t, s)


def advance(path: Path, clock: Clock, system: System, x: Tensor, known: Known, s: Tensor) -> Tensor:
    """Step from the time of the first of the predictions `known` to the time s, without fresh noise.

    Where the path has no finite coordinates (alpha or sigma vanishes), P is constant on one that has.
    """
    leg = regular(path, system, known[0].t, s)
    times = [p.t for p in known] if leg.path == path else [known[0].t]
    return combine(leg, x, known, leg.gains(clock, times))


def combine(leg: Leg, x: Tensor, known: Known, gains: list[Tensor]) -> Tensor:
    """Return keep x + sum_j gains_j P_j."""
    x = leg.keep * x
    for gain, prediction in zip(gains, known, strict=False):
        if gain:
            x = x + gain * leg.path.of(prediction)
    return x
