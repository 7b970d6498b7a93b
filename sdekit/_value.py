"""Frozen values that go to JSON and come back equal: processes, targets, equations, grids, solvers, methods."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from typing import Any, ClassVar, Self


class Value:
    """Base of everything in sdekit that is a value: a frozen dataclass, equal by its fields, writable as JSON.

    A subclass is known as soon as it is defined, by its class name, with its module in front if that is not sdekit's.
    So a user's own process or solver is stored and read back like a built-in one, and may bear the name of one. Nothing
    is imported by name from a file, and nothing is executed.

    >>> from sdekit import VP
    >>> Value.from_json(VP(beta_max=10.0).to_json()) == VP(beta_max=10.0)
    True
    """

    _known: ClassVar[dict[str, type[Value]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        Value._known[_name(cls)] = cls

    def to_json(self) -> dict[str, Any]:
        """Return the value as a dictionary of JSON types: its class name under "type", then its fields.

        Raises:
            TypeError: a field holds something that JSON cannot, such as a function.
        """
        own: Any = self
        fields = {f.name: _encode(getattr(self, f.name), self) for f in dataclasses.fields(own) if f.init}
        return {"type": _name(type(self)), **fields}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Rebuild a value from `to_json`'s dictionary.

        Raises:
            ValueError: the type or a field is unknown (the message suggests near names), or the value is of another
                kind than the class this is called on.
        """
        value = _decode(data)
        if not isinstance(value, cls):
            raise ValueError(f"Expected the JSON of a {cls.__name__}; got {data!r}. Check what was stored where.")
        return value


def _name(kind: type) -> str:
    return kind.__name__ if kind.__module__.partition(".")[0] == "sdekit" else f"{kind.__module__}.{kind.__qualname__}"


def suggest(name: str, known: list[str]) -> str:
    """Say which of the known names may have been meant."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(sorted(known))}."


def _encode(value: Any, owner: Value) -> Any:
    if isinstance(value, Value):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_encode(v, owner) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"A field must be a number, a string, a tuple or another value to be stored; {type(owner).__name__} holds "
        f"{value!r}. Define a named subclass in code instead, and store that."
    )


def _decode(data: Any) -> Any:
    if isinstance(data, list | tuple):
        return tuple(_decode(v) for v in data)
    if not isinstance(data, dict):
        return data
    name = data.get("type")
    if not isinstance(name, str) or name not in Value._known:
        raise ValueError(
            f"A stored value must name a known type; got {name!r}. {suggest(str(name), list(Value._known))} "
            "A type of your own must be defined or imported before it is read."
        )
    kind: Any = Value._known[name]
    concrete: bool = dataclasses.is_dataclass(kind) and not inspect.isabstract(kind)
    if not concrete:
        raise ValueError(f"A stored value must name a type that holds fields; {name} is a kind of such types.")
    given = {k: v for k, v in data.items() if k != "type"}
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for field in given:
        if field not in fields:
            raise ValueError(f"{name} has no field {field!r}. {suggest(field, list(fields))}")
    for field, f in fields.items():
        if field not in given and f.default is f.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} needs its field {field!r}; got {sorted(given)}. Add it.")
    return kind(**{k: _decode(v) for k, v in given.items()})
