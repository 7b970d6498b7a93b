"""A training that says how it goes: to a function, and so to TensorBoard, Weights & Biases and their like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import torch

from sdekit.training.trainer import Progress, Trainer
from sdekit.training.validation import Level

Log: TypeAlias = Callable[[dict[str, float], int], object]
"""Called as log(values, step): a function of one's own, or the method `log` of accelerate's `Accelerator`."""

Check: TypeAlias = Callable[[Any], float | list[Level]]
"""A question about the averaged model: a number, such as a Frechet distance of samples, or what `Validation` says."""


class Watched:
    """A trainer that tells how it goes while one iterates over it:

        checks = {"loss": Validation(held_out), "distance": lambda model: metric(sample(model, shape))}
        for progress in tqdm(Watched(trainer, accelerator.log, checks=checks)): ...

    Every `every` steps `log` gets the mean loss since the last time, as "train/loss", and the learning rate; every
    `check_every` steps, and after the last one, what the checks say of the averaged model, as "check/name", and of a
    `Validation` "check/name" (the mean over its levels), "check/name/0" and so on by rising time.

    Of many ranks the first one logs; checks are made by all of them.

    Args:
        trainer: the training.
        log: where the numbers go.
        every: steps between two logs.
        checks: questions about the averaged model, by name.
        check_every: steps between two rounds of checks.

    Raises:
        ValueError: a number of steps is not positive.
    """

    def __init__(
        self,
        trainer: Trainer,
        log: Log,
        every: int = 50,
        checks: Mapping[str, Check] | None = None,
        check_every: int = 1000,
    ) -> None:
        if every < 1 or check_every < 1:
            raise ValueError(f"Steps between logs must be positive; got {every=} and {check_every=}.")
        self.trainer, self.log, self.every = trainer, log, every
        self.checks, self.check_every = checks or {}, check_every

    def __len__(self) -> int:
        """Return the number of steps still to do."""
        return len(self.trainer)

    def __iter__(self) -> Iterator[Progress]:
        """Train, a step at a time."""
        losses: list[torch.Tensor] = []
        for progress in self.trainer:
            step, last = progress.step, len(self.trainer) == 0
            losses.append(progress.loss)
            if step % self.every == 0 or last:
                self._log({"train/loss": float(torch.stack(losses).mean()), "train/lr": progress.lr}, step)
                losses = []
            if self.checks and (step % self.check_every == 0 or last):
                self._log(self.answers(), step)
            yield progress

    def answers(self) -> dict[str, float]:
        """Return what the checks say of the averaged model now."""
        found = {}
        for name, check in self.checks.items():
            answer = check(self.trainer.average)
            if isinstance(answer, list):
                samples = sum(level.samples for level in answer)
                found[f"check/{name}"] = sum(level.loss * level.samples for level in answer) / samples
                found |= {f"check/{name}/{i}": level.loss for i, level in enumerate(answer)}
            else:
                found[f"check/{name}"] = float(answer)
        return found

    def _log(self, values: dict[str, float], step: int) -> None:
        if self.trainer.devices.rank == 0:
            self.log(values, step)
