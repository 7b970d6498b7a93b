"""Running a sampler: what comes out, how it is reproduced, and what is said when something goes wrong."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from exact import (
    PLAIN,
    PROCESSES,
    Mixture,
    gaussian,
    law,
    marginal,
    measured_order,
    name,
    normal,
    ring,
    rms,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sdekit import (
    DDIM,
    DDPM,
    EULER_MARUYAMA,
    HEUN,
    VE,
    VP,
    Denoised,
    Denoiser,
    Discrete,
    EulerMaruyama,
    Exponential,
    ForwardSDE,
    Karras,
    Keyed,
    Leading,
    LogSNR,
    Method,
    ProbabilityFlow,
    Process,
    RectifiedFlow,
    Solver,
    StochasticDDIM,
    Times,
    Uniform,
    V,
    encode,
    sample,
    solve,
    trace,
    trajectory,
)
from sdekit.grid import Grid, Reversed

on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
by_every_method = pytest.mark.parametrize("method", PLAIN.values(), ids=PLAIN)

FLOW = list(dict.fromkeys(m.solver for m in PLAIN.values() if m.equation == ProbabilityFlow()))


# What comes out -------------------------------------------------------------------------------------------------------


def sliced_distance(a: Tensor, b: Tensor) -> float:
    """Return the Wasserstein-2 distance of two sets of as many points, averaged over 16 directions of the plane."""
    angle = torch.arange(16, dtype=torch.float64) * (torch.pi / 16)
    directions = torch.stack([angle.cos(), angle.sin()])
    return rms((a @ directions).sort(0).values - (b @ directions).sort(0).values)


@by_every_method
@pytest.mark.parametrize("process", [VP(), VE(), RectifiedFlow()], ids=name)
def test_samples_are_like_data(process: Process, method: Method) -> None:
    model = ring(process, std=0.2)
    x = sample(model, (4096, 2), method, Denoised(LogSNR(150)), seed=1)
    assert sliced_distance(x, model.draws(4096)) < 0.05


@on_every_process
def test_a_default_is_good(process: Process) -> None:
    model = ring(process, std=0.2)
    assert sliced_distance(sample(model, (4096, 2)), model.draws(4096)) < 0.05


def test_bad_samples_are_told_from_good_ones() -> None:
    model = ring(VP(), std=0.2)
    assert sliced_distance(model.draws(4096, seed=1), model.draws(4096, seed=2)) < 0.03
    assert sliced_distance(1.2 * model.draws(4096, seed=1), model.draws(4096, seed=2)) > 0.1
    assert sliced_distance(sample(model, (4096, 2), DDIM, LogSNR(3)), model.draws(4096)) > 0.1


@on_every_process
def test_the_forward_process_makes_noise_of_data(process: Process) -> None:
    """In law, exactly: from data at t_min, Euler-Maruyama ends near the marginal at t_max."""
    model, grid = gaussian(process), Reversed(LogSNR(400))
    mean, std = law(model, Method(ForwardSDE(), EulerMaruyama()), grid)
    true_mean, true_std = marginal(model, grid(process))
    assert abs(float(mean[-1] - true_mean[-1])) < 0.01 * float(true_std[-1])
    assert float(std[-1]) == pytest.approx(float(true_std[-1]), rel=0.03)


# Reproduction ---------------------------------------------------------------------------------------------------------


@by_every_method
def test_a_sample_is_a_function_of_seed_and_number(method: Method) -> None:
    model = Mixture(VP(), normal(3, 2, 1, 3), std=0.3)
    many = sample(model, (6, 2, 1, 3), method, LogSNR(8), seed=5)
    assert torch.equal(sample(model, (6, 2, 1, 3), method, LogSNR(8), seed=5), many)
    assert rms(sample(model, (2, 2, 1, 3), method, LogSNR(8), seed=5) - many[:2]) < 1e-12
    other = sample(model, (6, 2, 1, 3), method, LogSNR(8), seed=6)
    assert float((other - many).abs().min()) > 0
    assert float((many[0] - many[1]).abs().min()) > 0


def test_a_batch_is_continued_by_its_first_number() -> None:
    """Another rank draws samples 4 and 5 of the same run."""
    model, start = ring(VP()), torch.empty(6, 2, dtype=torch.float64)
    whole = solve(model, Keyed(seed=2).start(start), DDPM, LogSNR(8), Keyed(seed=2)).x
    rest = Keyed(seed=2, first=4)
    assert rms(solve(model, rest.start(start[4:]), DDPM, LogSNR(8), rest).x - whole[4:]) < 1e-12


@pytest.mark.uses_global_rng
def test_the_global_generator_is_neither_read_nor_moved() -> None:
    model, states, ends = ring(VP()), [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(torch.get_rng_state())
        ends.append(sample(model, (3, 2), DDPM, LogSNR(5)))
        states.append(torch.get_rng_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[2], states[3])
    assert torch.equal(ends[0], ends[1])


class Scaled(nn.Module):
    """A network with a parameter."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 0.5, dtype=dtype, device=device))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == self.weight.dtype
        return x * self.weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_samples_take_after_the_model(dtype: torch.dtype, device: torch.device) -> None:
    """On its device, in its precision, but never in less than single."""
    x = sample(Denoiser(Scaled(dtype, device), VP(), predicts=V()), (4, 3), DDIM, LogSNR(3))
    assert x.dtype == torch.promote_types(dtype, torch.float32)
    assert x.device.type == device.type
    assert not x.requires_grad


# The points of a run --------------------------------------------------------------------------------------------------


@by_every_method
@pytest.mark.parametrize("grid", [LogSNR(5), Denoised(Karras(5)), Uniform(1)], ids=name)
def test_a_trajectory_is_its_points(method: Method, grid: Grid) -> None:
    model, x = ring(VP()), normal(3, 2)
    points = list(trajectory(model, x, method, grid, Keyed(seed=1)))
    assert [point.t for point in points] == grid(VP()).tolist()
    assert torch.equal(points[0].x, x)
    assert points[0].nfe == 0
    assert all(a.nfe < b.nfe and a.t > b.t for a, b in pairwise(points))
    last = solve(model, x, method, grid, Keyed(seed=1))
    assert torch.equal(last.x, points[-1].x)
    assert last[1:] == points[-1][1:]


def test_a_trajectory_may_be_left_early() -> None:
    """Nothing is computed that was not asked for."""
    model, calls = ring(VP()), []
    model.register_forward_hook(lambda *_: calls.append(1))
    run = trajectory(model, normal(3, 2), DDIM, LogSNR(100))
    assert [next(run).nfe for _ in range(4)] == [0, 1, 2, 3]
    assert len(calls) == 3


def test_the_start_is_not_written_to() -> None:
    model, x = ring(VP()), normal(3, 2)
    before = x.clone()
    for sampler in PLAIN.values():
        solve(model, x, sampler, Denoised(LogSNR(3)))
    assert torch.equal(x, before)


# There and back -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP(), VE(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize("solver", FLOW, ids=name)
def test_encoding_is_undone_by_sampling(process: Process, solver: Solver) -> None:
    """Up to the solver's own error, which falls at least with its order."""
    model, steps, errors = ring(process), (60, 120), []
    x = model.noisy(8, process.t_min)
    for n in steps:
        latent = encode(model, x, Method(ProbabilityFlow(), solver), LogSNR(n))
        errors.append(rms(solve(model, latent, Method(ProbabilityFlow(), solver), LogSNR(n)).x - x))
    assert measured_order(steps, errors) > solver.order - 0.2
    assert errors[-1] < 0.2


def test_codes_are_noise() -> None:
    """Data are encoded to N(0, sigma(t_max)^2), whatever grid is meant for sampling."""
    model = ring(VP(), std=0.2)
    for grid in (LogSNR(60), Denoised(LogSNR(60))):
        z = encode(model, model.draws(4096), HEUN, grid)
        assert sliced_distance(z, normal(4096, 2, seed=9)) < 0.05


@pytest.mark.parametrize("sampler", [DDPM, EULER_MARUYAMA, StochasticDDIM(0.5)], ids=str)
def test_encoding_with_a_stochastic_method_is_refused_with_advice(sampler: Method) -> None:
    with pytest.raises(TypeError, match=r"got ReverseSDE.*Use Method\(ProbabilityFlow"):
        encode(ring(VP()), normal(3, 2), sampler)


# Derivatives ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [DDIM, HEUN, DDPM, Method(ProbabilityFlow(), Exponential(3))], ids=str)
def test_a_run_is_differentiable_in_its_start(sampler: Method) -> None:
    model = ring(VP())
    x = normal(2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: solve(model, x, sampler, LogSNR(4)).x, (x,), rtol=1e-5)


@by_every_method
def test_gradients_reach_the_network(method: Method) -> None:
    """Through every step: the derivative in a parameter is the limit of differences."""

    def end(shift: Tensor) -> Tensor:
        model = Denoiser(lambda x, t: torch.tanh(x + shift), VP(), predicts=V())
        return solve(model, normal(4, 2), method, Denoised(LogSNR(4))).x.sum()

    shift = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(end(shift), shift)
    with torch.no_grad():
        difference = (end(shift + 1e-6) - end(shift - 1e-6)) / 2e-6
    assert float(slope) == pytest.approx(float(difference), rel=1e-6)
    assert float(slope) != 0


# What is said when something goes wrong -------------------------------------------------------------------------------


@by_every_method
@given(
    bad=st.sets(st.integers(0, 4), min_size=1),
    step=st.integers(0, 5),
    value=st.sampled_from(["nan", "inf", "-inf"]),
)
def test_a_model_that_is_not_finite_is_reported_where_it_happens(
    method: Method, bad: set[int], step: int, value: str
) -> None:
    times = LogSNR(6)(VP()).tolist()

    def net(x: Tensor, t: Tensor) -> Tensor:
        spoilt = x.clone()
        if float(t[0]) <= times[step]:
            spoilt[sorted(bad), 0] = float(value)
        return spoilt

    model = Denoiser(net, VP(), predicts=V())
    with pytest.raises(FloatingPointError) as error:
        solve(model, normal(5, 2), method, LogSNR(6))
    # a method that looks ahead within a step meets the value one step earlier
    ahead = method.solver.evals > 1 or method.solver.starts
    steps = [step + 1, step] if ahead and step else [step + 1]
    said = [f"at step {k} of 6, t={times[k]:.6g}, samples {sorted(bad)} ({len(bad)} in all)" for k in steps]
    assert any(sentence in str(error.value) for sentence in said)


def test_a_start_that_is_not_finite_is_reported() -> None:
    x = normal(3, 2)
    x[1, 0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"at start, t=1, samples \[1\]"):
        solve(ring(VP()), x, DDIM, LogSNR(3))


@pytest.mark.parametrize("x", [torch.ones(3, 2, dtype=torch.long), torch.tensor(1.0)], ids=["int", "0-d"])
def test_states_are_batches_of_floating_point_numbers(x: Tensor) -> None:
    with pytest.raises(ValueError, match="x must be a batch"):
        solve(ring(VP()), x, DDIM, LogSNR(3))


@pytest.mark.parametrize(
    ("process", "grid", "advice"),
    [
        (VP(), Leading(10), "needs a Discrete process.* Use Uniform"),
        (Discrete.linear(), Times((1.0, 0.5, 0.5)), "strictly falling"),
        (Discrete.linear(100), Leading(101), "At most the table's 100 steps"),
        (RectifiedFlow(t_max=1.0), LogSNR(10), "finite log-SNR at both ends.* Uniform or Quadratic"),
        (VP(), Times((1.0, 0.5, 0.5)), "strictly falling"),
        (VP(), Times((0.1, 0.5)), "strictly falling"),
        (VP(), Times((1.0,)), "at least two"),
        (VP(), Times((1.1, 0.5)), r"must lie in \[t_min, t_max\]"),
        (VP(), Times((1.0, 1e-4)), r"must lie in \[t_min, t_max\]"),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_with_advice(process: Process, grid: Grid, advice: str) -> None:
    with pytest.raises(ValueError, match=advice) as error:
        sample(ring(process), (3, 2), DDIM, grid)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("sampler", [DDPM, EULER_MARUYAMA, StochasticDDIM(0.5)], ids=str)
def test_the_reverse_equation_is_not_run_towards_noise(sampler: Method) -> None:
    """Its noise would be lost or its drift wrong: only the flow runs both ways."""
    with pytest.raises(ValueError, match="Reversed"):
        solve(ring(VP()), normal(3, 2), sampler, Reversed(LogSNR(5)))


def test_the_forward_equation_is_not_run_towards_data() -> None:
    with pytest.raises(ValueError, match="Reversed"):
        solve(ring(VP()), normal(3, 2), Method(ForwardSDE(), EulerMaruyama()), LogSNR(5))


def test_a_last_time_that_misses_t_min_by_rounding_is_t_min() -> None:
    """And not the clean end."""
    model, x = ring(VP(t_min=0.1)), normal(3, 2)
    assert 0.3 - 0.2 < 0.1
    missed, exact = (solve(model, x, DDIM, Times((1.0, 0.5, end))).x for end in (0.3 - 0.2, 0.1))
    assert rms(missed - exact) < 1e-9


def test_a_plan_with_a_time_twice_is_sampled_from() -> None:
    model = gaussian(VP())
    plan = trace(DDIM, VP(), Uniform(4))
    rows = [*plan.rows[:-1], replace(plan.rows[-1], t=plan.rows[-2].t)]
    x = sample(model, (3, 2), replace(plan, rows=tuple(rows)))
    assert torch.equal(x, sample(model, (3, 2), plan))
