"""The schedulers of diffusers, step for step: the same network, the same start, the same noise, the same end.

diffusers keeps its tables in float32, where a beta of 0.999 leaves four digits of alpha. So that methods are compared
and not roundings, the schedulers here are given the table in float64, and those that step on it agree to EXACT. Those
that step in sigmas, or keep their state in float32, round by 6e-8 at every step: for them it is TOLERANCE.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from exact import normal
from torch import Tensor, nn

from sdekit import (
    DDIM,
    DDPM,
    DDPM_BETA,
    EDM,
    EULER,
    HEUN,
    ByIndex,
    ByTime,
    Denoiser,
    Discrete,
    DPMpp2M,
    Eps,
    Keyed,
    Leading,
    Linspace,
    Method,
    Prediction,
    RectifiedFlow,
    ReverseSDE,
    StochasticDDIM,
    Times,
    Trailing,
    Velocity,
    solve,
)
from sdekit.grid import Grid
from sdekit.solvers import DPMppMultistep

TOLERANCE = 1e-5
EXACT = 1e-11
Run = tuple[Tensor, list[float]]
TABLES = {"linear": Discrete.linear(), "squaredcos_cap_v2": Discrete.cosine()}  # by the names of diffusers

on_both_tables = pytest.mark.parametrize("schedule", TABLES)


class Net(nn.Module):
    """A smooth function of the state and the table's index, which remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, x: Tensor, k: Tensor) -> Tensor:
        self.told.append(k)
        place = (k.to(x) / 1000).reshape(-1, 1)
        return 0.9 * x * place + 0.3 * torch.sin(2 * x.flip(1) + 3 * place)

    @property
    def seen(self) -> list[float]:
        return [float(k.flatten()[0]) for k in self.told]


def denoiser(table: Discrete) -> Denoiser:
    return Denoiser(Net(), table, predicts=Eps(), clock=ByIndex())


def scheduler_of(kind: type, schedule: str, steps: int, **options: Any) -> Any:
    """Return a scheduler on the table in float64, ready to make that many steps."""
    scheduler = kind(beta_schedule=schedule, beta_start=1e-4, beta_end=0.02, **options)
    betas = torch.tensor(TABLES[schedule].betas, dtype=torch.float64)
    assert torch.allclose(scheduler.betas.double(), betas, rtol=1e-4)
    scheduler.alphas_cumprod = torch.cumprod(1 - betas, 0)
    scheduler.set_timesteps(steps)
    return scheduler


def theirs(scheduler: Any, x: Tensor, noise: Iterator[Tensor] | None = None, **options: Any) -> Run:
    """Run a scheduler as its pipelines do; return where it ends and what the network was told."""
    net = Net()
    for t in scheduler.timesteps:
        if noise is not None:
            options["variance_noise"] = next(noise)
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        output = net(scaled, t)
        x = scheduler.step(output, t, x, **options).prev_sample
    return x, net.seen


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the size of the states."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def draws(x: Tensor, seed: int) -> Iterator[Tensor]:
    """Yield the noise of every step of a run with Keyed(seed)."""
    of_step = Keyed(seed).on(ReverseSDE().of(denoiser(TABLES["linear"])), x)
    return (of_step(k)(0, 0) for k in range(1000))


def nodes(scheduler: Any) -> Times:
    """Return a scheduler's own times, each once, and then the clean end."""
    return Times((*((scheduler.timesteps.double().unique().flip(0) + 1) / 1000).tolist(), 0.0))


# The network is told what it was trained with -------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [100, 400, 1000, 4000])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_the_network_is_told_the_integer_index(steps: int, dtype: torch.dtype) -> None:
    """Exactly, whatever its precision: it may look it up in a table."""
    model, k = denoiser(Discrete.linear(steps)), torch.arange(steps)
    model.net.register_parameter("weight", nn.Parameter(torch.zeros(1, dtype=dtype)))
    model(torch.zeros(steps, 2), model.process.node(k))
    assert float((model.net.told[0].double() - k).abs().max()) == 0


# On the table ---------------------------------------------------------------------------------------------------------

LEADING = [("leading", Leading(1000)), ("leading", Leading(50)), ("leading", Leading(7))]
DIVIDING = [
    *LEADING,
    ("leading", Leading(7, offset=1)),
    ("trailing", Trailing(10)),
    ("trailing", Trailing(1)),
]
NOT_DIVIDING = [("trailing", Trailing(12)), ("linspace", Linspace(10))]


@on_both_tables
@pytest.mark.parametrize(("spacing", "grid"), DIVIDING, ids=str)
def test_ddim(schedule: str, spacing: str, grid: Grid) -> None:
    model, x, kind = denoiser(TABLES[schedule]), normal(4, 3), diffusers.DDIMScheduler
    options = {"clip_sample": False, "timestep_spacing": spacing, "steps_offset": getattr(grid, "offset", 0)}
    end, seen = theirs(scheduler_of(kind, schedule, grid.steps, **options), x)
    assert distance(solve(model, x, DDIM, grid).x, end) < EXACT
    assert model.net.seen == seen


@pytest.mark.parametrize(("spacing", "grid"), NOT_DIVIDING, ids=str)
def test_their_ddim_goes_astray_where_steps_do_not_divide_the_table(spacing: str, grid: Grid) -> None:
    """It asks the network at the same places, but steps T // n indices on, which is not where it asks next."""
    model, x, kind = denoiser(TABLES["linear"]), normal(4, 3), diffusers.DDIMScheduler
    scheduler = scheduler_of(kind, "linear", grid.steps, clip_sample=False, timestep_spacing=spacing)
    end, seen = theirs(scheduler, x)
    ours = solve(model, x, DDIM, grid).x
    assert model.net.seen == seen
    assert distance(ours, end) > 1e-3
    # stepping to where it asks next, as its own Euler scheduler does, it would have come out where we do
    in_sigmas = scheduler_of(diffusers.EulerDiscreteScheduler, "linear", grid.steps, timestep_spacing=spacing)
    end, _ = theirs(in_sigmas, x * (1 + in_sigmas.sigmas[0].double() ** 2).sqrt())
    assert distance(ours, end) < TOLERANCE


@on_both_tables
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_stochastic_ddim(schedule: str, eta: float) -> None:
    x = normal(4, 3)
    scheduler = scheduler_of(diffusers.DDIMScheduler, schedule, 20, clip_sample=False)
    end, _ = theirs(scheduler, x, draws(x, seed=3), eta=eta)
    ours = solve(denoiser(TABLES[schedule]), x, StochasticDDIM(eta), Leading(20), Keyed(3)).x
    assert distance(ours, end) < EXACT


def their_ddpm(schedule: str, spacing: str, steps: int, variance: str, noise: Iterator[Tensor]) -> Run:
    """Run their ancestral sampler with the given noise."""
    options = {"variance_type": variance, "clip_sample": False, "timestep_spacing": spacing}
    scheduler = scheduler_of(diffusers.DDPMScheduler, schedule, steps, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(noise))
        return theirs(scheduler, normal(4, 3))


@on_both_tables
@pytest.mark.parametrize(("spacing", "grid"), [*LEADING, *NOT_DIVIDING], ids=str)
def test_ddpm(schedule: str, spacing: str, grid: Grid) -> None:
    model, x = denoiser(TABLES[schedule]), normal(4, 3)
    end, seen = their_ddpm(schedule, spacing, grid.steps, "fixed_small", draws(x, seed=3))
    # their variance at the clean end is 1e-20, not 0
    assert distance(solve(model, x, DDPM, grid, Keyed(3)).x, end) < 1e-9
    assert model.net.seen == seen


@on_both_tables
@pytest.mark.parametrize(("spacing", "grid"), [*LEADING, ("linspace", Linspace(10))], ids=str)
def test_ddpm_with_the_larger_variance(schedule: str, spacing: str, grid: Grid) -> None:
    x = normal(4, 3)
    end, _ = their_ddpm(schedule, spacing, grid.steps, "fixed_large", draws(x, seed=3))
    assert distance(solve(denoiser(TABLES[schedule]), x, DDPM_BETA, grid, Keyed(3)).x, end) < EXACT


def test_their_ddpm_ends_noisy_where_the_last_index_is_not_0() -> None:
    """With the larger variance and trailing steps it adds noise to the clean end; we do not."""
    grid, x = Trailing(12), normal(4, 3)
    noise = [*draws(x, seed=3)][:12]
    ours = solve(denoiser(TABLES["linear"]), x, DDPM_BETA, grid, Keyed(3)).x
    end, seen = their_ddpm("linear", "trailing", 12, "fixed_large", iter(noise))
    beta = 1 - TABLES["linear"].alpha((seen[-1] + 1) / 1000) ** 2
    assert distance(ours + beta.sqrt() * noise[-1], end) < EXACT


@on_both_tables
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("steps", [2, 9, 25])
def test_dpm_solver_plus_plus_2m(schedule: str, spacing: str, steps: int) -> None:
    """Of order 2, in the form called midpoint, to sigma = 0; its states are float32."""
    model, x = denoiser(TABLES[schedule]), normal(4, 3)
    scheduler = scheduler_of(diffusers.DPMSolverMultistepScheduler, schedule, steps, timestep_spacing=spacing)
    end, seen = theirs(scheduler, x.float())
    assert distance(solve(model, x, DPMpp2M, nodes(scheduler)).x, end) < TOLERANCE
    assert model.net.seen == seen


@on_both_tables
@pytest.mark.parametrize(("order", "sampler"), [(1, DDPM), (2, Method(ReverseSDE(), DPMppMultistep(2)))])
def test_stochastic_dpm_solver_plus_plus(schedule: str, order: int, sampler: Method) -> None:
    """Of order 1 it is DDPM."""
    x, options = normal(4, 3), {"algorithm_type": "sde-dpmsolver++", "solver_order": order}
    scheduler = scheduler_of(diffusers.DPMSolverMultistepScheduler, schedule, 12, **options)
    end, _ = theirs(scheduler, x.float(), draws(x, seed=3))
    ours = solve(denoiser(TABLES[schedule]), x, sampler, nodes(scheduler), Keyed(3)).x
    assert distance(ours, end) < TOLERANCE


# In sigmas ------------------------------------------------------------------------------------------------------------

INTEGERS = [("leading", 50), ("trailing", 12), ("linspace", 10), ("linspace", 28)]  # with these, k is one


@on_both_tables
@pytest.mark.parametrize(("spacing", "steps"), INTEGERS)
def test_euler_in_sigmas_is_ddim(schedule: str, spacing: str, steps: int) -> None:
    model, x = denoiser(TABLES[schedule]), normal(4, 3)
    scheduler = scheduler_of(diffusers.EulerDiscreteScheduler, schedule, steps, timestep_spacing=spacing)
    end, seen = theirs(scheduler, x * (1 + scheduler.sigmas[0].double() ** 2).sqrt())
    assert distance(solve(model, x, DDIM, nodes(scheduler)).x, end) < TOLERANCE
    assert model.net.seen == seen


class InSigmas:
    """A model of a variance-preserving table, seen on EDM's process: z = x / alpha at the noise level sigma / alpha."""

    def __init__(self, model: Denoiser, sigmas: Tensor) -> None:
        self.model = model
        self.process = EDM(t_min=float(sigmas[-1]), t_max=float(sigmas[0]))

    def __call__(self, z: Tensor, sigma: Tensor) -> Prediction:
        x = z / (1 + sigma**2).sqrt()
        t = self.model.process.time(-sigma.log())
        return Prediction(self.process, z, sigma, self.model(x, t).eps, Eps())


@on_both_tables
@pytest.mark.parametrize(("spacing", "steps"), INTEGERS)
@pytest.mark.parametrize("sampler", [EULER, HEUN], ids=["euler", "heun"])
def test_euler_and_heun_in_sigmas(schedule: str, spacing: str, steps: int, sampler: Method) -> None:
    kind = diffusers.HeunDiscreteScheduler if sampler == HEUN else diffusers.EulerDiscreteScheduler
    table, scheduler = TABLES[schedule], scheduler_of(kind, schedule, steps, timestep_spacing=spacing)
    sigmas = torch.exp(-table.lam(nodes(scheduler)(table)[:-1]))
    model, z = InSigmas(denoiser(table), sigmas), sigmas[0] * normal(4, 3)
    end, seen = theirs(scheduler, z)
    run = solve(model, z, sampler, Times((*sigmas.tolist(), 0.0)))
    assert distance(run.x, end) < TOLERANCE
    assert run.nfe == len(seen)
    assert model.model.net.seen == pytest.approx(seen, abs=1e-6)


# The straight path ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 28])
def test_flow_matching(shift: float, steps: int) -> None:
    """From sigma = 1 by even steps to 0.001, shifted towards noise, and then to 0."""
    model = Denoiser(Net(), RectifiedFlow(t_min=0.0, t_max=1.0), predicts=Velocity(), clock=ByTime(1000))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    end, seen = theirs(scheduler, normal(4, 3))
    t = torch.linspace(scheduler.sigma_max, scheduler.sigma_min, steps, dtype=torch.float64)
    grid = Times((*(shift * t / (1 + (shift - 1) * t)).tolist(), 0.0))
    assert distance(solve(model, normal(4, 3), EULER, grid).x, end) < TOLERANCE
    assert model.net.seen == pytest.approx(seen, rel=1e-6)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_flow_matching_by_heun(shift: float, steps: int) -> None:
    """From sigma = 1 to 0.001 by Heun's steps, and then to 0 by an Euler step, which is the clean end's."""
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    end, seen = theirs(scheduler, normal(4, 3))
    t = torch.linspace(scheduler.sigma_max, scheduler.sigma_min, steps, dtype=torch.float64)
    times = (shift * t / (1 + (shift - 1) * t)).tolist()
    process = RectifiedFlow(t_min=times[-1], t_max=1.0)
    model = Denoiser(Net(), process, predicts=Velocity(), clock=ByTime(1000))
    run = solve(model, normal(4, 3), HEUN, Times((*times, 0.0)))
    assert distance(run.x, end) < TOLERANCE
    assert model.net.seen == pytest.approx(seen, rel=1e-6)
    assert run.nfe == 2 * steps - 1
