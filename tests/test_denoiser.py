"""Denoisers: a network of any kind becomes a model, and is told x, the time and the condition as agreed."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import TARGETS, agree, column, every_process, normal, shapes, times
from torch import Tensor, nn

from sdekit import (
    EDM,
    VP,
    X0,
    ByIndex,
    ByNoise,
    ByTime,
    Denoiser,
    Discrete,
    Eps,
    Preconditioned,
    RectifiedFlow,
    Score,
    V,
    Velocity,
)
from sdekit.nets import MLP

WHOLE_PATH = RectifiedFlow(t_min=0.0, t_max=1.0)


class Net(nn.Module):
    """Any smooth function of x, the time and a shift; it remembers what it was given."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7, dtype=dtype))

    def forward(self, x: Tensor, time: Tensor, shift: float = 0.0) -> Tensor:
        self.x, self.time = x, time
        return torch.sin(self.scale * x) + column(time, x).to(x.dtype) + shift


def table(steps):
    return Discrete(betas=(0.01,) * steps)


# What the network answers -----------------------------------------------------------------------------------


@every_process
def test_a_time_per_sample_equals_calls_of_one_sample(process, draw):
    shape = draw(shapes())
    t, target = draw(times(process, shape[0])), draw(TARGETS)
    x, model = normal(*shape), Denoiser(Net(), process, predicts=target)
    whole = model(x, t)
    for k in range(shape[0]):
        for one in (t[k], float(t[k]), t[k : k + 1]):
            single = model(x[k : k + 1], one)
            agree(single.answer, whole.answer[k : k + 1], 1e-12)
            agree(single.x0, whole.x0[k : k + 1], 1e-9)


@every_process
def test_the_answer_is_the_net_s_on_the_scaled_state(process, draw):
    t, target = draw(times(process, 3)), draw(TARGETS)
    x, net = normal(3, 2), Net()
    prediction = Denoiser(net, process, predicts=target, clock=ByTime())(x, t)
    scale = torch.as_tensor(target.scale_in(process, t), dtype=torch.float64)
    agree(net.x, column(scale, x) * x, 1e-14)
    agree(net.time, t, 0)
    agree(prediction.view(target), torch.sin(0.7 * net.x) + column(t, x))


def test_states_keep_their_dtype_and_networks_theirs(device):
    net = Net(torch.float32).to(device)
    model = Denoiser(net, VP(), predicts=Eps())
    for dtype in (torch.float32, torch.float64):
        x = normal(4, 2).to(device, dtype)
        prediction = model(x, torch.linspace(0.1, 0.9, 4, dtype=torch.float64))
        assert net.x.dtype == net.time.dtype == torch.float32
        assert prediction.x is x
        assert prediction.answer.dtype == prediction.x0.dtype == dtype
        assert prediction.x0.device.type == device.type
    # the coefficients are float64: x0 is exact for the answer the float32 network gave
    alpha, sigma = (column(c(prediction.t), x.cpu()) for c in (VP().alpha, VP().sigma))
    agree(prediction.x0.cpu(), (x.cpu() - sigma * prediction.answer.cpu()) / alpha, 1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_time_is_never_coarse(dtype):
    net = Net(dtype)
    Denoiser(net, VP(), predicts=Eps())(normal(2, 3), 0.5)
    assert net.x.dtype == dtype
    assert net.time.dtype in (torch.float32, torch.float64)


@pytest.mark.uses_global_rng
def test_sdekit_s_own_nets_run_in_bfloat16():
    model = Denoiser(MLP((2,), hidden=8, depth=1).bfloat16(), VP(), predicts=V())
    assert model(normal(3, 2), 0.5).x0.dtype == torch.float64


def test_condition_is_bound_once_and_leaves_the_model_alone():
    x, model = normal(3, 2), Denoiser(Net(), VP(), predicts=Eps())
    shifted = model.given(shift=2.0)
    agree(shifted(x, 0.5).eps, model(x, 0.5).eps + 2, 1e-14)
    agree(shifted(x, 0.5).eps, model(x, 0.5, shift=2.0).eps, 0)
    assert shifted.process is model.process
    assert {id(p) for p in shifted.parameters()} == {id(p) for p in model.parameters()}


def test_a_plain_function_is_a_network():
    prediction = Denoiser(lambda x, t: x * column(t, x), VP(), predicts=X0())(normal(3, 2), 0.5)
    agree(prediction.x0, normal(3, 2) / 2)


def test_state_dict_holds_the_network():
    net, other = Net(), Net()
    model = Denoiser(net, VP(), predicts=Eps())
    assert set(model.state_dict()) == {"net.scale"}
    assert next(iter(model.parameters())) is net.scale
    with torch.no_grad():
        net.scale.fill_(0.1)
    Denoiser(other, VP(), predicts=Eps()).load_state_dict(model.state_dict())
    agree(other.scale, 0.1)


# Functional transforms --------------------------------------------------------------------------------------


@every_process
def test_functional_transforms_go_through_x(process, draw):
    t, target = draw(times(process)), draw(TARGETS)
    x, v, model = normal(3, 2, seed=1), normal(3, 2, seed=2), Denoiser(Net(), process, predicts=target)
    _, forward = torch.func.jvp(lambda x: model(x, t).x0, (x,), (v,))
    backward = torch.func.vjp(lambda x: model(x, t).x0, x)[1](v)[0]
    agree((forward * v).sum(), (v * backward).sum(), 1e-9)
    mapped = torch.func.vmap(lambda one: model(one[None], t).x0[0])(x)
    agree(mapped, model(x, t).x0, 1e-9)
    rows = torch.func.vmap(torch.func.jacrev(lambda one: model(one[None], t).x0[0]))(x)
    agree(torch.einsum("bij,bj->bi", rows, v), forward, 1e-9)


@every_process
def test_gradients_go_through_the_time(process, draw):
    model = Denoiser(Net(), process, predicts=draw(TARGETS))
    x, t = normal(3, 2), draw(times(process)).requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        (backward,) = torch.autograd.grad(model(x, t).x0.sum(), t)
    _, forward = torch.func.jvp(lambda t: model(x, t).x0.sum(), (t.detach(),), (torch.ones_like(t),))
    agree(backward, forward, 1e-9)


# Clocks -----------------------------------------------------------------------------------------------------


@every_process
def test_noise_clock_is_a_quarter_of_log_sigma_over_alpha(process, draw):
    t = draw(times(process, 3))
    agree(ByNoise()(process, t), torch.log(process.sigma(t) / process.alpha(t)) / 4, 1e-9)


def test_preconditioned_networks_are_told_the_noise_by_default():
    net, sigma = Net(), torch.tensor([0.01, 1.0, 80.0], dtype=torch.float64)
    Denoiser(net, EDM(), predicts=Preconditioned(0.5))(normal(3, 2), sigma)
    agree(net.time, sigma.log() / 4)  # c_noise
    Denoiser(net, EDM(), predicts=V())(normal(3, 2), sigma)
    agree(net.time, sigma)


@pytest.mark.parametrize("t", [0.0, 1.0])
def test_networks_are_told_finite_times_wherever_they_may_be_asked(t):
    for target in (X0(), V(), Velocity()):
        net = Net()
        Denoiser(net, WHOLE_PATH, predicts=target)(normal(2, 3), t)
        assert net.time.isfinite().all()
    with pytest.raises(ValueError, match="clock"):  # log(sigma / alpha) is infinite at the ends
        Denoiser(Net(), WHOLE_PATH, predicts=Preconditioned(0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(steps=st.integers(2, 4000))
def test_index_of_a_table_is_exact_at_its_nodes(dtype, steps):
    net, k = Net(dtype), torch.arange(steps)
    process = table(steps)
    Denoiser(net, process, predicts=Eps(), clock=ByIndex())(normal(steps, 1), process.node(k))
    assert torch.equal(net.time, k.to(dtype))


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 1), (1, 3), (2, 6), (2,)])
def test_a_net_must_keep_the_shape(shape):
    with pytest.raises(ValueError, match="shape of its input"):
        Denoiser(lambda x, t: normal(*shape), VP(), predicts=Eps())(normal(2, 3), 0.5)


@pytest.mark.parametrize("target", [Eps(), Score()], ids=str)
def test_noise_says_nothing_about_the_data_where_alpha_vanishes(target):
    with pytest.raises(ValueError, match="must determine x0"):
        Denoiser(Net(), WHOLE_PATH, predicts=target)
    Denoiser(Net(), RectifiedFlow(), predicts=target)


@pytest.mark.parametrize("target", [X0(), V(), Velocity(), Preconditioned(0.5)], ids=str)
def test_other_targets_do_where_alpha_vanishes(target):
    x = normal(2, 3)
    assert Denoiser(Net(), WHOLE_PATH, predicts=target, clock=ByTime())(x, 1.0).x0.isfinite().all()


def test_a_target_is_a_value_not_its_class():
    with pytest.raises(TypeError, match="predicts must be a target"):
        Denoiser(Net(), VP(), predicts=Eps)


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan, torch.tensor([0.5, 0.5, 2.0])])
def test_times_outside_are_refused(t):
    with pytest.raises(ValueError, match="A time must lie in"):
        Denoiser(Net(), VP(), predicts=Eps())(normal(3, 2), t)


@pytest.mark.parametrize("target", [Eps(), Preconditioned(0.5)], ids=str)
@pytest.mark.parametrize("shape", [(2,), (1,), (3, 1), (4,)])
def test_a_time_per_sample_must_fit_the_batch(target, shape):
    with pytest.raises(ValueError, match="one entry per sample"):
        Denoiser(Net(), VP(), predicts=target)(normal(3, 2), torch.full(shape, 0.5))
