"""The cells of a study: what each of them draws, and what determines it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sdekit.metrics.frechet import evaluating
from sdekit.noise import Keyed
from sdekit.prediction import Model
from sdekit.sample import solve, start
from sdekit.study.rows import REAL
from sdekit.study.sampler import Sampler


class Drawn(NamedTuple):
    """The samples of a cell, (n, *shape), and for generated ones the network calls and steps behind each of them."""

    x: Tensor
    nfe: int | None = None
    steps: int | None = None


@dataclass(frozen=True, eq=False)
class Generated:
    """A batch of the model's samples: by one sampler, for one budget of network calls, from the noise of one seed."""

    method: str
    sampler: Sampler
    budget: int
    seed: int
    shape: tuple[int, ...]

    def content(self, model: str) -> tuple[Any, ...]:
        """Return what determines sample i, the model by its fingerprint."""
        return self.sampler, self.budget, self.seed, self.shape[1:], model

    def draw(self, model: Model, n: int, batch: int) -> Drawn:
        """Draw the first n samples, at most `batch` at a time; sample i is the same in any batch."""
        sampler = self.sampler.within(self.budget, model)
        steps = len(sampler.grid(model.process)) - 1
        parts = []
        with torch.no_grad(), evaluating(model):
            for first in range(0, n, batch):
                noise = Keyed(self.seed, first)
                x = start(model, (min(batch, n - first), *self.shape[1:]), sampler.grid, noise)
                x, _, nfe = solve(model, x, sampler.method, sampler.grid, noise)
                parts.append(x)
        return Drawn(torch.cat(parts), nfe, steps)


@dataclass(frozen=True, eq=False)
class Real:
    """A batch of real samples in place of the model's: the floor."""

    held_out: Tensor
    seed: int
    method: str = REAL
    sampler: None = None
    budget: None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all that there is."""
        return tuple(self.held_out.shape)

    def content(self, model: str) -> tuple[Any, ...]:
        """Return what determines sample i; the model does not."""
        return self.held_out, self.seed

    def draw(self, model: Model, n: int, batch: int) -> Drawn:
        """Take n of the held-out samples, by lot."""
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        lot = torch.randperm(len(self.held_out), generator=generator, device="cpu")[:n]
        return Drawn(self.held_out[lot.to(self.held_out.device)])


Cell: TypeAlias = Generated | Real
"""What one row of a study's file is about."""
