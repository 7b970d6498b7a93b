"""Several models asked at once: those of one network in one batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdekit.denoiser import Denoiser, Given
from sdekit.prediction import Model, Prediction

Held = TypeVar("Held")


def together(models: Sequence[Model], x: Tensor, t: Tensor) -> list[Prediction]:
    """Return what each of the models predicts at the states `x`, shape (B, ...), and the checked time `t`.

    Models that are one `Denoiser` under several conditions (`model.given(...)`, or the model itself without one) are
    evaluated in one batch of the conditions one after another, if these can be stacked: every one a tensor of shape
    (B, ...) for each model. A missing `label` is filled with the network's `classes`, which stands for none.
    """
    answers: dict[int, Prediction] = {}
    by_network: dict[int, list[Model]] = {}
    for model in models:
        by_network.setdefault(id(_denoiser(model) or model), []).append(model)
    for members in by_network.values():
        denoiser = _denoiser(members[0])
        stacked = _stacked(denoiser, members, len(x)) if denoiser and len(members) > 1 else None
        if denoiser is None or stacked is None:
            answers.update({id(model): model(x, t) for model in members})
            continue
        count = len(members)
        times = t.repeat(count) if t.ndim else t
        both = denoiser(torch.cat([x] * count), times, **stacked)
        answers.update({id(model): _part(both, i, len(x)) for i, model in enumerate(members)})
    return [answers[id(model)] for model in models]


def selected(held: Held, which: Tensor) -> Held:
    """Return a model or a function for some samples of a batch, `which` being their numbers.

    One with a method `select(which)` is asked for it; of `Denoiser.given` the condition is cut; any other is the same
    for all samples.
    """
    if hasattr(held, "select"):
        chosen: Held = held.select(which)
        return chosen
    if isinstance(held, Given):
        cut = {k: v[which.to(v.device)] for k, v in held.condition.items() if isinstance(v, Tensor) and v.ndim}
        return type(held)(held.model, held.condition | cut)
    return held


def _denoiser(model: Any) -> Denoiser | None:
    """Return the denoiser that answers for a model, itself or the one that is under a condition."""
    inner = model.model if type(model) is Given else model
    return inner if isinstance(inner, Denoiser) else None


def _stacked(denoiser: Denoiser, members: Sequence[Model], batch: int) -> dict[str, Tensor] | None:
    """Return the conditions of all members, one after another, or None if they do not stack."""
    conditions = [member.condition if isinstance(member, Given) else {} for member in members]
    stacked = {}
    for name in dict.fromkeys(name for condition in conditions for name in condition):
        parts = [condition.get(name) for condition in conditions]
        classes = getattr(denoiser.net, "classes", None)
        if name == "label" and isinstance(classes, int):
            like = next((part for part in parts if isinstance(part, Tensor)), None)
            parts = [torch.full_like(like, classes) if part is None and like is not None else part for part in parts]
        kinds = {
            (p.shape, p.dtype, p.device) if isinstance(p, Tensor) and p.ndim and len(p) == batch else None
            for p in parts
        }
        if len(kinds) > 1 or None in kinds:
            return None
        stacked[name] = torch.cat(parts)  # type: ignore[arg-type]
    return stacked


def _part(whole: Prediction, i: int, batch: int) -> Prediction:
    """Return the i-th of the batches that a prediction was made for."""
    return mapped(whole, lambda part: part[i * batch : (i + 1) * batch] if part.ndim else part)


def mapped(prediction: Prediction, f: Callable[[Tensor], Tensor]) -> Prediction:
    """Return a prediction with `f` applied to its tensors."""
    parts = {field.name: getattr(prediction, field.name) for field in dataclasses.fields(prediction)}
    changed: dict[str, Any] = {name: f(part) for name, part in parts.items() if isinstance(part, Tensor)}
    return dataclasses.replace(prediction, **changed)
