"""Models by reference: each process that needs one loads it, and none is sent."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdekit._value import Value
from sdekit.prediction import Model
from sdekit.process import Process
from sdekit.study.failure import Failure


class Reference(ABC):
    """Where a model is to be had."""

    @abstractmethod
    def load(self) -> Model:
        """Return the model."""


@dataclass(frozen=True)
class Checkpoint(Value, Reference):
    """A model in a file that `sdekit.training.save` has written.

    Args:
        path: the file, which every worker must be able to read.
        sha256: the hexadecimal SHA-256 of the file, so that no other model is taken for it; None for any.
    """

    path: str
    sha256: str | None = None

    def load(self) -> Model:
        """Return the model.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is another file, or damaged.
        """
        from sdekit.training import load

        if self.sha256 is not None:
            found = hashlib.sha256(Path(self.path).read_bytes()).hexdigest()
            if found != self.sha256.lower():
                raise ValueError(
                    f"{self.path} must have the SHA-256 {self.sha256}; its is {found}. Give the file that was meant, "
                    "or this hash if it is this one."
                )
        return load(self.path)


@dataclass(frozen=True)
class Factory(Reference):
    """A model that a function makes: make() -> model, the same one in every process."""

    make: Callable[[], Model]

    def load(self) -> Model:
        """Return what the function makes."""
        return self.make()


def loaded(model: Model | Reference | Failure) -> Model | Failure:
    """Return a model, one given by reference loaded, or why it cannot be."""
    if not isinstance(model, Reference):
        return model
    try:
        found = model.load()
        check_model(found, f"what {type(model).__name__} loads")
    except Exception as error:
        return Failure.of(error)
    return found


def check_model(model: Any, name: str) -> None:
    """Raise a TypeError if something is no model."""
    if isinstance(model, type) or not callable(model) or not isinstance(getattr(model, "process", None), Process):
        kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(
            f"A model must be called as model(x, t) and have a process; {name} is {kind}. Pass "
            "Denoiser(net, process, predicts), an oracle, or a Reference such as Checkpoint(path)."
        )
