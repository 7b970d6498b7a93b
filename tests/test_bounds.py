"""Variational bounds: tight on exact models, below the truth on others, normalised, and honest about their errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import fields

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdekit import (
    EDM,
    VE,
    VP,
    X0,
    Cosine,
    Discrete,
    Grid,
    Leading,
    LogSNR,
    Model,
    Prediction,
    Process,
    Quadratic,
    RectifiedFlow,
    SubVP,
    Times,
)
from sdekit.data import digits
from sdekit.likelihood import Dequantization, log_likelihood
from sdekit.likelihood.decoder import denoising_bound, log_decoder, log_mass
from sdekit.likelihood.denoising import Draws, Errors
from sdekit.likelihood.discrete_bound import DiscreteBound, FixedVariance, discrete_bound
from sdekit.likelihood.elbo import Bound, LogSNRLaw, _pairs, elbo
from sdekit.oracle import Full, Gaussian, GaussianMixture, LowRank, Oracle
from sdekit.solvers.learned import WithVariance

PROCESSES = [VP(), VE(), Cosine(), RectifiedFlow(), SubVP(), EDM(), Discrete.linear()]
HERMITE = [torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80)]


def name(value: object) -> str:
    return type(value).__name__


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(process: Process) -> Gaussian:
    covariance = torch.tensor([[0.5, 0.2], [0.2, 0.3]], dtype=torch.float64)
    return Gaussian(process, torch.tensor([0.7, -0.3], dtype=torch.float64), Full(covariance))


def mixture(process: Process) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.4], [0.9, 0.8], [0.1, -1.1]], dtype=torch.float64)
    covariance = torch.tensor([[0.14, 0.04], [0.04, 0.10]], dtype=torch.float64)
    return GaussianMixture(process, means, Full(covariance), torch.tensor([0.5, 0.3, 0.2]))


def line(process: Process) -> GaussianMixture:
    """Return a mixture of two bumps in one dimension."""
    return GaussianMixture(process, torch.tensor([[-0.6], [0.5]], dtype=torch.float64), 0.25)


def of_digits(process: Process) -> GaussianMixture:
    data = digits().train.double()
    jitter = 0.02 * torch.randn(data.shape, generator=seeded(0), dtype=torch.float64)
    return GaussianMixture.fit(process, data + jitter, 10, LowRank.of_rank(8), floor=1e-2)


class Off:
    """A model whose answer is the exact one and something more: shift, and scale times the state, in x0."""

    def __init__(self, model: Oracle, shift: float, scale: float) -> None:
        self.model, self.process, self.shift, self.scale = model, model.process, shift, scale

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        x0 = self.model(x, t).x0
        off = self.shift + self.scale * x0.sin()
        return Prediction(self.process, x, torch.as_tensor(t, dtype=torch.float64), x0 + off, X0())


def mean_and_error(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


# Exact models ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_of_an_exact_model_the_bound_is_the_log_density(process: Process) -> None:
    for model in (gaussian(process), mixture(process)):
        x = model.sample(150, seeded(0))
        bound = elbo(model, x)
        gap = bound.log_prob - model.log_prob(x)
        mean, error = mean_and_error(gap)
        assert abs(mean) < 4 * error + 1e-3
        assert float(((gap / bound.stderr).abs() < 4).double().mean()) > 0.97


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_of_a_gaussian_with_itself_beside_nothing_is_left_to_chance(process: Process) -> None:
    model = gaussian(process)
    x = torch.cat([model.sample(50, seeded(0)), torch.tensor([[4.0, -5.0]], dtype=torch.float64)])
    bound = elbo(model, x, Draws(6), data=model)
    assert float(bound.stderr.max()) < 1e-10
    # what is left is the prior's, and the decoder's to second order in the noise of t_min
    torch.testing.assert_close(bound.log_prob, model.log_prob(x), rtol=0, atol=3e-3)


@settings(max_examples=20)
@given(st.floats(-3, 3), st.floats(0.05, 3), st.floats(-3, 3), st.floats(-1, 1), st.floats(0.2, 2))
def test_whatever_gaussian_is_beside_the_bound_is_the_same(
    mean: float, std: float, x: float, other: float, spread: float
) -> None:
    process = VP(t_min=1e-4)
    model = Gaussian(process, torch.tensor([mean], dtype=torch.float64), std)
    beside = Gaussian(EDM(), torch.tensor([other]), spread)
    at = torch.tensor([[x]], dtype=torch.float64)
    with_itself, others = elbo(model, at, Draws(6), data=model), elbo(model, at.expand(100, 1), Draws(12), data=beside)
    assert float(with_itself.stderr) < 1e-7
    off, error = mean_and_error(others.log_prob - with_itself.log_prob)
    assert abs(off) < 5 * error + 1e-6
    torch.testing.assert_close(with_itself.log_prob, model.log_prob(at), rtol=1e-2, atol=1e-2)


def test_images_and_single_numbers() -> None:
    images = of_digits(EDM())
    x = images.sample(24, seeded(1))
    beside = Gaussian.fit(VP(), images.sample(1500, seeded(2)))
    law = LogSNRLaw.adapted(images, images.sample(24, seeded(3)), data=beside)
    gap = elbo(images, x, Draws(96), law, data=beside)
    z = (gap.log_prob - images.log_prob(x)) / gap.stderr
    assert float(z.abs().max()) < 4.5
    assert float(gap.stderr.mean()) < 2.5
    number = Gaussian(VP(), torch.tensor(0.3, dtype=torch.float64), 0.5)
    x = number.sample(5, seeded(0))
    torch.testing.assert_close(elbo(number, x, data=number).log_prob, number.log_prob(x), rtol=0, atol=1e-4)


# Any model ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 0.0), (0.1, 0.0), (0.0, -0.3), (-0.05, 0.2)])
@pytest.mark.parametrize("process", [VP(t_min=0.05), RectifiedFlow(t_min=0.1)], ids=name)
def test_the_densities_bounded_integrate_to_at_most_one(process: Process, shift: float, scale: float) -> None:
    model = Off(line(process), shift, scale)
    x = torch.linspace(-4, 4, 401, dtype=torch.float64)[:, None]
    continuous = elbo(model, x, Draws(512)).log_prob
    discrete = discrete_bound(model, x, LogSNR(24), Draws(24)).log_prob
    masses = [float(torch.trapezoid(bound.exp(), x[:, 0])) for bound in (continuous, discrete)]
    assert masses[0] < 1.01
    assert masses[1] < masses[0] < 1.01
    assert masses[0] > (0.95 if (shift, scale) == (0, 0) else 0.1)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 0.0), (0.1, 0.0), (0.0, -0.3)])
def test_the_probabilities_bounded_add_up_to_at_most_one(shift: float, scale: float) -> None:
    levels = Dequantization(33)
    x = torch.linspace(-1, 1, 33, dtype=torch.float64)[:, None]
    model = Off(line(RectifiedFlow(t_min=0.05)), shift, scale)
    continuous, discrete = (
        each.log_prob.reshape(40, 33).mean(0).exp().sum()
        for each in (
            elbo(model, x.repeat(40, 1), Draws(48), levels=levels),
            discrete_bound(model, x.repeat(40, 1), LogSNR(16), Draws(2), levels),
        )
    )
    assert 0.03 < float(discrete) < float(continuous) < 1.01
    assert float(continuous) > (0.85 if (shift, scale) == (0, 0) else 0.1)


@settings(max_examples=15)
@given(st.floats(-0.3, 0.3), st.floats(-0.4, 0.4), st.sampled_from([VP(), VE(), EDM(), RectifiedFlow()]))
def test_no_model_is_above_the_data_s_own_density(shift: float, scale: float, process: Process) -> None:
    truth = mixture(process)
    x = truth.sample(200, seeded(4))
    mean, error = mean_and_error(elbo(Off(truth, shift, scale), x).log_prob - truth.log_prob(x))
    assert mean < 4 * error + 1e-3


def test_an_error_of_known_size_costs_what_it_must() -> None:
    process, model = VP(), gaussian(VP())
    x = model.mean[None]  # where the error of the exact model has mean 0 at every level

    class Biased(Off):
        def __call__(self, x: Tensor, t: Tensor) -> Prediction:
            now = self.model(x, t)
            return Prediction(self.process, x, now.t, now.x0 + 0.1 * torch.exp(-process.lam(now.t))[:, None], X0())

    class Late(Biased):  # which the decoder does not see
        def __call__(self, x: Tensor, t: Tensor) -> Prediction:
            return super().__call__(x, t) if t.ndim else self.model(x, t)

    exact, biased = (elbo(m, x.expand(100, 2), Draws(20), data=model) for m in (model, Late(model, 0, 0)))
    range_of_lam = float(process.lam(process.t_min) - process.lam(process.t_max))
    cost, error = mean_and_error(exact.log_prob - biased.log_prob)
    assert cost == pytest.approx(2 * 0.1**2 * range_of_lam, abs=4 * error)
    assert error < 0.06 * cost


# The squared error and information ------------------------------------------------------------------------------------


def divergence(model: Oracle, x: Tensor, t: float) -> Tensor:
    """Return KL(q(z_t | x) || p_t) in one dimension, by quadrature."""
    nodes, weights = HERMITE
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    log_p = torch.stack([model.log_prob(alpha * x + sigma * node, t) for node in nodes])
    entropy = 0.5 * math.log(2 * math.pi * math.e) + float(sigma.log())
    return -entropy - (weights[:, None] * log_p).sum(0) / weights.sum()


@pytest.mark.parametrize("process", [VP(), VE(sigma_max=5.0), RectifiedFlow()], ids=name)
def test_the_integral_of_the_squared_error_is_a_divergence_at_every_point(process: Process) -> None:
    model = line(process)
    x = torch.tensor([[-1.2], [-0.6], [0.0], [0.4], [1.5]], dtype=torch.float64)
    expected = divergence(model, x, process.t_min) - divergence(model, x, process.t_max)
    many = elbo(model, x.repeat(200, 1), Draws(20)).diffusion.reshape(200, 5)
    assert bool(((many.mean(0) - expected).abs() < 4 * many.std(0) / 200**0.5).all())


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_its_mean_over_the_data_is_mutual_information(process: Process) -> None:
    model = gaussian(process)
    values = model.components.spectrum.values.flatten()
    x = model.sample(4, seeded(0))
    roots = values.sqrt() * torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)  # with the data's covariance
    directions = model.components.spectrum.directions
    assert directions is not None
    x = model.mean + roots @ directions[0]
    low, high = (torch.exp(2 * process.lam(t)) for t in (process.t_max, process.t_min))
    information = 0.5 * ((1 + high * values) / (1 + low * values)).log().sum()
    x = torch.cat([model.mean + roots * torch.tensor([1.0, -1.0]) @ directions[0], x])
    diffusion = elbo(model, x, Draws(6), data=model).diffusion
    torch.testing.assert_close(diffusion.mean(), information, rtol=1e-9, atol=1e-9)


def test_the_schedule_does_not_matter_but_for_its_ends() -> None:
    processes: list[Process] = [VP()]
    lo, hi = (float(VP().lam(t)) for t in (1.0, 1e-3))
    processes.append(EDM(t_min=math.exp(-hi), t_max=math.exp(-lo)))
    processes.append(VE(sigma_min=math.exp(-hi), sigma_max=math.exp(-lo)))
    processes.append(RectifiedFlow(t_min=1 / (1 + math.exp(hi)), t_max=1 / (1 + math.exp(lo))))
    x = mixture(VP()).sample(20, seeded(0))
    first, *others = [elbo(mixture(process), x) for process in processes]
    for other in others:
        for part in ("prior", "diffusion", "reconstruction", "stderr"):
            torch.testing.assert_close(getattr(other, part), getattr(first, part), rtol=1e-8, atol=1e-8)


# Draws ----------------------------------------------------------------------------------------------------------------


def test_strata_have_less_variance_than_independent_draws() -> None:
    for model, law in ((of_digits(VP()), LogSNRLaw()), (mixture(VE()), LogSNRLaw.around(VE()))):
        errors = Errors(model, model.sample(12, seeded(0)))
        one, many = torch.zeros(32, dtype=torch.long), torch.arange(32)
        spread = [
            torch.stack([_pairs(errors, Draws(64, seed), law, strata).mean(0) for seed in range(16)]).var(0).mean()
            for strata in (one, many)
        ]
        assert float(spread[1]) < 0.8 * float(spread[0])


def test_a_law_changes_the_error_and_not_the_bound() -> None:
    model = mixture(VP())
    x = model.sample(300, seeded(0))
    laws = [LogSNRLaw(), LogSNRLaw.around(VP()), LogSNRLaw.adapted(model, x[:50], Draws(8, seed=5))]
    bounds = [elbo(model, x, law=law) for law in laws]
    for bound in bounds:
        mean, error = mean_and_error(bound.log_prob - model.log_prob(x))
        assert abs(mean) < 4 * error
    errors = [float(bound.stderr.square().mean()) for bound in bounds]
    assert errors[2] < errors[1] < 0.6 * errors[0]


@given(st.lists(st.floats(0.01, 10), min_size=2, max_size=9), st.floats(-8, 0), st.floats(0.1, 12))
def test_a_law_covers_its_range_at_the_rate_it_says(heights: list[float], lo: float, span: float) -> None:
    ends = torch.tensor([lo, lo + span], dtype=torch.float64)
    share = torch.linspace(0, 1, 501, dtype=torch.float64).requires_grad_()
    lam, rate = LogSNRLaw(tuple(heights)).quantile(*ends, share)
    torch.testing.assert_close(lam[[0, -1]], ends, rtol=0, atol=1e-9)
    assert bool((lam.diff() > 0).all())
    (slope,) = torch.autograd.grad(lam[1:-1].sum(), share)
    torch.testing.assert_close(slope[1:-1], rate[1:-1], rtol=1e-6, atol=1e-9)
    place = ((lam - lo) / span * (len(heights) - 1)).detach().clamp(0, len(heights) - 1)
    between = torch.from_numpy(np.interp(place, np.arange(len(heights)), heights))
    torch.testing.assert_close(between * rate, (between * rate)[:1].expand(501), rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("beside", [False, True])
def test_stated_errors_cover_the_truth(beside: bool) -> None:
    for model in (mixture(VP()), of_digits(RectifiedFlow())):
        x = model.sample(100, seeded(0))
        data = Gaussian.fit(VP(), model.sample(1500, seeded(1))) if beside else None
        law = LogSNRLaw.adapted(model, model.sample(60, seeded(2)), data=data)
        bounds = [elbo(model, x, Draws(256, seed), law, data=data) for seed in range(10)]
        z = torch.stack([(bound.log_prob - model.log_prob(x)) / bound.stderr for bound in bounds])
        assert 0.90 < float((z.abs() < 1.96).double().mean()) < 0.97
        assert abs(float(z.mean())) < 0.15


# A chain of steps -----------------------------------------------------------------------------------------------------


class Spoken(FixedVariance):
    """A model whose variance depends on the state."""

    def __call__(self, x: Tensor, t: Tensor) -> WithVariance:
        now = self.model(x, t)
        return WithVariance(**{f.name: getattr(now, f.name) for f in fields(Prediction)}, place=torch.tanh(x))


def chain(model: Model, x: float, times: Tensor) -> list[Tensor]:
    """Return the terms of the bound in one dimension by quadrature, with torch's own Gaussians."""
    Normal, kl = torch.distributions.Normal, torch.distributions.kl_divergence
    nodes, weights = HERMITE[0][:, None], HERMITE[1] / HERMITE[1].sum()
    process, x0 = model.process, torch.full_like(nodes, x)

    def of(t: Tensor) -> tuple[Tensor, Tensor]:
        return process.alpha(t), process.sigma(t)

    def place(now: Prediction, default: float) -> Tensor:
        return now.place if isinstance(now, WithVariance) else torch.full_like(now.x, default)

    alpha, sigma = of(times[0])
    terms = [kl(Normal(alpha * x, sigma), Normal(torch.zeros_like(sigma), sigma))]
    for t, s in itertools.pairwise(times):
        (alpha, sigma), (alpha_s, sigma_s) = of(t), of(s)
        state = alpha * x + sigma * nodes
        now = model(state, t)
        a = alpha / alpha_s
        beta = sigma**2 - a**2 * sigma_s**2  # DDPM's, as a variance of the step forward
        beta_tilde = beta * sigma_s**2 / sigma**2

        def mean(x0: Tensor, state: Tensor = state, a: Tensor = a, beta: Tensor = beta) -> Tensor:
            return a * sigma_s**2 / sigma**2 * state + alpha_s * beta / sigma**2 * x0  # noqa: B023

        v = place(now, -1.0)
        variance = torch.exp((1 + v) / 2 * beta.log() + (1 - v) / 2 * beta_tilde.log())
        p, q = Normal(mean(now.x0), variance.sqrt()), Normal(mean(x0), beta_tilde.sqrt())
        terms.append((weights * kl(q, p)[:, 0]).sum())
    alpha, sigma = of(times[-1])
    now = model(alpha * x + sigma * nodes, times[-1])
    shrunk = (beta_tilde / (alpha**2 * sigma**2 / alpha**2)).sqrt()  # beta~ of the last step over sigma^2
    std = sigma / alpha * shrunk ** ((1 - place(now, 1.0)) / 2)
    return [*terms, -(weights * Normal(now.x0, std).log_prob(x0)[:, 0]).sum()]


GRIDS: list[tuple[Process, Grid]] = [
    (VP(), LogSNR(7)),
    (RectifiedFlow(t_max=1.0), Quadratic(9)),
    (VE(), LogSNR(6)),
    (SubVP(), Times((0.9, 0.5, 0.2, 0.05))),
    (Discrete.linear(40, 1e-3, 0.2), Leading(40)),
]


@pytest.mark.parametrize(("process", "grid"), GRIDS, ids=str)
@pytest.mark.parametrize("around", [lambda m: m, FixedVariance, lambda m: FixedVariance(m, -0.4), Spoken])
def test_every_term_of_a_chain(process: Process, grid: Grid, around: Callable[[Model], Model]) -> None:
    plain = Gaussian(process, torch.tensor([0.3], dtype=torch.float64), 0.6)
    model = around(plain)
    bound = discrete_bound(model, torch.full((4000, 1), 0.8, dtype=torch.float64), grid, data=plain)
    expected = torch.stack(chain(model, 0.8, bound.times))
    assert bound.terms.shape == (len(bound.times) + 1, 4000)
    if isinstance(model, Spoken):
        error = bound.stderr.square().mean().sqrt() / 4000**0.5
        assert float((-bound.log_prob.mean() - expected.sum()).abs()) < 4 * float(error)
    else:
        torch.testing.assert_close(bound.terms, expected[:, None].expand_as(bound.terms), rtol=1e-8, atol=1e-8)
        assert float(bound.stderr.max()) < 1e-9


def test_chains_grow_towards_continuous_time() -> None:
    model = gaussian(VP())
    x = model.sample(40, seeded(0))
    limit = elbo(model, x, Draws(6), data=model)
    chains = [discrete_bound(model, x, LogSNR(n), data=model) for n in (4, 8, 16, 32, 64, 128, 256)]
    gaps = [float((limit.log_prob - chain.log_prob).mean()) for chain in chains]
    assert all(fine < coarse for coarse, fine in itertools.pairwise(gaps))
    assert gaps[-1] == pytest.approx(gaps[-2] / 2, rel=0.05)  # first order
    torch.testing.assert_close(chains[-1].terms[0], limit.prior)
    torch.testing.assert_close(chains[-1].terms[-1], -limit.reconstruction)


def test_of_white_data_ddpm_s_larger_variance_is_exact() -> None:
    model = Gaussian(Discrete.linear(100, 1e-3, 0.2), torch.zeros(3, dtype=torch.float64), 1.0)
    x = model.sample(10, seeded(0))
    bound = discrete_bound(FixedVariance(model), x, Leading(100), data=model)
    torch.testing.assert_close(bound.log_prob, model.log_prob(x), rtol=0, atol=1e-4)
    smaller = discrete_bound(model, x, Leading(100), data=model)
    assert float((model.log_prob(x) - smaller.log_prob).min()) > 1


def test_a_chain_of_a_mixture_is_below_and_says_by_how_much_it_may_err() -> None:
    model = mixture(VP())
    x = model.sample(200, seeded(0))
    bounds = [discrete_bound(model, x, LogSNR(40), Draws(4, seed)) for seed in range(2)]
    mean, error = mean_and_error(bounds[0].log_prob - model.log_prob(x))
    assert mean < -4 * error
    z = (bounds[0].log_prob - bounds[1].log_prob) / torch.hypot(bounds[0].stderr, bounds[1].stderr)
    assert 0.7 < float(z.square().mean()) < 1.6
    assert bool(discrete_bound(model, x[:2], LogSNR(3), Draws(1)).stderr.isnan().all())


# The decoder ----------------------------------------------------------------------------------------------------------


@given(
    st.integers(2, 300), st.floats(-5, 5), st.floats(0.1, 10), st.floats(-20, 20), st.floats(-4, 2), st.integers(1, 4)
)
def test_the_masses_of_all_levels_sum_to_one(
    count: int, low: float, extent: float, mean: float, log_std: float, dims: int
) -> None:
    levels = Dequantization(count, low, low + extent)
    x = (low + levels.width * torch.arange(count, dtype=torch.float64))[:, None].expand(-1, dims)
    std = torch.tensor(10**log_std, dtype=torch.float64)
    masses = log_mass(levels, x, torch.tensor(mean), std)
    assert masses.shape == x.shape
    assert not bool(masses.isnan().any())
    torch.testing.assert_close(masses.exp().sum(0), torch.ones(dims, dtype=torch.float64), rtol=0, atol=1e-12)


@settings(max_examples=100)
@given(st.integers(0, 255), st.floats(-3, 3), st.floats(-2.5, 1))
def test_a_mass_keeps_its_digits_far_out(k: int, mean: float, log_std: float) -> None:
    levels, std = Dequantization(256), 10**log_std
    x = torch.tensor([[-1 + k * levels.width]], dtype=torch.float64)
    got = float(log_mass(levels, x, torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)))
    with mpmath.workdps(60):
        # float64's own bin, so that the comparison is of the function and not of the rounding of its arguments
        centre, half = mpmath.mpf((float(x) - mean) / std), mpmath.mpf(levels.width / 2 / std)
        upper = mpmath.inf if k == 255 else centre + half
        lower = -mpmath.inf if k == 0 else centre - half
        sign = -1 if centre > 0 else 1
        a, b = sorted((sign * lower, sign * upper))
        mass = (mpmath.erfc(-b / mpmath.sqrt(2)) - mpmath.erfc(-a / mpmath.sqrt(2))) / 2
        if mass <= 0:
            return
        expected = float(mpmath.log(mass))
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_narrow_bins_make_a_density() -> None:
    levels = Dequantization(2**20 + 1)
    x = levels.round(torch.linspace(-0.9, 0.9, 10, dtype=torch.float64))[None]
    mean, std = torch.full_like(x, 0.1), torch.tensor(0.3, dtype=torch.float64)
    mass = log_decoder(x, mean, std, levels) - 10 * math.log(levels.width)
    torch.testing.assert_close(mass, log_decoder(x, mean, std), rtol=0, atol=1e-8)


@pytest.mark.parametrize("process", [VP(), EDM()], ids=name)
def test_probabilities_of_levels_are_bounded_and_nearly_met(process: Process) -> None:
    levels = Dequantization(5)
    at = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    weights = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.25], dtype=torch.float64)
    model = GaussianMixture(process, at, 1e-4, weights)
    beside = Gaussian(process, torch.zeros(1), 0.7)
    bound = elbo(model, at.repeat(100, 1), Draws(40), levels=levels, data=beside)
    gap = bound.log_prob.reshape(100, 5) - weights.log()
    assert bool((gap.mean(0).abs() < 4 * gap.std(0) / 10 + 3e-3).all())
    torch.testing.assert_close(bound.bits_per_dim, -bound.log_prob / math.log(2))
    rough = discrete_bound(model, at, LogSNR(20), Draws(20), levels)
    assert bool((rough.log_prob < weights.log() + 4 * rough.stderr).all())
    torch.testing.assert_close(rough.bits_per_dim, -rough.log_prob / math.log(2))


# The cut at t_min -----------------------------------------------------------------------------------------------------


def noisy(model: Oracle) -> Callable[[Tensor], Tensor]:
    """Return the density of the model's data with the noise of t_min on them."""
    process, dims = model.process, model.shape.numel()
    alpha = process.alpha(process.t_min)
    return lambda y: model.log_prob(alpha * y, process.t_min) + dims * alpha.log()


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_a_denoising_bound_undoes_the_cut(process: Process) -> None:
    model = mixture(process)
    x = model.sample(100, seeded(0))
    bound = denoising_bound(model, x, noisy(model), Draws(32))
    mean, error = mean_and_error(bound.log_prob - model.log_prob(x))
    assert mean < 4 * error
    assert abs(mean) < 4 * error + 1e-3
    assert bool((bound.tightened >= bound.log_prob).all())
    cut = (model.log_prob(process.alpha(process.t_min) * x, process.t_min) - model.log_prob(x)).abs().mean()
    assert float((bound.log_prob - model.log_prob(x)).abs().mean()) < max(0.25 * float(cut), 2e-3)


def test_a_denoising_bound_of_the_flow_s_likelihood() -> None:
    model = mixture(VP(t_min=0.01))
    x, network = model.sample(6, seeded(0)), Off(model, 0, 0)  # which hides its density, so that the flow ends at t_min
    bound = denoising_bound(network, x, lambda y: log_likelihood(network, y).log_prob, Draws(8))
    exact = denoising_bound(model, x, noisy(model), Draws(8))
    torch.testing.assert_close(bound.log_prob, exact.log_prob, rtol=0, atol=1e-2)
    assert bound.nfe == 8


def test_a_denoising_bound_of_levels_is_a_probability() -> None:
    levels = Dequantization(33)
    x = torch.linspace(-1, 1, 33, dtype=torch.float64)[:, None]
    model = line(RectifiedFlow(t_min=0.05))
    bound = denoising_bound(model, x, noisy(model), Draws(200), levels)
    assert 0.85 < float(bound.log_prob.exp().sum()) <= 1.0


# A sample by itself, and what is told ---------------------------------------------------------------------------------


BOUNDS: list[Callable[[Model, Tensor, Draws], Bound | DiscreteBound]] = [
    elbo,
    lambda model, x, draws: discrete_bound(model, x, LogSNR(5), draws),
]


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_sample_is_the_same_alone_and_in_a_batch(bound: Callable[..., Bound | DiscreteBound]) -> None:
    model = mixture(RectifiedFlow())
    x = model.sample(6, seeded(0))
    whole, part = bound(model, x, Draws(8, seed=3)), bound(model, x[4:5], Draws(8, seed=3, first=4))
    torch.testing.assert_close(part.log_prob, whole.log_prob[4:5], rtol=0, atol=1e-10)
    torch.testing.assert_close(part.stderr, whole.stderr[4:5], rtol=0, atol=1e-10)
    other = bound(model, x, Draws(8, seed=4))
    assert not torch.equal(other.log_prob, whole.log_prob)
    assert torch.equal(bound(model, x, Draws(8, seed=3)).log_prob, whole.log_prob)


def test_parts_add_up_and_calls_are_counted() -> None:
    model = mixture(VP())
    model.calls = 2
    x = model.sample(3, seeded(0))
    bound = elbo(model, x, Draws(64))
    assert torch.equal(bound.log_prob, bound.reconstruction - bound.prior - bound.diffusion)
    assert bound.nfe == 2 * (64 + 8)
    chain = discrete_bound(model, x, LogSNR(5), Draws(3))
    assert torch.equal(chain.log_prob, -chain.terms.sum(0))
    assert chain.nfe == 2 * 3 * 6
    assert bound.dims == chain.dims == 2


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_float32_is_as_good_as_its_digits(process: Process) -> None:
    model = mixture(process)
    x = model.sample(20, seeded(0)).float()
    single, double = elbo(model, x), elbo(model, x.double())
    assert single.log_prob.dtype == torch.float64
    torch.testing.assert_close(single.log_prob, double.log_prob, rtol=0, atol=1e-3)
    chains = [discrete_bound(model, each, LogSNR(10)).log_prob for each in (x, x.double())]
    torch.testing.assert_close(*chains, rtol=1e-4, atol=1e-3)


def test_gradients_flow_where_they_are_asked_for() -> None:
    model = gaussian(VP())
    x = model.sample(3, seeded(0)).requires_grad_()
    (slope,) = torch.autograd.grad(elbo(model, x, Draws(8), data=model).log_prob.sum(), x)
    (score,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    torch.testing.assert_close(slope, score, rtol=1e-2, atol=1e-2)
    with torch.no_grad():
        assert not elbo(model, x, Draws(8)).log_prob.requires_grad


class Broken(Off):
    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        now = super().__call__(x, t)
        now.answer[1] = torch.nan
        return now


def test_errors_are_named() -> None:
    model = mixture(VP())
    x = model.sample(3, seeded(0))
    with pytest.raises(ValueError, match="pairs, at least 3"):
        elbo(model, x, Draws(7))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        Draws(0)
    with pytest.raises(ValueError, match="finite at both ends"):
        elbo(mixture(RectifiedFlow(t_min=0.0)), x)
    with pytest.raises(ValueError, match=r"samples \[1\] \(1 in all\) are not"):
        elbo(model, torch.tensor([[0.0, 0.0], [math.inf, 0.0]]))
    with pytest.raises(ValueError, match="floating-point data"):
        discrete_bound(model, torch.zeros(2, 2, dtype=torch.long), LogSNR(4))
    with pytest.raises(FloatingPointError, match=r"answer must be finite; at t=.*samples \[1\]"):
        elbo(Broken(model, 0, 0), x)
    with pytest.raises(ValueError, match="levels"):
        elbo(model, x, levels=Dequantization(17))
    with pytest.raises(ValueError, match="two times or more"):
        discrete_bound(model, x, Times((1.0, 0.0)))
    with pytest.raises(ValueError, match="needs noise at its end"):
        denoising_bound(mixture(RectifiedFlow(t_min=0.0)), x, lambda z: z[:, 0])
    with pytest.raises(ValueError, match=r"density must return shape \(3,\)"):
        denoising_bound(model, x, lambda z: z)
    with pytest.raises(ValueError, match="heights must be at least 2 positive"):
        LogSNRLaw((1.0, 0.0))
    with pytest.raises(ValueError, match="antithetic pairs, so count must be even; got 3"):
        LogSNRLaw.adapted(model, x, Draws(3))
