"""What integrates the pair of state and log-determinant, and the Runge-Kutta methods on a grid."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit._value import Value
from sdekit.equation import ProbabilityFlow, System
from sdekit.grid import Angular, Grid
from sdekit.likelihood.angle import Turned
from sdekit.likelihood.trace import Trace
from sdekit.solvers import RK4, RungeKutta


@dataclass(frozen=True, eq=False)
class Pair:
    """States with their log-determinants, added and scaled as one: what a solver steps.

    x: shape (B, ...). log_det: the divergence integrated so far, float64, shape (B, K), one column for each estimate.
    """

    x: Tensor
    log_det: Tensor

    def __add__(self, other: Pair) -> Pair:
        return Pair(self.x + other.x, self.log_det + other.log_det)

    def __mul__(self, factor: Tensor | float) -> Pair:
        return Pair(factor * self.x, factor * self.log_det)

    __rmul__ = __mul__

    def check(self, what: str, where: Callable[[], str]) -> None:
        """Raise FloatingPointError, which says what is not finite and where, if an entry of a sample is not."""
        sums = self.x.detach().reshape(len(self.x), -1).sum(1) + self.log_det.detach().sum(1)
        bad = (~sums.isfinite()).nonzero().flatten().tolist()
        if bad:
            raise FloatingPointError(
                f"{what} must stay finite; {where()}, samples {bad[:8]} ({len(bad)} in all) are not. Look at the "
                "model's answer there, or move t_min and t_max inwards."
            )


class Flow(System):
    """The probability flow with its divergence, d/dtheta (x, log_det) = (v, div v), for solvers that step a `Pair`.

    Args:
        turned: the model, in the angle.
        trace: how the divergence is found.
        draws: the numbers of the evaluations, by which random probes are keyed.
    """

    def __init__(self, turned: Turned, trace: Trace, draws: Iterator[int]) -> None:
        super().__init__(ProbabilityFlow(), turned)
        self.turned = turned
        self.trace = trace
        self.draws = draws

    def drift(self, state: Any, t: Time) -> Any:
        """Return the velocity and its divergence at a `Pair` of states, from one call of the model."""
        return Pair(*self.trace(lambda x: super(Flow, self).drift(x, t), state.x, next(self.draws)))


class Integrator(Value, ABC):
    """How the flow is integrated from data to noise."""

    @abstractmethod
    def draws(self) -> Iterator[int]:
        """Return numbers for the successive evaluations: random probes are drawn anew where the number changes."""

    @abstractmethod
    def __call__(self, flow: Flow, start: Pair) -> Pair:
        """Return the pair at t_max from the pair at t_min."""


@dataclass(frozen=True)
class FixedGrid(Integrator):
    """A Runge-Kutta method on a grid, run from data to noise in the angle atan2(sigma, alpha).

    A sample's value does not depend on its batch. Random probes are drawn anew at every evaluation, so that their
    errors average out along the path; the estimate stays unbiased, since the states do not depend on the probes.

    Args:
        solver: a method that works on the drift alone: Euler(), Heun(), RK4().
        grid: a grid from t_max to t_min; a clean end is left out.

    Raises:
        TypeError: the solver is no Runge-Kutta method.
    """

    solver: RungeKutta = RK4()
    grid: Grid = Angular(32)

    def __post_init__(self) -> None:
        if not isinstance(self.solver, RungeKutta):
            raise TypeError(
                "The log-determinant has a drift but no prediction of data, so the solver must work on the drift "
                f"alone; got {self.solver}. Use RK4(), Heun() or Euler(), or an adaptive integrator such as Dopri5()."
            )

    def draws(self) -> Iterator[int]:
        return itertools.count()

    def __call__(self, flow: Flow, start: Pair) -> Pair:
        """Return the pair at t_max from the pair at t_min.

        Raises:
            ValueError: the grid does not reach from t_max to t_min.
            FloatingPointError: a state or its log-determinant is not finite; on an accelerator, raised at the end.
        """
        times = self._times(flow)
        angles = flow.turned.model.process.angle(times)
        state: Any = start
        for k, (here, there) in enumerate(itertools.pairwise(angles), 1):
            state = self.solver.step(flow, state, here, there, (), _no_noise).x
            if start.x.device.type == "cpu" or k == len(angles) - 1:
                state.check("Every state", partial(_at_step, k, times))
        pair: Pair = state
        return pair

    def _times(self, flow: Flow) -> Tensor:
        process = flow.turned.model.process
        times = self.grid(process)
        times = times[times >= process.t_min].flip(0)
        ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
        if not torch.allclose(times[[0, -1]], ends, rtol=0, atol=1e-9 * (process.t_max - process.t_min)):
            raise ValueError(
                f"The grid must reach from t_max to t_min, {process.t_max:g} to {process.t_min:g}; {self.grid} goes "
                f"from {float(times[-1]):g} to {float(times[0]):g}. Use one over the whole process: Angular(32)."
            )
        return times


def _at_step(k: int, times: Tensor) -> str:
    return f"at step {k} of {len(times) - 1}, t={float(times[k]):.6g}"


def _no_noise(t: Time, s: Time) -> Tensor:
    raise TypeError("The probability flow has no noise; use a deterministic Runge-Kutta method such as RK4().")
