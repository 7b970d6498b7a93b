"""Asking a model the questions of a plan: what can be prepared is prepared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdekit.denoiser import Ask, like_state
from sdekit.plan.plan import Plan
from sdekit.prediction import Model, Target


def prepare(model: Model, plan: Plan, x: Tensor) -> tuple[Plan, list[Ask]]:
    """Return the plan in the target in which the model answers, and its questions, prepared for states like `x`.

    A model may prepare its questions itself by a method `asks`, as `Denoiser` does. The first answer is looked at; if
    it is not of the state's shape that is an error, and if not of its dtype, all are brought to it.
    """
    times = torch.tensor([float(t) for _, t in plan.asks], dtype=torch.float64)
    predicts = getattr(model, "predicts", None)
    if isinstance(predicts, Target):
        plan = _written(plan, predicts)
    if _prepares(model):
        asks = model.asks(times, x)  # type: ignore[attr-defined]
        if asks:
            asks[0] = (_Checked(asks), asks[0])
        return plan, asks

    def ask(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t).view(plan.answers)

    return plan, [(ask, t) for t in times.unbind()]


def _written(plan: Plan, predicts: Target) -> Plan:
    return plan.to(predicts)


# what torch.compiler.assume_constant_result does, but for importing the compiler, which takes longer than all else here
_written._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _prepares(model: Model) -> bool:
    """Tell whether the model's class has `asks`, and no class derived from it answers otherwise when it is called."""
    for kind in type(model).__mro__:
        calls = "forward" in vars(kind) or "__call__" in vars(kind)
        if "asks" in vars(kind) or calls:
            return calls and "asks" in vars(kind)
    return False


class _Checked:
    """The first question of a run, after which the others are known to be safe."""

    def __init__(self, asks: list[Ask]) -> None:
        self.asks = asks

    def __call__(self, x: Tensor, first: Ask) -> Tensor:
        function, argument = first
        answer = function(x, argument)
        if answer.dtype != x.dtype:
            self.asks[1:] = [(_in_dtype, ask) for ask in self.asks[1:]]
        return like_state(answer, x)


def _in_dtype(x: Tensor, ask: Any) -> Tensor:
    function, argument = ask
    return function(x, argument).to(x.dtype)  # type: ignore[no-any-return]
