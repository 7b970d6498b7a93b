"""DPM-Solver and DPM-Solver++ as single-step methods: with inner times of their own, or with the grid's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from sdekit.equation import System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.dpm_weights import DATA, NOISE, Integrand, advance, exact, midpoint, zphi


class _Singlestep(Solver):
    """A step with one or two inner times, evenly placed in lam."""

    order: int
    r1: float | None
    integrand: ClassVar[Integrand]

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"{type(self).__name__} has orders 1, 2 and 3; got {self.order!r}.")
        if self.r1 is None:
            object.__setattr__(self, "r1", 1 / 3 if self.order == 3 else 1 / 2)
        if not 0 < self.inner[0] <= 1 or self.inner[0] == _R2:
            raise ValueError(f"r1 must lie in (0, 1] and not at the third node, 2/3; got {self.r1}.")

    @property
    def evals(self) -> int:  # type: ignore[override]
        """As many as the order."""
        return self.order

    @property
    def inner(self) -> tuple[float, ...]:
        """The places of the inner times, in units of h."""
        return (float(self.r1 or 0), _R2)

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        process, seen = system.process, [system(x, t)]
        ends = process.lam(t), process.lam(s)
        if not bool((ends[1] - ends[0]).isfinite()):
            return Step(self._in_time(system, x, seen[0], s))
        for place in self.inner[: self.order - 1]:
            middle = s if place == 1 else process.time(ends[0] + place * (ends[1] - ends[0]))
            seen.append(system(advance(self.integrand, system, x, seen, middle, exact), middle))
        return Step(advance(self.integrand, system, x, seen, s, self.rule))

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        """Return the weights of the inner predictions at lam_t + r_i h."""
        return midpoint(r, z) if len(r) == 1 else _last(r, z)

    def _in_time(self, system: System, x: Tensor, now: Prediction, s: Tensor) -> Tensor:
        """Make as many steps of order 1, evenly in time, where lam is infinite at an end."""
        t = now.t
        for k in range(1, self.order + 1):
            u = s if k == self.order else t + (s - t) * (k / self.order)
            x = advance(self.integrand, system, x, (now,), u, self.rule)
            if k < self.order:
                now = system(x, u)
        return x


@dataclass(frozen=True)
class DPMSinglestep(_Singlestep):
    """DPM-Solver-1, 2 and 3: single steps on eps_hat. With z = h and m_i at lam_t + r_i h, r_2 = 2/3:

        order 2:   z phi_1 m_0 + z phi_1 / (2 r_1) (m_1 - m_0)
        order 3:   z phi_1 m_0 + z phi_2 / r_2 (m_2 - m_0)

    A step with an infinite lam at one end has no inner times, and is made of steps of order 1, evenly in time.

    Args:
        order: 1, 2 or 3, and as many network calls a step.
        r1: the place of the first inner time, by default 1/2 for order 2 and 1/3 for order 3.

    Reference: Lu et al. 2022 (arXiv 2206.00927), algorithms 1 and 2, and appendix B for any r1.
    """

    order: int = 2
    r1: float | None = None
    integrand: ClassVar[Integrand] = NOISE


@dataclass(frozen=True)
class DPMppSinglestep(_Singlestep):
    """DPM-Solver++ 1S, 2S and 3S: the formulas of `DPMSinglestep` on x0_hat, with z = -h.

    Args:
        order: 1, 2 or 3, and as many network calls a step.
        r1: the place of the first inner time, by default 1/2 for order 2 and 1/3 for order 3.

    Reference: Lu et al. 2022 (arXiv 2211.01095), algorithm 1; for 3S its authors' code.
    """

    order: int = 2
    r1: float | None = None
    integrand: ClassVar[Integrand] = DATA


class Group(NamedTuple):
    """What an interleaved method looks back at: the state at a group's start, and the predictions since."""

    x: Tensor
    predictions: tuple[Prediction, ...]


class _Interleaved(Solver):
    """Single steps whose inner times are the grid's: every interval of the grid costs one call."""

    group: int
    memory = 1
    integrand: ClassVar[Integrand]

    def __post_init__(self) -> None:
        if self.group not in (1, 2, 3):
            raise ValueError(f"{type(self).__name__} has groups of 1, 2 and 3 steps; got {self.group!r}.")

    @property
    def order(self) -> int:  # type: ignore[override]
        """As many as a group has steps, at the groups' ends."""
        return self.group

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Group, ...], noise: Draw) -> Step:
        now, process = system(x, t), system.process
        group = Group(x, (now,))
        if past and len(past[0].predictions) < self.group and bool(t != s):
            h = process.lam(s) - process.lam(past[0].predictions[0].t)
            if bool(h.isfinite()):
                group = Group(past[0].x, (*past[0].predictions, now))
        return Step(advance(self.integrand, system, group.x, group.predictions, s, self.rule), group)

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        """Return the weights of the group's later predictions, at r_i of the way from its start."""
        return midpoint(r, z) if len(r) == 1 else _last(r, z)


@dataclass(frozen=True)
class DPMInterleaved(_Interleaved):
    """DPM-Solver's single steps on eps_hat with the grid's own times as inner times, one call an interval.

    The first interval of a group is a step of order 1, the next one a step of order 2 from the group's start, and so
    on. A run should end with a full group; the order is reached there, and with the grid's times evenly in lam.

    Args:
        group: 1, 2 or 3: the intervals of a group, and its order.

    Reference: Lu et al. 2022 (arXiv 2206.00927), section 3.4 for the grouping; diffusers' single-step scheduler, whose
        inner step of order 2 in a group of 3 has the weight z phi_1/2 where the paper has z phi_2.
    """

    group: int = 2
    integrand: ClassVar[Integrand] = NOISE


@dataclass(frozen=True)
class DPMppInterleaved(_Interleaved):
    """The same on x0_hat: DPM-Solver++ 2S and 3S, one call an interval. See `DPMInterleaved`.

    Args:
        group: 1, 2 or 3: the intervals of a group, and its order.

    Reference: Lu et al. 2022 (arXiv 2211.01095), algorithm 1; diffusers' single-step scheduler.
    """

    group: int = 2
    integrand: ClassVar[Integrand] = DATA


@dataclass(frozen=True)
class DPMInterleavedHeun(DPMInterleaved):
    """`DPMInterleaved` with exact weights through all predictions of the group: diffusers' solver_type "heun"."""

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        return exact(r, z)


@dataclass(frozen=True)
class DPMppInterleavedHeun(DPMppInterleaved):
    """`DPMppInterleaved` with exact weights through all predictions of the group: diffusers' solver_type "heun"."""

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        return exact(r, z)


_R2 = 2 / 3


def _last(r: list[Tensor], z: Tensor) -> list[Tensor]:
    """Third-order weights by the last prediction alone, of order 3 where it lies at 2/3."""
    return [0 * z, zphi(2, z) / r[1]]
