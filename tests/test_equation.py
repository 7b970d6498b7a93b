"""Equations: drift and diffusion of the probability flow, the reverse SDE and the forward SDE; calls are counted."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from strategies import TARGETS, Exact, agree, column, every_process, normal, number, shapes, times

from sdekit import (
    DDIM,
    EDM,
    EULER,
    HEUN,
    RK4,
    VP,
    X0,
    Denoised,
    Denoiser,
    EulerMaruyama,
    ForwardSDE,
    Keyed,
    Method,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    Uniform,
    V,
    solve,
)

WHOLE_PATH = RectifiedFlow(t_min=0.0, t_max=1.0)


def drawn(process, draw):
    """Draw an exact model, states of any shape and times for them."""
    shape = draw(shapes())
    t = draw(times(process, shape[0]) | times(process))
    return (
        Exact(process, answers=draw(TARGETS)),
        process.perturb(normal(*shape), t, normal(*shape, seed=1)),
        t,
    )


# Drift and diffusion ----------------------------------------------------------------------------------------


@every_process
def test_reverse_drift_is_the_forward_one_less_the_score(process, draw):
    """f x - (1 + eta)/2 g^2 score, with the score from its formula and not from the model's answer."""
    model, x, t = drawn(process, draw)
    eta = draw(number(0, 2))
    pull = column(process.g2(t), x) * model.score(x, t)
    forward = column(process.f(t), x) * x
    agree(ReverseSDE(eta).of(model).drift(x, t), forward - (1 + eta) / 2 * pull, 1e-6)
    agree(ProbabilityFlow().of(model).drift(x, t), forward - pull / 2, 1e-6)
    agree(ForwardSDE().of(model).drift(x, t), forward, 1e-12)


@every_process
def test_without_noise_the_reverse_sde_is_the_probability_flow(process, draw):
    model, x, t = drawn(process, draw)
    flow, reverse = ProbabilityFlow().of(model), ReverseSDE(eta=0.0).of(model)
    agree(reverse.drift(x, t), flow.drift(x, t), 1e-9)
    agree(reverse.diffusion(t), 0, 0)
    agree(flow.diffusion(t), 0, 0)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_without_noise_the_drift_is_finite_at_both_ends_of_a_whole_path(t):
    model, x = Exact(WHOLE_PATH, answers=V()), normal(3, 2)
    flow = ProbabilityFlow().of(model).drift(x, t)
    assert flow.isfinite().all()
    agree(ReverseSDE(eta=0.0).of(model).drift(x, t), flow)


@every_process
def test_diffusion_is_the_root_of_eta_g2(process, draw):
    t, eta = draw(times(process, 3)), draw(number(0, 2))
    agree(ReverseSDE(eta).diffusion(process, t) ** 2, eta * process.g2(t))
    agree(ForwardSDE().diffusion(process, t) ** 2, process.g2(t))


@every_process
def test_clock_runs_with_the_noise_that_is_added(process, draw):
    """In units where the linear drift is gone: x / alpha going forward, x e^{eta lam} / sigma going back."""
    t, eta = draw(times(process)), draw(number(0.1, 2))
    for equation, scale, sign in (
        (ForwardSDE(), 1 / process.alpha(t), 1),
        (ReverseSDE(eta), (eta * process.lam(t)).exp() / process.sigma(t), -1),
    ):
        rate = torch.func.jvp(lambda t, e=equation: e.clock(process, t), (t,), (torch.ones_like(t),))[1]
        added = (scale * equation.diffusion(process, t)) ** 2
        agree(sign * rate / added, 1, 1e-7)


# Counting ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twice(Exact):
    """A model that asks its network twice, as guidance does."""

    calls: int = 2


def test_system_counts_every_network_call():
    x = normal(3, 2)
    for model, calls in ((Exact(VP()), 1), (Twice(VP()), 2)):
        system = ProbabilityFlow().of(model)
        assert system.nfe == 0
        system(x, 0.5)
        system.drift(x, 0.4)
        assert system.nfe == 2 * calls
        assert ProbabilityFlow().of(model).nfe == 0


@pytest.mark.parametrize(
    ("method", "calls"), [(EULER, 1), (DDIM, 1), (HEUN, 2), (Method(ProbabilityFlow(), RK4()), 4)], ids=str
)
def test_runs_count_every_network_call(method, calls):
    x = normal(3, 2)
    assert solve(Exact(VP()), x, method, Uniform(7)).nfe == 7 * calls
    assert solve(Twice(VP()), x, method, Uniform(7)).nfe == 14 * calls
    assert solve(Twice(VP()), x, method, Denoised(Uniform(7))).nfe == 2 * (6 * calls + 1)


def test_calls_counted_are_calls_made():
    made = []

    def net(x, t):
        made.append(1)
        return 0.5 * x

    run = solve(Denoiser(net, VP(), predicts=X0()), normal(3, 2), HEUN, Denoised(Uniform(5)))
    assert run.nfe == len(made) == 9


def test_forward_sde_asks_the_model_nothing():
    def refuse(x, t):
        pytest.fail("the forward process asked the model")

    process = EDM(t_max=1.0)
    model = Denoiser(refuse, process, predicts=X0())
    times = tuple(torch.linspace(process.t_min, process.t_max, 201).tolist()[1:-1])
    system, x = ForwardSDE().of(model), torch.full((4096, 1), 0.3, dtype=torch.float64)
    draw = Keyed(seed=5).on(system, x)
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        t, s = (torch.tensor(v, dtype=torch.float64) for v in (t, s))
        x = EulerMaruyama().step(system, x, t, s, (), draw(k)).x
    assert system.nfe == 0
    assert abs(float(x.mean()) - 0.3) < 5 / 64
    assert abs(float(x.std()) - 1) < 0.06


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
def test_eta_is_finite_and_not_negative(eta):
    with pytest.raises(ValueError, match="eta multiplies"):
        ReverseSDE(eta)


def test_forward_has_all_of_its_noise():
    assert ForwardSDE().eta == 1
    assert ForwardSDE().to_json() == {"type": "ForwardSDE"}
