"""The solvers of torchdiffeq on the probability flow."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from sdekit._value import suggest
from sdekit.adaptive.coordinates import AlongLam, Coordinate, Track
from sdekit.adaptive.outcome import Adapted, Control, Status, check_tolerances, shared
from sdekit.equation import ProbabilityFlow
from sdekit.prediction import Model, calls


class Ode(StrEnum):
    """The solvers of torchdiffeq that choose their steps, with their orders."""

    DOPRI8 = "dopri8"  # 8
    DOPRI5 = "dopri5"  # 5
    BOSH3 = "bosh3"  # 3
    FEHLBERG2 = "fehlberg2"  # 2
    ADAPTIVE_HEUN = "adaptive_heun"  # 2


class FixedOde(StrEnum):
    """The solvers of torchdiffeq with steps of one length."""

    EULER = "euler"
    MIDPOINT = "midpoint"
    HEUN2 = "heun2"
    HEUN3 = "heun3"
    RK4 = "rk4"
    EXPLICIT_ADAMS = "explicit_adams"
    IMPLICIT_ADAMS = "implicit_adams"


@dataclass(frozen=True)
class TorchDiffEq(Control):
    """An adaptive Runge-Kutta solver of torchdiffeq on the probability flow.

    The steps are shared by the batch and controlled by its worst sample (root mean square over the coordinates), so a
    sample's result depends on its batch, within the tolerance; all samples share time, calls and status, and the
    estimated error is not handed out. `Embedded` has none of these limits. Integrated in float64, the model asked in
    the dtype of the states. A budget that runs out and an answer that is not finite end the run at the last accepted
    step.

    Args:
        solver: an `Ode` or its name.
        coordinate: the variable of integration: AlongLam(), AlongAngle() or AlongTime().
        rtol: relative tolerance per step.
        atol: absolute tolerance per step, in units of the marginal's scale (in time: of the states).
        budget: the network calls that a sample may cost.

    Raises:
        ValueError: an unknown solver, a tolerance that is not positive, or a budget below 1.

    Reference: Chen et al. 2018 (arXiv 1806.07366), whose authors' library it is.
    """

    solver: Ode = Ode.DOPRI5
    coordinate: Coordinate = AlongLam()
    rtol: float = 1e-3
    atol: float = 1e-3
    budget: int = 1000

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.budget)
        object.__setattr__(self, "solver", known(Ode, self.solver))

    def run(self, model: Model, x: Tensor, t: float, s: float) -> Adapted:
        track = Track(self.coordinate, ProbabilityFlow().of(model), (t, s))
        end = torch.tensor([track.length], dtype=torch.float64, device=x.device)
        return _integrate(
            _Slope(track, x, self.budget),
            method=str(self.solver.value),
            rtol=self.rtol,
            atol=self.atol,
            options={"norm": _worst(x), "step_t": end},  # step_t: the last step ends at the end
        )


@dataclass(frozen=True)
class TorchDiffEqFixed(Control):
    """A solver of torchdiffeq with steps of one length, in lam, the angle or time, on the probability flow.

    See `TorchDiffEq`; `budget` bounds implicit solvers, whose calls depend on their iterations.

    Args:
        solver: a `FixedOde` or its name.
        coordinate: the variable in which the steps are even.
        steps: the number of steps.
        budget: the network calls that a sample may cost.

    Raises:
        ValueError: an unknown solver, or no steps.
    """

    solver: FixedOde = FixedOde.RK4
    coordinate: Coordinate = AlongLam()
    steps: int = 10
    budget: int = 1000

    def __post_init__(self) -> None:
        check_tolerances(1.0, 1.0, self.budget)
        check_steps(self.steps)
        object.__setattr__(self, "solver", known(FixedOde, self.solver))

    def run(self, model: Model, x: Tensor, t: float, s: float) -> Adapted:
        track = Track(self.coordinate, ProbabilityFlow().of(model), (t, s))
        grid = torch.linspace(0, track.length, self.steps + 1, dtype=torch.float64, device=x.device)
        return _integrate(
            _Slope(track, x, self.budget),
            method=str(self.solver.value),
            options={"grid_constructor": lambda slope, y, ends: grid},
        )


def known(kind: type[StrEnum], name: str) -> StrEnum:
    """Return the member of that name, or raise ValueError with near names."""
    names = [str(member.value) for member in kind]
    if name not in names:
        raise ValueError(f"A solver must be known by name; got {name!r}. {suggest(str(name), names)}")
    return kind(name)


def check_steps(steps: int) -> None:
    """Raise ValueError if `steps` is no whole number of at least 1."""
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1; got {steps!r}.")


class Stop(Exception):  # noqa: N818 - not an error: how a right-hand side ends the run of a library
    """Ends the run of a library from inside its right-hand side."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


class _Slope:
    """The right-hand side, which remembers the last accepted state: torchdiffeq calls `callback_step` with each."""

    def __init__(self, track: Track, x: Tensor, budget: int) -> None:
        self.track, self.dtype, self.budget, self.calls = track, x.dtype, budget, 0
        self.per_call = calls(track.system.model)
        start = torch.zeros((), dtype=torch.float64)
        self.good = start, x.to(torch.float64) / track.scale(start)

    def callback_step(self, p: Tensor, y: Tensor, step: Tensor) -> None:
        self.good = p, y

    def __call__(self, p: Tensor, y: Tensor) -> Tensor:
        if self.track.system.nfe + self.per_call > self.budget:
            raise Stop(Status.BUDGET)
        self.calls += 1
        slope = self.track.drift(y, p, self.dtype)
        if not bool(slope.detach().sum().isfinite()):
            raise Stop(Status.NOT_FINITE)
        return slope


def _integrate(slope: _Slope, **how: Any) -> Adapted:
    from torchdiffeq import odeint

    ends = torch.tensor([0.0, slope.track.length], dtype=torch.float64, device=slope.good[1].device)
    status = Status.DONE
    try:
        slope.good = ends[1], odeint(slope, slope.good[1], ends, **how)[-1]
    except Stop as stop:
        status = stop.status
    except AssertionError:  # torchdiffeq's word for a step that has no length any more
        status = Status.STUCK
    p, y = slope.good
    if status is Status.DONE and not bool(y.detach().sum().isfinite()):
        status = Status.NOT_FINITE
    x = (slope.track.scale(p) * y).to(slope.dtype)
    return shared(x, float(slope.track.time(p)), slope.track.system.nfe, slope.calls, status)


def _worst(x: Tensor) -> Any:
    """The largest root mean square of a sample's entries, so that no sample hides in the mean of its batch."""

    def norm(y: Tensor) -> Tensor:
        return y.detach().reshape(len(x), -1).square().mean(1).max().sqrt()

    return norm
