"""Predictor-correctors: what is corrected, by which formula, at no call, and by how much it helps."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from exact import measured_order, name, normal, ring, rms
from scipy.integrate import quad
from torch import Tensor

from sdekit import EDM, VP, Euler, Heun, LogSNR, Method, ProbabilityFlow, Process, ReverseSDE, Solver, solve
from sdekit.grid import Reversed
from sdekit.solvers import Ancestral, Exponential
from sdekit.solvers.corrected import Answered, Corrected, CorrectedNoise
from sdekit.solvers.dpm import DPMMultistepHeun, DPMppMultistep, DPMppMultistepHeun
from sdekit.solvers.dpm_singlestep import DPMppSinglestep
from sdekit.solvers.unipc import UniP, UniPC, UniPLinear, UniPNoise, UniPNoiseLinear

FLOW = ProbabilityFlow()
MIDDLE = VP(t_min=0.13, t_max=0.32)
UNIP = [UniP, UniPLinear, UniPNoise, UniPNoiseLinear]


def silence(t: Tensor, s: Tensor) -> Tensor:
    """Stand in for the noise, which no step here may use."""
    raise AssertionError


def past_of(solver: Solver, process: Process, steps: int, grid: LogSNR | Reversed) -> tuple[Any, Tensor, Any]:
    """Make some steps on `ring` and return the state, the times and what the steps have seen."""
    model, times, past = ring(process), grid(process), ()
    system, x = FLOW.of(model), model.noisy(4, float(times[0]))
    for t, s in itertools.islice(itertools.pairwise(times), steps):
        x, seen = solver.step(system, x, t, s, past, silence)
        past = (seen, *past)[: solver.memory]
    return x, times, past


# The formula ----------------------------------------------------------------------------------------------------------


def by_quadrature(process: Process, noise: bool, past: tuple[Any, ...], new: Any) -> Tensor:
    """Integrate the polynomial through the new and the past predictions, times what the variation of constants says.

    x_t / sigma_t = x / sigma + int e^lam x0 dlam, or x_t / alpha_t = x / alpha - int e^-lam eps dlam.
    """
    seen = [p.prediction for p in past]
    scale, sign = (process.alpha, -1) if noise else (process.sigma, 1)
    lams = [float(process.lam(p.t)) for p in (new, *seen)]
    total = past[0].x / scale(seen[0].t)
    for k, prediction in enumerate((new, *seen)):
        others = [lam for j, lam in enumerate(lams) if j != k]

        def integrand(lam: float, k: int = k, others: list[float] = others) -> float:
            return float(np.exp(sign * lam) * np.prod([(lam - o) / (lams[k] - o) for o in others]))

        weight = quad(integrand, lams[1], lams[0], epsabs=1e-13, epsrel=1e-13)[0]
        total = total + sign * weight * (prediction.eps if noise else prediction.x0)
    return total * scale(new.t)


@pytest.mark.parametrize("points", [2, 3, 4])
@pytest.mark.parametrize("kind", [Corrected, CorrectedNoise])
@pytest.mark.parametrize("grid", [LogSNR(7), Reversed(LogSNR(7))], ids=name)
def test_the_corrected_state(points: int, kind: type[Corrected], grid: LogSNR | Reversed) -> None:
    """By the implicit Adams formula, from the corrected state before; the prediction is that of the predicted state."""
    solver = kind(DPMppMultistep(2), points)
    x, times, past = past_of(solver, VP(), 5, grid)
    asked = []

    class Listening(type(ring(VP()))):  # type: ignore[misc]
        def forward(self, x: Tensor, t: Tensor) -> Any:
            asked.append(x)
            return super().forward(x, t)

    model = Listening(VP(), ring(VP()).means, 0.4)
    seen = solver.step(FLOW.of(model), x, times[5], times[6], past, silence).seen
    assert len(asked) == 1
    assert torch.equal(asked[0], x)
    expected = by_quadrature(VP(), kind is CorrectedNoise, past[: points - 1], seen.prediction)
    assert rms(seen.x - expected) < 1e-11
    assert rms(seen.x - x) > 1e-6


@pytest.mark.parametrize("kind", UNIP)
@pytest.mark.parametrize("points", [2, 3])
def test_unipc_is_the_exact_corrector_after_its_first(kind: type[UniP], points: int) -> None:
    """Whatever B(h) is."""
    solver = UniPC(kind(points))
    other = (CorrectedNoise if "Noise" in name(kind(2)) else Corrected)(kind(points), points + 1)
    x, times, past = past_of(solver, VP(), 4, LogSNR(8))
    one, two = (s.step(FLOW.of(ring(VP())), x, times[4], times[5], past, silence).x for s in (solver, other))
    assert rms(one - two) < 1e-12
    x, times, past = past_of(solver, VP(), 1, LogSNR(8))
    one, two = (s.step(FLOW.of(ring(VP())), x, times[1], times[2], past, silence).x for s in (solver, other))
    assert rms(one - two) > 1e-6


def test_the_first_correction_of_unipc_is_half_of_each() -> None:
    """x_t = DDIM + B/2 (m_t - m_0), alpha_t (1 - e^-h) / 2 for bh2 and alpha_t h / 2 for bh1."""
    process = VP()
    for kind in (UniP, UniPLinear):
        solver = UniPC(kind(1))
        x, times, past = past_of(solver, process, 1, LogSNR(8))
        seen = solver.step(FLOW.of(ring(process)), x, times[1], times[2], past, silence).seen
        h = process.lam(times[1]) - process.lam(times[0])
        weight = process.alpha(times[1]) * (h if kind is UniPLinear else -torch.expm1(-h)) / 2
        assert rms(seen.x - x - weight * (seen.prediction.x0 - past[0].prediction.x0)) < 1e-12


def test_on_edm_the_corrected_euler_on_noise_is_the_trapezoidal_rule() -> None:
    """There eps is the slope in t = sigma, and the corrector with two points is exact where eps is linear in lam."""
    process = EDM()
    solver = CorrectedNoise(DPMMultistepHeun(1), 2)
    x, times, past = past_of(solver, process, 3, LogSNR(200))
    seen = solver.step(FLOW.of(ring(process)), x, times[3], times[4], past, silence).seen
    trapezoid = past[0].x + (times[3] - times[2]) * (past[0].prediction.eps + seen.prediction.eps) / 2
    assert rms(seen.x - trapezoid) < 1e-3 * rms(seen.x - past[0].x)


# What it costs and what it brings -------------------------------------------------------------------------------------


def order(solver: Solver, steps: tuple[int, int] = (60, 120)) -> float:
    model = ring(MIDDLE)
    x = model.noisy(8, MIDDLE.t_max)
    end = model.flow(x, MIDDLE.t_max, MIDDLE.t_min)
    errors = [rms(solve(model, x, Method(FLOW, solver), LogSNR(n)).x - end) for n in steps]
    return measured_order(steps, errors)


INNER = [DPMppMultistepHeun(1), DPMppMultistep(2), Exponential(2), DPMppSinglestep(2), Heun(), Euler()]


@pytest.mark.parametrize("inner", INNER, ids=name)
def test_it_raises_the_order_by_one(inner: Solver) -> None:
    """Of any solver of the flow, up to 3, with a corrector in x0_hat or in eps_hat."""
    assert order(inner) == pytest.approx(inner.order, abs=0.15)
    for kind in (Corrected, CorrectedNoise):
        solver = kind(inner, inner.order + 1)
        assert (solver.order, solver.evals, solver.starts) == (inner.order + 1, inner.evals, inner.starts)
        assert order(solver) == pytest.approx(inner.order + 1, abs=0.2)


def test_more_points_than_the_order_asks_for_bring_no_more() -> None:
    assert Corrected(DPMppMultistep(2), 4).order == 3
    assert order(Corrected(DPMppMultistep(2), 4)) == pytest.approx(3, abs=0.15)
    assert Corrected(DPMppMultistep(2), 2).order == 2
    assert order(Corrected(DPMppMultistep(2), 2)) == pytest.approx(2, abs=0.15)


def test_it_makes_the_same_calls_worth_more() -> None:
    """With 40 calls the end is nearer to the flow's than the predictor's alone; with 6 to 10 it need not be."""
    model = ring(VP())
    x = model.noisy(64, 1.0)
    end = model.flow(x, 1.0, VP().t_min)

    def error(solver: Solver) -> float:
        return rms(solve(model, x, Method(FLOW, solver), LogSNR(40)).x - end)

    assert error(UniPC(UniP(2))) < 0.7 * error(UniP(2))
    assert error(UniPC(UniP(3))) < 0.7 * error(UniP(3))
    assert error(Corrected()) < 0.7 * error(Exponential(2))


def test_a_system_that_was_asked_answers_and_counts_what_else_is_asked() -> None:
    model = ring(VP())
    system = FLOW.of(model)
    t, x = torch.tensor(0.5, dtype=torch.float64), normal(4, 2)
    answered = Answered(system, system(x, t))
    assert torch.equal(answered(x + 1, t).x0, answered.now.x0)
    assert torch.equal(answered.drift(x, t), answered.now.velocity)
    assert system.nfe == 1
    assert torch.equal(answered(x, 0.4).x0, model(x, 0.4).x0)
    assert system.nfe == 2
    assert answered.eta == 0


def test_it_is_refused_where_it_does_not_belong() -> None:
    with pytest.raises(TypeError, match="made for the probability flow"):
        Corrected(Ancestral())
    with pytest.raises(TypeError, match="corrects a UniP"):
        UniPC(DPMppMultistep(2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="UniPC solves ProbabilityFlow"):
        Method(ReverseSDE(), UniPC())
