"""Path by path: the areas a Brownian path tells, strong orders, and what a path costs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from exact import measured_order, name, normal, ring, rms
from torch import Tensor, nn

from sdekit import EDM, VP, Prediction, Process, RectifiedFlow, ReverseSDE, V
from sdekit.equation import Equation, ForwardSDE
from sdekit.grid import Beta, Grid, LogSNR, Quadratic
from sdekit.methods import Method
from sdekit.noise import BrownianPath
from sdekit.sample import solve
from sdekit.solvers.base import Solver
from sdekit.solvers.level import Between, NoiseScale, VaryingSDE
from sdekit.solvers.runge_kutta import EulerMaruyama
from sdekit.solvers.sa import SA
from sdekit.solvers.seeds import SEEDS
from sdekit.solvers.sra import SRA1


class Rings(nn.Module):
    """The exact model of nine anisotropic modes in the plane: eight along a ring, one in its middle."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process
        angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
        out, along = torch.stack([angle.cos(), angle.sin()], 1), torch.stack([-angle.sin(), angle.cos()], 1)
        centre = torch.zeros(1, 2, dtype=torch.float64)
        self.means = torch.cat([out, centre])
        self.axes = torch.cat([torch.stack([out, along], 2), torch.eye(2, dtype=torch.float64)[None]])
        self.variances = torch.tensor([[0.1, 0.25]] * 8 + [[0.2, 0.2]], dtype=torch.float64) ** 2

    def forward(self, x: Tensor, t: Tensor | float) -> Prediction:
        t = self.process.check(t)
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        var = alpha**2 * self.variances + sigma**2
        apart = torch.einsum("bkd,kde->bke", x[:, None] - alpha * self.means, self.axes)
        share = torch.softmax(-(apart**2 / var + var.log()).sum(2) / 2, 1)[..., None]
        pull = (share * torch.einsum("bke,kde->bkd", apart / var, self.axes)).sum(1)  # minus the score
        inner = torch.einsum("bke,kde->bkd", apart * (alpha * self.variances / var), self.axes)
        x0 = (share * (self.means + inner)).sum(1)
        return Prediction(self.process, x, t, alpha * sigma * pull - sigma * x0, V())


def clock(equation: Equation, process: Process, t: Tensor) -> float:
    return float(equation.clock(process, t))


# Areas ----------------------------------------------------------------------------------------------------------------

PAIRS = [(ReverseSDE(), VP()), (ReverseSDE(0.3), EDM()), (ForwardSDE(), RectifiedFlow())]


@pytest.mark.parametrize(("equation", "process"), PAIRS, ids=name)
def test_increments_and_areas_are_independent_standard_normals(equation: Equation, process: Process) -> None:
    x = torch.zeros(1, 20_000, dtype=torch.float64)
    of_step, rows = BrownianPath(1).on(equation.of(ring(process)), x), []
    for k, (t, s) in enumerate(itertools.pairwise(LogSNR(6)(process))):
        draw = of_step(k)
        rows += [draw(t, s)[0], draw(t, s)[0]]
    found = torch.cov(torch.stack(rows))
    assert float((found - torch.eye(len(rows), dtype=torch.float64)).abs().max()) < 5.5 * math.sqrt(2 / 20_000)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("equation", "process"), PAIRS, ids=name)
def test_areas_add_up(equation: Equation, process: Process, depth: int) -> None:
    """The area over a whole is made of those over its parts and of their increments: one path for all grids."""
    x, noise = torch.zeros(3, 2, dtype=torch.float64), BrownianPath(7, depth=depth)
    ends = process.lam(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    first, last = ends / (1 + ends.abs() / 16)
    way = first + (last - first) * torch.tensor([0, 3, 4, 11, 32], dtype=torch.float64) / 32  # where depth 8 is exact
    times = process.time(way / (1 - way.abs() / 16))

    def both(t: Tensor, s: Tensor) -> tuple[float, Tensor, Tensor]:
        """The clock's length, the increment and the integral of the path from its value at t."""
        draw, h = (
            noise.on(equation.of(ring(process)), x)(0),
            abs(clock(equation, process, s) - clock(equation, process, t)),
        )
        rise = math.sqrt(h) * draw(t, s)
        return h, rise, h * rise / 2 + math.sqrt(h**3 / 12) * draw(t, s)

    whole, start, area = both(times[0], times[-1]), torch.zeros_like(x), torch.zeros_like(x)
    for t, s in itertools.pairwise(times):
        h, rise, part = both(t, s)
        area, start = area + h * start + part, start + rise
    assert rms(start - whole[1]) < 1e-10 * math.sqrt(whole[0])
    assert rms(area - whole[2]) < 1e-10 * whole[0] ** 1.5


def test_a_path_tells_no_more_than_two_things_of_an_interval() -> None:
    draw = BrownianPath(1).on(ReverseSDE().of(ring(VP())), torch.zeros(2, 2))(0)
    t, s = 0.5, 0.25
    first, second = draw(t, s), draw(t, s)
    assert not torch.equal(first, second)
    with pytest.raises(ValueError, match="area"):
        draw(t, s)
    assert not torch.equal(draw(t, t), draw(t, t))  # of no length: fresh


def test_the_area_of_a_way_back_is_the_same() -> None:
    x = torch.zeros(2, 2, dtype=torch.float64)
    of_step = BrownianPath(1).on(ReverseSDE().of(ring(VP())), x)
    to, back = of_step(0), of_step(0)
    assert rms(to(0.5, 0.25) + back(0.25, 0.5)) < 1e-12
    assert rms(to(0.5, 0.25) - back(0.25, 0.5)) < 1e-12


# Strong orders --------------------------------------------------------------------------------------------------------


@cache
def reference(process: Process, equation: Equation, count: int = 256) -> tuple[nn.Module, Tensor, Tensor, BrownianPath]:
    """Return a mild model, states at t_max, where their paths end, and the paths."""
    model, path = ring(process, std=0.5), BrownianPath(seed=3)
    x = model.noisy(count, process.t_max)
    return model, x, solve(model, x, Method(equation, SRA1()), LogSNR(512), path).x, path


def strong_order(process: Process, equation: Equation, solver: Solver, steps: tuple[int, ...] = (16, 32, 64)) -> float:
    model, x, fine, path = reference(process, equation)
    errors = [rms(solve(model, x, Method(equation, solver), LogSNR(n), path).x - fine) for n in steps]
    return measured_order(steps, errors)


def test_strong_order_of_sra1() -> None:
    """Three halves, for additive noise: the others have one."""
    assert strong_order(VP(), ReverseSDE(), SRA1()) > 1.4
    assert strong_order(VP(), ReverseSDE(), SEEDS(2)) == pytest.approx(1, abs=0.35)


@pytest.mark.slow
@pytest.mark.parametrize("process", [VP(), EDM(), RectifiedFlow()], ids=name)
@pytest.mark.parametrize(
    "equation", [ReverseSDE(0.5), ReverseSDE(), ReverseSDE(2.0), VaryingSDE(NoiseScale())], ids=str
)
def test_strong_order_of_sra1_everywhere(process: Process, equation: Equation) -> None:
    assert strong_order(process, equation, SRA1()) > 1.4


@pytest.mark.slow
def test_strong_order_across_a_jump_of_the_level() -> None:
    assert strong_order(VP(), VaryingSDE(Between(0.2, 0.6, level=1.0, outside=0.3)), SRA1()) > 1.2


@pytest.mark.slow
@pytest.mark.parametrize("solver", [SEEDS(1), SEEDS(2), SA(2, 0), SA(2, 2)], ids=name)
def test_other_strong_orders(solver: Solver) -> None:
    """Of order 1, in the long run: at these steps SEEDS-2 is still slower."""
    assert strong_order(VP(), ReverseSDE(), solver) > 0.75


@pytest.mark.slow
@pytest.mark.parametrize(("make", "figure"), [(ring, "rms"), (Rings, "mean")], ids=["wide", "narrow"])
def test_sra1_against_euler_maruyama_at_equal_calls(make: Callable[[Process], nn.Module], figure: str) -> None:
    """On the same paths. On nine narrow modes the few paths that switch modes rule the mean square: 0.5 and 0.3."""
    process = VP()
    model, path = make(process), BrownianPath(3)
    x = process.prior().at(normal(2048, 2))

    def end(solver: Solver, grid: Grid) -> Tensor:
        return solve(model, x, Method(ReverseSDE(), solver), grid, path).x

    fine = end(SRA1(), Quadratic(1024))
    for calls, share in ((64, 0.5), (256, 0.2)):
        ours, plain = (end(of, Beta(calls // of.evals, 0.1)) - fine for of in (SRA1(), EulerMaruyama()))
        size = rms if figure == "rms" else lambda z: float(z.norm(dim=1).mean())
        assert size(ours) < share * size(plain)
