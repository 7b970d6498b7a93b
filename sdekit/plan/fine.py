"""The fine solution that plans are fitted to, and what the model was asked for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.plan.family import adams, tau_of, time_of
from sdekit.prediction import Model, Prediction, calls
from sdekit.process import Process
from sdekit.solvers.path import STRAIGHT

STEPS = 300
"""The steps of the fine solution."""

POINTS = 5
"""The values of P through which it goes on: its order."""

WIDEST = 9.0
"""Beyond |lam| = 9 its steps do not follow lam, which is infinite where alpha or sigma vanishes."""

NEAR = 1, 2, 4
"""Where tau is that many times the last one, P is looked at to go on from there to the clean end."""

KEPT = 2**25
"""The numbers of its states that are kept for fitting."""


class Counted:
    """A model that counts what it is asked.

    Attributes:
        spent: the network calls made so far, each for a whole batch.
        each: the network calls of one answer, at most.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.spent = model, 0
        self.each = calls(model)

    @property
    def process(self) -> Process:
        """The model's process."""
        return self.model.process

    def __call__(self, x: Tensor, t: Time, /) -> Prediction:
        self.spent += calls(self.model, t)
        return self.model(x, t)


@dataclass(frozen=True, eq=False)
class Fine:
    """The fine solution from a batch of starts, in y = x/(alpha + sigma).

    Args:
        model: the model, which counts.
        start: y at the first time, shape (B, ...).
        taus: where the solution is kept, falling, shape (k,).
        states: y there, shape (k, B, ...).
        slopes: P there.
        train: the samples to fit to; the others are held out.
    """

    model: Counted
    start: Tensor
    taus: Tensor
    states: Tensor
    slopes: Tensor
    train: Tensor

    @property
    def target(self) -> Tensor:
        """The fine solution's last y, shape (B, ...)."""
        return self.states[-1]

    def at(self, tau: float) -> Tensor:
        """Return y at tau, by the cubic that fits states and slopes around it."""
        k = int(torch.searchsorted(-self.taus, -tau).clamp(1, len(self.taus) - 1))
        a, b = float(self.taus[k - 1]), float(self.taus[k])
        h, u = b - a, (tau - a) / (b - a)
        ends = (1 + 2 * u) * (1 - u) ** 2 * self.states[k - 1] + u**2 * (3 - 2 * u) * self.states[k]
        return ends + h * (u * (1 - u) ** 2 * self.slopes[k - 1] - u**2 * (1 - u) * self.slopes[k])

    def slope(self, tau: float) -> Tensor:
        """Return P at tau, by the line between the values around it."""
        k = int(torch.searchsorted(-self.taus, -tau).clamp(1, len(self.taus) - 1))
        a, b = float(self.taus[k - 1]), float(self.taus[k])
        return torch.lerp(self.slopes[k - 1], self.slopes[k], (tau - a) / (b - a))


@torch.no_grad()
def solved(model: Counted, x: Tensor, ends: tuple[float, float], train: Tensor) -> Fine:
    """Solve the probability flow finely from the states `x` between two times, of which the second may be clean.

    Args:
        model: the model.
        x: the states at the first time, shape (B, ...).
        ends: the two times.
        train: the samples to fit to.

    Raises:
        FloatingPointError: the solution is not finite.
    """
    process = model.process
    first, last = tau_of(process, torch.tensor(ends, dtype=torch.float64))
    least = tau_of(process, torch.tensor(process.t_min, dtype=torch.float64))
    taus = _taus(first, torch.maximum(last, least))
    times = time_of(process, taus)
    times[0] = ends[0]
    kappas = (process.alpha(times) + process.sigma(times)).tolist()
    member = adams(process, taus, POINTS)
    weights = member.coefficients(taus, member.weights).tolist()
    stride = -(-len(taus) * x.numel() * 2 // KEPT)
    near = [int((taus - k * taus[-1]).abs().argmin()) for k in NEAR]
    y, answers, kept = x / kappas[0], {}, []
    for i, kappa in enumerate(kappas):
        answers[i] = STRAIGHT.of(model(kappa * y, times[i]))
        if i % stride == 0 or i + 1 == len(kappas):
            kept.append((i, y, answers[i]))
        if i + 1 < len(kappas):
            y = y + sum(weights[i][j] * answers[j] for j in range(max(0, i - POINTS + 1), i + 1))
        if i - POINTS + 1 not in near:
            answers.pop(i - POINTS + 1, None)
    at = taus[[i for i, _, _ in kept]]
    states, slopes = [state for _, state, _ in kept], [slope for _, _, slope in kept]
    if last < taus[-1]:
        mean, slope = (torch.zeros_like(y) for _ in range(2))
        for k, *shares in zip(near, *_onwards(taus[near]), strict=True):
            mean, slope = (total + c * answers[k] for total, c in zip((mean, slope), shares, strict=True))
        states.append(y - taus[-1] * mean)
        slopes.append(slope)
        at = torch.cat([at, last[None]])
    if not bool(states[-1].isfinite().all()):
        raise FloatingPointError(
            "The fine solution must be finite; it is not. Look at the model's answers at both ends."
        )
    return Fine(model, states[0], at, torch.stack(states), torch.stack(slopes), train)


def _onwards(taus: Tensor) -> tuple[list[float], list[float]]:
    """Return the weights by which values of P at `taus`, the last time first, give its mean from 0 to there, and P(0).

    The flow's limit at the clean end, where no model is asked, by the parabola through three values.
    """
    at, powers = taus / taus[0], torch.arange(len(taus), dtype=torch.float64)
    matrix = at[None] ** powers[:, None]
    wanted = torch.stack([1 / (powers + 1), (powers == 0).double()], 1)
    mean, value = torch.linalg.solve(matrix, wanted).T.tolist()
    return mean, value


def _taus(first: Tensor, last: Tensor) -> Tensor:
    """Return the grid of the fine solution: even in lam as far as that is finite."""
    lams = [float((1 - end).log() - end.log()) for end in (first, last)]
    inner = torch.linspace(max(lams[0], -WIDEST), min(lams[1], WIDEST), STEPS + 1, dtype=torch.float64)
    taus = torch.sigmoid(-inner)
    beyond = [torch.stack([end]) for end, lam in zip((first, last), lams, strict=True) if abs(lam) > WIDEST]
    taus = torch.cat([*(b for b in beyond if b > taus[0]), taus, *(b for b in beyond if b < taus[-1])])
    taus[0], taus[-1] = first, last
    return taus
