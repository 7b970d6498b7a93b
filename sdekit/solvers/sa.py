"""SA-Solver: a stochastic Adams predictor and corrector, one network call a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.level import VaryingSDE, advance, integrals, keep, spread, total


class Stage(NamedTuple):
    """What a step leaves for the next: its prediction, its corrected state, and its noise if it had any."""

    prediction: Prediction
    x: Tensor
    noise: Tensor | None


@dataclass(frozen=True)
class SA(Solver):
    r"""SA-Solver with exact weights: Adams's method on x0_hat in lam, for any noise level; tau^2 = eta there.

        x_s = sigma_s/sigma_t K x + alpha_s \int L(lam) dP + sigma_s sqrt(1 - K^2) z

    The predictor's polynomial L goes through the last `predictor` values of x0_hat. Once x0_hat is known at s, the step
    to s is made again from its corrected start and with its own noise, and L goes through that value too, through
    `corrector` values in all; the prediction at s is not renewed. Without noise it is the exponential Adams multistep.
    The first steps have as many values as there are, which caps the order at 2.

    Args:
        predictor: 1 to 4, how many values the predictor uses.
        corrector: 0 to 4, how many values the corrector uses; 0 is none.

    Reference: Xue et al. 2023 (arXiv 2309.05019), algorithm 1 and section 5.
    """

    predictor: int = 3
    corrector: int = 3
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow, ReverseSDE, VaryingSDE)

    def __post_init__(self) -> None:
        if self.predictor not in range(1, 5) or self.corrector not in range(5):
            raise ValueError(
                "SA-Solver's predictor uses 1 to 4 values and its corrector 0 to 4; got "
                f"{self.predictor} and {self.corrector}."
            )

    @property
    def order(self) -> int:  # type: ignore[override]
        """What is reached at the least: 2 where predictor or corrector use two values, for the start has no more."""
        return min(2, max(self.predictor, self.corrector))

    @property
    def memory(self) -> int:  # type: ignore[override]
        """As many steps as the predictor or the corrector looks back at."""
        return max(self.predictor - 1, self.corrector - 1, min(self.corrector, 1))

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Stage, ...], noise: Draw) -> Step:
        now = system(x, t)
        known = (now, *(stage.prediction for stage in past))
        if past and self.corrector:
            last = past[0]
            x = self._move(system, last.x, (last.prediction.t, t), known[: self.corrector], last.noise)
        z = noise(t, s) if bool(keep(system, t, s) < 1) else None
        return Step(self._move(system, x, (t, s), known[: self.predictor], z), Stage(now, x, z))

    def _move(
        self, system: System, x: Tensor, span: tuple[Tensor, Tensor], known: tuple[Prediction, ...], z: Tensor | None
    ) -> Tensor:
        t, s = span
        weights = self.weights(system, t, s, [p.t for p in known])
        x = advance(system, x, t, s, [*zip(weights, known, strict=True)])
        return x if z is None else x + spread(system, t, s) * z

    def weights(self, system: System, t: Tensor, s: Tensor, times: list[Tensor]) -> list[Tensor]:
        """Return the weights of x0_hat at `times` in a step from t to s."""
        lams = _usable(system, t, s, times)
        at = [k for k, lam in enumerate(lams) if lam is not None]
        weights = [torch.zeros_like(t) for _ in times]
        if len(at) < 2:
            weights[at[0] if at else 0] = total(system, t, s)
            return weights
        nodes = torch.stack([lam for lam in lams if lam is not None])
        for k, weight in zip(at, integrals(system, t, s, lambda lam: _lagrange(nodes, lam)), strict=True):
            weights[k] = weight
        return weights


@dataclass(frozen=True)
class TruncatedSA(SA):
    """SA-Solver as it was published: where two values are used, the first moment of dP is cut to its leading term.

        \\int (lam - lam_t) dP  is taken to be  (1 + eta) h^2 / 2

    Reference: Xue et al. 2023 (arXiv 2309.05019), the authors' code, for few steps; after UniPC (arXiv 2302.04867).
    """

    predictor: int = 2
    corrector: int = 2

    def weights(self, system: System, t: Tensor, s: Tensor, times: list[Tensor]) -> list[Tensor]:
        lams = _usable(system, t, s, times)
        if len(times) != 2 or None in lams:
            return super().weights(system, t, s, times)
        new, old = (system.process.lam(time) for time in times)
        h = system.process.lam(s) - system.process.lam(t)
        # the mean of 1 + eta over the step; where eta is constant, 1 + eta
        moment = h / 2 * (h - keep(system, t, s).log())
        weight, whole = moment / (new - old), total(system, t, s)
        return [whole + weight, -weight] if bool(times[0] == t) else [weight, whole - weight]


def _usable(system: System, t: Tensor, s: Tensor, times: list[Tensor]) -> list[Tensor | None]:
    """Return lam at the times, None where the polynomial cannot pass: at an infinite lam, or twice at one time.

    Where the step itself is infinite or has no length, only the value at t is used.
    """
    lam, process = system.process.lam, system.process
    finite = bool((process.lam(s) - process.lam(t)).isfinite()) and bool(t != s)
    usable: list[Tensor | None] = []
    for k, time in enumerate(times):
        first = not any(bool(time == other) for other in times[:k])
        fits = first and (bool(lam(time).isfinite()) if finite else bool(time == t))
        usable.append(lam(time) if fits else None)
    return usable


def _lagrange(nodes: Tensor, u: Tensor) -> list[Tensor]:
    """Return Lagrange's polynomials of the nodes at u."""
    basis = []
    for j, node in enumerate(nodes):
        others = torch.cat([nodes[:j], nodes[j + 1 :]])
        basis.append(((u[:, None] - others) / (node - others)).prod(1))
    return basis
