"""What of a trainer goes to a file, and how it comes back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdekit.training.checkpoint import Sections, describe

if TYPE_CHECKING:
    from sdekit.training.trainer import Trainer


def stored(trainer: Trainer) -> tuple[dict[str, Any], Sections]:
    """Return a trainer as JSON types and tensors: weights, their average, AdamW's moments, what the law has learned."""
    sections: Sections = {"model": trainer.model.state_dict(), "law": learned(trainer.loss)}
    if trainer.recipe.ema:
        sections["average"] = trainer.average.state_dict()
    for name, p in trainer.trained.items():
        for part, tensor in trainer.optimizer.state[p].items():
            sections.setdefault(f"adamw.{part}", {})[name] = tensor
    whole = {section: {name: _whole(t) for name, t in named.items()} for section, named in sections.items()}
    return {**describe(trainer.model), "training": {"step": trainer.step, **settings(trainer)}}, whole


def settings(trainer: Trainer) -> dict[str, Any]:
    """Return what makes a training the one it is, beside its model and its data, as JSON types."""
    return {
        "seed": trainer.seed,
        "recipe": trainer.recipe.to_json(),
        "objective": trainer.objective.to_json(),
        "trained": list(trainer.trained),
    }


def training(config: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the part of a configuration that says how far a training went."""
    if "training" not in config:
        raise ValueError(f"{path} must be saved by a trainer to go on training; it holds a model. Load it as one.")
    found, kinds = config["training"], {"step": int, "seed": int, "recipe": dict, "objective": dict, "trained": list}
    if not isinstance(found, dict) or not all(isinstance(found.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} must say how far a training went, by {', '.join(kinds)}; it says {found}.")
    return found


def check(trainer: Trainer, config: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise ValueError unless a file holds the training that `trainer` would be, but for its number of steps."""
    held, asked = dict(training(config, path)), settings(trainer)
    held["recipe"] = {**held["recipe"], "steps": trainer.recipe.steps}
    for name, value in describe(trainer.model).items():
        if name not in ("format", "sdekit"):
            held[name], asked[name] = config.get(name), value
    for name, value in asked.items():
        if held[name] != value:
            raise ValueError(
                f"{path} must hold the training asked for to go on with it; its {name} is {held[name]}, asked for is "
                f"{value}. Build the trainer alike, or train the stored model anew: Trainer(load(path), ...)."
            )


def put(trainer: Trainer, sections: Sections) -> None:
    """Give a trainer, which `check` found alike, the state that is in a file.

    Raises:
        ValueError: the file does not hold the tensors of such a trainer.
    """
    _fill("model", trainer.model.state_dict(), sections)
    _fill("law", learned(trainer.loss), sections)
    if trainer.recipe.ema:
        _fill("average", trainer.average.state_dict(), sections)
    parts = {name.removeprefix("adamw."): named for name, named in sections.items() if name.startswith("adamw.")}
    state: dict[int, dict[str, Tensor]] = {}
    for i, (name, p) in enumerate(trainer.trained.items()):
        state[i] = {part: _like(p, named[name]) for part, named in parts.items() if name in named}
        if any(t.shape not in (p.shape, ()) for t in state[i].values()):
            raise ValueError(f"AdamW's moments of {name} must have the shape {tuple(p.shape)}; the stored ones do not.")
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": {i: s for i, s in state.items() if s}, "param_groups": groups})


def learned(loss: nn.Module) -> dict[str, Tensor]:
    """Return what a loss remembers beside its model."""
    return {name: t for name, t in loss.state_dict().items() if not name.startswith("model.")}


@torch.no_grad()
def _fill(section: str, own: Mapping[str, Tensor], sections: Sections) -> None:
    stored = sections.get(section, {})
    wrong = sorted(own.keys() ^ stored.keys()) or [name for name, t in own.items() if t.shape != stored[name].shape]
    if wrong:
        raise ValueError(
            f"The stored {section} must have the tensors of the trainer's; {', '.join(wrong[:4])} differ. Build the "
            "trainer as the stored one was."
        )
    for name, tensor in own.items():
        tensor.copy_(_like(tensor, stored[name]))


def _whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor of which every rank may have a part."""
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def _like(own: Any, value: Tensor) -> Tensor:
    """Return a whole tensor, on the device of `own`, and in parts if that is and has its shape."""
    if hasattr(own, "placements") and own.shape == value.shape:
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)
    return value
