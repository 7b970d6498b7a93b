"""Steps chosen on the way: error in proportion to the tolerance, samples that do not know each other, budgets, ends."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from exact import PROCESSES, gaussian, measured_order, name, normal, ring, rms
from torch import Tensor, nn

from sdekit import (
    EDM,
    VE,
    VP,
    X0,
    Denoised,
    Denoiser,
    Discrete,
    GaussianMixture,
    LogSNR,
    Method,
    Prediction,
    ProbabilityFlow,
    Process,
    RectifiedFlow,
    ReverseSDE,
    TrigFlow,
    Uniform,
    sample,
    solve,
)
from sdekit._value import Value
from sdekit.adaptive import (
    Adapted,
    AlongAngle,
    AlongLam,
    AlongTime,
    AnswerPath,
    Control,
    Embedded,
    FixedOde,
    Ode,
    OnData,
    OnNoise,
    OnVelocity,
    Sde,
    Status,
    TorchDiffEq,
    TorchDiffEqFixed,
    TorchSDE,
    TorchSDEAdaptive,
    adapt,
    encode_adaptively,
    sample_adaptively,
)
from sdekit.adaptive.pairs import PAIR21, PAIR32, PAIRS, Flow, Pair, Span
from sdekit.adaptive.paths import phi
from sdekit.noise import Noise
from sdekit.solvers import EulerMaruyama, Exponential, RungeKutta

PATHS = [OnData(), OnNoise(), OnVelocity()]
COORDINATES = [AlongLam(), AlongAngle(), AlongTime()]
TOLERANCES = [1e-2, 1e-3, 1e-4, 1e-5]

on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
on_every_path = pytest.mark.parametrize("path", PATHS, ids=name)
by_every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=lambda pair: f"order {pair.order}")


class Counted(nn.Module):
    """A model that counts its calls and the samples it was asked for, and may spoil its answers."""

    def __init__(self, model: nn.Module, spoil=None) -> None:
        super().__init__()
        self.model, self.process, self.spoil = model, model.process, spoil
        self.calls_made = self.samples_asked = 0

    def forward(self, x: Tensor, t: Tensor) -> Prediction:
        self.calls_made += 1
        self.samples_asked += len(x)
        prediction = self.model(x, t)
        if self.spoil is None:
            return prediction
        answer = self.spoil(prediction.answer, torch.as_tensor(t).expand(len(x)), x)
        return Prediction(prediction.process, x, prediction.t, answer, prediction.target)


def counted(process: Process, std: float = 0.4, spoil=None) -> Counted:
    means = ring(process).means
    return Counted(GaussianMixture(process, means, std).double(), spoil)


# Agreement with the exact flow ----------------------------------------------------------------------------------------


@on_every_process
def test_the_error_is_in_proportion_to_the_tolerance(process: Process) -> None:
    """From 1/100 to 1/4 of it, over three decades, and below the estimated error, which is that of the lower order."""
    model = ring(process)
    x = model.noisy(8, process.t_max)
    end = model.flow(x, process.t_max, process.t_min)
    for tolerance in (1e-2, 1e-3, 1e-4):
        network = counted(process)
        run = adapt(network, x, Embedded(rtol=tolerance, atol=tolerance))
        assert bool(run.done.all())
        assert run.t.tolist() == [process.t_min] * 8
        assert 0.01 * tolerance < rms(run.x - end) < 0.25 * tolerance
        assert rms(run.x - end) < float(run.error.max())
        assert network.samples_asked == int(run.nfe.sum())
        assert network.calls_made == run.calls


@pytest.mark.slow
@on_every_process
@on_every_path
@pytest.mark.parametrize("order", PAIRS)
def test_the_error_is_in_proportion_on_every_path(process: Process, path: AnswerPath, order: int) -> None:
    model = ring(process)
    x = model.noisy(16, process.t_max)
    end = model.flow(x, process.t_max, process.t_min)
    for tolerance in TOLERANCES[1:]:
        run = adapt(counted(process), x, Embedded(order, path, tolerance, tolerance, 5000))
        assert bool(run.done.all())
        assert 0.01 * tolerance < rms(run.x - end) < 5 * tolerance


@pytest.mark.parametrize("process", [VP(), VE(), RectifiedFlow()], ids=name)
@on_every_path
def test_encoding_and_back(process: Process, path: AnswerPath) -> None:
    model = ring(process)
    x = model.noisy(8, process.t_min)
    there = adapt(counted(process), x, Embedded(3, path, 1e-4, 1e-4), t=process.t_min, s=process.t_max)
    assert rms(there.x - model.flow(x, process.t_min, process.t_max)) < 2e-3 * float(process.sigma(process.t_max))
    back = adapt(counted(process), there.x, Embedded(3, path, 1e-4, 1e-4))
    assert rms(back.x - x) < 1e-3
    assert bool((there.done & back.done).all())


def test_encoding_by_name() -> None:
    model = ring(VP())
    x = model.noisy(4, VP().t_min)
    run = encode_adaptively(counted(VP()), x)
    assert torch.equal(run.x, adapt(counted(VP()), x, t=VP().t_min, s=VP().t_max).x)


def test_a_part_of_the_way() -> None:
    model = ring(VP())
    x = model.noisy(8, 0.7)
    run = adapt(counted(VP()), x, Embedded(rtol=1e-5, atol=1e-5), t=0.7, s=0.2)
    assert rms(run.x - model.flow(x, 0.7, 0.2)) < 1e-5
    assert run.t.tolist() == [0.2] * 8


def test_one_tolerance_means_the_same_on_every_process() -> None:
    """In the angle every process is one flow, so where they start and end alike they cost the same."""
    calls = set()
    for process in (VP(), EDM(), RectifiedFlow()):
        t, s = float(process.time(-3.0)), float(process.time(3.0))
        x = normal(8, 2) * torch.hypot(process.alpha(t), process.sigma(t))
        run = adapt(counted(process), x, t=t, s=s)
        calls.add(tuple(run.nfe.tolist()))
    assert len(calls) == 1


def test_a_table_is_a_process_like_any_other() -> None:
    process = Discrete.linear()
    model = ring(process)
    x = model.noisy(2, process.t_max)
    run = adapt(counted(process), x, Embedded(rtol=1e-4, atol=1e-4))
    assert rms(run.x - model.flow(x, process.t_max, process.t_min)) < 1e-4


# The pairs ------------------------------------------------------------------------------------------------------------


def fixed(model: nn.Module, x: Tensor, path: AnswerPath, pair: Pair, n: int) -> tuple[Tensor, list[Tensor]]:
    """Run a pair with n even steps of the path's coordinate; return the end and the estimated errors."""
    process, errors = model.process, []
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    u = torch.lerp(*path.at(process, ends), torch.linspace(0, 1, n + 1, dtype=torch.float64))
    times = torch.cat([ends[:1], path.time(process, u[1:-1]), ends[1:]])
    flow = Flow(path, process, lambda x, t: path.answer(model(x, t)))
    for k in range(n):
        t, s, a, b = (v.expand(len(x)) for v in (times[k], times[k + 1], u[k], u[k + 1]))
        x, error, _ = pair.step(flow, x, flow.ask(x, t), Span(t, s, a, b - a))
        errors.append(error)
    return x, errors


@pytest.mark.parametrize(
    "process", [RectifiedFlow(), *(pytest.param(p, marks=pytest.mark.slow) for p in (VP(), EDM()))], ids=name
)
@on_every_path
@by_every_pair
def test_order_at_even_steps(process: Process, path: AnswerPath, pair: Pair) -> None:
    model, steps = ring(process), (50, 100)
    x = model.noisy(4, process.t_max)
    end = model.flow(x, process.t_max, process.t_min)
    runs = [fixed(counted(process), x, path, pair, n) for n in steps]
    assert measured_order(steps, [rms(run[0] - end) for run in runs]) == pytest.approx(pair.order, abs=0.15)
    estimates = [rms(torch.stack(run[1])) for run in runs]
    assert measured_order(steps, estimates) == pytest.approx(pair.order, abs=0.3)


def dpm_solver(order: int, r: tuple[float, ...], model: nn.Module, x: Tensor, lams: Tensor) -> Tensor:
    """One step of Lu et al. 2022 (arXiv 2206.00927), algorithms 1 (with r1) and 2, letter by letter."""
    process, h = model.process, lams[1] - lams[0]
    at = [process.time(lams[0] + share * h) for share in (0.0, *r, 1.0)]
    alpha, sigma = [process.alpha(t) for t in at], [process.sigma(t) for t in at]
    eps = [model(x, at[0]).eps]
    u1 = alpha[1] / alpha[0] * x - sigma[1] * torch.expm1(r[0] * h) * eps[0]
    eps.append(model(u1, at[1]).eps)
    first = alpha[-1] / alpha[0] * x - sigma[-1] * torch.expm1(h) * eps[0]
    slope = sigma[-1] * (torch.expm1(h) / h - 1)
    if order == 2:
        return first - slope / r[0] * (eps[1] - eps[0])
    u2 = alpha[2] / alpha[0] * x - sigma[2] * torch.expm1(r[1] * h) * eps[0]
    u2 = u2 - sigma[2] * r[1] / r[0] * (torch.expm1(r[1] * h) / (r[1] * h) - 1) * (eps[1] - eps[0])
    return first - slope / r[1] * (model(u2, at[2]).eps - eps[0])


def test_on_noise_the_pairs_are_dpm_solver_12_and_23() -> None:
    """Both members of each, in one step; exact weights are the paper's own here."""
    model, ends = counted(VP()), LogSNR(1)(VP())
    x, lams = model.model.process.perturb(normal(4, 2), ends[0], normal(4, 2, seed=1)), VP().lam(ends)
    second, (gap,) = fixed(model, x, OnNoise(), PAIR21, 1)
    first = Method(ProbabilityFlow(), Exponential(1))
    assert rms(second - dpm_solver(2, (1 / 2,), model, x, lams)) < 1e-11 * rms(second)
    assert rms(second - gap - solve(model, x, first, LogSNR(1)).x) < 1e-11 * rms(second)
    third, (gap,) = fixed(model, x, OnNoise(), PAIR32, 1)
    assert rms(third - dpm_solver(3, (1 / 3, 2 / 3), model, x, lams)) < 1e-11 * rms(third)
    assert rms(third - gap - dpm_solver(2, (1 / 3,), model, x, lams)) < 1e-11 * rms(third)


def test_on_velocity_the_pairs_are_runge_kutta_pairs_in_the_angle() -> None:
    class Midpoint(RungeKutta):
        a, b = ((0.5,),), (0.0, 1.0)

    class Heun3(RungeKutta):
        a, b = ((1 / 3,), (0.0, 2 / 3)), (0.25, 0.0, 0.75)

    process = TrigFlow(t_min=0.01, t_max=1.5)
    model, x = counted(process), ring(process).noisy(4, 1.5)
    for pair, tableau in ((PAIR21, Midpoint()), (PAIR32, Heun3())):
        by_tableau = solve(model, x, Method(ProbabilityFlow(), tableau), Uniform(7)).x
        assert rms(fixed(model, x, OnVelocity(), pair, 7)[0] - by_tableau) < 1e-13


def test_the_answer_at_the_end_of_a_step_begins_the_next_one() -> None:
    """Order 4 pays 5 calls for its first step and 4 for every other, rejected ones included."""
    run = adapt(counted(VP()), ring(VP()).noisy(8, 1.0), Embedded(4))
    assert run.nfe.remainder(4).tolist() == [1] * 8


def test_phi() -> None:
    z = torch.tensor([-30.0, -1.5, -0.999, -1e-3, 0.0, 1e-9, 0.5, 1.001, 6.0], dtype=torch.float64)
    r, w = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    r, w = (r + 1) / 2, w / 2
    for k in (1, 2, 3):
        direct = (((1 - r) * z[:, None]).exp() * r ** (k - 1) / math.factorial(k - 1) * w).sum(1)
        torch.testing.assert_close(phi(k, z), direct, rtol=1e-12, atol=0)


# Samples do not know each other ---------------------------------------------------------------------------------------


@on_every_process
def test_a_sample_does_not_depend_on_its_batch(process: Process) -> None:
    model = counted(process)
    x = ring(process).noisy(9, process.t_max)
    how = Embedded(rtol=1e-2, atol=1e-2)
    together = adapt(model, x, how)
    assert len(set(together.nfe.tolist())) > 1
    for rows in ([4], [8, 4, 0], [1, 4]):
        apart = adapt(model, x[rows], how)
        torch.testing.assert_close(apart.x, together.x[rows], rtol=0, atol=1e-12)
        assert torch.equal(apart.nfe, together.nfe[rows])
        torch.testing.assert_close(apart.error, together.error[rows], rtol=1e-9, atol=0)


def test_samples_that_are_done_or_have_failed_are_not_asked_again() -> None:
    def spoil(answer: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return torch.where(((t < 0.5) & (x[:, 0] > 100))[:, None], torch.nan, answer)

    model = counted(VP(), spoil=spoil)
    x = ring(VP()).noisy(6, 1.0)
    x[2] = 1e5  # fails half way
    run = adapt(model, x)
    assert run.status.tolist() == [0, 0, Status.NOT_FINITE, 0, 0, 0]
    assert model.samples_asked == int(run.nfe.sum()) < 6 * run.calls
    assert run.calls <= int(run.nfe.max()) + 10
    assert 0.4 < float(run.t[2]) < 0.6  # a last step may end beyond, where its stages were before
    assert bool(run.x.isfinite().all())
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(run.x[others], adapt(model, x[others]).x, rtol=0, atol=1e-12)


def test_a_condition_goes_with_its_sample() -> None:
    def net(x: Tensor, t: Tensor, label: Tensor, strength: float) -> Tensor:
        return label[:, None] * torch.ones_like(x) + strength * torch.tanh(x) / (1 + 50 * label[:, None])

    model = Denoiser(net, VP(), predicts=X0())
    label, x = torch.tensor([0.0, 5.0, 1.0, 0.0], dtype=torch.float64), normal(4, 3)
    together = adapt(model.given(label=label, strength=0.5), x)
    assert len(set(together.nfe.tolist())) > 1
    for k in range(4):
        alone = adapt(model.given(label=label[[k]], strength=0.5), x[[k]])
        torch.testing.assert_close(alone.x, together.x[[k]], rtol=0, atol=1e-12)


def test_a_model_that_chooses_its_samples_is_asked_to() -> None:
    class Labelled(nn.Module):
        def __init__(self, label: Tensor) -> None:
            super().__init__()
            self.process, self.label, self.calls = VP(), label, 2

        def select(self, which: Tensor) -> Labelled:
            return Labelled(self.label[which])

        def forward(self, x: Tensor, t: Tensor) -> Prediction:
            return Prediction(self.process, x, t, torch.tanh(self.label[:, None] * x), X0())

    x, label = normal(3, 2), torch.tensor([0.1, 3.0, 30.0], dtype=torch.float64)
    run = adapt(Labelled(label), x, Embedded(rtol=1e-4, atol=1e-4))
    assert bool(run.done.all())
    assert bool((run.nfe % 2 == 0).all())  # the calls it makes are counted
    assert rms(run.x[1:2] - adapt(Labelled(label[1:2]), x[1:2], Embedded(rtol=1e-4, atol=1e-4)).x) < 1e-12


# Ends -----------------------------------------------------------------------------------------------------------------


@on_every_path
@pytest.mark.parametrize("order", PAIRS)
def test_the_whole_straight_path(path: AnswerPath, order: int) -> None:
    """alpha = 0 at t = 1, sigma = 0 at t = 0, and a model that answers with x0 or with v; there and back."""
    process = RectifiedFlow(t_min=0.0, t_max=1.0)
    model, x = gaussian(process), normal(16, 1)
    oracle = Counted(GaussianMixture(process, model.means, model.std).double())
    tolerance = 1e-3 if order == 2 else 1e-4
    how = Embedded(order, path, tolerance, tolerance, 3000)
    run = adapt(oracle, x, how)
    assert bool(run.done.all())
    assert rms(run.x - (model.means + model.std * x)) < 3 * tolerance
    assert oracle.samples_asked == int(run.nfe.sum())
    back = adapt(oracle, run.x, how, t=0.0, s=1.0)
    assert rms(back.x - x) < 10 * tolerance

    class AsData(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Prediction:
            return Prediction(process, x, t, oracle(x, t).x0, X0())

    as_data = AsData()
    as_data.process = process
    assert rms(adapt(as_data, x, how).x - run.x) < 1e-9


@pytest.mark.parametrize("process", [VP(t_min=1e-5), VE(sigma_min=1e-4), EDM(t_min=1e-5)], ids=name)
def test_a_point_cloud(process: Process) -> None:
    """Data almost without width: the flow ends on its points, stiffly."""
    model = counted(process, std=1e-4)
    run = adapt(model, ring(process).noisy(16, process.t_max), Embedded(rtol=1e-4, atol=1e-4))
    nearest = (run.x[:, None] - model.model.components.means).norm(dim=2).min(1).values
    assert bool(run.done.all())
    assert float(nearest.max()) < 5 * float(process.sigma(process.t_min)) + 1e-3


def test_the_clean_end_is_tweedies_formula() -> None:
    model = counted(VP())
    x = ring(VP()).noisy(4, 1.0)
    noisy, clean = adapt(model, x), adapt(model, x, s=VP().clean)
    torch.testing.assert_close(clean.x, model(noisy.x, VP().t_min).x0, rtol=0, atol=1e-14)
    assert clean.t.tolist() == [0.0] * 4
    assert clean.nfe.tolist() == [n + 1 for n in noisy.nfe.tolist()]
    assert clean.calls == noisy.calls + 1
    only = adapt(model, noisy.x, t=VP().t_min, s=VP().clean)
    assert torch.equal(only.x, clean.x)
    assert only.nfe.tolist() == [1] * 4


def test_ve_ends_clean_though_at_no_finite_time() -> None:
    run = sample_adaptively(counted(VE()), (4, 2))
    assert run.t.tolist() == [-math.inf] * 4
    assert bool(run.done.all())


def test_sampling_starts_where_sample_starts() -> None:
    """The same seed, the same noise, and with many steps the same end."""
    model = counted(VP())
    run = sample_adaptively(model, (6, 2), Embedded(rtol=1e-6, atol=1e-6), seed=3)
    by_grid = sample(model, (6, 2), Method(ProbabilityFlow(), Exponential(3)), Denoised(LogSNR(150)), seed=3)
    assert rms(run.x - by_grid) < 1e-4
    few = sample_adaptively(model, (2, 2), Embedded(rtol=1e-6, atol=1e-6), seed=3)
    torch.testing.assert_close(few.x, run.x[:2], rtol=0, atol=1e-12)


def test_images_in_single_precision() -> None:
    model = Denoiser(lambda x, t: torch.tanh(x), RectifiedFlow(), predicts=X0())
    run = sample_adaptively(model, (3, 1, 4, 4), Embedded(rtol=1e-2, atol=1e-2))
    assert run.x.shape == (3, 1, 4, 4)
    assert run.x.dtype == torch.float32
    assert bool(run.done.all())


# Runs that end early --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", PAIRS)
@pytest.mark.parametrize("budget", [1, 2, 3, 7, 20])
def test_a_budget_is_kept_and_what_it_bought_is_returned(order: int, budget: int) -> None:
    model, exact = counted(VP()), ring(VP())
    x = exact.noisy(4, 1.0)
    run = adapt(model, x, Embedded(order, rtol=1e-5, atol=1e-5, budget=budget))
    assert run.status.tolist() == [Status.BUDGET] * 4
    assert int(run.nfe.max()) <= budget
    assert model.samples_asked == int(run.nfe.sum())
    for k in range(4):  # each on its own way, at its own time
        if float(run.t[k]) < 1:
            assert rms(run.x[k] - exact.flow(x[[k]], 1.0, float(run.t[k]))[0]) < 1e-4
        else:
            assert torch.equal(run.x[k], x[k])


def test_a_run_goes_on_from_where_its_budget_ended() -> None:
    model, x = counted(VP()), ring(VP()).noisy(1, 1.0)
    part = adapt(model, x, Embedded(rtol=1e-4, atol=1e-4, budget=30))
    rest = adapt(model, part.x, Embedded(rtol=1e-4, atol=1e-4), t=float(part.t))
    assert rms(rest.x - ring(VP()).flow(x, 1.0, VP().t_min)) < 1e-4


def test_the_last_call_may_be_one_too_many() -> None:
    model, x = counted(VP()), ring(VP()).noisy(1, 1.0)
    needed = int(adapt(model, x).nfe)
    run = adapt(model, x, Embedded(budget=needed), s=0.0)
    assert (int(run.status), int(run.nfe), float(run.t)) == (Status.BUDGET, needed, VP().t_min)


def test_a_model_without_a_finite_answer() -> None:
    model = counted(VP(), spoil=lambda answer, t, x: answer * torch.nan)
    x = normal(3, 2)
    run = adapt(model, x, s=0.0)
    assert run.status.tolist() == [Status.NOT_FINITE] * 3
    assert torch.equal(run.x, x)
    assert run.t.tolist() == [1.0] * 3
    assert run.nfe.tolist() == [1] * 3


def test_a_step_whose_stages_fail_is_tried_smaller() -> None:
    """An answer that overflows for states far off the way, which only a long step visits."""

    def spoil(answer: Tensor, t: Tensor, x: Tensor) -> Tensor:
        return torch.where((t < 0.9)[:, None] & (asked["count"] < 4), torch.inf, answer)

    asked = {"count": 0}
    model = counted(VP(), spoil=spoil)
    model.register_forward_pre_hook(lambda *_: asked.update(count=asked["count"] + 1))
    run = adapt(model, normal(2, 2), Embedded(rtol=0.5, atol=0.5))
    assert bool(run.done.all())


def test_a_tolerance_that_no_step_meets() -> None:
    model = counted(VP(), spoil=lambda answer, t, x: answer + 1e7 * torch.sin(1e15 * t)[:, None])
    run = adapt(model, normal(3, 2), Embedded(rtol=1e-12, atol=1e-12))
    assert run.status.tolist() == [Status.STUCK] * 3
    assert bool(run.x.isfinite().all())


def test_what_cannot_be_asked_for() -> None:
    model, x = counted(VP()), normal(2, 2)
    for wrong in (
        lambda: Embedded(order=5),
        lambda: Embedded(rtol=0.0),
        lambda: Embedded(budget=0),
        lambda: TorchDiffEq("dopri6"),
        lambda: TorchDiffEqFixed("rk5"),
        lambda: TorchDiffEqFixed(steps=0),
        lambda: TorchSDE("heum"),
        lambda: TorchSDE(eta=0.0),
        lambda: TorchSDE(seed=-1),
        lambda: TorchSDEAdaptive("reversible_heun"),
        lambda: adapt(model, x, t=0.5, s=0.5),
        lambda: adapt(model, x, t=1.5),
        lambda: adapt(model, x, t=0.0, s=1.0),
        lambda: adapt(model, x.long()),
        lambda: adapt(counted(RectifiedFlow(t_min=0.0)), x, TorchDiffEq()),
    ):
        with pytest.raises(ValueError):  # noqa: PT011 - each says its own
            wrong()
    with pytest.raises(ValueError, match="Did you mean dopri5"):
        TorchDiffEq("dorpi5")
    with pytest.raises(TypeError, match="path must be"):
        Embedded(path="data")
    with pytest.raises(TypeError, match="towards data only"):
        encode_adaptively(model, x, TorchSDE())


@pytest.mark.parametrize(
    "control",
    [Embedded(2, OnNoise()), TorchDiffEq(Ode.BOSH3, AlongAngle()), TorchDiffEqFixed(), TorchSDE(), TorchSDEAdaptive()],
    ids=lambda c: type(c).__name__,
)
def test_a_control_goes_to_json_and_back(control: Control) -> None:
    assert Value.from_json(json.loads(json.dumps(control.to_json()))) == control


# torchdiffeq ----------------------------------------------------------------------------------------------------------


@on_every_process
@pytest.mark.parametrize("coordinate", COORDINATES, ids=name)
def test_dopri5_on_the_flow(process: Process, coordinate) -> None:
    model = ring(process)
    x = model.noisy(8, process.t_max)
    network = counted(process)
    run = adapt(network, x, TorchDiffEq(Ode.DOPRI5, coordinate, 1e-5, 1e-5, 5000))
    assert run.status.tolist() == [Status.DONE] * 8
    assert rms(run.x - model.flow(x, process.t_max, process.t_min)) < 2e-4
    assert network.calls_made == run.calls == int(run.nfe[0])
    assert run.t.tolist() == [process.t_min] * 8


@pytest.mark.parametrize("solver", Ode)
def test_every_adaptive_solver_there_and_back(solver: Ode) -> None:
    model = ring(VP())
    x = model.noisy(4, VP().t_min).reshape(4, 2, 1)
    network = Counted(GaussianMixture(VP(), model.means.reshape(5, 2, 1), 0.4).double())
    how = TorchDiffEq(solver, AlongAngle(), 1e-5, 1e-5, 20000)
    there = encode_adaptively(network, x, how)
    assert rms(there.x[..., 0] - model.flow(x[..., 0], VP().t_min, 1.0)) < 1e-3
    assert rms(adapt(network, there.x, how).x - x) < 1e-3


@pytest.mark.parametrize(
    ("solver", "order"),
    [("euler", 1), ("midpoint", 2), ("heun2", 2), ("heun3", 3), ("rk4", 4), ("explicit_adams", 4)],
)
def test_fixed_solvers_have_their_orders(solver: str, order: int) -> None:
    model, steps = ring(VP()), (40, 80)
    x = model.noisy(4, 1.0)
    end = model.flow(x, 1.0, VP().t_min)
    errors = [rms(adapt(counted(VP()), x, TorchDiffEqFixed(solver, AlongAngle(), n)).x - end) for n in steps]
    assert measured_order(steps, errors) > order - 0.3


def test_the_angle_has_no_bad_ends() -> None:
    process = RectifiedFlow(t_min=0.0, t_max=1.0)
    model, x = gaussian(process), normal(8, 1)
    for control in (TorchDiffEq(coordinate=AlongAngle()), TorchDiffEqFixed(coordinate=AlongAngle(), steps=20)):
        run = adapt(model, x, control)
        assert rms(run.x - (model.means + model.std * x)) < 1e-3


@pytest.mark.parametrize(
    "control", [TorchDiffEq("bosh3", budget=20), TorchDiffEqFixed("rk4", steps=50, budget=30)], ids=name
)
def test_the_budget_of_torchdiffeq(control: Control) -> None:
    model, network = ring(VP()), counted(VP())
    x = model.noisy(4, 1.0)
    run = adapt(network, x, control, s=0.0)
    assert run.status.tolist() == [Status.BUDGET] * 4
    assert network.calls_made == run.calls <= control.budget
    assert VP().t_min < float(run.t[0]) < 1
    assert rms(run.x - model.flow(x, 1.0, float(run.t[0]))) < 1e-3


def test_an_answer_that_is_not_finite_ends_the_run_of_a_library() -> None:
    spoiled = counted(VP(), spoil=lambda answer, t, x: torch.where((t < 0.5)[:, None], torch.nan, answer))
    x = ring(VP()).noisy(4, 1.0)
    for control in (TorchDiffEq(), TorchDiffEqFixed(), TorchSDEAdaptive()):
        run = adapt(spoiled, x, control)
        assert run.status.tolist() == [Status.NOT_FINITE] * 4
        assert 0.5 <= float(run.t[0]) <= 1
        assert bool(run.x.isfinite().all())


# torchsde -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [Sde.EULER, Sde.MILSTEIN])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_torchsde_is_euler_maruyama_on_the_same_increments(solver: Sde, eta: float) -> None:
    """AnswerPath by path: in time, with the increments of torchsde's own Brownian interval."""
    from torchsde import BrownianInterval

    process, n = VP(), 25
    model, network = ring(process), counted(process)
    x = model.noisy(4, 1.0)
    length = process.t_max - process.t_min
    path = BrownianInterval(0.0, length, size=(4, 2), dtype=torch.float64, entropy=7)

    class Replay(Noise):
        def on(self, system, x):
            return lambda k: lambda t, s: path(float(1 - t), float(1 - s)) / float(t - s) ** 0.5

    grid = Uniform(n)
    by_sdekit = solve(model, x, Method(ReverseSDE(eta), EulerMaruyama()), grid, Replay()).x
    run = adapt(network, x, TorchSDE(solver, AlongTime(), eta, 7, n))
    assert rms(run.x - by_sdekit) < 1e-9
    assert network.calls_made == run.calls == int(run.nfe[0]) == n
    assert run.t.tolist() == [process.t_min] * 4


@pytest.mark.parametrize("solver", Sde)
@pytest.mark.parametrize("coordinate", [AlongLam(), AlongAngle(), AlongTime()], ids=name)
def test_torchsde_samples_the_data(solver: Sde, coordinate) -> None:
    """In law, of Gaussian data: the mean to 4 standard errors and the step's own error."""
    model = gaussian(VP())
    network = Counted(GaussianMixture(VP(), model.means, model.std).double())
    x = normal(4000, 1)
    n = 200 if solver is Sde.REVERSIBLE_HEUN else 80
    run = adapt(network, x, TorchSDE(solver, coordinate, seed=1, steps=n))
    assert bool(run.done.all())
    assert float(run.x.mean()) == pytest.approx(0.7, abs=0.045)
    assert float(run.x.std()) == pytest.approx(0.5, abs=0.045)
    asked = {Sde.SRK: 2, Sde.MIDPOINT: 2, Sde.HEUN: 2}.get(solver, 1)
    assert network.calls_made == run.calls == asked * n + (solver is Sde.REVERSIBLE_HEUN)


def test_step_doubling() -> None:
    model = gaussian(VP())
    network = Counted(GaussianMixture(VP(), model.means, model.std).double())
    x = normal(3000, 1)
    run = adapt(network, x, TorchSDEAdaptive(Sde.SRK, rtol=3e-3, atol=3e-3))
    assert bool(run.done.all())
    assert float(run.x.mean()) == pytest.approx(0.7, abs=0.04)
    assert float(run.x.std()) == pytest.approx(0.5, abs=0.03)
    assert network.calls_made == run.calls
    short = adapt(network, x, TorchSDEAdaptive(Sde.SRK, budget=40))
    assert short.status.tolist() == [Status.BUDGET] * 3000
    assert int(short.nfe[0]) <= 40
    t = float(short.t[0])
    assert VP().t_min < t < 1
    wide = math.hypot(float(VP().alpha(t)) * 0.5, float(VP().sigma(t)))
    assert float(short.x.std()) == pytest.approx(wide, rel=0.1)


def test_torchsde_takes_any_shape_and_is_seeded() -> None:
    model = Denoiser(lambda x, t: torch.tanh(x), RectifiedFlow(), predicts=X0())
    runs = [sample_adaptively(model, (2, 1, 3, 3), TorchSDE(seed=seed, steps=10)) for seed in (0, 0, 1)]
    assert runs[0].x.shape == (2, 1, 3, 3)
    assert runs[0].x.dtype == torch.float32
    assert torch.equal(runs[0].x, runs[1].x)
    assert not torch.equal(runs[0].x, runs[2].x)
    assert runs[0].t.tolist() == [0.0, 0.0]


def test_fixed_names_are_values() -> None:
    assert TorchDiffEqFixed("rk4").solver is FixedOde.RK4
    assert TorchDiffEq("dopri8").solver is Ode.DOPRI8
    assert TorchSDE("heun").solver is Sde.HEUN
    assert isinstance(adapt(counted(VP()), normal(1, 2)), Adapted)
