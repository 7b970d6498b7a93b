"""The training loop: an iterator whose every step is a function of the weights, the seed and the step's number."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sdekit.denoiser import Denoiser
from sdekit.training.batches import Batches, key, source, unpack
from sdekit.training.checkpoint import BuildNet, Sections, describe, read, rebuild, write
from sdekit.training.objective import Objective
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
        model: what is trained, in place.
        batches: tensors, a function of the step, or an iterable of batches: see `Batches`.
        recipe: for how long and how.
        objective: the loss.
        seed: any whole number.

    Attributes:
        average: the model with averaged weights, which is the one to sample from.
        step: steps done so far.

    Raises:
        ValueError: the model has nothing to train.
    """

    def __init__(
        self, model: Denoiser, batches: Batches, recipe: Recipe, objective: Objective = Objective(), seed: int = 0
    ) -> None:
        self.model, self.recipe, self.objective, self.seed = model, recipe, objective, seed
        self.step = 0
        self._trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self._trained:
            raise ValueError("A model must have parameters that require a gradient; it has none. Is the net a module?")
        self.optimizer = _adamw(list(self._trained.values()), recipe)
        self.average = copy.deepcopy(model).requires_grad_(False).eval() if recipe.ema else model
        self._weights = _floating(model), _floating(self.average)
        self._buffers = list(zip(self.average.buffers(), model.buffers(), strict=True))
        self._batch = source(batches, recipe.batch, seed)
        self._device = next(iter(self._trained.values())).device
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
        self.model.train()
        while len(self) > 0:
            yield self.advance()
        self._check()

    def advance(self) -> Progress:
        """Take one step."""
        lr = self.recipe.rate(self.step)
        loss = self._evaluate(self.objective, self.step)
        self._unread[self.step] = seen = loss.detach()
        if len(self._unread) >= self._patience:
            self._check()
        loss.backward()
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self._trained.values(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.recipe.ema:
            self._update_average()
        self.step += 1
        return Progress(self.step, seen, lr)

    def losses(self, step: int) -> Tensor:
        """Return the loss of every sample of a step, counted from 0: shape (B,).

        Batch, times and noise are those of that step, whenever it is asked (but batches of an iterable just go on).
        """
        return self._evaluate(self.objective.each, step)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Store everything but the batches: see `sdekit.training.save`. `load(path)` gives the averaged model.

        Raises:
            FloatingPointError: a loss was not finite. Nothing is written, so the last good checkpoint stays.
            ValueError, TypeError, OSError: as `sdekit.training.save`.
        """
        self._check()
        training = {
            "step": self.step,
            "seed": self.seed,
            "recipe": self.recipe.to_json(),
            "objective": self.objective.to_json(),
            "trained": list(self._trained),
        }
        sections: Sections = {"model": self.model.state_dict()}
        if self.recipe.ema:
            sections["average"] = self.average.state_dict()
        for name, p in self._trained.items():
            for part, tensor in self.optimizer.state[p].items():
                sections.setdefault(f"adamw.{part}", {})[name] = tensor
        write(path, {**describe(self.model), "training": training}, sections)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        batches: Batches,
        net: BuildNet | None = None,
        device: torch.device = torch.device("cpu"),
    ) -> Self:
        """Return the trainer stored at `path`, to go on where it stopped.

        Data in tensors and functions of the step go on too; an iterable starts from its beginning.

        Raises:
            FileNotFoundError, ValueError: as `sdekit.training.load`, or the file holds a model without its training.
        """
        config, sections = read(path)
        if "training" not in config:
            raise ValueError(f"{path} must be saved by a trainer to go on training; it holds a model. Load it as one.")
        training = config["training"]
        model = rebuild(config, sections["model"], net).to(device)
        for name, p in model.named_parameters():
            p.requires_grad_(name in training["trained"])
        recipe, objective = Recipe.from_json(training["recipe"]), Objective.from_json(training["objective"])
        trainer = cls(model, batches, recipe, objective, training["seed"])
        trainer._restore(training["step"], sections)
        return trainer

    def _restore(self, step: int, sections: Sections) -> None:
        self.step = step
        if self.recipe.ema:
            self.average.load_state_dict(sections["average"])
        parts = {name.removeprefix("adamw."): named for name, named in sections.items() if name.startswith("adamw.")}
        state = {
            i: {part: named[name] for part, named in parts.items() if name in named}
            for i, name in enumerate(self._trained)
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": {i: s for i, s in state.items() if s}, "param_groups": groups})

    def _evaluate(self, objective: Callable[..., Tensor], step: int) -> Tensor:
        x0, condition = unpack(self._batch(step), self._device)
        seed = key(self.seed, step)
        with _global_seed(seed ^ 1, self._device):
            return objective(self.model, x0, self._generator.manual_seed(seed), **condition)

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
    objective: Objective = Objective(),
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
    return trainer.average


def _adamw(parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    try:
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    except RuntimeError:  # a device or dtype without the fused kernel
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _floating(model: Denoiser) -> list[Tensor]:
    return [p.detach() for p in model.parameters() if p.is_floating_point()]


@contextmanager
def _global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws, and leave them as they were."""
    if device.type == "cuda":
        with torch.random.fork_rng(devices=[device]):
            torch.manual_seed(seed)
            yield
    else:
        state = torch.random.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.random.set_rng_state(state)
