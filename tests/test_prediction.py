"""Predictions: whatever a network answers in, every view of it is the same answer."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import TARGETS, VIEWS, agree, column, every_process, normal, number, shapes, times

from sdekit import EDM, VP, X0, Eps, Preconditioned, Prediction, RectifiedFlow, Score, V, Velocity

WHOLE_PATH = RectifiedFlow(t_min=0.0, t_max=1.0)
NAMED = {"x0": X0(), "eps": Eps(), "score": Score(), "v": V(), "velocity": Velocity()}


def instant(t):
    return torch.tensor(t, dtype=torch.float64)


def predicted(process, t, x0, eps, target):
    """Return the prediction of a model that knows x0 and eps."""
    return Prediction(process, process.perturb(x0, t, eps), t, target.of(process, t, x0, eps), target)


@every_process
def test_views_agree_whatever_was_answered(process, draw):
    shape = draw(shapes())
    t = draw(times(process, shape[0]) | times(process))
    x0, eps = normal(*shape, seed=1), normal(*shape, seed=2)
    prediction = predicted(process, t, x0, eps, draw(TARGETS))
    for view in VIEWS:
        agree(prediction.view(view), view.of(process, t, x0, eps), 1e-6)


@every_process
def test_targets_are_their_definitions(process, draw):
    t, x0, eps = draw(times(process, 3)), normal(3, 2, seed=1), normal(3, 2, seed=2)
    alpha, sigma, alpha_rate, sigma_rate = (
        column(c, x0) for c in (process.alpha(t), process.sigma(t), *process.rates(t))
    )
    prediction = predicted(process, t, x0, eps, draw(TARGETS))
    agree(prediction.x0, x0, 1e-6)
    agree(prediction.eps, eps, 1e-6)
    agree(prediction.score, -eps / sigma, 1e-6)
    agree(prediction.v, alpha * eps - sigma * x0, 1e-6)
    agree(prediction.velocity, alpha_rate * x0 + sigma_rate * eps, 1e-6)
    agree(
        process.drift(prediction.x, t) - column(process.g2(t), x0) / 2 * prediction.score,
        prediction.velocity,
        1e-6,
    )


@every_process
def test_gain_is_the_derivative_of_x0_by_the_answer(process, draw):
    t, target = draw(times(process, 3)), draw(TARGETS)
    x, answer = normal(3, 2, seed=1), normal(3, 2, seed=2)

    def x0(answer):
        return Prediction(process, x, t, answer, target).x0

    slope = torch.func.jvp(x0, (answer,), (torch.ones_like(answer),))[1]
    agree(column(target.gain(process, t), x), slope, 1e-9)


@pytest.mark.parametrize("target", VIEWS, ids=str)
def test_what_was_answered_is_returned_untouched(target, device):
    answer, t = normal(2, 3).to(device), torch.tensor(0.5)
    prediction = Prediction(VP(), normal(2, 3, seed=1).to(device), t, answer, target)
    assert prediction.view(copy.copy(target)) is answer
    for name, view in NAMED.items():
        assert (getattr(prediction, name) is answer) == (view == target)
        assert getattr(prediction, name).device.type == device.type


@given(target=TARGETS, shape=shapes())
def test_float32_states_give_float32_views(target, shape):
    x0, eps = normal(*shape, seed=1), normal(*shape, seed=2)
    t = torch.linspace(0.3, 0.7, shape[0], dtype=torch.float64)
    single = predicted(VP(), t, x0.float(), eps.float(), target)
    for view in VIEWS:
        assert single.view(view).dtype == torch.float32
        agree(single.view(view), view.of(VP(), t, x0, eps), 1e-4)


# The ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [V(), Velocity(), Preconditioned(0.5)], ids=str)
@pytest.mark.parametrize("t", [0.0, 1.0])
def test_views_are_right_where_alpha_or_sigma_vanishes(target, t):
    x0, eps = normal(4, 2, seed=1), normal(4, 2, seed=2)
    prediction = predicted(WHOLE_PATH, instant(t), x0, eps, target)
    agree(prediction.x0, x0)
    agree(prediction.eps, eps)
    agree(prediction.v, (1 - t) * eps - t * x0)
    agree(prediction.velocity, eps - x0)
    if t == 1:
        agree(prediction.score, -eps)


@pytest.mark.parametrize("sigma", [1e-3, 1e-8, 1e-150])
def test_score_determines_the_data_at_small_noise(sigma):
    x0, eps = normal(4, 2, seed=1), normal(4, 2, seed=2)
    prediction = predicted(WHOLE_PATH, instant(sigma), x0, eps, Score())
    agree(prediction.x0, x0)
    agree(prediction.eps, eps)


def test_an_answer_that_determines_nothing_else_is_still_itself():
    x0, eps = normal(4, 2, seed=1), normal(4, 2, seed=2)
    clean, noise = instant(0.0), instant(1.0)
    at_clean = Prediction(WHOLE_PATH, x0, clean, x0, X0())
    agree(at_clean.x0, x0, 0)
    assert not at_clean.eps.isfinite().any()
    at_noise = Prediction(WHOLE_PATH, eps, noise, eps, Eps())
    agree(at_noise.eps, eps, 0)
    assert not at_noise.x0.isfinite().any()
    agree(Prediction(WHOLE_PATH, x0, clean, eps, Eps()).x0, x0)
    agree(Prediction(WHOLE_PATH, eps, noise, x0, X0()).velocity, eps - x0)


def test_score_of_noise_is_determined_where_alpha_vanishes():
    eps = normal(4, 2)
    agree(Prediction(WHOLE_PATH, eps, instant(1.0), eps, Eps()).score, -eps)


@pytest.mark.parametrize("target", VIEWS, ids=str)
def test_gain_has_an_entry_for_every_time(target):
    assert target.gain(VP(), torch.tensor([0.3, 0.4, 0.5])).shape == (3,)
    assert target.gain(VP(), 0.3).shape == ()


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_gain_of_x0_is_one_at_the_ends_too(t):
    agree(X0().gain(WHOLE_PATH, t), 1, 1e-14)


# Preconditioning --------------------------------------------------------------------------------------------


@given(sigma_data=number(0.1, 2), data=st.data())
def test_preconditioning_is_edm_s(sigma_data, data):
    """Karras et al. 2022 (arXiv 2206.00364), table 1, last column: D = c_skip x + c_out F(c_in x; c_noise)."""
    process, target = EDM(), Preconditioned(sigma_data)
    sigma = data.draw(times(process, 4))
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / (sigma_data**2 + sigma**2).sqrt()
    c_in = 1 / (sigma**2 + sigma_data**2).sqrt()
    x, answer = normal(4, 3, seed=1), normal(4, 3, seed=2)
    expected = column(c_skip, x) * x + column(c_out, x) * answer
    agree(Prediction(process, x, sigma, answer, target).x0, expected)
    agree(target.scale_in(process, sigma), c_in)
    agree(target.gain(process, sigma), c_out)


@every_process
def test_preconditioned_input_and_target_have_unit_variance(process, draw):
    sigma_data = draw(number(0.1, 2))
    target, t = Preconditioned(sigma_data), draw(times(process, 4))
    one, zero = torch.ones(4).double(), torch.zeros(4).double()
    of_data, of_noise = target.of(process, t, one, zero), target.of(process, t, zero, one)
    agree((sigma_data * of_data) ** 2 + of_noise**2, 1)
    in_data, in_noise = (process.perturb(*pair) for pair in ((one, t, zero), (zero, t, one)))
    agree(target.scale_in(process, t) ** 2 * ((sigma_data * in_data) ** 2 + in_noise**2), 1)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan])
def test_sigma_data_must_be_positive(sigma_data):
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        Preconditioned(sigma_data)


def test_a_time_per_sample_must_fit_the_batch():
    with pytest.raises(ValueError, match="one entry per sample"):
        V().of(VP(), torch.tensor([0.1, 0.2]), normal(3, 2), normal(3, 2))
