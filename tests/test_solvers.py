"""What a step is: its cost, its weights, its linearity, and what may not change its outcome."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace

import mpmath
import pytest
import torch
from exact import PLAIN, PROCESSES, Mixture, gaussian, measured_order, name, normal, ring, rms, solvers, worst_law
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdekit import (
    EDM,
    RK4,
    VP,
    BrownianPath,
    Denoised,
    Euler,
    Exponential,
    Heun,
    Keyed,
    LogSNR,
    Method,
    Prediction,
    ProbabilityFlow,
    Process,
    Quadratic,
    RectifiedFlow,
    ReverseSDE,
    Solver,
    Step,
    Times,
    Uniform,
    solve,
    trajectory,
)
from sdekit.equation import Equation, System
from sdekit.noise import Draw
from sdekit.solvers import Ancestral, AncestralLarge, RungeKutta

EQUATIONS: list[Equation] = [ProbabilityFlow(), ReverseSDE(0.0), ReverseSDE(0.5), ReverseSDE()]
CASES = list(
    dict.fromkeys([Method(eq, s) for eq in EQUATIONS for s in (*solvers(), Exponential(3)) if isinstance(eq, s.solves)])
)
Past = tuple[Prediction, ...]
ONE_STEP = [method for method in CASES if not (method.solver.memory or method.solver.starts)]


def case(method: Method) -> str:
    return f"{name(method.solver)}-{name(method.equation)}"


on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
by_every_method = pytest.mark.parametrize("method", CASES, ids=case)


# Cost -----------------------------------------------------------------------------------------------------------------


def counted(method: Method, grid: LogSNR | Denoised) -> tuple[int, int]:
    """Return the network calls that sdekit counts, and those that the network does."""
    model, calls = ring(VP()), []
    hook = model.register_forward_hook(lambda *_: calls.append(1))
    nfe = solve(model, normal(2, 2), method, grid).nfe
    hook.remove()
    return nfe, len(calls)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("method", [*CASES, *PLAIN.values()], ids=case)
def test_calls_are_counted_and_as_declared(method: Method, steps: int) -> None:
    declared = method.solver.calls(steps)
    assert counted(method, LogSNR(steps)) == (declared, declared)


@by_every_method
def test_a_clean_end_costs_one_call(method: Method) -> None:
    assert counted(method, Denoised(LogSNR(1))) == (1, 1)
    nfe = counted(method, LogSNR(4))[0]
    assert counted(method, Denoised(LogSNR(5))) == (nfe + 1, nfe + 1)


def test_a_model_says_how_often_it_calls_its_network() -> None:
    model = ring(VP())
    model.calls = 2  # as a guided model does
    assert solve(model, normal(2, 2), Method(ProbabilityFlow(), Heun()), LogSNR(3)).nfe == 12


# The weights of the exponential integrators ---------------------------------------------------------------------------

spacing = st.floats(0.01, 4) | st.floats(1e-7, 1e-3)
etas = st.sampled_from([0.0, 0.3, 1.0, 2.0])


def exactly(k: int, kappa: float, h: float) -> float:
    """Return kappa int_0^h e^{-kappa (h - u)} u^k du, by quadrature in 25 digits over u / h."""
    with mpmath.workdps(25):
        pieces = mpmath.linspace(0, 1, 2 + int(abs(kappa * h) / 8))
        mean = mpmath.quad(lambda v: mpmath.exp(-kappa * h * (1 - v)) * v**k, pieces, method="gauss-legendre")
        return float(kappa * mpmath.mpf(h) ** (k + 1) * mean)


@given(order=st.integers(1, 4), eta=etas, gaps=st.lists(spacing, min_size=4, max_size=4), back=st.booleans())
def test_weights_integrate_polynomials(order: int, eta: float, gaps: list[float], back: bool) -> None:
    """Exact for the powers of u = lam - lam_t below the order, whatever the nodes, from noise to data and back."""
    process = EDM(t_min=1e-9, t_max=1e9)  # lam = -log t
    places = torch.tensor([0.0, *gaps], dtype=torch.float64)[: order + 1].cumsum(0)
    s, *nodes = process.time(places.flip(0) * (-1 if back else 1))
    weights = Exponential(order).weights(ReverseSDE(eta).of(gaussian(process)), nodes, s)
    u = [float(process.lam(t) - process.lam(nodes[0])) for t in nodes]
    for k in range(order):
        integral = exactly(k, 1 + eta, float(process.lam(s) - process.lam(nodes[0])))
        terms = [float(weight) * x**k for weight, x in zip(weights, u, strict=True)]
        rounding = 1e-15 + 1e-13 * max(abs(v) for v in [integral, *terms])
        assert sum(terms) == pytest.approx(integral, rel=0, abs=rounding)


@on_every_process
@given(order=st.integers(1, 4), eta=etas, gaps=st.lists(st.floats(0.01, 1), min_size=6, max_size=6))
def test_weights_sum_to_what_is_lost(process: Process, order: int, eta: float, gaps: list[float]) -> None:
    """To 1 - r^{1 + eta}, with r = e^{lam_t - lam_s}."""
    places = torch.tensor(gaps, dtype=torch.float64).cumsum(0) / sum(gaps)
    lams = torch.lerp(process.lam(process.t_max), process.lam(process.t_min), places[:-1])
    s, *nodes = process.time(lams.flip(0))[: order + 1]
    weights = Exponential(order).weights(ReverseSDE(eta).of(gaussian(process)), nodes, s)
    r = torch.exp(process.lam(nodes[0]) - process.lam(s))
    rounding = 1e-13 * sum(abs(float(weight)) for weight in weights) + 1e-14
    assert float(sum(weights)) == pytest.approx(float(1 - r ** (1 + eta)), rel=0, abs=rounding)


@on_every_process
def test_one_step_is_exact_where_the_prediction_is_constant(process: Process) -> None:
    """All data in one point: x0_hat is that point, and the flow is a straight line in it and eps."""
    model, x = gaussian(process, std=0.0), process.sigma(process.t_max) * normal(4, 1)
    t, s = process.t_max, process.t_min
    noise = (x - process.alpha(t) * model.means) / process.sigma(t)
    end = process.alpha(s) * model.means + process.sigma(s) * noise
    for order in (1, 2, 3, 4):
        run = solve(model, x, Method(ProbabilityFlow(), Exponential(order)), LogSNR(1))
        assert rms(run.x - end) < 1e-12 * rms(x)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_exponentials_start_where_there_is_no_signal(order: int, eta: float) -> None:
    """At alpha = 0, where lam = -inf, the first value of x0_hat serves as a constant."""
    model = gaussian(RectifiedFlow(t_min=1e-3, t_max=1.0))
    method = Method(ReverseSDE(eta), Exponential(order))
    coarse, fine = (worst_law(model, method, Quadratic(n)) for n in (20, 80))
    assert fine < coarse / 3


# What a step may depend on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=name)
@by_every_method
def test_the_first_step_needs_no_past(process: Process, method: Method) -> None:
    """One step ends where the first of many does, if the step is the same."""
    model, grid = ring(process), LogSNR(3)(process).tolist()
    x = model.noisy(4, process.t_max)
    first = list(trajectory(model, x, method, Times(tuple(grid))))[1]
    alone = solve(model, x, method, Times(tuple(grid[:2])))
    assert torch.equal(alone.x, first.x)
    assert (alone.t, alone.nfe) == (first.t, first.nfe)


@by_every_method
@pytest.mark.parametrize("noise", [Keyed(seed=4), BrownianPath(seed=4)], ids=name)
def test_a_batch_is_its_samples(method: Method, noise: Keyed | BrownianPath) -> None:
    model = Mixture(VP(), normal(3, 2, 1, 2, seed=1), std=0.3)
    x = normal(4, 2, 1, 2)
    together = solve(model, x, method, LogSNR(6), noise).x
    alone = [solve(model, x[i : i + 1], method, LogSNR(6), replace(noise, first=i)).x for i in range(4)]
    assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-12)


@on_every_process
@pytest.mark.parametrize("method", ONE_STEP, ids=case)
@given(cut=st.integers(1, 5))
def test_a_split_run_is_the_run(process: Process, method: Method, cut: int) -> None:
    """Without memory nothing passes from step to step but the state, so the parts give the whole, to the last bit."""
    model, times = ring(process), LogSNR(6)(process).tolist()
    x = model.noisy(3, process.t_max)
    first, second = Times(tuple(times[: cut + 1])), Times(tuple(times[cut:]))
    whole = solve(model, x, method, Times(tuple(times)), Keyed(seed=7)).x
    half = solve(model, x, method, first, Keyed(seed=7)).x
    assert torch.equal(solve(model, half, method, second, Keyed(seed=7, step=cut)).x, whole)


@pytest.mark.parametrize("method", [m for m in ONE_STEP if m.equation.eta > 0], ids=case)
def test_a_split_run_follows_the_same_path(method: Method) -> None:
    model, times, path = ring(VP()), LogSNR(6)(VP()).tolist(), BrownianPath(seed=7)
    x = normal(3, 2)
    half = solve(model, x, method, Times(tuple(times[:4])), path).x
    split = solve(model, half, method, Times(tuple(times[3:])), path).x
    assert torch.equal(split, solve(model, x, method, Times(tuple(times)), path).x)


@pytest.mark.parametrize("solver", [Euler(), Heun(), RK4()], ids=name)
def test_runge_kutta_runs_the_whole_straight_path(solver: Solver) -> None:
    """From alpha = 0 to sigma = 0, where neither score nor log-SNR exist but the velocity does."""
    model = ring(RectifiedFlow(t_min=0.0, t_max=1.0))
    points = list(trajectory(model, normal(8, 2), Method(ProbabilityFlow(), solver), Uniform(40)))
    assert all(bool(point.x.isfinite().all()) for point in points)
    inner = ring(RectifiedFlow(t_min=1e-6, t_max=1 - 1e-6))
    end = inner.flow(points[0].x, 1 - 1e-6, 1e-6)
    assert rms(points[-1].x - end) < {1: 0.1, 2: 2e-3, 4: 1e-4}[solver.order]


@by_every_method
def test_single_precision_is_kept(method: Method, device: torch.device) -> None:
    exact, x = ring(VP()), normal(8, 2)
    model = ring(VP()).to(device, torch.float32)
    single = solve(model, x.to(device, torch.float32), method, LogSNR(10))
    assert single.x.dtype == torch.float32
    assert single.x.device.type == device.type
    assert rms(single.x.cpu().double() - solve(exact, x, method, LogSNR(10)).x) < 1e-4


# Which solvers go with which equations --------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [Heun(), Euler(), RK4()], ids=name)
def test_a_flow_solver_on_a_stochastic_equation_is_refused_with_advice(solver: Solver) -> None:
    with pytest.raises(TypeError, match=f"{name(solver)} solves ProbabilityFlow; got Rev.* Choose another"):
        Method(ReverseSDE(), solver)


@pytest.mark.parametrize(
    ("kind", "order"),
    [(Exponential, 0), (Exponential, 5), (Ancestral, 2), (AncestralLarge, 2)],
)
def test_an_order_that_does_not_exist_is_refused(kind: type[Solver], order: int) -> None:
    with pytest.raises(ValueError, match=f"got {order}"):
        kind(order=order)


@dataclass(frozen=True)
class Ralston(Solver):
    """A user's own solver: the second-order method with the least error bound."""

    order, evals = 2, 2

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: Past, noise: Draw) -> Step:
        h, slope = s - t, system.drift(x, t)
        later = system.drift(x + 2 / 3 * h * slope, t + 2 / 3 * h)
        return Step(x + h * (slope + 3 * later) / 4)


@dataclass(frozen=True)
class RalstonTableau(RungeKutta):
    """The same as a tableau."""

    order, evals = 2, 2
    a, b = ((2 / 3,),), (1 / 4, 3 / 4)


@on_every_process
def test_a_solver_of_ones_own(process: Process) -> None:
    assert len(inspect.getsource(Ralston).splitlines()) <= 10
    model, steps = ring(process), (100, 200)
    x = model.noisy(8, process.t_max)
    end = model.flow(x, process.t_max, process.t_min)
    runs = [solve(model, x, Method(ProbabilityFlow(), Ralston()), LogSNR(n)) for n in steps]
    assert measured_order(steps, [rms(run.x - end) for run in runs]) == pytest.approx(2, abs=0.15)
    assert [run.nfe for run in runs] == [200, 400]
    tableau = solve(model, x, Method(ProbabilityFlow(), RalstonTableau()), LogSNR(100))
    assert rms(tableau.x - runs[0].x) < 1e-12 * rms(x)
    assert Method.from_json(Method(ProbabilityFlow(), Ralston()).to_json()).solver == Ralston()
