"""A short name for a value, by its content: the same in every process, on every device, for every copy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_PARTS = {"_parameters", "_buffers", "_modules"}
_NOT_CONTENT = vars(nn.Module()).keys() - _PARTS  # what every module has: its mode and its hooks


def fingerprint(value: object) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 of a value's content.

    Content is, for a module, its class, its parameters, its buffers and the attributes of its own (for a denoiser its
    process and target, under `given` the condition); for a dataclass its fields; for any other object its attributes;
    for a function its code and what it closes over. Classes count by name: a change of their code does not show.

    >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(3)[:2])
    True
    >>> fingerprint(nn.Dropout(0.1)) == fingerprint(nn.Dropout(0.2))
    False
    """
    return _digest(value, frozenset()).hex()[:16]


def _digest(value: Any, above: frozenset[int]) -> bytes:
    """Hash a value by the hashes of its parts; `above` holds what it is a part of, so that a circle ends."""
    hashed = hashlib.sha256(type(value).__qualname__.encode())
    if isinstance(value, Tensor):
        hashed.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        hashed.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        hashed.update(repr(value).encode())
    elif id(value) not in above:
        for part in _parts(value):
            hashed.update(_digest(part, above | {id(value)}))
    return hashed.digest()


def _parts(value: Any) -> Iterator[Any]:
    """Yield what a value consists of, in an order that does not depend on its history."""
    if isinstance(value, dict):
        yield from (part for key in sorted(value, key=repr) for part in (key, value[key]))
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, set | frozenset):
        yield from sorted(fingerprint(part) for part in value)
    elif isinstance(value, FunctionType):
        yield from (value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__)
        yield inspect.getclosurevars(value).nonlocals
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, type | ModuleType):
        yield value.__name__
    elif isinstance(value, MethodType | functools.partial) or not hasattr(value, "__dict__"):
        with contextlib.suppress(TypeError):  # a lock, say, has no content
            yield value.__reduce_ex__(4)  # as for a pickle: its class, and what it is made of (an array, its bytes)
    elif type(value).__module__.startswith("torch._"):
        yield getattr(value, "_modules", None)  # a compiled module is the module in it; the compiler is not content
    else:
        yield _attributes(value)


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds: fields, or attributes but for those computed from the others on demand."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    derived = {name for kind in type(value).__mro__ for name, v in vars(kind).items() if _is_cached(v)}
    hidden = derived | (_NOT_CONTENT if isinstance(value, nn.Module) else set())
    return {name: part for name, part in vars(value).items() if name not in hidden}


def _is_cached(attribute: object) -> bool:
    return isinstance(attribute, functools.cached_property)
