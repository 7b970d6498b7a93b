"""The multistep schedulers of diffusers, step for step: LMS, DEIS, iPNDM, PNDM and PLMS; and where they are wrong."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from exact import Circle, normal
from test_parity import (
    EXACT,
    INTEGERS,
    TABLES,
    TOLERANCE,
    InSigmas,
    Net,
    denoiser,
    distance,
    nodes,
    on_both_tables,
    scheduler_of,
    theirs,
)
from torch import Tensor

from sdekit import EDM, ByTime, Denoiser, Method, ProbabilityFlow, Solver, Times, V, solve
from sdekit.solvers import IPNDM, InLam, Multistep, PseudoHeun, PseudoRungeKutta, Ramp
from sdekit.solvers.path import NOISE


def flow(solver: Solver) -> Method:
    return Method(ProbabilityFlow(), solver)


def to_the_last_index(scheduler: Any) -> Times:
    """Return a scheduler's own times, without middles, and then the table's first, where these schedulers end."""
    steps = nodes(scheduler).at[:-1]
    if getattr(scheduler, "prk_timesteps", None) is not None and len(scheduler.prk_timesteps):
        steps = tuple((float(k) + 1) / 1000 for k in scheduler._timesteps[::-1])
    return Times((*steps, 0.001))


# LMS ------------------------------------------------------------------------------------------------------------------


@on_both_tables
@pytest.mark.parametrize(("spacing", "steps"), INTEGERS[1:3])
@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_lms_is_adams_bashforth_on_the_noise(schedule: str, spacing: str, steps: int, points: int) -> None:
    """Down to sigma = 0, by the same polynomial."""
    table = TABLES[schedule]
    scheduler = scheduler_of(diffusers.LMSDiscreteScheduler, schedule, steps, timestep_spacing=spacing)
    sigmas = torch.exp(-table.lam(torch.tensor(nodes(scheduler).at[:-1], dtype=torch.float64)))
    model, z = InSigmas(denoiser(table), sigmas), sigmas[0] * normal(4, 3)
    model.process = EDM(t_min=0.0, t_max=float(sigmas[0]))
    end, seen = theirs(scheduler, z, order=points)
    run = solve(model, z, flow(Multistep(NOISE, NOISE, points, Ramp())), Times((*sigmas.tolist(), 0.0)))
    assert distance(run.x, end) < TOLERANCE
    assert model.model.net.seen == pytest.approx(seen, abs=1e-6)


# numpy's own notes on how diffusers calls it are not about us
quietly = pytest.mark.filterwarnings("ignore::DeprecationWarning")

# DEIS -----------------------------------------------------------------------------------------------------------------


def their_deis(schedule: str, spacing: str, steps: int, **options: Any) -> Any:
    """Return DEIS with its noise levels in float64."""
    kind = diffusers.DEISMultistepScheduler
    scheduler = scheduler_of(kind, schedule, steps, timestep_spacing=spacing, lower_order_final=False, **options)
    alpha2 = scheduler.alphas_cumprod[torch.cat([scheduler.timesteps, torch.zeros(1, dtype=torch.int64)])]
    assert torch.allclose(((1 - alpha2) / alpha2).sqrt().float(), scheduler.sigmas, rtol=1e-5)
    scheduler.sigmas = ((1 - alpha2) / alpha2).sqrt()
    return scheduler


@quietly
@on_both_tables
@pytest.mark.parametrize(("spacing", "steps"), [("linspace", 9), ("leading", 12), ("trailing", 30)])
@pytest.mark.parametrize("points", [1, 2, 3])
def test_deis_is_the_noise_in_lam(schedule: str, spacing: str, steps: int, points: int) -> None:
    model, x = denoiser(TABLES[schedule]), normal(4, 3)
    scheduler = their_deis(schedule, spacing, steps, solver_order=points)
    end, seen = theirs(scheduler, x)
    run = solve(model, x, flow(Multistep(NOISE, InLam(), points, Ramp())), to_the_last_index(scheduler))
    assert distance(run.x, end) < EXACT
    assert model.net.seen == pytest.approx(seen, abs=1e-9)


@quietly
@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_their_deis_wastes_its_last_call_on_other_spacings(option: str) -> None:
    """The last noise level is written twice, so the last step goes nowhere."""
    scheduler = diffusers.DEISMultistepScheduler(**{option: True})
    scheduler.set_timesteps(10)
    assert scheduler.sigmas[-1] == scheduler.sigmas[-2]


# PNDM, PLMS -----------------------------------------------------------------------------------------------------------


def their_pndm(schedule: str, steps: int, **options: Any) -> Any:
    """Return PNDM, ending at the table's first index in float64."""
    scheduler = scheduler_of(diffusers.PNDMScheduler, schedule, steps, **options)
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


@on_both_tables
@pytest.mark.parametrize("steps", [5, 10, 50])
@pytest.mark.parametrize("start", [PseudoRungeKutta(), PseudoHeun()], ids=["PNDM", "PLMS"])
def test_pndm(schedule: str, steps: int, start: Any) -> None:
    model, x = denoiser(TABLES[schedule]), normal(4, 3)
    scheduler = their_pndm(schedule, steps, steps_offset=1, skip_prk_steps=start == PseudoHeun())
    end, seen = theirs(scheduler, x)
    run = solve(model, x, flow(IPNDM(4, start)), to_the_last_index(scheduler))
    assert distance(run.x, end) < EXACT
    assert model.net.seen == pytest.approx(seen, abs=1e-9)
    assert run.nfe == len(seen) == steps + start.calls(4, steps)


def test_their_pndm_wastes_its_last_call_by_default() -> None:
    """Without an offset the last index is 0, and from there it steps to index 0."""
    scheduler = their_pndm("linear", 10, skip_prk_steps=True)
    for k in scheduler.timesteps[:-1]:
        before = scheduler.step(torch.ones(2, 3), k, torch.ones(2, 3, dtype=torch.float64)).prev_sample
    after = scheduler.step(torch.ones(2, 3), scheduler.timesteps[-1], before).prev_sample
    assert torch.equal(after, before)


def test_their_pndm_steps_beside_its_own_times() -> None:
    """With spacings whose steps are not T // N long, it is asked at other times than its states belong to."""
    scheduler = their_pndm("linear", 10, skip_prk_steps=True, timestep_spacing="linspace")
    gaps = scheduler.timesteps.unique().diff()
    assert int(gaps.max()) == 111
    x, told = torch.ones(2, 3, dtype=torch.float64), 999
    moved = scheduler.step(torch.zeros(2, 3), told, x).prev_sample
    at = (moved[0, 0] ** 2 * scheduler.alphas_cumprod[told] - scheduler.alphas_cumprod).abs().argmin()
    assert int(at) == told - 100  # but the network will be told 888


# iPNDM ----------------------------------------------------------------------------------------------------------------


def their_ipndm(t: Tensor) -> Any:
    """Return iPNDM at the times t, in float64."""
    betas = torch.sin(t * (math.pi / 2))
    scheduler = diffusers.IPNDMScheduler(trained_betas=betas.tolist())
    scheduler.set_timesteps(len(t) - 1)
    scheduler.betas, scheduler.alphas, scheduler.timesteps = betas, torch.cos(t * (math.pi / 2)), t[:-1]
    return scheduler


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_ipndm(steps: int) -> None:
    """On the circle, from a network that predicts v."""
    t = torch.linspace(0.98, 0, steps + 1, dtype=torch.float64)
    model, x = Denoiser(Net(), Circle(t_min=0.0), predicts=V(), clock=ByTime(1)), normal(4, 3)
    end, seen = theirs(their_ipndm(t), x)
    assert distance(solve(model, x, flow(IPNDM(4)), Times(tuple(t.tolist()))).x, end) < EXACT
    assert model.net.seen == pytest.approx(seen)


def test_their_ipndm_does_not_listen_in_its_first_step() -> None:
    """It starts where alpha = 0, and there takes 0 for the data, whatever the network says."""
    ends = []
    for output in (torch.zeros(2, 3), torch.ones(2, 3)):
        scheduler = diffusers.IPNDMScheduler()
        scheduler.set_timesteps(8)
        ends.append(scheduler.step(output, scheduler.timesteps[0], normal(2, 3).float()).prev_sample)
    assert torch.equal(*ends)
