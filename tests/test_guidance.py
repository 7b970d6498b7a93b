"""Guidance against closed forms: tilted mixtures, posteriors of Gaussians, and the calls that are made."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import Exact, agree, column, every_process, normal, number
from torch import nn

from sdekit import (
    DDIM,
    DDPM,
    EDM,
    HEUN,
    VE,
    VP,
    X0,
    Denoiser,
    Eps,
    Gaussian,
    GaussianMixture,
    LogSNR,
    Method,
    Preconditioned,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    V,
    Velocity,
    log_likelihood,
    sample,
    solve,
    trajectory,
)
from sdekit.adaptive import adapt
from sdekit.denoiser import MeanAndVariance
from sdekit.guidance import (
    Frozen,
    Guided,
    Inpainting,
    Interval,
    Linear,
    NoisyClassifier,
    Potential,
    Ratio,
    Rescaled,
    Reward,
    classifier_free,
    ho_salimans,
)
from sdekit.nets import MLP
from sdekit.noise import Keyed
from sdekit.oracle import Diagonal, Full, Isotropic, LowRank
from sdekit.prediction import calls
from sdekit.sample import start
from sdekit.solvers import LearnedVariance, LimitedAdams
from sdekit.training import Recipe, Trainer
from sdekit.training.classifier import CrossEntropy

MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.2], [0.3, -1.2]], dtype=torch.float64)
FACTOR = torch.tensor([[1.0, 0.3, -0.2], [0.0, 0.6, 0.4], [0.0, 0.0, 0.5]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, -1.0]], dtype=torch.float64)
COVARIANCE = FACTOR.T @ FACTOR
SPREADS = [Full(COVARIANCE), Isotropic(0.7), Diagonal([0.5, 1.0, 2.0]), LowRank(FACTOR[:, :1], 0.4)]


def mixture(process):
    """Return a labelled mixture: the whole of it, and the model of each of its labels."""
    whole = GaussianMixture(process, MEANS, 0.5, torch.tensor([0.5, 0.3, 0.2]).double())
    return whole, [GaussianMixture(process, mean[None], 0.5) for mean in MEANS]


def score(oracle, x, t):
    """Return grad log p_t(x) from the density, not from the model's answer."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(oracle.log_prob(x, t).sum(), x)[0]


def inner(process):
    """Return times at which neither alpha nor sigma is so small that a score is lost in rounding."""
    low, high = float(process.lam(process.t_max)), float(process.lam(process.t_min))
    margin = min(1e-3, (high - low) / 8)
    return process.time(torch.tensor([-4.0, -1.0, 0.0, 2.0], dtype=torch.float64).clamp(low + margin, high - margin))


def posterior(oracle, label):
    """Return the exact classifier of noisy states, for one label."""
    return lambda x, t: oracle.responsibilities(x, t)[:, label].log()


def states(process, t, dim=2, seed=0):
    size = (process.alpha(t) ** 2 + process.sigma(t) ** 2).sqrt()
    return column(size, normal(len(t), dim, seed=seed)) * normal(len(t), dim, seed=seed)


# Densities times densities --------------------------------------------------------------------------------------------


@every_process
def test_classifier_free_guidance_has_the_score_of_the_tilted_density(process, draw):
    whole, parts = mixture(process)
    s, label = draw(number(-1, 8)), draw(st.integers(0, 2))
    t = inner(process)
    x = states(process, t, seed=draw(st.integers(0, 99)))
    u, c = score(whole, x, t), score(parts[label], x, t)
    model = classifier_free(parts[label], whole, s)
    agree(model(x, t).score, u + s * (c - u), 1e-8)
    for a, b in zip(x, t, strict=True):
        agree(model(a[None], b).score, score(whole, a[None], b) * (1 - s) + s * score(parts[label], a[None], b), 1e-8)


@given(s=number(-1, 8), label=st.integers(0, 2))
def test_both_conventions_and_the_plain_ratio_agree(s, label):
    whole, parts = mixture(VP())
    t = inner(VP())
    x, c = states(VP(), t), parts[label]
    expected = classifier_free(c, whole, s)(x, t).answer
    agree(ho_salimans(c, whole, s - 1)(x, t).answer, expected)
    agree(Guided(whole, Ratio(c, whole, scale=s))(x, t).answer, expected)


@every_process
def test_an_exact_classifier_makes_an_unconditional_model_conditional(process, draw):
    whole, parts = mixture(process)
    label, s = draw(st.integers(0, 2)), draw(number(0, 5))
    t = inner(process)
    x = states(process, t)
    with torch.no_grad():
        agree(Guided(whole, Potential(posterior(whole, label)))(x, t).score, parts[label](x, t).score, 1e-7)
        tilted = Guided(whole, Potential(posterior(whole, label), scale=s))
        agree(tilted(x, t).score, classifier_free(parts[label], whole, s)(x, t).score, 1e-7)


def test_ends_at_s_0_and_1_are_the_models_themselves():
    whole, parts = mixture(VP())
    t = inner(VP())
    x = states(VP(), t)
    assert torch.equal(classifier_free(parts[0], whole, 0.0)(x, t).answer, whole(x, t).answer)
    assert torch.equal(classifier_free(parts[0], whole, 1.0)(x, t).answer, parts[0](x, t).answer)
    assert torch.equal(ho_salimans(parts[0], whole, 0.0)(x, t).answer, parts[0](x, t).answer)


@given(order=st.permutations(range(4)), scales=st.lists(number(-2, 3), min_size=4, max_size=4))
def test_guides_add_in_any_order_and_also_one_by_one(order, scales):
    whole, parts = mixture(VP())
    guides = [
        Ratio(parts[0], whole, scale=scales[0]),
        Ratio(parts[1], whole, scale=scales[1]),
        Potential(posterior(whole, 2), scale=scales[2]),
        Ratio(whole, parts[2], scale=scales[3]),
    ]
    t = inner(VP())
    x = states(VP(), t)
    expected = score(whole, x, t)
    for s, label in ((scales[0], 0), (scales[1], 1), (scales[2] - scales[3], 2)):
        expected = expected + s * (score(parts[label], x, t) - score(whole, x, t))
    agree(Guided(whole, *(guides[i] for i in order))(x, t).score, expected, 1e-7)
    nested = whole
    for i in order:
        nested = Guided(nested, guides[i])
    agree(nested(x, t).score, expected, 1e-7)


def test_a_product_of_gaussians_is_their_gaussian():
    a, b, base = (Gaussian(VP(), torch.tensor([m], dtype=torch.float64), 0.5) for m in (1.0, -0.4, 0.2))
    model = Guided(base, Ratio(a, base), Ratio(b, base))
    t = inner(VP())
    x = states(VP(), t, dim=1)
    alpha, sigma = VP().alpha(t)[:, None], VP().sigma(t)[:, None]
    agree(model(x, t).score, -(x - alpha * (1.0 - 0.4 - 0.2)) / (0.25 * alpha**2 + sigma**2))


def test_answers_are_finite_where_alpha_is_0():
    process = RectifiedFlow(t_max=1.0)
    a, b = (Gaussian(process, torch.tensor([m], dtype=torch.float64), 0.5) for m in (1.0, -0.4))
    agree(classifier_free(a, b, 3.0)(normal(4, 1), 1.0).x0, -0.4 + 3 * 1.4)


def test_models_in_different_targets_are_combined():
    eps, flow, x0 = Exact(VP(), Eps()), Exact(VP(), Velocity(), mean=-1.0), Exact(VP(), X0(), mean=0.2)
    t = inner(VP())
    x = states(VP(), t)
    model = Guided(eps, Ratio(flow, x0, scale=1.5))
    agree(model(x, t).score, eps.score(x, t) + 1.5 * (flow.score(x, t) - x0.score(x, t)))


# When guides act ------------------------------------------------------------------------------------------------------


@given(low=number(-3, 0), width=number(0.1, 4))
def test_an_interval_holds_its_noisy_end_and_not_its_clean_one(low, width):
    interval = Interval(low, low + width)
    ends = [low, low + width, math.nextafter(low, -math.inf), math.nextafter(low + width, -math.inf)]
    assert interval.holds(torch.tensor(ends, dtype=torch.float64)).tolist() == [True, False, False, True]


def test_an_interval_of_noise_is_that_of_sigma():
    model = classifier_free(*(Gaussian(EDM(), torch.tensor([m], dtype=torch.float64), 0.5) for m in (1.0, -0.4)), 3.0,
                            Interval.of_noise(0.28, 2.9))  # fmt: skip
    assert [model.calls_at(sigma) for sigma in (0.1, 0.28, 0.2801, 2.9, 2.9001, 50.0)] == [1, 1, 2, 2, 1, 1]
    assert Interval.of_noise(0.0, math.inf) == Interval()
    assert Interval().holds(torch.tensor([-math.inf, 0.0, math.inf])).all()


@given(low=number(-4, 0), width=number(0.5, 4), s=number(1.5, 5))
def test_outside_its_interval_guidance_is_the_conditional_model(low, width, s):
    whole, parts = mixture(VP())
    t = VP().time(torch.linspace(-4.5, 4.0, 30).double())
    x, lam = states(VP(), t), VP().lam(t)
    inside = (lam >= low) & (lam < low + width)
    scales = torch.where(inside, s, 1.0)[:, None]
    u, c = whole(x, t).score, parts[0](x, t).score
    for model in (
        classifier_free(parts[0], whole, s, Interval(low, low + width)),
        ho_salimans(parts[0], whole, s - 1, Interval(low, low + width)),
    ):
        agree(model(x, t).score, u + scales * (c - u), 1e-6)
        assert [model.calls_at(time) for time in t] == [2 if holds else 1 for holds in inside]


def test_a_scale_may_be_a_function_of_the_log_snr():
    whole, parts = mixture(VP())
    t = inner(VP())
    x, s = states(VP(), t), 1 + VP().lam(t).sigmoid()[:, None]
    u, c = whole(x, t).score, parts[0](x, t).score
    agree(classifier_free(parts[0], whole, lambda lam: 1 + lam.sigmoid())(x, t).score, u + s * (c - u), 1e-8)
    agree(Guided(whole, Ratio(parts[0], whole, scale=lambda lam: 1 + lam.sigmoid()))(x, t).score, u + s * (c - u), 1e-8)
    with pytest.raises(ValueError, match="elementwise"):
        Guided(whole, Ratio(parts[0], whole, scale=lambda lam: torch.ones(3)))(x, t)


@given(phi=number(0, 1), s=number(1.5, 9))
def test_rescaling_brings_the_spread_of_each_sample_back(phi, s):
    whole, parts = mixture(VP())
    t = inner(VP())
    x = states(VP(), t)
    guided = classifier_free(parts[0], whole, s)
    answer, alone = guided(x, t).v, parts[0](x, t).v
    ratio = alone.std(1, keepdim=True) / answer.std(1, keepdim=True)
    agree(Rescaled(guided, phi)(x, t).v, phi * answer * ratio + (1 - phi) * answer)
    agree(Rescaled(guided, 1.0)(x, t).v.std(1), alone.std(1))
    assert torch.equal(Rescaled(guided, 0.0)(x, t).v, answer)


# Through the prediction of the data -----------------------------------------------------------------------------------


@every_process
def test_a_linear_reward_on_gaussian_data_is_the_exact_tilt(process, draw):
    mean, slope, s = MEANS[0], MEANS[1], draw(number(-2, 2))
    data = Gaussian(process, mean, Full(COVARIANCE[:2, :2]))
    tilted = Gaussian(process, mean + s * COVARIANCE[:2, :2] @ slope, Full(COVARIANCE[:2, :2]))
    t = inner(process)
    x = states(process, t)
    with torch.no_grad():
        agree(Guided(data, Reward(lambda x0: x0 @ slope, scale=s))(x, t).score, tilted(x, t).score, 1e-7)


@given(s=number(-2, 2))
def test_a_quadratic_reward_takes_the_mean_for_the_data_and_its_jacobian_or_not(s):
    data = Gaussian(VP(), MEANS[0], Full(COVARIANCE[:2, :2]))
    t = inner(VP())
    x = states(VP(), t)
    alpha, sigma = VP().alpha(t)[:, None, None], VP().sigma(t)[:, None, None]
    c, identity = COVARIANCE[:2, :2], torch.eye(2).double()
    jacobian = alpha * c @ torch.linalg.inv(alpha**2 * c + sigma**2 * identity)
    x0 = data(x, t).x0
    reward = Reward(lambda x0: -(x0 - MEANS[2]).square().sum(1), scale=s)
    slope = -2 * s * (x0 - MEANS[2])
    gained = Guided(data, reward)(x, t).score - data(x, t).score
    agree(gained, (jacobian.mT @ slope[..., None])[..., 0], 1e-8)
    gained = Guided(data, Frozen(reward))(x, t).score - data(x, t).score
    agree(gained, slope / alpha[..., 0], 1e-8)
    agree(Guided(data, Frozen(reward, scale=2.0))(x, t).eps, data(x, t).eps - 2 * sigma[..., 0] * gained, 1e-8)


def conditional(mean, covariance, y, std):
    """Return mean and covariance of x0 ~ N(mean, covariance) given y = MATRIX x0 + std n."""
    gain = covariance @ MATRIX.T @ torch.linalg.inv(MATRIX @ covariance @ MATRIX.T + std**2 * torch.eye(2).double())
    return mean + gain @ (y - MATRIX @ mean), covariance - gain @ MATRIX @ covariance


@every_process
def test_a_measurement_of_gaussian_data_gives_the_exact_posterior_score(process, draw):
    data_law, std = draw(st.sampled_from(SPREADS)), draw(number(0.05, 2))
    mean, y = normal(3, seed=1), normal(2, seed=2)
    data = Gaussian(process, mean, data_law)
    spectrum = data.components.spectrum
    covariance = torch.stack([spectrum.color(row[None], 0)[0] for row in torch.eye(3).double()])
    truth = Gaussian(process, *(lambda m, c: (m, Full(c)))(*conditional(mean, covariance.T @ covariance, y, std)))
    t = inner(process)
    x = states(process, t, dim=3)
    model = Guided(data, Linear(MATRIX, y, std, data=data_law))
    agree(model(x, t).score, truth(x, t).score, 1e-6)
    for i in range(len(t)):
        agree(model(x[i : i + 1], t[i]).score, truth(x[i : i + 1], t[i]).score, 1e-6)


def test_without_a_covariance_the_mean_stands_for_the_data():
    data = Gaussian(VP(), MEANS[0], 0.5)
    matrix, y, std = MATRIX[:, :2], normal(2), 0.3
    t = inner(VP())
    x = states(VP(), t)
    likelihood = Reward(lambda x0: -(y - x0 @ matrix.T).square().sum(1) / (2 * std**2))
    agree(Guided(data, Linear(matrix, y, std))(x, t).answer, Guided(data, likelihood)(x, t).answer, 1e-8)


@pytest.mark.parametrize("data", [None, Isotropic(0.7)])
def test_inpainting_is_a_measurement_by_rows_of_the_identity(data):
    mask = torch.tensor([[True, False, True], [False, True, False]])
    oracle = Gaussian(VP(), normal(2, 3), 0.7)
    t = inner(VP())
    x, y = normal(len(t), 2, 3, seed=4), normal(len(t), 2, 3, seed=5)
    matrix = torch.eye(6).double()[mask.flatten()]
    expected = Guided(oracle, Linear(matrix, y[:, mask], 0.2, data=data))(x, t).score
    agree(Guided(oracle, Inpainting(mask, y.masked_fill(~mask, math.nan), 0.2, data=data))(x, t).score, expected, 1e-8)


def test_sampling_an_inpainted_gaussian_gives_the_conditional_mean_and_covariance():
    mask, n, std = torch.tensor([True, False, True]), 20_000, 0.1
    mean, y = normal(3, seed=1), torch.tensor([0.5, -0.7]).double()
    rows = torch.eye(3).double()[mask]
    model = Guided(Gaussian(VP(t_min=1e-5), mean, Full(COVARIANCE)), Linear(rows, y, std, data=Full(COVARIANCE)))
    gain = COVARIANCE @ rows.T @ torch.linalg.inv(rows @ COVARIANCE @ rows.T + std**2 * torch.eye(2).double())
    x = sample(model, (n, 3), grid=LogSNR(60))
    agree(x.mean(0), mean + gain @ (y - rows @ mean), 0.02)
    agree(x.T.cov(), COVARIANCE - gain @ rows @ COVARIANCE, 0.02)
    x = sample(model, (n, 3), DDPM, LogSNR(150))
    agree(x.mean(0), mean + gain @ (y - rows @ mean), 0.02)
    agree(x.T.cov(), COVARIANCE - gain @ rows @ COVARIANCE, 0.03)


# As a model -----------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A network that counts the samples it was asked about, with labels of which 4 says none."""

    classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(normal(5, 2))
        self.rows = self.times = 0

    def forward(self, x, t, label=None, context=None):
        self.rows, self.times = self.rows + len(x), self.times + 1
        known = self.table[4 if label is None else label]
        known = known if context is None else known + context.mean(1)
        return torch.tanh(x * known + t[:, None].to(x))


def counting(predicts=V()):
    net = Counting()
    return net, Denoiser(net, VP(), predicts=predicts)


LABELS = torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("predicts", [V(), Eps(), Preconditioned(0.5)])
@pytest.mark.parametrize("t", [torch.tensor(0.3).double(), torch.linspace(0.1, 0.9, 5).double()])
def test_conditions_of_one_network_are_evaluated_in_one_batch(predicts, t):
    net, model = counting(predicts)
    c, x = model.given(label=LABELS), normal(5, 2)
    found = classifier_free(c, model, 3.0)(x, t)
    assert (net.times, net.rows) == (1, 10)
    u = model(x, t).answer
    agree(found.answer, u + 3 * (c(x, t).answer - u))


def test_contexts_are_stacked_and_what_does_not_stack_is_asked_apart():
    net, model = counting()
    x, t = normal(5, 2), torch.tensor(0.3).double()
    one, other, long = (model.given(label=LABELS, context=normal(5, n, 2, seed=n)) for n in (3, 3, 7))
    shared = model.given(label=LABELS, context=normal(1, 3, 2))
    Guided(one, Ratio(one, other))(x, t)
    assert (net.times, net.rows) == (1, 10)
    for apart in (long, shared, model.given(label=LABELS)):
        net.times = 0
        expected = 2 * one(x, t).answer - apart(x, t).answer
        agree(Guided(one, Ratio(one, apart))(x, t).answer, expected)
        assert net.times == 4


@pytest.mark.parametrize("method", [DDIM, DDPM, HEUN, Method(ProbabilityFlow(), LimitedAdams())])
@pytest.mark.parametrize("within", [Interval(), Interval(-1.0, 1.5), Interval(8.0, 9.0)])
def test_the_calls_stated_are_the_calls_made(method, within):
    net, model = counting()
    guided = classifier_free(model.given(label=LABELS), model, 2.5, within)
    x = start(guided, (5, 2), LogSNR(12), Keyed(0))
    solution = solve(guided, x, method, LogSNR(12))
    assert solution.nfe * 5 == net.rows
    net.rows = 0
    *_, last = trajectory(guided, x, method, LogSNR(12))
    assert last.nfe * 5 == net.rows == solution.nfe * 5
    agree(last.x, solution.x)


def test_calls_of_guides_add_up_and_passes_backward_are_free():
    net, model = counting()
    c, t = model.given(label=LABELS), 0.4
    classifier = NoisyClassifier(lambda x, t: x, VP())
    cases = {
        Guided(c): 1,
        classifier_free(c, model, 0.0): 1,
        classifier_free(c, model, 1.0): 1,
        classifier_free(c, model, 2.0): 2,
        Rescaled(classifier_free(c, model, 2.0)): 2,
        Rescaled(classifier_free(c, model, 0.0)): 2,
        Rescaled(classifier_free(c, model, 1.0)): 1,
        Guided(c, Reward(lambda x0: x0.sum(1))): 1,
        Guided(c, Frozen(Reward(lambda x0: x0.sum(1)))): 1,
        Guided(c, Ratio(c, model, scale=-1.0), Reward(lambda x0: x0.sum(1))): 2,
        Guided(c, Ratio(c, model), Ratio(model.given(label=LABELS), model)): 3,
        Guided(classifier_free(c, model, 2.0), Reward(lambda x0: x0.sum(1), within=Interval(99.0))): 2,
    }
    for guided, count in cases.items():
        net.rows = 0
        guided(normal(5, 2), t)
        assert net.rows == 5 * count == 5 * calls(guided, t)
        assert guided.calls >= count
    assert calls(Guided(c, Potential(classifier.given(LABELS % 2))), t) == 2
    assert calls(Guided(c, Potential(classifier.given(LABELS % 2), scale=0.0)), t) == 1
    assert calls(model, t) == 1


GUIDES = {
    "classifier-free": lambda whole, parts: classifier_free(parts[0], whole, 2.0, Interval(-2.0, 3.0)),
    "classifier": lambda whole, parts: Guided(whole, Potential(posterior(whole, 1), scale=1.5)),
    "reward": lambda whole, parts: Guided(whole, Reward(lambda x0: x0[:, 0].sin())),
    "frozen": lambda whole, parts: Guided(whole, Frozen(Reward(lambda x0: x0[:, 0]), within=Interval(0.0))),
    "linear": lambda whole, parts: Guided(whole, Linear(MATRIX[:, :2], MEANS[0], 0.3, Isotropic(1.0))),
    "rescaled": lambda whole, parts: Rescaled(classifier_free(parts[0], whole, 2.0)),
    "several": lambda whole, parts: Guided(
        classifier_free(parts[0], whole, 2.0), Potential(posterior(whole, 0)), Reward(lambda x0: x0[:, 0])
    ),
}


@pytest.mark.parametrize("kind", GUIDES)
@pytest.mark.parametrize(
    "method", [DDIM, HEUN, Method(ReverseSDE(0.5), DDPM.solver), Method(ProbabilityFlow(), LimitedAdams())]
)
def test_a_sample_does_not_depend_on_its_batch(kind, method):
    whole, parts = mixture(VP())
    model = GUIDES[kind](whole, parts)
    x = sample(model, (6, 2), method, LogSNR(8))
    assert x.isfinite().all()
    assert x.dtype == torch.float64
    assert not x.requires_grad
    agree(sample(model, (3, 2), method, LogSNR(8)), x[:3], 1e-10)


@pytest.mark.parametrize("kind", GUIDES)
def test_single_precision_inference_mode_and_half_the_batch(kind):
    whole, parts = mixture(VP())
    model = GUIDES[kind](whole, parts)
    x, t = normal(6, 2), torch.tensor(0.4).double()
    expected = model(x, t).x0.detach()
    assert model(x.float(), t).x0.dtype == torch.float32
    agree(model(x.float(), t).x0.detach(), expected, 1e-4)
    with torch.inference_mode():
        agree(model(x, t).x0.clone(), expected)
    agree(model.select(torch.tensor([1, 4]))(x[[1, 4]], t).x0.detach(), expected[[1, 4]])
    rows = torch.linspace(0.2, 0.6, 6).double()
    agree(model(x, rows).x0.detach()[2:3], model(x[2:3], rows[2]).x0.detach())


@pytest.mark.parametrize("kind", ["classifier-free", "classifier", "reward", "linear"])
def test_the_jacobian_of_a_guided_model_is_right(kind):
    model = GUIDES[kind](*mixture(VP()))
    x, t = normal(3, 2), torch.tensor(0.3).double()
    torch.autograd.gradcheck(lambda x: model(x, t).velocity, x.requires_grad_())


def test_the_likelihood_of_a_posterior_is_that_of_its_gaussian():
    data = Gaussian(VP(), MEANS[0], Full(COVARIANCE[:2, :2]))
    y = torch.tensor([0.4]).double()
    model = Guided(data, Linear(MATRIX[:1, :2], y, 0.5, data=Full(COVARIANCE[:2, :2])))
    gain = COVARIANCE[:2, :2] @ MATRIX[:1, :2].T / (MATRIX[:1, :2] @ COVARIANCE[:2, :2] @ MATRIX[:1, :2].T + 0.25)
    truth = Gaussian(
        VP(),
        MEANS[0] + gain @ (y - MATRIX[:1, :2] @ MEANS[0]),
        Full(COVARIANCE[:2, :2] - gain @ MATRIX[:1, :2] @ COVARIANCE[:2, :2]),
    )
    x = truth.sample(8, torch.Generator().manual_seed(0))
    agree(log_likelihood(model, x).log_prob, truth.log_prob(x, VP().t_min) + 2 * VP().alpha(VP().t_min).log(), 0.02)


def test_adaptive_steps_cut_the_conditions_of_the_samples_still_running():
    _, model = counting()
    labels, x = LABELS.repeat(2), 3 * normal(10, 2)
    classifier = NoisyClassifier(lambda x, t: x, VP())
    guided = Guided(
        classifier_free(model.given(label=labels), model, 2.5),
        Potential(classifier.given(labels % 2)),
        Linear(MATRIX[:, :2], normal(10, 2), 0.5, Isotropic(1.0)),
    )
    together = adapt(guided, x)
    assert len(together.nfe.unique()) > 1
    for i in (0, 3, 9):
        one = guided.select(torch.tensor([i]))
        alone = adapt(one, x[i : i + 1])
        agree(alone.x[0], together.x[i], 1e-9)
        assert (calls(one, 0.4), one.calls) == (calls(guided, 0.4), guided.calls) == (3, 3)


def test_a_learned_variance_is_that_of_the_model_alone():
    class Two(nn.Module):
        def forward(self, x, t, label=None):
            scale = 0.1 if label is None else 0.1 * label[:, None, None]
            return torch.cat([x * scale, (x * scale).tanh()], 1)

    model = Denoiser(Two(), VP(), predicts=Eps(), head=MeanAndVariance())
    c, x = model.given(label=LABELS), normal(5, 1, 3)
    guided = classifier_free(c, model, 2.0)
    assert torch.equal(guided(x, 0.4).place, c(x, 0.4).place)
    rewarded = Guided(c, Reward(lambda x0: x0.flatten(1).sum(1)))
    with torch.no_grad():
        assert not rewarded(x, 0.4).place.requires_grad
    assert solve(guided, x, Method(ReverseSDE(), LearnedVariance()), LogSNR(4)).x.isfinite().all()


# Classifiers ----------------------------------------------------------------------------------------------------------


class Readout(nn.Module):
    """Logits from an MLP of the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = MLP((2,), hidden=32, depth=2), nn.Linear(2, 3)

    def forward(self, x, t):
        return self.head(x + self.body(x, t))


def test_a_trained_classifier_comes_near_the_exact_one_and_guides():
    whole, _ = mixture(VP())
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(whole.weights, 4000, replacement=True, generator=generator)
    x0 = (MEANS[chosen] + 0.5 * torch.randn(4000, 2, dtype=torch.float64, generator=generator)).float()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        classifier = NoisyClassifier(Readout(), VP())
    trainer = Trainer(classifier, (x0, chosen), Recipe(800, lr=3e-3, final=0.0), CrossEntropy())
    for _ in trainer:
        pass
    trained = trainer.average
    for t in (0.05, 0.3, 0.6):
        at = torch.tensor(t).double()
        x = VP().alpha(at) * whole.sample(500, generator) + VP().sigma(at) * normal(500, 2, seed=3)
        exact = whole.responsibilities(x, t)
        found = trained(x.float(), at).softmax(1)
        assert (exact - found).abs().mean() < 0.04
    guided = Guided(whole, Potential(trained.given(torch.zeros(500, dtype=torch.long))))
    x = sample(guided, (500, 2), grid=LogSNR(20))
    assert (x.mean(0) - MEANS[0]).norm() < 0.15
    assert CrossEntropy.from_json(CrossEntropy().to_json()) == CrossEntropy()


def test_the_loss_of_a_classifier_is_its_cross_entropy_at_noised_states():
    classifier = NoisyClassifier(lambda x, t: x * t[:, None], VP())
    x0, label = normal(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    objective = CrossEntropy()
    noising = objective.draw(VP(), x0, torch.Generator().manual_seed(0))
    x = column(VP().alpha(noising.t), x0) * x0 + column(VP().sigma(noising.t), x0) * noising.eps
    expected = -(x * noising.t[:, None]).log_softmax(1)[range(6), label]
    agree(objective.at(classifier, x0, noising, label=label), expected)
    with pytest.raises(ValueError, match="batches"):
        objective.at(classifier, x0, noising)
    with pytest.raises(ValueError, match="label for each sample"):
        classifier.given(label)(x0[:2], 0.3)
    with pytest.raises(ValueError, match="logits"):
        NoisyClassifier(lambda x, t: x.sum(1), VP())(x0, 0.3)


# Errors ---------------------------------------------------------------------------------------------------------------


def test_errors_say_what_must_hold():
    whole, parts = mixture(VP())
    x = normal(4, 2)
    with pytest.raises(TypeError, match="A guide must be"):
        Guided(whole, parts[0])
    with pytest.raises(ValueError, match="one process"):
        Guided(whole, Ratio(Exact(VE()), whole))
    with pytest.raises(ValueError, match="one number a sample"):
        Guided(whole, Potential(lambda x, t: x))(x, 0.3)
    with pytest.raises(ValueError, match="carries no graph"):
        Guided(whole, Reward(lambda x0: x0.detach().sum(1)))(x, 0.3)
    with pytest.raises(ValueError, match="low < high"):
        Interval(1.0, 1.0)
    with pytest.raises(ValueError, match="phi"):
        Rescaled(Guided(whole), 1.5)
    with pytest.raises(ValueError, match="coordinates"):
        Rescaled(Guided(Exact(VP())))(normal(3, 1), 0.3)
    with pytest.raises(ValueError, match="Flatten"):
        Linear(MATRIX, normal(3), 0.1)
    with pytest.raises(ValueError, match="must have noise"):
        Linear(MATRIX, normal(2), 0.0)
    with pytest.raises(ValueError, match="must have noise"):
        Inpainting(torch.ones(2, dtype=torch.bool), normal(2), 0.0)
    with pytest.raises(ValueError, match="mask must be bool"):
        Inpainting(torch.ones(2), normal(2), 0.1)
