"""Multistep methods: coordinates that make the flow an integral, weights that are exact, orders, starts and ends."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from exact import (
    PROCESSES,
    flow,
    gaussian,
    law,
    marginal,
    measured_order,
    name,
    normal,
    order_of,
    ring,
    rms,
    worst_law,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from torch import Tensor

from sdekit import (
    DDIM,
    DDPM,
    EDM,
    EULER,
    RK4,
    VP,
    X0,
    Denoised,
    Exponential,
    Grid,
    Heun,
    Karras,
    LogSNR,
    Method,
    Prediction,
    ProbabilityFlow,
    Process,
    RectifiedFlow,
    ReverseSDE,
    Solver,
    Times,
    Uniform,
    V,
    solve,
    trajectory,
)
from sdekit._value import Value
from sdekit.grid import Reversed
from sdekit.prediction import Preconditioned
from sdekit.solvers import (
    IPNDM,
    ExponentialRK,
    InLam,
    InPath,
    InTime,
    Mix,
    Multistep,
    OneStep,
    PseudoHeun,
    PseudoRungeKutta,
    Ramp,
    Turn,
)
from sdekit.solvers.leg import Leg
from sdekit.solvers.path import DATA, NOISE, STRAIGHT, Clock, Path

PATHS: list[Path] = [DATA, NOISE, STRAIGHT, Mix(-0.3, 2.0), Mix(0.5, -1.0), Turn(), Turn(0.5)]
CLOCKS: list[tuple[Path, Clock]] = [
    (NOISE, InLam()),
    (NOISE, NOISE),
    (NOISE, InTime()),
    (DATA, DATA),
    (DATA, InTime()),
    (STRAIGHT, STRAIGHT),
    (STRAIGHT, InLam()),
    (Turn(), Turn()),
    (Turn(0.5), InLam()),
]
SETTLED = [  # within the tolerance of their order from 100 steps on; the others from 400
    Exponential(4),
    Multistep(NOISE, InLam(), 4),
    Multistep(STRAIGHT, STRAIGHT, 3),
    Multistep(STRAIGHT, STRAIGHT, 4),
    Multistep(Turn(0.5), Turn(0.5), 4),
    IPNDM(4),
    IPNDM(4, PseudoRungeKutta()),
]
on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
on_every_path = pytest.mark.parametrize("path", PATHS, ids=str)


def agree(a: Method, b: Method, process: Process, grid: Grid, tolerance: float = 1e-12) -> None:
    """Hold two methods to the same end from the same start."""
    model, x = ring(process), process.sigma(process.t_max) * normal(4, 2)
    one, two = solve(model, x, a, grid), solve(model, x, b, grid)
    assert rms(one.x - two.x) < tolerance * rms(x)


# Coordinates ----------------------------------------------------------------------------------------------------------


@on_every_process
@on_every_path
def test_the_flow_is_an_integral_along_every_path(process: Process, path: Path) -> None:
    """(alpha / kappa)' = a tau' and (sigma / kappa)' = b tau', where P = a x0 + b eps."""
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64) * (process.t_max - process.t_min) + process.t_min

    def curves(u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kappa = path.kappa(process.alpha(u), process.sigma(u))
        return process.alpha(u) / kappa, process.sigma(u) / kappa, path.at(process, u)

    (of_data, of_noise, _), (data, noise, rate) = torch.func.jvp(curves, (t,), (torch.ones_like(t),))
    for share, slope, x0 in ((of_data, data, 1.0), (of_noise, noise, 0.0)):
        kappa = path.kappa(process.alpha(t), process.sigma(t))
        answer = torch.full_like(t, x0)[:, None]
        p = path.of(Prediction(process, (share * kappa)[:, None], t, answer, X0()))[:, 0]
        torch.testing.assert_close(slope, p * rate, rtol=1e-9, atol=1e-12)


@on_every_process
@pytest.mark.parametrize("clock", [*PATHS, InLam(), InTime()], ids=str)
def test_clocks_run_back(process: Process, clock: Clock) -> None:
    t = LogSNR(12)(process)[1:-1]
    c = clock.at(process, t)
    assert bool((c.diff().sign() == c.diff().sign()[0]).all())
    torch.testing.assert_close(process.time(clock.lam(process, c)), t, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(clock.along(process, process.lam(t)), c, rtol=1e-9, atol=1e-12)


def test_turning_is_what_edm_trains() -> None:
    answer = normal(4, 2)
    x = normal(4, 2, seed=1)
    for target, path in ((V(), Turn()), (Preconditioned(0.5), Turn(0.5))):
        prediction = Prediction(VP(), x, torch.tensor(0.4, dtype=torch.float64), answer, target)
        sign = 1 if target == V() else -1
        torch.testing.assert_close(path.of(prediction), sign * answer, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("a", "b"), [(0.0, 0.0), (1.0, 1.0), (-1.0, -0.1), (float("nan"), 1.0)])
def test_a_scale_that_vanishes_is_refused(a: float, b: float) -> None:
    with pytest.raises(ValueError, match="must not vanish"):
        Mix(a, b)


# Weights --------------------------------------------------------------------------------------------------------------


def integral(leg: Leg, clock: Clock, k: int) -> float:
    """Return (1 + eta) kappa_s int (q_s / q)^eta (c - c_t)^k dtau by adaptive quadrature in lam."""
    path, process, eta = leg.path, leg.system.process, leg.eta
    begin = float(clock.at(process, leg.t))

    def scale(lam: float) -> tuple[float, float, float]:
        alpha, sigma = (1 / np.sqrt(1 + np.exp(sign * 2 * lam)) for sign in (-1, 1))
        kappa = float(path.kappa(torch.tensor(alpha), torch.tensor(sigma)))
        return alpha, sigma, kappa

    def density(lam: float) -> float:
        alpha, sigma, kappa = scale(lam)
        c = float(clock.along(process, torch.tensor([lam], dtype=torch.float64)))
        return -path.pace * alpha * sigma / kappa**2 * (alpha / kappa) ** eta * (c - begin) ** k

    ends = [float(process.lam(u)) for u in (leg.t, leg.s)]
    alpha, _, kappa = scale(ends[1])
    value = quad(density, *ends, epsabs=0, epsrel=1e-13, limit=200)[0]
    return float((1 + eta) * leg.scale * (kappa / alpha) ** eta * value)


@pytest.mark.filterwarnings("ignore")  # quad says that it cannot do better than rounding
@on_every_path
@given(
    own=st.booleans(),
    eta=st.sampled_from([0.0, 0.5, 1.0]),
    lams=st.lists(st.floats(-4, 5), min_size=4, max_size=4, unique_by=lambda v: round(v, 1)),
    points=st.integers(1, 3),
)
def test_weights_integrate_polynomials(path: Path, own: bool, eta: float, lams: list[float], points: int) -> None:
    """Exact for the powers of the clock below the number of points, whatever the nodes, forth and back."""
    process, clock = EDM(t_min=1e-3, t_max=1e3), path if own else InLam()
    lams = sorted(lams)
    s, *nodes = process.time(torch.tensor(lams[::-1], dtype=torch.float64))[: points + 1]
    leg = Leg(path, ReverseSDE(eta).of(gaussian(process)), nodes[0], s)
    gains = leg.gains(clock, nodes)
    for k in range(points):
        terms = [
            float(g * (clock.at(process, u) - clock.at(process, nodes[0])) ** k)
            for g, u in zip(gains, nodes, strict=True)
        ]
        wanted = integral(leg, clock, k)
        assert sum(terms) == pytest.approx(wanted, rel=0, abs=1e-11 * max(abs(v) for v in [wanted, *terms]) + 1e-14)


@pytest.mark.parametrize("h", [1e-12, 1e-7, 1e-3, 1.0, 9.0])
@on_every_path
def test_no_digits_are_lost_in_short_and_long_steps(path: Path, h: float) -> None:
    """The weights of the powers 0 to 3 of the clock's way agree with a quadrature four times as fine."""
    process = EDM(t_min=1e-9, t_max=1e9)
    lams = torch.tensor([0.0, -h, -2 * h, -3 * h], dtype=torch.float64)
    leg = Leg(path, ProbabilityFlow().of(gaussian(process)), process.time(lams[0]), process.time(lams[0] + h))
    gains = torch.stack(leg.gains(InLam(), list(process.time(lams))))
    u, w = np.polynomial.legendre.leggauss(64)
    at = torch.from_numpy((u + 1) / 2 * 1.0) * h
    alpha, sigma = torch.sigmoid(2 * at).sqrt(), torch.sigmoid(-2 * at).sqrt()
    density = -path.pace * alpha * sigma / path.kappa(alpha, sigma) ** 2
    for k in range(4):
        wanted = float((leg.scale * h * torch.from_numpy(w / 2) * density * (at / h) ** k).sum())
        got = float((gains * (lams / h) ** k).sum())
        assert got == pytest.approx(wanted, rel=1e-8 if h < 1e-6 else 1e-12)


def test_own_weights_are_those_of_adams_bashforth() -> None:
    """On even steps 55, -59, 37, -9; on uneven ones the integrals of Lagrange's polynomials."""
    process = EDM(t_min=0.5, t_max=6.0)
    system = ProbabilityFlow().of(gaussian(process))
    even = torch.tensor([3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    gains = Leg(NOISE, system, even[0], even[0] - 1).gains(NOISE, list(even))
    assert [round(-24 * float(g), 10) for g in gains] == [55, -59, 37, -9]
    uneven = torch.tensor([2.0, 2.7, 4.1, 4.9], dtype=torch.float64)
    gains = Leg(NOISE, system, uneven[0], uneven[0] - 0.8).gains(NOISE, list(uneven))
    for j, gain in enumerate(gains):
        roots = np.delete(uneven.numpy(), j)
        basis = np.poly1d(roots, r=True) / np.prod(float(uneven[j]) - roots)
        assert float(gain) == pytest.approx(basis.integ()(1.2) - basis.integ()(2.0), rel=1e-13)


# Equalities -----------------------------------------------------------------------------------------------------------


@on_every_process
@pytest.mark.parametrize("path", [p for p in PATHS if isinstance(p, Mix)], ids=str)
@pytest.mark.parametrize("grid", [LogSNR(5), Karras(1), Reversed(LogSNR(5))], ids=str)
def test_of_order_1_all_mixtures_are_ddim(process: Process, path: Path, grid: Grid) -> None:
    for solver in (Multistep(path, path, 1), Multistep(path, InLam(), 1), ExponentialRK(1, path)):
        agree(flow(solver), DDIM, process, grid)


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_one_class_has_many_names(points: int) -> None:
    grid = LogSNR(7)
    for eta in (0.0, 0.5, 1.0):
        data = Method(ReverseSDE(eta), Multistep(DATA, InLam(), points))
        agree(data, Method(ReverseSDE(eta), Exponential(points)), VP(), grid)
    agree(flow(Multistep(Mix(-1.0, 0.0), InLam(), points)), flow(Exponential(points)), VP(), grid)
    agree(flow(Multistep(Mix(-2.0, 2.0), STRAIGHT, points)), flow(Multistep(points=points)), VP(), grid, 1e-11)
    rectified = flow(Multistep(STRAIGHT, STRAIGHT, points)), flow(Multistep(STRAIGHT, InTime(), points))
    agree(*rectified, RectifiedFlow(), Karras(7), 1e-11)
    agree(flow(IPNDM(points)), flow(Multistep(NOISE, NOISE, points, Ramp())), EDM(t_max=2.0), Uniform(7))


def test_of_order_1_the_names_are_ddpm_and_euler() -> None:
    agree(Method(ReverseSDE(), Multistep(DATA, DATA, 1)), DDPM, VP(), LogSNR(7))
    agree(flow(Multistep(STRAIGHT, STRAIGHT, 1)), EULER, RectifiedFlow(), Uniform(7))
    agree(flow(Multistep(NOISE, NOISE, 1)), EULER, EDM(), Karras(7))


def test_runge_kutta_in_coordinates_has_many_names() -> None:
    for method in (Heun(), RK4()):
        agree(flow(InPath(NOISE, method)), flow(method), EDM(), Karras(7))
        agree(flow(InPath(STRAIGHT, method)), flow(method), RectifiedFlow(), Uniform(7))


# Orders ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [EDM()], ids=name)
@pytest.mark.parametrize("solver", SETTLED, ids=str)
def test_order(process: Process, solver: Solver) -> None:
    assert order_of(process, solver, [LogSNR(n) for n in (100, 200)]) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.slow
@on_every_process
@pytest.mark.parametrize("points", [1, 2, 3, 4])
@pytest.mark.parametrize(("path", "clock"), CLOCKS, ids=str)
@pytest.mark.parametrize("kind", [lambda g: g, Reversed], ids=["sampling", "encoding"])
def test_order_everywhere(process: Process, points: int, path: Path, clock: Clock, kind: type) -> None:
    order = order_of(process, Multistep(path, clock, points), [kind(LogSNR(n)) for n in (400, 800)])
    assert order == pytest.approx(points, abs=0.15)


@pytest.mark.slow
@on_every_process
@pytest.mark.parametrize("points", [1, 2, 3, 4])
@pytest.mark.parametrize("start", [Ramp(), PseudoRungeKutta(), PseudoHeun()], ids=str)
@pytest.mark.parametrize("kind", [lambda g: g, Reversed], ids=["sampling", "encoding"])
def test_order_of_even_weights(process: Process, points: int, start: Ramp, kind: type) -> None:
    solver = IPNDM(points, start)
    order = order_of(process, solver, [kind(LogSNR(n)) for n in (200, 400)])
    assert order == pytest.approx(min(points, 2), abs=0.15)


@pytest.mark.parametrize("points", [3, 4])
def test_a_ramp_caps_the_order_and_a_one_step_start_does_not(points: int) -> None:
    """From amid the noise, where the first steps count."""
    process, grids = VP(t_max=0.5), [LogSNR(n) for n in (160, 320)]
    assert Multistep(STRAIGHT, STRAIGHT, points, Ramp()).order == 2
    ramp = order_of(process, Multistep(STRAIGHT, InLam(), points, Ramp()), grids)
    one_step = order_of(process, Multistep(STRAIGHT, InLam(), points), grids)
    assert ramp == pytest.approx(2, abs=0.15)
    assert one_step == pytest.approx(points, abs=0.15)


@pytest.mark.parametrize("path", [STRAIGHT, Turn()], ids=str)
@pytest.mark.parametrize("points", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [lambda g: g, Reversed], ids=["sampling", "encoding"])
def test_order_on_the_whole_straight_path(path: Path, points: int, kind: type) -> None:
    """From alpha = 0 to sigma = 0 and back, in the path's own clock."""
    model, x = gaussian(RectifiedFlow(t_min=0.0, t_max=1.0)), normal(8, 1)
    end = model.means + model.std * x if kind is not Reversed else (x - model.means) / model.std
    steps = (100, 200) if points < 4 else (400, 800)
    runs = [solve(model, x, flow(Multistep(path, path, points)), kind(Uniform(n))).x for n in steps]
    assert measured_order(steps, [rms(run - end) for run in runs]) == pytest.approx(points, abs=0.15)


@pytest.mark.parametrize(
    "process", [p if p == EDM() else pytest.param(p, marks=pytest.mark.slow) for p in PROCESSES], ids=name
)
@pytest.mark.parametrize("path", [NOISE, STRAIGHT, Turn()], ids=str)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_weak_order(process: Process, path: Path, eta: float) -> None:
    """On every path the noise has its law: the marginal is reached with order 1 and 2."""
    model = gaussian(process)
    for points in (1, 2):
        method = Method(ReverseSDE(eta), Multistep(path, InLam(), points))
        order = measured_order((40, 80), [worst_law(model, method, LogSNR(n)) for n in (40, 80)])
        assert order > points - 0.2


@pytest.mark.parametrize("path", [DATA, NOISE, Turn(0.5)], ids=str)
def test_the_mean_is_kept(path: Path) -> None:
    """Along the mean x0_hat is constant: DATA has no error there, the other paths that of their weights."""
    model, grid = gaussian(VP()), Karras(40)
    mean, _ = law(model, Method(ReverseSDE(0.7), Multistep(path, InLam(), 2)), grid)
    wanted = marginal(model, grid(VP()))[0]
    assert float((mean - wanted).abs().max()) < (1e-12 if path == DATA else 0.02)


# Starts and ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
@pytest.mark.parametrize("points", [1, 2, 3, 4])
@pytest.mark.parametrize("start", [OneStep(), Ramp(), PseudoRungeKutta(), PseudoHeun()], ids=str)
def test_calls(steps: int, points: int, start: Ramp) -> None:
    solver = IPNDM(points, start) if isinstance(start, PseudoRungeKutta | PseudoHeun) else Multistep(start=start)
    model, points = ring(VP()), solver.points
    run = solve(model, normal(2, 2), flow(solver), LogSNR(steps))
    assert run.nfe == steps + start.calls(points, steps)
    assert run.nfe == steps + solver.starts or steps < points - 1


@pytest.mark.parametrize("path", [DATA, NOISE, Mix(-0.3, 2.0), Turn(0.5)], ids=str)
@pytest.mark.parametrize("points", [1, 2, 4])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ends_are_finite(path: Path, points: int, eta: float) -> None:
    """From alpha = 0 and to sigma = 0, in one step or in many, with and without a clean end."""
    method = Method(ReverseSDE(eta), Multistep(path, InLam(), points))
    for process, grid in itertools.product(
        [RectifiedFlow(t_min=0.0, t_max=1.0), RectifiedFlow(t_min=1e-3, t_max=1.0), VP()],
        [Uniform(1), Uniform(2), Denoised(Uniform(6))],
    ):
        model = ring(process)
        points_of_run = list(trajectory(model, normal(4, 2), method, grid))
        assert all(bool(p.x.isfinite().all()) for p in points_of_run)
    if eta == 0:
        method = flow(Multistep(path, InLam(), points))
        back = solve(ring(RectifiedFlow(t_min=0.0, t_max=1.0)), normal(4, 2), method, Reversed(Uniform(9)))
        assert bool(back.x.isfinite().all())


@pytest.mark.parametrize("path", [DATA, NOISE, STRAIGHT, Turn(0.5)], ids=str)
@pytest.mark.parametrize("clock", [InLam(), InTime(), NOISE], ids=str)
def test_a_step_of_no_length_changes_nothing(path: Path, clock: Clock) -> None:
    model, x, t = ring(VP()), normal(4, 2), torch.tensor(0.5, dtype=torch.float64)
    solvers: list[Solver] = [Multistep(path, clock, n) for n in (1, 2, 3, 4)]
    solvers += [ExponentialRK(n, path, clock) for n in (1, 2, 3, 4)] + [InPath(path, RK4())]
    for solver, eta in itertools.product(solvers, (0.0, 1.0)):
        equation = ReverseSDE(eta) if isinstance(solver, Multistep) else ProbabilityFlow()
        system, past = equation.of(model), tuple(model(x, u) for u in (0.6, 0.7, 0.8))
        for before in ((), past, (model(x, 0.5), *past)):
            step = solver.step(system, x, t, t, before[: solver.memory], lambda t, s: x)
            assert torch.allclose(step.x, x, rtol=0, atol=1e-14)


def test_values_go_to_json_and_back() -> None:
    for solver in (
        Multistep(Mix(-0.3, 1.0), InTime(), 3, Ramp()),
        IPNDM(4, PseudoRungeKutta()),
        ExponentialRK(3, Turn(0.5), InLam()),
        InPath(DATA, RK4()),
        Exponential(4),
    ):
        assert Value.from_json(flow(solver).to_json()) == flow(solver)


@pytest.mark.parametrize("make", [Exponential, ExponentialRK, IPNDM, lambda n: Multistep(points=n)])
@pytest.mark.parametrize("count", [0, 5])
def test_more_than_four_points_are_refused(make: type, count: int) -> None:
    with pytest.raises(ValueError, match=f"got {count}"):
        make(count)


def test_times_of_one_step() -> None:
    """A run of one step is a step of the start."""
    model, x = ring(VP()), normal(4, 2)
    grid = Times((0.9, 0.6))
    for points in (2, 3, 4):
        one = solve(model, x, flow(ExponentialRK(points - 1, STRAIGHT, STRAIGHT)), grid).x
        assert torch.equal(solve(model, x, flow(Multistep(STRAIGHT, STRAIGHT, points)), grid).x, one)
