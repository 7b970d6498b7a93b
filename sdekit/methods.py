"""The literature's names, as data: a method is an equation and a solver, and a reference."""

from __future__ import annotations

from dataclasses import dataclass

from sdekit._value import Value, suggest
from sdekit.equation import Equation, ProbabilityFlow, ReverseSDE
from sdekit.solvers import (
    ER,
    IPNDM,
    NOISE,
    RK4,
    SEEDS,
    SRA1,
    STRAIGHT,
    Ancestral,
    AncestralLarge,
    Churn,
    Corrected,
    DampedAdams,
    DPMMultistep,
    DPMppMultistep,
    DPMppMultistepHeun,
    DPMppSinglestep,
    DPMSinglestep,
    EulerMaruyama,
    Exponential,
    ExponentialRK,
    Heun,
    InLam,
    InPath,
    InTime,
    Langevin,
    Midpoint,
    Multistep,
    NoiseScale,
    PseudoHeun,
    PseudoRungeKutta,
    Ralston,
    Ramp,
    Restart,
    Solver,
    TruncatedSA,
    UniP,
    UniPC,
    VaryingSDE,
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


DAMPED_ADAMS = Method(ProbabilityFlow(), DampedAdams())
"""The default: order 3, one network call a step, steady from five steps on."""

DDIM = Method(ProbabilityFlow(), Exponential(1))
"""Song et al. 2021 (arXiv 2010.02502), eq. 12 with sigma = 0. Also DPM-Solver-1 (arXiv 2206.00927)."""

DDPM = Method(ReverseSDE(), Exponential(1))
"""Ho et al. 2020 (arXiv 2006.11239), algorithm 2 with the variance beta-tilde. Also SDE-DPM-Solver++ 1."""

DDPM_BETA = Method(ReverseSDE(), AncestralLarge())
"""Ho et al. 2020 (arXiv 2006.11239), algorithm 2 with the variance beta."""

DPMpp2M = Method(ProbabilityFlow(), DPMppMultistep(2))
"""Lu et al. 2022 (arXiv 2211.01095), algorithm 2."""

EULER = Method(ProbabilityFlow(), EulerSolver())
"""Euler's method on the probability flow, in the process's own time."""

HEUN = Method(ProbabilityFlow(), Heun())
"""Heun's method; on the EDM process and `Denoised(Karras(n))`, Karras et al. 2022 (arXiv 2206.00364), algorithm 1."""

EULER_MARUYAMA = Method(ReverseSDE(), EulerMaruyama())
"""Song et al. 2021 (arXiv 2011.13456), appendix E: the reverse SDE by Euler-Maruyama."""

_FLOW: dict[str, Solver] = {
    # one call a step, no memory
    "euler": EulerSolver(),
    "ddim": Exponential(1),
    # many calls a step: in time, or exponential
    "midpoint": Midpoint(),
    "heun": Heun(),
    "ralston": Ralston(),
    "rk4": RK4(),
    "edm-heun": InPath(NOISE, Heun()),
    "exponential-rk-2": ExponentialRK(2),
    "exponential-rk-3": ExponentialRK(3),
    "exponential-rk-4": ExponentialRK(4),
    "dpm-2": DPMSinglestep(2),
    "dpm-3": DPMSinglestep(3),
    "dpm++2s": DPMppSinglestep(2),
    "dpm++3s": DPMppSinglestep(3),
    # one call a step, with memory: exact weights and a start that keeps the order
    "exponential-2": Exponential(2),
    "exponential-3": Exponential(3),
    "exponential-4": Exponential(4),
    "noise-3": Multistep(NOISE, InLam(), 3),
    "velocity-3": Multistep(STRAIGHT, STRAIGHT, 3),
    "adams-pc-3": Corrected(),
    # the same, as their papers have them
    "lms-4": Multistep(NOISE, NOISE, 4, Ramp()),
    "deis-3": Multistep(NOISE, InLam(), 3, Ramp()),
    "deis-tab-3": Multistep(NOISE, InTime(), 3, Ramp()),
    "vab-2": Multistep(STRAIGHT, STRAIGHT, 2, Ramp()),
    "vab-4": Multistep(STRAIGHT, STRAIGHT, 4, Ramp()),
    "ipndm": IPNDM(4),
    "pndm": IPNDM(4, PseudoRungeKutta()),
    "plms": IPNDM(4, PseudoHeun()),
    "dpm-2m": DPMMultistep(2),
    "dpm-3m": DPMMultistep(3),
    "dpm++2m": DPMppMultistep(2),
    "dpm++3m": DPMppMultistep(3),
    "unipc-2": UniPC(UniP(2)),
    "unipc-3": UniPC(UniP(3)),
    # the default
    "damped-adams": DampedAdams(),
    # the flow with noise put in on the way
    "edm-stochastic": Churn(),
    "restart": Restart(),
}

_REVERSE: dict[str, Solver] = {
    "ddpm": Exponential(1),
    "ddpm-beta": AncestralLarge(),
    "euler-maruyama": EulerMaruyama(),
    "exponential-sde-2": Exponential(2),
    "dpm-2m-sde": DPMMultistep(2),
    "dpm++2m-sde": DPMppMultistep(2),
    "dpm++2m-sde-heun": DPMppMultistepHeun(2),
    "dpm++3m-sde": DPMppMultistep(3),
    "sa-solver": TruncatedSA(),
    "seeds-1": SEEDS(1),
    "seeds-2": SEEDS(2),
    "sra1": SRA1(),
    "predictor-corrector": Langevin(),
}

_VARYING: dict[str, Solver] = {"er-sde-1": ER(1), "er-sde-2": ER(2), "er-sde-3": ER(3)}

METHODS: dict[str, Method] = {
    **{name: Method(ProbabilityFlow(), solver) for name, solver in _FLOW.items()},
    **{name: Method(ReverseSDE(), solver) for name, solver in _REVERSE.items()},
    **{name: Method(VaryingSDE(NoiseScale()), solver) for name, solver in _VARYING.items()},
}
"""The methods by the names of the literature; each solver's docstring has the paper and the equation."""


def method(name: str) -> Method:
    """Return the method of that name, for configurations and command lines.

    Raises:
        ValueError: the name is unknown; near names are suggested.
    """
    if name not in METHODS:
        raise ValueError(f"A method must be known by name; got {name!r}. {suggest(name, list(METHODS))}")
    return METHODS[name]
