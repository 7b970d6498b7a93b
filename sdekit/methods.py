"""The literature's names, as data: a method is an equation and a solver, and a reference."""

from __future__ import annotations

from dataclasses import dataclass

from sdekit._value import Value, suggest
from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE
from sdekit.solvers import (
    RK4,
    Ancestral,
    AncestralLarge,
    EulerMaruyama,
    Exponential,
    Heun,
    Solver,
    TruncatedExponential,
)
from sdekit.solvers import Euler as EulerSolver


@dataclass(frozen=True)
class Method(Value):
    """A sampler but for its grid: which equation is solved, and how.

    Raises:
        TypeError: the solver is not made for that kind of equation.

    >>> Method(ReverseSDE(), Heun())
    Traceback (most recent call last):
    TypeError: Heun solves ProbabilityFlow; got ReverseSDE(eta=1.0). Choose another equation, or a solver made for it.
    """

    equation: Equation
    solver: Solver

    def __post_init__(self) -> None:
        if not isinstance(self.equation, self.solver.solves):
            kinds = " or ".join(kind.__name__ for kind in self.solver.solves)
            raise TypeError(
                f"{type(self.solver).__name__} solves {kinds}; got {self.equation}. Choose another equation, or a "
                "solver made for it."
            )


def StochasticDDIM(eta: float) -> Method:  # noqa: N802 - a name of the literature, like its neighbours
    """Return DDIM with its own eta in [0, 1], which scales the posterior's standard deviation.

    Reference: Song et al. 2021 (arXiv 2010.02502), eq. 16.

    Raises:
        ValueError: eta outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"DDIM's eta must lie in [0, 1]; got {eta}.")
    return Method(ReverseSDE(eta**2), Ancestral())


DDIM = Method(ProbabilityFlow(), Exponential(1))
"""Song et al. 2021 (arXiv 2010.02502), eq. 12 with sigma = 0. Also DPM-Solver-1 (arXiv 2206.00927)."""

DDPM = Method(ReverseSDE(), Exponential(1))
"""Ho et al. 2020 (arXiv 2006.11239), algorithm 2 with the variance beta-tilde. Also SDE-DPM-Solver++ 1."""

DDPM_BETA = Method(ReverseSDE(), AncestralLarge())
"""Ho et al. 2020 (arXiv 2006.11239), algorithm 2 with the variance beta."""

DPMpp2M = Method(ProbabilityFlow(), TruncatedExponential())
"""Lu et al. 2022 (arXiv 2211.01095), algorithm 2."""

EULER = Method(ProbabilityFlow(), EulerSolver())
"""Euler's method on the probability flow, in the process's own time."""

HEUN = Method(ProbabilityFlow(), Heun())
"""Heun's method; on the EDM process and `Denoised(Karras(n))`, Karras et al. 2022 (arXiv 2206.00364), algorithm 1."""

EULER_MARUYAMA = Method(ReverseSDE(), EulerMaruyama())
"""Song et al. 2021 (arXiv 2011.13456), appendix E: the reverse SDE by Euler-Maruyama."""

METHODS: dict[str, Method] = {
    "ddim": DDIM,
    "ddpm": DDPM,
    "ddpm-beta": DDPM_BETA,
    "dpm++2m": DPMpp2M,
    "euler": EULER,
    "euler-maruyama": EULER_MARUYAMA,
    "exponential-2": Method(ProbabilityFlow(), Exponential(2)),
    "exponential-3": Method(ProbabilityFlow(), Exponential(3)),
    "exponential-sde-2": Method(ReverseSDE(), Exponential(2)),
    "heun": HEUN,
    "rk4": Method(ProbabilityFlow(), RK4()),
}


def method(name: str) -> Method:
    """Return the method of that name, for configurations and command lines.

    Raises:
        ValueError: the name is unknown; near names are suggested.
    """
    if name not in METHODS:
        raise ValueError(f"A method must be known by name; got {name!r}. {suggest(name, list(METHODS))}")
    return METHODS[name]
