"""The schedulers of diffusers, run on exact models: on grids given to them, and on their own.

They step a variance preserving state, x = z / sqrt(1 + r^2) with z = x / alpha and r = sigma / alpha, or z itself; each
process is carried over, so the network sees the exact noise level and no rounded time step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

Call = Callable[[Tensor, float], Tensor]
OWN = ("karras", "exponential")
"""Rules of diffusers for the noise levels; its samplers then end at sigma = 0."""


def made(kind: str, steps: int, **options: Any) -> Any:
    """Return a scheduler of diffusers, by the name of its class, set to a number of steps."""
    scheduler = getattr(diffusers, kind)(**options)
    scheduler.set_timesteps(steps)
    return scheduler


@dataclass(frozen=True)
class Scheduler:
    """A scheduler and how it is driven.

    Args:
        kind: the class in diffusers, by name.
        options: its arguments.
        preserving: whether its state is z / sqrt(1 + r^2), and not z.
    """

    kind: str
    options: tuple[tuple[str, Any], ...] = ()
    preserving: bool = True

    def __call__(self, call: Call, z: Tensor, r: list[float]) -> Tensor:
        """Return z at the end of the grid `r`, one network call a step."""
        scheduler = made(self.kind, len(r) - 1, **dict(self.options))
        scheduler.sigmas = torch.tensor(r, dtype=torch.float64)
        scheduler.timesteps = torch.arange(len(r) - 1, 0, -1)
        scheduler.set_begin_index(0)
        for t, level in zip(scheduler.timesteps, r, strict=False):
            scale = math.hypot(1, level) if self.preserving else 1.0
            eps = (z - call(z, level)) / level
            z = scheduler.step(eps, t, z / scale).prev_sample
            z = z * (math.hypot(1, r[len(r) - int(t)]) if self.preserving else 1.0)
        return z


def heun(call: Call, z: Tensor, r: list[float]) -> Tensor:
    """Run diffusers' Heun, two calls a step but for the last, which is Euler's: 2 len(r) - 3 in all."""
    scheduler = made("HeunDiscreteScheduler", len(r) - 1)
    levels = [r[0], *(q for q in r[1:-1] for _ in range(2)), r[-1]]
    scheduler.sigmas, scheduler.timesteps = torch.tensor([*levels], dtype=torch.float64), torch.arange(len(levels) - 1)
    scheduler.set_begin_index(0)
    for k, level in enumerate(levels[:-1]):
        z = scheduler.step((z - call(z, level)) / level, torch.tensor(k), z).prev_sample
    return z


def by_table(kind: str, call: Call, z: Tensor, r: list[float]) -> Tensor:
    """Run a scheduler that looks alpha up, DDIM or PNDM, on a table that holds the grid and nothing else."""
    steps = len(r) - 1
    options = {"skip_prk_steps": True} if kind == "PNDMScheduler" else {"clip_sample": False}
    scheduler = made(kind, steps, num_train_timesteps=steps, **options)
    scheduler.alphas_cumprod = 1 / (1 + torch.tensor(r[::-1], dtype=torch.float64) ** 2)
    order = list(range(steps, 0, -1))
    if kind == "PNDMScheduler" and steps > 1:
        order = [order[0], order[1], *order[1:]]
    x = z / math.hypot(1, r[0])
    for t in order:
        level = r[steps - t]
        state = x * math.hypot(1, level)
        x = scheduler.step((state - call(state, level)) / level, t, x).prev_sample
    return x * math.hypot(1, r[-1])


def ipndm(call: Call, z: Tensor, r: list[float]) -> Tensor:
    """Run diffusers' IPNDM, which can be given a grid by its tables of alpha and sigma alone."""
    scheduler = made("IPNDMScheduler", len(r) - 1)
    levels = torch.tensor(r, dtype=torch.float64)
    scheduler.alphas, scheduler.betas = (
        1 / torch.hypot(torch.ones(()), levels),
        levels / torch.hypot(torch.ones(()), levels),
    )
    scheduler.timesteps = torch.arange(len(r) - 1)
    scheduler.set_begin_index(0)
    x = z / math.hypot(1, r[0])
    for k, level in enumerate(r[:-1]):
        state = x * math.hypot(1, level)
        eps = (state - call(state, level)) / level
        output = (eps - x * float(scheduler.betas[k])) / float(scheduler.alphas[k])
        x = scheduler.step(output, scheduler.timesteps[k], x).prev_sample
    return x * math.hypot(1, r[-1])


def own_levels(rule: str, first: float, last: float, calls: int) -> list[float]:
    """Return the noise levels that diffusers would choose between two ends, and then 0."""
    scheduler = made("DPMSolverMultistepScheduler", calls)
    ends = np.array([last, first])
    if rule == "karras":
        chosen = scheduler._convert_to_karras(in_sigmas=ends, num_inference_steps=calls)
    elif rule == "exponential":
        chosen = scheduler._convert_to_exponential(in_sigmas=ends, num_inference_steps=calls)
    else:
        raise ValueError(f"rule must be karras or exponential; got {rule!r}.")
    return [*(float(q) for q in chosen), 0.0]


MULTISTEP: dict[str, Scheduler] = {
    f"{name}-{order}": Scheduler(kind, (("solver_order", order), *options))
    for name, kind, options in (
        ("UniPC", "UniPCMultistepScheduler", (("final_sigmas_type", "sigma_min"),)),
        ("DPMSolverMultistep", "DPMSolverMultistepScheduler", (("final_sigmas_type", "sigma_min"),)),
        ("DEIS", "DEISMultistepScheduler", ()),
    )
    for order in (2, 3)
}
SAMPLERS: dict[str, Callable[[Call, Tensor, list[float]], Tensor]] = {
    **MULTISTEP,
    "LMS": Scheduler("LMSDiscreteScheduler", preserving=False),
    "IPNDM": ipndm,
    "DDIM": partial(by_table, "DDIMScheduler"),
    "PNDM": partial(by_table, "PNDMScheduler"),
    "Heun": heun,
}


def steps_within(name: str, calls: int) -> int:
    """Return how many steps a budget of network calls pays for; 0 if none."""
    if name == "Heun":
        return (calls + 1) // 2
    return calls - 1 if name == "PNDM" else calls
