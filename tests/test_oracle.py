"""Oracles are held to the laws of probability: Tweedie, Bayes, the continuity equation, and torch's own densities."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal
from torch.func import jacrev, jvp, vjp, vmap

from sdekit import EDM, VE, VP, Cosine, Discrete, Preconditioned, ProbabilityFlow, Process, RectifiedFlow, SubVP
from sdekit.oracle import (
    Covariance,
    Diagonal,
    Empirical,
    Family,
    Full,
    Gaussian,
    GaussianMixture,
    Isotropic,
    LowRank,
    Oracle,
    mixture,
)
from sdekit.oracle.components import Components
from sdekit.oracle.fit import expectation, maximization

K, D, B = 3, 4, 5
PROCESSES: list[Process] = [VP(), VE(), SubVP(), RectifiedFlow(), Cosine(), EDM(), Discrete.linear()]
processes = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def random(seed: int) -> Callable[..., Tensor]:
    """Return a source of standard normal numbers in float64."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def spd(z: Callable[..., Tensor], *size: int) -> Tensor:
    a = z(*size, D, D)
    return a @ a.mT / D + 0.1 * torch.eye(D, dtype=torch.float64)


COVARIANCES: dict[str, Callable[[Callable[..., Tensor]], Covariance]] = {
    "isotropic": lambda z: Isotropic(0.4),
    "isotropic each": lambda z: Isotropic(z(K).exp()),
    "diagonal": lambda z: Diagonal(z(D).exp()),
    "diagonal each": lambda z: Diagonal(z(K, D).exp()),
    "full": lambda z: Full(spd(z)),
    "full each": lambda z: Full(spd(z, K)),
    "low rank": lambda z: LowRank(z(D, 2), 0.3),
    "low rank each": lambda z: LowRank(z(K, D, 2), z(K).exp()),
    "low rank filled": lambda z: LowRank(z(K, D, D + 1), 0.3),
}
covariances = pytest.mark.parametrize("kind", COVARIANCES)
seeds = st.integers(0, 2**31)
shares = st.floats(0, 1)
few = settings(max_examples=6)


def oracle(process: Process, kind: str, seed: int) -> GaussianMixture:
    z = random(seed)
    return GaussianMixture(process, 2 * z(K, D), COVARIANCES[kind](z), z(K).softmax(0))


def draw(model: Oracle, share: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return states with a time for each sample, spread over the process around `share`, and one time for all."""
    process = model.process
    generator = torch.Generator().manual_seed(seed)
    part = (share + torch.rand(B, generator=generator, dtype=torch.float64)) % 1
    part = torch.cat([part[:-1], torch.tensor([share], dtype=torch.float64)])
    t = process.t_min + part * (process.t_max - process.t_min)
    x0 = model.sample(B, generator)
    eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
    return process.perturb(x0, t, eps), t, t[-1]


def close(got: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    """Equal to `tolerance`, relative to the largest entry of each sample or 1."""
    scale = expected.detach().abs().reshape(len(expected), -1).amax(1).clamp(min=1)
    error = ((got - expected).detach().abs().reshape(len(expected), -1).amax(1) / scale).max()
    assert float(error) < tolerance, f"off by {float(error):.2e}"


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of a function (B, ...) -> (B,) whose samples do not mix."""
    return vjp(f, x)[1](torch.ones(len(x), dtype=x.dtype, device=x.device))[0]


# The laws ------------------------------------------------------------------------------------------------------------


@processes
@covariances
@few
@given(seed=seeds, share=shares)
def test_score_is_the_gradient_of_the_log_density(process: Process, kind: str, seed: int, share: float) -> None:
    model = oracle(process, kind, seed)
    x, *times = draw(model, share, seed)
    for t in times:
        close(model(x, t).score, gradient(lambda y, t=t: model.log_prob(y, t), x))


@processes
@covariances
@few
@given(seed=seeds, share=shares)
def test_density_obeys_the_continuity_equation(process: Process, kind: str, seed: int, share: float) -> None:
    # d/dt log p + div v + v . grad log p = 0 holds only if density, velocity and divergence are all exact
    model = oracle(process, kind, seed)
    x, t, _ = draw(model, share, seed)
    _, rate = jvp(lambda s: model.log_prob(x, s), (t,), (torch.ones_like(t),))
    seen, divergence = model(x, t), model.divergence(x, t)
    transport = (seen.velocity * seen.score).sum(1)
    scale = 1 + rate.abs() + divergence.abs() + transport.abs()
    assert float(((rate + divergence + transport) / scale).abs().max()) < 1e-9


@processes
@covariances
@settings(max_examples=3)
@given(seed=seeds, share=shares)
def test_divergence_is_the_trace_of_the_jacobian(process: Process, kind: str, seed: int, share: float) -> None:
    model = oracle(process, kind, seed)
    x, _, t = draw(model, share, seed)
    jacobians = vmap(jacrev(lambda y: model(y[None], t).velocity[0]))(x)
    close(model.divergence(x, t), jacobians.diagonal(dim1=1, dim2=2).sum(1))


@covariances
@given(seed=seeds, share=shares)
def test_log_prob_is_torchs_own(kind: str, seed: int, share: float) -> None:
    process = VP()
    model = oracle(process, kind, seed)
    x, _, t = draw(model, share, seed)
    root = torch.stack([model.components.spectrum.color(torch.eye(D, dtype=torch.float64), k) for k in range(K)])
    for time, alpha, sigma in [(None, 1.0, 0.0), (t, process.alpha(t), process.sigma(t))]:
        covariance = alpha**2 * root.mT @ root + sigma**2 * torch.eye(D, dtype=torch.float64)
        law = MixtureSameFamily(Categorical(model.weights), MultivariateNormal(alpha * model.means, covariance))
        close(model.log_prob(x, time), law.log_prob(x))


@given(seed=seeds)
def test_covariance_is_what_was_said(seed: int) -> None:
    z = random(seed)
    std, variance, matrix, factor = z(K).exp(), z(K, D).exp(), spd(z, K), z(K, D, 2)
    eye = torch.eye(D, dtype=torch.float64)
    expected = {
        Isotropic(std): std[:, None, None] ** 2 * eye,
        Diagonal(variance): torch.diag_embed(variance),
        Full(matrix): matrix,
        LowRank(factor, 0.3): factor @ factor.mT + 0.09 * eye,
    }
    for covariance, matrices in expected.items():
        spectrum = covariance.spectrum(K, D)
        roots = torch.stack([spectrum.color(eye, k) for k in range(K)])
        close(roots @ roots, matrices)


@given(seed=seeds, share=shares)
def test_descriptions_of_one_matrix_agree(seed: int, share: float) -> None:
    z = random(seed)
    means, std = 2 * z(K, D), 0.7
    eye = torch.eye(D, dtype=torch.float64)
    same = [
        std,
        Isotropic([std] * K),
        Diagonal(torch.full((D,), std**2, dtype=torch.float64)),
        Full((std**2 * eye).expand(K, D, D)),
        LowRank(torch.zeros(D, 2), std),
        LowRank(math.sqrt(0.5) * std * eye, math.sqrt(0.5) * std),
    ]
    first, *others = [GaussianMixture(RectifiedFlow(), means, covariance) for covariance in same]
    x, t, _ = draw(first, share, seed)
    for other in others:
        close(other(x, t).x0, first(x, t).x0)
        close(other(x, t).eps, first(x, t).eps)
        close(other.log_prob(x, t), first.log_prob(x, t))
        close(other.divergence(x, t), first.divergence(x, t))


@pytest.mark.parametrize("kind", ["isotropic", "diagonal", "full", "low rank"])
@given(seed=seeds, share=shares)
def test_mixture_of_equals_is_a_gaussian(kind: str, seed: int, share: float) -> None:
    z = random(seed)
    mean, covariance = z(D), COVARIANCES[kind](z)
    one = Gaussian(VP(), mean, covariance)
    three = GaussianMixture(VP(), mean.expand(3, D), covariance, torch.tensor([0.2, 0.3, 0.5]))
    x, t, _ = draw(one, share, seed)
    close(three(x, t).x0, one(x, t).x0)
    close(three.log_prob(x, t), one.log_prob(x, t))
    close(three.divergence(x, t), one.divergence(x, t), 1e-7)


@given(seed=seeds, share=shares)
def test_order_of_components_does_not_matter(seed: int, share: float) -> None:
    z = random(seed)
    means, matrices, weights = z(K, D), spd(z, K), z(K).softmax(0)
    order = torch.tensor([2, 0, 1])
    a = GaussianMixture(VP(), means, Full(matrices), weights)
    b = GaussianMixture(VP(), means[order], Full(matrices[order]), weights[order])
    x, t, _ = draw(a, share, seed)
    close(a(x, t).x0, b(x, t).x0)
    close(a.divergence(x, t), b.divergence(x, t))
    close(a.responsibilities(x, t)[:, order], b.responsibilities(x, t))


@processes
def test_density_integrates_to_one(process: Process) -> None:
    model = GaussianMixture(process, torch.tensor([[-1.0], [0.5]], dtype=torch.float64), Isotropic([0.2, 0.5]))
    for share in (0.0, 0.3, 0.9):
        t = torch.tensor(process.t_min + share * (process.t_max - process.t_min), dtype=torch.float64)
        reach = 4 + 10 * float(process.sigma(t))
        x = torch.linspace(-reach, reach, 100_001, dtype=torch.float64)
        assert abs(float(torch.trapezoid(model.log_prob(x[:, None], t).exp(), x)) - 1) < 1e-9


def test_posterior_mean_is_the_integral_of_bayes() -> None:
    process, t = VP(), 0.3
    model = GaussianMixture(process, torch.tensor([[-1.0], [0.5]], dtype=torch.float64), Isotropic([0.2, 0.5]))
    alpha, sigma = process.alpha(t), process.sigma(t)
    x0 = torch.linspace(-5, 5, 20_001, dtype=torch.float64)
    for x in (-1.5, 0.1, 2.0):
        joint = model.log_prob(x0[:, None]) - (x - alpha * x0) ** 2 / (2 * sigma**2)
        seen = model(torch.tensor([[x]], dtype=torch.float64), t)
        assert float(seen.x0) == pytest.approx(float((joint.softmax(0) * x0).sum()), rel=1e-9)
        assert float(seen.eps) == pytest.approx(float((joint.softmax(0) * (x - alpha * x0) / sigma).sum()), rel=1e-9)


@covariances
def test_samples_have_the_moments_of_the_law(kind: str) -> None:
    model, n = oracle(VP(), kind, 7), 40_000
    x = model.sample(n, torch.Generator().manual_seed(1))
    roots = torch.stack([model.components.spectrum.color(torch.eye(D, dtype=torch.float64), k) for k in range(K)])
    mean = model.weights @ model.means
    off = model.means - mean
    covariance = torch.einsum("k,kij->ij", model.weights, roots.mT @ roots + off[:, :, None] * off[:, None])
    deviation = covariance.diagonal().sqrt()
    assert float(((x.mean(0) - mean) / deviation).abs().max()) < 5 / math.sqrt(n)
    assert float(((x.T.cov() - covariance) / torch.outer(deviation, deviation)).abs().max()) < 12 / math.sqrt(n)
    assert torch.equal(x, model.sample(n, torch.Generator().manual_seed(1)))


# The ends of time, and of the plane ----------------------------------------------------------------------------------


@covariances
def test_everything_is_finite_at_both_ends(kind: str) -> None:
    model = oracle(RectifiedFlow(t_min=0, t_max=1), kind, 3)
    x = random(4)(B, D)
    for t in (0.0, 1.0, torch.tensor([0.0, 1.0, 0.0, 1.0, 0.5])):
        seen = model(x, t)
        for answer in (seen.x0, seen.eps, seen.velocity, seen.v, model.divergence(x, t), model.log_prob(x, t)):
            assert bool(answer.isfinite().all())
    close(model(x, 0.0).x0, x)
    close(model(x, 1.0).eps, x)
    close(model(x, 1.0).x0, (model.weights @ model.means).expand(B, D))
    close(model(x, 1e-7).eps, model(x, 0.0).eps, 1e-5)
    close(model.divergence(x, 1 - 1e-7), model.divergence(x, 1.0), 1e-5)
    close(model.divergence(x, 1e-7), model.divergence(x, 0.0), 1e-5)
    close(model.log_prob(x, 0.0), model.log_prob(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distance", [1.0, 1e3, 1e6])
def test_far_states_and_little_noise(dtype: torch.dtype, distance: float, device: torch.device) -> None:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=dtype)
    x = torch.tensor([[0.5, 1.0], [-0.5, 1.0]], dtype=dtype, device=device) * distance
    for model in (
        GaussianMixture(EDM(), means, 1e-3),
        GaussianMixture(EDM(), means, LowRank(torch.eye(2)[:1].T, 1e-3)),
    ):
        seen, near = model.to(device), model.responsibilities(x, 0.002)
        assert bool(seen(x, 0.002).x0.isfinite().all() & seen.log_prob(x, 0.002).isfinite().all())
        assert bool(seen.divergence(x, 0.002).isfinite().all())
        if model.components.spectrum.values.shape[1] == 1:
            close(near.cpu(), torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=dtype))


def test_little_noise_keeps_the_digits_of_a_high_dimension() -> None:
    z = random(0)
    means = z(4, 512)
    x = means[:2] + 1e-3 * z(2, 512)
    variance = 1e-12 + 1e-6
    square = (x - means[:2]).square().sum(1) / variance
    expected = -0.5 * (square + 512 * math.log(2 * math.pi * variance)) - math.log(4)
    close(GaussianMixture(EDM(t_min=1e-4), means, 1e-6).log_prob(x, 1e-3), expected, 1e-12)


# Empirical -----------------------------------------------------------------------------------------------------------


@processes
@given(seed=seeds, share=shares)
def test_empirical_is_a_mixture_without_width(process: Process, seed: int, share: float) -> None:
    data = random(seed)(7, D)
    exact, narrow = Empirical(process, data), GaussianMixture(process, data, 1e-9)
    x, t, _ = draw(exact, share, seed)
    distance = (x[:, None] - process.alpha(t)[:, None, None] * data).square().sum(-1)
    weights = (-distance / (2 * process.sigma(t)[:, None] ** 2)).softmax(1)
    close(exact(x, t).x0, weights @ data, 1e-7)
    close(exact(x, t).x0, narrow(x, t).x0, 1e-6)
    close(exact.log_prob(x, t), narrow.log_prob(x, t), 1e-6)
    close(exact.divergence(x, t), narrow.divergence(x, t), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_empirical_without_noise_is_the_nearest_point(dtype: torch.dtype, device: torch.device) -> None:
    z = random(0)
    data, x = z(50, 2, 3).to(dtype), z(B, 2, 3).to(device, dtype)
    model = Empirical(RectifiedFlow(t_min=0, t_max=1), data).to(device)
    nearest = torch.cdist(x.flatten(1).cpu(), data.flatten(1)).argmin(1)
    assert torch.equal(model(x, 0.0).x0.cpu(), data[nearest])
    close(model(x, 1.0).x0.cpu(), data.mean(0).expand(B, 2, 3), 1e-5)
    _, slope = jvp(lambda y: model(y, 0.0).x0, (x,), (torch.ones_like(x),))
    assert bool((slope == 0).all())


def test_empirical_draws_its_points() -> None:
    data = torch.arange(5.0)[:, None]
    x = Empirical(VP(), data).sample(1000, torch.Generator().manual_seed(0))
    assert x.unique().tolist() == data[:, 0].tolist()


# Use as a model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (2,), (1, 4, 4)])
def test_data_of_any_rank(shape: tuple[int, ...], device: torch.device) -> None:
    z = random(0)
    d = math.prod(shape)
    means, x = z(K, *shape), z(B, *shape).to(device)
    flat = GaussianMixture(VP(), means.reshape(K, d), Diagonal(z(K, d).exp())).to(device)
    for covariance in (Diagonal(random(1)(K, *shape).exp()), Diagonal(random(1)(*shape).exp()), 0.3):
        model = GaussianMixture(VP(), means, covariance).to(device)
        assert model(x, 0.5).x0.shape == x.shape
        assert model.log_prob(x).shape == model.divergence(x, 0.2).shape == (B,)
        assert model.sample(2, torch.Generator()).shape == (2, *shape)
        assert model.means.shape == means.shape
    assert Gaussian(VP(), means[0], 0.3).mean.shape == shape
    same = GaussianMixture(VP(), means, Diagonal(flat.components.spectrum.values.reshape(K, *shape))).to(device)
    close(same(x, 0.5).eps.reshape(B, d), flat(x.reshape(B, d), 0.5).eps)


@covariances
def test_single_precision(kind: str, device: torch.device) -> None:
    exact = oracle(VP(), kind, 5).to(device)
    single = oracle(VP(), kind, 5).float().to(device)
    x, t = random(6)(B, D).to(device), torch.linspace(0.1, 0.9, B)
    for time in (t, 0.4):
        seen = single(x.float(), time)
        assert seen.x0.dtype == torch.float32
        close(seen.x0.double(), exact(x, time).x0, 1e-4)
        close(single.log_prob(x.float(), time).double(), exact.log_prob(x, time), 1e-4)
        close(single.divergence(x.float(), time).double(), exact.divergence(x, time), 1e-3)
    assert exact(x.float(), 0.4).x0.dtype == torch.float32  # computed in float64, answered as asked


@covariances
def test_differentiates_and_vectorizes(kind: str) -> None:
    model, z = oracle(VP(), kind, 1), random(2)
    x, u = z(B, D), z(B, D)

    def velocity(y: Tensor) -> Tensor:
        return model(y, 0.5).velocity

    _, forward = jvp(velocity, (x,), (u,))
    step = (velocity(x + 1e-5 * u) - velocity(x - 1e-5 * u)) / 2e-5
    close(forward, step, 1e-7)
    (backward,) = vjp(velocity, x)[1](u)
    assert torch.allclose((forward * u).sum(), (backward * u).sum())
    close(vmap(lambda y: velocity(y[None])[0])(x), velocity(x))
    probes = z(3, B, D)
    many = vmap(lambda v: jvp(velocity, (x,), (v,))[1])(probes)
    close(many[1], jvp(velocity, (x,), (probes[1],))[1])
    _, slope = jvp(lambda y: model.divergence(y, 0.5), (x,), (u,))
    close(slope, (gradient(lambda y: model.divergence(y, 0.5), x) * u).sum(1))


@covariances
def test_blocks_do_not_show(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [oracle(VP(), kind, 1), Empirical(VP(), random(1)(K, D))]
    x, times = random(2)(B, D), (0.5, torch.linspace(0.1, 0.9, B))
    whole = [f(x, t) for m in models for t in times for f in (lambda x, t, m=m: m(x, t).x0, m.log_prob, m.divergence)]
    monkeypatch.setattr(mixture, "BLOCK", 2 * models[0].components.width)
    parts = [f(x, t) for m in models for t in times for f in (lambda x, t, m=m: m(x, t).x0, m.log_prob, m.divergence)]
    for a, b in zip(whole, parts, strict=True):
        close(a, b, 1e-12)


def test_is_a_model_and_a_module() -> None:
    model = oracle(VP(), "full each", 0)
    x = random(1)(B, D)
    system = ProbabilityFlow().of(model)
    close(system.drift(x, 0.3), model(x, 0.3).velocity)
    assert system.nfe == 1
    assert not list(model.parameters())
    close(model(x, 0.3).view(Preconditioned()), Preconditioned().of(VP(), 0.3, model(x, 0.3).x0, model(x, 0.3).eps))
    again = oracle(VP(), "full each", 1)
    again.load_state_dict(model.state_dict())
    close(again(x, 0.3).x0, model(x, 0.3).x0)
    assert model(x[:0], 0.3).x0.shape == (0, D)
    assert "components=3, shape=(4,)" in repr(model)


def test_responsibilities_are_an_exact_classifier() -> None:
    model = oracle(VP(), "full each", 0)
    x = random(1)(B, D)
    for k in range(K):
        alone = Gaussian(VP(), model.means[k], Full(oracle_matrix(model, k)))
        bayes = model.weights[k].log() + alone.log_prob(x, 0.3) - model.log_prob(x, 0.3)
        close(model.responsibilities(x, 0.3)[:, k].log(), bayes)
    close(model.responsibilities(x).sum(1), torch.ones(B, dtype=torch.float64))


def oracle_matrix(model: GaussianMixture, k: int) -> Tensor:
    root = model.components.spectrum.color(torch.eye(D, dtype=torch.float64), k)
    return root.mT @ root


# Fitting -------------------------------------------------------------------------------------------------------------

FAMILIES: dict[str, Family] = {
    "isotropic": Isotropic,
    "diagonal": Diagonal,
    "full": Full,
    "low rank": LowRank.of_rank(1),
    "rank 0": LowRank.of_rank(0),
    "rank of all": LowRank.of_rank(9),
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())


@families
def test_fit_recovers_a_separated_mixture(family: Family) -> None:
    means = torch.tensor([[-6.0, 0.0, 1.0], [6.0, 0.0, 2.0], [0.0, 8.0, 3.0]], dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    truth = GaussianMixture(VP(), means, 0.5, weights)
    data = truth.sample(5000, torch.Generator().manual_seed(0))
    found = GaussianMixture.fit(VP(), data, 3, family)
    order = torch.cdist(means, found.means).argmin(1)
    assert float((found.means[order] - means).abs().max()) < 0.06
    assert float((found.weights[order] - weights).abs().max()) < 0.02
    assert float(found.components.spectrum.values.sqrt().sub(0.5).abs().max()) < 0.05
    assert abs(float(found.log_prob(data).mean() - truth.log_prob(data).mean())) < 0.01


@families
def test_fit_never_loses_likelihood(family: Family) -> None:
    z = random(0)
    x = torch.cat([z(150, 4) * z(4), 1 + z(150, 4) * z(4)])
    x = x - x.mean(0)
    law = maximization(x, (3 * z(300, 4)).softmax(1), family, 0.01)
    history = []
    for _ in range(25):
        weights, now = expectation(x, law)
        history.append(now)
        law = maximization(x, weights, family, 0.01)
    assert all(b > a - 1e-9 for a, b in itertools.pairwise(history))
    assert history[-1] > history[0]


@families
def test_fit_of_one_gaussian(family: Family) -> None:
    data = random(0)(200, 2, 2) @ torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64)) + 100
    one, mixture_of_one = Gaussian.fit(VP(), data, family), GaussianMixture.fit(VP(), data, 1, family)
    close(one.mean[None], data.mean(0)[None])
    close(one.log_prob(data), mixture_of_one.log_prob(data))
    if family is Full:
        covariance = data.flatten(1).T.cov(correction=0)
        close(one.log_prob(data), MultivariateNormal(data.flatten(1).mean(0), covariance).log_prob(data.flatten(1)))


def test_fit_is_deterministic_and_robust() -> None:
    z = random(0)
    data = z(60, 6).float()
    data[:, 2] = 1.0  # a dimension that never changes
    data[30:] = data[:30]  # every point twice
    for family in FAMILIES.values():
        model = GaussianMixture.fit(RectifiedFlow(), data, 40, family, seed=3)
        assert model.means.dtype == torch.float32
        assert bool(model.log_prob(data).isfinite().all())
        assert bool(model(data, 0.5).velocity.isfinite().all())
    again = GaussianMixture.fit(RectifiedFlow(), data, 40, family, seed=3)
    assert torch.equal(model.means, again.means)


# Errors --------------------------------------------------------------------------------------------------------------

EYE = torch.eye(2)
TWO = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Isotropic(0.0), "standard deviation must be positive and finite; got 0.0"),
        (lambda: Isotropic(float("nan")), "standard deviation must be positive"),
        (lambda: Diagonal(torch.tensor([1.0, -2.0])), "variance must be positive and finite; got -2.0"),
        (lambda: Full(torch.zeros(2, 3)), r"of shape \(d, d\) or \(K, d, d\); got shape \(2, 3\)"),
        (lambda: Full(EYE * torch.inf), "must be finite"),
        (lambda: Full(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), "symmetric; got one that differs .* by 5.0e-01"),
        (lambda: Gaussian(VP(), TWO[0], Full(torch.tensor([[1.0, 2.0], [2.0, 1.0]]))), "smallest eigenvalue is -1"),
        (lambda: Gaussian(VP(), TWO[0], Full(torch.ones(2, 2))), "positive definite"),
        (lambda: LowRank(torch.zeros(3), 0.1), r"\(d, r\) or \(K, d, r\); got shape \(3,\)"),
        (lambda: LowRank(torch.zeros(3, 1), 0.0), "standard deviation must be positive"),
        (lambda: LowRank.of_rank(-1), "rank must be at least 0; got -1"),
        (lambda: GaussianMixture(VP(), TWO, Full(torch.eye(3))), "got 1 of dimension 3 for 3 means of dimension 2"),
        (lambda: GaussianMixture(VP(), TWO, Isotropic([1.0, 2.0])), "got 2 of dimension 2 for 3 means"),
        (lambda: GaussianMixture(VP(), TWO, Diagonal(torch.ones(5))), "got 1 of dimension 5 for 3 means"),
        (lambda: GaussianMixture(VP(), TWO, 1.0, torch.tensor([0.5, 0.5])), r"Weights must be 3 .* got shape \(2,\)"),
        (lambda: GaussianMixture(VP(), TWO, 1.0, torch.ones(3)), "with sum 1, .* sum 3"),
        (lambda: GaussianMixture(VP(), TWO, 1.0, torch.tensor([0.0, 0.5, 0.5])), "positive numbers"),
        (lambda: GaussianMixture(VP(), TWO * torch.nan, 1.0), "Means must be finite"),
        (lambda: GaussianMixture(VP(), torch.tensor(1.0), 1.0), r"Means must have shape \(K, ...\)"),
        (lambda: Empirical(VP(), TWO[:0]), "at least one"),
        (lambda: GaussianMixture.fit(VP(), TWO, 4), "from 1 to the number of points, 3; got 4"),
        (lambda: GaussianMixture.fit(VP(), TWO, 2), "not all equal"),
        (lambda: Gaussian.fit(VP(), EYE * torch.nan), "must be finite"),
        (lambda: Gaussian.fit(VP(), EYE, floor=0.0), "floor positive"),
    ],
)
def test_wrong_data_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(TWO[0], EYE, 1.0), "first argument must be a process, such as VP"),
        (lambda: Gaussian(VP(), TWO[0], Full), "Isotropic, Diagonal, Full, LowRank; got <class"),
        (lambda: Gaussian(VP(), TWO[0], EYE), r"got Tensor. Wrap a matrix as Full\(matrix\)"),
        (lambda: Gaussian.fit(VP(), EYE, LowRank), r"LowRank.of_rank\(r\)"),
    ],
)
def test_wrong_types_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()


def test_wrong_calls_are_refused() -> None:
    model = Gaussian(VP(), torch.zeros(2, 3), 1.0)
    x = torch.zeros(5, 2, 3)
    for ask in (model, model.log_prob, model.divergence, model.responsibilities):
        with pytest.raises(ValueError, match=r"\(B, 2, 3\); got \(5, 6\)"):
            ask(x.flatten(1), 0.5)
        with pytest.raises(ValueError, match="one entry per sample"):
            ask(x, torch.full((4,), 0.5))
        with pytest.raises(ValueError, match="A time must lie in"):
            ask(x, 2.0)
    with pytest.raises(ValueError, match="density only with noise"):
        Empirical(VP(), x).log_prob(x)


def test_a_spectrum_is_shared_without_being_moved() -> None:
    spectrum = Full(torch.eye(2)).spectrum(1, 2)
    Components(torch.zeros(3, 2), spectrum, torch.full((3,), 1 / 3))
    assert spectrum.values.dtype == torch.float64
