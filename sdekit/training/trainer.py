"""The training loop: an iterator whose every step is a function of the weights, the seed and the step's number."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sdekit.denoiser import Denoiser
from sdekit.training import state
from sdekit.training.batches import Batches, Repeated, key, rows_of, source, unpack
from sdekit.training.checkpoint import BuildNet, Sections, read, rebuild, write
from sdekit.training.devices import Devices, OneDevice
from sdekit.training.loss import Loss
from sdekit.training.objective import Criterion, Noising, Objective
from sdekit.training.randomness import kept_random_state, seed_globally
from sdekit.training.recipe import Recipe

_averaging = lru_cache(maxsize=1)(get_ema_multi_avg_fn)  # one decay, once warmed up


class Progress(NamedTuple):
    """What a step reports.

    Attributes:
        step: steps done so far.
        loss: the step's loss, a scalar tensor; an accelerator is waited for when it is read, not before.
        lr: the step's learning rate.
    """

    step: int
    loss: Tensor
    lr: float


class Trainer:
    """A model in training: iterate over it to train to the end of the recipe, stop when you like, and go on.

        for progress in tqdm(trainer): ...

    All randomness of step k (which samples, t, eps, dropout) is a function of (seed, k), and torch's global generators
    are left as they were. A run that is saved and resumed equals one that was not, on the CPU bit for bit.

    Args:
        model: what is trained, in place: a `Denoiser`, or another module with a `process` that the objective can judge.
        batches: tensors, a function of the step, or an iterable of batches: see `Batches`.
        recipe: for how long and how.
        objective: the loss.
        seed: any whole number.
        devices: where and in how many pieces: `OneDevice()`, `Accelerated(accelerator)`, `Sharded()`.

    Attributes:
        average: the model with averaged weights, which is the one to sample from.
        loss: the model with its objective.
        trained: the parameters that are trained, by name.
        optimizer: AdamW.
        step: steps done so far.

    Raises:
        ValueError: the model has nothing to train.
    """

    def __init__(
        self,
        model: Any,
        batches: Batches,
        recipe: Recipe,
        objective: Criterion = Objective(),
        seed: int = 0,
        devices: Devices = OneDevice(),
    ) -> None:
        self.model, self.recipe, self.objective, self.seed, self.devices = model, recipe, objective, seed, devices
        self.step = 0
        if not any(p.requires_grad for p in model.parameters()):
            raise ValueError("A model must have parameters that require a gradient; it has none. Is the net a module?")
        self.average = copy.deepcopy(model).requires_grad_(False).eval() if recipe.ema else model
        for placed in (model, self.average)[: 2 if recipe.ema else 1]:
            devices.place(placed)
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._device = next(iter(self.trained.values())).device
        self.loss = Loss(model, objective).to(self._device)
        self._computed, self.optimizer = devices.prepare(self.loss, _adamw(list(self.trained.values()), recipe))
        self._weights = _floating(model), _floating(self.average)
        self._buffers = list(zip(self.average.buffers(), model.buffers(), strict=True))
        self._batch = source(batches, recipe.batch, seed)
        self._generator = torch.Generator(self._device)
        self._patience = 1 if self._device.type == "cpu" else 50  # steps between looks at losses, which wait for a GPU
        self._unread: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Return the number of steps still to do."""
        return self.recipe.steps - self.step

    def __iter__(self) -> Iterator[Progress]:
        """Train, a step at a time.

        Raises:
            FloatingPointError: a loss is not finite. On the CPU the step is not taken, elsewhere up to 50 more are.
        """
        self.loss.train()
        while len(self) > 0:
            yield self.advance()
        self._check()

    def advance(self) -> Progress:
        """Take one step."""
        lr = self.recipe.rate(self.step)
        self.optimizer.zero_grad()
        noising, losses = self._differentiate()
        self._unread[self.step] = seen = losses.mean()
        if len(self._unread) >= self._patience:
            self._check()
        self.loss.observe(noising, losses)
        if self.recipe.clip is not None:
            self.devices.clip(list(self.trained.values()), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.recipe.ema:
            self._update_average()
        self.step += 1
        return Progress(self.step, seen, lr)

    def losses(self, step: int) -> Tensor:
        """Return the loss of every sample of a step, counted from 0: shape (B,).

        Batch, times and noise are those of that step, whenever it is asked (but batches of an iterable just go on, and
        a law of the times that learns has learned since).
        """
        with kept_random_state(self._device):
            x0, condition, noising, seed = self._drawn(step)
            seed_globally(seed ^ 1, self._device)
            losses: Tensor = self.loss(x0, noising, **condition)
        return losses

    def save(self, path: str | os.PathLike[str]) -> None:
        """Store everything but the batches: see `sdekit.training.save`. `load(path)` gives the averaged model.

        Of many ranks all must call this; the first one writes.

        Raises:
            FloatingPointError: a loss was not finite. Nothing is written, so the last good checkpoint stays.
            ValueError, TypeError, OSError: as `sdekit.training.save`.
        """
        self._check()
        config, sections = state.stored(self)
        self.devices.write(lambda: write(path, config, sections))

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Take over what a trainer like this one, of the same model, recipe, objective and seed, stored at `path`.

        The recipe may have another number of steps. Data in tensors, functions of the step and iterables that start
        again alike go on where they stopped.

        Raises:
            FileNotFoundError, ValueError: as `sdekit.training.load`, or the file holds something else.
        """
        config, sections = read(path)
        state.check(self, config, path)
        self._take(config, sections)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        batches: Batches,
        net: BuildNet | None = None,
        device: torch.device = torch.device("cpu"),
        kind: Any = Denoiser,
    ) -> Self:
        """Return the trainer stored at `path`, to go on where it stopped, on one device: see `restore`.

        Raises:
            FileNotFoundError, ValueError: as `sdekit.training.load`, or the file holds a model without its training.
        """
        config, sections = read(path)
        training = state.training(config, path)
        model = rebuild(config, sections["model"], net, kind).to(device)
        for name, p in model.named_parameters():
            p.requires_grad_(name in training["trained"])
        recipe, objective = Recipe.from_json(training["recipe"]), Criterion.from_json(training["objective"])
        trainer = cls(model, batches, recipe, objective, training["seed"])
        trainer._take(config, sections)
        return trainer

    def _take(self, config: dict[str, Any], sections: Sections) -> None:
        state.put(self, sections)
        self.step = config["training"]["step"]
        self._unread = {}
        if isinstance(self._batch, Repeated):
            self._batch.rest = None
            with kept_random_state(self._device):
                for step in range(self.step):
                    self._whole(step)

    def _drawn(self, step: int) -> tuple[Tensor, dict[str, Any], Noising, int]:
        """Return the whole batch of a step, what is drawn for it, and the step's seed."""
        seed = key(self.seed, step)
        x0, condition = unpack(self._whole(step), self._device)
        return x0, condition, self.loss.draw(x0, self._generator.manual_seed(seed)), seed

    def _whole(self, step: int) -> Any:
        seed_globally(key(self.seed, step) ^ 2, self._device)
        return self._batch(step)

    def _differentiate(self) -> tuple[Noising, Tensor]:
        """Add up the gradient of the whole batch's mean loss; return what was drawn, and the loss of every sample."""
        devices, parts, alone = self.devices, [], nullcontext()
        with kept_random_state(self._device):
            x0, condition, noising, seed = self._drawn(self.step)
            n, rows = len(x0), devices.rows(len(x0))
            for piece in rows:
                seed_globally((seed ^ 1) + piece.start, self._device)
                given = (x0, noising) if piece == slice(0, n) else (x0[piece], noising.rows(piece))
                with alone if piece is rows[-1] else devices.apart(self._computed):
                    with devices.autocast(self._device):
                        part = self._computed(*given, **rows_of(condition, piece, n))
                    devices.backward(part.mean() if len(part) == n else part.sum() * (devices.ranks / n))
                parts.append(part.detach())
        return noising, devices.gather(parts, rows, n)

    def _update_average(self) -> None:
        # torch.optim.swa_utils.AveragedModel around the same function takes six times as long on a small network
        current, average = self._weights
        _averaging(self.recipe.decay(self.step))(average, current, self.step)
        for kept, buffer in self._buffers:
            kept.copy_(buffer)

    def _check(self) -> None:
        """Read the losses not yet looked at."""
        unread, self._unread = self._unread, {}
        for step, loss in unread.items():
            if not math.isfinite(float(loss)):
                raise FloatingPointError(
                    f"The loss must stay finite; at step {step} it is {float(loss)}. Files saved before are good: go "
                    f"back to the last, lower lr or set clip. trainer.losses({step}) tells which samples are to blame."
                )


def train(
    model: Denoiser,
    batches: Batches,
    steps: int,
    objective: Criterion = Objective(),
    seed: int = 0,
    **recipe: Any,
) -> Denoiser:
    """Train a model in place, and return it with averaged weights, which is the one to sample from.

    Args:
        model, batches, objective, seed: see `Trainer`, which also shows progress, saves and resumes.
        steps: number of steps.
        recipe: lr, batch, ema ...: see `Recipe`.
    """
    trainer = Trainer(model, batches, Recipe(steps, **recipe), objective, seed)
    for _ in trainer:
        pass
    average: Denoiser = trainer.average
    return average


def _adamw(parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    try:
        return torch.optim.AdamW(parameters, lr=recipe.rate(0), weight_decay=recipe.weight_decay, fused=True)
    except RuntimeError:  # a device or dtype without the fused kernel
        return torch.optim.AdamW(parameters, lr=recipe.rate(0), weight_decay=recipe.weight_decay)


def _floating(model: torch.nn.Module) -> list[Tensor]:
    return [p.detach() for p in model.parameters() if p.is_floating_point()]
