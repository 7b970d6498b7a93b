"""A short name for a value, by its content: the same in every process, on every device, for every copy."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PARTS = {"_parameters", "_buffers", "_modules"}
_NOT_CONTENT = vars(nn.Module()).keys() - _PARTS  # what every module has: its mode and its hooks
_SCALARS = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_CACHED = type(cache(len))
_CONTENT = (
    *(*_SCALARS, type(None), Tensor, np.ndarray, nn.Module, list, tuple, dict, set, frozenset),
    *(functools.partial, _CACHED, FunctionType, type, ModuleType, MethodType),
)
_METHODS = (FunctionType, staticmethod, classmethod, property, functools.cached_property)


def fingerprint(value: object) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 of a value's content.

    Content is, for a module, its class, its parameters, its buffers and the attributes of its own (for a denoiser its
    process and target, under `given` the condition); for a dataclass its fields; for any other object its attributes;
    for a function its code and what it closes over.

    Code of your own, which lies in no installed package, counts with all that it reads: a function with the globals
    that it names, functions and classes among them by their code in turn, and a class with its methods, its constants
    and its bases. Of other packages, sdekit included, functions and classes count by name. Not seen are what is read
    through a module (as `helper` in `mine.helper(x)`), attributes set on a function, the state of a global object of
    another package's class (a logger, a generator of random numbers), files, the environment, and versions of packages.
    What your code counts or keeps in a list of a module or in an attribute of a class is taken for a setting.

    >>> fingerprint(torch.zeros(2)) == fingerprint(torch.zeros(3)[:2])
    True
    >>> fingerprint(nn.Dropout(0.1)) == fingerprint(nn.Dropout(0.2))
    False
    """
    return _digest(value, frozenset(), {}).hex()[:16]


def _digest(value: Any, above: frozenset[int], known: dict[int, bytes]) -> bytes:
    """Hash a value by the hashes of its parts.

    Args:
        value: the value.
        above: what it is a part of, so that a circle ends.
        known: the hashes of functions and classes, each of which may be read by many.
    """
    if id(value) in known:
        return known[id(value)]
    hashed = hashlib.sha256(type(value).__qualname__.encode())
    if isinstance(value, Tensor):
        hashed.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        hashed.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif value is None or isinstance(value, _SCALARS):
        hashed.update(repr(value).encode())
    elif id(value) not in above:
        above |= {id(value)}
        if isinstance(value, set | frozenset):
            parts: Iterable[Any] = sorted(_digest(part, above, {}).hex()[:16] for part in value)
        else:
            parts = _parts(value)
        for part in parts:
            hashed.update(_digest(part, above, known))
        if _is_own(type(value).__module__):
            hashed.update(_digest(type(value), above, known))
        if isinstance(value, FunctionType | type):  # others may be gone, and their ids be given to new ones
            known[id(value)] = hashed.digest()
    return hashed.digest()


def _parts(value: Any) -> Iterator[Any]:
    """Yield what a value consists of, in an order that does not depend on its history."""
    if isinstance(value, dict):
        yield from (part for key in sorted(value, key=_place) for part in (key, value[key]))
    elif isinstance(value, list | tuple):
        yield from value
    elif isinstance(value, FunctionType):
        yield from (value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__)
        yield _closed_over(value)
        found = value.__globals__
        if _is_own(found.get("__name__")):
            yield {name: _read(found[name]) for name in _globals(value.__code__) if name in found}
    elif isinstance(value, CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, type | ModuleType):
        yield value.__name__
        if isinstance(value, type) and _is_own(value.__module__):
            yield from map(_read, value.__bases__)
            yield _members(value)
    elif isinstance(value, MethodType | functools.partial) or not hasattr(value, "__dict__"):
        with contextlib.suppress(Exception):  # a lock, say, has no content
            yield value.__reduce_ex__(4)  # as for a pickle: its class, and what it is made of (an array, its bytes)
    elif type(value).__module__.startswith("torch._"):
        yield getattr(value, "_modules", None)  # a compiled module is the module in it; the compiler is not content
    else:
        yield _attributes(value)


def _place(key: Any) -> str:
    """Return what keys are sorted by: how they are written, unless that tells where they are in memory."""
    written = repr(key)
    return fingerprint(key) if " at 0x" in written else written


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object holds: fields, or attributes but for those computed from the others on demand."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    derived = {name for kind in type(value).__mro__ for name, v in vars(kind).items() if _is_cached(v)}
    hidden = derived | (_NOT_CONTENT if isinstance(value, nn.Module) else set())
    return {name: part for name, part in vars(value).items() if name not in hidden}


def _is_cached(attribute: object) -> bool:
    return isinstance(attribute, functools.cached_property)


def _closed_over(function: FunctionType) -> dict[str, Any]:
    """Return the variables of outer functions, by their names, that a function reads."""
    found = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # not yet assigned
            found[name] = cell.cell_contents
    return found


@cache
def _globals(code: CodeType) -> tuple[str, ...]:
    """Return the names of the globals that code reads, in the functions in it too; others do not travel with it."""
    steps = list(dis.get_instructions(code))
    names = {step.argval for step in steps if step.opname == "LOAD_GLOBAL"}
    names -= {step.argval for step in steps if step.opname == "STORE_GLOBAL"}  # what it sets itself is no setting
    inner = [name for const in code.co_consts if isinstance(const, CodeType) for name in _globals(const)]
    return tuple(sorted(names.union(inner)))


def _members(kind: type) -> dict[str, Any]:
    """Return the methods and the constants of a class, but for what Python or `dataclass` has written."""
    written = {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__replace__"}
    written |= {"__lt__", "__le__", "__gt__", "__ge__"}
    found = {}
    for name, member in vars(kind).items():
        hidden = written if "__dataclass_fields__" in vars(kind) else ()
        if isinstance(member, _METHODS) and name not in hidden:
            of = {key: getattr(member, key, None) for key in ("__func__", "func", "fget", "fset")}
            found[name] = member if isinstance(member, FunctionType) else of
        elif not (name.startswith("__") or isinstance(member, _METHODS)):
            found[name] = _read(member)
    return found


def _read(value: Any) -> Any:
    """Return what counts of something that code reads: all of it, or its name or its class's if that is a package's."""
    content = isinstance(value, _CONTENT) or dataclasses.is_dataclass(value) or _is_own(type(value).__module__)
    if content and not (isinstance(value, FunctionType | type) and not _is_own(value.__module__)):
        return value
    named = value if isinstance(getattr(value, "__name__", None), str) else type(value)
    return f"{getattr(named, '__module__', None)}.{getattr(named, '__qualname__', named.__name__)}"


@cache
def _is_own(module: str | None) -> bool:
    """Tell whether a module is the user's: none of sdekit, of Python or of an installed package."""
    name = str(module)
    top = name.partition(".")[0]
    if name == "__main__":  # of a worker its file is a package's, and what travels by value is still the user's
        return True
    if top == "sdekit" or top in sys.stdlib_module_names:
        return False
    files = (getattr(sys.modules.get(known), "__file__", None) for known in (name, top))
    return not any({"site-packages", "dist-packages"} & set(Path(file).parts) for file in files if file)
