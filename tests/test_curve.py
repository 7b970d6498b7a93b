"""The integral along a curve: its quadrature, the defect that the score makes good, its estimate of its own error."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from exact import measured_order, name, rms
from hypothesis import given
from hypothesis import strategies as st
from strategies import agree, normal
from torch import Tensor

from benchmarks.problems import grid25, ring8, rings2d
from sdekit import (
    EDM,
    RK4,
    VP,
    Angular,
    Cosine,
    Euler,
    Exponential,
    Heun,
    LogSNR,
    Method,
    ProbabilityFlow,
    Quadratic,
    RectifiedFlow,
    Solver,
    Times,
    Uniform,
    solve,
)
from sdekit.grid import Reversed
from sdekit.likelihood import FixedGrid, Likelihood, log_likelihood
from sdekit.likelihood.curve import Curve, score, steps
from sdekit.oracle import Full, Gaussian, GaussianMixture
from sdekit.plan import NonlinearError, trace
from sdekit.solvers import DampedAdams, LimitedAdams, Midpoint
from sdekit.study import measured_order as order_of_solver

LIMITED = Method(ProbabilityFlow(), LimitedAdams())
WHOLE = RectifiedFlow(t_min=0.0, t_max=1.0)


@st.composite
def nodes(draw: st.DrawFn) -> tuple[float, ...]:
    """Draw rising nodes in [0, 1], steps no more than 4 times as long as others."""
    lengths = draw(st.lists(st.floats(1, 4), min_size=1, max_size=20))
    tau = torch.tensor([0.0, *lengths], dtype=torch.float64).cumsum(0)
    first = draw(st.floats(0, 0.5))
    return tuple((first + (1 - first) * tau / tau[-1]).tolist())


def mild() -> tuple[GaussianMixture, Tensor]:
    means = torch.tensor([[-1.0, 0.4], [0.9, 0.8], [0.1, -1.1]], dtype=torch.float64)
    covariance = torch.tensor([[0.14, 0.04], [0.04, 0.10]], dtype=torch.float64)
    model = GaussianMixture(VP(), means, Full(covariance), torch.tensor([0.5, 0.3, 0.2]))
    return model, model.sample(100, torch.Generator().manual_seed(2))


def error(solver: Solver, grid: Quadratic | Uniform | Angular) -> float:
    model, x = mild()
    return rms(log_likelihood(model, x, FixedGrid(solver, grid)).corrected - model.log_prob(x))


# The quadrature ---------------------------------------------------------------------------------------------


@given(nodes(), st.integers(1, 6))
def test_steps_integrate_polynomials_exactly(tau: tuple[float, ...], points: int) -> None:
    weights, at = steps(tau, points), torch.tensor(tau, dtype=torch.float64)
    assert weights.shape == (len(tau) - 1, len(tau))
    assert int((weights != 0).sum(1).max()) <= min(points, len(tau))
    for k in range(min(points, len(tau))):
        agree(weights @ at**k, (at ** (k + 1)).diff() / (k + 1), 1e-9)
    agree(weights.sum(0) @ torch.ones_like(at), at[-1] - at[0], 1e-10)


@pytest.mark.parametrize("points", [2, 4, 6])
def test_the_order_of_the_quadrature_is_the_number_of_its_points(points: int) -> None:
    errors = []
    for n in (20, 40):
        tau = torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 1.5
        errors.append(abs(float(steps(tuple(tau.tolist()), points).sum(0) @ (3 * tau).sin()) - (1 - math.cos(3)) / 3))
    assert measured_order((20, 40), errors) == pytest.approx(points, abs=0.5)


def test_nodes_may_be_neighbours() -> None:
    tau = torch.linspace(0, 1, 30, dtype=torch.float64)
    tau = torch.cat([tau, tau[1:-1] + 1e-3]).sort().values
    assert float(steps(tuple(tau.tolist()), 6).sum(0) @ tau.exp()) == pytest.approx(math.e - 1, abs=1e-8)


@pytest.mark.parametrize("tau", [1e-3, 0.3, 0.999])
def test_score_is_the_models(tau: float) -> None:
    model, x = mild()
    model = model.on(RectifiedFlow())
    y = (1 - tau) * x + tau * normal(*x.shape)
    agree(score(y, model(y, tau).velocity, tau), model(y, tau).score, 1e-9)


# The defect -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bend", [0.0, 0.3])
def test_any_curve_will_do(bend: float) -> None:
    """The states of a curve that is no solution, at which an exact model is asked: log p changes by its integral."""
    model = mild()[0].on(RectifiedFlow())
    tau = torch.linspace(0.1, 0.9, 60, dtype=torch.float64)
    start, away = normal(1, 5, 2, seed=3), normal(1, 5, 2, seed=4)
    y = (1 - tau)[:, None, None] * start + bend * torch.sin(5 * tau)[:, None, None] * away
    velocity = torch.stack([model(state, t).velocity for state, t in zip(y, tau, strict=True)])
    traces = torch.stack([model.divergence(state, t) for state, t in zip(y, tau, strict=True)])
    curve = Curve(tau, y, velocity, traces)
    change = model.log_prob(y[0], tau[0]) - model.log_prob(y[-1], tau[-1])
    found = curve.weights() @ traces + curve.correction()
    agree(found, change, 1e-3)
    assert bool((((found - change).abs()) <= 3 * curve.error() + 1e-12).all())
    assert float(curve.correction().abs().median()) > 0.1


def curve(count: int = 40, first: float = 0.1, trust: float = 1.0) -> Curve:
    """Return a curve that is no solution, without a trace."""
    model = mild()[0].on(WHOLE)
    tau = torch.linspace(first, 0.9, count, dtype=torch.float64)
    y = (1 - tau)[:, None, None] * normal(1, 5, 2, seed=3) + 0.3 * torch.sin(5 * tau)[:, None, None] * normal(5, 2)
    velocity = torch.stack([model(state, t).velocity for state, t in zip(y, tau, strict=True)])
    return Curve(tau, y, velocity, None, trust)


@given(nodes(), st.sampled_from([1, 2, 4]))
def test_weights_of_a_stride_are_those_of_the_nodes_left(tau: tuple[float, ...], stride: int) -> None:
    at = torch.tensor(tau, dtype=torch.float64)
    zeros = at.new_zeros(len(tau), 1, 1)
    weights = Curve(at, zeros, zeros, None).weights(stride)
    left = sorted({*range(0, len(tau) - 1, stride), len(tau) - 1})
    assert weights.shape == (len(tau),)
    assert set(weights.nonzero().flatten().tolist()) <= set(left)
    agree(weights[left], steps(tuple(tau[k] for k in left), 6).sum(0), 1e-12)


def test_a_change_is_none_for_cubics_and_some_beyond() -> None:
    tau = curve().tau
    values = torch.stack([tau**k for k in range(7)], 1)
    change = curve().change(values)
    agree(change[:4], 0.0, 1e-12)
    assert bool((change[4:].abs() > 1e-9).all())
    few = steps(tuple(tau.tolist()), 4).sum(0)
    agree(
        change, (1 / torch.arange(1, 8)) * (0.9 ** torch.arange(1, 8) - 0.1 ** torch.arange(1, 8)) - few @ values, 1e-7
    )


def test_trust_is_the_share_of_the_correction_that_is_made() -> None:
    """What is not made good is doubled and joins the error."""
    full, half, none = (curve(trust=trust) for trust in (1.0, 0.5, 0.0))
    assert float(full.correction().abs().min()) > 1e-3
    agree(half.correction(), full.correction() / 2, 1e-12)
    assert float(none.correction().abs().max()) == 0
    states = none.error() - 2 * full.correction().abs()  # without traces this is what the score changes on a step
    assert float(states.min()) >= -1e-12
    assert float(states.max()) < float(full.error().max())


def test_strides_of_the_correction_go_to_one_value() -> None:
    for trust in (1.0, 0.5):
        fine = [curve(161, trust=trust).correction(stride) for stride in (1, 2, 4)]
        assert float((fine[0] - fine[1]).abs().max()) < 0.3 * float((fine[1] - fine[2]).abs().max())


def test_scores_are_the_models_and_the_nexts_where_there_is_no_noise() -> None:
    model, found = mild()[0].on(WHOLE), curve(first=0.0)
    expected = torch.stack([model(state, t).score for state, t in zip(found.y[1:], found.tau[1:], strict=True)])
    agree(found.scores[1:], expected, 1e-8)
    assert torch.equal(found.scores[0], found.scores[1])
    assert found.scores is found.scores


@pytest.mark.parametrize(("solver", "gain"), [(Euler(), 300), (Heun(), 5), (Exponential(2), 5)], ids=name)
def test_a_poor_solver_is_made_good(solver: Solver, gain: float, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Quadratic(48)
    with_score = error(solver, grid)
    monkeypatch.setattr(Curve, "correction", lambda self, stride=1: self.y.new_zeros(self.y.shape[1]))
    assert error(solver, grid) > gain * with_score


@pytest.mark.parametrize(
    ("solver", "steps", "order"),
    [(Euler(), (32, 64, 128), 2.7), (LimitedAdams(), (24, 32, 48), 4.5), (DampedAdams(), (24, 32, 48), 4.5)],
    ids=name,
)
def test_order_in_the_number_of_nodes(solver: Solver, steps: tuple[int, ...], order: float) -> None:
    assert measured_order(steps, [error(solver, Quadratic(n)) for n in steps]) > order


def test_the_order_without_the_score_is_the_solvers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Curve, "correction", lambda self, stride=1: self.y.new_zeros(self.y.shape[1]))
    errors = [error(Euler(), Quadratic(n)) for n in (64, 128)]
    assert measured_order((64, 128), errors) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("solver", [Midpoint(), Heun(), RK4(), Exponential(3), DampedAdams()], ids=name)
@pytest.mark.parametrize("grid", [Quadratic(48), Angular(48)], ids=name)
def test_every_solver_converges_to_the_density(solver: Solver, grid: Quadratic) -> None:
    model, x = mild()
    result = log_likelihood(model, x, FixedGrid(solver, grid))
    errors = (result.corrected - model.log_prob(x)).abs()
    assert float(errors.mean()) < 2e-3
    # midpoints of steps of one length are nodes that the strides do not tell apart from their ends
    least = 0.9 if solver == Midpoint() and isinstance(grid, Angular) else 0.97
    assert float((errors <= 3 * result.integration_error).double().mean()) >= least


# The estimate of the error ----------------------------------------------------------------------------------


@cache
def likelihood(law: str, count: int) -> tuple[Likelihood, Tensor]:
    """Return what a number of steps gives for 500 samples of a law, and the errors."""
    makers = {"mild": lambda _: mild()[0], "rings2d": rings2d, "grid25": grid25, "ring8": ring8}
    model = makers[law](VP())
    x = model.sample(500, torch.Generator().manual_seed(0))
    result = log_likelihood(model, x, FixedGrid(grid=Quadratic(count)))
    return result, (result.corrected - model.log_prob(x)).abs()


@pytest.mark.parametrize("count", [8, 12, 16, 24, 32, 64])
@pytest.mark.parametrize("law", ["mild", "rings2d", "grid25", "ring8"])
def test_the_estimate_covers_the_error(law: str, count: int) -> None:
    result, errors = likelihood(law, count)
    least = 0.85 if law == "mild" and count == 8 else 0.97  # of 8 steps every fourth are two
    assert float((errors <= 3 * result.integration_error).double().mean()) >= least
    assert float(result.integration_error.min()) >= 0


@pytest.mark.parametrize("law", ["mild", "rings2d", "grid25", "ring8"])
def test_too_few_nodes_are_noticed(law: str) -> None:
    for count in (8, 12, 16):
        result, errors = likelihood(law, count)
        bad = errors > 0.1
        if bool(bad.any()):
            assert float((result.integration_error[bad] > 0.03).double().mean()) >= 0.95
        assert float(result.integration_error.mean()) > 0.5 * float(errors.mean())


def test_the_estimate_is_not_idle() -> None:
    """It falls with the nodes, and is not far above the error on the whole."""
    for law in ("mild", "rings2d", "grid25", "ring8"):
        means = [float(likelihood(law, n)[0].integration_error.mean()) for n in (8, 16, 32, 64)]
        assert all(few > 3 * many for few, many in pairwise(means))
        assert means[3] < 30 * float(likelihood(law, 64)[1].mean())


# LimitedAdams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow(), Cosine()], ids=name)
def test_limited_adams_is_of_order_three(process: VP) -> None:
    assert order_of_solver(LIMITED, process, (128, 256)) == pytest.approx(3, abs=0.2)


def test_limited_adams_goes_step_by_step() -> None:
    with pytest.raises(NonlinearError):
        trace(LIMITED, VP(), LogSNR(8))


@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=name)
def test_one_step_of_limited_adams_is_eulers_on_the_straight_path(process: VP) -> None:
    model, x = mild()[0].on(process), normal(4, 2)
    t, s = float(process.time(0.0)), float(process.time(0.5))
    end = solve(model, x, LIMITED, Times((t, s))).x
    (alpha, sigma), (alpha_s, sigma_s) = ((process.alpha(time), process.sigma(time)) for time in (t, s))
    answer, tau, tau_s = model(x, t), sigma / (alpha + sigma), sigma_s / (alpha_s + sigma_s)
    agree(end, (alpha_s + sigma_s) * (x / (alpha + sigma) + (tau_s - tau) * (answer.eps - answer.x0)))


def test_steps_of_no_length_are_safe() -> None:
    model, x = mild()
    solver, system = LimitedAdams(), ProbabilityFlow().of(model)
    t = torch.tensor(0.5, dtype=torch.float64)
    past: tuple = ()
    for s in (0.5, 0.5, 0.4, 0.4, 0.3):
        s = torch.tensor(s, dtype=torch.float64)
        step = solver.step(system, x, t, s, past, None)  # type: ignore[arg-type]
        assert bool(step.x.isfinite().all())
        if t == s:
            agree(step.x, x, 0.05)
        x, t, past = step.x, s, (step.seen, *past)[:2]
    agree(solver.step(system, x, t, t, (), None).x, x, 1e-12)  # type: ignore[arg-type]


def test_a_point_where_nothing_moves_is_safe() -> None:
    model = Gaussian(RectifiedFlow(), torch.zeros(2, dtype=torch.float64), 1.0)
    x = torch.zeros(3, 2, dtype=torch.float64)
    agree(solve(model, x, LIMITED, Reversed(Uniform(6))).x, x)


def test_with_a_limit_of_zero_it_is_adams_method_of_order_two() -> None:
    model, x = mild()
    model = model.on(WHOLE)
    times = (0.2, 0.25, 0.35, 0.4, 0.55)
    end = solve(model, x, Method(ProbabilityFlow(), LimitedAdams(0.0)), Times(times[::-1]))  # tau falls
    y, before = x, None
    for t, s in pairwise(times[::-1]):
        now = model(y, t).velocity
        slope = now if before is None else now + (s - t) / 2 * (now - before[0]) / (t - before[1])
        y, before = y + (s - t) * slope, (now, t)
    agree(end.x, y)


@pytest.mark.parametrize("limit", [0.1, 1.0])
def test_the_third_term_and_the_correction_are_no_longer_than_the_limit(limit: float) -> None:
    """Of the bend: the length of the second term, in every step and for every sample."""
    model = GaussianMixture(WHOLE, torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.02)
    solver, free = LimitedAdams(limit), LimitedAdams(1e9)
    system, past = ProbabilityFlow().of(model), ()
    x, hits = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None], 0
    times = torch.linspace(0.02, 0.9, 9, dtype=torch.float64)
    for t, s in pairwise(times):
        step, loose = (one.step(system, x, t, s, past, None) for one in (solver, free))  # type: ignore[arg-type]
        seen = step.seen
        if past:
            corrected = (seen.y - x).norm(dim=1)
            assert bool((corrected <= limit * past[0].bend + 1e-12).all())
            hits += int((corrected < (loose.seen.y - x).norm(dim=1) * (1 - 1e-9)).sum())
        if past and past[0].slope is not None:
            two = LimitedAdams(0.0).step(system, x, t, s, past, None)  # type: ignore[arg-type]
            third = (step.x - seen.y) - (two.x - two.seen.y)
            assert bool((third.norm(dim=1) <= limit * seen.bend * (1 + 1e-9) + 1e-12).all())
        x, past = step.x, (seen,)
    assert hits > 0


def test_what_is_small_is_kept_small() -> None:
    """Across a kink the correction is limited; a looser limit makes the run another, on a smooth path the same."""
    tight, loose = Method(ProbabilityFlow(), LimitedAdams(0.05)), Method(ProbabilityFlow(), LimitedAdams(1e9))
    sharp = GaussianMixture(VP(), torch.tensor([[-1.0], [1.0]], dtype=torch.float64), 0.02)
    smooth = Gaussian(VP(), torch.zeros(1, dtype=torch.float64), 0.7)
    x = torch.tensor([[0.01], [-0.98]], dtype=torch.float64)
    differ = [solve(m, x, tight, Reversed(LogSNR(8))).x - solve(m, x, loose, Reversed(LogSNR(8))).x for m in (sharp,)]
    assert float(differ[0].abs().max()) > 1e-3
    usual = LimitedAdams()
    for n in (64, 128):
        runs = [solve(smooth, x, Method(ProbabilityFlow(), s), Reversed(Quadratic(n))).x for s in (usual, loose.solver)]
        agree(runs[0], runs[1], 1e-6)
