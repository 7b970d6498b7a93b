"""How a model is trained: the numbers of a training loop."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sdekit._value import Value


@dataclass(frozen=True)
class Recipe(Value):
    """How a model is trained: AdamW, with a learning rate that warms up and may decay, and averaged weights.

    Args:
        steps: number of steps of the whole training.
        batch: samples per step, where the data are tensors.
        lr: the learning rate after the warm-up; or a function from the step, counted from 0, to it, which must be a
            `Value` with a `__call__` if the training shall be stored.
        warmup: steps over which the learning rate rises linearly.
        final: the share of lr left at the end, approached along half a cosine; 1 keeps it constant.
        weight_decay: AdamW's.
        clip: the largest norm of the gradient; longer ones are scaled down.
        ema: decay of the average of the weights; 0 for none.

    Raises:
        ValueError: a number out of its range.
    """

    steps: int
    batch: int = 256
    lr: float | Callable[[int], float] = 1e-3
    warmup: int = 0
    final: float = 1.0
    weight_decay: float = 0.0
    clip: float | None = None
    ema: float = 0.999

    def __post_init__(self) -> None:
        ranges = {
            "steps": self.steps >= 1,
            "batch": self.batch >= 1,
            "lr": callable(self.lr) or 0 < self.lr < math.inf,
            "warmup": 0 <= self.warmup <= self.steps,
            "final": 0 <= self.final <= 1,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "clip": self.clip is None or self.clip > 0,
            "ema": 0 <= self.ema < 1,
        }
        for name, valid in ranges.items():
            if not valid:
                raise ValueError(
                    "steps, batch >= 1, lr > 0, 0 <= warmup <= steps, final in [0, 1], weight_decay >= 0, clip > 0 or "
                    f"None, ema in [0, 1) must hold; got {name}={getattr(self, name)!r}."
                )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        cosine = 0.5 + 0.5 * math.cos(math.pi * step / self.steps)
        lr = self.lr(step) if callable(self.lr) else self.lr
        return lr * warm * (self.final + (1 - self.final) * cosine)

    def decay(self, step: int) -> float:
        """Return how much of the average a step, counted from 0, keeps: (1 + step) / (10 + step) until that is `ema`.

        So the first, untrained weights do not outlive a short training.
        """
        return min(self.ema, (1 + step) / (10 + step))
