"""Log-likelihoods: against the density of mixtures, on every process; traces, steps, gradients, counts, errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sdekit import (
    EDM,
    RK4,
    VE,
    VP,
    Angular,
    Cosine,
    Denoised,
    Denoiser,
    Discrete,
    Eps,
    Euler,
    Exponential,
    FromDrift,
    Heun,
    LogSNR,
    Model,
    Prediction,
    Process,
    RectifiedFlow,
    SubVP,
    Times,
    Uniform,
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
    Hutchinson,
    Integrator,
    Likelihood,
    Normals,
    Probe,
    Rademacher,
    log_likelihood,
)
from sdekit.likelihood.angle import Turned
from sdekit.oracle import Full, Gaussian, GaussianMixture, Oracle

PROCESSES = [VP(), VE(), SubVP(), RectifiedFlow(), Cosine(), EDM(), Discrete.linear()]
WHOLE = RectifiedFlow(t_min=0.0, t_max=1.0)


def name(value: object) -> str:
    return type(value).__name__


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixture(process: Process) -> GaussianMixture:
    means = torch.tensor([[-1.0, 0.4], [0.9, 0.8], [0.1, -1.1]], dtype=torch.float64)
    covariance = torch.tensor([[0.14, 0.04], [0.04, 0.10]], dtype=torch.float64)
    return GaussianMixture(process, means, Full(covariance), torch.tensor([0.5, 0.3, 0.2]))


def draws(model: Oracle, n: int) -> Tensor:
    """Draw from the model's law at t_min."""
    x0 = model.sample(n, torch.Generator().manual_seed(1))
    return model.process.perturb(x0, model.process.t_min, torch.zeros_like(x0) + normal(*x0.shape))


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


def network(*shape: int, dtype: torch.dtype = torch.float64, process: Process = WHOLE) -> Denoiser:
    return Denoiser(Net(shape, dtype), process, predicts=Velocity())


def error(model: Oracle, x: Tensor, result: Likelihood) -> float:
    truth = model.log_prob(x, model.process.t_min)
    return float((result.log_prob + result.prior_share - truth).abs().max())


# Against the truth ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [*PROCESSES, WHOLE], ids=name)
@pytest.mark.parametrize("integrator", [FixedGrid(), Dopri5()], ids=name)
def test_log_likelihood_of_a_mixture_is_its_density(process: Process, integrator: Integrator) -> None:
    model = mixture(process)
    x = draws(model, 24)
    result = log_likelihood(model, x, integrator)
    assert error(model, x, result) < 1e-4
    assert torch.equal(result.log_prob, result.log_prior + result.log_det)
    assert torch.equal(result.stderr, torch.zeros(24, dtype=torch.float64))


def test_a_process_given_by_its_drift() -> None:
    model = mixture(FromDrift(rate=lambda t: -0.5 * torch.ones_like(t), noise=torch.ones_like, t_max=8.0))
    x = draws(model, 8)
    assert error(model, x, log_likelihood(model, x, FixedGrid(RK4(), Angular(16)))) < 5e-3


@pytest.mark.parametrize("integrator", [Dopri8(1e-7, 1e-7), Bosh3(1e-6, 1e-6), AdaptiveHeun(1e-5, 1e-5)], ids=name)
def test_every_adaptive_method_agrees(integrator: Integrator) -> None:
    model = mixture(VP())
    x = draws(model, 8)
    assert error(model, x, log_likelihood(model, x, integrator)) < 1e-4


def test_a_tighter_tolerance_is_more_exact() -> None:
    model = mixture(EDM())
    x = draws(model, 16)
    errors = [error(model, x, log_likelihood(model, x, Dopri5(tol, tol))) for tol in (1e-3, 1e-5, 1e-8)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-7


@pytest.mark.parametrize(("solver", "order"), [(Euler(), 1), (Heun(), 2), (RK4(), 4)], ids=str)
def test_the_pair_has_the_order_of_its_solver(solver: Euler | Heun | RK4, order: int) -> None:
    model = mixture(VE())
    x = draws(model, 16)
    coarse, fine = (error(model, x, log_likelihood(model, x, FixedGrid(solver, Angular(n)))) for n in (100, 200))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.2)


def test_every_process_costs_the_same() -> None:
    calls = {log_likelihood(m, draws(m, 8), Dopri5()).nfe for m in map(mixture, PROCESSES)}
    assert max(calls) < 1.25 * min(calls)


@pytest.mark.parametrize("process", [VP(), WHOLE], ids=name)
def test_density_in_one_dimension_integrates_to_one(process: Process) -> None:
    model = GaussianMixture(process, torch.tensor([[-1.0], [0.6]], dtype=torch.float64), 0.25)
    x = torch.linspace(-4, 4, 801, dtype=torch.float64)
    result = log_likelihood(model, x[:, None])
    assert float(torch.trapezoid(result.log_prob.exp(), x)) == pytest.approx(1, abs=1e-5)


def test_images() -> None:
    means = 0.5 * normal(3, 1, 4, 4, seed=5)
    model = GaussianMixture(Cosine(), means, 0.4)
    x = draws(model, 6)
    result = log_likelihood(model, x)
    assert error(model, x, result) < 1e-4
    assert result.latent.shape == x.shape
    assert result.log_prob.shape == (6,)


def test_latent_is_the_end_of_the_flow() -> None:
    mean, variance = normal(2, seed=6), 0.3
    model = Gaussian(VE(), mean, variance**0.5)
    x = draws(model, 5)
    s2 = torch.tensor([variance + VE().sigma(t) ** 2 for t in (VE().t_min, VE().t_max)])
    expected = mean + (x - mean) * (s2[1] / s2[0]).sqrt()
    result = log_likelihood(model, x)
    torch.testing.assert_close(result.latent, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result.log_det, (s2[1] / s2[0]).log().expand(5), rtol=1e-5, atol=0)


@pytest.mark.parametrize("integrator", [FixedGrid(), Dopri5()], ids=name)
def test_float32_is_as_good_as_its_digits(integrator: Integrator) -> None:
    model = mixture(VP())
    x = draws(model, 16)
    single = log_likelihood(model, x.float(), integrator)
    assert single.latent.dtype == torch.float32
    assert single.log_prob.dtype == torch.float64
    torch.testing.assert_close(single.log_prob, log_likelihood(model, x, integrator).log_prob, rtol=0, atol=1e-4)


# The prior --------------------------------------------------------------------------------------------------


def test_prior_share_is_exact_for_an_oracle() -> None:
    model = mixture(VE())
    result = log_likelihood(model, draws(model, 4))
    share = model.log_prob(result.latent, VE().t_max) - result.log_prior
    torch.testing.assert_close(result.prior_share, share)


def test_prior_share_is_estimated_from_data() -> None:
    model = mixture(VE(sigma_max=5.0))  # a prior that is visibly wrong
    x = draws(model, 8)
    exact = log_likelihood(model, x).prior_share
    blind = log_likelihood(Blind(model), x, data=draws(model, 4000)).prior_share
    assert float(exact.abs().mean()) > 0.01
    assert float((blind - exact).abs().max()) < 0.2 * float(exact.abs().mean())


def test_prior_share_of_gaussian_data_needs_only_the_moments() -> None:
    mean = torch.tensor([0.7, -0.3], dtype=torch.float64)
    points = mean + 0.6 * normal(500, 2, seed=8)
    model = Gaussian(VP(t_max=0.5), points.mean(0), Full(points.T.cov()))
    x = draws(model, 6)
    exact = log_likelihood(model, x).prior_share
    torch.testing.assert_close(log_likelihood(Blind(model), x, data=points).prior_share, exact)


def test_prior_share_with_few_data_uses_variances_and_with_one_point_is_unknown() -> None:
    model = Gaussian(VP(t_max=0.5), torch.zeros(6, dtype=torch.float64), 0.5)
    x = draws(model, 6)
    few = log_likelihood(Blind(model), x).prior_share
    assert bool(few.isfinite().all())
    assert bool(log_likelihood(Blind(model), x[:1]).prior_share.isnan().all())
    with pytest.raises(ValueError, match=r"Data must have the shape of the states, \(n, 6\); got \(3, 2\)"):
        log_likelihood(Blind(model), x, data=torch.zeros(3, 2))


# Traces -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (1, 3, 3), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_exact_is_the_trace_of_the_jacobian(shape: tuple[int, ...], dtype: torch.dtype, chunk: int) -> None:
    model = network(*shape, dtype=dtype)
    x = normal(3, *shape).to(dtype)

    def drift(x: Tensor) -> Tensor:
        return model(x, 0.3).velocity

    value, divergence = Exact(chunk)(drift, x)
    rows = [torch.autograd.functional.jacobian(drift, x[i : i + 1]).reshape(x[0].numel(), -1) for i in range(3)]
    expected = torch.stack([row.trace() for row in rows]).to(torch.float64)
    torch.testing.assert_close(value, drift(x))
    torch.testing.assert_close(divergence[:, 0], expected, rtol=1e-5, atol=1e-6)


class Spanning(Hutchinson):
    """Probes that span the space: sqrt(d) times the basis."""

    def vectors(self, x: Tensor, which: range, draw: int) -> Tensor:
        return Exact().vectors(x, which, draw) * x[0].numel() ** 0.5


@pytest.mark.parametrize("integrator", [FixedGrid(RK4(), Angular(4)), Dopri5(1e-3, 1e-3)], ids=name)
def test_probes_that_span_the_space_are_exact(integrator: Integrator) -> None:
    model = network(1, 3, 2)
    x = 0.5 * normal(4, 1, 3, 2)
    exact = log_likelihood(model, x, FixedGrid(RK4(), Angular(4)))
    spanned = log_likelihood(model, x, integrator, Spanning(probes=6))
    tolerance = 1e-10 if isinstance(integrator, FixedGrid) else 0.05
    torch.testing.assert_close(spanned.log_prob, exact.log_prob, rtol=0, atol=tolerance)


@pytest.mark.parametrize("probe", [Rademacher(), Normals()], ids=name)
@pytest.mark.parametrize("integrator", [FixedGrid(RK4(), Angular(6)), Dopri5(1e-4, 1e-4)], ids=name)
def test_hutchinson_is_unbiased_and_knows_its_error(probe: Probe, integrator: Integrator) -> None:
    model = mixture(VP())
    x = draws(model, 60)
    exact = log_likelihood(model, x, integrator)
    estimate = log_likelihood(model, x, integrator, Hutchinson(256, probe))
    z = (estimate.log_prob - exact.log_prob) / estimate.stderr
    assert float(z.abs().max()) < 4
    assert 0.5 < float(z.square().mean()) < 1.8
    assert float(estimate.stderr.min()) > 0


def test_one_probe_admits_that_it_knows_no_error() -> None:
    model = mixture(VP())
    result = log_likelihood(model, draws(model, 3), FixedGrid(RK4(), Angular(4)), Hutchinson())
    assert bool(result.stderr.isnan().all())
    assert bool(result.log_prob.isfinite().all())


def test_fresh_probes_average_out_along_the_path() -> None:
    model = GaussianMixture(VP(), normal(4, 16, seed=9), Full(_covariance(16)))
    x = draws(model, 16)
    fixed = log_likelihood(model, x, Dopri5(1e-3, 1e-3), Hutchinson(8)).stderr
    fresh = log_likelihood(model, x, FixedGrid(RK4(), Angular(16)), Hutchinson(8)).stderr
    assert float(fresh.mean()) < float(fixed.mean()) / 3


def _covariance(d: int) -> Tensor:
    a = normal(d, d, seed=10) / d**0.5
    return 0.3 * a @ a.T + 0.05 * torch.eye(d, dtype=torch.float64)


# A sample by itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [Exact(), Hutchinson(2, seed=7)], ids=name)
def test_a_sample_is_the_same_alone_and_in_a_batch(trace: Exact | Hutchinson) -> None:
    model = mixture(RectifiedFlow())
    x = draws(model, 6)
    whole = log_likelihood(model, x, trace=trace)
    alone = Hutchinson(2, seed=7, first=4) if isinstance(trace, Hutchinson) else trace
    part = log_likelihood(model, x[4:5], trace=alone)
    torch.testing.assert_close(part.log_prob, whole.log_prob[4:5], rtol=0, atol=1e-10)
    torch.testing.assert_close(part.stderr, whole.stderr[4:5], rtol=0, atol=1e-10)


def test_adaptive_steps_make_a_sample_depend_on_its_batch_only_within_the_tolerance() -> None:
    model = mixture(RectifiedFlow())
    x = draws(model, 32)
    whole = log_likelihood(model, x, Dopri5(1e-6, 1e-6), Hutchinson(2)).log_prob
    part = log_likelihood(model, x[:2], Dopri5(1e-6, 1e-6), Hutchinson(2)).log_prob
    torch.testing.assert_close(part, whole[:2], rtol=0, atol=1e-4)


def test_same_seed_same_value_another_seed_another() -> None:
    model = mixture(VP())
    x, integrator = draws(model, 3), FixedGrid(RK4(), Angular(4))
    one, again, other = (log_likelihood(model, x, integrator, Hutchinson(1, seed=s)).log_prob for s in (1, 1, 2))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


# Calls and gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trace", [Exact(chunk=2), Hutchinson(3)], ids=name)
@pytest.mark.parametrize(
    "integrator", [FixedGrid(RK4(), Angular(5)), FixedGrid(Heun(), Uniform(5)), Dopri5(1e-3, 1e-3)], ids=str
)
def test_nfe_counts_the_calls_of_the_network(integrator: Integrator, trace: Exact | Hutchinson) -> None:
    model = network(2, 2)
    result = log_likelihood(model, normal(3, 2, 2), integrator, trace)
    assert result.nfe == model.net.calls_seen
    if isinstance(integrator, FixedGrid):
        assert result.nfe == 5 * integrator.solver.evals


def test_nfe_counts_a_model_that_calls_twice() -> None:
    model = mixture(VP())
    model.calls = 2
    assert log_likelihood(model, draws(model, 2), FixedGrid(RK4(), Angular(4))).nfe == 32


def test_a_clean_end_is_left_out() -> None:
    model = mixture(VP())
    assert log_likelihood(model, draws(model, 2), FixedGrid(Heun(), Denoised(LogSNR(8)))).nfe == 14


@pytest.mark.parametrize("integrator", [FixedGrid(), Dopri5(1e-6, 1e-6)], ids=name)
@pytest.mark.parametrize("trace", [Exact(), Spanning(probes=2)], ids=name)
def test_gradient_is_the_score(integrator: Integrator, trace: Exact | Hutchinson) -> None:
    model = mixture(VP())
    x = draws(model, 6).requires_grad_()
    result = log_likelihood(model, x, integrator, trace)
    (gradient,) = torch.autograd.grad((result.log_prob + result.prior_share).sum(), x)
    score = model(x.detach(), VP().t_min).score
    torch.testing.assert_close(gradient, score, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("integrator", [FixedGrid(RK4(), Angular(6)), Dopri5(1e-4, 1e-4)], ids=name)
def test_gradient_reaches_the_parameters(integrator: Integrator) -> None:
    model = network(2)
    x = normal(3, 2).requires_grad_()
    log_likelihood(model, x, integrator).log_prob.sum().backward()
    gradient, step = float(model.net.b.grad[0, 0]), 1e-5
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            model.net.b[0, 0] += sign * step
            values.append(float(log_likelihood(model, x, integrator).log_prob.sum()))
            model.net.b[0, 0] -= sign * step
    assert gradient == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-3)


@pytest.mark.parametrize("integrator", [FixedGrid(RK4(), Angular(3)), Dopri5(1e-2, 1e-2)], ids=name)
def test_nothing_is_recorded_unless_asked(integrator: Integrator) -> None:
    model = network(2)
    x = normal(3, 2)
    plain = log_likelihood(model, x, integrator)
    assert not plain.log_prob.requires_grad
    assert not plain.latent.requires_grad
    assert model.net.b.grad is None
    x.requires_grad_()
    with torch.no_grad():
        assert not log_likelihood(model, x, integrator).log_prob.requires_grad
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_any_mode_gives_the_same(mode: type) -> None:
    model = network(2)
    plain = log_likelihood(model, normal(3, 2), FixedGrid(RK4(), Angular(3))).log_prob
    with mode():
        inside = log_likelihood(model, normal(3, 2), FixedGrid(RK4(), Angular(3))).log_prob
    torch.testing.assert_close(inside, plain)


def test_device(device: torch.device) -> None:
    model = mixture(VP()).to(device)
    x = draws(mixture(VP()), 3).to(device)
    for integrator in (FixedGrid(RK4(), Angular(4)), Dopri5(1e-3, 1e-3)):
        result = log_likelihood(model, x, integrator, Hutchinson(2))
        assert result.log_prob.device.type == result.prior_share.device.type == device.type


# Values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        FixedGrid(Heun(), LogSNR(9)),
        Dopri5(1e-4),
        Dopri8(),
        Bosh3(),
        AdaptiveHeun(),
        Hutchinson(3, Normals()),
        Exact(7),
    ],
    ids=name,
)
def test_values_go_to_json_and_back(value: Value) -> None:
    assert Value.from_json(value.to_json()) == value


@given(st.sampled_from([*PROCESSES, WHOLE]), st.integers(1, 60))
def test_angular_grid_is_even_in_the_cube_root_of_the_angle(process: Process, steps: int) -> None:
    times = Angular(steps)(process)
    roots = torch.atan2(process.sigma(times), process.alpha(times)) ** (1 / 3)
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(steps), rtol=1e-6, atol=1e-9)


@given(st.sampled_from([*PROCESSES, WHOLE]), st.floats(0, 1))
def test_turned_model_is_the_same_flow(process: Process, place: float) -> None:
    model = _model(process)
    t = process.t_min + place * (process.t_max - process.t_min)
    turned = Turned(model)
    theta = torch.atan2(process.sigma(t), process.alpha(t))
    s = turned.scale(t)
    x = normal(4, 2) * s
    rate = 1e-6 * (process.t_max - process.t_min)
    torch.testing.assert_close(turned.time(theta), torch.tensor(t, dtype=torch.float64), rtol=1e-6, atol=rate)
    eps, x0 = model(x, t).eps, model(x, t).x0
    if bool(eps.isfinite().all() and x0.isfinite().all()):
        expected = torch.cos(theta) * eps - torch.sin(theta) * x0
        torch.testing.assert_close(turned(x / s, theta).velocity, expected, rtol=1e-5, atol=1e-5)


@cache
def _model(process: Process) -> GaussianMixture:
    return mixture(process)


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
    [(FixedGrid(RK4(), Uniform(4)), r"at step 3 of 4, t=0\.75"), (Dopri5(), r"at t=0\.[5-9]\d*")],
    ids=name,
)
def test_a_model_that_breaks_is_reported_where_it_does(integrator: Integrator, where: str) -> None:
    with pytest.raises(FloatingPointError, match=where + r", samples \[1\] \(1 in all\)"):
        log_likelihood(Broken(WHOLE, after=0.51), normal(3, 2), integrator)


def test_adaptive_steps_that_underflow_are_reported() -> None:
    with pytest.raises(RuntimeError, match=r"Dopri5 must reach t_max .* underflow in dt.*Loosen rtol and atol"):
        log_likelihood(network(2, process=VP()), normal(3, 2), Dopri5(1e-40, 1e-40))


def test_an_adaptive_run_gives_up_in_time() -> None:
    with pytest.raises(RuntimeError, match=r"within max_nfe=20 network calls.* at t=0\.\d+, 20 network calls"):
        log_likelihood(network(2), normal(3, 2), Bosh3(1e-9, 1e-9, max_nfe=20))


def test_a_model_without_a_graph_is_reported() -> None:
    net = Net((2,), torch.float64)
    model = Denoiser(lambda x, t: net(x, t).detach(), VP(), predicts=Eps())
    with pytest.raises(ValueError, match=r"must be differentiable in the state .* Take torch.no_grad"):
        log_likelihood(model, normal(3, 2))


def test_solvers_that_do_not_work_on_the_drift_are_refused() -> None:
    with pytest.raises(TypeError, match=r"must work on the drift alone; got Exponential\(order=2\). Use RK4"):
        FixedGrid(Exponential(2), LogSNR(8))  # type: ignore[arg-type]


def test_a_grid_that_stops_short_is_refused() -> None:
    with pytest.raises(ValueError, match=r"must reach from t_max to t_min, 1 to 0.001; .* goes from 1 to 0.1"):
        log_likelihood(mixture(VP()), normal(3, 2), FixedGrid(RK4(), Times((1.0, 0.5, 0.1))))


@pytest.mark.parametrize("x", [torch.zeros(()), torch.zeros(0, 2), torch.zeros(3, 2, dtype=torch.int64)], ids=str)
def test_states_must_be_a_batch(x: Tensor) -> None:
    with pytest.raises(ValueError, match="x must be a batch"):
        log_likelihood(mixture(VP()), x)


def test_states_must_be_finite() -> None:
    x = torch.tensor([[0.0, 1.0], [torch.inf, 0.0]])
    with pytest.raises(ValueError, match=r"x must be finite; samples \[1\] \(1 in all\) are not"):
        log_likelihood(mixture(VP()), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Dopri5(rtol=0), "Tolerances must be positive and finite; got rtol=0"),
        (lambda: Dopri8(max_nfe=0), "max_nfe must be a whole number of at least 1; got 0"),
        (lambda: Exact(chunk=0), "chunk must be a whole number of at least 1; got 0"),
        (lambda: Hutchinson(probes=1.5), "probes must be a whole number of at least 1; got 1.5"),
        (lambda: Angular(0), "steps must be a whole number of at least 1; got 0"),
    ],
)
def test_values_are_checked_where_they_are_made(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
