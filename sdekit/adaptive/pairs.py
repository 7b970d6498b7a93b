"""Embedded pairs of exponential Runge-Kutta methods, as polynomials in the share u / h of the step.

F_1 is the answer at the step's start. With exact weights a row is its polynomial alone: on `OnVelocity`, where the
weight is 1, a pair is the Runge-Kutta pair of the same nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._broadcast import like
from sdekit.adaptive.paths import AnswerPath, Row
from sdekit.process import Process


class Flow(NamedTuple):
    """What a pair steps: a path on a process, and `ask(x, t)`, the answer F at states and times of shape (B,)."""

    path: AnswerPath
    process: Process
    ask: Callable[[Tensor, Tensor], Tensor]


class Span(NamedTuple):
    """The step of each sample, shape (B,): from the time t to s, in the coordinate from u to u + h."""

    t: Tensor
    s: Tensor
    u: Tensor
    h: Tensor


@dataclass(frozen=True)
class Pair:
    """A method with another of one order less in it.

    Attributes:
        order: the order of the method; the estimated error is O(h^order).
        nodes: the shares of the step at which the answers F_2, ... are asked.
        stages: the polynomial that leads to each node.
        last: the polynomial that leads to the end of the step.
        error: `last` less the polynomial of the lower order. If it mixes one answer more than `last`, that is the one
            at the end of the step, with which the next step starts.
    """

    order: int
    nodes: tuple[float, ...]
    stages: tuple[Row, ...]
    last: Row
    error: Row

    @property
    def evals(self) -> int:
        """Network calls per step, one less where the answer at its start is known."""
        return 1 + len(self.nodes) + self.closes

    @property
    def closes(self) -> bool:
        """Whether the answer at the end of the step is asked for."""
        return max(map(len, self.error)) > max(map(len, self.last))

    def step(self, flow: Flow, x: Tensor, now: Tensor, span: Span) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the states at the ends of the steps, their estimated errors, and the answers there if asked for.

        Args:
            flow: what is stepped; it is asked evals - 1 times.
            x: the states at the starts, shape (B, ...).
            now: the answers at the starts.
            span: the steps.
        """
        (path, process, ask), (t, s, u, h) = flow, span
        answers = [now]
        for node, stage in zip(self.nodes, self.stages, strict=True):
            at = path.time(process, u + node * h).clamp(torch.minimum(t, s), torch.maximum(t, s))
            part = path.integral(answers, stage, h, node)
            there = like(path.keep(process, t, at), x) * x + like(path.gain(process, at), x) * part
            answers.append(ask(there, at))
        gain = like(path.gain(process, s), x)
        there = like(path.keep(process, t, s), x) * x + gain * path.integral(answers, self.last, h, 1.0)
        after = ask(there, s) if self.closes else None
        if after is not None:
            answers.append(after)
        return there, gain * path.integral(answers, self.error, h, 1.0), after


PAIR21 = Pair(
    order=2,
    nodes=(1 / 2,),
    stages=(((1.0,),),),
    last=((1.0,), (-2.0, 2.0)),  # F_1 + 2 (F_2 - F_1) u/h
    error=((0.0,), (-2.0, 2.0)),
)
"""DPM-Solver-2 with DPM-Solver-1 (DDIM) in it. Reference: Lu et al. 2022 (arXiv 2206.00927), algorithm 1 and
appendix C; on `OnVelocity` the explicit midpoint rule with Euler's method."""

PAIR32 = Pair(
    order=3,
    nodes=(1 / 3, 2 / 3),
    stages=(((1.0,),), ((1.0,), (-3.0, 3.0))),
    last=((1.0,), (-1.5, 0.0, 1.5)),  # F_1 + 3/2 (F_3 - F_1) u/h
    error=((0.0,), (1.5, -3.0, 1.5)),  # less F_1 + 3 (F_2 - F_1) u/h
)
"""DPM-Solver-3 with DPM-Solver-2 in it. Reference: Lu et al. 2022 (arXiv 2206.00927), algorithm 2 and appendix C; on
`OnVelocity` Heun's third-order method."""

PAIR43 = Pair(
    order=4,
    nodes=(1 / 3, 2 / 3, 1.0),
    stages=(
        ((1.0,),),
        ((1.0,), (-4.5, 4.5)),
        ((1.0,), (-3.2, -2.0, 5.2), (4.8, 0.0, -4.8)),
    ),
    last=((1.0,), (-5.5, 9.0, -4.5, 1.0), (9.0, -22.5, 18.0, -4.5), (-4.5, 13.5, -13.5, 4.5)),  # the cubic through all
    error=((1 / 24, -1 / 8, 1 / 8, 1 / 8, -1 / 6),),
)
"""The 3/8 rule with a third-order method in it that takes F_5, at the end of the step, for F_4.

On every path it has order 4. Exponential weights must meet one condition more than those of Runge-Kutta methods, that
the derivative of sum_i b_i(z) psi_{2,i}(z) vanishes at z = 0; the square in the last stage is there to meet it.
Reference: Kutta 1901 for the rule; Hochbruck & Ostermann 2005 (SIAM J. Numer. Anal. 43), for psi and the conditions."""

PAIRS = {pair.order: pair for pair in (PAIR21, PAIR32, PAIR43)}
