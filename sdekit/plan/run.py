"""Running a table: fused sums with plain numbers, no more memory than the table needs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit.noise import Draw, Keyed, Noise
from sdekit.plan.ask import prepare
from sdekit.plan.health import Health, check_batch
from sdekit.plan.plan import Plan
from sdekit.prediction import Model

LARGE = 2**15
"""States of fewer numbers stay in the cache, where writing a sum into a dead state's memory would gain nothing."""


class Carry(NamedTuple):
    """What a run that was cut needs to go on: see `pause`.

    Args:
        states: states by their numbers, the present one among them.
        answers: answers by their numbers.
    """

    states: dict[int, Tensor]
    answers: dict[int, Tensor]


def run(plan: Plan, model: Model, x: Tensor | Carry, noise: Noise | None = None) -> Tensor:
    """Run a plan from the states `x` and return the last ones.

    Without gradients, large sums are made in the memory of states that nothing refers to any more, so a network must
    not keep views of the states it was shown from one call to the next.

    Args:
        plan: the table.
        model: a model on the plan's process.
        x: the states at the first time, shape (B, ...), which are not written to; or what `pause` returned.
        noise: the source of noise, by default `Keyed(seed=0)`.

    Raises:
        ValueError: the model is on another process, or `x` is not a batch of floating-point states.
        FloatingPointError: the outcome is not finite; the message names the step, the time and the samples where that
            began, found by a second run.
    """
    execution = _Execution(plan, model, x, noise)
    for _ in execution.rows(reuse=not (torch.is_grad_enabled() or torch.compiler.is_compiling())):
        pass
    outcome = execution.outcome
    if not torch.compiler.is_compiling() and not bool(outcome.sum().isfinite()) and not bool(outcome.isfinite().all()):
        for _ in walk(plan, model, x, noise):  # the same again, looked at state by state
            pass
        Health(outcome).check(outcome, f"step {plan.steps} of {plan.steps}", plan.times[-1])
    return outcome


def walk(plan: Plan, model: Model, x: Tensor | Carry, noise: Noise | None = None) -> Iterator[tuple[int, Tensor]]:
    """Yield (row, state) for the start and every state after it, each in its own memory: see `run`."""
    execution = _Execution(plan, model, x, noise)
    health = Health(execution.now)
    for i in execution.rows(reuse=False):
        if i in plan.points:
            step = plan.points.index(i)
            health.check(execution.slots[i], f"step {step} of {plan.steps}" if step else "start", plan.rows[i].t)
        yield i, execution.slots[i]
    health.report()


def pause(plan: Plan, model: Model, x: Tensor | Carry, noise: Noise | None = None) -> Carry:
    """Run the first part of a plan that was `split`, and return all that the second part needs to go on."""
    execution = _Execution(plan, model, x, noise)
    for _ in execution.rows(reuse=False):
        pass
    count = len(plan.rows)
    left = {slot: value for slot, value in enumerate(execution.slots) if value is not None}
    return Carry(
        {slot: value for slot, value in left.items() if slot < count},
        {slot - count: value for slot, value in left.items() if slot >= count},
    )


class _Execution:
    """A run in progress: its states and answers in slots, empty where they are not yet or no longer needed."""

    def __init__(self, plan: Plan, model: Model, x: Tensor | Carry, noise: Noise | None) -> None:
        start = plan.points[0]
        carry = x if isinstance(x, Carry) else Carry({start: x}, {})
        now = carry.states[start]
        check_batch(now)
        if model.process != plan.process:
            raise ValueError(
                f"A plan runs on the process it was made for, {plan.process}; the model's is {model.process}. Trace "
                "the method again."
            )
        self.now = now
        self.plan, self.ask = prepare(model, plan, now)
        self.draws = _Draws(plan, model, now, Keyed() if noise is None else noise)
        self.slots: list[Any] = [None] * (len(plan.rows) + len(plan.asks))
        for i, state in carry.states.items():
            self.slots[i] = state
        for j, answer in carry.answers.items():
            self.slots[len(plan.rows) + j] = answer

    @property
    def outcome(self) -> Tensor:
        """The state of the last row."""
        outcome: Tensor = self.slots[self.plan.points[-1]]
        return outcome

    def rows(self, *, reuse: bool) -> Iterator[int]:
        """Make the states one by one and yield their numbers."""
        slots, ask, draw, start = self.slots, self.ask, self.draws, self.plan.points[0]
        reuse = reuse and self.now.numel() >= LARGE
        del self.now
        for i, first, scale, rest, noises, dead, asks in self.plan.schedule:
            if first < 0:
                y = slots[start] if i == start else torch.zeros_like(slots[start])
            elif scale == 1 and rest:
                y = torch.add(slots[first], slots[rest[0][0]], alpha=rest[0][1])
                rest = rest[1:]
            elif reuse and first in dead and first > start and sys.getrefcount(slots[first]) == 2:
                y = slots[first].mul_(scale)
            else:
                y = torch.mul(slots[first], scale)
            for slot, c in rest:
                y.add_(slots[slot], alpha=c)
            for j, c in noises:
                y.add_(draw(j), alpha=c)
            for slot in dead:
                slots[slot] = None
            slots[i] = y
            yield i
            for slot, j in asks:
                function, argument = ask[j]
                slots[slot] = answer = function(y, argument)
                if reuse and _share(answer, y):  # then writing into the state would change the answer
                    slots[slot] = answer.clone()
                del answer
            del y


def _share(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


class _Draws:
    """The noises of a run, in the order of the table, each kept until its last use: draws(j)."""

    def __init__(self, plan: Plan, model: Model, x: Tensor, noise: Noise) -> None:
        self.draws = plan.draws
        times = list(dict.fromkeys(time for _, t, s in plan.draws for time in (t, s)))
        self.of_step = noise.along(plan.equation.of(model), x, times) if times else None
        self.uses = Counter(j for row in plan.rows for j, _ in row.noises)
        self.step = -1
        self.ready: dict[int, Tensor] = {}

    def __call__(self, j: int) -> Tensor:
        step = self.draws[j][0]
        if step != self.step:  # all of a step at once, for they are told apart by their order
            self.step, self.ready = step, self._made(step)
        self.uses[j] -= 1
        return self.ready[j] if self.uses[j] else self.ready.pop(j)

    def _made(self, step: int) -> dict[int, Tensor]:
        draw: Draw = self.of_step(step)  # type: ignore[misc]
        made = {}
        for j, (k, t, s) in enumerate(self.draws):
            if k == step:
                z = draw(torch.tensor(t, dtype=torch.float64), torch.tensor(s, dtype=torch.float64))
                if self.uses[j]:
                    made[j] = z
        return made
