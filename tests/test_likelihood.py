"""Log-likelihoods: what log_prob is on every process, for every shape and batch; gradients, calls, errors."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import pytest
import torch
from exact import name
from strategies import normal
from torch import Tensor, nn

from benchmarks.problems import grid25
from sdekit import (
    EDM,
    RK4,
    VE,
    VP,
    Cosine,
    Denoised,
    Denoiser,
    Discrete,
    Eps,
    Euler,
    EulerMaruyama,
    FromDrift,
    Heun,
    LogSNR,
    Model,
    Preconditioned,
    Prediction,
    Process,
    Quadratic,
    RectifiedFlow,
    SubVP,
    Times,
    Uniform,
    V,
    Velocity,
)
from sdekit._value import Value
from sdekit.likelihood import (
    AdaptiveHeun,
    Bosh3,
    Dopri5,
    Dopri8,
    Exact,
    FixedGrid,
    Hadamard,
    Hutchinson,
    HutchPP,
    Integrator,
    Likelihood,
    Normals,
    Sphere,
    Trace,
    UnreachedError,
    log_likelihood,
    log_likelihood_within,
)
from sdekit.oracle import Empirical, Full, Gaussian, GaussianMixture, Oracle
from sdekit.prediction import Target

PROCESSES = [VP(), VE(), SubVP(), RectifiedFlow(), Cosine(), EDM(), Discrete.linear()]
WHOLE = RectifiedFlow(t_min=0.0, t_max=1.0)
TRACES = [Exact(), Hutchinson(), Hutchinson(2, Sphere(), seed=7), Hadamard(2), HutchPP(3), HutchPP(6)]
FEW = FixedGrid(grid=Quadratic(12))


by_process = pytest.mark.parametrize("process", [*PROCESSES, WHOLE], ids=str)
by_shape = pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4), (2, 1, 2, 2)], ids=str)


def mixture(process: Process) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.4], [0.9, 0.8], [0.1, -1.1]], dtype=torch.float64)
    covariance = torch.tensor([[0.14, 0.04], [0.04, 0.10]], dtype=torch.float64)
    return GaussianMixture(process, means, Full(covariance), torch.tensor([0.5, 0.3, 0.2]))


def draws(model: Oracle, n: int) -> Tensor:
    return model.sample(n, torch.Generator().manual_seed(1))


class Blind(nn.Module):
    """A model that hides what it knows of its density, as a network does."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.process = model, model.process

    def forward(self, x: Tensor, t: Tensor) -> Prediction:
        return self.model(x, t)


class Net(nn.Module):
    """A small network for any shape, its weights from a seed; it counts its calls."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        super().__init__()
        d = math.prod(shape)
        self.a = nn.Parameter((normal(16, d + 1, seed=3) / d**0.5).to(dtype))
        self.b = nn.Parameter((normal(d, 16, seed=4) / 4).to(dtype))
        self.calls_seen = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls_seen += 1
        h = torch.cat([x.reshape(len(x), -1), t[:, None]], 1)
        return ((h @ self.a.T).tanh() @ self.b.T).reshape(x.shape)


def network(
    *shape: int, dtype: torch.dtype = torch.float64, process: Process = WHOLE, predicts: Target = Velocity()
) -> Denoiser:
    model = Denoiser(Net(shape, dtype), process, predicts=predicts)
    model.shape = shape
    return model


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=tolerance)


# What log_prob is -------------------------------------------------------------------------------------------


@by_process
@pytest.mark.parametrize("integrator", [FixedGrid(), Dopri5()], ids=name)
def test_an_exact_models_log_prob_is_the_laws_density(process: Process, integrator: Integrator) -> None:
    model = mixture(process)
    x = draws(model, 24)
    result = log_likelihood(model, x, integrator)
    errors = (result.log_prob - model.log_prob(x)).abs()
    assert float(errors.max()) < 1e-4
    if isinstance(integrator, FixedGrid):
        assert bool((errors <= 3 * result.integration_error + 1e-6).all())  # 1e-6: the ends of the path
    else:
        assert bool(result.integration_error.isnan().all())
    close(result.log_prob, result.log_prior + result.log_det, 1e-12)
    assert torch.equal(result.stderr, torch.zeros(24, dtype=torch.float64))
    assert float(result.prior_share.abs().max()) < 1e-5
    assert float(result.cut_share.abs().max()) < 1e-8


def test_a_process_given_by_its_drift() -> None:
    model = mixture(FromDrift(rate=lambda t: -0.5 * torch.ones_like(t), noise=torch.ones_like, t_max=8.0))
    x = draws(model, 8)
    close(log_likelihood(model, x).log_prob, model.log_prob(x), 1e-4)


def test_every_process_gives_and_costs_the_same() -> None:
    results = [log_likelihood(mixture(p), draws(mixture(VP()), 8)) for p in PROCESSES]
    for result in results[1:]:
        close(result.log_prob, results[0].log_prob, 1e-9)
    assert {result.nfe for result in results} == {65}


@by_process
def test_a_blind_models_log_prob_is_the_density_with_the_noise_of_t_min(process: Process) -> None:
    model = mixture(process)
    x = draws(model, 24)
    result = log_likelihood(Blind(model), x)
    alpha = process.alpha(process.t_min)
    prior_share = model.log_prob(result.latent, process.t_max) - result.log_prior
    noisy = model.log_prob(alpha * x, process.t_min) + 2 * alpha.log()
    errors = (result.log_prob + prior_share - noisy).abs()
    assert float(errors.max()) < 1e-4
    assert bool((errors <= 3 * result.integration_error + 1e-6).all())


@by_process
def test_the_cut_share_leads_from_noisy_data_to_data(process: Process) -> None:
    model = mixture(process)
    x = draws(model, 24)
    result = log_likelihood(Blind(model), x, FixedGrid(grid=Quadratic(160)))
    prior_share = model.log_prob(result.latent, process.t_max) - result.log_prior
    close(result.log_prob + prior_share + result.cut_share, model.log_prob(x), 1e-5)
    level = process.sigma(process.t_min) / process.alpha(process.t_min)
    if float(level) > 5e-3:
        assert float(result.cut_share.abs().max()) > 1e-3
    if float(level) == 0:
        assert torch.equal(result.cut_share, torch.zeros(24, dtype=torch.float64))


@pytest.mark.parametrize("process", [VP(t_max=0.5), VE(sigma_max=3.0), RectifiedFlow(t_max=0.9)], ids=name)
def test_corrected_is_the_density_of_gaussian_data_whatever_the_ends(process: Process) -> None:
    mean = torch.tensor([0.7, -0.3], dtype=torch.float64)
    points = mean + 0.6 * normal(500, 2, seed=8)
    model = Gaussian(process, points.mean(0), Full(points.T.cov(correction=0)))
    x = draws(model, 6)
    for data in (points, model):
        result = log_likelihood(Blind(model), x, data=data)
        assert float(result.prior_share.abs().max()) > 1e-2
        close(result.corrected, model.log_prob(x), 1e-4)
        close(result.corrected, result.log_prob + result.prior_share + result.cut_share, 1e-12)


def test_prior_share_is_estimated_from_moments() -> None:
    model = mixture(VE(sigma_max=5.0))  # a prior that is visibly wrong
    x = draws(model, 8)
    estimate = log_likelihood(Blind(model), x, data=draws(model, 4000))
    exact = model.log_prob(estimate.latent, model.process.t_max) - estimate.log_prior
    assert float(exact.abs().mean()) > 0.01
    assert float((estimate.prior_share - exact).abs().max()) < 0.2 * float(exact.abs().mean())


def test_prior_share_with_few_data_is_finite_and_with_one_point_unknown() -> None:
    model = Gaussian(VP(t_max=0.5), torch.zeros(6, dtype=torch.float64), 0.5)
    x = draws(model, 6)
    assert bool(log_likelihood(Blind(model), x, FEW).prior_share.isfinite().all())
    for few in (log_likelihood(Blind(model), x[:1], FEW), log_likelihood(Blind(model), x, FEW, data=x[:1])):
        assert bool(few.prior_share.isnan().all())
        assert bool(few.log_prob.isfinite().all())


def test_equal_samples_have_a_likelihood_but_no_moments() -> None:
    model, x = Gaussian(VP(), torch.zeros(2, dtype=torch.float64), 1.0), torch.zeros(5, 2, dtype=torch.float64)
    result, known = log_likelihood(Blind(model), x), log_likelihood(Blind(model), x, data=normal(50, 2))
    close(result.log_prob, result.log_prob[:1].expand(5), 1e-10)
    close(result.log_prob, model.log_prob(x), 1e-4)
    assert bool(result.prior_share.isnan().all())
    assert bool(known.prior_share.isfinite().all())


def test_latent_is_the_end_of_the_flow() -> None:
    mean, variance, process = normal(2, seed=6), 0.3, VE()
    x = draws(Gaussian(process, mean, variance**0.5), 5)
    s2 = torch.stack([variance + process.sigma(t) ** 2 for t in (process.t_min, process.t_max)])
    result = log_likelihood(Blind(Gaussian(process, mean, variance**0.5)), x)
    torch.testing.assert_close(result.latent, mean + (x - mean) * (s2[1] / s2[0]).sqrt(), rtol=1e-4, atol=1e-4)
    close(result.log_det, (s2[1] / s2[0]).log().expand(5), 1e-4)


@pytest.mark.parametrize("process", [VP(), EDM(), WHOLE], ids=name)
@pytest.mark.parametrize("hide", [lambda model: model, Blind], ids=["oracle", "blind"])
def test_a_mixtures_density_in_one_dimension_integrates_to_one(process: Process, hide: type) -> None:
    model = GaussianMixture(process, torch.tensor([[-1.0], [0.6]], dtype=torch.float64), 0.25)
    x = torch.linspace(-4, 4, 801, dtype=torch.float64)
    result = log_likelihood(hide(model), x[:, None])
    assert float(torch.trapezoid(result.log_prob.exp(), x)) == pytest.approx(1, abs=1e-4)


NETWORKS = [(WHOLE, Velocity()), (RectifiedFlow(), Velocity()), (VP(), V()), (EDM(), Preconditioned())]


@pytest.mark.parametrize(("process", "predicts"), NETWORKS, ids=str)
@pytest.mark.parametrize("integrator", [FixedGrid(), Dopri5()], ids=name)
def test_a_networks_density_in_one_dimension_integrates_to_one(
    process: Process, predicts: Target, integrator: Integrator
) -> None:
    x = torch.linspace(-9, 9, 1201, dtype=torch.float64)
    log_prob = log_likelihood(network(1, process=process, predicts=predicts), x[:, None], integrator).log_prob
    density = torch.distributions.Normal(0.0, 1.0).log_prob(x).exp()
    assert float((log_prob.exp() - density).abs().max()) > 0.05  # the network does something
    assert float(torch.trapezoid(log_prob.exp(), x)) == pytest.approx(1, abs=2e-4)


@pytest.mark.parametrize(("shape", "scale"), [((1,), 1.0), ((1,), 2.0), ((1, 4, 4), 2.0)], ids=str)
@pytest.mark.parametrize(("process", "predicts"), NETWORKS, ids=str)
def test_the_estimate_covers_the_error_of_a_network(
    process: Process, predicts: Target, shape: tuple[int, ...], scale: float
) -> None:
    model = network(*shape, process=process, predicts=predicts)
    x = torch.linspace(-2, 2, 61, dtype=torch.float64)[:, None] if shape == (1,) else normal(40, *shape)
    with torch.no_grad():
        model.net.a *= scale
        truth = log_likelihood(model, x, Dopri8(1e-8, 1e-8)).log_prob
        means = []
        for count in (64, 128):
            result = log_likelihood(model, x, FixedGrid(grid=Quadratic(count)))
            errors = (result.log_prob - truth).abs()
            assert float((errors <= 3 * result.integration_error).double().mean()) >= 0.9
            means.append(float(errors.mean()))
    assert means[1] < 2e-3
    assert means[1] < means[0] / 2


@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize("count", [32, 64, 128])
def test_the_estimate_covers_the_error_of_a_blind_model(process: Process, count: int) -> None:
    """Its states are off by the third order of the steps, which no score makes good."""
    model = mixture(process)
    x = draws(model, 100)
    result, alpha = log_likelihood(Blind(model), x, FixedGrid(grid=Quadratic(count))), process.alpha(process.t_min)
    prior_share = model.log_prob(result.latent, process.t_max) - result.log_prior
    noisy = model.log_prob(alpha * x, process.t_min) + 2 * alpha.log()
    errors = (result.log_prob + prior_share - noisy).abs()
    assert float((errors <= 3 * result.integration_error + 1e-9).double().mean()) >= 0.97
    assert float(errors.mean()) < 2e-3 * (32 / count) ** 3
    assert float(result.integration_error.mean()) < 30 * float(errors.mean())


def test_the_error_without_an_exact_trace_covers_it_too() -> None:
    """Columns that are all gone through at each node leave no random error, but what the quadrature is off by."""
    model = mixture(VP())
    x = draws(model, 100)
    truth = log_likelihood(Blind(model), x, Dopri8(1e-8, 1e-8)).log_prob
    for count in (16, 24, 48):
        result = log_likelihood(Blind(model), x, FixedGrid(grid=Quadratic(count)), Hadamard(2), data=draws(model, 500))
        errors = (result.log_prob - truth).abs()
        assert float((errors <= 3 * result.error).double().mean()) >= 0.97


# Shapes, types and batches ----------------------------------------------------------------------------------


@by_shape
@pytest.mark.parametrize("hide", [lambda model: model, Blind], ids=["oracle", "blind"])
def test_data_of_any_rank(shape: tuple[int, ...], hide: type) -> None:
    model = GaussianMixture(Cosine(), 0.5 * normal(3, *shape, seed=5), 0.4)
    x = draws(model, 6)
    result = log_likelihood(hide(model), x)
    of_latent = model.log_prob(result.latent, model.process.t_max) - result.log_prior
    prior_share = of_latent if hide is Blind else result.prior_share
    close(result.log_prob + prior_share + result.cut_share, model.log_prob(x), 1e-4)
    assert result.latent.shape == x.shape
    for value in (result.stderr, result.integration_error, result.prior_share, result.cut_share):
        assert value.shape == (6,)
        assert value.dtype == torch.float64


@pytest.mark.parametrize("trace", TRACES[1:], ids=str)
def test_random_traces_of_data_of_no_dimension_are_exact(trace: Trace) -> None:
    """Signs and spheres have the square one, and Hutch++ has all of the space."""
    model = GaussianMixture(Cosine(), 0.5 * normal(3, seed=5), 0.4)
    result = log_likelihood(model, draws(model, 6), trace=trace)
    close(result.log_prob, model.log_prob(draws(model, 6)), 1e-3)


@pytest.mark.parametrize("hide", [lambda model: model, Blind], ids=["oracle", "blind"])
@pytest.mark.parametrize("trace", [Exact(), Hadamard(4)], ids=name)
def test_float32_is_as_good_as_its_digits(hide: type, trace: Trace) -> None:
    means = 0.5 * normal(3, 64, seed=9)
    wide, narrow = (hide(GaussianMixture(VP(), m, 0.4)) for m in (means, means.float()))
    x = draws(GaussianMixture(VP(), means, 0.4), 8).float()
    single = log_likelihood(narrow, x, trace=trace, data=means)
    double = log_likelihood(wide, x.double(), trace=trace, data=means)
    close(single.log_prob, double.log_prob, 1e-3)
    assert single.latent.dtype == torch.float32
    assert double.latent.dtype == torch.float64
    assert single.log_prob.dtype == single.integration_error.dtype == torch.float64


@pytest.mark.parametrize("trace", TRACES, ids=str)
@pytest.mark.parametrize("model", [mixture(VP()), network(2, 3), network(4, 4)], ids=["oracle", "network", "wide"])
def test_a_sample_is_the_same_in_any_batch(trace: Trace, model: Model) -> None:
    x = draws(model, 7) if isinstance(model, Oracle) else normal(7, *model.shape)
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    whole = log_likelihood(model, x, FEW, trace)
    for other, index in (
        (log_likelihood(model, x, FEW, trace, batch=3), torch.arange(7)),
        (log_likelihood(model, x[order], FEW, trace), order),
        (log_likelihood(model, x[4:5], FEW, trace), torch.tensor([4])),
    ):
        for field in ("log_prob", "stderr", "integration_error", "latent"):
            close(getattr(other, field), getattr(whole, field)[index], 1e-10)
    assert trace.random(x[0].numel()) or float(whole.stderr.max()) == 0


def test_the_moments_of_a_split_batch_are_those_of_the_whole() -> None:
    model, x = network(2), normal(6, 2)
    whole, split = log_likelihood(model, x, FEW), log_likelihood(model, x, FEW, batch=4)
    close(split.prior_share, whole.prior_share, 1e-10)
    assert split.nfe == whole.nfe == 13


def test_adaptive_steps_make_a_sample_depend_on_its_batch_only_within_the_tolerance() -> None:
    model = mixture(RectifiedFlow())
    x = draws(model, 32)
    whole, part = (log_likelihood(model, part, Dopri5(), Hutchinson(2)).log_prob for part in (x, x[:2]))
    close(part, whole[:2], 1e-4)


@pytest.mark.parametrize("trace", [Hutchinson, Hadamard, HutchPP], ids=lambda t: t.__name__)
def test_the_same_seed_gives_the_same_and_another_seed_another(trace: type) -> None:
    model, x = network(1, 4, 4), normal(3, 1, 4, 4)
    one, again, other = (log_likelihood(model, x, FEW, trace(3, seed=s)) for s in (1, 1, 2))
    assert torch.equal(one.log_prob, again.log_prob)
    assert torch.equal(one.stderr, again.stderr)
    assert bool((one.log_prob != other.log_prob).all())


def test_device(device: torch.device) -> None:
    model, x = mixture(VP()).to(device), draws(mixture(VP()), 3).to(device)
    for integrator in (FEW, Dopri5(1e-3, 1e-3)):
        for trace in TRACES:
            result = log_likelihood(model, x, integrator, trace)
            assert result.log_prob.device.type == result.prior_share.device.type == device.type


# Calls and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [Exact(chunk=2), Hutchinson(3), HutchPP(6)], ids=name)
@pytest.mark.parametrize(
    ("integrator", "calls"),
    [
        (FEW, 13),
        (FixedGrid(Euler(), Uniform(5)), 6),
        (FixedGrid(RK4(), Quadratic(5)), 20),
        (FixedGrid(Heun(), Denoised(LogSNR(5))), 8),
        (Dopri5(1e-3, 1e-3), None),
    ],
    ids=str,
)
def test_nfe_counts_the_calls_of_the_network(integrator: Integrator, calls: int | None, trace: Trace) -> None:
    model = network(2, 2, process=RectifiedFlow())
    result = log_likelihood(model, normal(3, 2, 2), integrator, trace)
    assert result.nfe == model.net.calls_seen == (calls or result.nfe)


@pytest.mark.parametrize("integrator", [FEW, Dopri5(1e-3, 1e-3)], ids=name)
def test_nfe_counts_a_model_that_calls_twice(integrator: Integrator) -> None:
    model, x = mixture(VP()), draws(mixture(VP()), 2)
    once = log_likelihood(model, x, integrator).nfe
    model.calls = 2
    assert log_likelihood(model, x, integrator).nfe == 2 * once


@pytest.mark.parametrize("integrator", [FixedGrid(), Dopri5()], ids=name)
@pytest.mark.parametrize("trace", [Exact(), Hadamard(2)], ids=name)
def test_the_gradient_is_the_score(integrator: Integrator, trace: Trace) -> None:
    model = mixture(VP())
    x = draws(model, 6).requires_grad_()
    (gradient,) = torch.autograd.grad(log_likelihood(model, x, integrator, trace).log_prob.sum(), x)
    (score,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    torch.testing.assert_close(gradient, score, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("trace", [t for t in TRACES if t != HutchPP(3)], ids=str)  # its basis is held fixed
@pytest.mark.parametrize("integrator", [FixedGrid(RK4(), Quadratic(6)), Dopri5(1e-4, 1e-4)], ids=name)
def test_the_gradient_reaches_the_parameters(integrator: Integrator, trace: Trace) -> None:
    model, step = network(2), 1e-5
    x = normal(3, 2).requires_grad_()
    log_likelihood(model, x, integrator, trace).log_prob.sum().backward()
    values = []
    with torch.no_grad():
        for sign in (1, -2):
            model.net.b[0, 0] += sign * step
            values.append(float(log_likelihood(model, x, integrator, trace).log_prob.sum()))
    assert float(model.net.b.grad[0, 0]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("integrator", [FEW, Dopri5(1e-2, 1e-2)], ids=name)
def test_nothing_is_recorded_unless_asked(integrator: Integrator) -> None:
    model, x = network(2), normal(3, 2)
    plain = log_likelihood(model, x, integrator)
    assert not plain.log_prob.requires_grad
    assert not plain.latent.requires_grad
    assert model.net.b.grad is None
    x.requires_grad_()
    with torch.no_grad():
        assert not log_likelihood(model, x, integrator).log_prob.requires_grad
    assert torch.is_grad_enabled()
    result = log_likelihood(model, x, integrator)
    assert result.log_prob.requires_grad
    assert not result.integration_error.requires_grad
    close(result.log_prob.detach(), plain.log_prob, 1e-12)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("trace", TRACES, ids=str)
def test_any_mode_gives_the_same(mode: type, trace: Trace) -> None:
    model = network(2)
    plain = log_likelihood(model, normal(3, 2), FEW, trace).log_prob
    with mode():
        inside = log_likelihood(model, normal(3, 2), FEW, trace).log_prob
    close(inside, plain, 1e-12)


# Adaptive steps ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("integrator", [Dopri8(1e-7, 1e-7), Bosh3(1e-6, 1e-6), AdaptiveHeun(1e-5, 1e-5)], ids=name)
def test_every_adaptive_method_agrees(integrator: Integrator) -> None:
    model = mixture(VP())
    x = draws(model, 8)
    close(log_likelihood(model, x, integrator).log_prob, model.log_prob(x), 2e-4)


def test_a_tighter_tolerance_is_more_exact() -> None:
    model = mixture(EDM())
    x = draws(model, 16)
    results = [log_likelihood(model, x, Dopri5(tol, tol)).corrected for tol in (1e-3, 1e-5, 1e-8)]
    errors = [float((result - model.log_prob(x)).abs().max()) for result in results]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-6


def test_adaptive_steps_that_underflow_are_reported() -> None:
    with pytest.raises(RuntimeError, match=r"Dopri5 must reach t_max .* underflow in dt.*Loosen rtol and atol"):
        log_likelihood(network(2, process=VP()), normal(3, 2), Dopri5(1e-40, 1e-40))


def test_an_adaptive_run_gives_up_in_time() -> None:
    model = network(2)
    with pytest.raises(RuntimeError, match=r"within max_nfe=20 network calls.* at t=0\.\d+, 20 network calls"):
        log_likelihood(model, normal(3, 2), Bosh3(1e-9, 1e-9, max_nfe=20))
    assert model.net.calls_seen == 20


# To an error that is asked for -----------------------------------------------------------------------------


def wide(d: int) -> GaussianMixture:
    factor = normal(d, d, seed=10) / d**0.5
    covariance = 0.2 * factor @ factor.T + 0.03 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(VP(), 0.6 * normal(4, d, seed=9), Full(covariance))


@pytest.mark.parametrize("nats", [0.1, 0.01, 1e-3])
@pytest.mark.parametrize("law", [mixture(EDM()), grid25(VP()), wide(16), wide(24)], ids=["2d", "25", "16d", "24d"])
def test_the_error_asked_for_is_reached(law: GaussianMixture, nats: float) -> None:
    x = draws(law, 40)
    result = log_likelihood_within(law, x, nats)
    errors = (result.corrected - law.log_prob(x)).abs()
    assert float(result.error.max()) <= nats
    assert float((errors <= 3 * nats).double().mean()) >= 0.97
    assert float((errors <= 3 * result.error).double().mean()) >= 0.9
    assert result.nfe <= 2000


@pytest.mark.parametrize("law", [grid25(VP()), wide(24)], ids=["25", "24d"])
@pytest.mark.parametrize("hide", [lambda model: model, Blind], ids=["oracle", "blind"])
def test_within_a_sample_does_not_depend_on_its_batch(law: GaussianMixture, hide: type) -> None:
    x, data, order = draws(law, 6), law.sample(100, torch.Generator().manual_seed(5)), torch.tensor([3, 0, 5, 1, 4, 2])
    model = hide(law)
    whole = log_likelihood_within(model, x, 0.03, data=data)
    others = [
        (log_likelihood_within(model, x[order], 0.03, data=data), order),
        (log_likelihood_within(model, x, 0.03, data=data, batch=4), torch.arange(6)),
        (
            Likelihood.joined([log_likelihood_within(model, x[k : k + 1], 0.03, data=data) for k in range(6)]),
            order.sort().values,
        ),
    ]
    for other, index in others:
        for field in ("log_prob", "stderr", "integration_error", "prior_share", "latent"):
            close(getattr(other, field), getattr(whole, field)[index], 1e-9)
        assert other.nfe == whole.nfe


def test_within_a_smaller_error_takes_more_calls() -> None:
    law = mixture(VP())
    nfe = [log_likelihood_within(law, draws(law, 30), nats).nfe for nats in (0.1, 1e-3, 1e-5)]
    assert nfe[0] == 33 < nfe[1] < nfe[2]


def test_a_budget_that_is_too_small_leaves_the_best() -> None:
    law = wide(16)
    x = draws(law, 12)
    message = r"down to 0\.001 nats within 100 network calls; samples \[\d+.*\] \(\d+ in all\) did not, the worst is at"
    with pytest.raises(UnreachedError, match=message) as caught:
        log_likelihood_within(law, x, 1e-3, calls=100)
    best, short = caught.value.best, caught.value.best.error > 1e-3
    assert best.nfe <= 100
    assert 0 < int(short.sum()) < 12
    assert f"samples {short.nonzero().flatten().tolist()[:8]} ({int(short.sum())} in all)" in str(caught.value)
    assert f"the worst is at {float(best.error.max()):.3g}" in str(caught.value)
    errors = (best.corrected - law.log_prob(x)).abs()
    assert bool((errors <= 3 * best.error).all())
    assert best.latent.shape == x.shape


def test_a_budget_holds_for_the_first_try_too() -> None:
    law = mixture(VP())
    with pytest.raises((UnreachedError, ValueError), match="calls"):
        log_likelihood_within(law, draws(law, 3), 1.0, calls=10)


def test_within_without_data_the_moments_are_those_of_all_samples() -> None:
    law = wide(16)
    x = draws(law, 12)
    usual = log_likelihood(Blind(law), x, FixedGrid(grid=Quadratic(160))).prior_share
    close(log_likelihood_within(Blind(law), x, 1e-3).prior_share, usual, 1e-3)


@pytest.mark.parametrize("nats", [0.0, -1.0, math.nan])
def test_an_error_asked_for_must_be_positive(nats: float) -> None:
    with pytest.raises(ValueError, match="nats must be positive and calls at least 33; got"):
        log_likelihood_within(mixture(VP()), torch.zeros(2, 2), nats)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(()), torch.zeros(0, 2)],
    ids=str,
)
def test_within_takes_a_batch(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x must be a batch \(B, ...\) of floating-point states, not empty; got"):
        log_likelihood_within(mixture(VP()), x)


# The result and stored values -------------------------------------------------------------------------------


def test_error_and_interval() -> None:
    model = mixture(VP())
    result = log_likelihood(model, draws(model, 5), FEW, Hutchinson(2))
    close(result.error, (result.stderr**2 + result.integration_error**2).sqrt(), 1e-12)
    low, high = result.interval()
    close((low + high) / 2, result.log_prob, 1e-12)
    close(high - low, 2 * 1.959964 * result.error, 1e-5)
    assert bool((result.interval(0.5)[1] < high).all())
    for level in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match="level must lie between 0 and 1; got"):
            result.interval(level)


def test_joined_keeps_one_part_and_puts_many_in_order() -> None:
    model, x = mixture(VP()), draws(mixture(VP()), 4)
    parts = [log_likelihood(model, part, FEW) for part in x.split(2)]
    assert Likelihood.joined(parts[:1]) is parts[0]
    close(Likelihood.joined(parts).log_prob, log_likelihood(model, x, FEW).log_prob, 1e-10)


def test_a_part_is_the_result_of_a_sample_alone() -> None:
    model, x = network(2, 3), normal(4, 2, 3)
    data = normal(50, 2, 3)
    whole = log_likelihood(model, x, FEW, Hadamard(2), data)
    assert len(dataclasses.fields(Likelihood)) == 8
    for k in range(4):
        part, alone = whole.part(k), log_likelihood(model, x[k : k + 1], FEW, Hadamard(2), data)
        for field in dataclasses.fields(Likelihood):
            close(*(torch.as_tensor(getattr(one, field.name), dtype=torch.float64) for one in (part, alone)), 1e-10)
    joined = Likelihood.joined([whole.part(k) for k in range(4)])
    assert torch.equal(joined.log_prob, whole.log_prob)
    assert torch.equal(joined.latent, whole.latent)
    assert joined.nfe == whole.nfe


@pytest.mark.parametrize(
    "value", [FixedGrid(Heun(), LogSNR(9)), Dopri5(1e-4), Hutchinson(3, Normals()), *TRACES, FixedGrid()], ids=str
)
def test_values_go_to_json_and_back(value: Value) -> None:
    assert Value.from_json(value.to_json()) == value


# Errors -----------------------------------------------------------------------------------------------------


@dataclass
class Broken:
    """A model whose answer for sample 1 is not finite after some time."""

    process: Process
    after: float

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        bad = torch.full_like(x, 1.0)
        bad[1] = torch.nan if float(t) > self.after else 1.0
        return Prediction(self.process, x, t, x * bad, Velocity())


@pytest.mark.parametrize(
    ("integrator", "where"),
    [(FixedGrid(Euler(), Uniform(4)), r"at t=0\.75 \(node 4\)"), (Dopri5(), r"at t=0\.[5-9]\d* \(node \d+\)")],
    ids=name,
)
def test_a_model_that_breaks_is_reported_where_it_does(integrator: Integrator, where: str) -> None:
    with pytest.raises(FloatingPointError, match=where + r", samples \[1\] \(1 in all\)"):
        log_likelihood(Broken(WHOLE, after=0.51), normal(3, 2), integrator)


def test_the_time_of_a_break_is_the_models_own() -> None:
    with pytest.raises(FloatingPointError, match=r"at t=20 "):
        log_likelihood(Broken(EDM(t_max=20.0), after=19.9), normal(3, 2))


def test_a_model_without_a_graph_is_reported() -> None:
    net = Net((2,), torch.float64)
    for trace in (Exact(), Hutchinson(), HutchPP()):
        model = Denoiser(lambda x, t: net(x, t).detach(), VP(), predicts=Eps())
        with pytest.raises(ValueError, match=r"must be differentiable in the state .* Take torch.no_grad"):
            log_likelihood(model, normal(3, 2), trace=trace)


def test_solvers_of_other_equations_are_refused() -> None:
    with pytest.raises(TypeError, match=r"go along the probability flow, which EulerMaruyama\(\) does not solve"):
        FixedGrid(EulerMaruyama())


@pytest.mark.parametrize("times", [(1.0, 0.5, 0.1), (0.5, 0.1, 0.0)], ids=str)
def test_a_grid_that_stops_short_is_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"must reach from noise to data, tau from 1 to 0; .* goes from .*Quadratic"):
        log_likelihood(network(2), normal(3, 2), FixedGrid(grid=Times(times)))


@pytest.mark.parametrize("x", [torch.zeros(()), torch.zeros(0, 2), torch.zeros(3, 2, dtype=torch.int64)], ids=str)
def test_states_must_be_a_batch(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"x must be a batch \(B, ...\) of floating-point states, not empty; got"):
        log_likelihood(mixture(VP()), x)


def test_states_must_be_finite() -> None:
    x = torch.tensor([[0.0, 1.0], [torch.inf, 0.0]])
    with pytest.raises(ValueError, match=r"x must be finite; samples \[1\] \(1 in all\) are not"):
        log_likelihood(mixture(VP()), x)


def test_points_without_a_width_have_no_density() -> None:
    model = Empirical(VP(), normal(10, 2))
    for run in (log_likelihood, log_likelihood_within):
        with pytest.raises(TypeError, match=r"Empirical has no likelihood; give its points a width"):
            run(model, normal(3, 2))


@pytest.mark.parametrize("batch", [0, -1, 2.0, True])
def test_batch_must_be_a_count(batch: int) -> None:
    with pytest.raises(ValueError, match="batch must be a whole number of at least 1; got"):
        log_likelihood(mixture(VP()), torch.zeros(2, 2), batch=batch)


@pytest.mark.parametrize("trace", [Exact(), Hutchinson()], ids=name)
@pytest.mark.parametrize("model", [network(2), mixture(VP())], ids=["network", "oracle"])
@pytest.mark.parametrize("data", [normal(9, 3), Gaussian(VP(), normal(3), 1.0)], ids=["draws", "moments"])
def test_data_must_have_the_shape_of_the_samples(trace: Trace, model: Model, data: Tensor | Gaussian) -> None:
    message = r"Data must have the shape of the samples, \(2,\); got \(3,\)\."
    for run in (log_likelihood, log_likelihood_within):
        more = {"trace": trace} if run is log_likelihood else {}
        with pytest.raises(ValueError, match=message):
            run(model, normal(4, 2), data=data, **more)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dopri5(rtol=0), "Tolerances must be positive and finite; got rtol=0"),
        (lambda: Dopri5(atol=math.inf), "Tolerances must be positive and finite; got rtol=1e-06, atol=inf"),
        (lambda: Dopri8(max_nfe=0), "max_nfe must be a whole number of at least 1; got 0"),
        (lambda: Exact(chunk=0), "chunk must be a whole number of at least 1; got 0"),
        (lambda: Hutchinson(probes=1.5), "probes must be a whole number of at least 1; got 1.5"),
        (lambda: Hutchinson(chunk=0), "chunk must be a whole number of at least 1; got 0"),
        (lambda: Hadamard(0), "probes must be a whole number of at least 1; got 0"),
        (lambda: HutchPP(4), r"three equal parts; got probes=4. Use 6, 9, 12"),
    ],
)
def test_values_are_checked_where_they_are_made(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("model", [mixture(VP()), network(2)], ids=["oracle", "network"])
def test_all_of_hadamards_columns_are_an_exact_trace_with_its_stated_error(model: Model) -> None:
    x = draws(model, 5) if isinstance(model, Oracle) else normal(5, *model.shape)
    all_columns, exact = (log_likelihood(model, x, FEW, trace) for trace in (Hadamard(4), Exact()))
    assert not Hadamard(2).random(2)
    assert Hadamard(2).random(3)
    for field in ("log_prob", "stderr", "integration_error"):
        close(getattr(all_columns, field), getattr(exact, field), 1e-9)
