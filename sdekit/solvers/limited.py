"""An Adams predictor-corrector that lowers its order where a sample's path is not smooth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.equation import System
from sdekit.noise import Draw
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.damped import Values, distinct, newton
from sdekit.solvers.path import STRAIGHT


class Bent(NamedTuple):
    """What a step leaves for the next: its place tau, y and P there, and how much the path bends, shape (B,)."""

    tau: Tensor
    y: Tensor
    velocity: Tensor
    bend: Tensor


@dataclass(frozen=True)
class LimitedAdams(Solver):
    r"""Predict, ask, correct on the straight path, dy = P dtau, as `DampedAdams` does, with what is small kept small.

    The state is predicted by Newton's polynomial through the last three values of P (Adams-Bashforth), and once P is
    known there the step is made again by that through the new value and the last two (Adams-Moulton). Neither the third
    term of the prediction nor the correction may be longer than `limit` times the second term, sample by sample: where
    they would be the path bends within the step, and the polynomial says nothing of it. On smooth paths nothing is
    limited, and the order is 3. It is made for many steps: from data to noise, for likelihoods.

    The limit looks at norms, so a run of it is no plan: it goes step by step.

    Args:
        limit: the length of the third term and of the correction over that of the second term.

    Reference: Hairer, Norsett & Wanner 1993, section III.1, for Adams's methods; the limit is our own.
    """

    limit: float = 0.25
    order = 3
    memory = 2

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        process, now = system.process, system(x, t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        tau, y, velocity = STRAIGHT.tau(alpha, sigma), x / STRAIGHT.kappa(alpha, sigma), STRAIGHT.of(now)
        known: Values = [(node.velocity, node.tau) for node in past]
        if past and bool(past[0].tau != tau):
            terms = _terms([known[0], (velocity, tau), *known[1:]], tau)
            y = y + self._limited(sum(terms, past[0].y) - y, past[0].bend)
        alpha, sigma = process.alpha(s), process.sigma(s)
        first, *more = _terms([(velocity, tau), *known], STRAIGHT.tau(alpha, sigma))
        bend = _length(more[0] if more else first)
        end = y + sum([*more[:1], *(self._limited(term, bend) for term in more[1:])], first)
        return Step(STRAIGHT.kappa(alpha, sigma) * end, Bent(tau, y, velocity, bend))

    def _limited(self, term: Tensor, bend: Tensor) -> Tensor:
        length = _length(term)
        share = (self.limit * bend / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1)
        return share.reshape(-1, *[1] * (term.ndim - 1)) * term


def _length(term: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(term.reshape(len(term), -1), dim=1)
    return length


def _terms(known: Values, end: Tensor) -> list[Tensor]:
    """Return the terms of the integral, from the first tau to `end`, of Newton's polynomial through three values."""
    values = distinct(known)[:3]
    weights = newton([tau for _, tau in values], end)
    return [sum(w * value for w, (value, _) in zip(term, values, strict=False)) for term in weights]  # type: ignore[misc]
