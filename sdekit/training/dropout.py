"""Conditions that are left out at random, so that one network learns with and without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit._value import Value


@dataclass(frozen=True)
class Dropout(Value):
    """Leave out the condition of a random share of samples, as training for classifier-free guidance needs.

    Args:
        share: the share of samples, in [0, 1].
        none: what stands for "no condition": for labels the number of classes, for the mask of a context 0.
        name: the condition's name among the network's arguments.

    Raises:
        ValueError: share is not within [0, 1].

    Reference: Ho & Salimans 2022 (arXiv 2207.12598), algorithm 1.

    >>> half = Dropout(0.5, none=10)
    >>> which = half.draw(4, torch.Generator().manual_seed(0))
    >>> int(which.sum()), half.apply(torch.tensor([True, False]), {"label": torch.tensor([3, 4])})["label"].tolist()
    (2, [10, 4])
    """

    share: float
    none: float
    name: str = "label"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must lie in [0, 1], the share of conditions left out; got {self.share}.")

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Return which of `n` samples lose their condition: bool, shape (n,), on the generator's device.

        Each loses it with probability `share`; of a batch it is `share` n samples, up to less than one.
        """
        slices = torch.randperm(n, generator=generator, device=generator.device)
        shift = torch.rand((), generator=generator, device=generator.device)
        # of the points (slice + shift) / n exactly floor or ceil of share n lie below the share
        return slices + shift < self.share * n

    def apply(self, dropped: Tensor, condition: Mapping[str, Any]) -> dict[str, Any]:
        """Return the network's arguments with `none` in the place of the condition where `dropped` says so.

        Args:
            dropped: bool, shape (B,).
            condition: the network's arguments by name; the one called `name` has shape (B, ...).

        Raises:
            ValueError: there is no such condition, or it is not one a sample.
        """
        given = condition.get(self.name)
        if not isinstance(given, Tensor) or given.shape[:1] != dropped.shape:
            raise ValueError(
                f"{self} leaves out a condition that is one a sample, ({len(dropped)}, ...); the batch has "
                f"{ {k: tuple(v.shape) if isinstance(v, Tensor) else v for k, v in condition.items()} }. Give the "
                "labels beside the data, or train without dropout."
            )
        which = dropped.to(given.device).reshape(-1, *[1] * (given.ndim - 1))
        return {**condition, self.name: given.masked_fill(which, self.none)}
