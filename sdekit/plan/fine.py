"""The fine solution that plans are fitted to, and what the model was asked for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.plan.family import adams, tau_of, time_of
from sdekit.prediction import Model, Prediction
from sdekit.process import Process
from sdekit.solvers.path import STRAIGHT

STEPS = 300
"""The steps of the fine solution."""

POINTS = 5
"""The values of P through which it goes on: its order."""

WIDEST = 9.0
"""Beyond |lam| = 9 its steps do not follow lam, which is infinite where alpha or sigma vanishes."""

KEPT = 2**25
"""The numbers of its states that are kept for fitting."""


class Counted:
    """A model that counts what it is asked.

    Attributes:
        calls: the network calls made so far, each for a whole batch.
    """

    def __init__(self, model: Model) -> None:
        self.model, self.calls = model, 0
        self.each = int(getattr(model, "calls", 1))

    @property
    def process(self) -> Process:
        """The model's process."""
        return self.model.process

    def __call__(self, x: Tensor, t: Time, /) -> Prediction:
        self.calls += self.each
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


def solved(model: Counted, x: Tensor, ends: tuple[float, float], train: Tensor) -> Fine:
    """Solve the probability flow finely from the states `x` between two times; a clean end is reached by x0_hat."""
    process = model.process
    first, last = tau_of(process, torch.tensor(ends, dtype=torch.float64))
    least = torch.minimum(first, tau_of(process, torch.tensor(process.t_min, dtype=torch.float64)))
    taus = _taus(first, torch.maximum(last, least))
    if last < taus[-1]:
        taus = torch.cat([taus, last[None]])
    times = time_of(process, taus)
    times[0], times[-1] = ends
    clean = times == process.clean
    kappas = torch.where(clean, 1.0, process.alpha(times) + process.sigma(times)).tolist()
    member = adams(process, taus, POINTS)
    c = member.coefficients(taus, member.weights)
    if float(times[-1]) == process.clean < process.t_min:
        c[-1] = torch.eye(len(c), dtype=c.dtype)[-1] * (taus[-1] - taus[-2])
    stride = -(-len(taus) * x.numel() * 2 // KEPT)
    y, slopes, kept = x / kappas[0], [], []
    for i in range(len(taus)):
        if i + 1 < len(taus):
            slopes.append(STRAIGHT.of(model(kappas[i] * y, times[i])))
        if i % stride == 0 or i + 1 == len(taus):
            kept.append((i, y, slopes[-1]))
        if i + 1 < len(taus):
            slopes = slopes[-POINTS:]
            o = i + 1 - len(slopes)
            y = y + sum(float(c[i, o + k]) * slope for k, slope in enumerate(slopes))
    where, states, rates = zip(*kept, strict=True)
    return Fine(model, states[0], taus[list(where)], torch.stack(states), torch.stack(rates), train)


def _taus(first: Tensor, last: Tensor) -> Tensor:
    """Return the grid of the fine solution: even in lam as far as that is finite."""
    lams = [float((1 - end).log() - end.log()) for end in (first, last)]
    inner = torch.linspace(max(lams[0], -WIDEST), min(lams[1], WIDEST), STEPS + 1, dtype=torch.float64)
    taus = torch.sigmoid(-inner)
    beyond = [torch.stack([end]) for end, lam in zip((first, last), lams, strict=True) if abs(lam) > WIDEST]
    taus = torch.cat([*(b for b in beyond if b > taus[0]), taus, *(b for b in beyond if b < taus[-1])])
    taus[0], taus[-1] = first, last
    return taus
