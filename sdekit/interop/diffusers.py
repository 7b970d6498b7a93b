"""The schedulers of diffusers as contenders: their steps, their times, their defaults, on a model of sdekit."""

from __future__ import annotations

import importlib
import inspect
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdekit._value import Value, suggest
from sdekit.interop.driving import SCHEDULERS, Drive, drive, library
from sdekit.noise import Keyed
from sdekit.noise.hashing import word
from sdekit.prediction import Model, calls
from sdekit.process import Process
from sdekit.study import BudgetError, Drawn

NOT_ASKED = {"clip_sample": False, "thresholding": False}
"""What changes samples behind one's back is off, unless the options say otherwise."""


@dataclass(frozen=True)
class Diffusers(Value):
    """A scheduler of diffusers, driven as its pipelines drive it, with its own defaults and times.

    Clipping and thresholding are off unless asked for. It starts from the noise that all methods of a seed share. Its
    own noise comes from a generator for each sample, so that sample i is the same in every batch; a Brownian path it
    cannot share. Its table of alphas is given in float64, which takes rounding off it. The network is asked for v,
    which is as good at both ends. Each of its timesteps is one network call. Vectors, (n, d), are given to
    it as (n, d, 1), which its thresholding takes.

    Args:
        scheduler: a name of `SCHEDULERS`, such as "DPMSolverMultistep".
        options: arguments of its class or of its `step`, a mapping or pairs: {"solver_order": 3}, {"eta": 1.0}.
        steps: the number that it is set to; in a study it follows from the budget.

    On a `RectifiedFlow`, those that know `use_flow_sigmas` are given it.

    Raises:
        ValueError: there is no such scheduler here; when it is run: an option is unknown, or the process not its kind.

    Reference: https://github.com/huggingface/diffusers, src/diffusers/schedulers.
    """

    scheduler: str
    options: Mapping[str, Any] | tuple[tuple[str, Any], ...] = ()
    steps: int = 0

    def __post_init__(self) -> None:
        if self.scheduler not in SCHEDULERS:
            raise ValueError(
                f"There is no scheduler called {self.scheduler!r} here. {suggest(self.scheduler, list(SCHEDULERS))}"
            )
        object.__setattr__(self, "options", tuple(sorted(dict(self.options).items())))

    def within(self, budget: int, model: Model) -> Diffusers:
        """Return it set to the most steps whose timesteps are at most `budget` network calls.

        Raises:
            BudgetError: there are none.
            ValueError: an option is unknown, or the process not its kind.
            ImportError: diffusers is missing.
        """
        with _quietly():
            driven, _ = self._made(model.process)
            for steps in range(budget, 0, -1):
                try:
                    driven.scheduler.set_timesteps(steps)
                except (ValueError, IndexError, RuntimeError):  # fewer steps than its order, say
                    continue
                times = driven.times()  # not numbers for too few steps, of some
                if times and all(t.isfinite() for t in times) and sum(calls(model, t) for t in times) <= budget:
                    return replace(self, steps=steps)
        raise BudgetError(f"A budget must pay for a step of {self.scheduler}; {budget} does not. Raise the budget.")

    def run(self, model: Model, like: Tensor, seed: int, first: int) -> Drawn:
        """Draw the samples from number `first` of the seed on, as many and of the shape of `like`."""
        seeds = [word((seed, first + i)) & (2**63 - 1) for i in range(len(like))]
        with _quietly():
            driven, of_step = self._made(model.process, seeds)
            scheduler = driven.scheduler
            scheduler.set_timesteps(self.steps)
        if "generator" in inspect.signature(scheduler.step).parameters:
            of_step["generator"] = [torch.Generator(device="cpu").manual_seed(s) for s in seeds]
        x = Keyed(seed, first).start(like) * float(getattr(scheduler, "init_noise_sigma", 1.0))
        spent, given = 0, (*x.shape, 1, 1)[: max(3, x.ndim)]
        for k, t in zip(scheduler.timesteps, driven.times(), strict=True):
            spent += calls(model, t)
            scaled = scheduler.scale_model_input(x, k) if hasattr(scheduler, "scale_model_input") else x
            output = driven.output(model, x, scaled, t)
            stepped = scheduler.step(output.reshape(given), k, x.reshape(given), **of_step).prev_sample
            x = stepped.reshape_as(x).to(like.dtype)
        return Drawn(x, spent, self.steps)

    def describe(self) -> dict[str, Any]:
        """Return its JSON, and the version of the library."""
        return {**self.to_json(), "library": library("diffusers")}

    def _made(self, process: Process, seeds: list[int] | None = None) -> tuple[Drive, dict[str, Any]]:
        """Return the scheduler with how it is driven, and the options of its steps."""
        kind = getattr(_library(), SCHEDULERS[self.scheduler])
        known, own = inspect.signature(kind.__init__).parameters, inspect.signature(kind.step).parameters
        options: dict[str, Any] = dict(self.options)
        for name in options:
            if name not in {*known, *own}:
                raise ValueError(f"{self.scheduler} has no option {name!r}. {suggest(name, [*known, *own])}")
        given: dict[str, Any] = {k: v for k, v in NOT_ASKED.items() if k in known}
        if seeds is not None and "noise_sampler_seed" in known:
            given["noise_sampler_seed"] = seeds
        given |= {k: v for k, v in options.items() if k in known}
        return drive(self.scheduler, kind, process, given), {k: v for k, v in options.items() if k not in known}


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what the library logs of a number of steps that it makes exceptions for."""
    log = logging.getLogger("diffusers")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _library() -> Any:
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise ImportError('its schedulers need diffusers: pip install "sdekit[bench]"') from error
