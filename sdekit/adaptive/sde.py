"""The solvers of torchsde on the reverse SDE."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from sdekit.adaptive.coordinates import AlongLam, Coordinate, Track
from sdekit.adaptive.ode import Stop, check_steps, known
from sdekit.adaptive.outcome import Adapted, Control, Status, check_tolerances, shared
from sdekit.equation import ReverseSDE
from sdekit.prediction import Model, calls


class Sde(StrEnum):
    """The solvers of torchsde, each with its strong order for additive noise, in which Ito and Stratonovich agree."""

    EULER = "euler"  # 1
    MILSTEIN = "milstein"  # 1: for additive noise it is Euler's
    SRK = "srk"  # 1.5
    MIDPOINT = "midpoint"  # 1
    HEUN = "heun"  # 1
    EULER_HEUN = "euler_heun"  # 1
    REVERSIBLE_HEUN = "reversible_heun"  # 1


STRATONOVICH = {Sde.MIDPOINT, Sde.HEUN, Sde.EULER_HEUN, Sde.REVERSIBLE_HEUN}

ASKED = {Sde.SRK: 3, Sde.MIDPOINT: 2, Sde.HEUN: 2}
"""How often a step asks for the drift, if not once; SRK's third question is its first again."""


@dataclass(frozen=True)
class TorchSDE(Control):
    """A solver of torchsde with steps of one length on the reverse SDE, from noise to data.

    torchsde asks for the drift at the first state to learn its shape, srk asks twice for the same, and step doubling
    anew after every rejection; here the last answers are remembered, so that no network call is made twice: a step
    costs 1 (euler, milstein, euler_heun, reversible_heun, and 1 more at the start of that one) or 2 (srk, midpoint,
    heun). The noise is a Brownian interval of the whole batch, so a sample depends on its batch; `BrownianPath`
    with a solver of sdekit does not. Noise that depends on the state does not occur, so log_ode adds nothing and is
    left out. Integrated in the dtype of the states, any shape of which is made 2-dimensional for torchsde.

    Args:
        solver: an `Sde` or its name.
        coordinate: the variable in which the steps are even: AlongLam(), AlongAngle() or AlongTime().
        eta: the noise level of the reverse SDE, above 0.
        seed: the entropy of the Brownian interval, a whole number of at least 0.
        steps: the number of steps.

    Raises:
        ValueError: an unknown solver, no steps, no noise, or a negative seed.

    Reference: Li et al. 2020 (arXiv 2001.01328); Kidger et al. 2021 (arXiv 2105.13493) for the Brownian interval.
    """

    solver: Sde = Sde.SRK
    coordinate: Coordinate = AlongLam()
    eta: float = 1.0
    seed: int = 0
    steps: int = 50

    def __post_init__(self) -> None:
        check_steps(self.steps)
        object.__setattr__(self, "solver", known(Sde, self.solver))
        _check_noise(self.eta, self.seed)

    def run(self, model: Model, x: Tensor, t: float, s: float) -> Adapted:
        reverse = _Reverse(self, model, x, (t, s))
        return reverse.solve(dt=reverse.track.length / self.steps * (1 + 1e-12))  # no sliver of a last step


@dataclass(frozen=True)
class TorchSDEAdaptive(Control):
    """A solver of torchsde with its step doubling on the reverse SDE: see `TorchSDE`.

    A step is compared with its two halves, in the root mean square over the whole batch. A budget that runs out and an
    answer that is not finite end the run at the last accepted step; a step too small is forced, as torchsde does.

    Args:
        solver: an `Sde` or its name; reversible_heun, whose state is more than x, is not for step doubling.
        coordinate: the variable of integration: AlongLam(), AlongAngle() or AlongTime().
        eta: the noise level of the reverse SDE, above 0.
        seed: the entropy of the Brownian interval, a whole number of at least 0.
        rtol: relative tolerance per step.
        atol: absolute tolerance per step, in units of the marginal's scale (in time: of the states).
        budget: the network calls that a sample may cost.

    Raises:
        ValueError: an unknown solver, a tolerance that is not positive, no budget, no noise, or a negative seed.
    """

    solver: Sde = Sde.SRK
    coordinate: Coordinate = AlongLam()
    eta: float = 1.0
    seed: int = 0
    rtol: float = 1e-2
    atol: float = 1e-2
    budget: int = 1000

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.budget)
        object.__setattr__(self, "solver", known(Sde, self.solver))
        _check_noise(self.eta, self.seed)
        if self.solver is Sde.REVERSIBLE_HEUN:
            raise ValueError("reversible_heun cannot double its steps; use srk, or TorchSDE with steps of one length.")

    def run(self, model: Model, x: Tensor, t: float, s: float) -> Adapted:
        reverse = _Reverse(self, model, x, (t, s), self.budget)
        length = reverse.track.length
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of the least step, which is documented
            return reverse.solve(
                dt=length * FIRST, adaptive=True, rtol=self.rtol, atol=self.atol, dt_min=length * LEAST
            )


FIRST, LEAST = 0.01, 1e-6
"""The first and the least step of step doubling, as shares of the run."""

REMEMBERED = 4


class _Reverse:
    """The reverse SDE as torchsde wants it: 2-dimensional states, additive noise, the way from the start as time."""

    def __init__(
        self,
        how: TorchSDE | TorchSDEAdaptive,
        model: Model,
        x: Tensor,
        ends: tuple[float, float],
        budget: int | None = None,
    ) -> None:
        if ends[1] > ends[0]:
            raise TypeError(
                f"The reverse SDE holds towards data only; the run goes from t={ends[0]:g} to {ends[1]:g}. Use "
                "Embedded()."
            )
        self.how, self.shape, self.budget, self.asked, self.calls = how, x.shape, budget, 0, 0
        self.track = Track(how.coordinate, ReverseSDE(how.eta).of(model), ends)
        self.per_call = calls(model)
        self.sde_type = "stratonovich" if how.solver in STRATONOVICH else "ito"
        self.noise_type = "additive"
        self.memory: list[tuple[float, Tensor, Tensor]] = []
        start = torch.zeros((), dtype=torch.float64)
        y = (x / self.track.scale(start)).reshape(len(x), -1)
        self.good = start, y
        if how.solver is Sde.REVERSIBLE_HEUN:  # it wants the coefficient itself
            self.noise_type, self.g = "diagonal", self._coefficient

    def f(self, p: Tensor, y: Tensor) -> Tensor:
        """Return the drift, remembered if it was asked for at this very state."""
        per_attempt = 3 * ASKED.get(self.how.solver, 1)  # a step and its two halves
        if (self.asked - 1) % per_attempt == 0:  # the first question is torchsde's own, of the shape
            self.good = p, y
        self.asked += 1
        for when, state, known_drift in self.memory:
            if state is y and when == float(p):
                return known_drift
        if self.budget is not None and self.track.system.nfe + self.per_call > self.budget:
            raise Stop(Status.BUDGET)
        self.calls += 1
        drift = self.track.drift(y.reshape(self.shape), p, y.dtype).reshape(y.shape)
        if not bool(drift.detach().sum().isfinite()):
            raise Stop(Status.NOT_FINITE)
        self.memory = [(float(p), y, drift), *self.memory][:REMEMBERED]
        return drift

    def g_prod(self, p: Tensor, y: Tensor, v: Tensor) -> Tensor:
        """Return the diffusion times the increments."""
        return self.track.diffusion(p).to(y) * v

    def _coefficient(self, p: Tensor, y: Tensor) -> Tensor:
        return self.track.diffusion(p).to(y).expand(y.shape)

    def solve(self, **options: Any) -> Adapted:
        """Run torchsde and return the outcome."""
        from torchsde import BrownianInterval, sdeint

        y = self.good[1]
        ends = torch.tensor([0.0, self.track.length], dtype=torch.float64, device=y.device)
        area = "space-time" if self.how.solver is Sde.SRK else "none"
        path = BrownianInterval(
            t0=0.0,
            t1=float(ends[1]),
            size=y.shape,
            dtype=y.dtype,
            device=y.device,
            entropy=self.how.seed,
            levy_area_approximation=area,
        )
        status = Status.DONE
        # torchsde draws from the global generator to learn a shape
        with torch.random.fork_rng([y.device] if y.device.type == "cuda" else []):
            try:
                self.good = ends[1], sdeint(self, y, ends, bm=path, method=str(self.how.solver.value), **options)[-1]
            except Stop as stop:
                status = stop.status
        p, y = self.good
        x = (self.track.scale(p) * y).reshape(self.shape)
        return shared(x, float(self.track.time(p)), self.track.system.nfe, self.calls, status)


def _check_noise(eta: float, seed: int) -> None:
    if not 0 < eta < float("inf"):
        raise ValueError(f"eta must be positive and finite, or there is no noise; got {eta}. For 0 use Embedded().")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0; got {seed!r}.")
