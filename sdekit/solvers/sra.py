"""Strong order 1.5: Rossler's SRA1 in the coordinates in which the reverse SDE is a denoiser driven by pure noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.level import VaryingSDE, advance, integrals, keep, level_of, spread, total


@dataclass(frozen=True)
class SRA1(Solver):
    r"""A two-stage method of strong order 1.5, for any noise level. In q = x / (sigma K(., s)) the reverse SDE is

        dq = x0_hat dp + dB_c,          dp ~ dP,         c = e^{2 \int eta dlam}, the equation's clock,

    additive noise of constant size, for which SRA1 reads, with D_1 at the start and D_2 at three quarters of p,

        q_2 = q + 3/4 D_1 \Delta p + 3/2 A / \Delta p,           q_s = q + (1/3 D_1 + 2/3 D_2) \Delta p + B

    and A = \int (B_c - B_t) dp. For eta = 1, where q = x alpha / sigma^2 and p = c, A is the area that the noise tells
    when it is asked a second time; for other levels it is its best estimate by the increment and that area, which
    leaves the order as it is.

    Reference: Rossler 2010, "Runge-Kutta methods for the strong approximation of solutions of SDEs", table 6.1 (SRA1).
    """

    order: int = 2
    evals: int = 2
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow, ReverseSDE, VaryingSDE)

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        m = self._node(system, t, s)
        place = self._place(system, t, m, s)
        half = 1 / (2 * place) if bool(place > 0) else torch.ones_like(t)
        first = system(x, t)
        stage = advance(system, x, t, m, [(total(system, t, m), first)])
        noisy = bool(keep(system, t, s) < 1)
        if noisy:
            z = noise(t, s)
            stage = stage + self._noise(system, (t, m, s), half, z, noise)
        second, whole = system(stage, m), total(system, t, s)
        x = advance(system, x, t, s, [(whole * (1 - half), first), (whole * half, second)])
        return Step(x + spread(system, t, s) * z if noisy else x)

    def _noise(
        self, system: System, times: tuple[Tensor, Tensor, Tensor], half: Tensor, z: Tensor, noise: Draw
    ) -> Tensor:
        r"""Return the noise of the stage, A / \Delta p in units of the state at its time."""
        t, m, s = times
        if not bool(system.process.lam(s).isfinite()):
            return spread(system, t, m) * z
        mean, odd = self._areas(system, t, s)
        scale = system.process.sigma(m) * (1 - keep(system, t, s) ** 2).sqrt() / keep(system, m, s) / half
        return scale * mean * z + scale * odd * noise(t, s)

    def _node(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        """Return the time at three quarters of p, by the step's mean level."""
        process = system.process
        h, end = process.lam(s) - process.lam(t), process.lam(s)
        if not bool(end.isfinite()) or bool(t == s):
            return (t + s) / 2
        left = 1 - total(system, t, s)
        rate = -left.log() / h if bool(h.isfinite()) else 1 + level_of(system).eta(process, end)
        return process.time(end + (0.75 + left / 4).log() / rate)

    def _place(self, system: System, t: Tensor, m: Tensor, s: Tensor) -> Tensor:
        """Return how far m lies in p, as a share of the step."""
        left = 1 - total(system, m, s)
        return total(system, t, m) * left / total(system, t, s)

    def _areas(self, system: System, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the coefficients of A / (\Delta p sqrt(\Delta c)) in the increment and in the area."""
        process, level = system.process, level_of(system)
        kept = keep(system, t, s) ** 2

        def basis(lam: Tensor) -> tuple[Tensor, Tensor]:
            v = ((2 * (level.primitive(process, lam) - level.primitive(process, process.lam(s)))).exp() - kept) / (
                1 - kept
            )
            return v, math.sqrt(3) * v * (1 - v)

        mean, odd = integrals(system, t, s, basis)
        return mean / total(system, t, s), odd / total(system, t, s)
