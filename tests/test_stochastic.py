"""Stochastic solvers: the order in law is exact, every level keeps the marginals, equalities are equalities."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from exact import PROCESSES, Mixture, gaussian, marginal, measured_order, name, normal, ring, rms
from torch import Tensor

from sdekit import (
    DDIM,
    EDM,
    HEUN,
    VE,
    VP,
    Discrete,
    Prediction,
    ProbabilityFlow,
    Process,
    RectifiedFlow,
    ReverseSDE,
    SubVP,
)
from sdekit.equation import Equation, System
from sdekit.grid import Denoised, Grid, Karras, LogSNR, Quadratic, Times, Uniform
from sdekit.methods import Method, StochasticDDIM
from sdekit.noise import BrownianPath, Draw, Keyed, Noise
from sdekit.prediction import X0
from sdekit.sample import solve, trajectory
from sdekit.solvers.base import Solver
from sdekit.solvers.churn import Churn, Restart
from sdekit.solvers.er import ER
from sdekit.solvers.exponential import Ancestral, Exponential
from sdekit.solvers.langevin import Langevin, NormLangevin
from sdekit.solvers.learned import LearnedVariance, WithVariance
from sdekit.solvers.level import Between, Constant, Level, NoiseScale, VaryingSDE, integrals, keep
from sdekit.solvers.runge_kutta import Euler, EulerMaruyama, Heun
from sdekit.solvers.sa import SA, TruncatedSA
from sdekit.solvers.seeds import SEEDS
from sdekit.solvers.sra import SRA1

STEPS = (40, 80)
TOLERANCE = 0.2
ONE_STEP = [SEEDS(1), SEEDS(2), SRA1()]
MULTISTEP = [
    ER(1),
    ER(2),
    ER(3),
    SA(1, 0),
    SA(2, 0),
    SA(1, 2),
    SA(2, 2),
    SA(3, 3),
    SA(4, 4),
    TruncatedSA(),
    TruncatedSA(2, 0),
    TruncatedSA(1, 1),
]
SOLVERS: list[Solver] = [*ONE_STEP, *MULTISTEP]
LEVELS: list[Level] = [NoiseScale(), Between(0.2, 0.6, level=2.0), Between(0.3, 0.9, level=0.5, outside=1.0)]

on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)


@dataclasses.dataclass(frozen=True)
class EveryImpulse(Noise):
    """No noise, but for a 1 that sample 2 + draws k + j of the batch receives at the j-th draw of step k."""

    draws: int = 1

    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        def of_step(k: int) -> Draw:
            count = itertools.count()

            def draw(t: Tensor, s: Tensor) -> Tensor:
                z, j = torch.zeros_like(x), next(count)
                assert j < self.draws
                z[2 + self.draws * k + j] = 1
                return z

            return draw

        return of_step


def law(model: Mixture, method: Method, grid: Grid, draws: int) -> tuple[Tensor, Tensor]:
    """Return the exact mean and standard deviation at every point of a run from the marginal, for `gaussian` data."""
    times = grid(model.process)
    x = torch.zeros(2 + draws * (len(times) - 1), 1, dtype=torch.float64)
    x[1] = 1
    mean, std = marginal(model, times[:1])
    points = torch.cat([point.x for point in trajectory(model, x, method, grid, EveryImpulse(draws=draws))], 1)
    base, push = points[0], points[1:] - points[0]
    return base + push[0] * mean, torch.cat([push[:1] * std, push[1:]]).norm(dim=0)


def worst(process: Process, method: Method, grid: Grid, draws: int = 2) -> float:
    """Return the largest Wasserstein-2 distance to the marginal along a run, in units of its standard deviation."""
    model = gaussian(process)
    mean, std = law(model, method, grid, draws)
    true_mean, true_std = marginal(model, grid(process))
    return float((torch.hypot(mean - true_mean, std - true_std) / true_std).max())


# Laws -----------------------------------------------------------------------------------------------------------------


@on_every_process
@pytest.mark.parametrize("solver", ONE_STEP, ids=name)
def test_weak_order(process: Process, solver: Solver) -> None:
    method = Method(ReverseSDE(), solver)
    order = measured_order(STEPS, [worst(process, method, LogSNR(n)) for n in STEPS])
    assert order == pytest.approx(solver.order, abs=TOLERANCE)


@pytest.mark.slow
@on_every_process
@pytest.mark.parametrize("solver", SOLVERS, ids=name)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_weak_order_everywhere(process: Process, solver: Solver, eta: float) -> None:
    """Of multistep methods it is only said that they reach their order, two of them late: where errors change sign."""
    steps = (100, 200)
    order = measured_order(steps, [worst(process, Method(ReverseSDE(eta), solver), LogSNR(n)) for n in steps])
    late = 0.7 if solver in (TruncatedSA(1, 1), SA(2, 2)) else TOLERANCE
    assert order > solver.order - late
    assert order < solver.order + TOLERANCE or solver in MULTISTEP


@pytest.mark.parametrize("solver", [SA(2, 0), SA(3, 3), TruncatedSA(), ER(2), ER(3)], ids=name)
def test_weak_order_of_multistep_methods(solver: Solver) -> None:
    method = Method(ReverseSDE(), solver)
    assert (
        measured_order(STEPS, [worst(RectifiedFlow(), method, LogSNR(n), 1) for n in STEPS]) > solver.order - TOLERANCE
    )


@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize("level", LEVELS, ids=name)
@pytest.mark.parametrize("solver", [SEEDS(2), SRA1(), ER(2), SA(2, 2)], ids=name)
def test_every_level_keeps_the_marginals(process: Process, level: Level, solver: Solver) -> None:
    """In the limit; somewhat slower where a step meets a jump of the level."""
    method = Method(VaryingSDE(level), solver)
    coarse, fine = (worst(process, method, LogSNR(n)) for n in (15, 60))
    assert fine < 0.03
    assert fine < coarse / 4


def test_a_level_that_jumps_is_exact_wherever_the_steps_fall() -> None:
    """What is kept over a step is the product of what its parts keep, and a point's law has no error at all."""
    process, level = VP(), Between(0.31, 0.57, level=2.0, outside=0.5)
    system = VaryingSDE(level).of(gaussian(process))
    t, m, s = (torch.tensor(v, dtype=torch.float64) for v in (0.7, 0.44, 0.2))
    assert float(keep(system, t, s) - keep(system, t, m) * keep(system, m, s)) == pytest.approx(0, abs=1e-15)
    numeric = (level.primitive(process, process.lam(t)) - level.primitive(process, process.lam(s))).exp()
    assert float(keep(system, t, s)) == pytest.approx(float(numeric), abs=1e-14)
    (whole,) = integrals(system, t, s, lambda lam: (torch.ones_like(lam),))
    assert float(whole) == pytest.approx(float(1 - process.decay(t, s) * keep(system, t, s)), abs=1e-13)
    point = gaussian(process, std=0.0)
    mean, std = law(point, Method(VaryingSDE(level), ER(1)), Uniform(5), 1)
    true_mean, true_std = marginal(point, Uniform(5)(process))
    assert torch.allclose(mean, true_mean, atol=1e-12)
    assert torch.allclose(std, true_std, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS, ids=name)
def test_a_level_is_the_derivative_of_its_primitive(level: Level) -> None:
    lam = torch.linspace(-4, 4, 41, dtype=torch.float64)
    rate = torch.func.jvp(lambda u: level.primitive(VP(), u), (lam,), (torch.ones_like(lam),))[1]
    assert torch.allclose(rate, level.eta(VP(), lam), atol=1e-12)


def test_euler_maruyama_s_drift_and_diffusion_follow_the_level() -> None:
    process, system = VP(), VaryingSDE(Between(0.2, 0.6, level=2.0)).of(ring(VP()))
    x = normal(3, 2)
    for t, eta in ((0.4, 2.0), (0.8, 0.0)):
        plain = ReverseSDE(eta).of(ring(process))
        assert rms(system.drift(x, t) - plain.drift(x, t)) < 1e-12
        assert float(system.diffusion(t) - plain.diffusion(t)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize(
    "solver", [Churn(Heun(), churn=8.0, steps=40), Restart(Heun(), lo=0.2, hi=1.0, times=2, steps=20)], ids=name
)
def test_noise_added_back_keeps_the_marginals(process: Process, solver: Solver) -> None:
    """To the inner solver's order: what is added is the process's own transition."""
    method, draws = Method(ProbabilityFlow(), solver), 2
    coarse = worst(process, method, LogSNR(30), draws)
    fine = worst(
        process, Method(ProbabilityFlow(), dataclasses.replace(solver, steps=3 * solver.steps)), LogSNR(90), draws
    )
    assert fine < coarse / 6
    assert fine < 5e-3


@pytest.mark.parametrize("process", [SubVP(), EDM(), RectifiedFlow()], ids=name)
def test_the_error_of_langevin_steps_is_of_the_size_of_their_own(process: Process) -> None:
    """It stays when the steps grow in number, and falls with the square of snr."""

    def error(snr: float, n: int) -> float:
        return worst(process, Method(ProbabilityFlow(), Langevin(Exponential(1), snr=snr)), LogSNR(n), 1)

    assert error(0.32, 200) == pytest.approx(error(0.32, 100), rel=0.3)
    assert error(0.16, 200) < error(0.32, 200) / 3


# Equalities -----------------------------------------------------------------------------------------------------------

QUIET: list[Equation] = [ProbabilityFlow(), ReverseSDE(0.0), VaryingSDE(Constant(0.0))]


def end(
    process: Process, equation: Equation, solver: Solver, grid: Grid = LogSNR(12), noise: Noise | None = None
) -> Tensor:
    x = process.prior().at(normal(5, 2))
    return solve(ring(process), x, Method(equation, solver), grid, noise or Keyed(4)).x


@on_every_process
@pytest.mark.parametrize("equation", QUIET, ids=str)
def test_sa_without_noise_is_the_exponential_adams_method(process: Process, equation: Equation) -> None:
    """tau = 0. In order 3 but for the start, which is SA's own."""
    flow = ProbabilityFlow()
    for order in (1, 2):
        assert rms(end(process, equation, SA(order, 0)) - end(process, flow, Exponential(order))) < 1e-12
    assert rms(end(process, equation, ER(1)) - end(process, flow, Exponential(1))) < 1e-12


@on_every_process
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_first_orders_are_the_exponential_integrator(process: Process, eta: float) -> None:
    """DDPM where eta = 1; and order 2 is the same Adams method, at any level."""
    ours = end(process, ReverseSDE(eta), Exponential(1))
    for solver in (SEEDS(1), ER(1), SA(1, 0)):
        assert rms(end(process, ReverseSDE(eta), solver) - ours) < 1e-12
        assert rms(end(process, VaryingSDE(Constant(eta)), solver) - ours) < 1e-12
    assert rms(end(process, ReverseSDE(eta), SA(2, 0)) - end(process, ReverseSDE(eta), Exponential(2))) < 1e-12


def test_euler_ancestral_is_stochastic_ddim_on_ve() -> None:
    """k-diffusion's step down to sigma_down and its noise sigma_up are DDPM's posterior."""
    process, grid = EDM(), Karras(12)
    model, x = ring(process), EDM().prior().at(normal(5, 2))
    of_step, z = Keyed(4).on(ReverseSDE().of(model), x), x
    for k, (t, s) in enumerate(itertools.pairwise(grid(process))):
        up = (s**2 * (t**2 - s**2) / t**2).sqrt()
        z = z + (model(z, t).velocity) * ((s**2 - up**2).sqrt() - t) + up * of_step(k)(t, s)
    assert rms(solve(model, x, StochasticDDIM(1.0), grid, Keyed(4)).x - z) < 1e-11


@pytest.mark.parametrize("inner", [Heun(), Euler(), Exponential(2)], ids=name)
def test_without_noise_to_add_it_is_the_inner_solver(inner: Solver) -> None:
    for quiet in (
        Churn(inner, churn=0.0),
        Churn(inner, lo=1e9),
        Restart(inner, times=0),
        Restart(inner, lo=1e9, hi=2e9),
    ):
        assert torch.equal(end(VP(), ProbabilityFlow(), quiet), end(VP(), ProbabilityFlow(), inner))
    assert torch.equal(end(VP(), ReverseSDE(), Langevin(rounds=0)), end(VP(), ReverseSDE(), EulerMaruyama()))


def test_er_is_taylor_s_series_by_quadrature() -> None:
    """The paper's formulas, written out with phi, against scipy's integrals."""
    from scipy.integrate import quad

    process, grid, scale = VP(), LogSNR(6), NoiseScale()
    model, x = ring(process), VP().prior().at(normal(5, 2))

    def phi(u: float) -> float:
        return u * (math.exp(u**scale.power) + scale.offset)

    of_step, y, seen = Keyed(4).on(ReverseSDE().of(model), x), x, []
    for k, (t, s) in enumerate(itertools.pairwise(grid(process))):
        a, b = float((-process.lam(t)).exp()), float((-process.lam(s)).exp())
        seen.append((a, model(y, t).x0))
        share = phi(b) / phi(a)
        move = share * y / process.alpha(t) + (1 - share) * seen[-1][1]
        slopes = [(q[1] - p[1]) / (q[0] - p[0]) for p, q in itertools.pairwise(seen)]
        if slopes:
            move = move + (b - a + phi(b) * quad(lambda u: 1 / phi(u), b, a, epsabs=1e-13)[0]) * slopes[-1]
        if len(slopes) > 1:
            bend = (slopes[-1] - slopes[-2]) / ((a - seen[-3][0]) / 2)
            area = quad(lambda u: (u - a) / phi(u), b, a, epsabs=1e-13)[0]  # noqa: B023
            move = move + ((b - a) ** 2 / 2 + phi(b) * area) * bend
        y = process.alpha(s) * (move + math.sqrt(b**2 - a**2 * share**2) * of_step(k)(t, s))
    assert rms(end(process, VaryingSDE(scale), ER(3), grid) - y) < 1e-9


def test_langevin_s_step_is_the_score_s() -> None:
    """x + a score + sqrt(2 a) z with a = 2 (snr sigma)^2; and of pure noise the norm-driven step is the same."""
    process, t = VP(), torch.tensor(1.0, dtype=torch.float64)
    model, x, z = gaussian(process, mean=0.0, std=0.0), normal(4, 3), normal(4, 3, seed=1)
    now = Prediction(process, x, t, torch.zeros_like(x), X0())
    a = 2 * (0.16 * process.sigma(t)) ** 2
    assert rms(Langevin().correct(now, z) - (x + a * now.score + (2 * a).sqrt() * z)) < 1e-14
    alike = z * x.norm(dim=1, keepdim=True) / z.norm(dim=1, keepdim=True) / process.sigma(t)
    assert rms(NormLangevin().correct(now, alike) - Langevin().correct(now, alike)) < 1e-12
    assert model.process is process


class Learned:
    """A model that supplies a variance."""

    def __init__(self, process: Process, place: float) -> None:
        self.process, self.inner, self.place = process, ring(process), place

    def __call__(self, x: Tensor, t: Tensor) -> Prediction:
        plain = self.inner(x, t)
        return WithVariance(plain.process, x, plain.t, plain.answer, plain.target, torch.full_like(x, self.place))


def test_a_learned_variance_lies_between_ddpm_s() -> None:
    from sdekit.solvers.exponential import AncestralLarge

    process, x = VP(), VP().prior().at(normal(5, 2))
    for place, solver in ((-1.0, Ancestral()), (1.0, AncestralLarge())):
        ours = solve(Learned(process, place), x, Method(ReverseSDE(), LearnedVariance()), Quadratic(9), Keyed(4)).x
        assert rms(ours - end(process, ReverseSDE(), solver, Quadratic(9))) < 1e-12
    with pytest.raises(TypeError, match="WithVariance"):
        end(process, ReverseSDE(), LearnedVariance())
    with pytest.raises(ValueError, match="eta"):
        solve(Learned(process, 0.0), x, Method(ReverseSDE(0.5), LearnedVariance()), Quadratic(9))


# Ends, splits and batches ---------------------------------------------------------------------------------------------

EVERY: list[tuple[Equation, Solver]] = [
    *((ReverseSDE(), solver) for solver in SOLVERS),
    *((VaryingSDE(NoiseScale()), solver) for solver in SOLVERS),
    (ProbabilityFlow(), Churn(Heun(), lo=0.05)),
    (ProbabilityFlow(), Restart(Heun())),
    (ReverseSDE(), Langevin()),
    (ReverseSDE(), NormLangevin()),
]
by_every_method = pytest.mark.parametrize(("equation", "solver"), EVERY, ids=name)


@by_every_method
def test_a_step_of_no_length_does_nothing(equation: Equation, solver: Solver) -> None:
    if isinstance(solver, Langevin | NormLangevin):
        pytest.skip("a Langevin step moves the state whatever the step before")
    process, x = VP(), normal(3, 2)
    t = torch.tensor(0.3, dtype=torch.float64)
    draw = Keyed(1).on(equation.of(ring(process)), x)(0)
    assert rms(solver.step(equation.of(ring(process)), x, t, t, (), draw).x - x) < 1e-14


@by_every_method
def test_one_step_runs_end_finite(equation: Equation, solver: Solver) -> None:
    for process in (VP(), EDM(), VE()):
        for grid in (LogSNR(1), Denoised(LogSNR(1)), Denoised(LogSNR(2))):
            assert bool(end(process, equation, solver, grid).isfinite().all())


@by_every_method
def test_the_ends_of_the_straight_path(equation: Equation, solver: Solver) -> None:
    """alpha = 0 at the start and sigma = 0 at the end: every coefficient is finite."""
    if isinstance(equation, VaryingSDE) or isinstance(solver, Langevin | NormLangevin):
        pytest.skip("eta of the noise scale grows without bound there; Euler-Maruyama has no finite drift there")
    process = RectifiedFlow(t_min=0.0, t_max=1.0)
    assert bool(end(process, equation, solver, Uniform(6)).isfinite().all())


@by_every_method
def test_a_sample_does_not_depend_on_its_batch(equation: Equation, solver: Solver) -> None:
    process, method = VP(), Method(equation, solver)
    x = process.prior().at(normal(6, 2))
    whole = solve(ring(process), x, method, LogSNR(8), Keyed(5)).x
    part = solve(ring(process), x[2:4], method, LogSNR(8), Keyed(5, first=2)).x
    assert rms(whole[2:4] - part) < 1e-12


@by_every_method
def test_calls_are_counted(equation: Equation, solver: Solver) -> None:
    x = VP().prior().at(normal(2, 2))
    assert solve(ring(VP()), x, Method(equation, solver), LogSNR(9)).nfe == 9 * solver.evals + solver.starts


def test_every_value_goes_to_json_and_back() -> None:
    for equation, solver in EVERY:
        method = Method(equation, solver)
        assert Method.from_json(method.to_json()) == method


def test_bad_values_are_refused() -> None:
    for make in (
        lambda: SA(5, 0),
        lambda: SEEDS(3),
        lambda: ER(4),
        lambda: Churn(lo=2.0, hi=1.0),
        lambda: Restart(lo=0.3, hi=0.1),
        lambda: Langevin(SA()),
        lambda: Langevin(snr=0.0),
        lambda: Between(0.5, 0.2),
    ):
        with pytest.raises(ValueError, match=r"got|must|looks back"):
            make()


def test_noise_added_back_belongs_to_no_path() -> None:
    with pytest.raises(ValueError, match="no path"):
        end(VP(), ProbabilityFlow(), Churn(), noise=BrownianPath(1))
    corrected = end(VP(), ReverseSDE(), Langevin(), noise=BrownianPath(1))
    assert bool(corrected.isfinite().all())


def test_churn_never_leaves_the_process() -> None:
    """At t_max there is no noisier time; on the way to noise nothing is raised."""
    asked: list[float] = []

    class Watched(Mixture):
        def forward(self, x: Tensor, t: Tensor | float) -> Prediction:
            asked.append(float(t))
            return super().forward(x, t)

    process = EDM()
    model = Watched(process, ring(process).means, 0.4)
    solve(model, process.prior().at(normal(3, 2)), Method(ProbabilityFlow(), Churn(Heun(), steps=20)), Karras(20))
    assert max(asked) == 80.0
    assert len({*asked}) > 21


def test_denoised_ends_and_tables() -> None:
    for equation, solver in EVERY:
        if not isinstance(solver, SRA1):
            assert bool(end(Discrete.linear(), equation, solver, Denoised(LogSNR(6))).isfinite().all())
    assert DDIM.solver.order == 1
    assert HEUN.solver.order == 2
    assert Times((0.5, 0.2)).at == (0.5, 0.2)
