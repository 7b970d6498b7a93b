"""Tableaus, and Runge-Kutta methods in the coordinates of a path."""

from __future__ import annotations

import pytest
import torch
from exact import PROCESSES, flow, gaussian, measured_order, name, normal, order_of, ring, rms

from sdekit import (
    EDM,
    RK4,
    VP,
    Heun,
    LogSNR,
    Process,
    RectifiedFlow,
    Solver,
    Uniform,
    solve,
)
from sdekit._value import Value
from sdekit.grid import Reversed
from sdekit.solvers import Euler, ExponentialRK, InLam, InPath, InTime, Midpoint, Ralston, RungeKutta, Tableau, Turn
from sdekit.solvers.path import DATA, NOISE, STRAIGHT, Clock, Path
from sdekit.solvers.runge_kutta import _density, _trees

KUTTA3 = Tableau(((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), 3)
BUTCHER5 = Tableau(
    (
        (1 / 4,),
        (1 / 8, 1 / 8),
        (0, -1 / 2, 1),
        (3 / 16, 0, 0, 9 / 16),
        (-3 / 7, 2 / 7, 12 / 7, -12 / 7, 8 / 7),
    ),
    (7 / 90, 0, 32 / 90, 12 / 90, 32 / 90, 7 / 90),
    5,
)
NAMED: list[RungeKutta] = [Euler(), Heun(), Midpoint(), Ralston(), RK4()]
CLOCKS: list[tuple[Path, Clock]] = [
    (DATA, InLam()),
    (NOISE, InLam()),
    (STRAIGHT, STRAIGHT),
    (Turn(), Turn()),
    (NOISE, InTime()),
    (Turn(0.5), InLam()),
]
on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
both_ways = pytest.mark.parametrize("kind", [lambda g: g, Reversed], ids=["sampling", "encoding"])


# Tableaus -------------------------------------------------------------------------------------------------------------


def test_the_rooted_trees_are_counted_and_weighed() -> None:
    """1, 1, 2, 4, 9, 20, 48, 115 of them; the tall one weighs n!, the bushy one n."""
    assert [len(_trees(n)) for n in range(1, 9)] == [1, 1, 2, 4, 9, 20, 48, 115]
    assert [_density(tree) for tree in _trees(4)] == [4, 12, 24, 8] or sorted(map(_density, _trees(4))) == [
        4,
        8,
        12,
        24,
    ]


@pytest.mark.parametrize("method", NAMED, ids=name)
def test_the_named_methods_meet_the_conditions_of_their_order_and_no_more(method: RungeKutta) -> None:
    assert Tableau(method.a, method.b, method.order).evals == method.evals
    with pytest.raises(ValueError, match=f"claim order {method.order}"):
        Tableau(method.a, method.b, method.order + 1)


def test_a_tableau_is_a_value() -> None:
    assert Value.from_json(flow(BUTCHER5).to_json()) == flow(BUTCHER5)
    assert Tableau() == Tableau(a=[], b=[1]) != KUTTA3
    model, x = ring(VP()), normal(4, 2)
    own, built_in = (solve(model, x, flow(m), LogSNR(9)) for m in (Tableau(RK4.a, RK4.b, 4), RK4()))
    assert torch.equal(own.x, built_in.x)


@pytest.mark.parametrize(
    ("a", "b", "order", "message"),
    [
        ((), (0.9,), 1, "must give 1 for the tree"),
        (((1.0,),), (0.5, 0.4), 1, "got 0.9"),
        (((1.0,),), (1.0,), 1, "rows of 1 to 0 entries"),
        (((1.0,), (0.5,)), (0.2, 0.3, 0.5), 1, "got rows of .1, 1."),
        (((1.0,),), (1.0, 0.0), 2, "claim order 1"),
        ((), (1.0,), 0, "between 1 and 8; got 0"),
        ((), (float("nan"),), 1, "got nan"),
    ],
)
def test_a_tableau_that_does_not_hold_is_refused(a: tuple, b: tuple, order: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tableau(a, b, order)


@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize(
    "method", [Midpoint(), Ralston(), KUTTA3, BUTCHER5], ids=["midpoint", "ralston", "kutta", "butcher"]
)
def test_order_in_time(process: Process, method: RungeKutta) -> None:
    order = order_of(process, method, [LogSNR(n) for n in (100, 200)])
    assert order == pytest.approx(method.order, abs=0.15)


@pytest.mark.parametrize("method", [*NAMED, KUTTA3, BUTCHER5], ids=str)
def test_order_on_the_whole_straight_path(method: RungeKutta) -> None:
    model, x = gaussian(RectifiedFlow(t_min=0.0, t_max=1.0)), normal(8, 1)
    end = model.means + model.std * x
    for solver in (method, InPath(STRAIGHT, method), InPath(Turn(), method)):
        errors = [rms(solve(model, x, flow(solver), Uniform(n)).x - end) for n in (40, 80)]
        assert measured_order((40, 80), errors) > method.order - 0.3  # some gain one by symmetry


# On a path ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [Midpoint(), Ralston(), RK4(), BUTCHER5], ids=str)
def test_in_coordinates_it_is_the_method_in_time_where_they_are_the_time(method: RungeKutta) -> None:
    for path, process in ((NOISE, EDM()), (STRAIGHT, RectifiedFlow())):
        model, x = ring(process), process.sigma(process.t_max) * normal(4, 2)
        ends = [solve(model, x, flow(solver), LogSNR(9)).x for solver in (method, InPath(path, method))]
        assert rms(ends[0] - ends[1]) < 1e-12 * rms(x)


@pytest.mark.parametrize(
    "solver", [ExponentialRK(2), ExponentialRK(3, NOISE), ExponentialRK(4, STRAIGHT, STRAIGHT)], ids=str
)
def test_order(solver: Solver) -> None:
    assert order_of(EDM(), solver, [LogSNR(n) for n in (50, 100)]) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.slow
@on_every_process
@both_ways
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("path", "clock"), CLOCKS, ids=str)
def test_order_of_exponentials(process: Process, kind: type, order: int, path: Path, clock: Clock) -> None:
    measured = order_of(process, ExponentialRK(order, path, clock), [kind(LogSNR(n)) for n in (200, 400)])
    assert measured == pytest.approx(order, abs=0.15)


@pytest.mark.slow
@on_every_process
@both_ways
@pytest.mark.parametrize("method", [*NAMED, KUTTA3, BUTCHER5], ids=str)
@pytest.mark.parametrize("path", [DATA, NOISE, STRAIGHT, Turn()], ids=str)
def test_order_of_integrating_factors(process: Process, kind: type, method: RungeKutta, path: Path) -> None:
    steps = (400, 800) if method == Midpoint() else (100, 200)  # whose error changes its sign within the range
    measured = order_of(process, InPath(path, method), [kind(LogSNR(n)) for n in steps])
    assert measured == pytest.approx(method.order, abs=0.15)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_calls(order: int) -> None:
    model, x = ring(VP()), normal(2, 2)
    for solver in (ExponentialRK(order), ExponentialRK(order, STRAIGHT, STRAIGHT), InPath(DATA, BUTCHER5)):
        assert solve(model, x, flow(solver), LogSNR(3)).nfe == 3 * solver.evals


@pytest.mark.parametrize("path", [DATA, NOISE, STRAIGHT, Turn(0.5)], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ends_are_finite(path: Path, steps: int) -> None:
    """From alpha = 0 to sigma = 0 and back, whatever the path."""
    model, x = ring(RectifiedFlow(t_min=0.0, t_max=1.0)), normal(4, 2)
    solvers = [ExponentialRK(n, path, c) for n in (1, 2, 3, 4) for c in (InLam(), path, InTime())]
    for solver in (*solvers, InPath(path, RK4()), InPath(path, Euler())):
        for grid in (Uniform(steps), Reversed(Uniform(steps))):
            assert bool(solve(model, x, flow(solver), grid).x.isfinite().all())
