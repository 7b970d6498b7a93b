"""Processes: closed forms equal derived ones, and every law of x_t follows from the same alpha and sigma."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    KINDS,
    TABLES,
    Exact,
    Own,
    agree,
    built,
    column,
    drifting,
    every_process,
    normal,
    shapes,
    times,
    values,
)

from sdekit import (
    DDIM,
    DDPM,
    EDM,
    HEUN,
    VE,
    VP,
    BrownianPath,
    ByIndex,
    ByTime,
    Denoised,
    Discrete,
    Exponential,
    FromDrift,
    Karras,
    LogSNR,
    Method,
    Process,
    RectifiedFlow,
    ReverseSDE,
    SubVP,
    sample,
)
from sdekit._value import Value
from sdekit.solvers import Solver

ONE = torch.ones(1, dtype=torch.float64)
ZERO = torch.zeros(1, dtype=torch.float64)


# What is derived --------------------------------------------------------------------------------------------


@every_process
def test_closed_forms_equal_the_derived_ones(process, draw):
    t = draw(times(process, 4))
    for closed, derived in zip(process.rates(t), Process.rates(process, t), strict=True):
        agree(closed, derived, 1e-9)
    for name in ("f", "g2", "lam"):
        agree(getattr(process, name)(t), getattr(Process, name)(process, t), 1e-9)
    lam = process.lam(t)
    agree(process.lam(process.time(lam)), process.lam(Process.time(process, lam)), 1e-9)


@every_process
def test_time_inverts_lam(process, draw):
    t = draw(times(process, 3))
    found = process.time(process.lam(t))
    agree(process.lam(found), process.lam(t))
    agree(found, t, 1e-6)  # the drift of a table may vanish at its last node: a square root is lost there


@every_process
def test_moments_solve_the_equations_of_the_sde(process, draw):
    t = draw(times(process, 4)).requires_grad_()
    alpha, var = process.alpha(t), process.sigma(t) ** 2
    alpha_rate = torch.autograd.grad((alpha + 0 * t).sum(), t)[0]  # 0 t: alpha may be constant
    var_rate = torch.autograd.grad(var.sum(), t)[0]
    agree(alpha_rate, process.f(t) * alpha, 1e-9)
    agree(var_rate, 2 * process.f(t) * var + process.g2(t), 1e-9)


@every_process
def test_snr_falls_and_decay_is_its_ratio(process, draw):
    s, t = draw(times(process, 2))
    lam_s, lam_t = process.lam(s), process.lam(t)
    assert lam_t < lam_s or t - s < 1e-6
    agree(process.decay(t, s), torch.exp(lam_t - lam_s))
    agree(process.diffusion(t) ** 2, process.g2(t))
    assert process.g2(t) >= 0


@every_process
def test_gradient_of_time_is_one_over_that_of_lam(process, draw):
    t = draw(times(process, 3)).clamp(max=0.1 * process.t_min + 0.9 * process.t_max)
    slope = torch.func.jvp(process.lam, (t,), (torch.ones_like(t),))[1]
    lam = process.lam(t).requires_grad_()
    agree(torch.autograd.grad(process.time(lam).sum(), lam)[0] * slope, 1, 1e-5)


@pytest.mark.parametrize("process", [VP(), Discrete.linear(20), Own()], ids=lambda p: type(p).__name__)
def test_gradient_of_time_forward_is_the_one_backward(process):
    lam = process.lam(torch.tensor([0.3, 0.6], dtype=torch.float64))
    forward = torch.func.jvp(process.time, (lam,), (torch.ones_like(lam),))[1]
    agree(forward, torch.autograd.grad(process.time(lam.requires_grad_()).sum(), lam)[0])


@every_process
def test_times_are_numbers_or_0d_or_one_per_sample(process, draw):
    t = draw(times(process, 2))
    calls = [process.alpha, process.sigma, process.f, process.g2, process.lam, process.diffusion]
    calls += [
        lambda t: process.rates(t)[0],
        lambda t: process.rates(t)[1],
        lambda t: process.time(process.lam(t)),
    ]
    for call in calls:
        assert call(t).shape == (2,)
        agree(torch.stack([call(t[0]), call(float(t[1]))]), call(t), 1e-12)


# The literature's formulas ----------------------------------------------------------------------------------


def vp(p, t):
    beta, area = (
        p.beta_min + t * (p.beta_max - p.beta_min),
        p.beta_min * t + (p.beta_max - p.beta_min) * t**2 / 2,
    )
    return (-area / 2).exp(), (1 - (-area).exp()).sqrt(), -beta / 2, beta


def sub_vp(p, t):
    alpha, sigma, f, beta = vp(p, t)
    return alpha, sigma**2, f, beta * (1 - alpha**4)


def ve(p, t):
    sigma = p.sigma_min * (p.sigma_max / p.sigma_min) ** t
    return ONE, sigma, ZERO, sigma**2 * 2 * math.log(p.sigma_max / p.sigma_min)


def cosine(p, t):
    bar = torch.cos((t + p.s) / (1 + p.s) * math.pi / 2) ** 2 / math.cos(p.s / (1 + p.s) * math.pi / 2) ** 2
    f = -torch.tan((t + p.s) / (1 + p.s) * math.pi / 2) * math.pi / 2 / (1 + p.s)
    return bar.sqrt(), (1 - bar).sqrt(), f, -2 * f


PAPERS = {
    "VP": vp,  # arXiv 2011.13456, eq. 32-33
    "SubVP": sub_vp,  # the same, eq. 29 and 33
    "VE": ve,  # the same, eq. 29-31
    "EDM": lambda p, t: (ONE, t, ZERO, 2 * t),  # arXiv 2206.00364, eq. 1 and table 1
    "RectifiedFlow": lambda p, t: (1 - t, t, -1 / (1 - t), 2 * t / (1 - t)),  # arXiv 2209.03003, eq. 1
    "Cosine": cosine,  # arXiv 2102.09672, eq. 17
}


@pytest.mark.parametrize("kind", PAPERS)
@given(data=st.data())
def test_formulas_are_those_of_the_papers(kind, data):
    process = data.draw(KINDS[kind])
    t = data.draw(times(process, 4))
    for name, expected in zip(("alpha", "sigma", "f", "g2"), PAPERS[kind](process, t), strict=True):
        agree(getattr(process, name)(t), expected, 1e-9)


@pytest.mark.parametrize(
    "process", [VP(), SubVP(), VE(), EDM(t_max=5), RectifiedFlow(t_max=0.9)], ids=lambda p: type(p).__name__
)
def test_drift_and_diffusion_determine_the_process(process):
    paper, start = PAPERS[type(process).__name__], max(process.t_min, 1e-3)
    back = FromDrift(
        rate=lambda t: paper(process, t)[2] + 0 * t,
        noise=lambda t: paper(process, t)[3].sqrt(),
        t_min=start,
        t_max=process.t_max,
    )
    t = torch.linspace(start, process.t_max, 9, dtype=torch.float64)
    left_out = process.sigma_min**2 if isinstance(process, VE) else 0  # VE is noisy at t = 0 already
    agree(back.alpha(t), process.alpha(t))
    agree(back.sigma(t) ** 2, process.sigma(t) ** 2 - left_out)
    agree(back.f(t), process.f(t))
    agree(back.g2(t), process.g2(t))


# Tables -----------------------------------------------------------------------------------------------------


@given(table=TABLES)
def test_table_is_exact_at_its_nodes_and_falls_between(table):
    nodes = table.node(torch.arange(table.steps))
    bar = torch.from_numpy(np.cumprod(1 - np.array(table.betas)))
    torch.testing.assert_close(table.alpha(nodes) ** 2, bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(table.sigma(nodes) ** 2, 1 - bar, rtol=1e-11, atol=1e-15)
    assert (float(nodes[0]), float(nodes[-1])) == (table.t_min, table.t_max)
    assert (torch.diff(table.alpha(torch.linspace(0, 1, 1501, dtype=torch.float64))) < 0).all()


@given(table=TABLES)
def test_drift_of_a_table_has_no_jumps(table):
    inner = table.node(torch.arange(table.steps - 1))
    agree(table.f(inner + 1e-10), table.f(inner - 1e-10), 1e-5)


@given(table=TABLES, data=st.data())
def test_posterior_of_a_table_is_ddpm_s(table, data):
    """Ho et al. 2020 (arXiv 2006.11239), eq. 6-7; k counts from 0 and the step before the first has bar = 1."""
    k = data.draw(st.integers(0, table.steps - 1))
    beta = table.betas[k]
    bar, bar_before = (float(np.prod(1 - np.array(table.betas[:n]))) for n in (k + 1, k))
    x0, x = normal(2, 3, seed=1), normal(2, 3, seed=2)
    law = table.posterior(x0, x, table.node(torch.tensor(k)), k / table.steps)
    of_x0 = math.sqrt(bar_before) * beta / (1 - bar)
    of_x = math.sqrt(1 - beta) * (1 - bar_before) / (1 - bar)
    agree(law.mean, of_x0 * x0 + of_x * x, 1e-9)
    agree(law.std**2, (1 - bar_before) / (1 - bar) * beta, 1e-9)


def test_named_tables_are_those_of_the_papers():
    agree(Discrete.linear().betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    betas, angle = np.array(Discrete.cosine().betas), (np.arange(1001) / 1000 + 0.008) / 1.008 * math.pi / 2
    agree(np.cumprod(1 - betas)[:-1], (np.cos(angle) ** 2 / np.cos(angle[0]) ** 2)[1:-1], 1e-9)
    assert betas[-1] == 0.999


# Laws of x_t ------------------------------------------------------------------------------------------------


@every_process
def test_perturb_is_alpha_x0_plus_sigma_eps(process, draw):
    shape = draw(shapes())
    x0, eps = normal(*shape, seed=1), normal(*shape, seed=2)
    shared, own = draw(times(process)), draw(times(process, shape[0]))
    for t in (shared, float(shared), own):
        expected = column(process.alpha(t), x0) * x0 + column(process.sigma(t), x0) * eps
        agree(process.perturb(x0, t, eps), expected, 1e-14)
        agree(process.marginal(x0, t).at(eps), expected, 1e-14)
        single = process.perturb(x0.float(), t, eps.float())
        assert single.dtype == torch.float32
        agree(single, expected, 1e-5)


@every_process
def test_transitions_compose(process, draw):
    """From t to s and on to u is from t to u, for the law of x given x0 too: that is the transition from t = clean."""
    t, s, u = draw(times(process, 3))
    for start in (t, process.clean):
        (a, std_a), (b, std_b), (c, std_c) = (
            process.transition(ONE, *pair) for pair in ((start, s), (s, u), (start, u))
        )
        agree(b * a, c, 1e-9)
        agree(b**2 * std_a**2 + std_b**2, std_c**2, 1e-9)
    agree(c, process.alpha(u))
    agree(std_c, process.sigma(u))


@every_process
def test_both_ways_give_the_joint_law(process, draw):
    """Marginal at s and transition to t, marginal at t and posterior at s: the same mean and covariance given x0."""
    s, t = draw(times(process, 2))
    var_s, var_t = process.sigma(s) ** 2, process.sigma(t) ** 2
    a, _ = process.transition(ONE, s, t)
    of_x, std = process.posterior(ZERO, ONE, t, s)
    of_x0, _ = process.posterior(ONE, ZERO, t, s)
    agree(of_x * process.alpha(t) + of_x0, process.alpha(s), 1e-9)
    agree(of_x**2 * var_t + std**2, var_s, 1e-9)
    agree(of_x * var_t, a * var_s, 1e-9)


@every_process
def test_posterior_at_the_clean_end_is_the_data(process, draw):
    x0, x = normal(3, 2, seed=1), normal(3, 2, seed=2)
    law = process.posterior(x0, x, draw(times(process)), process.clean)
    agree(law.mean, x0, 1e-14)
    agree(law.std, 0, 0)


@every_process
def test_laws_are_per_sample(process, draw):
    """A batch with a time for each sample equals as many batches of one."""
    s, t = draw(times(process, 6)).reshape(2, 3)
    x0, x = normal(3, 2, 1, seed=1), normal(3, 2, 1, seed=2)
    for call in (
        lambda k: process.transition(x[k], s[k], t[k]),
        lambda k: process.posterior(x0[k], x[k], t[k], s[k]),
        lambda k: process.marginal(x0[k], t[k]),
    ):
        whole, single = call(slice(None)), [call(slice(k, k + 1)) for k in range(3)]
        agree(whole.mean, torch.cat([law.mean for law in single]), 1e-14)
        agree(whole.std, torch.cat([law.std for law in single]), 1e-14)


@every_process
def test_prior_is_centred_with_the_noise_of_t_max(process, draw):
    prior = process.prior()
    x = 10 * normal(*draw(shapes()))
    reference = torch.distributions.Normal(torch.zeros_like(x), process.sigma(process.t_max))
    agree(prior.log_prob(x), reference.log_prob(x).reshape(len(x), -1).sum(1))
    agree(prior.at(x), process.sigma(process.t_max) * x)


def test_forward_law_on_every_device(device):
    x0, eps = normal(4, 3, seed=1).to(device), normal(4, 3, seed=2).to(device)
    t = torch.linspace(0.1, 0.9, 4, device=device)
    for process in (VP(), Discrete.linear(10), drifting(0.5, 1, 1, 1), Own()):
        x = process.perturb(x0, t, eps)
        assert x.device.type == device.type
        agree(x.cpu(), process.perturb(x0.cpu(), t.cpu(), eps.cpu()), 1e-12)


# A user's own process ---------------------------------------------------------------------------------------


def test_own_process_takes_eight_lines_and_works_with_everything():
    assert len(inspect.getsource(Own).splitlines()) <= 8
    for method in (DDIM, DDPM, HEUN, Method(ReverseSDE(0.5), Exponential(2))):
        x = sample(Exact(Own(power=3.0, t_max=20.0)), (512, 2), method, Denoised(LogSNR(100)))
        assert abs(float(x.mean()) - 0.7) < 0.1
        assert abs(float(x.std()) - 0.5) < 0.1
    assert Value.from_json(Own(power=3.0).to_json()) == Own(power=3.0)


# Storing ----------------------------------------------------------------------------------------------------


def returns(value, kind=Value):
    back = kind.from_json(json.loads(json.dumps(value.to_json())))
    assert back == value
    assert type(back) is type(value)
    assert hash(back) == hash(value)


@pytest.mark.parametrize("kind", values(), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_values_are_frozen_and_return_from_json(kind, data):
    value = data.draw(built(kind))
    returns(value, kind)
    for field in (f for f in dataclasses.fields(kind) if f.init):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field.name, None)


@dataclasses.dataclass(frozen=True)
class Family(Value):
    """A user's own value, of tuples of values."""

    members: tuple[Process, ...]
    shares: tuple[float, ...] = ()


def test_own_values_return_from_json():
    returns(Family(members=(VP(), EDM(t_max=3.0)), shares=(0.25, 0.75)))


def test_stored_names_are_unique():
    names = [kind.__name__ for kind in values()]
    assert len(set(names)) == len(names)


@every_process
def test_processes_return_from_json(process, draw):
    if not isinstance(process, FromDrift):
        return returns(process, Process)
    with pytest.raises(TypeError, match="Define a named subclass"):
        process.to_json()


@pytest.mark.parametrize(
    "value",
    [
        Method(ReverseSDE(0.25), Exponential(2)),
        Denoised(Karras(5, rho=3.0)),
        BrownianPath(seed=-3, first=5, depth=9),
        ByTime(1000.0),
        ByIndex(),
        HEUN,
    ],
    ids=str,
)
def test_values_made_of_values_return_from_json(value):
    returns(value)


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (Value, {"type": "VPP"}, "Did you mean VP"),
        (Value, {"beta_max": 3.0}, "must name a known type; got None"),
        (Process, {"type": "VP", "beta_mx": 3.0}, "no field 'beta_mx'. Did you mean beta_max"),
        (Solver, {"type": "VP"}, "Expected the JSON of a Solver"),
        (Process, 3, "Expected the JSON of a Process"),
        (Value, {"type": "Method", "equation": {"type": "Flow"}, "solver": {"type": "Heun"}}, "got 'Flow'"),
        (Value, {"type": "Times"}, "at"),
        (Value, {"type": "Process"}, "Process"),
        (Value, {"type": "Target"}, "Target"),
    ],
)
def test_bad_json_is_explained(kind, data, message):
    with pytest.raises(ValueError, match=message):
        kind.from_json(data)


# Errors -----------------------------------------------------------------------------------------------------


class Bumpy(Process):
    """The signal returns in the middle."""

    def alpha(self, t):
        return 1 + 0.9 * torch.sin(6 * t)

    def sigma(self, t):
        return t.sqrt()


class Stuck(Process):
    """The signal is gone long before t_max."""

    def alpha(self, t):
        return (1 - 2 * t).clamp(min=0)

    def sigma(self, t):
        return torch.ones_like(t)


class Negative(Process):
    def alpha(self, t):
        return 1 - 2 * t

    def sigma(self, t):
        return t


def step(t):
    return torch.where(t < 0.3, 1.0, 2.0).double()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VP(t_min=0.5, t_max=0.5), "t_min < t_max"),
        (lambda: EDM(t_min=3, t_max=2), "t_min < t_max"),
        (lambda: RectifiedFlow(t_min=math.nan), "t_min < t_max"),
        (lambda: VP(t_max=math.inf), "t_min < t_max"),
        (lambda: RectifiedFlow(t_max=1.1), "at least 0"),
        (lambda: VP(beta_min=-3, beta_max=-1), "signal-to-noise|at least 0"),
        (lambda: VE(sigma_min=2, sigma_max=1), "signal-to-noise"),
        (lambda: VE(sigma_min=0.0), "sigma_min"),
        (lambda: Bumpy(), "signal-to-noise ratio alpha/sigma must fall strictly"),
        (lambda: Stuck(), "signal-to-noise ratio alpha/sigma must fall strictly"),
        (lambda: Negative(), "at least 0"),
        (lambda: Discrete(betas=(0.1,)), "at least 2"),
        (lambda: Discrete(betas=(0.1, 0.0)), r"in \(0, 1\)"),
        (lambda: Discrete(betas=(0.1, 1.0)), "at most 0.999"),
        (lambda: Discrete(betas=(0.1, math.nan)), r"in \(0, 1\)"),
        (lambda: Discrete(betas=(0.1, 0.1, 0.1), t_max=1.5), "at most 1"),
        (lambda: FromDrift(rate=lambda t: -step(t), noise=torch.ones_like), "smooth"),
        (lambda: FromDrift(rate=lambda t: -t, noise=step), "smooth"),
    ],
)
def test_bad_processes_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("t", [-0.1, 1e-4, 1.01, math.nan, torch.tensor([0.5, 2.0])])
def test_times_outside_are_refused(t):
    for call in (
        VP().marginal,
        lambda x, t: VP().transition(x, t, 1.0),
        lambda x, t: VP().posterior(x, x, 1.0, t),
    ):
        with pytest.raises(ValueError, match="t_min"):
            call(normal(2, 3), t)


@every_process
def test_ends_are_inside_in_float32_too(process, draw):
    """A time that a user stores in float32 is t_min or t_max up to its own rounding."""
    for end in (process.t_min, process.t_max):
        process.check(torch.full((2,), end, dtype=torch.float32))


def test_directions_are_held_to():
    x, process = normal(2, 3), VP()
    with pytest.raises(ValueError, match="posterior"):
        process.transition(x, 0.5, 0.4)
    with pytest.raises(ValueError, match="transition"):
        process.posterior(x, x, 0.4, 0.5)
    with pytest.raises(ValueError, match="transition"):
        process.posterior(x, x, torch.tensor([0.5, 0.4]), torch.tensor([0.4, 0.5]))


def test_batches_must_match():
    x, process = normal(2, 3), VP()
    with pytest.raises(ValueError, match="one entry per sample"):
        process.marginal(x, torch.tensor([0.1, 0.2, 0.3]))
    with pytest.raises(ValueError, match="one entry per sample"):
        process.drift(x, torch.tensor([[0.1], [0.2]]))
    with pytest.raises(ValueError, match="shape of x0"):
        process.perturb(x, 0.5, x[:1])


@pytest.mark.parametrize("process", [VP(), Discrete.linear(20), Own(), EDM()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("lam", [50.0, -50.0, math.nan])
def test_lam_out_of_reach_has_no_time(process, lam):
    """Bisection says so itself; a closed form gives a time that no call accepts."""
    with pytest.raises(ValueError, match="must lie in"):
        process.check(process.time(lam))
