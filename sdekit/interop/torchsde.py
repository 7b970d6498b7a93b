"""The solvers of torchsde as contenders: on the reverse SDE in the process's own time."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit._value import Value, suggest
from sdekit.equation import ReverseSDE, System
from sdekit.grid import Grid, Uniform
from sdekit.interop.driving import library
from sdekit.interop.torchdiffeq import most_steps
from sdekit.noise import BrownianPath, Draw
from sdekit.prediction import Model, calls
from sdekit.sample import start
from sdekit.study import BudgetError, Drawn

SOLVERS = {"euler": "ito", "srk": "ito", "heun": "stratonovich", "midpoint": "stratonovich"}
"""The methods, and the calculus that they are for, which is one where the noise is additive."""


@dataclass(frozen=True)
class Torchsde(Value):
    """torchsde.sdeint on the reverse SDE, step by step on a grid, with every call counted.

    It is driven by the Brownian path of each sample that sdekit's own methods are driven by: Euler's method is theirs
    to rounding. That path runs in the equation's clock, so within a step it is not the one of torchsde's time, and
    "srk" converges to where the path leads with order 1. What is asked twice in a row, as its checks and its
    Runge-Kutta stages do, is asked once.

    Args:
        solver: a method of torchsde: "srk" is SRA1, since the noise is additive.
        grid: the rule of the grid, which must end at t_min.
        eta: the noise level of the reverse SDE, positive.

    Raises:
        ValueError: there is no such solver here, or eta is not positive.

    Reference: https://github.com/google-research/torchsde.
    """

    solver: str = "srk"
    grid: Grid = Uniform(1)
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"There is no solver called {self.solver!r} here. {suggest(self.solver, list(SOLVERS))}")
        if not self.eta > 0:
            raise ValueError(f"An SDE needs eta > 0; got {self.eta}. For the flow take Torchdiffeq.")

    def within(self, budget: int, model: Model) -> Torchsde:
        """Return it with the most steps that cost at most `budget` network calls.

        Raises:
            BudgetError: one step costs more.
        """

        def with_steps(steps: int) -> Torchsde:
            return replace(self, grid=self.grid.with_steps(steps))

        def cost(steps: int) -> int:
            return with_steps(steps)._integrated(_Reverse(model, self.eta, torch.zeros(1, 1)), None).spent

        steps = most_steps(budget, cost)
        if steps == 0:
            raise BudgetError(f"A budget must pay for a step of {self.solver}; {budget} does not. Raise the budget.")
        return with_steps(steps)

    def run(self, model: Model, like: Tensor, seed: int, first: int) -> Drawn:
        """Draw the samples from number `first` of the seed on, as many and of the shape of `like`."""
        noise = BrownianPath(seed, first)
        x = start(model, tuple(like.shape), self.grid, noise).to(like)
        done = self._integrated(_Reverse(model, self.eta, x), noise)
        return Drawn(done.x, done.spent, len(self.grid(model.process)) - 1)

    def describe(self) -> dict[str, Any]:
        """Return its JSON, and the version of the library."""
        return {**self.to_json(), "library": library("torchsde")}

    def _integrated(self, sde: _Reverse, noise: BrownianPath | None) -> _Reverse:
        """Run to the end of the grid: with noise, or without it and without the model, for the calls alone."""
        torchsde = importlib.import_module("torchsde")
        system, times = sde.system, self.grid(sde.system.process)
        of_step = None if noise is None else noise.along(system, sde.x, times.tolist())
        sde.asking, sde.sde_type = of_step is not None, SOLVERS[self.solver]
        for k in range(len(times) - 1):
            path = _path(torchsde, sde, None if of_step is None else of_step(k))
            span = -times[k : k + 2]
            options = {"method": self.solver, "bm": path, "dt": 2 * float(span[1] - span[0])}
            with torch.random.fork_rng(devices=[]):  # its checks draw from the global generator
                sde.x = torchsde.sdeint(sde, sde.x.flatten(1), span, **options)[-1].reshape(sde.x.shape)
        return sde


class _Reverse:
    """The reverse SDE at the time -t, in torchsde's words, which counts what its model is asked."""

    noise_type, sde_type = "additive", "ito"

    def __init__(self, model: Model, eta: float, x: Tensor) -> None:
        self.system, self.x = System(ReverseSDE(eta), model), x
        self.spent, self.asking = 0, True
        self.last: tuple[float, Tensor, Tensor] | None = None

    def f(self, minus_t: Tensor, x: Tensor) -> Tensor:
        """Return the drift of the state (B, d)."""
        t = self._time(minus_t)
        if self.last is None or self.last[0] != float(t) or self.last[1] is not x:
            self.spent += calls(self.system.model, t)
            shaped = x.reshape(self.x.shape)
            drift = self.system.drift(shaped, t) if self.asking else torch.zeros_like(shaped)
            self.last = float(t), x, -drift.flatten(1)
        return self.last[2]

    def g_prod(self, minus_t: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        """Return the diffusion times a noise, (B, d)."""
        return self.system.diffusion(self._time(minus_t)).to(x) * noise

    def _time(self, minus_t: Tensor) -> Tensor:
        process = self.system.process
        return -minus_t.double().clamp(-process.t_max, -process.t_min)


def _path(torchsde: Any, sde: _Reverse, draw: Draw | None) -> Any:
    """Return the Brownian motion of one step for torchsde: the path's increment over it, and its integral U."""
    flat = sde.x.flatten(1)

    class Path(torchsde.BaseBrownian):  # type: ignore[misc]
        shape, dtype, device = flat.shape, flat.dtype, flat.device
        levy_area_approximation = "space-time"

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            length = torch.as_tensor(tb - ta).to(flat)
            z = area = torch.zeros_like(flat)
            if draw is not None:
                t, s = -float(ta), -float(tb)
                z = draw(t, s).flatten(1)
                area = draw(t, s).flatten(1) if return_U else z
            increment = length.sqrt() * z
            return (increment, length * increment / 2 + (length**3 / 12).sqrt() * area) if return_U else increment

        def __repr__(self) -> str:
            return "the path of sdekit"

    return Path()
