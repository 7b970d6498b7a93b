"""What a bare call of a model costs: what the time that a sampler takes is held against."""

from __future__ import annotations

import time

import torch

from sdekit.grid import Times
from sdekit.metrics.features import evaluating
from sdekit.noise import Keyed
from sdekit.prediction import Model
from sdekit.sample import start
from sdekit.study.cells import part_of

_TRIES = 3


def call_seconds(model: Model, shape: tuple[int, ...]) -> float:
    """Return the seconds of one network evaluation of a batch, the least of three tries.

    Args:
        model: the model; one whose answers take several calls is timed whole, and the time divided.
        shape: of the batch, (b, *shape).
    """
    ends, seconds = (model.process.t_max, model.process.t_min), []
    with torch.no_grad(), evaluating(model):
        part = part_of(model, 0, shape[0])
        x = start(part, shape, Times(ends), Keyed())
        for _ in range(_TRIES):
            begun = time.perf_counter()
            part(x, sum(ends) / 2)
            seconds.append(time.perf_counter() - begun)
    return min(seconds) / int(getattr(model, "calls", 1))
