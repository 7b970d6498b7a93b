"""What a solver is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

from torch import Tensor

from sdekit._value import Value
from sdekit.equation import Equation, ProbabilityFlow, System
from sdekit.noise import Draw


class Step(NamedTuple):
    """The outcome of a step: the state at s, and what later steps may look back at, a prediction as a rule."""

    x: Tensor
    seen: Any = None


class Solver(Value, ABC):
    """How one step is made: a frozen dataclass with a pure `step`.

    `step` uses nothing but linear operations on the state, the predictions and the noise, with coefficients that are
    functions of the times: so a whole run is a table of numbers.

    Attributes:
        order: the order of convergence, global, in the number of steps (weak order for a stochastic equation).
        evals: network calls per step.
        starts: further network calls of the first step.
        memory: how many past steps are looked back at.
        solves: the kinds of equation it is made for.
        lands: whether a step may go to the clean end, where sigma = 0. If not, it is replaced by x0_hat there.
    """

    order: int = 1
    evals: int = 1
    starts: int = 0
    memory: int = 0
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow,)
    lands: ClassVar[bool] = False

    def calls(self, steps: int) -> int:
        """Return the network calls of that many steps."""
        return self.evals * steps + (self.starts if steps else 0)

    @abstractmethod
    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        """Step the states `x` from time t to time s.

        Args:
            system: ask it for predictions `system(x, t)`, `system.drift(x, t)`, `system.diffusion(t)`.
            x: the states, shape (B, ...).
            t: the time of x, 0-d float64.
            s: the time to reach, 0-d float64; s < t when sampling, s > t when encoding.
            past: what the steps before have `seen`, newest first, at most `memory` of them.
            noise: noise(t, s) draws standard normal noise for the interval, of the shape of x.
        """
