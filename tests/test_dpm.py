"""DPM-Solver and DPM-Solver++: which formulas are the same, which order they have, and that no end breaks them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from exact import PROCESSES, Mixture, gaussian, measured_order, name, normal, ring, rms, worst_law
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdekit import (
    EDM,
    VP,
    X0,
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
    solve,
    trajectory,
)
from sdekit.grid import Grid, Reversed
from sdekit.solvers import Exponential
from sdekit.solvers.corrected import Corrected, CorrectedNoise
from sdekit.solvers.dpm import DPMMultistep, DPMMultistepHeun, DPMppMultistep, DPMppMultistepHeun
from sdekit.solvers.dpm_singlestep import (
    DPMInterleaved,
    DPMInterleavedHeun,
    DPMppInterleaved,
    DPMppInterleavedHeun,
    DPMppSinglestep,
    DPMSinglestep,
)
from sdekit.solvers.dpm_weights import exact, zphi
from sdekit.solvers.unipc import UniP, UniPC, UniPLinear, UniPNoise, UniPNoiseLinear

MULTISTEP = [DPMppMultistep, DPMppMultistepHeun, DPMMultistep, DPMMultistepHeun]
UNIP = [UniP, UniPLinear, UniPNoise, UniPNoiseLinear]
SINGLESTEP = [DPMppSinglestep, DPMSinglestep]
INTERLEAVED = [DPMppInterleaved, DPMppInterleavedHeun, DPMInterleaved, DPMInterleavedHeun]
EVERY: list[Solver] = [kind(k) for kind in [*MULTISTEP, *UNIP, *SINGLESTEP, *INTERLEAVED] for k in (1, 2, 3)]
EVERY += [UniPC(kind(k)) for kind in UNIP for k in (1, 2, 3)]
EVERY += [Corrected(DPMppMultistepHeun(1), 2), Corrected(), Corrected(DPMppMultistepHeun(3), 4)]
EVERY += [CorrectedNoise(DPMMultistepHeun(1), 2), CorrectedNoise(DPMMultistepHeun(2)), Corrected(DPMppSinglestep(2))]
EVERY += [DPMSinglestep(2, r1=0.3), DPMppSinglestep(3, r1=0.5), Corrected(Heun())]

on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
by_every_solver = pytest.mark.parametrize("solver", EVERY, ids=name)
etas = st.sampled_from([0.0, 0.3, 1.0, 2.0])
gaps = st.lists(st.floats(0.02, 2), min_size=3, max_size=3)


# Which are the same ---------------------------------------------------------------------------------------------------


@dataclass
class Said:
    """A model that says the same whatever it is asked."""

    answer: Prediction

    @property
    def process(self) -> Process:
        return self.answer.process

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        return self.answer


def one_step(solver: Solver, eta: float, places: list[float]) -> Tensor:
    """Make a step after some others, whose predictions are any numbers: it is linear in them, so equal is the same."""
    process = VP()
    *times, s = process.time(torch.tensor([-4.0, *places], dtype=torch.float64).cumsum(0))
    *past, now = [Prediction(process, normal(5, seed=k), t, normal(5, seed=9 + k), X0()) for k, t in enumerate(times)]
    memory = tuple(past[::-1])[: solver.memory]
    return solver.step(ReverseSDE(eta).of(Said(now)), now.x, now.t, s, memory, lambda t, s: normal(5, seed=30)).x


def same(one: Solver, other: Solver, eta: float, places: list[float]) -> bool:
    first, second = one_step(one, eta, places), one_step(other, eta, places)
    return float((first - second).abs().max()) < 1e-13 * float(1 + first.abs().max())


@given(eta=etas, places=gaps)
def test_equalities_of_multistep_formulas(eta: float, places: list[float]) -> None:
    """On the reverse SDE as on the flow."""
    assert same(DPMppMultistep(1), Exponential(1), eta, places)
    assert same(DPMppMultistepHeun(2), Exponential(2), eta, places)
    assert same(DPMppMultistepHeun(3), DPMppMultistep(3), eta, places)
    assert same(DPMMultistepHeun(3), DPMMultistep(3), eta, places)
    assert same(Doubled(3), Exponential(3), eta, places)


@given(places=gaps)
def test_equalities_on_the_flow(places: list[float]) -> None:
    first = [DPMMultistep(1), DPMppSinglestep(1), DPMSinglestep(1), *(kind(1) for kind in UNIP)]
    assert all(same(solver, Exponential(1), 0.0, places) for solver in first)
    assert same(UniP(2), DPMppMultistep(2), 0.0, places)
    assert same(UniPNoise(2), DPMMultistep(2), 0.0, places)
    assert same(UniP(3), Exponential(3), 0.0, places)
    assert same(UniPLinear(3), UniP(3), 0.0, places)
    assert same(UniPNoiseLinear(3), UniPNoise(3), 0.0, places)


@given(eta=etas, places=gaps)
def test_what_is_not_the_same(eta: float, places: list[float]) -> None:
    assert not same(DPMppMultistep(2), DPMppMultistepHeun(2), eta, places)
    assert not same(DPMppMultistep(3), Exponential(3), eta, places)
    assert not same(UniPLinear(2), UniP(2), eta, places)
    assert same(DPMMultistep(1), DPMppMultistep(1), eta, places) == (eta == 0)


@dataclass(frozen=True)
class Doubled(DPMppMultistep):
    """3M with twice the weight of its second difference, which is what the parabola's integral has."""

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        weights = super().rule(r, z)
        if len(r) == 1:
            return weights
        extra = zphi(3, z) / (r[1] - r[0])
        return [weights[0] - extra / r[0], weights[1] + extra / r[1]]


@given(eta=etas, places=gaps)
def test_3m_as_k_diffusion_writes_it(eta: float, places: list[float]) -> None:
    """By the slope and the second difference, for every eta."""
    process = VP()
    lams = torch.tensor([-4.0, *places], dtype=torch.float64).cumsum(0)
    m2, m1, m0 = (normal(5, seed=9 + k) for k in range(3))
    h2, h1, h = (float(gap) for gap in lams.diff())
    alpha, sigma = process.alpha(process.time(lams)), process.sigma(process.time(lams))
    z = (1 + eta) * lams.diff()[-1]
    new, old = (m0 - m1) / h1, (m1 - m2) / h2
    second = (new - old) / (h1 + h2) * h**2
    slope = (new + (new - old) * h1 / (h1 + h2)) * h
    phi2 = torch.expm1(-z) / z + 1
    mean = sigma[3] / sigma[2] * (-eta * h * torch.ones(())).exp() * normal(5, seed=2) - alpha[3] * torch.expm1(-z) * m0
    mean = mean + alpha[3] * (phi2 * slope - (phi2 / z - 0.5) * second)
    noise = sigma[3] * (-torch.expm1(torch.tensor(-2 * eta * h))).sqrt() * (normal(5, seed=30) if eta else 0)
    got = one_step(DPMppMultistep(3), eta, places)
    assert float((got - mean - noise).abs().max()) < 1e-6 * float(1 + got.abs().max())


def ends(solver: Solver, process: Process, grid: Grid) -> Tensor:
    model = ring(process)
    x = model.noisy(8, float(grid(process)[0]))
    return solve(model, x, Method(ProbabilityFlow(), solver), grid).x


@pytest.mark.parametrize("process", [VP(), EDM()], ids=name)
def test_runs_of_the_same_methods(process: Process) -> None:
    """Start, end and all."""
    pairs = [
        (UniP(2), DPMppMultistep(2)),
        (UniPNoise(2), DPMMultistep(2)),
        (DPMppMultistepHeun(2), Exponential(2)),
        (DPMInterleaved(1), DPMppInterleavedHeun(1)),
    ]
    for one, other in pairs:
        assert rms(ends(one, process, Karras(8)) - ends(other, process, Karras(8))) < 1e-12 * process.sigma(1.0)


def test_single_steps_in_sigma() -> None:
    """On EDM's process, where t = sigma, DPM-Solver-2 with r1 = 1 is Heun's method."""
    for grid in (Karras(9), Reversed(Karras(9))):
        heun = ends(Heun(), EDM(), grid)
        assert rms(ends(DPMSinglestep(2, r1=1.0), EDM(), grid) - heun) < 1e-12 * rms(heun)
    euler = ends(DPMMultistep(1), EDM(), Karras(9))
    assert rms(ends(Exponential(1), EDM(), Karras(9)) - euler) < 1e-12 * rms(euler)


@pytest.mark.parametrize("kinds", [(DPMSinglestep, DPMInterleaved), (DPMppSinglestep, DPMppInterleaved)])
def test_a_group_is_a_single_step_on_its_own_times(kinds: tuple[Callable[[int], Solver], ...]) -> None:
    """Of order 2; of order 3 the inner steps differ by the weight of order 2."""
    whole, group = (ends(kind(2), VP(), LogSNR(n)) for kind, n in zip(kinds, (5, 10), strict=True))
    assert rms(whole - group) < 1e-12
    whole, group = (ends(kind(3), VP(), LogSNR(n)) for kind, n in zip(kinds, (20, 60), strict=True))
    assert 1e-9 < rms(whole - group) < 1e-3


# Weights --------------------------------------------------------------------------------------------------------------


@given(k=st.integers(1, 4), z=st.floats(-40, 12).filter(lambda z: abs(z) > 1e-12))
def test_zphi(k: int, z: float) -> None:
    mpmath = pytest.importorskip("mpmath")
    with mpmath.workdps(60):
        value = mpmath.mpf(z)
        value = mpmath.exp(value) - sum(value**j / mpmath.factorial(j) for j in range(k))
        value = float(value / mpmath.mpf(z) ** (k - 1))
    assert float(zphi(k, torch.tensor(z, dtype=torch.float64))) == pytest.approx(value, rel=1e-12)


@given(z=st.floats(-8, 4), places=gaps)
def test_exact_weights_integrate_powers(z: float, places: list[float]) -> None:
    r = list(-torch.tensor(places, dtype=torch.float64).cumsum(0))
    weights = exact(r, torch.tensor(z, dtype=torch.float64))
    for k, factorial in [(1, 1), (2, 2), (3, 6)]:
        terms = [w * u**k for w, u in zip(weights, r, strict=True)]
        expected = float(factorial * zphi(k + 1, torch.tensor(z, dtype=torch.float64)))
        assert float(sum(terms)) == pytest.approx(expected, abs=1e-10 * (1 + max(abs(float(v)) for v in terms)))


# Order ----------------------------------------------------------------------------------------------------------------

# a run that starts and ends where predictions bend, so that no step is spared its error
MIDDLE = VP(t_min=0.13, t_max=0.32)


@cache
def start_and_end(process: Process, t: float, s: float) -> tuple[Mixture, Tensor, Tensor]:
    model = ring(process)
    x = model.noisy(8, t)
    return model, x, model.flow(x, t, s)


def flow_order(process: Process, solver: Solver, grid: Callable[[int], Grid], steps: tuple[int, ...]) -> float:
    times = grid(steps[0])(process)
    model, x, end = start_and_end(process, float(times[0]), float(times[-1]))
    runs = [solve(model, x, Method(ProbabilityFlow(), solver), grid(n)) for n in steps]
    return measured_order(steps, [rms(run.x - end) for run in runs])


@by_every_solver
def test_order(solver: Solver) -> None:
    assert flow_order(MIDDLE, solver, LogSNR, (18, 36)) == pytest.approx(solver.order, abs=0.15)


@by_every_solver
def test_order_of_encoding(solver: Solver) -> None:
    assert flow_order(MIDDLE, solver, lambda n: Reversed(LogSNR(n)), (18, 36)) == pytest.approx(solver.order, abs=0.15)


def spared(solver: Solver) -> bool:
    """Whether the order declared is that of the start, which on a whole process makes next to no error."""
    of_solver = solver.inner if isinstance(solver, Corrected) else solver
    points = getattr(of_solver, "points", 0)
    return (isinstance(of_solver, UniP) and points == 3) or (isinstance(solver, Corrected) and solver.points == 4)


@pytest.mark.slow
@on_every_process
@by_every_solver
@pytest.mark.parametrize("back", [False, True], ids=["sample", "encode"])
def test_order_on_a_whole_process(process: Process, solver: Solver, back: bool) -> None:
    steps = (180, 360) if spared(solver) or getattr(solver, "group", 1) == 3 else (90, 180)
    order = flow_order(process, solver, (lambda n: Reversed(LogSNR(n))) if back else LogSNR, steps)
    assert order > solver.order - 0.15
    assert order < solver.order + (1.5 if spared(solver) else 0.15)


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP(t_min=0.05), EDM(t_min=0.05, t_max=20.0)], ids=name)
@pytest.mark.parametrize("solver", [s for s in EVERY if getattr(s, "group", 1) < 3], ids=name)
def test_order_on_uneven_steps(process: Process, solver: Solver) -> None:
    """But for groups of three, which want even steps in lam."""
    order = flow_order(process, solver, Karras, (180, 360))
    assert order > solver.order - 0.15
    assert order < solver.order + (1.5 if spared(solver) else 0.2)


NOISY: list[Any] = [kind(k) for kind in MULTISTEP for k in (1, 2, 3)]


def weak_order(process: Process, solver: Solver, eta: float, steps: tuple[int, ...]) -> float:
    method = Method(ReverseSDE(eta), solver)
    return measured_order(steps, [worst_law(gaussian(process), method, LogSNR(n)) for n in steps])


@pytest.mark.parametrize("solver", NOISY, ids=name)
def test_weak_order(solver: Solver) -> None:
    assert weak_order(MIDDLE, solver, 1.0, (24, 48)) == pytest.approx(solver.order, abs=0.15)


@pytest.mark.slow
@on_every_process
@pytest.mark.parametrize("solver", NOISY, ids=name)
@pytest.mark.parametrize("eta", [0.5, 1.0, 2.0])
def test_weak_order_everywhere(process: Process, solver: Solver, eta: float) -> None:
    """Of three points the second order is late to appear where eta is large."""
    order = weak_order(process, solver, eta, (100, 200))
    assert order > solver.order - 0.15
    assert order < solver.order + (0.4 if eta > 1 and solver.points == 3 else 0.15)


# Ends and costs -------------------------------------------------------------------------------------------------------

STRAIGHT = RectifiedFlow(t_min=0.0, t_max=1.0)


@by_every_solver
@pytest.mark.parametrize("grid", [Uniform(1), Uniform(2), Uniform(3), Uniform(40)], ids=name)
def test_the_whole_straight_path(solver: Solver, grid: Uniform) -> None:
    """From alpha = 0 to sigma = 0 and back, where lam is infinite, there are steps of order 1."""
    model, x = gaussian(STRAIGHT), normal(8, 1)
    end = model.means + model.std * x
    there = solve(model, x, Method(ProbabilityFlow(), solver), grid)
    back = solve(model, end, Method(ProbabilityFlow(), solver), Reversed(grid))
    assert all(run.nfe == grid.steps * solver.evals + solver.starts for run in (there, back))
    for run, true in ((there.x, end), (back.x, x)):
        assert bool(run.isfinite().all())
        if grid.steps == 40:
            assert rms(run - true) < 0.15


@pytest.mark.parametrize("solver", NOISY, ids=name)
@pytest.mark.parametrize("steps", [1, 2, 40])
def test_noise_from_where_there_is_no_signal(solver: Solver, steps: int) -> None:
    process = RectifiedFlow(t_min=1e-3, t_max=1.0)
    worst = worst_law(gaussian(process), Method(ReverseSDE(), solver), Uniform(steps))
    assert worst < (float("inf") if steps < 40 else 1.0)


@by_every_solver
def test_a_step_of_no_length(solver: Solver) -> None:
    """It changes nothing, nor does it spoil the step after it."""
    model, system = ring(VP()), ProbabilityFlow().of(ring(VP()))
    times = LogSNR(6)(VP())
    times = torch.cat([times[:3], times[2:]])
    x, past = model.noisy(4, 1.0), ()
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        before = x
        x, seen = solver.step(system, x, t, s, past, lambda t, s: torch.zeros(()))
        past = (seen, *past)[: solver.memory] if seen is not None else ()
        assert bool(x.isfinite().all())
        if k == 2:
            assert rms(x - before) < (1e-12 if not isinstance(solver, Corrected) else 0.1)


@by_every_solver
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_calls_are_as_declared(solver: Solver, steps: int) -> None:
    run = solve(ring(VP()), normal(2, 2), Method(ProbabilityFlow(), solver), LogSNR(steps))
    assert run.nfe == solver.evals * steps + solver.starts


@by_every_solver
def test_they_are_values(solver: Solver) -> None:
    assert Solver.from_json(solver.to_json()) == solver
    assert hash(Solver.from_json(solver.to_json())) == hash(solver)


@by_every_solver
def test_single_precision(solver: Solver) -> None:
    x, method = normal(8, 2), Method(ProbabilityFlow(), solver)
    single = solve(ring(VP()).float(), x.float(), method, LogSNR(12)).x
    assert single.dtype == torch.float32
    assert rms(single.double() - solve(ring(VP()), x, method, LogSNR(12)).x) < 1e-4


def test_the_memory_is_that_of_one_group() -> None:
    """After a full group, the next one starts from its own state: the run can be split there."""
    model, times = ring(VP()), LogSNR(6)(VP()).tolist()
    method = Method(ProbabilityFlow(), DPMppInterleaved(3))
    points = list(trajectory(model, normal(4, 2), method, Times(tuple(times))))
    rest = solve(model, points[3].x, method, Times(tuple(times[3:])))
    assert torch.equal(rest.x, points[-1].x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMppMultistep(4), "1 to 3 predictions"),
        (lambda: DPMMultistep(0), "1 to 3 predictions"),
        (lambda: UniP(5), "1 to 3 predictions"),
        (lambda: DPMSinglestep(4), "orders 1, 2 and 3"),
        (lambda: DPMSinglestep(2, r1=0.0), "r1 must lie"),
        (lambda: DPMppSinglestep(3, r1=2 / 3), "r1 must lie"),
        (lambda: DPMppInterleaved(4), "groups of 1, 2 and 3"),
        (lambda: Corrected(DPMppMultistep(2), 5), "2, 3 or 4"),
    ],
)
def test_what_does_not_exist_is_refused(make: Callable[[], Solver], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
