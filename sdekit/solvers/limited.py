"""An Adams predictor-corrector that lowers its order where a sample's path is not smooth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.equation import System
from sdekit.noise import Draw
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.path import STRAIGHT


class Bent(NamedTuple):
    """What a step leaves for the next: its place tau, y and P there, the slope of P (its divided difference with the
    value before, at `older`), and how much the path bends, shape (B,).
    """

    tau: float
    y: Tensor
    velocity: Tensor
    older: float
    slope: Tensor | None
    bend: Tensor


@dataclass(frozen=True)
class LimitedAdams(Solver):
    r"""Predict, ask, correct on the straight path, dy = P dtau, as `DampedAdams` does, with what is small kept small.

    With P_0 the value at tau_0, where a step of length h begins, P_1 and P_2 those before, and P_{01}, P_{012} their
    divided differences, the state is predicted by Adams-Bashforth's formula and, once P is known at the state so found,
    the step before is made again by Adams-Moulton's, from tau_1 and over h_1 = tau_0 - tau_1:

        y(tau_0 + h) = y_0 + h P_0 + h^2/2 P_{01} + (h^3/3 + h^2/2 h_1) P_{012}
        y_0          = y_1 + h_1 P_1 + h_1^2/2 P_{01} - h_1^3/6 P_{012}

    Neither the last term of the prediction nor the correction may be longer than `limit` times the term in P_{01},
    sample by sample: where they would be the path bends within the step, and the polynomial says nothing of it. On
    smooth paths nothing is limited, and the order is 3. It is made for many steps: from data to noise, for likelihoods.

    The limit looks at norms, so a run of it is no plan: it goes step by step.

    Args:
        limit: the length of the last term and of the correction over that of the second.

    Reference: Hairer, Norsett & Wanner 1993, section III.1, for Adams's methods; the limit is our own.
    """

    limit: float = 1.0
    order = 3
    memory = 1

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        process, now = system.process, system(x, t)
        alpha, sigma = process.alpha(t), process.sigma(t)
        tau, y, velocity = float(STRAIGHT.tau(alpha, sigma)), x / STRAIGHT.kappa(alpha, sigma), STRAIGHT.of(now)
        last: Bent | None = past[0] if past and past[0].tau != tau else None
        slope = curve = None
        if last is not None:
            h = tau - last.tau
            slope = (velocity - last.velocity) / h
            again = last.y + h * last.velocity + h**2 / 2 * slope
            if last.slope is not None:
                curve = (slope - last.slope) / (tau - last.older)
                again = again - h**3 / 6 * curve
            y = y + self._limited(again - y, last.bend)
        alpha, sigma = process.alpha(s), process.sigma(s)
        h = float(STRAIGHT.tau(alpha, sigma)) - tau
        end = y + h * velocity
        bend = abs(h) * _length(velocity)
        if last is not None and slope is not None:
            end, bend = end + h**2 / 2 * slope, h**2 / 2 * _length(slope)
            if curve is not None:
                end = end + self._limited((h**3 / 3 + h**2 / 2 * (tau - last.tau)) * curve, bend)
        older = tau if last is None else last.tau
        return Step(STRAIGHT.kappa(alpha, sigma) * end, Bent(tau, y, velocity, older, slope, bend))

    def _limited(self, term: Tensor, bend: Tensor) -> Tensor:
        length = _length(term)
        share = (self.limit * bend / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1)
        return share.reshape(-1, *[1] * (term.ndim - 1)) * term


def _length(term: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(term.reshape(len(term), -1), dim=1)
    return length
