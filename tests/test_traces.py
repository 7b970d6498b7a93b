"""Traces: exact, unbiased with every probe, exact where the probes cover the space; what they state of their errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import agree, normal
from test_noise import look_independent, looks_normal
from torch import Tensor
from torch.func import jacrev

from sdekit import VP, Prediction, Quadratic, RectifiedFlow
from sdekit.data import digits
from sdekit.likelihood import (
    Dopri5,
    Exact,
    FixedGrid,
    Hadamard,
    Hutchinson,
    HutchPP,
    Normals,
    Probe,
    Rademacher,
    Sphere,
    Trace,
    log_likelihood,
    moments,
)
from sdekit.likelihood.control import linear, of_model
from sdekit.likelihood.trace import Estimates, combined, differentiated
from sdekit.noise import content, hashed, normals
from sdekit.oracle import Diagonal, Full, Gaussian, GaussianMixture, Isotropic, LowRank, Oracle

PROBES = [Rademacher(), Normals(), Sphere()]
RANDOM = [*(Hutchinson(2, probe) for probe in PROBES), Hadamard(1), Hadamard(3), HutchPP(3), HutchPP(6)]
CONTROLLED = [trace for trace in RANDOM if not isinstance(trace, HutchPP)]
WHOLE = RectifiedFlow(t_min=0.0, t_max=1.0)
SIX = Gaussian(WHOLE, normal(6, seed=4), Full(normal(9, 6, seed=1).T.cov()))
few = settings(max_examples=10)


def matrix(d: int, seed: int = 0) -> Tensor:
    return normal(d, d, seed=seed)


def along(a: Tensor) -> Callable[[Tensor], Tensor]:
    """Return the drift whose Jacobian is the matrix `a`, for states of any rank."""
    return lambda x: (x.reshape(len(x), -1) @ a.T).reshape(x.shape)


def bent(a: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: along(a)(x).tanh()


def samples(n: int, d: int) -> Tensor:
    return normal(n, d, seed=11)


def mixture(d: int) -> GaussianMixture:
    factor = normal(d, d, seed=10) / d**0.5
    covariance = 0.2 * factor @ factor.T + 0.03 * torch.eye(d, dtype=torch.float64)
    return GaussianMixture(VP(), 0.6 * normal(4, d, seed=9), Full(covariance))


class Hidden:
    """An exact model that does not say so."""

    def __init__(self, model: Oracle) -> None:
        self.model, self.process = model, model.process

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        return self.model(x, t)


# The trace of a Jacobian ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (1, 3, 3), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_exact_is_the_trace_of_the_jacobian(shape: tuple[int, ...], dtype: torch.dtype, chunk: int) -> None:
    d = math.prod(shape)
    drift, x = bent(matrix(d).to(dtype) / d**0.5), normal(3, *shape).to(dtype)
    value, divergence = Exact(chunk)(drift, x)
    jacobians = [jacrev(lambda s: drift(s[None])[0])(sample).reshape(d, d) for sample in x]
    agree(value, drift(x))
    assert divergence.dtype == torch.float64
    assert divergence.shape == (1, 3)
    agree(divergence[0], torch.stack([j.trace() for j in jacobians]), 1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("trace", RANDOM, ids=str)
@pytest.mark.parametrize("chunk", [1, 2])
def test_chunks_change_nothing(trace: Trace, chunk: int) -> None:
    other = replace(trace, chunk=chunk)
    drift, x = bent(matrix(6)), samples(4, 6)
    agree(other(drift, x)[1], trace(drift, x)[1], 1e-12)


@pytest.mark.parametrize("control", [None, SIX], ids=["", "W"])
@pytest.mark.parametrize("trace", RANDOM, ids=str)
def test_random_traces_are_unbiased(trace: Trace, control: Gaussian | None) -> None:
    """Over 4,000 samples, each with probes of its own, at the same Jacobian."""
    a = matrix(6)
    known = None if control is None else linear(control, torch.tensor(0.4, dtype=torch.float64))
    x = samples(4000, 6)
    estimate = trace.on(x)
    _, found = differentiated(along(a), x, trace.chunk, lambda pull: estimate(pull, 3, known))
    means = found.forms.mean(0)
    assert float(means.std()) > 0.1
    assert abs(float(means.mean() - a.trace())) < 4 * float(means.std()) / 4000**0.5
    assert (found.control is None) == (known is None or isinstance(trace, HutchPP))
    if found.control is not None:
        assert found.control.shape == found.forms.shape
        assert abs(float(found.control.mean())) < 4 * float(found.control.mean(0).std()) / 4000**0.5 + 1e-12


@pytest.mark.parametrize("trace", [Hutchinson, Hadamard, HutchPP])
def test_random_traces_are_unbiased_over_seeds(trace: type) -> None:
    a, x = matrix(5), samples(1, 5)
    found = torch.stack([trace(3, seed=seed)(along(a), x)[1].mean() for seed in range(400)])
    assert abs(float(found.mean() - a.trace())) < 4 * float(found.std()) / 20


@given(st.integers(2, 40), st.integers(0, 99))
@few
def test_signs_have_the_least_variance_and_it_is_known(d: int, seed: int) -> None:
    a, x = matrix(d, seed), samples(3000, d)
    found = Hutchinson(1, Rademacher(), seed)(along(a), x)[1][0]
    off = a + a.T - torch.diag(torch.diag(a + a.T))
    expected = float(off.square().sum()) / 2
    assert float(found.var()) == pytest.approx(expected, rel=0.25)
    assert float(Hutchinson(1, Normals(), seed)(along(a), x)[1][0].var()) == pytest.approx(
        expected + 2 * float(a.diag().square().sum()), rel=0.25
    )


# Probes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("probe", PROBES, ids=str)
@pytest.mark.parametrize("d", [1, 3, 64, 70])
def test_probes_have_mean_zero_and_covariance_one(probe: Probe, d: int) -> None:
    n = 20_000
    u = probe(content(samples(n, d)), (0, 1, 2), d)
    assert u.shape == (n, d)
    assert u.dtype == torch.float64
    assert float(u.mean(0).abs().max()) < 5 / n**0.5
    assert float((u.T @ u / n - torch.eye(d, dtype=torch.float64)).abs().max()) < 8 / n**0.5
    if not isinstance(probe, Normals):
        agree(u.square().sum(1), d, 1e-12)


@pytest.mark.parametrize("d", [1, 2, 5, 8, 13])
@pytest.mark.parametrize("more", [0, 7])
def test_as_many_hadamard_columns_as_there_are_give_the_trace(d: int, more: int) -> None:
    columns = 1 << max(0, d - 1).bit_length()
    drift, x = bent(matrix(d)), samples(4, d)
    for node in (0, 5):
        _, found = Hadamard(columns + more)(drift, x, node)
        agree(found.mean(0), Exact()(drift, x)[1][0], 1e-12)
    weights = torch.rand(7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, stderr = Hadamard(columns + more).integral(weights, found.expand(7, *found.shape), d)
    assert float(stderr.max()) == 0


@given(st.integers(1, 20), st.integers(1, 8), st.integers(0, 99))
@few
def test_a_round_of_hadamard_columns_adds_up_to_the_identity(d: int, probes: int, seed: int) -> None:
    columns = 1 << max(0, d - 1).bit_length()
    count = 1 << (min(probes, columns).bit_length() - 1)  # so that a round is whole
    estimate, seen = Hadamard(count, seed).on(samples(3, d)), []

    def pull(vectors: Tensor) -> Tensor:
        seen.append(vectors)
        return vectors

    for node in range(columns // count):
        estimate(pull, node, None)
    u = torch.cat(seen)
    assert u.shape == (columns, 3, d)
    agree(u.abs(), 1.0)
    agree(torch.einsum("nbi,nbj->bij", u, u), columns * torch.eye(d, dtype=torch.float64))


@given(st.integers(1, 4), st.integers(4, 16), st.integers(0, 99))
@few
def test_hutch_pp_is_exact_for_a_matrix_of_low_rank(rank: int, d: int, seed: int) -> None:
    a = normal(d, rank, seed=seed) @ normal(rank, d, seed=seed + 1)
    x = samples(5, d)
    _, found = HutchPP(3 * rank)(along(a), x)
    agree(found.mean(0), a.trace(), 1e-8)


def test_hutch_pp_with_the_whole_space_is_exact() -> None:
    for d in (1, 3, 6):
        agree(HutchPP(18)(along(matrix(d)), samples(200, d))[1].mean(0), matrix(d).trace(), 1e-12)


def test_hutch_pp_has_gradients_even_where_directions_are_few() -> None:
    x = samples(8, 2).requires_grad_()
    _, found = HutchPP(6)(bent(matrix(2)), x)
    exact = Exact()(bent(matrix(2)), x)[1]
    agree(found.mean(0), exact[0], 1e-8)
    gradients = [torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (found.mean(0), exact[0])]
    agree(*gradients, 1e-8)


def test_hutch_pp_beats_the_same_number_of_signs_on_a_decaying_spectrum() -> None:
    basis = torch.linalg.qr(matrix(32)).Q
    a = basis @ torch.diag(1 / torch.arange(1, 33, dtype=torch.float64) ** 2) @ basis.T
    x = samples(500, 32)
    spread = [float(trace(along(a), x)[1].mean(0).std()) for trace in (Hutchinson(12), HutchPP(12))]
    assert spread[1] < spread[0] / 3


# The control variate ----------------------------------------------------------------------------------------


def laws(d: int) -> list[Gaussian]:
    spd = normal(d, d, seed=1) @ normal(d, d, seed=1).T / d + 0.1 * torch.eye(d, dtype=torch.float64)
    kinds = [Isotropic(0.4), Diagonal(normal(d, seed=2).exp()), Full(spd), LowRank(normal(d, 2, seed=3), 0.3)]
    return [Gaussian(WHOLE, normal(d, seed=4), kind) for kind in kinds]


@pytest.mark.parametrize("gaussian", laws(5), ids=["isotropic", "diagonal", "full", "low rank"])
@pytest.mark.parametrize("tau", [0.0, 0.3, 0.9, 1.0])
def test_the_control_is_the_jacobian_of_the_gaussians_velocity(gaussian: Gaussian, tau: float) -> None:
    x, at = samples(1, 5), torch.tensor(tau, dtype=torch.float64)
    control = linear(gaussian, at)
    jacobian = jacrev(lambda s: gaussian(s[None], at).velocity[0])(x[0])
    v = normal(7, 1, 5, seed=5)
    agree(control(v), v @ jacobian.T, 1e-9)
    agree(control.trace, jacobian.trace(), 1e-9)
    agree(control.trace, gaussian.divergence(x, at), 1e-9)


@pytest.mark.parametrize("gaussian", laws(5)[1:3], ids=["diagonal", "full"])
@pytest.mark.parametrize("trace", CONTROLLED, ids=str)
def test_nothing_is_random_where_the_control_is_the_model(gaussian: Gaussian, trace: Trace) -> None:
    x = gaussian.sample(6, torch.Generator().manual_seed(0))
    result = log_likelihood(gaussian, x, FixedGrid(grid=Quadratic(24)), trace, data=gaussian)
    exact = log_likelihood(gaussian, x, FixedGrid(grid=Quadratic(24)))
    single = trace == Hadamard(1)  # whose share of the control is found from jumps from node to node
    agree(result.log_prob, exact.log_prob, 1e-4 if single else 1e-8)
    assert float(result.stderr.max()) < (1e-3 if single else 1e-6)


def test_nor_where_it_is_isotropic() -> None:
    gaussian, trace = laws(5)[0], Hutchinson(2, Normals())
    x = gaussian.sample(6, torch.Generator().manual_seed(0))
    assert float(log_likelihood(gaussian, x, FixedGrid(grid=Quadratic(24)), trace, data=gaussian).stderr.max()) < 1e-6


@pytest.mark.parametrize("trace", CONTROLLED, ids=str)
def test_the_largest_directions_alone_are_no_control(trace: Trace) -> None:
    model, grid = mixture(16), FixedGrid(grid=Quadratic(12))
    x = model.sample(6, torch.Generator().manual_seed(0))
    few = model.sample(20, torch.Generator().manual_seed(1))
    plain, given = (log_likelihood(Hidden(model), x, grid, trace, data=data) for data in (None, few))
    agree(given.log_prob, plain.log_prob, 1e-8)


@pytest.mark.parametrize("trace", [HutchPP(3), HutchPP(6)], ids=str)
def test_hutch_pp_goes_without_the_control(trace: Trace) -> None:
    model, grid = mixture(8), FixedGrid(grid=Quadratic(24))
    x = model.sample(6, torch.Generator().manual_seed(0))
    hidden = Hidden(model)
    plain, given = (
        log_likelihood(hidden, x, grid, trace),
        log_likelihood(hidden, x, grid, trace, data=mixture(8).sample(99, torch.Generator().manual_seed(1))),
    )
    agree(given.log_prob, plain.log_prob, 1e-10)


def test_the_control_serves_an_adaptive_run_too() -> None:
    gaussian = laws(5)[2]
    x = gaussian.sample(6, torch.Generator().manual_seed(0))
    assert float(log_likelihood(gaussian, x, Dopri5(), Hutchinson(2), data=gaussian).stderr.max()) < 1e-3


def test_the_share_of_the_control_is_what_leaves_the_least() -> None:
    """Where forms are a smooth trace and a share of the control it is found; it is kept from 0 to 1.2."""
    weights = torch.rand(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = torch.linspace(0, 1, 12, dtype=torch.float64)[:, None, None].expand(12, 1, 3)
    for probes in (1, 4):
        control = normal(12, probes, 3, seed=1)
        for share, kept in ((0.7, 0.7), (0.0, 0.0), (1.2, 1.2), (-1.0, 0.0), (3.0, 1.2)):
            found = combined(weights, Estimates(smooth + share * control, control))
            agree(found, smooth + (share - kept) * control, 1e-9)
        noise = 0.5 * normal(12, probes, 3, seed=2)
        assert torch.equal(combined(weights, Estimates(noise)), noise)
    many, noise = normal(400, 4, 3, seed=3), normal(400, 4, 3, seed=4)
    left = combined(torch.ones(400).double(), Estimates(0.5 * many + noise, many))
    agree(left.std((0, 1)), noise.std((0, 1)), 0.02)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
@pytest.mark.parametrize("trace", [Hutchinson(1), Hadamard(1), Hutchinson(2)], ids=str)
def test_few_nodes_will_do_with_a_control(steps: int, trace: Trace) -> None:
    model = mixture(4)
    x = model.sample(3, torch.Generator().manual_seed(0))
    assert bool(log_likelihood(model, x, FixedGrid(grid=Quadratic(steps)), trace).log_prob.isfinite().all())


def test_the_control_follows_a_model_that_is_changed_in_place() -> None:
    model, grid = mixture(6), FixedGrid(grid=Quadratic(12))
    x = model.sample(4, torch.Generator().manual_seed(0))
    before = log_likelihood(model, x, grid, Hutchinson(2))
    assert of_model(model) is of_model(model)
    old = of_model(model).mean.clone()
    model.components.means.add_(5.0)
    agree(of_model(model).mean, old + 5.0, 1e-6)
    after = log_likelihood(model, x, grid, Hutchinson(2))
    assert bool((before.log_prob != after.log_prob).any())


def test_the_control_follows_a_model_whose_buffers_are_replaced() -> None:
    model = mixture(6)
    old = of_model(model).mean.clone()
    model.components.means = model.components.means + 5.0
    agree(of_model(model).mean, old + 5.0, 1e-6)


@pytest.mark.parametrize("trace", [Hutchinson(1), Hutchinson(4), Hadamard(1), Hadamard(4)], ids=str)
@pytest.mark.parametrize("hidden", [True, False])
def test_data_bring_the_scatter_down(trace: Trace, hidden: bool) -> None:
    model = mixture(16)
    x = model.sample(16, torch.Generator().manual_seed(3))
    model_seen = Hidden(model) if hidden else model
    grid = FixedGrid(grid=Quadratic(24))
    poor = Gaussian(WHOLE, torch.zeros(16, dtype=torch.float64), 30.0)
    good = model.sample(500, torch.Generator().manual_seed(4))
    wide, narrow = (log_likelihood(model_seen, x, grid, trace, data=data).stderr.mean() for data in (poor, good))
    assert float(narrow) < 0.8 * float(wide)


def test_moments_of_many_data_are_their_mean_and_covariance() -> None:
    data = normal(200, 3, 2) @ normal(2, 2, seed=1) + 5
    found = moments(data.float())
    rows = data.float().double().flatten(1)
    agree(found.mean, rows.mean(0).reshape(3, 2), 1e-9)
    spectrum = found.components.spectrum
    covariance = spectrum.directions[0].T @ torch.diag(spectrum.values[0]) @ spectrum.directions[0]
    agree(covariance, rows.T.cov(correction=0), 1e-9)
    assert found.components.means.dtype == torch.float64


@pytest.mark.parametrize(("n", "d"), [(3, 5), (9, 40), (60, 40), (200, 150)])
def test_moments_of_few_data_are_their_largest_directions_and_the_mean_of_the_rest(n: int, d: int) -> None:
    data = normal(n, d) * torch.arange(1, d + 1, dtype=torch.float64).rsqrt() + 2
    spectrum, rank = moments(data).components.spectrum, min(64, (n - 1) // 2, d - 1)
    covariance = data.T.cov(correction=0)
    values = torch.linalg.eigvalsh(covariance).flip(0)
    assert spectrum.values.shape == (1, rank + 1)
    agree(spectrum.values[0, :rank], values[:rank], 1e-9)
    agree((spectrum.values[0] * spectrum.counts).sum(), covariance.trace(), 1e-9)
    agree(spectrum.directions[0] @ covariance @ spectrum.directions[0].T, torch.diag(values[:rank]), 1e-9)


@pytest.mark.parametrize("data", [torch.zeros(1, 2), torch.full((5, 2), torch.nan), torch.zeros(5, 2).long()])
def test_moments_need_data(data: Tensor) -> None:
    with pytest.raises(ValueError, match="Moments need at least 2 finite floating-point samples; got shape"):
        moments(data)


# Stated errors ----------------------------------------------------------------------------------------------


def coverage(model: Oracle, x: Tensor, trace: Callable[[int], Trace], seeds: int, steps: int = 32) -> float:
    """Return the share of samples and seeds whose 95% interval holds what an exact trace gives."""
    grid = FixedGrid(grid=Quadratic(steps))
    exact = log_likelihood(model, x, grid).log_prob
    results = [log_likelihood(model, x, grid, trace(seed)) for seed in range(seeds)]
    z = torch.cat([(result.log_prob - exact) / result.stderr for result in results])
    return float((z.abs() < 1.96).double().mean())


@pytest.mark.parametrize(
    ("trace", "least"),
    [(Hutchinson(1), 0.88), (Hutchinson(4), 0.9), (Hutchinson(4, Sphere()), 0.9), (HutchPP(6), 0.88)],
)
def test_stated_errors_of_independent_probes_are_true(trace: Hutchinson, least: float) -> None:
    """Few probes see their own variance through few degrees of freedom, so intervals are a little too short."""
    model = mixture(16)
    x = model.sample(60, torch.Generator().manual_seed(5))
    assert least <= coverage(model, x, lambda seed: replace(trace, seed=seed), 6, steps=64) <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("trace", [Hutchinson, Hadamard])
@pytest.mark.parametrize("probes", [1, 4])
def test_stated_errors_are_true_on_digits(trace: type, probes: int) -> None:
    images = digits()
    points = torch.cat([images.train, images.test]).double().flatten(1)
    model = GaussianMixture.fit(VP(), points, 10)
    x = model.sample(40, torch.Generator().manual_seed(6))
    assert 0.90 <= coverage(model, x, lambda seed: trace(probes, seed=seed), 10, steps=64) <= 0.985


@pytest.mark.parametrize("trace", [Hutchinson(8), Hadamard(6)], ids=str)
def test_probes_held_fixed_know_their_error_too(trace: Trace) -> None:
    model = mixture(8)
    x = model.sample(60, torch.Generator().manual_seed(5))
    exact = log_likelihood(model, x, Dopri5(1e-4, 1e-4)).log_prob
    result = log_likelihood(model, x, Dopri5(1e-4, 1e-4), trace)
    z = (result.log_prob - exact) / result.stderr
    assert float((z.abs() < 2.2).double().mean()) >= 0.85
    assert 0.3 < float(z.abs().median()) < 1.2


def test_new_probes_average_out_along_the_path() -> None:
    model = mixture(16)
    x = model.sample(16, torch.Generator().manual_seed(5))
    fixed = log_likelihood(model, x, Dopri5(1e-3, 1e-3), Hutchinson(8)).stderr
    fresh = log_likelihood(model, x, FixedGrid(), Hutchinson(8)).stderr
    assert float(fresh.mean()) < float(fixed.mean()) / 3


def test_hadamard_columns_leave_less_than_signs() -> None:
    model = mixture(16)
    x = model.sample(40, torch.Generator().manual_seed(5))
    exact = log_likelihood(model, x).log_prob
    errors = [(log_likelihood(model, x, trace=t).log_prob - exact).std() for t in (Hutchinson(2), Hadamard(2))]
    assert float(errors[1]) < float(errors[0]) / 3


# Keyed noise ------------------------------------------------------------------------------------------------


def test_content_is_of_the_numbers_alone() -> None:
    x = normal(50, 2, 3).float()
    words = content(x)
    assert words.shape == (50,)
    assert words.dtype == torch.int64
    assert torch.equal(words, content(x.double()))
    assert torch.equal(words[7:9], content(x[7:9]))
    assert torch.equal(words, content(x.reshape(50, 6)))
    assert len(words.unique()) == 50
    assert torch.equal(content(torch.zeros(1, 2)), content(-torch.zeros(1, 2)))


def test_content_tells_small_changes_and_orders_apart() -> None:
    rows = torch.tensor(list(itertools.product([0.0, 1.0, -1.0], repeat=6)))
    assert len(content(rows).unique()) == len(rows)
    x = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0)).expand(1000, 3).clone()
    x[:, 1] = torch.nextafter(x[:, 1], torch.ones(()))
    assert len(torch.cat([content(x), content(x[:, [1, 0, 2]]), content(x[:, [0, 2, 1]])]).unique()) == 3000


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("key", [(), (0,), (3, 1, 4), (-1, 2**70)], ids=str)
def test_keyed_normals_are_normal_and_independent(key: tuple[int, ...], count: int) -> None:
    words = content(torch.arange(40_000.0)[:, None])  # samples that differ little
    z = normals(words, key, count)
    assert z.shape == (40_000, count)
    assert looks_normal(z)
    other = normals(words, (*key, 1), count)
    assert look_independent([*z.T, *other.T, z[:, 0].roll(1)])


def test_keyed_words_have_random_bits() -> None:
    words = hashed(content(torch.arange(20_000.0)[:, None]), (1, 2), 3)
    assert words.shape == (20_000, 3)
    bits = ((words[..., None] >> torch.arange(64)) & 1).double().flatten(1)
    assert float((bits.mean(0) - 0.5).abs().max()) < 5 * 0.5 / 20_000**0.5
    assert look_independent([*bits[:, :80].T])
    assert len(words.unique()) == words.numel()
