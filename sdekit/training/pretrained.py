"""Models as folders of two files, as other libraries lay them out: weights, and a configuration for people."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import nn

from sdekit.denoiser import Denoiser
from sdekit.training.checkpoint import BuildNet, configuration, contents, describe, read, rebuild, write

WEIGHTS, CONFIG = "model.safetensors", "config.json"

M = TypeVar("M", bound=nn.Module)


def save_pretrained(folder: str | os.PathLike[str], model: nn.Module) -> None:
    """Store a model as `model.safetensors`, with the names of its parameters, and `config.json`, for people and tools.

    The first file holds the configuration too, so a save that is cut short leaves the old model or the new one.

    Raises:
        ValueError, TypeError, OSError: as `sdekit.training.save`.
    """
    write(Path(folder) / WEIGHTS, describe(model), {"": model.state_dict()}, beside=CONFIG)


@overload
def from_pretrained(folder: str | os.PathLike[str], net: BuildNet | None = None) -> Denoiser: ...
@overload
def from_pretrained(folder: str | os.PathLike[str], net: BuildNet | None = None, *, kind: type[M]) -> M: ...
def from_pretrained(folder: str | os.PathLike[str], net: BuildNet | None = None, *, kind: Any = Denoiser) -> Any:
    """Return the model in a folder, on the CPU, in the stored dtypes.

    Where the weights were written by another tool, which leaves out what sdekit writes into the head of the file,
    `config.json` says what they belong to.

    Args:
        folder: where it was saved.
        net: the network's class, or a function that builds it from its config; by default a class of `sdekit.nets`.
        kind: the model's class, if it is no `Denoiser`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, the network's class is unknown, or its weights do not fit.
    """
    weights, beside = Path(folder) / WEIGHTS, Path(folder) / CONFIG
    if not weights.exists():
        raise FileNotFoundError(f"A stored model must be a folder with {WEIGHTS} in it; {weights} is missing.")
    header, tensors = contents(weights)
    if "sdekit" not in header:
        return rebuild(configuration(beside, beside.read_text(encoding="utf-8")), tensors, net, kind).eval()
    config, sections = read(weights)
    if beside.exists() and not _equal(beside, config):
        warnings.warn(
            f"{beside} is not what {WEIGHTS} was saved with, and the latter is what counts. To change a model, build "
            "it in code and save it again.",
            stacklevel=2,
        )
    return rebuild(config, sections["model"], net, kind).eval()


def _equal(path: Path, config: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(path.read_text(encoding="utf-8")) == config)
    except (ValueError, RecursionError):
        return False
