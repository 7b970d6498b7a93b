"""The order measured is the order declared: every exported solver, on every process, against the exact solution."""

from __future__ import annotations

import dataclasses
from functools import cache
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
    solvers,
    worst_law,
)
from torch import Tensor

from sdekit import (
    EDM,
    VE,
    VP,
    BrownianPath,
    Discrete,
    EulerMaruyama,
    Exponential,
    ForwardSDE,
    GaussianMixture,
    Karras,
    LogSNR,
    Method,
    ProbabilityFlow,
    Process,
    Quadratic,
    RectifiedFlow,
    ReverseSDE,
    Solver,
    Uniform,
    solve,
)
from sdekit.grid import Grid, Reversed
from sdekit.solvers import Ancestral, InTime, RungeKutta, UniPC

STEPS = (100, 200)
TOLERANCE = 0.15
FLOW = [s for s in solvers() if ProbabilityFlow in s.solves]
NOISY = [*dict.fromkeys(m.solver for m in PLAIN.values() if m.equation == ReverseSDE()), Ancestral()]

on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
by_every_flow_solver = pytest.mark.parametrize("solver", FLOW, ids=name)


@cache
def start_and_end(process: Process, t: float, s: float) -> tuple[Mixture, Tensor, Tensor]:
    """Return a model, states at t, and where the exact flow takes them at s."""
    model = ring(process)
    x = model.noisy(8, t)
    return model, x, model.flow(x, t, s)


def middle(process: Process) -> Process:
    """Return the process from lam = -1 to 1.5, where no step is spared its error, so that few steps show the order."""
    ends = (float(process.time(lam)) for lam in (1.5, -1.0))
    return dataclasses.replace(process, **dict(zip(("t_min", "t_max"), ends, strict=True)))


def steps_for(solver: Solver) -> tuple[int, int]:
    late = isinstance(solver, UniPC) or getattr(solver, "clock", None) == InTime()
    return (256, 512) if late else (64, 128)


def flow_order(process: Process, solver: Solver, grids: list[Grid]) -> float:
    times = grids[0](process)
    model, x, end = start_and_end(process, float(times[0]), float(times[-1]))
    method = Method(ProbabilityFlow(), solver)
    runs = [solve(model, x, method, grid) for grid in grids]
    steps = tuple(len(grid(process)) - 1 for grid in grids)
    return measured_order(steps, [rms(run.x - end) for run in runs])


def test_the_exported_solvers_are_found() -> None:
    assert {name(s) for s in FLOW} >= {"Euler", "Heun", "RK4", "Exponential(order=1)", "Exponential(order=3)"}
    assert {name(s) for s in NOISY} >= {"EulerMaruyama", "Ancestral(order=1)", "Exponential(order=2)"}


@on_every_process
def test_the_exact_model_is_the_oracle(process: Process) -> None:
    """Written twice, once here in ten lines and once in sdekit."""
    model, (t, s) = ring(process), LogSNR(5)(process)[[1, 4]]
    oracle = GaussianMixture(process, model.means, model.std)
    for time in (t, s):
        x = model.noisy(8, float(time))
        assert rms(oracle(x, time).x0 - model(x, time).x0) < 1e-12


# The probability flow -------------------------------------------------------------------------------------------------


@on_every_process
@by_every_flow_solver
def test_order(process: Process, solver: Solver) -> None:
    order = flow_order(middle(process), solver, [LogSNR(n) for n in steps_for(solver)])
    assert order == pytest.approx(solver.order, abs=TOLERANCE)


@pytest.mark.slow
@on_every_process
@by_every_flow_solver
def test_order_of_encoding(process: Process, solver: Solver) -> None:
    order = flow_order(middle(process), solver, [Reversed(LogSNR(n)) for n in steps_for(solver)])
    assert order == pytest.approx(solver.order, abs=TOLERANCE)


@pytest.mark.slow
@on_every_process
@by_every_flow_solver
def test_order_over_the_whole_range(process: Process, solver: Solver) -> None:
    """Near pure noise the first steps make next to no error, so a poor start does not show."""
    order = flow_order(process, solver, [LogSNR(n) for n in (200, 400)])
    assert order > solver.order - 0.25  # for some these are not yet steps small enough


@pytest.mark.slow
@on_every_process
@by_every_flow_solver
def test_order_with_uneven_steps(process: Process, solver: Solver) -> None:
    """Steps whose lengths in lam differ: a multistep method must weigh them right."""
    order = flow_order(middle(process), solver, [Karras(4 * n) for n in steps_for(solver)])
    assert order == pytest.approx(solver.order, abs=TOLERANCE)


@on_every_process
@pytest.mark.parametrize("solver", [s for s in FLOW if isinstance(s, RungeKutta)], ids=name)
def test_order_in_time(process: Process, solver: Solver) -> None:
    """Runge-Kutta methods step in time, so a grid smooth in time is as good as one in lam."""
    order = flow_order(process, solver, [Quadratic(2 * n) for n in STEPS])
    assert order == pytest.approx(solver.order, abs=TOLERANCE)


@pytest.mark.parametrize("process", [VP(t_min=0.05), VE()], ids=name)
@pytest.mark.parametrize("solver", [s for s in FLOW if isinstance(s, Exponential)], ids=name)
def test_order_of_exponentials_on_quadratic_times(process: Process, solver: Solver) -> None:
    """Where lam is smooth in the root of time, so not near t = 0 of VP, its steps are as good as even ones."""
    order = flow_order(process, solver, [Quadratic(2 * n) for n in STEPS])
    assert order == pytest.approx(solver.order, abs=TOLERANCE)


@pytest.mark.parametrize("solver", [s for s in FLOW if isinstance(s, Exponential)], ids=name)
def test_order_on_a_table_of_exponentials(solver: Solver) -> None:
    """They see a process through lam alone, so they do not notice what lies between the nodes."""
    order = flow_order(Discrete.linear(), solver, [LogSNR(n) for n in STEPS])
    assert order == pytest.approx(solver.order, abs=TOLERANCE)


@pytest.mark.parametrize("solver", [s for s in FLOW if isinstance(s, RungeKutta)], ids=name)
def test_order_on_a_table_of_runge_kutta(solver: Solver) -> None:
    """log alpha is a cubic between the nodes, once differentiable at them: steps that end there keep every order."""
    table = Discrete.linear(steps=21, beta_min=0.01, beta_max=0.6)
    order = flow_order(table, solver, [Uniform(20 * k) for k in (12, 24)])
    assert order == pytest.approx(solver.order, abs=0.2)


@pytest.mark.parametrize("solver", [s for s in FLOW if isinstance(s, RungeKutta)], ids=name)
def test_order_from_pure_noise(solver: Solver) -> None:
    """On the whole straight path, where alpha and then sigma vanish, the flow of a Gaussian is x0 = mean + std x1."""
    model = gaussian(RectifiedFlow(t_min=0.0, t_max=1.0))
    x = normal(8, 1)
    end = model.means + model.std * x
    errors = [rms(solve(model, x, Method(ProbabilityFlow(), solver), Uniform(n)).x - end) for n in STEPS]
    assert measured_order(STEPS, errors) > solver.order - TOLERANCE  # the midpoint rule does better on this one


# Stochastic equations, in law: exact on Gaussian data, no sample is drawn ---------------------------------------------


@on_every_process
@pytest.mark.parametrize("solver", NOISY, ids=name)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_weak_order(process: Process, solver: Solver, eta: float) -> None:
    """Of order 3 it is only said that it is at least 2."""
    method = Method(ReverseSDE(eta), solver)
    order = measured_order(STEPS, [worst_law(gaussian(process), method, LogSNR(n)) for n in STEPS])
    assert order > min(solver.order, 2) - TOLERANCE
    assert order < solver.order + TOLERANCE


@on_every_process
def test_weak_order_of_the_forward_process(process: Process) -> None:
    method = Method(ForwardSDE(), EulerMaruyama())
    order = measured_order(STEPS, [worst_law(gaussian(process), method, Reversed(LogSNR(n))) for n in STEPS])
    assert order == pytest.approx(1, abs=TOLERANCE)


@on_every_process
@pytest.mark.parametrize("solver", [s for s in NOISY if isinstance(s, Exponential)], ids=name)
def test_exponential_integrators_keep_the_mean(process: Process, solver: Solver) -> None:
    """On Gaussian data, whose x0_hat is constant along the mean, they have no error there at all."""
    model, grid = gaussian(process), Karras(7)
    mean, _ = law(model, Method(ReverseSDE(0.7), solver), grid)
    assert mean.numpy() == pytest.approx(marginal(model, grid(process))[0].numpy(), abs=1e-12)


# Stochastic equations, path by path -----------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP(), VE(), EDM()], ids=name)
@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0, 4.0])
def test_a_path_has_standard_normal_increments(process: Process, eta: float) -> None:
    """Everywhere, though its clock e^{2 eta lam} runs over many powers of ten."""
    x = torch.zeros(2000, 1, dtype=torch.float64)
    draw = BrownianPath(seed=1).on(ReverseSDE(eta).of(ring(process)), x)(0)
    for t, s in pairwise(LogSNR(20)(process)):
        assert rms(draw(t, s)) == pytest.approx(1, abs=0.08)  # five standard deviations of 2000 draws


def strong_orders(process: Process, eta: float) -> dict[str, float]:
    model, path, steps = ring(process, std=0.5), BrownianPath(seed=3), (32, 64, 128)
    x = model.noisy(256, process.t_max)

    def end(solver: Solver, n: int) -> Tensor:
        return solve(model, x, Method(ReverseSDE(eta), solver), LogSNR(n), path).x

    fine = end(Exponential(2), 1024)
    one_step = (EulerMaruyama(), Exponential(1), Ancestral())
    return {name(s): measured_order(steps, [rms(end(s, n) - fine) for n in steps]) for s in one_step}


def test_strong_order() -> None:
    """One, not one half, since the noise is additive."""
    assert min(strong_orders(VP(), eta=1.0).values()) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_strong_order_everywhere(process: Process, eta: float) -> None:
    orders = strong_orders(process, eta)
    assert min(orders.values()) > 0.85, orders
