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
from typing import Any, TypeAlias, TypeVar, overload

import torch
from safetensors import SafetensorError, safe_open
from safetensors import torch as safetensors
from torch import Tensor, nn

import sdekit.nets
from sdekit._value import Value, suggest
from sdekit.denoiser import Clock, Denoiser, Head
from sdekit.prediction import Target
from sdekit.process import Process

BuildNet: TypeAlias = Callable[..., nn.Module]
"""What rebuilds a network from its `config`, given as keyword arguments: its class, or a function."""

Sections: TypeAlias = dict[str, dict[str, Tensor]]
"""Tensors by section ("model", "average", ...) and name; in the file a tensor is called section/name."""

M = TypeVar("M", bound=nn.Module)

FORMAT = 1

SETTINGS: dict[str, type[Value]] = {"process": Process, "predicts": Target, "clock": Clock, "head": Head}
"""What a model may have beside its network, by name: its arguments in code, its entries in a file."""


def save(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Store a model, a `Denoiser` or its like, at `path`, which ends in .safetensors; what was there is replaced at
    once or not at all.

    A network without a `config` (a dictionary of JSON types from which `type(net)(**net.config)` rebuilds it) is stored
    as well; to load it, say how it is built.

    Raises:
        ValueError: the path's ending, or weights that are not finite.
        TypeError: the network is not a module, or a value of the model or of `net.config` is not JSON.
        OSError: the file cannot be written; the old one is untouched.
    """
    write(path, describe(model), {"model": model.state_dict()})


@overload
def load(path: str | os.PathLike[str], net: BuildNet | None = None) -> Denoiser: ...
@overload
def load(path: str | os.PathLike[str], net: BuildNet | None = None, *, kind: type[M]) -> M: ...
def load(path: str | os.PathLike[str], net: BuildNet | None = None, *, kind: Any = Denoiser) -> Any:
    """Return the stored model, on the CPU, in the stored dtypes; of a trainer's checkpoint, the averaged model.

    Args:
        path: where it was saved.
        net: the network's class, or a function that builds it from its config; by default a class of `sdekit.nets`.
        kind: the model's class, if it is no `Denoiser`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged or not a checkpoint, the network's class is unknown, or its weights do not fit.
    """
    config, sections = read(path)
    return rebuild(config, sections.get("average", sections["model"]), net, kind).eval()


def describe(model: Any) -> dict[str, Any]:
    """Return all of a model but its weights, as JSON types."""
    net = model.net
    if not isinstance(net, nn.Module):
        raise TypeError(f"Only a network that is an nn.Module has weights to store; got {net!r}. Wrap it in one.")
    values = {name: getattr(model, name).to_json() for name in SETTINGS if hasattr(model, name)}
    return {
        "format": FORMAT,
        "sdekit": _version(),
        "model": type(model).__name__,
        "net": {"class": type(net).__name__, "config": dict(getattr(net, "config", {}))},
        **values,
    }


def rebuild(
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    net: BuildNet | None = None,
    kind: Any = Denoiser,
) -> Any:
    """Return the model that `describe` described, with the weights given. The global generator is left as it was."""
    stored, name = config.get("model", "Denoiser"), config["net"]["class"]
    if stored != kind.__name__:
        raise ValueError(f"The stored model must be a {kind.__name__}; it is a {stored!r}. Pass kind={stored}.")
    if net is None:
        known = {n: c for n, c in vars(sdekit.nets).items() if isinstance(c, type) and issubclass(c, nn.Module)}
        if name not in known:
            raise ValueError(
                f"The stored network must be of a known class; it is a {name!r}, which sdekit.nets does not have. "
                f"{suggest(name, list(known))} For a class of your own, pass net={name}."
            )
        net = known[name]
    try:
        values = {name: SETTINGS[name].from_json(config[name]) for name in SETTINGS if name in config}
        with torch.random.fork_rng(devices=[]):  # a network draws its first weights, only to lose them
            model = kind(net(**config["net"]["config"]), **values)
    except TypeError as error:
        raise ValueError(f"What is stored of a {stored} must be what builds one; it is not: {error}.") from error
    _fill(model, weights)
    return model


def write(path: str | os.PathLike[str], config: Mapping[str, Any], sections: Sections, beside: str = "{}.json") -> None:
    """Store a configuration and tensors, all or nothing; then the configuration once more, under the name beside."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"A checkpoint's name must end in .safetensors; got {path.name!r}. Rename it.")
    tensors = _storable({f"{section}/{name}": t for section, named in sections.items() for name, t in named.items()})
    tensors = {name.removeprefix("/"): t for name, t in tensors.items()}
    text = json.dumps(config)
    content = safetensors.save(tensors, metadata={"sdekit": text, "sha256": _fingerprint(text, tensors)})
    _replace(path, content)
    _replace(path.with_name(beside.format(path.name)), json.dumps(config, indent=2).encode())


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], Sections]:
    """Return the configuration and the tensors at `path`, if they are what was written."""
    path = Path(path)
    header, tensors = contents(path)
    text = header.get("sdekit")
    if text is None:
        raise ValueError(
            f"{path} must be a checkpoint written by sdekit; it holds tensors only. Build the model in code and load "
            "them with safetensors.torch.load_model."
        )
    if header.get("sha256") != _fingerprint(text, tensors):
        raise ValueError(_damaged(path, "its content is not what was written"))
    sections: Sections = {}
    for name, tensor in tensors.items():
        section, slash, rest = name.partition("/")
        sections.setdefault(section if slash else "model", {})[rest if slash else name] = tensor
    return configuration(path, text), {"model": {}, **sections}


def contents(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Return the metadata and the tensors of a safetensors file."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise ValueError(_damaged(path, f"it cannot be read ({error})")) from error


def configuration(path: Path, text: str) -> dict[str, Any]:
    """Return what `describe` gave, from the text it was stored as: JSON types of the expected shape, and no more."""
    try:
        config = json.loads(text)
        whole = isinstance(config["net"]["class"], str) and isinstance(config["net"]["config"], dict)
        whole = whole and isinstance(config["process"], dict) and isinstance(config["format"], int)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(_damaged(path, f"its configuration cannot be read ({error!r})")) from error
    if not whole:
        raise ValueError(_damaged(path, "its configuration is none of a model"))
    if config["format"] > FORMAT:
        raise ValueError(
            f"{path} was written by sdekit {config.get('sdekit')}, and this is {_version()}. Upgrade to load it."
        )
    return dict(config)


def _version() -> str:
    return str(sys.modules["sdekit"].__version__)  # the package gathers all layers, so none can import it


def _damaged(path: Path, what: str) -> str:
    return f"{path} must be a whole checkpoint; {what}. Copy it again, or go back to an earlier one."


def _fill(model: Any, weights: Mapping[str, Tensor]) -> None:
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
