"""A sampler as a table of numbers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.equation import Equation
from sdekit.plan.rows import Row, Terms, collected, shortened
from sdekit.plan.schedule import Op, memory, schedule
from sdekit.prediction import X0, Target, exchange
from sdekit.process import Process


@dataclass(frozen=True)
class Plan(Value):
    """A whole run of a sampler as a table, with the answers D[j] of the model at the states it is asked about:

        X[i] = sum_k a_ik X[k] + sum_j b_ij D[j] + sum_j c_ij Z[j]

    `trace` makes one from a solver, `tune` fits one to a model, `run` runs it, `law` analyses it. Being a value, it can
    be printed, compared and stored.

    Args:
        process: the forward process.
        equation: the equation in whose clock the noise runs.
        answers: what D is: the model's answers, seen as this target.
        rows: the states; X[0] is where the run starts.
        asks: (i, t) for each answer: which state the model is asked about, and at what time.
        draws: (step, t, s) for each noise: the step that draws it, and its interval.
        points: the states at the grid's times, from the first to be run from to the outcome.

    Attributes:
        schedule: the rows in the order of running, with what is kept how long.
    """

    process: Process
    equation: Equation
    answers: Target
    rows: tuple[Row, ...]
    asks: tuple[tuple[int, float], ...]
    draws: tuple[tuple[int, float, float], ...]
    points: tuple[int, ...]
    schedule: tuple[Op, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        ops = schedule(self.rows, [i for i, _ in self.asks], self.points[0], self.points[-1])
        object.__setattr__(self, "schedule", ops)

    @cached_property
    def _rewritten(self) -> dict[Target, Plan]:
        return {}

    @property
    def nfe(self) -> int:
        """The answers asked for in one run."""
        return len(self.asks_within(self.points[0], self.points[-1]))

    @property
    def noises(self) -> int:
        """The noises drawn in one run."""
        used = {j for row in self.rows[self.points[0] + 1 : self.points[-1] + 1] for j, _ in row.noises}
        return len(used)

    @property
    def memory(self) -> int:
        """How many states, answers and new sums a run holds at once, at most; a step's noise comes on top."""
        return memory(self.schedule)

    @property
    def steps(self) -> int:
        """The grid's steps."""
        return len(self.points) - 1

    @property
    def times(self) -> tuple[float, ...]:
        """The grid's times."""
        return tuple(self.rows[i].t for i in self.points)

    def asks_within(self, first: int, last: int) -> list[int]:
        """Return the answers that are asked at the states from `first` to before `last`."""
        return [j for j, (i, _) in enumerate(self.asks) if first <= i < last]

    def to(self, answers: Target) -> Plan:
        """Return the same sampler written for a network that answers in another target.

        Raises:
            ValueError: at one of the asks the target does not determine the present one (noise where alpha = 0, say).
        """
        if answers == self.answers:
            return self
        if answers not in self._rewritten:
            swaps = [self._swap(t, answers) for _, t in self.asks]
            rows = shortened([self._rewrite(row, swaps) for row in self.rows])
            self._rewritten[answers] = dataclasses.replace(self, answers=answers, rows=rows)
        return self._rewritten[answers]

    def _swap(self, time: float, answers: Target) -> tuple[float, float]:
        t = torch.tensor(time, dtype=torch.float64)
        given, wanted = answers.mixture(self.process, t), self.answers.mixture(self.process, t)
        p, q = (float(c) for c in exchange(self.process, t, given, wanted))
        if not (math.isfinite(p) and math.isfinite(q)):
            raise ValueError(
                f"A plan's answers must follow from the network's; {answers} does not determine {self.answers} at "
                f"t={time:g} of {self.process}. Move the grid's ends inwards, or use a network that answers V()."
            )
        return p, q

    def _rewrite(self, row: Row, swaps: list[tuple[float, float]]) -> Row:
        of_states = [*row.states, *((self.asks[j][0], c * swaps[j][0]) for j, c in row.answers)]
        of_answers = ((j, c * swaps[j][1]) for j, c in row.answers)
        return dataclasses.replace(row, states=collected(of_states), answers=collected(of_answers))

    def distance(self, other: Plan) -> float:
        """Return how far two plans are from doing the same, as the largest difference of two numbers of their tables.

        Tables are compared in a form that does not depend on how the sums were arranged: every state the model is asked
        about, and the outcome, as a sum of the first state, the answers and the noises. Plans of other numbers of
        answers or draws are infinitely far apart.
        """
        if self.process != other.process or (len(self.asks), self.noises) != (len(other.asks), other.noises):
            return math.inf
        ours, theirs = self.to(X0()), other.to(X0())
        times = [abs(a - b) for (_, a), (_, b) in zip(self.asks, other.asks, strict=True)]
        gaps = [float((a - b).abs().max()) for a, b in zip(ours.expanded, theirs.expanded, strict=True) if a.numel()]
        return max([*times, *gaps], default=0.0)

    @cached_property
    def expanded(self) -> tuple[Tensor, Tensor, Tensor]:
        """The states asked about and the outcome, in sums of X[0], of D, and of Z: float64 (asks + 1, ...)."""
        sizes = 1, len(self.asks), len(self.draws)
        blocks = [torch.zeros(len(self.rows), size, dtype=torch.float64) for size in sizes]
        blocks[0][0] = 1.0
        for i, row in enumerate(self.rows):
            for block, terms in zip(blocks[1:], (row.answers, row.noises), strict=True):
                for j, c in terms:
                    block[i, j] += c
            for k, c in row.states:
                for block in blocks:
                    block[i] += c * block[k]
        chosen = [*(i for i, _ in self.asks), self.points[-1]]
        states, answers, noises = (block[chosen] for block in blocks)
        return states, answers, noises[:, noises.abs().sum(0) > 0]

    def split(self, point: int) -> tuple[Plan, Plan]:
        """Cut the run at one of its points: `run(second, model, pause(first, model, x))` is the whole of it.

        Raises:
            ValueError: there is no such point between the first and the last.
        """
        self._check_inner(point)
        head, tail = self.points[: point + 1], self.points[point:]
        return dataclasses.replace(self, points=head), dataclasses.replace(self, points=tail)

    def onwards(self, point: int) -> Plan:
        """Return the plan that starts from any state at one of the points: from noised data, for image to image.

        What a later row looks back at is replaced by what the first answer says about it, as if the flow up to there
        were a straight line in its x0 and eps. (A method is better traced again, on the rest of its grid.)

        Raises:
            ValueError: there is no such point, or a later row needs something from before that is no state of the flow.
        """
        self._check_inner(point)
        plan, cut = self.to(X0()), self.points[point]
        kept = {j: new for new, j in enumerate(plan.asks_within(cut, len(plan.rows)))}
        first = next(iter(kept), -1)
        rows = [Row(plan.rows[cut].t)]
        for i, row in enumerate(plan.rows[cut + 1 :], start=cut + 1):
            old = {k for k, _ in row.states if k < cut}
            if (old - plan._flowing) or ((old or any(j < first for j, _ in row.answers)) and plan.asks[first][0] >= i):
                raise ValueError(
                    f"A run can start anew only where nothing but states of the flow and answers is looked back at; at "
                    f"point {point} more is. Trace the method on the rest of its grid, or use split."
                )
            states = [(k - cut, c) for k, c in row.states if k >= cut]
            answers = [(kept.get(j, 0), c) for j, c in row.answers]
            for k, c in row.states:
                if k < cut:
                    of_state, of_answer = plan._seen_from(first, k)
                    states.append((plan.asks[first][0] - cut, c * of_state))
                    answers.append((0, c * of_answer))
            rows.append(dataclasses.replace(row, states=collected(states), answers=collected(answers)))
        asks = tuple((plan.asks[j][0] - cut, plan.asks[j][1]) for j in kept)
        points = tuple(i - cut for i in plan.points[point:])
        return dataclasses.replace(plan, rows=tuple(rows), asks=asks, points=points)

    @property
    def _flowing(self) -> set[int]:
        """The states of the flow: those at the grid's times, and those asked about."""
        return {*self.points, *(i for i, _ in self.asks)}

    def _seen_from(self, j: int, k: int) -> tuple[float, float]:
        """Return the factors of the state asked about in answer j, and of that answer as x0, that make up state k."""
        process, (_, t), s = self.process, self.asks[j], self.rows[k].t
        ratio = process.sigma(s) / process.sigma(t)
        return float(ratio), float(process.alpha(s) - process.alpha(t) * ratio)

    def _check_inner(self, point: int) -> None:
        if not 0 < point < self.steps:
            raise ValueError(f"A plan of {self.steps} steps has inner points 1 to {self.steps - 1}; got {point}.")

    def __str__(self) -> str:
        name = type(self.answers).__name__
        head = (
            f"{self.equation} on {self.process}: {self.steps} steps, {self.nfe} answers as {name}, {self.noises} noises"
        )
        lines = [head, f"  X0  t={self.rows[self.points[0]].t:.6g}"]
        for i in range(self.points[0] + 1, self.points[-1] + 1):
            row = self.rows[i]
            terms = [*_written(row.states, "X"), *_written(row.answers, "D"), *_written(row.noises, "Z")]
            lines.append(f"  X{i:<2} t={row.t:<10.6g} = {' '.join(terms)}")
        return "\n".join(lines)


def _written(terms: Terms, letter: str) -> list[str]:
    return [f"{float(c):+.6g} {letter}{i}" for i, c in terms]
