"""Objectives: the losses of the papers, their equalities and optima, and laws of times that are drawn and corrected."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from strategies import TABLES, TARGETS, VIEWS, Exact, agree, column, drawn_process, normal, number, shapes, times
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from sdekit import (
    EDM,
    VP,
    X0,
    Cosine,
    Denoiser,
    Discrete,
    Eps,
    Leading,
    Method,
    Preconditioned,
    RectifiedFlow,
    ReverseSDE,
    Score,
    SubVP,
    V,
    Velocity,
    sample,
)
from sdekit._value import Value
from sdekit.denoiser import MeanAndVariance, Single
from sdekit.likelihood import Dequantization, Draws, FixedVariance, discrete_bound
from sdekit.likelihood.chain import decoder_std, step_kl
from sdekit.oracle import Gaussian
from sdekit.prediction import Prediction, WithVariance
from sdekit.solvers import LearnedVariance
from sdekit.training import Likelihood, LogNormal, MinSNR, Objective, On, OnOutput, UniformLogSNR, UniformTimes
from sdekit.training.dropout import Dropout
from sdekit.training.hybrid import VLB, Hybrid
from sdekit.training.importance import Importance
from sdekit.training.levels import CosMap, Mode
from sdekit.training.loss import Loss
from sdekit.training.objective import Criterion, Noising
from sdekit.training.second_moment import LossSecondMoment
from sdekit.training.times import UniformSteps
from sdekit.training.weights import TruncatedSNR

WEIGHTS = [OnOutput(), On(Eps()), On(Velocity()), Likelihood(), MinSNR(), TruncatedSNR()]
LEVEL_LAWS = st.one_of(
    st.just(CosMap()), st.builds(Mode, number(-0.99, 1.74)), st.builds(LogNormal, number(-2, 1), number(0.5, 2))
)
TABLE = Discrete.linear(9, 1e-3, 0.3)
DOUBLE = torch.float64


class Bent(nn.Module):
    """A network of three parameters, with a second head or without."""

    def __init__(self, heads: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.w = nn.Parameter(torch.tensor([0.7, -0.4, 0.3], dtype=DOUBLE))

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        y = self.w[0] * x + self.w[1] * torch.cos(column(t, x) + x)
        y = y if label is None else y + column(label.to(x), x)
        return y if self.heads == 1 else torch.cat([y, torch.tanh(self.w[2] * x)], 1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def per_sample(error: Tensor) -> Tensor:
    return error.square().reshape(len(error), -1).mean(1)


def noised(process, x0, seed=0):
    """Return a draw at uniform times, and alpha, sigma and their rates there, shaped like x0."""
    noising = Objective(times=UniformTimes()).draw(process, x0, generator(seed))
    scales = (process.alpha(noising.t), process.sigma(noising.t), *process.rates(noising.t))
    return noising, [column(c, x0) for c in scales]


def denoiser(process, predicts, net=None):
    assume(predicts.gain(process, process.t_max).isfinite())
    return Denoiser(Bent() if net is None else net, process, predicts=predicts)


def gradient(loss: Tensor, model: Denoiser) -> Tensor:
    return torch.autograd.grad(loss.mean(), model.net.w)[0]


# Losses that are each other ------------------------------------------------------------------------------------------


@drawn_process
def test_score_matching_over_c_out_squared_is_flow_matching(process, draw):
    x0 = normal(*draw(shapes()))
    noising, (alpha, sigma, alpha_rate, sigma_rate) = noised(process, x0)
    model = denoiser(process, Velocity())
    x = alpha * x0 + sigma * noising.eps
    flow = per_sample(model.net(x, noising.t) - (alpha_rate * x0 + sigma_rate * noising.eps))
    c_out = Velocity().gain(process, noising.t)
    denoising = per_sample(model(x, noising.t).x0 - x0) / c_out**2
    agree(denoising, flow, 1e-5)
    got = Objective().at(model, x0, noising)
    agree(got, flow, 1e-12)
    agree(gradient(got, model), gradient(flow, model), 1e-12)


@drawn_process
def test_noise_matching_is_score_matching_times_the_variance(process, draw):
    x0, predicts = normal(*draw(shapes())), draw(TARGETS)
    noising, (alpha, sigma, _, _) = noised(process, x0)
    model = denoiser(process, predicts)
    score = model(alpha * x0 + sigma * noising.eps, noising.t).score
    matching = process.sigma(noising.t) ** 2 * per_sample(score + noising.eps / sigma)
    got = Objective(On(Eps())).at(model, x0, noising)
    agree(got, matching, 1e-5)
    agree(got, process.sigma(noising.t) ** 2 * Objective(On(Score())).at(model, x0, noising), 1e-9)
    agree(gradient(got, model), gradient(matching, model), 1e-5)


def test_data_prediction_with_the_loss_of_the_velocity():
    process, x0 = RectifiedFlow(), normal(8, 2)
    noising, _ = noised(process, x0)
    t = noising.t[:, None]
    model = Denoiser(Bent(), process, predicts=X0())
    x = (1 - t) * x0 + t * noising.eps
    implied = (x - model.net(x, noising.t)) / t
    expected = per_sample(implied - (noising.eps - x0))
    got = Objective(On(Velocity())).at(model, x0, noising)
    agree(got, expected, 1e-10)
    agree(gradient(got, model), gradient(expected, model), 1e-10)


@given(gamma=number(0.1, 20), process=st.sampled_from([VP(), Cosine(), Discrete.linear(50)]))
def test_min_snr_is_the_papers_for_every_prediction(gamma, process):
    t = torch.linspace(process.t_min, process.t_max, 20, dtype=DOUBLE)
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    capped = snr.clamp(max=gamma)
    for predicts, weight in {X0(): capped, Eps(): capped / snr, V(): capped / (snr + 1)}.items():
        agree(MinSNR(gamma)(process, predicts, t) / weight, 1, 1e-8)


@given(process=st.sampled_from([VP(), Cosine(), Discrete.linear(50)]))
def test_the_weights_of_progressive_distillation(process):
    t = torch.linspace(process.t_min, process.t_max, 20, dtype=DOUBLE)
    snr = (process.alpha(t) / process.sigma(t)) ** 2
    agree(On(Eps())(process, X0(), t) / snr, 1, 1e-12)
    agree(TruncatedSNR()(process, X0(), t) / snr.clamp(min=1), 1, 1e-12)
    agree(On(V())(process, X0(), t) / (snr + 1), 1, 1e-8)


@given(sigma_data=number(0.1, 2))
def test_the_preconditioned_output_has_edms_weight(sigma_data):
    t = torch.logspace(-2, 1.5, 20, dtype=DOUBLE)
    weight = OnOutput()(EDM(), Preconditioned(sigma_data), t) / Preconditioned(sigma_data).gain(EDM(), t) ** 2
    agree(weight / ((t**2 + sigma_data**2) / (t * sigma_data) ** 2), 1, 1e-12)


def test_velocity_matching_at_logit_normal_times_is_stable_diffusion_3s():
    t = torch.linspace(0.01, 0.99, 30, dtype=DOUBLE)
    process = RectifiedFlow(t_min=0.0, t_max=1.0)
    law = LogNormal(0.0, 1.0).density(process, t)
    logit = Normal(torch.zeros((), dtype=DOUBLE), 1.0).log_prob(t.logit()).exp() / (t * (1 - t))
    agree(law / logit, 1, 1e-12)
    rate = -2 / (t * (1 - t))  # of their lambda, the logarithm of SNR
    agree(law * On(Velocity())(process, Eps(), t) / (-0.5 * t / (1 - t) * logit * rate), 1, 1e-12)


# The bound of a chain ------------------------------------------------------------------------------------------------


@drawn_process
def test_steps_of_the_bound_are_divergences_of_normals(process, draw):
    s, t = draw(times(process, 2))
    assume(t - s > 1e-3 * (process.t_max - process.t_min))
    x0, error, z, place = normal(3), normal(3, seed=1), normal(3, seed=2), draw(number(-1, 1))
    x = process.perturb(x0, t, z)
    true, model = process.posterior(x0, x, t, s), process.posterior(x0 + error, x, t, s)
    std = true.std * (process.sigma(t) / process.sigma(s)) ** ((1 + place) / 2)
    expected = kl_divergence(Normal(true.mean, true.std), Normal(model.mean, std))
    got = step_kl(process, t, s, error, torch.full_like(x0, place))
    agree(got / expected, 1, 1e-5)


@drawn_process
def test_short_steps_of_the_bound_are_the_likelihood_weight(process, draw):
    t = draw(times(process, 4))
    h = 1e-5 * (process.t_max - process.t_min)
    t, error = t.clamp(process.t_min + 2 * h, process.t_max - 2 * h), normal(4)
    smooth = (process.g2(t + h) / process.g2(t - h) - 1).abs() < 1e-2
    steps = step_kl(process, t + h / 2, t - h / 2, error, -1.0) / h
    agree(torch.where(smooth, steps / (Likelihood()(process, X0(), t) * error**2), 1), 1, 1e-3)
    score = error * process.alpha(t) / process.sigma(t) ** 2
    agree(Likelihood()(process, X0(), t) * error**2 / (process.g2(t) / 2 * score**2), 1, 1e-6)


class Wavy:
    """A model with a variance of its own, or without."""

    def __init__(self, process, learned=True):
        self.process, self.learned = process, learned

    def __call__(self, x, t):
        now = Exact(self.process, Eps())(x, t)
        answer = now.answer + 0.1 * torch.sin(x)
        plain = (self.process, x, now.t, answer, Eps())
        return WithVariance(*plain, torch.tanh(x)) if self.learned else Prediction(*plain)


@pytest.mark.parametrize("levels", [None, Dequantization(17)], ids=["density", "levels"])
@pytest.mark.parametrize("learned", [True, False], ids=["learned", "fixed"])
def test_the_objective_is_the_discrete_bound_term_by_term(learned, levels):
    x0 = (normal(3, 2, 2).clamp(-1, 1) * 8).round() / 8
    model, draws, count = Wavy(TABLE, learned), Draws(1), TABLE.steps
    sure = Gaussian(TABLE, torch.zeros(2, 2, dtype=DOUBLE), 1e-9)  # its error has no chance in it, nor a control of it
    expected = discrete_bound(model, x0, Leading(count), draws, levels, sure)
    got = []
    for i in range(count):
        t = expected.times[i].expand(len(x0))
        noising = Noising(t, draws.normals(x0, 3, i, 0))
        got.append(VLB(levels).at(model, x0, noising) * 4 / count)
    agree(torch.stack(got), expected.terms[1:], 1e-9)
    every = Noising(expected.times.repeat_interleave(3), torch.cat([draws.normals(x0, 3, i, 0) for i in range(count)]))
    agree(VLB(levels).at(model, x0.repeat(count, 1, 1), every).mean() * 4, expected.terms[1:].sum(0).mean(), 1e-9)


def test_the_bound_of_a_given_place_is_that_of_a_fixed_variance():
    x0 = normal(6, 2)
    model = Exact(TABLE)
    noising = VLB().draw(TABLE, x0, generator())
    agree(
        VLB().at(FixedVariance(model, -1.0), x0, noising)[noising.t > 0.2],
        VLB().at(model, x0, noising)[noising.t > 0.2],
    )


def test_hybrid_trains_the_answer_by_the_simple_loss_and_the_variance_by_the_bound():
    model = Denoiser(Bent(2), TABLE, predicts=Eps(), head=MeanAndVariance())
    x0 = normal(64, 3)
    noising = VLB().draw(TABLE, x0, generator())
    assert (noising.t == 1 / 9).any()
    simple, bound, both = (o.at(model, x0, noising) for o in (Objective(), VLB(), Hybrid(scale=0.01)))
    agree(both, simple + 0.01 * bound, 1e-12)
    simple, bound, both = (gradient(loss, model) for loss in (simple, bound, both))
    assert simple[:2].abs().min() > 1e-3
    assert simple[2] == 0
    assert bound.abs().min() > 1e-3
    agree(both[:2], simple[:2], 1e-12)
    agree(both[2], 0.01 * bound[2], 1e-12)


def test_what_the_bound_needs():
    model = Denoiser(Bent(), TABLE, predicts=Eps())
    x0 = normal(4, 2)
    with pytest.raises(ValueError, match=r"need a Discrete process; got VP.*Discrete.cosine"):
        VLB()(Denoiser(Bent(), VP(), predicts=Eps()), x0, generator())
    with pytest.raises(ValueError, match=r"times between them.*UniformSteps"):
        VLB(times=UniformTimes())(model, x0, generator())
    with pytest.raises(TypeError, match=r"must predict a variance.*Prediction.*MeanAndVariance"):
        Hybrid()(model, x0, generator())
    with pytest.raises(ValueError, match="scale must be positive"):
        Hybrid(scale=0.0)


# Optima, by quadrature -----------------------------------------------------------------------------------------------

MEAN, STD = 0.7, 0.5
NODES, MASSES = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(12))


def expected_loss(objective: Criterion, model, t: float, power: int = 1) -> Tensor:
    """Return E[loss^power] at t, for data N(MEAN, STD^2): exact, as the losses are polynomials of low degree."""
    z, eps = (part.reshape(-1, 1) for part in torch.meshgrid(NODES, NODES, indexing="ij"))
    chance = torch.outer(MASSES, MASSES).flatten() / (2 * math.pi)
    noising = Noising(torch.full((len(z),), t, dtype=DOUBLE), eps)
    return (chance * objective.at(model, MEAN + STD * z, noising) ** power).sum()


class Off:
    """The exact model of the data, moved: parameters (shift, slope, curve, place) that are 0 at the truth."""

    def __init__(self, process, predicts, place=None):
        self.process, self.predicts, self.place = process, predicts, place
        self.w = torch.zeros(4, dtype=DOUBLE, requires_grad=True)

    def __call__(self, x, t):
        now = Exact(self.process, self.predicts, MEAN, STD)(x, t)
        answer = now.answer + self.w[0] + self.w[1] * x + self.w[2] * x**2
        plain = (self.process, x, now.t, answer, self.predicts)
        return Prediction(*plain) if self.place is None else WithVariance(*plain, self.place + self.w[3] + 0 * x)


@pytest.mark.parametrize("process", [VP(), SubVP(), EDM(t_max=20.0), RectifiedFlow(), Cosine(), TABLE], ids=repr)
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_the_exact_model_is_where_the_gradient_vanishes(process, weight):
    for predicts in VIEWS:
        for share in (0.1, 0.5, 0.95):
            model = Off(process, predicts)
            loss = expected_loss(Objective(weight), model, process.t_min + share * (process.t_max - process.t_min))
            first = torch.autograd.grad(loss, model.w, create_graph=True)[0][:3]
            second = torch.stack([torch.autograd.grad(g, model.w, retain_graph=True)[0][:3] for g in first])
            least = torch.linalg.eigvalsh(second)
            assert least[0] > 0  # so any other parameters have a larger loss
            agree(first / second.diagonal(), 0, 1e-8)


def best_place(k: int) -> Tensor:
    """Return the place of the variance of x_s given x_t, for the steps of TABLE."""
    t, s = TABLE.node(torch.tensor(k)), TABLE.node(torch.tensor(k - 1))
    alpha, sigma = TABLE.alpha(t), TABLE.sigma(t)
    unknown = STD**2 * sigma**2 / (alpha**2 * STD**2 + sigma**2)  # variance of x0 given x_t
    keep = 1 - TABLE.decay(t, s) ** 2
    smaller = TABLE.sigma(s) ** 2 * keep
    variance = smaller + (TABLE.alpha(s) * keep) ** 2 * unknown
    return (variance / smaller).log() / (TABLE.sigma(t) / TABLE.sigma(s)).log() - 1


@pytest.mark.parametrize("k", range(1, 9))
@pytest.mark.parametrize("objective", [VLB(), Hybrid()], ids=str)
def test_the_exact_variance_is_where_the_bound_is_least(k, objective):
    model = Off(TABLE, Eps(), best_place(k))
    assert -1 < model.place < 1
    loss = expected_loss(objective, model, (k + 1) / 9)
    (first,) = torch.autograd.grad(loss, model.w, create_graph=True)
    agree(first, 0, 1e-10)
    assert torch.autograd.grad(first[3], model.w)[0][3] > 1e-6


def test_the_variance_of_the_last_step_fits_the_error_of_the_data():
    t, before = TABLE.node(torch.tensor(0)), TABLE.node(torch.tensor(1))
    unknown = STD / (TABLE.alpha(t) ** 2 * STD**2 / TABLE.sigma(t) ** 2 + 1).sqrt()
    low, high = (decoder_std(TABLE, t, before, v).log() for v in (-1.0, 1.0))
    model = Off(TABLE, Eps(), 2 * (unknown.log() - low) / (high - low) - 1)
    (slope,) = torch.autograd.grad(expected_loss(VLB(), model, 1 / 9), model.w)
    agree(slope, 0, 1e-9)


# Laws of the times ---------------------------------------------------------------------------------------------------


@drawn_process
def test_laws_of_levels_invert_and_have_the_density_of_their_slope(process, draw):
    law, u, h = draw(LEVEL_LAWS), torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=DOUBLE), 1e-5
    try:
        t = law.quantile(process, u)
    except ValueError as error:
        assert "must have noise levels" in str(error)  # noqa: PT017 (a process of few levels)
        return
    agree(law.cdf(process, t), u, 1e-6)
    width = law.quantile(process, u + h) - law.quantile(process, u - h)
    agree(law.density(process, t) * width / (2 * h), 1, 2e-2 if "betas" in repr(process) else 1e-4)


def test_laws_of_stable_diffusion_3_on_the_straight_path():
    process, u = RectifiedFlow(t_min=0.0, t_max=1.0), torch.linspace(0.02, 0.98, 30, dtype=DOUBLE)
    t = CosMap().quantile(process, u)
    agree(t, 1 - 1 / (torch.tan(math.pi / 2 * u) + 1), 1e-12)
    agree(CosMap().density(process, t), 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t**2), 1e-9)
    for s in (-1.0, 0.0, 0.81, 1.7):
        theirs = 1 - u  # which runs from noise to data
        agree(Mode(s).quantile(process, u), 1 - theirs - s * (torch.cos(math.pi / 2 * theirs) ** 2 - 1 + theirs), 1e-9)
    agree(Mode(0.0).density(process, t), 1, 1e-9)
    with pytest.raises(ValueError, match=r"s must lie in \[-1, 2 / \(pi - 2\)\].*got 1.8"):
        Mode(1.8)


@given(process=TABLES, n=st.integers(1, 50))
def test_steps_are_drawn_evenly_and_only_they(process, n):
    law = UniformSteps()
    t = law.sample(process, n * process.steps, generator())
    k = t * process.steps - 1
    agree(k, k.round(), 1e-9)
    assert torch.bincount(k.round().long(), minlength=process.steps).tolist() == [n] * process.steps
    agree(law.cdf(process, t), (k.round() + 1) / process.steps, 1e-12)
    agree(law.density(process, t), 1 / process.steps, 1e-12)


def test_steps_keep_within_the_process():
    part = Discrete(betas=TABLE.betas, t_min=2 / 9, t_max=0.7)
    assert (UniformSteps().sample(part, 50, generator()) * 9).round().unique().tolist() == [2, 3, 4, 5, 6]
    with pytest.raises(ValueError, match="need a Discrete process"):
        UniformSteps().sample(VP(), 2, generator())


@drawn_process
def test_uniform_log_snr_is_the_law_of_least_variance_for_likelihoods(process, draw):
    t = draw(times(process, 6))
    wanted = process.g2(t) / process.sigma(t) ** 2
    agree(UniformLogSNR().density(process, t) / wanted * wanted[0] / UniformLogSNR().density(process, t[:1]), 1, 1e-6)


GAUSS = tuple(torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(200))


def moments(objective: Criterion, model) -> tuple[float, float]:
    """Return mean and second moment of the loss over its law of times, by quadrature in the share of the law."""
    places, shares = (GAUSS[0] + 1) / 2, GAUSS[1] / 2
    law, process = objective.law(model.process), model.process
    t = law.quantile(process, places)
    weight = (
        torch.ones_like(t) if not isinstance(law, Importance) else law.of.density(process, t) / law.density(process, t)
    )
    first, second = (torch.stack([expected_loss(objective, model, float(s), p) for s in t]) for p in (1, 2))
    return float((shares * weight * first).sum()), float((shares * weight**2 * second).sum())


@pytest.mark.parametrize("process", [VP(t_min=1e-2), RectifiedFlow(t_min=1e-2, t_max=0.99)], ids=repr)
def test_importance_keeps_the_loss_and_lowers_its_variance(process):
    model = Off(process, Eps())
    model.w = torch.tensor([0.3, 0.2, 0.0, 0.0], dtype=DOUBLE)
    plain, second = moments(Objective(Likelihood(), UniformTimes()), model)
    mean, lower = moments(Objective(Likelihood(), Importance()), model)
    assert mean == pytest.approx(plain, rel=1e-4)
    assert lower - mean**2 < 0.35 * (second - plain**2)


@drawn_process
def test_importance_weights_are_the_ratio_of_the_laws(process, draw):
    law = Importance(UniformTimes(), UniformLogSNR())
    t, weight = law.draw(process, 16, generator())
    assert torch.equal(t, UniformLogSNR().sample(process, 16, generator()))
    agree(weight * UniformLogSNR().density(process, t) * (process.t_max - process.t_min), 1, 1e-9)
    model = denoiser(process, X0())
    x0 = normal(16, 2)
    noising = Objective(times=law).draw(process, x0, generator())
    assert torch.equal(noising.t, t)
    got = Objective(Likelihood(), law).at(model, x0, noising)
    agree(got / (weight * Objective(Likelihood()).at(model, x0, noising._replace(weight=None))), 1, 1e-12)


@pytest.mark.parametrize("process", [VP(), RectifiedFlow(), Cosine()], ids=repr)
def test_one_time_in_every_slice_varies_less_than_shared_or_independent_ones(process):
    model = Off(process, Eps())
    model.w = torch.tensor([0.3, 0.2, 0.0, 0.0], dtype=DOUBLE)
    places = (torch.arange(1024, dtype=DOUBLE) + 0.5) / 1024
    t = UniformTimes().quantile(process, places)
    profile = torch.stack([expected_loss(Objective(), model, float(s)) for s in t])
    for n in (8, 16, 64):
        slices = profile.reshape(n, -1)
        independent = profile.var(correction=0) / n
        shared = slices.mean(0).var(correction=0)
        stratified = slices.var(1, correction=0).mean() / n
        assert stratified < shared < independent
        assert stratified < 0.1 * independent


# A law that learns ---------------------------------------------------------------------------------------------------


def remembered(t, losses, bins, history):
    """Return what each bin saw last, one loss after another."""
    seen = [[] for _ in range(bins)]
    for k, loss in zip((t * bins - 1).round().long().tolist(), losses.tolist(), strict=True):
        seen[k] = [*seen[k], loss][-history:]
    return seen


@given(data=st.data(), history=st.integers(1, 4))
def test_the_second_moment_of_losses_is_the_papers(data, history):
    law = LossSecondMoment(history=history, floor=0.01)
    memory, process = law.learner(TABLE), TABLE
    steps, losses = [], []
    for _ in range(data.draw(st.integers(1, 6))):
        k = torch.tensor(data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=30)))
        loss = torch.rand(len(k), generator=generator(len(steps)))
        memory.observe(process, process.node(k), loss)
        steps.append(process.node(k))
        losses.append(loss)
    seen = remembered(torch.cat(steps), torch.cat(losses), 9, history)
    if min(map(len, seen)) < history:
        expected = torch.full((9,), 1 / 9, dtype=DOUBLE)
    else:
        root = torch.tensor(seen, dtype=DOUBLE).square().mean(1).sqrt()
        expected = 0.99 * root / root.sum() + 0.01 / 9
        assert memory.losses.sort(1).values.tolist() == torch.tensor(seen).sort(1).values.tolist()
    agree(memory.masses(), expected, 1e-6)


def learned(law, process, seed=0):
    """Return a memory of losses that depend on the time."""
    memory = law.learner(process)
    for k in range(30):
        t, _ = law.draw(process, 200, generator(seed + k))
        memory.observe(process, t, t**2 + 0.1)
    return memory


@pytest.mark.parametrize(
    ("process", "law"),
    [(TABLE, LossSecondMoment()), (VP(), LossSecondMoment(bins=20)), (EDM(), LossSecondMoment(LogNormal(), bins=10))],
    ids=repr,
)
def test_learned_times_follow_the_losses_and_keep_the_expectation(process, law):
    memory = learned(law, process)
    masses = memory.masses()
    assert masses.max() > 2 * masses.min()
    n, bins = 10_000, len(masses)
    t, weight = memory.draw(process, n, generator())
    k = ((law.cdf(process, t) * bins - 1e-6).ceil().long() - 1).clamp(0, bins - 1)
    assert (torch.bincount(k, minlength=bins) - n * masses).abs().max() <= 2  # one in every slice of the whole
    agree(weight * bins * masses[k], 1, 1e-12)
    agree((masses * (1 / (bins * masses))).sum(), 1, 1e-12)  # so the expected weighted loss is the mean over slices
    shares = law.cdf(process, law.quantile(process, (torch.arange(5000, dtype=DOUBLE) + 0.5) / 5000))
    assert float((weight * law.cdf(process, t)).mean()) == pytest.approx(float(shares.mean()), rel=2e-3)


def test_before_it_has_learned_it_is_its_law():
    memory = LossSecondMoment().learner(TABLE)
    t, weight = memory.draw(TABLE, 90, generator())
    assert torch.equal(t, UniformSteps().sample(TABLE, 90, generator()))
    agree(weight, 1, 1e-12)
    assert torch.equal(LossSecondMoment().sample(VP(), 9, generator()), UniformTimes().sample(VP(), 9, generator()))
    with pytest.raises(ValueError, match="history >= 1"):
        LossSecondMoment(history=0)


def test_a_loss_learns_and_its_history_is_in_its_state():
    model = Denoiser(Bent(2), TABLE, predicts=Eps(), head=MeanAndVariance())
    loss, x0 = Loss(model, VLB(times=LossSecondMoment(history=2))), normal(90, 2)
    for k in range(3):
        noising = loss.draw(x0, generator(k))
        losses = loss(x0, noising)
        loss.observe(noising, losses)
    assert loss.learner.seen.sum() == 270
    again = Loss(model, loss.objective)
    assert not torch.equal(again.draw(x0, generator()).t, loss.draw(x0, generator()).t)
    again.load_state_dict(loss.state_dict())
    assert torch.equal(again.draw(x0, generator()).t, loss.draw(x0, generator()).t)
    plain = (losses / noising.weight)[(noising.t * 9).round() == 9][-2:].float().tolist()
    assert 0 < len(plain) == len(set(plain) & set(loss.learner.losses[8].tolist()))  # not as they are weighted


# The loss as a module ------------------------------------------------------------------------------------------------

OBJECTIVES = [
    Objective(),
    Objective(Likelihood(), Importance()),
    Objective(MinSNR(), Mode(), Dropout(0.3, 10)),
    Objective(TruncatedSNR(), CosMap()),
    VLB(Dequantization(17), LossSecondMoment()),
    Hybrid(On(Velocity()), 0.01, dropout=Dropout(0.1, 0.0, "context")),
]


@pytest.mark.parametrize("objective", OBJECTIVES, ids=str)
def test_objectives_go_to_json_and_back(objective):
    assert Value.from_json(objective.to_json()) == objective
    assert Criterion.from_json(objective.to_json()) == objective


class Wrapper(nn.Module):
    """What DistributedDataParallel is to a module, without its processes."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@pytest.mark.parametrize("objective", [*OBJECTIVES[:4], VLB(), Hybrid()], ids=str)
def test_a_loss_is_a_module_like_any_other(objective):
    learned_variance = isinstance(objective, VLB | Hybrid)
    head = MeanAndVariance() if learned_variance else Single()
    model = Denoiser(Bent(2 if learned_variance else 1), TABLE, predicts=Eps(), head=head)
    loss, x0, label = Loss(model, objective), normal(16, 2), torch.arange(16) % 10
    noising = loss.draw(x0, generator())
    whole = loss(x0, noising, label=label)
    assert whole.shape == (16,)
    parts = [loss(x0[rows], noising.rows(rows), label=label[rows]) for rows in (slice(0, 5), slice(5, 16))]
    agree(torch.cat(parts), whole, 1e-14)
    agree(objective.each(model, x0, generator(), label=label), whole, 1e-14)
    agree(objective(model, x0, generator(), label=label), whole.mean(), 1e-14)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)), Wrapper(loss)):
        twin.zero_grad()
        got = twin(x0, noising, label=label)
        got.mean().backward()
        agree(got, whole, 1e-14)
        (w,) = twin.parameters()
        agree(w.grad, gradient(loss(x0, noising, label=label), model), 1e-12)


def test_a_loss_draws_for_itself_and_learns_while_training():
    loss = Loss(Denoiser(Bent(), TABLE, predicts=Eps()), Objective(times=LossSecondMoment()))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first = loss(normal(8, 2))
        assert loss.learner.seen.sum() == 8
        loss.eval()
        torch.manual_seed(0)
        agree(loss(normal(8, 2)), first, 1e-14)
    assert loss.learner.seen.sum() == 8


def test_an_oracle_has_a_loss():
    loss, x0 = Loss(Exact(VP())), normal(8, 2)
    agree(loss(x0, loss.draw(x0, generator())), Objective().each(Exact(VP()), x0, generator()), 1e-14)
    assert list(loss.parameters()) == []
    assert loss.state_dict() == {}


# Dropout -------------------------------------------------------------------------------------------------------------


@given(share=number(0, 1), n=st.integers(1, 200), seed=st.integers(0, 99))
def test_a_share_of_the_conditions_is_left_out(share, n, seed):
    dropped = Dropout(share, 10).draw(n, generator(seed))
    assert dropped.shape == (n,)
    assert abs(int(dropped.sum()) - share * n) <= 1
    assert torch.equal(dropped, Dropout(share, 10).draw(n, generator(seed)))


def test_every_sample_loses_its_condition_as_often():
    source, drop = generator(), Dropout(0.15, 10)
    often = torch.stack([drop.draw(5, source) for _ in range(8000)]).double().mean(0)
    assert (often - 0.15).abs().max() < 4 * math.sqrt(0.15 * 0.85 / 8000)


def test_conditions_left_out_are_none_to_the_network():
    model, x0, label = Denoiser(Bent(), VP(), predicts=Eps()), normal(20, 2), torch.arange(20)
    objective = Objective(dropout=Dropout(0.4, 100))
    noising = objective.draw(VP(), x0, generator())
    plain = Objective().draw(VP(), x0, generator())
    assert torch.equal(noising.t, plain.t)
    assert torch.equal(noising.eps, plain.eps)
    assert noising.dropped.sum() == 8
    expected = Objective().at(model, x0, plain, label=torch.where(noising.dropped, 100, label))
    agree(objective.at(model, x0, noising, label=label), expected, 1e-14)
    context = torch.ones(20, 3, 2)
    kept = Dropout(0.4, 0.0, "context").apply(noising.dropped, {"context": context, "label": label})
    assert kept["context"].sum((1, 2)).eq(0).equal(noising.dropped)
    assert kept["label"] is label


def test_dropout_says_what_it_needs():
    with pytest.raises(ValueError, match=r"share must lie in \[0, 1\]"):
        Dropout(1.5, 10)
    model = Denoiser(Bent(), VP(), predicts=Eps())
    with pytest.raises(ValueError, match=r"one a sample.*the batch has.*labels beside the data"):
        Objective(dropout=Dropout(0.5, 10))(model, normal(4, 2), generator())


# Networks of two heads -----------------------------------------------------------------------------------------------


def test_a_head_splits_off_the_variance():
    x, t = normal(4, 2, 3), torch.full((4,), 0.5, dtype=DOUBLE)
    model = Denoiser(Bent(2), TABLE, predicts=Eps(), head=MeanAndVariance())
    for at in (t, t[0]):
        now = model(x, at)
        assert isinstance(now, WithVariance)
        agree(now.answer, Bent()(x, t), 1e-14)
        agree(now.place, torch.tanh(0.3 * x), 1e-14)
    for function, at in model.asks(t[:2], x):
        agree(function(x, at), Bent()(x, t), 1e-14)
    with pytest.raises(ValueError, match=r"must return \(B, 2C, ...\).*returned \(4, 3\).*heads=2"):
        Denoiser(lambda x, t: x, TABLE, predicts=Eps(), head=MeanAndVariance())(normal(4, 3), t)
    with pytest.raises(ValueError, match=r"must return the shape of its input.*MeanAndVariance"):
        Denoiser(Bent(2), TABLE, predicts=Eps())(x, t)


def test_a_learned_variance_is_sampled_with():
    model = Denoiser(Bent(2), TABLE, predicts=Eps(), head=MeanAndVariance())
    with torch.no_grad():
        x = sample(model, (3, 2), Method(ReverseSDE(), LearnedVariance()), Leading(9))
    assert x.isfinite().all()
