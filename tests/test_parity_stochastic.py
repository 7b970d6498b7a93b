"""The stochastic schedulers of diffusers, step for step: the same network, the same start, the same noise.

Their sigmas and, in part, their states are float32, which rounds by 6e-8 at every step: hence TOLERANCE.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import (
    scheduling_ddpm,
    scheduling_edm_euler,
    scheduling_euler_ancestral_discrete,
    scheduling_sasolver,
)
from exact import normal
from torch import Tensor

from sdekit import EDM, ByIndex, Denoiser, Discrete, Eps, Keyed, Leading, Prediction, ProbabilityFlow, ReverseSDE, Times
from sdekit.equation import Equation
from sdekit.methods import Method, StochasticDDIM
from sdekit.prediction import X0
from sdekit.sample import solve
from sdekit.solvers.churn import Churn
from sdekit.solvers.learned import LearnedVariance, WithVariance
from sdekit.solvers.level import Between, VaryingSDE
from sdekit.solvers.runge_kutta import Euler
from sdekit.solvers.sa import SA, TruncatedSA

TOLERANCE = 1e-5
TABLE = Discrete.linear()


def net(x: Tensor, k: Tensor) -> Tensor:
    """A smooth function of the state and the table's index."""
    place = (k.to(x) / 1000).reshape(-1, 1)
    return 0.9 * x * place + 0.3 * torch.sin(2 * x.flip(1) + 3 * place)


def denoiser() -> Denoiser:
    return Denoiser(net, TABLE, predicts=Eps(), clock=ByIndex())


def draws(x: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield the noise of every step of a run with Keyed(seed)."""
    of_step = Keyed(seed).on(ReverseSDE().of(denoiser()), x)
    return (of_step(k)(0, 0) for k in itertools.count())


def scheduler_of(kind: type, steps: int, **options: Any) -> Any:
    """Return a scheduler on the table in float64, ready to make that many steps."""
    scheduler = kind(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, **options)
    scheduler.alphas_cumprod = torch.cumprod(1 - torch.tensor(TABLE.betas, dtype=torch.float64), 0)
    scheduler.set_timesteps(steps)
    return scheduler


def theirs(scheduler: Any, module: ModuleType, x: Tensor, noise: Iterator[Tensor], **options: Any) -> Tensor:
    """Run a scheduler as its pipelines do, with the given noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "randn_tensor", lambda *args, **kwargs: next(noise))
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(net(scaled, t), t, x, **options).prev_sample
    return x


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the size of the states."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def nodes(scheduler: Any, last: float) -> Times:
    """Return a scheduler's own times, and then the last."""
    return Times((*((scheduler.timesteps.double() + 1) / 1000).tolist(), last))


# Ancestral ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spacing", "steps"), [("leading", 50), ("trailing", 12), ("linspace", 28)])
def test_euler_ancestral_is_ddpm(spacing: str, steps: int) -> None:
    x, kind = normal(4, 3), diffusers.EulerAncestralDiscreteScheduler
    scheduler = scheduler_of(kind, steps, timestep_spacing=spacing)
    start = x * (1 + scheduler.sigmas[0].double() ** 2).sqrt()
    end = theirs(scheduler, scheduling_euler_ancestral_discrete, start, draws(x, 3))
    ours = solve(denoiser(), x, StochasticDDIM(1.0), nodes(scheduler, 0.0), Keyed(3)).x
    assert distance(ours, end) < TOLERANCE


# SA-Solver ------------------------------------------------------------------------------------------------------------


def sa_scheduler(steps: int, predictor: int, corrector: int, tau: Any) -> Any:
    scheduler = scheduler_of(
        diffusers.SASolverScheduler,
        steps,
        predictor_order=predictor,
        corrector_order=corrector,
        tau_func=lambda t: torch.tensor(float(tau(t)), dtype=torch.float64),
        lower_order_final=False,
    )
    # what it keeps in float32 loses digits to its polynomials in lam itself, not in steps of lam
    exact = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    scheduler.sigmas = torch.cat([exact[scheduler.timesteps], exact[:1]])
    return scheduler


SA_CASES = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1), (3, 3), (3, 4), (4, 4)]


@pytest.mark.parametrize(("predictor", "corrector"), SA_CASES)
@pytest.mark.parametrize("tau", [0.0, 0.4, 1.0])
def test_sa_solver(predictor: int, corrector: int, tau: float) -> None:
    """With its special case where two values are used; eta = tau^2. At tau = 0 it asks for noise and scales it by 0."""
    x, steps = normal(4, 3), 14
    scheduler = sa_scheduler(steps, predictor, corrector, lambda t: tau)
    end = theirs(scheduler, scheduling_sasolver, x, draws(x, 3))
    method = Method(ReverseSDE(tau**2), TruncatedSA(predictor, corrector))
    ours = solve(denoiser(), x, method, nodes(scheduler, 0.001), Keyed(3)).x
    assert distance(ours, end) < TOLERANCE


def test_sa_solver_with_a_level_that_varies() -> None:
    """Their tau is that of a step's start: where it changes at a time of the grid, ours is the same."""
    x, steps = normal(4, 3), 20
    scheduler = sa_scheduler(steps, 2, 2, lambda t: 1 if 200 < t <= 800 else 0)
    grid = nodes(scheduler, 0.001)
    inside = [t for t in grid.at if 201 < 1000 * t <= 801]
    after = grid.at[grid.at.index(inside[-1]) + 1]
    end = theirs(scheduler, scheduling_sasolver, x, draws(x, 3))
    equation: Equation = VaryingSDE(Between(after, inside[0]))
    ours = solve(denoiser(), x, Method(equation, TruncatedSA()), grid, Keyed(3)).x
    assert distance(ours, end) < TOLERANCE


def test_their_two_values_are_not_integrated_exactly() -> None:
    """The truncated moment is theirs; the exact one, of the same order, is `SA`."""
    x = normal(4, 3)
    scheduler = sa_scheduler(14, 2, 2, lambda t: 1)
    end = theirs(scheduler, scheduling_sasolver, x, draws(x, 3))
    ours = solve(denoiser(), x, Method(ReverseSDE(), SA(2, 2)), nodes(scheduler, 0.001), Keyed(3)).x
    assert distance(ours, end) > 1e-3


def test_their_sa_solver_wastes_its_last_call_on_karras_sigmas() -> None:
    """The last sigma is there twice: the last step has no length, and what it asks of the network changes nothing."""
    scheduler = diffusers.SASolverScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(10)
    assert float(scheduler.sigmas[-1]) == float(scheduler.sigmas[-2])


# Churn ----------------------------------------------------------------------------------------------------------------


class Preconditioned:
    """EDM's model as their scheduler preconditions it."""

    process = EDM(t_max=200.0)  # so that there is room above the first sigma

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        c_skip, c_out = 0.25 / (t**2 + 0.25), t * 0.5 / (t**2 + 0.25).sqrt()
        return Prediction(self.process, x, t, c_skip * x + c_out * preconditioned(x, t), X0())


def preconditioned(x: Tensor, sigma: Tensor) -> Tensor:
    """Return the network's output at a state and its noise level."""
    return net(x / (sigma.double() ** 2 + 0.25).sqrt(), sigma.double().log() / 4)


def churned(churn: float, early: bool) -> tuple[Tensor, Tensor]:
    """Run their scheduler, the network asked before the noise is added or after; and our solver."""
    x, steps = normal(4, 3), 8
    scheduler = diffusers.EDMEulerScheduler()
    scheduler.set_timesteps(steps)
    sigmas, gamma = scheduler.sigmas.double(), min(churn / steps, 2**0.5 - 1)
    solver = Churn(Euler(), churn=churn, steps=steps, lo=0.05, hi=50.0)
    ours = solve(Preconditioned(), sigmas[0] * x, Method(ProbabilityFlow(), solver), Times(tuple(sigmas)), Keyed(3)).x
    state, noise = sigmas[0] * x, draws(x, 3)
    with pytest.MonkeyPatch.context() as patch:
        for t, sigma, z in zip(scheduler.timesteps, sigmas, noise, strict=False):
            patch.setattr(scheduling_edm_euler, "randn_tensor", lambda *args, z=z, **kwargs: z)
            up = sigma * (1 + gamma * (0.05 <= sigma <= 50.0) * (not early))
            raised = state + (up**2 - sigma**2).sqrt() * z
            scheduler.scale_model_input(state, t)
            options = {"s_churn": churn, "s_tmin": 0.05, "s_tmax": 50.0}
            state = scheduler.step(preconditioned(raised, up), t, state, **options).prev_sample
    return ours, state


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])
def test_edm_euler_with_churn(churn: float) -> None:
    """As algorithm 2 has it: the network is asked at the raised state and level."""
    assert distance(*churned(churn, early=False)) < TOLERANCE


def test_their_edm_euler_asks_before_it_adds_the_noise() -> None:
    """A scheduler is handed the output for the state before: with churn, that of a state it then leaves."""
    assert distance(*churned(0.0, early=True)) < TOLERANCE
    assert distance(*churned(40.0, early=True)) > 1e-2


# Learned variance -----------------------------------------------------------------------------------------------------


class Learned:
    """A network with two outputs, as a model whose predictions supply a variance."""

    def __init__(self) -> None:
        self.plain, self.process = denoiser(), TABLE

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        now = self.plain(x, t)
        return WithVariance(now.process, x, now.t, now.answer, now.target, torch.tanh(x))


@pytest.mark.parametrize("steps", [1000, 50, 7])
def test_a_learned_variance(steps: int) -> None:
    x, options = normal(4, 3), {"variance_type": "learned_range", "clip_sample": False, "timestep_spacing": "leading"}
    scheduler, noise, state = scheduler_of(diffusers.DDPMScheduler, steps, **options), draws(x, 3), x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(noise))
        for t in scheduler.timesteps:
            output = torch.cat([net(state, t), torch.tanh(state)], 1)
            state = scheduler.step(output, t, state).prev_sample
    ours = solve(Learned(), x, Method(ReverseSDE(), LearnedVariance()), Leading(steps), Keyed(3)).x
    assert distance(ours, state) < 1e-9
