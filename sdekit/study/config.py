"""A study in a file: read, looked over, and turned into what `Study` takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from sdekit._value import Value, suggest
from sdekit.grid import Grid
from sdekit.methods import method
from sdekit.prediction import Model
from sdekit.study.reference import Checkpoint, Reference
from sdekit.study.registry import METRICS, data

KEYS = ("models", "methods", "metrics", "shape", "floor", "budgets", "seeds", "grid")


def read(path: str | Path) -> Mapping[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ValueError: it is no YAML, or no mapping.
        ImportError: PyYAML is missing.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError('a study in YAML needs PyYAML: pip install "sdekit[study]"') from error

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """One that takes no key twice."""

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if str(key.value) in seen:
                    at = f"{path}, line {key.start_mark.line + 1}"
                    raise ValueError(f"{at}: the key {key.value!r} is there twice. Leave out one of the two.")
                if key.tag != "tag:yaml.org,2002:merge":
                    seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        found = yaml.load(Path(path).read_text(encoding="utf-8"), Loader)
    except yaml.MarkedYAMLError as error:
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ValueError(f"{path}{at}: it must be YAML, indented by spaces; {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML; {error}") from error
    return _mapping(str(path), found)


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Study` for a study in plain types.

    Args:
        config: with the keys
            models: by their labels, the path of a checkpoint, or {path, sha256, label}, where label names data;
            methods: by their labels, a method's name, or the JSON of a method or contender, where a method may be named
                and the steps of a grid may be left out;
            metrics: a list, or a mapping by their labels, of {type, reference, features, ...}: a metric's class, names
                of data and features, and its other settings; the reference may be an .npz file of statistics;
            shape: of the samples; its first number may be left out if there is a floor;
            floor: the name of the held-out data; budgets; seeds, as a list or their number; grid, as JSON.

    Raises:
        ValueError: a key, a name or a value is unknown (the message suggests near ones), or one is missing.
    """
    _known("A study", config, KEYS)
    for key in ("models", "methods", "metrics"):
        if not config.get(key):
            raise ValueError(f"A study needs {key!r}; got {sorted(config)}. Add it.")
    floor = None if config.get("floor") is None else _at("floor", data, config["floor"])
    found: dict[str, Any] = {
        "model": {k: _at(f"models, {k}", _model, v) for k, v in _mapping("models", config["models"]).items()},
        "methods": {k: _at(f"methods, {k}", _method, v) for k, v in _mapping("methods", config["methods"]).items()},
        "metric": _metrics(config["metrics"]),
        "shape": _shape(config.get("shape"), floor),
        "floor": floor,
    }
    if isinstance(config.get("seeds"), int):
        if config["seeds"] < 1 or isinstance(config["seeds"], bool):
            raise ValueError(f"seeds must be a list, or how many there are, at least 1; got {config['seeds']!r}.")
        config = {**config, "seeds": list(range(config["seeds"]))}
    for key in ("budgets", "seeds"):
        if key in config:
            if not isinstance(config[key], list):
                raise ValueError(f"{key} must be a list; got {config[key]!r}.")
            found[key] = tuple(config[key])
    if "grid" in config:
        found["grid"] = _at("grid", Grid.from_json, _filled(config["grid"]))
    return found


def _model(entry: Any) -> Model | Reference:
    entry = {"path": entry} if isinstance(entry, str) else _mapping("A model", entry)
    _known("A model", entry, ("path", "sha256", "label"))
    if "path" not in entry:
        raise ValueError(f"A model needs the path of its checkpoint; got {sorted(entry)}.")
    checkpoint = Checkpoint(entry["path"], entry.get("sha256"))
    if "label" not in entry:
        return checkpoint
    model: Any = checkpoint.load()
    bound: Model = model.given(label=data(entry["label"]))
    return bound


def _method(entry: Any) -> Any:
    return method(entry) if isinstance(entry, str) else Value.from_json(_filled(_mapping("A method", entry)))


def _metrics(entries: Any) -> Any:
    if isinstance(entries, Mapping) and "type" not in entries:
        return {label: _at(f"metrics, {label}", _metric, entry) for label, entry in entries.items()}
    if not isinstance(entries, list):
        raise ValueError(
            f"metrics must be a list, or a mapping from labels; got {entries!r}. Write "
            "[{type: FrechetDistance, ...}], say."
        )
    return tuple(_at("metrics", _metric, entry) for entry in entries)


def _metric(entry: Any) -> Callable[[Tensor], float]:
    entry = {"type": entry} if isinstance(entry, str) else dict(_mapping("A metric", entry))
    if "type" not in entry:
        raise ValueError(f"A metric needs its type; got {sorted(entry)}.")
    return METRICS(entry.pop("type"), **entry)


def _shape(shape: Any, floor: Tensor | None) -> tuple[int, ...]:
    if shape is None and floor is not None:
        return tuple(floor.shape)
    if not isinstance(shape, list | tuple):
        raise ValueError(f"A study needs the shape of its samples, [400, 1, 8, 8] say, or a floor; got {shape!r}.")
    return tuple(shape)


def _filled(entry: Any) -> Any:
    """Return a value's JSON with methods named looked up, and 1 for the steps of grids that leave them out."""
    if isinstance(entry, list):
        return [_filled(part) for part in entry]
    if not isinstance(entry, Mapping):
        return entry
    filled = {k: method(v).to_json() if k == "method" and isinstance(v, str) else _filled(v) for k, v in entry.items()}
    if isinstance(filled.get("options"), Mapping):
        filled["options"] = [list(pair) for pair in filled["options"].items()]
    kind = Value._known.get(str(filled.get("type")))
    if kind is not None and issubclass(kind, Grid) and dataclasses.is_dataclass(kind):
        wanted = [f.name for f in dataclasses.fields(kind) if f.name == "steps"]
        filled = {**dict.fromkeys(wanted, 1), **filled}
    return filled


def _at(where: str, make: Callable[[Any], Any], entry: Any) -> Any:
    """Make something of an entry; an error says where the entry stands."""
    try:
        return make(entry)
    except FileNotFoundError as error:
        raise ValueError(f"In {where}: there is no file {error.filename or error}.") from error
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"In {where}: {error}") from error


def _mapping(what: str, entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{what} must be a mapping; got {entry!r}.")
    return entry


def _known(what: str, entry: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in entry:
        if key not in keys:
            raise ValueError(f"{what} has no key {key!r}. {suggest(str(key), list(keys))}")
