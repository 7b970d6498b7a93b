"""From a solver to a table: its own `step`, run once on symbols."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from torch import Tensor

from sdekit._broadcast import Time, as_time
from sdekit.equation import System
from sdekit.grid import Grid
from sdekit.methods import Method
from sdekit.noise import Draw
from sdekit.plan.form import Form, NonlinearError
from sdekit.plan.plan import Plan
from sdekit.plan.rows import Row, Terms, shortened, without_memory
from sdekit.prediction import X0, Prediction, Target
from sdekit.process import Process
from sdekit.solvers import Solver


def march(
    system: System, solver: Solver, x: Any, times: Tensor, of_step: Callable[[int], Draw]
) -> Iterator[tuple[Any, Tensor, Any]]:
    """Yield (state, time, what the step has seen) after every step from `x` at the first time: the one loop over time.

    Raises:
        ValueError: the equation does not hold in the direction of the times.
    """
    process, equation = system.process, system.equation
    if equation.direction * float((times[-1] - times[0]).detach()) < 0:
        raise ValueError(
            f"{equation} holds towards {'noise' if equation.direction > 0 else 'data'} only; the grid "
            "runs the other way. Use the probability flow, or Reversed(grid)."
        )
    past: tuple[Any, ...] = ()
    for k, (t, s) in enumerate(itertools.pairwise(times)):
        if process.clean == float(s.detach()) < process.t_min and not solver.lands:  # Tweedie's formula
            x, seen = system(x, t).x0, None
        else:
            x, seen = solver.step(system, x, t, s, past, of_step(k))
        past = () if seen is None else (seen, *past)[: solver.memory]
        yield x, s, seen


def trace(method: Method, process: Process, grid: Grid | Tensor, answers: Target = X0()) -> Plan:
    """Run a sampler on symbols and return it as a table.

    Args:
        method: the equation and the solver.
        process: the forward process.
        grid: where the steps fall; or their times themselves, float64, in which the table is then differentiable. A
            rule that depends on the data's dimension, as `Beta`, wants `grid.suited(shape)`, which `sample` does.
        answers: in what the table takes the model's answers. V() is finite everywhere, X0() is easiest to read.

    Raises:
        NonlinearError: the solver does with states what is not linear; run it step by step.
        ValueError: the grid does not fit the process or the equation, or a coefficient is not finite.

    >>> from sdekit import DDIM, RectifiedFlow, Uniform
    >>> print(trace(DDIM, RectifiedFlow(t_min=0.0, t_max=1.0), Uniform(2)))
    ProbabilityFlow() on RectifiedFlow(t_min=0.0, t_max=1.0): 2 steps, 2 answers as X0, 0 noises
      X0  t=1
      X1  t=0.5        = +0.5 X0 +0.5 D0
      X2  t=0          = +1 D1
    """
    if isinstance(grid, Tensor):
        return _trace(method, process, grid, answers)
    try:
        return _kept(method, process, grid, answers)
    except TypeError as error:
        if isinstance(error, NonlinearError) or "unhashable" not in str(error):
            raise
        return _trace(method, process, grid(process), answers)


@lru_cache(maxsize=64)
def _kept(method: Method, process: Process, grid: Grid, answers: Target) -> Plan:
    return _trace(method, process, grid(process), answers)


def _trace(method: Method, process: Process, times: Tensor, answers: Target) -> Plan:
    table = _Table(method, process, answers)
    x = Form({("x", 0): 1.0})
    table.rows.append(Row(_time(times[0])))
    points = [0]
    for state, s, seen in march(method.equation.of(table), method.solver, x, times, table.of_step):
        points.append(table.name(state, s))
        table.keep(seen, s)
    left = without_memory(table.rows, {*points, *(i for i, _ in table.asks)})
    new = {old: i for i, old in enumerate(left)}
    rows = [dataclasses.replace(row, states=tuple((new[i], c) for i, c in row.states)) for row in left.values()]
    asks = tuple((new[i], t) for i, t in table.asks)
    ends = tuple(new[i] for i in points)
    return Plan(process, method.equation, answers, shortened(rows), asks, tuple(table.draws), ends)


class _Table:
    """Stands in for the model and the noise, and writes down what is asked of them."""

    def __init__(self, method: Method, process: Process, answers: Target) -> None:
        self.method, self.process, self.answers = method, process, answers
        self.rows: list[Row] = []
        self.asks: list[tuple[int, float]] = []
        self.draws: list[tuple[int, float, float]] = []

    def __call__(self, x: Any, t: Time, /) -> Prediction:
        t = as_time(t)
        if t.ndim:
            raise NonlinearError("A traced step asks the model at one time for the whole batch; this one has many.")
        self.asks.append((self.name(x, t), _time(t)))
        return Prediction(self.process, x, t, Form({("f", len(self.asks) - 1): 1.0}), self.answers)  # type: ignore[arg-type]

    def of_step(self, k: int) -> Draw:
        def draw(t: Time, s: Time) -> Any:
            self.draws.append((k, _time(as_time(t)), _time(as_time(s))))
            return Form({("z", len(self.draws) - 1): 1.0})

        return draw

    def name(self, x: Any, t: Tensor) -> int:
        """Make a state of a form, which is from now on that state's symbol, and return its number."""
        if not isinstance(x, Form):
            raise NonlinearError(f"A traced step returns a sum of states, answers and noise; got {type(x).__name__}.")
        if len(x.terms) == 1:
            (((kind, i), c),) = x.terms.items()
            if kind == "x" and float(c) == 1 and self.rows[i].t == _time(t):
                return i
        self._check(x, t)
        self.rows.append(Row(_time(t), *(_terms(x, kind) for kind in "xfz")))
        x.terms = {("x", len(self.rows) - 1): 1.0}
        return len(self.rows) - 1

    def keep(self, seen: Any, t: Tensor) -> None:
        """Make states of the longer forms that later steps look back at, so that they are summed once."""
        if isinstance(seen, Form) and len(seen.terms) > 2:
            self.name(seen, t)
        elif isinstance(seen, tuple | list):
            for part in seen:
                self.keep(part, t)
        elif dataclasses.is_dataclass(seen) and not isinstance(seen, Prediction | type):
            self.keep([getattr(seen, field.name) for field in dataclasses.fields(seen)], t)

    def _check(self, x: Form, t: Tensor) -> None:
        bad = [
            symbol
            for symbol, c in x.terms.items()
            if not math.isfinite(float(c.detach() if isinstance(c, Tensor) else c))
        ]
        if bad:
            names = ", ".join({"x": "X", "f": "D", "z": "Z"}[kind] + str(i) for kind, i in bad)
            raise ValueError(
                f"The coefficients of a plan must be finite; in {self.method} on {self.process} that of {names} in the "
                f"state at t={float(t):g} is not. Move the grid's ends inwards, or take the answers as V(), which is "
                "finite everywhere."
            )


def _terms(x: Form, kind: str) -> Terms:
    found = [(i, c) for (of, i), c in x.terms.items() if of == kind and (isinstance(c, Tensor) or c != 0)]
    return tuple(sorted(found, key=lambda term: term[0]))


def _time(t: Tensor) -> float:
    return t if t.requires_grad else float(t)  # type: ignore[return-value]
