"""The cells of a study: what each of them draws, and what determines it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from sdekit.grid import Times
from sdekit.guidance.together import selected
from sdekit.metrics.features import evaluating
from sdekit.noise import Keyed
from sdekit.prediction import Model
from sdekit.sample import start
from sdekit.study.contender import Contender, Counting, Drawn
from sdekit.study.planned import Planned, Tuned
from sdekit.study.rows import REAL
from sdekit.study.sampler import Sampler

Fitting: TypeAlias = Callable[[Tuned, Callable[[], Planned]], Planned]
"""Makes a fitted plan, or finds it where it has been made before."""


class Generated(NamedTuple):
    """A batch of a model's samples: by one contender, for one budget of network calls, from the noise of one seed.

    Args:
        method: the contender's label.
        contender: what draws.
        budget: the network calls it may make.
        seed: of the noise.
        shape: of the batch asked for, (n, *shape).
        model: the model's label.
    """

    method: str
    contender: Contender
    budget: int
    seed: int
    shape: tuple[int, ...]
    model: str

    def content(self, model: str) -> tuple[Any, ...]:
        """Return what determines sample i, the model by its fingerprint."""
        return self.contender, self.budget, self.seed, self.shape[1:], model

    def ready(self, model: Model, fitting: Fitting) -> Contender:
        """Return the contender as it is run: within the budget and, where it is to be, fitted to the model.

        Raises:
            ValueError: the budget does not suffice.
        """
        with torch.no_grad(), evaluating(model):
            contender = self.contender.within(self.budget, model)
            if not isinstance(contender, Tuned):
                return contender
            tuned = contender
            return fitting(tuned, lambda: tuned.fit(model, self._like(model)))

    def draw(self, contender: Contender, model: Model, n: int, batch: int) -> Iterator[Drawn]:
        """Draw the first n samples, at most `batch` at a time; sample i is the same in any batch.

        Raises:
            ValueError: the samples cost more than the budget, are of another shape, or the model has no condition for
                each of them.
            FloatingPointError: a sample is not finite.
        """
        with torch.no_grad(), evaluating(model):
            like = self._like(model)
            for first in range(0, n, batch):
                count = min(batch, n - first)
                part, space = part_of(model, first, count), like.new_empty((count, *self.shape[1:]))
                yield self._checked(_counted(contender, part, space, self.seed, first), space, first)

    def _like(self, model: Model) -> Tensor:
        """Return a batch of one, where and how the model's samples are made."""
        times = Times((model.process.t_max, model.process.t_min))
        return start(model, (1, *self.shape[1:]), times, Keyed())

    def _checked(self, drawn: Drawn, like: Tensor, first: int) -> Drawn:
        if drawn.nfe > self.budget:
            raise ValueError(
                f"Samples must cost no more than the budget, {self.budget} network calls each; {self.method} made "
                f"{drawn.nfe}. Correct its `within`."
            )
        if drawn.x.shape != like.shape:
            raise ValueError(f"Samples must have the shape asked for, {tuple(like.shape)}; got {tuple(drawn.x.shape)}.")
        if not bool(drawn.x.isfinite().all()):
            bad = int((~drawn.x.isfinite().flatten(1).all(1)).nonzero()[0, 0])
            raise FloatingPointError(f"Samples must be finite; sample {first + bad} is not. Look at the contender.")
        return drawn


class Real(NamedTuple):
    """A batch of real samples in place of the model's: the floor.

    Args:
        shape: of all that are held out.
        seed: of the lot by which they are taken.
    """

    shape: tuple[int, ...]
    seed: int
    method: str = REAL
    contender: None = None
    budget: None = None
    model: None = None

    def lot(self, held_out: Tensor, n: int) -> Tensor:
        """Take n of the held-out samples, by lot."""
        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        lot = torch.randperm(len(held_out), generator=generator, device="cpu")[:n]
        return held_out[lot.to(held_out.device)]


Cell: TypeAlias = Generated | Real
"""What one draw of a study's file is about."""


def part_of(model: Model, first: int, count: int) -> Model:
    """Return the model of samples `first` and on, of which each may have a condition of its own."""
    try:
        return selected(model, torch.arange(first, first + count))
    except IndexError as error:
        raise ValueError(
            f"A model's condition must be given for the samples {first} to {first + count - 1}; it has "
            "fewer. Draw fewer samples, or repeat the condition."
        ) from error


def _counted(contender: Contender, model: Model, like: Tensor, seed: int, first: int) -> Drawn:
    """Run a contender; the calls of one that is not sdekit's are counted, in whatever batches it makes them."""
    if isinstance(contender, Sampler | Planned):
        return contender.run(model, like, seed, first)
    counting = Counting(model)
    found = contender.run(counting, like, seed, first)
    counted = counting.nfe(len(like)) or int(found.nfe)
    return Drawn(found.x, counted, getattr(found, "steps", None))
