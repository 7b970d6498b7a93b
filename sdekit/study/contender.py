"""What a study compares: anything that makes samples from a model at a price."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from torch import Tensor, nn

from sdekit._broadcast import Time
from sdekit.grid import Times
from sdekit.guidance.together import selected
from sdekit.noise import Keyed
from sdekit.prediction import Model, Prediction, calls
from sdekit.process import Process
from sdekit.sample import start


class BudgetError(ValueError):
    """A budget pays for no run of a contender: a result of a study, not a failure."""


class Drawn(NamedTuple):
    """What a contender returns: the samples (b, *shape), the network calls behind each of them, and the steps."""

    x: Tensor
    nfe: int
    steps: int | None = None


@runtime_checkable
class Contender(Protocol):
    """What makes samples: `Sampler`, `Planned`, `Tuned`, `Function`, or a frozen object of your own.

    Its content, attribute by attribute, is what its cells are known by. It may write `NamedTuple`s other than `Drawn`,
    if they have `x` and `nfe`; for other contenders than sdekit's the calls are counted, whatever they say.
    """

    def within(self, budget: int, model: Model) -> Contender:
        """Return the largest run that asks the network at most `budget` times.

        Raises:
            BudgetError: there is none.
        """
        ...

    def run(self, model: Model, like: Tensor, seed: int, first: int) -> Any:
        """Draw samples of the shape, dtype and device of `like`, (b, *shape): those from number `first` of the seed.

        Sample i of the batch is a function of the model, the seed and first + i. To be compared on equal terms, start
        from `Keyed(seed, first).start(like)` times sigma, and drive an SDE by `BrownianPath(seed, first)`.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what it is in JSON types, for the rows."""
        ...


def described_by(contender: Contender) -> dict[str, Any]:
    """Return what a contender says that it is.

    Raises:
        TypeError: that is no dictionary of JSON.
    """
    found, name = contender.describe(), f"{type(contender).__name__}.describe()"
    if not isinstance(found, dict):
        raise TypeError(f"{name} must return a dictionary; got {type(found).__name__}.")
    try:
        json.dumps(found, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must return a dictionary of JSON types; {error}.") from error
    return found


@dataclass(frozen=True)
class Function:
    """A solver of your own: solver(model, x, count) takes states at t_max to samples in at most `count` answers.

    The states are those from which all deterministic methods start. What the model is asked is counted.

    >>> import torch
    >>> from sdekit import VP, GaussianMixture
    >>> def one_step(model, x, count):
    ...     return model(x, model.process.t_max).x0
    >>> model = GaussianMixture(VP(), torch.tensor([[1.0]]), 0.1)
    >>> Function(one_step).within(5, model).run(model, torch.empty(3, 1), seed=0, first=0).x.shape
    torch.Size([3, 1])
    """

    solver: Callable[[Model, Tensor, int], Tensor]
    count: int = 0

    def within(self, budget: int, model: Model) -> Self:
        """Return it with the answers that the budget pays for.

        Raises:
            BudgetError: the budget pays for none.
        """
        count = budget // getattr(model, "calls", 1)
        if count < 1:
            raise BudgetError(f"A budget must pay for one answer of the model; got {budget}. Raise the budget.")
        return replace(self, count=count)

    def run(self, model: Model, like: Tensor, seed: int, first: int) -> Drawn:
        """Draw the samples from number `first` of the seed on, as many and of the shape of `like`."""
        counting, process = Counting(model), model.process
        x = start(counting, tuple(like.shape), Times((process.t_max, process.t_min)), Keyed(seed, first))
        x = self.solver(counting, x, self.count)
        return Drawn(x, counting.nfe(len(like)))

    def describe(self) -> dict[str, Any]:
        """Return it as JSON."""
        name = getattr(self.solver, "__qualname__", type(self.solver).__qualname__)
        return {"type": "Function", "solver": name}


class Counting(nn.Module):
    """A model that counts the network evaluations made through it, sample by sample.

    Attributes:
        spent: a list of one number, the evaluations so far, each of one sample.
    """

    def __init__(self, model: Model, spent: list[int] | None = None) -> None:
        super().__init__()
        self.model, self.spent = model, [0] if spent is None else spent

    @property
    def process(self) -> Process:
        """The model's process."""
        return self.model.process

    def nfe(self, samples: int) -> int:
        """Return the evaluations behind each of so many samples, rounded up."""
        return -(-self.spent[0] // samples)

    def forward(self, x: Tensor, t: Time, /) -> Prediction:
        """Ask the model."""
        self.spent[0] += len(x) * calls(self.model, t)
        return self.model(x, t)

    def select(self, which: Tensor) -> Counting:
        """Return the model of some samples of a batch, which counts in the same place."""
        return Counting(selected(self.model, which), self.spent)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.model, name)
