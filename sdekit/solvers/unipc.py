"""UniPC: a multistep predictor and a corrector of an order more, for one network call a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdekit.equation import Equation, ProbabilityFlow
from sdekit.solvers.corrected import Corrected
from sdekit.solvers.dpm import _Multistep
from sdekit.solvers.dpm_weights import DATA, NOISE, Integrand, exact, zphi


@dataclass(frozen=True)
class UniP(_Multistep):
    """The predictor on x0_hat with B(h) = e^z - 1, z = -h, called bh2.

        points = 2:   z phi_1 m_0 + B/2 D, which is DPM-Solver++ 2M,            points = 3:   exact weights

    Three points have order 2 for their start; from the third step on they are `Exponential(3)`. Where the first step
    makes next to no error, from pure noise or from the data, the order 3 is measured.

    Args:
        points: 1, 2 or 3: how many values of x0_hat a step looks at, the paper's order.

    Reference: Zhao et al. 2023 (arXiv 2302.04867), corollary 3.2; for 2 points its weight is set to 1/2.
    """

    points: int = 2
    integrand: ClassVar[Integrand] = DATA
    solves: ClassVar[tuple[type[Equation], ...]] = (ProbabilityFlow,)

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        return [self.scale(z) / (2 * r[0])] if len(r) == 1 else exact(r, z)

    def scale(self, z: Tensor) -> Tensor:
        """Return B(h)."""
        return zphi(1, z)


@dataclass(frozen=True)
class UniPLinear(UniP):
    """The predictor on x0_hat with B(h) = z, called bh1: it differs from `UniP` where a step looks at 2 points."""

    def scale(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class UniPNoise(UniP):
    """The predictor on eps_hat with B(h) = e^z - 1, z = h. With 2 points it is `DPMMultistep(2)`."""

    integrand: ClassVar[Integrand] = NOISE


@dataclass(frozen=True)
class UniPNoiseLinear(UniPLinear):
    """The predictor on eps_hat with B(h) = z = h."""

    integrand: ClassVar[Integrand] = NOISE


@dataclass(frozen=True)
class UniPC(Corrected):
    """UniPC: `UniP` with the corrector UniC, which passes through one point more.

    A corrector with one past point has the weight B/2 for m_t - m_0; all others are exact, as in `Corrected`. A run
    from pure noise, or from the data, makes next to no error in its first steps, so that there with 3 points in the
    predictor the order 4 is measured; from in between it is 3.

    A grid with a clean end makes its last step with order 1, as the paper's lower final orders do. For the steps before
    it, steps of `UniPC` with fewer points may follow: what they look back at is the same.

    Args:
        inner: the predictor, of which B(h) and the kind of prediction are taken.
        points: predictions in the corrector, the new one included: by default one more than in the predictor.

    Reference: Zhao et al. 2023 (arXiv 2302.04867), theorem 3.1 and algorithms 1 and 2.
    """

    inner: UniP = UniP(2)
    points: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.inner, UniP):
            raise TypeError(f"UniPC corrects a UniP; got {self.inner}. Corrected(solver) corrects any.")
        object.__setattr__(self, "points", self.points or self.inner.points + 1)
        super().__post_init__()

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        return [self.inner.scale(z) / 2] if len(r) == 1 else exact(r, z)

    @property
    def integrand(self) -> Integrand:
        return self.inner.integrand
