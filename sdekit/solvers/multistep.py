r"""Multistep methods: P goes on as the polynomial in a clock through its last values, on any path.

One class holds what goes by many names. The path says what is predicted, the clock in what it is smooth:

    exponential Adams                DATA or NOISE in lam
    DEIS rhoAB, LMS, iPNDM_v         NOISE in its own clock sigma/alpha: Adams-Bashforth with variable steps
    DEIS tAB                         NOISE in the process's time;  in lam: DEIS "log rho"
    AB on the straight velocity      STRAIGHT in its own clock sigma/(alpha + sigma)
    AB on the v-prediction           Turn() in its own clock, the angle
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sdekit._value import Value
from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.leg import Known, advance, combine, regular
from sdekit.solvers.path import NOISE, STRAIGHT, Clock, Path

Go = Callable[[Known, Tensor], Tensor]

STAGES: dict[int, tuple[tuple[float, tuple[int, ...]], ...]] = {
    1: ((1, (0,)),),
    2: ((1 / 2, (0,)), (1, (0, 1))),
    3: ((1 / 3, (0,)), (2 / 3, (0, 1)), (1, (0, 2))),
    4: ((1 / 6, (0,)), (1 / 3, (0, 1)), (1 / 2, (0, 2)), (1, (0, 2, 3)), (1, (0, 3, 4))),
}
"""One-step methods of orders 1 to 4: each line a share of the step, and the stages whose polynomial leads there.

A stage is led to by stages that are, times h, as exact as it has to be, and by a quadrature of two nodes (0 and 2/3) or
three (0, 1/2 and 1) which has one order more than it has nodes. That holds in every clock and on every path.
"""


def climb(order: int, clock: Clock, go: Go, system: System, now: Prediction, s: Tensor) -> tuple[Tensor, Known]:
    """Make a one-step step by the stages of that order; return the state, and the predictions that led to it.

    `go(known, at)` steps from the time of `now` to the time `at` by the polynomial through the predictions `known`.
    """
    known = [now]
    *stages, (_, last) = STAGES[order]
    for share, nodes in stages:
        at = clock.between(system.process, now.t, s, share)
        known.append(system(go(tuple(known[j] for j in nodes), at), at))
    led = tuple(known[j] for j in last)
    return go(led, s), led


class Start(Value, ABC):
    """How a multistep method begins, while it has no values to look back at."""

    @abstractmethod
    def begin(
        self, solver: Adams, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...]
    ) -> Step | None:
        """Make a step of the start, without fresh noise; None where the start is over."""

    @abstractmethod
    def calls(self, points: int, steps: int) -> int:
        """Return the further network calls of a run of that many steps."""

    @abstractmethod
    def order(self, points: int) -> int:
        """Return the highest global order that it leaves to a method through so many points."""


@dataclass(frozen=True)
class Ramp(Start):
    """Begin with as many points as there are: the papers' start, which caps the order at 2."""

    def begin(
        self, solver: Adams, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...]
    ) -> Step | None:
        return None

    def calls(self, points: int, steps: int) -> int:
        return 0

    def order(self, points: int) -> int:
        return min(points, 2)


@dataclass(frozen=True)
class OneStep(Start):
    """Begin with a one-step method of one order less, on the same path, whose stages the next steps look back at.

    That is just enough for the order to be reached globally, with points - 2 further network calls.
    """

    def begin(
        self, solver: Adams, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...]
    ) -> Step | None:
        if past or solver.points < 3:
            return None

        def go(known: Known, at: Tensor) -> Tensor:
            return solver.advance(system, x, known, at)

        end, led = climb(solver.points - 1, solver.clock, go, system, system(x, t), s)
        return Step(end, led[::-1])

    def calls(self, points: int, steps: int) -> int:
        return max(points - 2, 0)

    def order(self, points: int) -> int:
        return points


@dataclass(frozen=True)
class PseudoRungeKutta(Start):
    """Make the first steps (three, for four points) by the classical tableau, with a transfer in the place of x + h k:

        x(e) = keep x + total e

    Reference: Liu et al. 2022 (arXiv 2202.09778), eq. 13 and algorithm 2.
    """

    def begin(
        self, solver: Adams, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...]
    ) -> Step | None:
        if len(past) >= solver.memory:
            return None
        middle = (t + s) / 2
        one = system(x, t)
        two = system(solver.transfer(system, x, (one,), (1,), middle), middle)
        three = system(solver.transfer(system, x, (one, two), (0, 1), middle), middle)
        four = system(solver.transfer(system, x, (one, three), (0, 1), s), s)
        return Step(solver.transfer(system, x, (one, two, three, four), (1 / 6, 1 / 3, 1 / 3, 1 / 6), s), one)

    def calls(self, points: int, steps: int) -> int:
        return 3 * min(steps, points - 1)

    def order(self, points: int) -> int:
        return points


@dataclass(frozen=True)
class PseudoHeun(Start):
    """Make one step by Heun's tableau with the transfer of `PseudoRungeKutta`, as PLMS of latent diffusion begins."""

    def begin(
        self, solver: Adams, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...]
    ) -> Step | None:
        if past or solver.points < 2:
            return None
        one = system(x, t)
        two = system(solver.transfer(system, x, (one,), (1,), s), s)
        return Step(solver.transfer(system, x, (one, two), (1 / 2, 1 / 2), s), one)

    def calls(self, points: int, steps: int) -> int:
        return int(points > 1)

    def order(self, points: int) -> int:
        return min(points, 3)


class Adams(Solver):
    """What all multistep methods share. A subclass says by which path, clock and start, and through how many points.

    Attributes:
        path: what is predicted, and the coordinates in which it is integrated.
        clock: in what it is a polynomial.
        points: through how many values.
        start: how the first steps are made.
    """

    path: Path
    clock: Clock
    points: int
    start: Start

    @property
    def order(self) -> int:  # type: ignore[override]
        """As many as there are points, if the start allows it."""
        return self.start.order(self.points)

    @property
    def memory(self) -> int:  # type: ignore[override]
        """One prediction less than there are points."""
        return self.points - 1

    @property
    def starts(self) -> int:  # type: ignore[override]
        """What the start costs where the run is not shorter than it."""
        return self.start.calls(self.points, self.memory)

    def calls(self, steps: int) -> int:
        return steps + self.start.calls(self.points, steps)

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        made = self.start.begin(self, system, x, t, s, past)
        if made is None:
            now = system(x, t)
            made = Step(self.advance(system, x, (now, *_flat(past))[: self.points], s), now)
        if system.eta > 0:
            return Step(made.x + self.spread(system, t, s) * noise(t, s), made.seen)
        return made

    def advance(self, system: System, x: Tensor, known: Known, s: Tensor) -> Tensor:
        """Step to s by the polynomial through the predictions `known`, the step's own first."""
        return advance(self.path, self.clock, system, x, known, s)

    def spread(self, system: System, t: Tensor, s: Tensor) -> Tensor:
        """Return the standard deviation of the fresh noise."""
        return regular(self.path, system, t, s).spread

    def transfer(self, system: System, x: Tensor, known: Known, shares: tuple[float, ...], s: Tensor) -> Tensor:
        """Step to s with the constant P = sum_j shares_j P_j."""
        leg = regular(self.path, system, known[0].t, s)
        gains = [leg.total * share for share in shares] if leg.path == self.path else [leg.total]
        return combine(leg, x, known, gains)


def _flat(past: tuple[Any, ...]) -> Known:
    """Return the predictions of the past, newest first; a first step leaves several."""
    return tuple(p for seen in past for p in (seen if isinstance(seen, tuple) else (seen,)))


@dataclass(frozen=True)
class Multistep(Adams):
    """P as the polynomial in a clock through its last values, with exact weights, on the probability flow and the SDE.

    The order is reached globally, unless the start is a ramp, on every grid that is smooth in the clock. Where alpha or
    sigma vanishes, a path that is regular there in its own clock (STRAIGHT, Turn) keeps it; any other takes P as a
    constant for that step. On the reverse SDE the weak order is at most 2.

    Args:
        path: what is predicted, and the coordinates in which it is integrated.
        clock: in what P is a polynomial; a path is its own natural clock.
        points: 1 to 4: through how many values.
        start: how the first steps are made.

    Reference: Zhang & Chen 2023 (arXiv 2204.13902), eq. 14-15; Hochbruck & Ostermann 2010, section 2.5.
    """

    path: Path = STRAIGHT
    clock: Clock = STRAIGHT
    points: int = 2
    start: Start = OneStep()
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow, ReverseSDE)

    def __post_init__(self) -> None:
        _check_points(self)


@dataclass(frozen=True)
class IPNDM(Adams):
    """Adams-Bashforth on eps with the weights of even steps, whatever the steps are: F-PNDM, or iPNDM by its start.

        x_s = alpha_s/alpha_t x + alpha_s (rho_s - rho_t) (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24

    On grids that are not even in rho = sigma/alpha its order is 2. With the weights of the actual steps it would be
    `Multistep(NOISE, NOISE, points)`.

    Args:
        points: 1 to 4: how many values of eps are combined.
        start: Ramp() for iPNDM, PseudoRungeKutta() for PNDM, PseudoHeun() for PLMS.

    Reference: Liu et al. 2022 (arXiv 2202.09778), eq. 9 and 12; Zhang & Chen 2023 (arXiv 2204.13902), section 3.3.
    """

    points: int = 4
    start: Start = Ramp()
    path = NOISE
    clock = NOISE

    def __post_init__(self) -> None:
        _check_points(self)

    @property
    def order(self) -> int:  # type: ignore[override]
        """At most 2, for the weights of even steps."""
        return min(self.points, 2)

    def advance(self, system: System, x: Tensor, known: Known, s: Tensor) -> Tensor:
        return self.transfer(system, x, known, _EVEN[len(known)], s)


_EVEN: dict[int, tuple[float, ...]] = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def _check_points(solver: Adams) -> None:
    if solver.points not in (1, 2, 3, 4):
        raise ValueError(f"{type(solver).__name__} looks at 1 to 4 points a step; got {solver.points!r}.")
