"""DDPM with a learned variance: the network says where between its two bounds the variance lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sdekit.equation import Equation, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction, WithVariance
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.level import advance, total

__all__ = ["LearnedVariance", "WithVariance"]


@dataclass(frozen=True)
class LearnedVariance(Solver):
    """The ancestral step whose variance the model supplies, coordinate by coordinate, in a `WithVariance`:

        x_s = sigma_s/sigma_t r x + alpha_s (1 - r^2) x0_hat + sqrt(1 - r^2) sigma_t^{(1 + v)/2} sigma_s^{(1 - v)/2} z

    with v in [-1, 1]: v = -1 is DDPM's smaller variance, v = 1 its larger one. The noise is multiplied by what the
    network says, so the step is not linear: it runs, but outside plans.

    Raises:
        TypeError: the model's predictions have no `place`.
        ValueError: the equation's eta is not 1, the one for which the two bounds are made.

    Reference: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15.
    """

    solves: ClassVar[tuple[type[Equation], ...]] = (ReverseSDE,)

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        if system.eta != 1:
            raise ValueError(f"A learned variance lies between the two of DDPM, where eta = 1; got eta={system.eta}.")
        now, shape = system(x, t), x.shape  # symbols have no shape: they are told so before they are asked for more
        if not (isinstance(now, WithVariance) and now.place.shape == shape):
            raise TypeError(
                f"The model must return WithVariance predictions, with a place of shape {tuple(shape)}; got "
                f"{type(now).__name__}."
            )
        process = system.process
        whole = total(system, t, s)
        sigma_t, sigma_s = process.sigma(t).to(x), process.sigma(s).to(x)
        std = sigma_t ** ((1 + now.place) / 2) * sigma_s ** ((1 - now.place) / 2)
        return Step(advance(system, x, t, s, [(whole, now)]) + whole.sqrt() * std * noise(t, s))
