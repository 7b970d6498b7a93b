"""How well a model does on data it is not trained on: its loss by level of noise, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sdekit.training.batches import key, rows_of, unpack
from sdekit.training.loss import Loss
from sdekit.training.objective import Criterion, Objective


class Level(NamedTuple):
    """The loss of a range of times.

    Attributes:
        low, high: the least and the largest time.
        loss: the mean loss of the samples at these times.
        error: its standard error.
        samples: the number of samples.
    """

    low: float
    high: float
    loss: float
    error: float
    samples: int


class Validation:
    """The loss on held-out data, at the same times and with the same noise whenever it is asked for:

        validation = Validation((images, labels), objective)
        for level in validation(trainer.average): print(level)

    Every sample gets `repeats` times from the objective's law (which has learned nothing, if it is one that learns),
    and all of them, sorted by time, are cut into `levels` ranges of as many samples each. Conditions are left out as
    the objective does. The model is evaluated without dropout, and torch's global generators are left alone.

    Args:
        data: a batch as a trainer takes it: x0, (x0, labels), or (x0, a dictionary for the network).
        objective: the loss.
        levels: number of ranges of time.
        repeats: how many times and noises every sample gets.
        batch: number of samples the model is asked about at once.
        seed: any whole number.

    Raises:
        ValueError: levels, repeats or batch are not positive, or there are fewer than two samples for a level.
    """

    def __init__(
        self,
        data: Any,
        objective: Criterion = Objective(),
        levels: int = 8,
        repeats: int = 1,
        batch: int = 512,
        seed: int = 0,
    ) -> None:
        self.data, self.objective = data, objective
        self.levels, self.repeats, self.batch, self.seed = levels, repeats, batch, seed
        count = len(unpack(data, torch.device("cpu"))[0]) * repeats
        if min(levels, repeats, batch) < 1 or count < 2 * levels:
            raise ValueError(
                "levels, repeats and batch must be positive, and every level needs 2 samples for a standard error; got "
                f"{levels=}, {repeats=}, {batch=} and {count} samples. Take fewer levels, or repeat the samples."
            )

    def __call__(self, model: Any) -> list[Level]:
        """Return the loss of a model, a `Denoiser` or another that the objective can judge, level by level."""
        with evaluating(model):
            t, losses = self._losses(model)
        order = t.argsort()
        parts = zip(t[order].tensor_split(self.levels), losses[order].tensor_split(self.levels), strict=True)
        return [_level(t, part) for t, part in parts]

    def mean(self, model: Any) -> Level:
        """Return the loss over all times. Its error is somewhat too large, for the times are spread evenly."""
        with evaluating(model):
            return _level(*self._losses(model))

    @torch.no_grad()
    def _losses(self, model: Any) -> tuple[Tensor, Tensor]:
        """Return the times and losses of all samples, in float64 on the CPU."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        x0, condition = unpack(self.data, device)
        loss = Loss(model, self.objective)
        times, losses = [], []
        for repeat in range(self.repeats):
            generator = torch.Generator(device).manual_seed(key(self.seed, "validation", repeat))
            noising = loss.draw(x0, generator)
            times.append(noising.t)
            for first in range(0, len(x0), self.batch):
                rows = slice(first, min(first + self.batch, len(x0)))
                losses.append(loss(x0[rows], noising.rows(rows), **rows_of(condition, rows, len(x0))))
        return torch.cat(times).double().cpu(), torch.cat(losses).double().cpu()


def _level(t: Tensor, losses: Tensor) -> Level:
    error = float(losses.std()) / math.sqrt(len(losses))
    return Level(float(t.min()), float(t.max()), float(losses.mean()), error, len(losses))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Have a model and its parts evaluate, and train afterwards where they did; leave the global generator alone."""
    training = [module for module in model.modules() if module.training]
    with torch.random.fork_rng(devices=[]):
        model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True
