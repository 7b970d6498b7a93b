"""The samples of a batch taken apart: the model of some of them, and whether each is finite."""

from __future__ import annotations

from torch import Tensor

from sdekit.denoiser import Given
from sdekit.prediction import Model


def of_samples(model: Model, which: Tensor, count: int) -> Model:
    """Return the model of the samples `which` out of `count`, whose conditions it may hold.

    A model with a method `select(which)` is asked for it. The condition of `Denoiser.given` is cut where it is a tensor
    with a row for each sample. Any other model is taken to be the same for all.
    """
    if len(which) == count:
        return model
    if hasattr(model, "select"):
        chosen: Model = model.select(which)
        return chosen
    if isinstance(model, Given):
        each = {k: v for k, v in model.condition.items() if isinstance(v, Tensor) and v.ndim and len(v) == count}
        return Given(model.model, model.condition | {k: v[which.to(v.device)] for k, v in each.items()})
    return model


def finite(x: Tensor) -> Tensor:
    """Return whether each sample of `x` is finite, shape (B,), on the CPU."""
    return x.detach().reshape(len(x), -1).isfinite().all(1).cpu()
