"""Where batches come from: a function of the step, so that a resumed run sees what an uninterrupted one would."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

Batches: TypeAlias = Tensor | tuple[Tensor, Tensor] | Callable[[int], Any] | Iterable[Any]
"""What a model is trained on:

- a tensor x0 of shape (N, ...), or a pair of it and labels of shape (N, ...), held in memory and shuffled endlessly;
- a function from the step, counted from 0, to a batch;
- an iterable of batches, such as a DataLoader, started again when it ends.

A batch is x0, or (x0, labels), or (x0, a dictionary of what the network takes by name).
"""


def key(*parts: object) -> int:
    """Return a 64-bit seed that is a function of `parts`, unrelated to that of any other parts."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def source(batches: Batches, size: int, seed: int) -> Callable[[int], Any]:
    """Return the function from the step to its batch, of `size` samples where sdekit makes the batches itself.

    Raises:
        TypeError: a data set that gives single samples.
    """
    if isinstance(batches, Dataset):
        raise TypeError(
            f"Batches must come as batches; {type(batches).__name__} gives single samples. Pass a DataLoader of it."
        )
    if isinstance(batches, Tensor):
        return Shuffled((batches,), size, seed)
    if isinstance(batches, tuple):
        return Shuffled(batches, size, seed)
    if callable(batches):
        return batches
    return Repeated(batches)


def unpack(batch: Any, device: torch.device) -> tuple[Tensor, dict[str, Any]]:
    """Return a batch as x0 and what the network takes by name, on `device`.

    Raises:
        TypeError: the batch is neither x0, nor (x0, labels), nor (x0, dictionary).
    """
    parts = [batch] if isinstance(batch, Tensor) else list(batch) if isinstance(batch, tuple | list) else []
    if not 1 <= len(parts) <= 2 or not isinstance(parts[0], Tensor):
        raise TypeError(
            "A batch must be a tensor x0, a pair (x0, labels), or (x0, a dictionary for the network); "
            f"got {type(batch).__name__} of {[type(p).__name__ for p in parts] or batch!r}. Map it to one of these."
        )
    given = parts[1] if len(parts) == 2 else {}
    condition = given if isinstance(given, Mapping) else {"label": given}
    return _to(parts[0], device), {name: _to(value, device) for name, value in condition.items()}


def rows_of(condition: dict[str, Any], rows: slice, batch: int) -> dict[str, Any]:
    """Return what the network takes by name for some rows of a batch: of each tensor of that many rows, those."""
    if rows == slice(0, batch):
        return condition
    return {k: v[rows] if isinstance(v, Tensor) and v.shape[:1] == (batch,) else v for k, v in condition.items()}


class Shuffled:
    """Batches of data in memory: batch k is rows k size ... (k + 1) size of one shuffle of the data after another.

    Every sample comes once per epoch. Nothing is remembered but the current shuffle, itself a function of the seed and
    the epoch, so any batch can be asked for at any time.

    Raises:
        ValueError: the tensors differ in length, or are empty.

    >>> batches = Shuffled((torch.arange(4),), 2, seed=0)
    >>> sorted(torch.cat([*batches(6), *batches(7)]).tolist())
    [0, 1, 2, 3]
    """

    def __init__(self, data: tuple[Tensor, ...], size: int, seed: int) -> None:
        lengths = [len(d) if isinstance(d, Tensor) and d.ndim else 0 for d in data]
        if not lengths or min(lengths) == 0 or min(lengths) != max(lengths):
            raise ValueError(
                f"Data must be a tensor of samples, or a pair of samples and as many labels; got lengths {lengths}. "
                "Batches of your own go in a list or a DataLoader."
            )
        self.data, self.size, self.seed = data, size, seed
        self.epoch, self.order = -1, torch.empty(0)

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        epoch, first = divmod(step * self.size, len(self.data[0]))
        rows = self.shuffle(epoch)[first : first + self.size]
        while len(rows) < self.size:
            epoch += 1
            rows = torch.cat([rows, self.shuffle(epoch)[: self.size - len(rows)]])
        return tuple(d.index_select(0, rows.to(d.device)) for d in self.data)

    def shuffle(self, epoch: int) -> Tensor:
        """Return the order of the data in an epoch."""
        if epoch != self.epoch:
            generator = torch.Generator().manual_seed(key(self.seed, "epoch", epoch))
            self.epoch, self.order = epoch, torch.randperm(len(self.data[0]), generator=generator)
        return self.order


class Repeated:
    """Batches of an iterable, again and again, in its own order: the step asked for does not matter.

    The iterable is started when the first batch is asked for, and started again when it ends.

    Raises:
        ValueError: the iterable gives no (more) batches.
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.rest: Iterator[Any] | None = None

    def __call__(self, step: int) -> Any:
        batch = None if self.rest is None else next(self.rest, None)
        if batch is None:
            self.rest = iter(self.batches)
            batch = next(self.rest, None)
        if batch is not None:
            return batch
        raise ValueError(
            f"There must be a batch for every step; at step {step} the iterable gave none, even from its start. "
            "Pass something that can be iterated again (a list, a DataLoader), or a function of the step."
        )


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
