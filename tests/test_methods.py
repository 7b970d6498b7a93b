"""The equalities of the literature: names are formulas, written here as the papers write them."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from exact import PROCESSES, Circle, gaussian, law, marginal, name, normal, ring, rms, worst_law
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdekit import (
    DDIM,
    DDPM,
    DDPM_BETA,
    EDM,
    HEUN,
    VP,
    Ancestral,
    ByIndex,
    Cosine,
    Denoised,
    Denoiser,
    Discrete,
    DPMpp2M,
    Eps,
    Euler,
    Exponential,
    Karras,
    Keyed,
    Leading,
    Linspace,
    LogSNR,
    Method,
    ProbabilityFlow,
    Process,
    RectifiedFlow,
    ReverseSDE,
    StochasticDDIM,
    Trailing,
    Uniform,
    method,
    solve,
    trajectory,
)
from sdekit.grid import Grid
from sdekit.methods import METHODS

TABLE = Discrete.linear()
BETAS = torch.tensor(TABLE.betas, dtype=torch.float64)
BARS = torch.cumprod(1 - BETAS, 0)  # alpha-bar
SPACINGS = [Leading(1000), Leading(50), Leading(7, offset=1), Trailing(12), Linspace(30), Leading(1)]

on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
with_every_spacing = pytest.mark.parametrize("grid", SPACINGS, ids=name)


def net(x: Tensor, k: Tensor) -> Tensor:
    """A network: any smooth function of the state and the table's index."""
    place = (k.to(x) / 1000).reshape(-1, 1)
    return torch.tanh(x * (1 + place) + torch.sin(3 * x.flip(1))) + 0.2 * place


MODEL = Denoiser(net, TABLE, predicts=Eps(), clock=ByIndex())


def indices(grid: Grid) -> list[int]:
    """Return the table's indices k at a grid's times; the clean end has none."""
    return [round(1000 * t) - 1 for t in grid(TABLE).tolist()[:-1]]


def bars(grid: Grid) -> list[tuple[int, Tensor, Tensor]]:
    """Return (k, alpha-bar there, alpha-bar at the next step) for every step; the clean end has alpha-bar 1."""
    ks = indices(grid)
    after = [*(BARS[k] for k in ks[1:]), torch.ones((), dtype=torch.float64)]
    return [(k, BARS[k], bar) for k, bar in zip(ks, after, strict=True)]


def distance(a: Tensor, b: Tensor) -> float:
    """Return the largest difference, relative to the size of the states."""
    return float((a - b).abs().max() / (1 + b.abs().max()))


def same(one: Method, other: Method, process: Process, grid: Grid) -> float:
    """Return the distance of two methods' runs, with the same noise, at its largest along the way."""
    model = ring(process)
    x = model.noisy(8, process.t_max)
    runs = (trajectory(model, x, m, grid, Keyed(seed=5)) for m in (one, other))
    return max(distance(a.x, b.x) for a, b in zip(*runs, strict=True))


def test_the_table_is_the_table() -> None:
    assert torch.allclose(TABLE.alpha(TABLE.node(torch.arange(1000))) ** 2, BARS, rtol=1e-12, atol=0)
    assert indices(Leading(4)) == [750, 500, 250, 0]
    assert indices(Leading(4, offset=1)) == [751, 501, 251, 1]
    assert indices(Trailing(4)) == [999, 749, 499, 249]
    assert indices(Linspace(4)) == [999, 666, 333, 0]


# Denoising diffusion, in alpha-bars and betas -------------------------------------------------------------------------


@with_every_spacing
def test_ddim(grid: Grid) -> None:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 with sigma = 0."""
    run = [point.x for point in trajectory(MODEL, normal(4, 3), DDIM, grid)]
    for (x, after), (k, bar, bar_after) in zip(pairwise(run), bars(grid), strict=True):
        eps = net(x, torch.tensor([k]))
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        assert distance(after, bar_after.sqrt() * x0 + (1 - bar_after).sqrt() * eps) < 1e-12


@with_every_spacing
@pytest.mark.parametrize("sampler", [DDPM, DDPM_BETA], ids=["beta-tilde", "beta"])
def test_ddpm(grid: Grid, sampler: Method) -> None:
    """Ho et al. 2020 (arXiv 2006.11239), algorithm 2, with both variances; a subset's beta is that of its own table."""
    x, noise = normal(4, 3), Keyed(seed=11)
    z = noise.on(sampler.equation.of(MODEL), x)
    run = [point.x for point in trajectory(MODEL, x, sampler, grid, noise)]
    for i, ((x, after), (k, bar, bar_after)) in enumerate(zip(pairwise(run), bars(grid), strict=True)):
        beta = BETAS[k] if grid == Leading(1000) else 1 - bar / bar_after
        mean = (x - beta / (1 - bar).sqrt() * net(x, torch.tensor([k]))) / (1 - beta).sqrt()
        variance = beta if sampler == DDPM_BETA else (1 - bar_after) / (1 - bar) * beta
        last = i == len(run) - 2  # "else z = 0"
        assert distance(after, mean if last else mean + variance.sqrt() * z(i)(0, 0)) < 1e-12


@given(grid=st.sampled_from(SPACINGS[2:]), eta=st.floats(0.01, 1) | st.just(0.0))
def test_stochastic_ddim(grid: Grid, eta: float) -> None:
    """Song et al. 2021 (arXiv 2010.02502), eq. 12 and 16."""
    x, noise, sampler = normal(4, 3), Keyed(seed=11), StochasticDDIM(eta)
    z = noise.on(sampler.equation.of(MODEL), x)
    run = [point.x for point in trajectory(MODEL, x, sampler, grid, noise)]
    for i, ((x, after), (k, bar, bar_after)) in enumerate(zip(pairwise(run), bars(grid), strict=True)):
        spread = eta * ((1 - bar_after) / (1 - bar)).sqrt() * (1 - bar / bar_after).sqrt()
        eps = net(x, torch.tensor([k]))
        x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
        step = bar_after.sqrt() * x0 + (1 - bar_after - spread**2).clamp(min=0).sqrt() * eps
        assert distance(after, step + spread * z(i)(0, 0)) < 1e-12


# The same under other names -------------------------------------------------------------------------------------------


@on_every_process
@pytest.mark.parametrize("grid", [LogSNR(9), Karras(9), Denoised(LogSNR(5))], ids=name)
def test_first_order_integrators_have_many_names(process: Process, grid: Grid) -> None:
    for eta, sampler in [(0.0, DDIM), (1.0, DDPM)]:
        for other in (Method(ReverseSDE(eta), Exponential(1)), StochasticDDIM(eta)):
            assert same(sampler, other, process, grid) < 1e-12


def test_between_0_and_1_the_stochastic_ones_differ() -> None:
    """DDIM's family and the exponential integrators keep other shares of the noise: two methods, not two names."""
    assert same(StochasticDDIM(0.5**0.5), Method(ReverseSDE(0.5), Exponential(1)), VP(), LogSNR(9)) > 1e-3


@on_every_process
def test_ddim_is_dpm_solver_1(process: Process) -> None:
    """Lu et al. 2022 (arXiv 2206.00927), eq. 3.7: x_s = alpha_s/alpha_t x - sigma_s (e^h - 1) eps."""
    model, x = ring(process), process.sigma(process.t_max) * normal(4, 2)
    run = list(trajectory(model, x, DDIM, LogSNR(6)))
    for now, after in pairwise(run):
        h = process.lam(after.t) - process.lam(now.t)
        kept = process.alpha(after.t) / process.alpha(now.t) * now.x
        step = kept - process.sigma(after.t) * torch.expm1(h) * model(now.x, now.t).eps
        assert rms(after.x - step) < 1e-12 * rms(now.x)


@pytest.mark.parametrize(
    ("process", "grid"),
    [
        (RectifiedFlow(), Uniform(12)),
        (RectifiedFlow(), LogSNR(12)),
        (RectifiedFlow(t_min=0.0, t_max=1.0), Uniform(12)),
        (EDM(), Karras(12)),
        (EDM(), Denoised(Karras(12))),
    ],
    ids=name,
)
def test_euler_is_ddim_on_straight_paths(process: Process, grid: Grid) -> None:
    """Where alpha and sigma are linear in time."""
    assert same(Method(ProbabilityFlow(), Euler()), DDIM, process, grid) < 1e-12


def test_euler_is_not_ddim_on_bent_ones() -> None:
    assert same(Method(ProbabilityFlow(), Euler()), DDIM, Cosine(), Uniform(12)) > 1e-3


@on_every_process
@pytest.mark.parametrize("grid", [LogSNR(9), Karras(9)], ids=name)
def test_dpm_solver_plus_plus_2m(process: Process, grid: Grid) -> None:
    """Lu et al. 2022 (arXiv 2211.01095), algorithm 2."""
    model = ring(process)
    t = grid(process)
    alpha, sigma, lam = process.alpha(t), process.sigma(t), process.lam(t)
    x = model.noisy(4, process.t_max)
    q = [model(x, t[0]).x0]
    for i, point in enumerate(list(trajectory(model, x, DPMpp2M, grid))[1:], start=1):
        h = lam[i] - lam[i - 1]
        d = q[-1]
        if i > 1:
            r = (lam[i - 1] - lam[i - 2]) / h
            d = (1 + 1 / (2 * r)) * q[-1] - 1 / (2 * r) * q[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * torch.expm1(-h) * d
        assert distance(point.x, x) < 1e-12
        q.append(model(x, t[i]).x0)


@pytest.mark.parametrize("n", [2, 3, 18])
def test_heun_is_edm(n: int) -> None:
    """Karras et al. 2022 (arXiv 2206.00364), algorithm 1 with sigma(t) = t, the times of eq. 5, and 2n - 1 calls."""
    model, rho, low, high = ring(EDM()), 7, 0.002, 80.0
    step = (low ** (1 / rho) - high ** (1 / rho)) / (n - 1)
    t = [*((high ** (1 / rho) + i * step) ** rho for i in range(n)), 0.0]
    x = start = high * normal(4, 2)
    for now, after in pairwise(t):
        d = (x - model(x, now).x0) / now
        euler = x + (after - now) * d
        d_after = (euler - model(euler, after).x0) / after if after > 0 else d
        x = x + (after - now) * (d + d_after) / 2
    run = solve(model, start, HEUN, Denoised(Karras(n)))
    assert distance(run.x, x) < 1e-12
    assert run.nfe == 2 * n - 1


# Every eta keeps the marginals ----------------------------------------------------------------------------------------


@on_every_process
@pytest.mark.parametrize("eta", [0.0, 0.25, 1.0, 2.0])
def test_every_eta_keeps_the_marginals(process: Process, eta: float) -> None:
    """In the limit of small steps, all along the way; the law on Gaussian data is exact, no sample is drawn."""
    method = Method(ReverseSDE(eta), Exponential(2))
    coarse, fine = (worst_law(gaussian(process), method, LogSNR(n)) for n in (25, 100))
    assert fine < min(coarse / 10, 0.02)


@on_every_process
@given(eta=st.floats(0, 1), steps=st.integers(1, 6), mean=st.floats(-3, 3))
def test_a_point_is_kept_at_any_step(process: Process, eta: float, steps: int, mean: float) -> None:
    """All data in one point: x0_hat is right, so DDIM's family and the integrators draw from the posterior itself."""
    model = gaussian(process, mean, std=0.0)
    for sampler in (StochasticDDIM(eta), Method(ReverseSDE(2 * eta), Exponential(1))):
        means, stds = law(model, sampler, Karras(steps))
        true_means, true_stds = marginal(model, Karras(steps)(process))
        assert rms((means - true_means) / true_stds) < 1e-10
        assert rms(stds / true_stds - 1) < 1e-10


@pytest.mark.parametrize("process", [VP(), Cosine(), Circle(), TABLE], ids=name)
def test_ddpms_two_variances(process: Process) -> None:
    """beta-tilde is exact if the data are one point, beta if they are white noise (arXiv 2006.11239, section 3.2)."""
    for std, right, wrong in [(0.0, DDPM, DDPM_BETA), (1.0, DDPM_BETA, DDPM)]:
        model = gaussian(process, mean=0.0, std=std)
        assert worst_law(model, right, LogSNR(5)) < 1e-10
        assert worst_law(model, wrong, LogSNR(5)) > 0.1


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", METHODS)
def test_methods_are_stored_and_read_back(known: str) -> None:
    assert Method.from_json(json.loads(json.dumps(method(known).to_json()))) == METHODS[known]


@pytest.mark.parametrize(("typed", "meant"), [("ddmi", "ddim"), ("dpm2m", "dpm++2m"), ("hein", "heun")])
def test_a_mistyped_name_is_corrected(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"got '{typed}'. Did you mean") as error:
        method(typed)
    assert meant in str(error.value)


def test_a_name_far_from_all_is_answered_with_the_list() -> None:
    with pytest.raises(ValueError, match="Known: adams-pc-3, damped-adams, ddim"):
        method("?")


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_ddims_eta_lies_between_0_and_1(eta: float) -> None:
    with pytest.raises(ValueError, match="eta must lie in"):
        StochasticDDIM(eta)


def test_ancestral_is_for_stochastic_equations() -> None:
    with pytest.raises(TypeError, match="Ancestral solves ReverseSDE"):
        Method(ProbabilityFlow(), Ancestral())


def test_a_little_noise_is_not_lost():
    """The fresh noise of a small eta is eta times the posterior's, down to where 1 - eta^2 rounds to 1."""
    t, s = torch.tensor([0.6, 0.5], dtype=torch.float64)
    full, little = (StochasticDDIM(eta) for eta in (1.0, 1e-9))
    spreads = [m.solver.spread(m.equation.of(MODEL), t, s) for m in (full, little)]
    assert float(spreads[1] / spreads[0]) == pytest.approx(1e-9)
