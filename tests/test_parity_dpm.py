"""DPM-Solver, DPM-Solver++ and UniPC against the schedulers of diffusers, in the manner of test_parity.

The schedulers are given the table's sigmas in float64, for they keep them in float32. Those that keep their state in
float64 then agree to EXACT; the multistep DPM-Solver rounds its state to float32 at every step, and agrees to ROUNDED.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_cosine_dpmsolver_multistep as cosine_module
from exact import name, normal
from test_parity import TABLES, denoiser, distance, draws, on_both_tables, scheduler_of, theirs
from torch import Tensor

from sdekit import (
    EDM,
    Denoiser,
    Keyed,
    Method,
    Preconditioned,
    ProbabilityFlow,
    Process,
    ReverseSDE,
    Solver,
    Times,
    solve,
)
from sdekit.denoiser import Clock
from sdekit.solvers.dpm import DPMMultistep, DPMMultistepHeun, DPMppMultistep, DPMppMultistepHeun
from sdekit.solvers.dpm_singlestep import (
    DPMInterleaved,
    DPMInterleavedHeun,
    DPMppInterleaved,
    DPMppInterleavedHeun,
    DPMppSinglestep,
    DPMSinglestep,
)
from sdekit.solvers.unipc import UniP, UniPC, UniPLinear, UniPNoise, UniPNoiseLinear

ROUNDED, EXACT = 1e-5, 1e-10
MULTISTEP, SINGLESTEP = diffusers.DPMSolverMultistepScheduler, diffusers.DPMSolverSinglestepScheduler
UNIPC = diffusers.UniPCMultistepScheduler


@dataclass(frozen=True)
class Theirs:
    """How one of their schedulers ran: where it ended, what the network was told, and on which times."""

    end: Tensor
    seen: list[float]
    grid: Times


def run_theirs(kind: type, schedule: str, steps: int, noise: Iterator[Tensor] | None = None, **options: Any) -> Theirs:
    """Run a scheduler from `normal(4, 3)`, to the table's first step, or to sigma = 0 if final_sigmas_type says so."""
    options = {"final_sigmas_type": "sigma_min", "lower_order_final": False, **options}
    scheduler = scheduler_of(kind, schedule, steps, **options)
    table, nodes = TABLES[schedule], [(float(k) + 1) / 1000 for k in scheduler.timesteps]
    zero = options["final_sigmas_type"] == "zero"
    sigmas = torch.exp(-table.lam(torch.tensor([*nodes, 1 / 1000], dtype=torch.float64)))
    sigmas[-1] *= 0 if zero else 1
    assert torch.allclose(scheduler.sigmas.double(), sigmas, rtol=1e-3)
    scheduler.sigmas = sigmas
    end, seen = theirs(scheduler, normal(4, 3), noise)
    return Theirs(end, seen, Times((*nodes, 0.0 if zero else table.t_min)))


def check(their: Theirs, schedule: str, solver: Solver, tolerance: float, eta: float = 0.0) -> None:
    model = denoiser(TABLES[schedule])
    equation = ReverseSDE(eta) if eta else ProbabilityFlow()
    run = solve(model, normal(4, 3), Method(equation, solver), their.grid, Keyed(3))
    assert distance(run.x, their.end) < tolerance
    assert model.net.seen == their.seen


# DPM-Solver and DPM-Solver++, multistep -------------------------------------------------------------------------------

KINDS: dict[tuple[str, str], Callable[[int], Solver]] = {
    ("dpmsolver", "midpoint"): DPMMultistep,
    ("dpmsolver", "heun"): DPMMultistepHeun,
    ("dpmsolver++", "midpoint"): DPMppMultistep,
    ("dpmsolver++", "heun"): DPMppMultistepHeun,
}


@on_both_tables
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("points", [1, 2, 3])
def test_multistep(schedule: str, kind: tuple[str, str], points: int) -> None:
    options = {"algorithm_type": kind[0], "solver_type": kind[1], "solver_order": points}
    for steps in (1, 2, 7, 20):
        check(run_theirs(MULTISTEP, schedule, steps, **options), schedule, KINDS[kind](points), ROUNDED)


@on_both_tables
@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] == "dpmsolver++"], ids="-".join)
@pytest.mark.parametrize("points", [2, 3])
def test_multistep_to_a_clean_end(schedule: str, kind: tuple[str, str], points: int) -> None:
    options = {"algorithm_type": kind[0], "solver_type": kind[1], "solver_order": points, "final_sigmas_type": "zero"}
    for steps in (1, 2, 7, 20):
        check(run_theirs(MULTISTEP, schedule, steps, **options), schedule, KINDS[kind](points), ROUNDED)


@on_both_tables
@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("points", [1, 2])
def test_stochastic_multistep(schedule: str, kind: tuple[str, str], points: int) -> None:
    options = {"algorithm_type": f"sde-{kind[0]}", "solver_type": kind[1], "solver_order": points}
    for steps in (1, 2, 7, 20):
        their = run_theirs(MULTISTEP, schedule, steps, draws(normal(4, 3), seed=3), **options)
        check(their, schedule, KINDS[kind](points), ROUNDED, eta=1.0)


@dataclass(frozen=True)
class TheirThirdOrder(DPMppMultistep):
    """With their weight of the second difference, (1 - e^z + z)/z^2 - 1/2 for -z phi_3: its 1/2 has the wrong sign."""

    def rule(self, r: list[Tensor], z: Tensor) -> list[Tensor]:
        weights = super().rule(r, z)
        if len(r) == 1:
            return weights
        extra = 1 / (r[1] - r[0])  # the second difference itself
        return [weights[0] - extra / r[0], weights[1] + extra / r[1]]


def test_their_stochastic_third_order_has_a_wrong_sign() -> None:
    """ "sde-dpmsolver++" of order 3. It converges, but to order 1; k-diffusion's dpmpp_3m_sde has the sign right."""
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}
    their = run_theirs(MULTISTEP, "linear", 20, draws(normal(4, 3), seed=3), **options)
    check(their, "linear", TheirThirdOrder(3), ROUNDED, eta=1.0)
    ours = solve(
        denoiser(TABLES["linear"]), normal(4, 3), Method(ReverseSDE(), DPMppMultistep(3)), their.grid, Keyed(3)
    )
    assert distance(ours.x, their.end) > 0.01


# DPM-Solver and DPM-Solver++, single-step -----------------------------------------------------------------------------

INTERLEAVED: dict[tuple[str, str], Callable[[int], Solver]] = {
    ("dpmsolver", "midpoint"): DPMInterleaved,
    ("dpmsolver", "heun"): DPMInterleavedHeun,
    ("dpmsolver++", "midpoint"): DPMppInterleaved,
    ("dpmsolver++", "heun"): DPMppInterleavedHeun,
}


@on_both_tables
@pytest.mark.parametrize("kind", INTERLEAVED, ids="-".join)
@pytest.mark.parametrize("group", [1, 2, 3])
def test_singlestep(schedule: str, kind: tuple[str, str], group: int) -> None:
    """In full groups, each interval of the grid one call."""
    options = {"algorithm_type": kind[0], "solver_type": kind[1], "solver_order": group}
    for steps in (6, 18):
        check(run_theirs(SINGLESTEP, schedule, steps, **options), schedule, INTERLEAVED[kind](group), EXACT)


@on_both_tables
@pytest.mark.parametrize("solver", [DPMppInterleaved(3), DPMppInterleavedHeun(3)], ids=name)
def test_singlestep_to_a_clean_end(schedule: str, solver: Solver) -> None:
    """Orders 1, 2, 3, ..., 1, 2, 3, 1: the last group has one interval, to the clean end."""
    options = {
        "solver_type": "heun" if "Heun" in name(solver) else "midpoint",
        "solver_order": 3,
        "lower_order_final": True,
        "final_sigmas_type": "zero",
    }
    check(run_theirs(SINGLESTEP, schedule, 10, **options), schedule, solver, EXACT)


@pytest.mark.parametrize("kind", [DPMSinglestep, DPMppSinglestep])
def test_a_group_is_a_single_step_with_the_grids_own_times(kind: type[Solver]) -> None:
    """Of order 2, with r1 wherever the grid has it."""
    inner = {DPMSinglestep: DPMInterleaved, DPMppSinglestep: DPMppInterleaved}[kind]
    table, x = TABLES["linear"], normal(4, 3)
    lams = torch.lerp(table.lam(0.9), table.lam(0.6), torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64))
    times = table.time(lams).tolist()
    whole = solve(denoiser(table), x, Method(ProbabilityFlow(), kind(2, r1=0.3)), Times((times[0], times[2])))
    group = solve(denoiser(table), x, Method(ProbabilityFlow(), inner(2)), Times(tuple(times)))
    assert whole.nfe == group.nfe == 2
    assert distance(group.x, whole.x) < EXACT


# UniPC ----------------------------------------------------------------------------------------------------------------

PREDICTORS: dict[tuple[str, bool], Callable[[int], UniP]] = {
    ("bh1", True): UniPLinear,
    ("bh2", True): UniP,
    ("bh1", False): UniPNoiseLinear,
    ("bh2", False): UniPNoise,
}
by_every_unipc = pytest.mark.parametrize("kind", PREDICTORS, ids=lambda k: f"{k[0]}-{'x0' if k[1] else 'eps'}")


@on_both_tables
@by_every_unipc
@pytest.mark.parametrize("points", [1, 2, 3])
def test_unipc(schedule: str, kind: tuple[str, bool], points: int) -> None:
    options = {"solver_type": kind[0], "predict_x0": kind[1], "solver_order": points}
    for steps in (1, 2, 3, 7, 20):
        their = run_theirs(UNIPC, schedule, steps, **options)
        check(their, schedule, UniPC(PREDICTORS[kind](points)), EXACT)


@on_both_tables
@by_every_unipc
@pytest.mark.parametrize("points", [1, 2, 3])
def test_unip_alone(schedule: str, kind: tuple[str, bool], points: int) -> None:
    options = {"solver_type": kind[0], "predict_x0": kind[1], "solver_order": points, "disable_corrector": [*range(9)]}
    check(run_theirs(UNIPC, schedule, 9, **options), schedule, PREDICTORS[kind](points), EXACT)


@on_both_tables
@pytest.mark.parametrize("points", [1, 2])
def test_unipc_to_a_clean_end(schedule: str, points: int) -> None:
    """Up to two points their lower order at the end is the clean end's own order 1: nothing to be said."""
    options = {"solver_order": points, "final_sigmas_type": "zero", "lower_order_final": True}
    for steps in (1, 2, 7):
        check(run_theirs(UNIPC, schedule, steps, **options), schedule, UniPC(UniP(points)), EXACT)


def test_their_unipc_is_not_finite_at_a_clean_end_with_bh1() -> None:
    """There B(h) = h is infinite, and they multiply it by 0."""
    their = run_theirs(UNIPC, "linear", 7, solver_type="bh1", final_sigmas_type="zero", lower_order_final=True)
    assert bool(their.end.isnan().all())
    ours = solve(denoiser(TABLES["linear"]), normal(4, 3), Method(ProbabilityFlow(), UniPC(UniPLinear(2))), their.grid)
    assert bool(ours.x.isfinite().all())


@on_both_tables
def test_unipc_with_a_lower_order_at_the_end(schedule: str) -> None:
    """Steps are pure and hand on what they have seen, so the last but one may be made by another solver."""
    options = {"solver_order": 3, "final_sigmas_type": "zero", "lower_order_final": True}
    their = run_theirs(UNIPC, schedule, 8, **options)
    model, x, past = denoiser(TABLES[schedule]), normal(4, 3), ()
    system, solvers = ProbabilityFlow().of(model), [*[UniPC(UniP(3))] * 6, UniPC(UniP(2), points=4)]
    times = their.grid(model.process)
    for solver, (t, s) in zip(solvers, itertools.pairwise(times[:-1]), strict=True):
        x, seen = solver.step(system, x, t, s, past, lambda t, s: torch.zeros(()))
        past = (seen, *past)[: solver.memory]
    assert distance(system(x, times[-2]).x0, their.end) < EXACT


# In EDM's sigmas ------------------------------------------------------------------------------------------------------


class Angle(Clock):
    """2 atan(sigma / alpha) / pi."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return process.angle(t) * (2 / torch.pi)


def continuous(x: Tensor, time: Tensor) -> Tensor:
    return torch.sin(2 * x.flip(1) + 3 * time.reshape(-1, 1).to(x)) - 0.4 * x


def in_sigmas(scheduler: Any, x: Tensor, network: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Times]:
    """Run a scheduler that preconditions its network; its sigmas are in float32."""
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t.double()), t, x).prev_sample
    return x, Times(tuple(scheduler.sigmas.double().tolist()))


@pytest.mark.parametrize("points", [1, 2, 3])
@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] == "dpmsolver++"], ids="-".join)
def test_edm_multistep(points: int, kind: tuple[str, str]) -> None:
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(
        solver_order=points, solver_type=kind[1], lower_order_final=False
    )
    scheduler.set_timesteps(12)
    x = 80 * normal(4, 3)
    end, grid = in_sigmas(scheduler, x, continuous)
    process = EDM(t_min=scheduler.sigmas[-2].item(), t_max=scheduler.sigmas[0].item())
    model = Denoiser(continuous, process, predicts=Preconditioned(0.5))
    assert distance(solve(model, x, Method(ProbabilityFlow(), KINDS[kind](points)), grid).x, end) < ROUNDED


@pytest.mark.parametrize("points", [1, 2])
@pytest.mark.parametrize("kind", [k for k in KINDS if k[0] == "dpmsolver++"], ids="-".join)
def test_cosine_multistep(points: int, kind: tuple[str, str]) -> None:
    """Their stochastic sampler of order 2 for networks that predict v of data with variance 1."""
    scheduler = diffusers.CosineDPMSolverMultistepScheduler(solver_order=points, solver_type=kind[1])
    scheduler.set_timesteps(20)
    x = 500 * normal(4, 3)
    noise = draws(x, seed=3)

    class Paths:
        """Hands out our noise in place of their Brownian tree."""

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def __call__(self, *_: Any) -> Tensor:
            return next(noise)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cosine_module, "BrownianTreeNoiseSampler", Paths)
        end, grid = in_sigmas(scheduler, x, continuous)
    process = EDM(t_min=scheduler.sigmas[-2].item(), t_max=scheduler.sigmas[0].item())
    model = Denoiser(lambda x, t: -continuous(x, t), process, predicts=Preconditioned(1.0), clock=Angle())
    run = solve(model, x, Method(ReverseSDE(), KINDS[kind](points)), grid, Keyed(3))
    assert distance(run.x, end) < ROUNDED
