"""Predictor-correctors: a solver's state is corrected once its prediction is there, at no further call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from sdekit._broadcast import Time
from sdekit.equation import ProbabilityFlow, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.dpm import DPMppMultistepHeun
from sdekit.solvers.dpm_weights import DATA, NOISE, Integrand, advance, exact


class Corrections(NamedTuple):
    """What a corrector looks back at: a corrected state, the prediction there, and what the inner solver has seen."""

    x: Tensor
    prediction: Prediction
    inner: Any


class Answered(System):
    """A system that has been asked at the time of `now` already and answers there with that.

    Args:
        system: asked at any other time; it counts the calls.
        now: the prediction that is there.
    """

    def __init__(self, system: System, now: Prediction) -> None:
        super().__init__(system.equation, system.model)
        self.system, self.now = system, now

    def __call__(self, x: Tensor, t: Time) -> Prediction:
        return self.now if bool(t == self.now.t) else self.system(x, t)


@dataclass(frozen=True)
class Corrected(Solver):
    """Another solver with an implicit exponential Adams (Adams-Moulton) corrector on x0_hat, of an order more.

    A step first corrects the state it is given, by the polynomial through the new prediction there and the past ones,
    with exact weights, and then goes on from the corrected state with the same prediction (the mode called PEC). The
    last state of a run is not corrected, since that would cost a call.

    Args:
        inner: the predictor, a solver of the probability flow.
        points: how many predictions the corrector passes through, the new one included; the first steps have fewer.

    Reference: Hairer, Norsett & Wanner 1993, section III.1; Zhao et al. 2023 (arXiv 2302.04867), theorem 3.1 for
        a corrector over any solver (UniC).
    """

    inner: Solver = DPMppMultistepHeun(2)
    points: int = 3

    def __post_init__(self) -> None:
        if ProbabilityFlow not in self.inner.solves:
            raise TypeError(f"The corrector is made for the probability flow, which {self.inner} does not solve.")
        if self.points not in (2, 3, 4):
            raise ValueError(f"A corrector passes through 2, 3 or 4 predictions; got {self.points!r}.")

    @property
    def integrand(self) -> Integrand:
        """What the corrector's polynomial stands for."""
        return DATA

    @property
    def order(self) -> int:  # type: ignore[override]
        """One more than the inner solver's, at most 3, since the first correction is a trapezoidal rule."""
        return min(self.inner.order + 1, self.points, 3)

    @property
    def evals(self) -> int:  # type: ignore[override]
        """Those of the inner solver."""
        return self.inner.evals

    @property
    def starts(self) -> int:  # type: ignore[override]
        """Those of the inner solver."""
        return self.inner.starts

    @property
    def memory(self) -> int:  # type: ignore[override]
        """What the corrector and the inner solver need."""
        return max(self.points - 1, self.inner.memory)

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Corrections, ...], noise: Draw) -> Step:
        now = system(x, t)
        if past:
            x = self._correct(system, x, now, past[: self.points - 1])
        end, seen = self.inner.step(Answered(system, now), x, t, s, self._inner_past(past), noise)
        return Step(end, Corrections(x, now, seen))

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        """Return the corrector's weights of the new prediction, at r = 1, and of the older ones."""
        return exact(r, z)

    def _correct(self, system: System, x: Tensor, now: Prediction, past: tuple[Corrections, ...]) -> Tensor:
        last, *older = (p.prediction for p in past)
        if not bool((system.process.lam(now.t) - system.process.lam(last.t)).isfinite()):
            return x
        return advance(self.integrand, system, past[0].x, (last, now, *older), now.t, self.rule)

    def _inner_past(self, past: tuple[Corrections, ...]) -> tuple[Any, ...]:
        seen = [p.inner for p in past[: self.inner.memory]]
        return tuple(seen[: seen.index(None)] if None in seen else seen)


@dataclass(frozen=True)
class CorrectedNoise(Corrected):
    """`Corrected` with the corrector's polynomial in eps_hat instead of x0_hat."""

    @property
    def integrand(self) -> Integrand:
        return NOISE
