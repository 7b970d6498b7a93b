"""Tuning: never worse, within its budget, the same under a seed; grids by law, by local error, by the shortest way."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact import PROCESSES, Mixture, name, normal, ring
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import every_process, number
from torch import Tensor, nn

from sdekit import (
    DAMPED_ADAMS,
    DDIM,
    DDPM,
    VE,
    VP,
    Angular,
    Beta,
    Cosine,
    Denoised,
    Denoiser,
    DPMpp2M,
    Eps,
    Gaussian,
    GaussianMixture,
    Grid,
    Karras,
    Landed,
    LogSNR,
    Method,
    Prediction,
    ProbabilityFlow,
    Process,
    RectifiedFlow,
    Times,
    Uniform,
    V,
    Velocity,
)
from sdekit._value import Value
from sdekit.nets import MLP
from sdekit.oracle import Diagonal
from sdekit.plan import Plan, law, marginal, run, trace
from sdekit.plan.family import adams, member_of, sizes_of, spaced, tau_of, time_of
from sdekit.plan.fine import Counted, solved
from sdekit.plan.fit import Leaves, Loss, Probe, by_stages, descend, probe, residual, squares, states
from sdekit.plan.grids import by_law, equidistributed, shortest
from sdekit.plan.tune import Tuned, members, tune
from sdekit.solvers import DATA, IPNDM, NOISE, STRAIGHT, ExponentialRK, Heun, InLam, Multistep, Ramp

FLOW = ProbabilityFlow()


class Watched(nn.Module):
    """A model that counts how often it is asked, and about how many states at most."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.calls_seen, self.most = model, 0, 0

    @property
    def process(self) -> Process:
        process: Process = self.model.process  # type: ignore[assignment]
        return process

    def forward(self, x: Tensor, t: Tensor | float) -> Prediction:
        self.calls_seen += 1
        self.most = max(self.most, len(x))
        prediction: Prediction = self.model(x, t)
        return prediction


class Rounded(Watched):
    """A model that is told the time in steps, so that its derivative in the time is 0 or none."""

    def forward(self, x: Tensor, t: Tensor | float) -> Prediction:
        t = torch.as_tensor(t, dtype=torch.float64).detach()
        return super().forward(x, t)


def oracle(process: Process, std: float = 0.4) -> GaussianMixture:
    """Return sdekit's own model of the same data as `ring`'s."""
    return GaussianMixture(process, ring(process).means, std)


def starts(process: Process, count: int = 48, dim: int = 2, seed: int = 3) -> Tensor:
    return normal(count, dim, seed=seed) * process.sigma(process.t_max)


def plan(process: Process, steps: int = 6, method: Method = DPMpp2M) -> Plan:
    return trace(method, process, LogSNR(steps), V())


def small(model: nn.Module, given: Plan, runs: int = 30, seed: int = 0) -> Tuned:
    return tune(given, model, starts(given.process), 304 + runs * given.nfe, seed)


# The family -----------------------------------------------------------------------------------------------------------

METHODS = [
    DDIM,
    DPMpp2M,
    Method(FLOW, IPNDM()),
    Method(FLOW, Multistep(DATA, InLam(), 3)),
    Method(FLOW, Multistep(NOISE, NOISE, 2, Ramp())),
    Method(FLOW, ExponentialRK(3)),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: name(method.solver))
@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_every_exponential_method_is_a_member(process: Process, method: Method) -> None:
    plan = trace(method, process, Karras(4), V())
    member = member_of(plan)
    assert member is not None
    assert member.plan(V()).distance(plan) < 1e-9


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_adams_is_the_straight_multistep(process: Process) -> None:
    grid = Karras(6)
    plan = trace(Method(FLOW, Multistep(STRAIGHT, STRAIGHT, 3, Ramp())), process, grid, V())
    assert adams(process, tau_of(process, grid(process)), 3).plan(V()).distance(plan) < 1e-9


def test_a_plan_that_is_not_exact_for_points_is_no_member() -> None:
    assert member_of(trace(Method(FLOW, Heun()), VP(), Uniform(4))) is None
    assert member_of(trace(DDPM, VP(), LogSNR(4))) is None


@pytest.mark.parametrize("process", [*PROCESSES, RectifiedFlow(t_min=0.0, t_max=1.0)], ids=name)
def test_tau_and_time_are_inverse(process: Process) -> None:
    times = Uniform(20)(process)
    assert time_of(process, tau_of(process, times)).allclose(times, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=name)
def test_a_grid_is_made_again_of_its_sizes(process: Process) -> None:
    for grid in (Angular(64), Landed(Angular(64)), Landed(Beta(2))):
        taus = tau_of(process, grid(process))
        assert spaced(process, taus[[0, -1]], sizes_of(process, taus)).allclose(taus, rtol=1e-12, atol=1e-15)


@every_process
def test_the_times_of_any_sizes_fall_strictly(process: Process, draw: Callable[..., Any]) -> None:
    """Whatever the sizes, times fall strictly, and no model is asked beyond t_min."""
    sizes = draw(st.lists(number(-1e3, 1e3), min_size=1, max_size=64))
    for last in {process.t_min, max(process.clean, -1e9)}:
        ends = tau_of(process, torch.tensor([process.t_max, last], dtype=torch.float64))
        times = time_of(process, spaced(process, ends, torch.tensor(sizes, dtype=torch.float64)))
        assert bool((torch.diff(times) < 0).all())
        assert float(times[-2]) >= process.t_min


GRIDS = [LogSNR(1), Denoised(LogSNR(1)), Landed(Beta(1)), Landed(LogSNR(1))]


@settings(max_examples=6)
@given(
    st.sampled_from(PROCESSES),
    st.sampled_from(GRIDS),
    st.sampled_from([DAMPED_ADAMS, Method(FLOW, ExponentialRK(4))]),
    st.integers(2, 64),
)
@example(VP(), Landed(Beta(1)), DAMPED_ADAMS, 50)
@example(VE(), Denoised(LogSNR(1)), DAMPED_ADAMS, 10)
@example(Cosine(), LogSNR(1), Method(FLOW, ExponentialRK(4)), 4)
def test_the_times_that_a_fit_tries_fall_strictly(process: Process, grid: Grid, method: Method, budget: int) -> None:
    model, x = oracle(process), starts(process, 12)
    calls = len(trace(method, process, grid.with_steps(3), V()).asks) // 3
    given = trace(method, process, grid.with_steps(max(budget // calls, 1)), V())
    fine = solved(Counted(model), x, (given.times[0], given.times[-1]), torch.arange(12))
    for origin, member in members(given, fine):
        tries = descend(fine, member, Loss(1e-9, 1.0), Probe(True, True), 0)
        for tried, _ in itertools.islice(tries, 1 if origin else 3):
            plan = tried.plan(V())
            assert bool((torch.diff(torch.tensor(plan.times, dtype=torch.float64)) < 0).all())
            assert (plan.nfe, plan.times[0], plan.times[-1]) == (given.nfe, given.times[0], given.times[-1])
            assert min(t for _, t in plan.asks) >= process.t_min


# The fit --------------------------------------------------------------------------------------------------------------


def test_the_fine_solution_is_fine_between_its_nodes_and_at_its_end() -> None:
    model = ring(VP())
    x, process = starts(VP(), 8), VP()
    fine = solved(Counted(model), x, (process.t_max, process.t_min), torch.arange(8))
    kappa = process.alpha(process.t_min) + process.sigma(process.t_min)
    assert (fine.target * kappa - model.flow(x, process.t_max, process.t_min)).abs().max() < 1e-6
    for t in (0.7, 0.31, 0.05):
        exact = model.flow(x, process.t_max, t) / (process.alpha(t) + process.sigma(t))
        assert (fine.at(float(tau_of(process, torch.tensor(t)))) - exact).abs().max() < 1e-5


def test_the_fine_solution_goes_on_to_the_clean_end() -> None:
    process = VP()
    model, x = ring(process), starts(process, 8)
    fine = solved(Counted(model), x, (process.t_max, process.clean), torch.arange(8))
    nearer = VP(t_min=1e-6)
    limit = ring(nearer).flow(x, nearer.t_max, nearer.t_min)
    tweedie = model(model.flow(x, process.t_max, process.t_min), process.t_min).x0
    assert (fine.target - limit).abs().max() < 0.1 * (tweedie - limit).abs().max()


@pytest.mark.parametrize("process", [VP(), VE(), RectifiedFlow()], ids=name)
def test_running_leaves_is_running_the_plan(process: Process) -> None:
    model, x = oracle(process), starts(process, 8)
    fine = solved(Counted(model), x, (process.t_max, process.t_min), torch.arange(8))
    member, _ = by_stages(fine, adams(process, tau_of(process, Karras(5)(process)), 3))
    end = run(member.plan(V()), model, x) / (process.alpha(process.t_min) + process.sigma(process.t_min))
    leaves = Leaves.of(member, 8)
    made = states(fine, leaves)
    assert made[-1].allclose(end, rtol=1e-9, atol=1e-9)
    # the outcome's errors come first, then those of the states that the model is asked about
    assert residual(fine, leaves, made)[:, :2].allclose(end - fine.target, atol=1e-9)
    assert residual(fine, leaves, made).shape == (8, 2 * 5)


def test_stage_by_stage_is_exact_where_one_weight_is_enough() -> None:
    # with one sample in one dimension a single free weight a row meets the fine solution at every node
    process = VP()
    model = Gaussian(process, torch.tensor([0.3], dtype=torch.float64), 0.5)
    fine = solved(Counted(model), starts(process, 1, 1), (process.t_max, process.t_min), torch.arange(1))
    _, errors = by_stages(fine, adams(process, tau_of(process, Karras(5)(process)), 2), ridge=0.0)
    assert float(errors.sqrt()) < 1e-9


def test_the_descent_gains() -> None:
    process = VP()
    model, x = oracle(process, 0.15), starts(process)
    fine = solved(Counted(model), x, (process.t_max, process.t_min), torch.arange(len(x)))
    member, errors = by_stages(fine, adams(process, tau_of(process, LogSNR(6)(process)), 3))
    loss = Loss(0.01 * float(errors.median()), 1.0)
    losses = [float(loss(e)) for _, e in itertools.islice(descend(fine, member, loss, Probe(True, True), 0), 25)]
    assert losses[0] == pytest.approx(float(loss(errors)))
    assert min(losses) < 0.3 * losses[0]


def test_a_model_is_probed_for_its_derivatives() -> None:
    model, x = oracle(VP()), starts(VP())
    assert probe(Counted(model), x, 0.5) == Probe(True, True)
    assert probe(Counted(Rounded(model)), x, 0.5) == Probe(True, False)

    class Mute(Watched):
        @torch.no_grad()
        def forward(self, x: Tensor, t: Tensor | float) -> Prediction:
            return super().forward(x, t)

    assert probe(Counted(Mute(model)), x, 0.5) == Probe(False, False)


# Tuning ---------------------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    st.sampled_from(PROCESSES),
    st.sampled_from(METHODS),
    st.integers(1, 7),
    st.sampled_from([0.05, 0.4, 2.0]),
    st.integers(3, 12),
)
def test_the_outcome_is_never_worse(process: Process, method: Method, steps: int, std: float, runs: int) -> None:
    given = trace(method, process, LogSNR(steps), V())
    model = Watched(oracle(process, std))
    budget = 304 + runs * given.nfe
    tuned = tune(given, model, starts(process), budget)
    assert tuned.after.rmse <= tuned.before.rmse
    assert tuned.after.median <= tuned.before.median
    assert tuned.calls == model.calls_seen <= budget
    assert model.most <= 48
    assert (tuned.plan.nfe, tuned.plan.times[0], tuned.plan.times[-1]) == (given.nfe, given.times[0], given.times[-1])


@pytest.mark.parametrize("process", [VP(), Cosine(), VE(), RectifiedFlow()], ids=name)
def test_a_ring_is_sampled_ten_times_better(process: Process) -> None:
    model, given = oracle(process, 0.1), plan(process, 8)
    tuned = tune(given, model, starts(process, 96), 304 + 60 * 8)
    x = starts(process, 64, seed=9)
    exact = ring(process, 0.1).flow(x, process.t_max, process.t_min)
    before, after = ((run(p, model, x) - exact).square().mean().sqrt() for p in (given, tuned.plan))
    assert after < 0.1 * before


def test_the_same_seed_gives_the_same_plan() -> None:
    model, given = oracle(VP()), plan(VP(), 5)
    one, two, other = small(model, given), small(model, given), small(model, given, seed=1)
    assert one == two
    assert one.plan != other.plan


def test_the_result_is_an_ordinary_plan() -> None:
    model, given = oracle(VP()), plan(VP(), 10)
    tuned = small(model, given)
    text = json.dumps(tuned.plan.to_json())
    again = Value.from_json(json.loads(text))
    x = starts(VP(), 4, seed=5)
    assert again == tuned.plan != given
    assert torch.equal(run(again, model, x), run(tuned.plan, model, x))
    assert len(text) < 10_000
    assert again.answers == given.answers
    assert law(again, Gaussian(VP(), torch.zeros(2, dtype=torch.float64), 0.5)).variance.isfinite().all()


def test_the_clean_end_stays_the_end() -> None:
    process = VP()
    given = trace(DPMpp2M, process, Denoised(Karras(6)), V())
    tuned = small(oracle(process, 0.1), given)
    assert tuned.plan.times[-1] == process.clean
    assert tuned.after.rmse < 0.2 * tuned.before.rmse


def test_whole_paths_are_tuned() -> None:
    process = RectifiedFlow(t_min=0.0, t_max=1.0)
    given = trace(Method(FLOW, Multistep(points=2)), process, Uniform(6), Velocity())
    tuned = small(oracle(process, 0.2), given)
    assert tuned.after.rmse < 0.3 * tuned.before.rmse
    assert tuned.plan.answers == Velocity()


def test_a_second_half_is_tuned_from_its_own_time() -> None:
    process = VP()
    given = trace(DDIM, process, LogSNR(10), V()).onwards(5)
    model = oracle(process, 0.2)
    t = given.times[0]
    tuned = tune(given, model, ring(process, 0.2).noisy(48, t), 304 + 30 * 5)
    assert tuned.plan.times[0] == t
    assert tuned.after.rmse < 0.3 * tuned.before.rmse


def test_where_the_time_has_no_derivative_the_rest_is_fitted() -> None:
    model = Rounded(oracle(VP(), 0.2))
    tuned = small(model, plan(VP()))
    assert tuned.after.rmse < 0.3 * tuned.before.rmse
    assert tuned.calls == model.calls_seen


def test_a_model_that_calls_twice_is_counted_twice() -> None:
    model = Watched(oracle(VP()))
    model.calls = 2
    with pytest.raises(ValueError, match="network calls"):
        small(model, plan(VP()))
    tuned = tune(plan(VP()), model, starts(VP()), 2 * (304 + 20 * 6))
    assert tuned.calls == 2 * model.calls_seen <= 2 * (304 + 20 * 6)


def test_a_small_network_is_tuned() -> None:
    process = VP()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = MLP((2,), hidden=32, depth=2)
    data = ring(process).draws(512).float()
    denoiser = Denoiser(net, process, predicts=Eps())
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(150):
        t = torch.rand(512, generator=generator) * 0.998 + 0.001
        eps = torch.randn(512, 2, generator=generator)
        loss = (denoiser(process.perturb(data, t, eps), t).eps - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    tuned = tune(plan(process), denoiser, starts(process, 64).float(), 304 + 40 * 6)
    assert tuned.after.rmse < 0.3 * tuned.before.rmse
    assert all(p.grad is None for p in net.parameters())


def test_tuning_needs_no_gradient_mode() -> None:
    with torch.no_grad():
        assert small(oracle(VP()), plan(VP(), 5)) == small(oracle(VP()), plan(VP(), 5))
        assert not torch.is_grad_enabled()


def test_what_cannot_be_tuned_is_refused() -> None:
    process, model = VP(), oracle(VP())
    good = starts(process)
    with pytest.raises(ValueError, match="deterministic"):
        tune(trace(DDPM, process, LogSNR(5)), model, good)
    with pytest.raises(ValueError, match="from noise to data"):
        tune(plan(process).split(2)[1], model, good)
    with pytest.raises(ValueError, match="process"):
        tune(plan(Cosine()), model, good)
    with pytest.raises(ValueError, match="at least 12"):
        tune(plan(process), model, good[:11])
    with pytest.raises(ValueError, match="standard deviation about 50"):
        tune(plan(VE()), oracle(VE()), good)
    with pytest.raises(ValueError, match="322 network calls; got 321"):
        tune(plan(process), model, good, budget=321)
    with pytest.raises(FloatingPointError, match="fine solution"):
        tune(plan(process), Mixture(process, torch.full((1, 2), math.nan, dtype=torch.float64), 0.1), good)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=name)
@pytest.mark.parametrize("steps", [5, 10, 20])
def test_the_default_budget_gains_everywhere(process: Process, steps: int) -> None:
    model, given = oracle(process, 0.1), plan(process, steps, Method(FLOW, IPNDM()))
    tuned = tune(given, model, starts(process, 128))
    x = starts(process, 64, seed=9)
    exact = ring(process, 0.1).flow(x, process.t_max, process.t_min)
    before, after = (squares(run(p, model, x), exact) for p in (given, tuned.plan))
    # the mean is that of the few starts between two modes
    assert after.mean().sqrt() < 0.5 * before.mean().sqrt()
    assert after.median().sqrt() < 0.2 * before.median().sqrt()


# Grids ----------------------------------------------------------------------------------------------------------------


def test_the_grid_by_law_is_the_best_of_its_law() -> None:
    process = VP()
    data = Gaussian(process, torch.zeros(3, dtype=torch.float64), Diagonal(torch.tensor([0.02, 0.3, 1.5]).double()))
    goal = marginal(data, process.t_min)
    found = by_law(DPMpp2M, process, 6, data)

    def distance(grid: Times | LogSNR | Karras | Uniform) -> float:
        return float(law(trace(DPMpp2M, process, grid, V()), data).w2(goal))

    assert (found.at[0], found.at[-1]) == (process.t_max, process.t_min)
    assert distance(found) < 0.5 * min(distance(grid) for grid in (LogSNR(6), Karras(6), Uniform(6)))


@pytest.mark.parametrize("process", [VP(), VE(), RectifiedFlow(t_min=0.0, t_max=1.0)], ids=name)
def test_a_grid_of_even_errors_helps(process: Process) -> None:
    model, x = oracle(process, 0.1), starts(process)
    fine = solved(Counted(model), x, (process.t_max, process.t_min), torch.arange(len(x)))
    method = Method(FLOW, Multistep(points=2, start=Ramp()))
    typical = []
    for grid in (equidistributed(model, x, 8), Uniform(8)):
        times = grid(process)
        assert (float(times[0]), float(times[-1]), len(times)) == (process.t_max, process.t_min, 9)
        kappa = process.alpha(times[-1]) + process.sigma(times[-1])
        end = run(trace(method, process, grid, V()), model, x) / kappa
        typical.append(float(squares(end, fine.target).median().sqrt()))
    assert typical[0] < 0.7 * typical[1]


@pytest.mark.parametrize("process", [VP(), VE(), RectifiedFlow(t_min=0.0, t_max=1.0)], ids=name)
def test_the_shortest_way_is_the_shortest(process: Process) -> None:
    model, x = oracle(process, 0.1), starts(process)
    fine = solved(Counted(model), x, (process.t_max, process.t_min), torch.arange(len(x)))

    def cost(k: int, tau: float) -> float:
        reached = fine.states[k] + (tau - fine.taus[k]) * fine.slopes[k]
        return float((fine.at(tau) - reached).square().mean().sqrt())

    first, middle, last = tau_of(process, shortest(model, x, 2)(process)).tolist()
    found = cost(0, middle) + cost(int((fine.taus - middle).abs().argmin()), last)
    others = [cost(0, float(fine.taus[k])) + cost(k, last) for k in range(3, len(fine.taus) - 1, 3)]
    assert first == pytest.approx(float(fine.taus[0]))
    assert found <= min(others) * 1.02  # the way goes through every third node


def test_the_shortest_way_has_no_more_steps_than_nodes() -> None:
    with pytest.raises(ValueError, match="1 to 100 steps"):
        shortest(oracle(VP()), starts(VP(), 4), 101)
