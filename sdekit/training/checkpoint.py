"""Models on disk: one safetensors file that is whole or not there, and that nothing is executed to read.

The file holds the tensors and, in the JSON of its header, what they belong to: process, target, clock, the network's
class and its `config`. Being one file it is replaced by one atomic rename; at no moment do weights and configuration
disagree, and whenever the machine stops, the last good checkpoint is the one that is found. Beside `name.safetensors`
the same JSON is written to `name.safetensors.json`, for people: loading does not need it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

import sdekit.nets
from sdekit._value import suggest
from sdekit.denoiser import Clock, Denoiser
from sdekit.prediction import Target
from sdekit.process import Process

BuildNet: TypeAlias = Callable[..., nn.Module]
"""What rebuilds a network from its `config`, given as keyword arguments: its class, or a function."""

Sections: TypeAlias = dict[str, dict[str, Tensor]]
"""Tensors by section ("model", "average", ...) and name; in the file a tensor is called section/name."""

FORMAT = 1


def save(path: str | os.PathLike[str], model: Denoiser) -> None:
    """Store a model at `path`, which ends in .safetensors; what was there before is replaced at once or not at all.

    A network without a `config` (a dictionary of JSON types from which `type(net)(**net.config)` rebuilds it) is stored
    as well; to load it, say how it is built.

    Raises:
        ValueError: the path's ending, or weights that are not finite.
        TypeError: the network is not a module, or a value of the model or of `net.config` is not JSON.
        OSError: the file cannot be written; the old one is untouched.
    """
    write(path, describe(model), {"model": model.state_dict()})


def load(path: str | os.PathLike[str], net: BuildNet | None = None) -> Denoiser:
    """Return the stored model, on the CPU, in the stored dtypes; of a trainer's checkpoint, the averaged model.

    Args:
        path: where it was saved.
        net: the network's class, or a function that builds it from its config; by default a class of `sdekit.nets`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not a checkpoint, the network's class is unknown, or its weights do not fit.
    """
    config, sections = read(path)
    return rebuild(config, sections.get("average", sections["model"]), net).eval()


def describe(model: Denoiser) -> dict[str, Any]:
    """Return all of a model but its weights, as JSON types."""
    net = model.net
    if not isinstance(net, nn.Module):
        raise TypeError(f"Only a network that is an nn.Module has weights to store; got {net!r}. Wrap it in one.")
    return {
        "format": FORMAT,
        "sdekit": _version(),
        "net": {"class": type(net).__name__, "config": dict(getattr(net, "config", {}))},
        "process": model.process.to_json(),
        "predicts": model.predicts.to_json(),
        "clock": model.clock.to_json(),
    }


def rebuild(config: Mapping[str, Any], weights: Mapping[str, Tensor], net: BuildNet | None = None) -> Denoiser:
    """Return the model that `describe` described, with the weights given. The global generator is left as it was."""
    name, arguments = config["net"]["class"], config["net"]["config"]
    if net is None:
        known = {n: c for n, c in vars(sdekit.nets).items() if isinstance(c, type) and issubclass(c, nn.Module)}
        if name not in known:
            raise ValueError(
                f"The stored network must be of a known class; it is a {name!r}, which sdekit.nets does not have. "
                f"{suggest(name, list(known))} For a class of your own, pass net={name}."
            )
        net = known[name]
    with torch.random.fork_rng(devices=[]):  # a network draws its first weights, only to lose them
        model = Denoiser(
            net(**arguments),
            Process.from_json(config["process"]),
            predicts=Target.from_json(config["predicts"]),
            clock=Clock.from_json(config["clock"]),
        )
    _fill(model, weights)
    return model


def write(path: str | os.PathLike[str], config: Mapping[str, Any], sections: Sections) -> None:
    """Store a configuration and tensors, all or nothing."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"A checkpoint's name must end in .safetensors; got {path.name!r}. Rename it.")
    tensors = _storable({f"{section}/{name}": t for section, named in sections.items() for name, t in named.items()})
    text = json.dumps(config)
    content = safetensors.save(tensors, metadata={"sdekit": text, "sha256": _fingerprint(text, tensors)})
    _replace(path, content)
    _replace(path.with_name(path.name + ".json"), json.dumps(config, indent=2).encode())


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Sections]:
    """Return the configuration and the tensors at `path`, if they are what was written."""
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise ValueError(_damaged(path, f"it cannot be read ({error})")) from error
    text = header.get("sdekit")
    if text is None:
        raise ValueError(
            f"{path} must be a checkpoint written by sdekit; it holds tensors only. Build the model in code and load "
            "them with safetensors.torch.load_model."
        )
    if header.get("sha256") != _fingerprint(text, tensors):
        raise ValueError(_damaged(path, "its content is not what was written"))
    config = json.loads(text)
    if config["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by sdekit {config['sdekit']}, and this is {_version()}. Upgrade to load it."
        )
    sections: Sections = {}
    for name, tensor in tensors.items():
        section, _, rest = name.partition("/")
        sections.setdefault(section, {})[rest] = tensor
    return config, sections


def _version() -> str:
    return str(sys.modules["sdekit"].__version__)  # the package gathers all layers, so none can import it


def _damaged(path: Path, what: str) -> str:
    return f"{path} must be a whole checkpoint; {what}. Copy it again, or go back to an earlier one."


def _fill(model: Denoiser, weights: Mapping[str, Tensor]) -> None:
    """Copy the weights in, in the dtype they have; copying keeps parameters that are tied tied."""
    for name, own in (*model.named_parameters(), *model.named_buffers()):
        if name in weights:
            own.data = own.data.to(weights[name].dtype)
    try:
        model.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise ValueError(
            f"The weights must fit the network {type(model.net).__name__}; they do not: {error}"
        ) from error


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors on the CPU, contiguous, none sharing memory with another, all finite."""
    storable: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"A checkpoint must hold finite numbers; {name} does not, so nothing was written. Go back to the last "
                "checkpoint, with a lower learning rate or with gradients clipped."
            )
        own = tensor.detach().cpu().contiguous()
        storable[name] = own.clone() if own.untyped_storage().data_ptr() in owners else own
        owners.add(own.untyped_storage().data_ptr())
    return storable


def _fingerprint(text: str, tensors: Mapping[str, Tensor]) -> str:
    sha256 = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        sha256.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        sha256.update(t.reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def _replace(path: Path, content: bytes) -> None:
    """Put a file in the place of another: written beside it, flushed to the disk, renamed, and the rename flushed."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # its own name, should two processes save at once
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with open(fresh, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        _flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            fresh.unlink()
        if not isinstance(error, OSError):
            raise
        raise OSError(
            f"A checkpoint must be written whole; {path} could not be ({error}). What was there before is untouched. "
            "Free some space, or save elsewhere."
        ) from error


def _sweep(path: Path) -> None:
    """Remove what saves that were killed have left beside a file: all that is older than the file itself."""
    if path.exists():
        for file in path.parent.iterdir():
            if file.name.startswith(f".{path.name}.") and file.stat().st_mtime < path.stat().st_mtime:
                file.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened, and need not be
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
