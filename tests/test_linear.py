"""Every solver's step is linear in the state, the predictions and the noise: it runs on symbols and yields a table."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch

import sdekit.solvers
from sdekit import DDIM, DDPM, VP, X0, Discrete, LogSNR, Method, Prediction, ProbabilityFlow, ReverseSDE, StochasticDDIM
from sdekit.grid import Trailing
from sdekit.methods import METHODS


class Form:
    """An affine form: a sum of symbols with coefficients. It knows sums and multiples, and nothing else."""

    def __init__(self, terms):
        self.terms = Counter(terms)

    def __add__(self, other):
        return Form({k: self.terms[k] + other.terms[k] for k in {*self.terms, *other.terms}})

    def __mul__(self, c):
        return Form({k: float(c) * v for k, v in self.terms.items()})

    def __sub__(self, other):
        return self + other * -1

    def __truediv__(self, c):
        return self * (1 / c)

    __rmul__ = __mul__


class Symbols:
    """A model that answers with a new symbol for x0 each time."""

    process = VP()

    def __init__(self, process):
        self.process, self.asked = process, []

    def __call__(self, x, t):
        self.asked.append(x)
        return Prediction(self.process, x, t, Form({("x0", len(self.asked)): 1.0}), X0())


def table(method, process, grid):
    """The last state of a run as a form in the first state, the predictions and the noise; and what was asked."""
    model = Symbols(process)
    system, x, past = method.equation.of(model), Form({"x": 1.0}), ()
    draws = itertools.count()
    for t, s in itertools.pairwise(grid(process)):
        if s < process.t_min:
            x = system(x, t).x0
            continue
        x, seen = method.solver.step(system, x, t, s, past, lambda t, s: Form({("z", next(draws)): 1.0}))
        past = () if seen is None else (seen, *past)[: method.solver.memory]
    return x, model.asked


def distance(a, b):
    """The largest difference of two tables' coefficients, of the outcome and of every state that was asked."""
    forms = itertools.chain(zip(a[1], b[1], strict=True), [(a[0], b[0])])
    return max(abs(v) for x, y in forms for v in (x - y).terms.values())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("process", [VP(), Discrete.linear()], ids=["VP", "table"])
def test_every_method_runs_on_symbols(name, process):
    outcome, asked = table(METHODS[name], process, LogSNR(6))
    solver = METHODS[name].solver
    assert len(asked) == 6 * solver.evals + solver.starts
    assert all(abs(v) < float("inf") for v in outcome.terms.values())


def test_every_exported_solver_is_in_some_method_or_abstract():
    named = {type(m.solver) for m in METHODS.values()}
    exported = {
        v for v in vars(sdekit.solvers).values() if isinstance(v, type) and issubclass(v, sdekit.solvers.Solver)
    }
    concrete = exported - {sdekit.solvers.Solver, sdekit.solvers.RungeKutta}
    assert concrete - named == {sdekit.solvers.Ancestral}  # which StochasticDDIM(eta) names


@pytest.mark.parametrize("grid", [LogSNR(10), Trailing(10)], ids=["lam", "table"])
def test_ddim_and_ddpm_are_first_order_exponential_euler(grid):
    process = Discrete.linear()
    first = sdekit.solvers.Exponential(1)
    assert distance(table(DDIM, process, grid), table(Method(ProbabilityFlow(), first), process, grid)) < 1e-12
    assert distance(table(DDPM, process, grid), table(Method(ReverseSDE(), first), process, grid)) < 1e-12
    assert distance(table(DDPM, process, grid), table(StochasticDDIM(1.0), process, grid)) < 1e-12
    ddim, quiet = table(DDIM, process, grid), table(Method(ReverseSDE(0.0), first), process, grid)
    assert distance(ddim, quiet) < 1e-12


def test_a_table_reproduces_a_run():
    process, grid = VP(), LogSNR(5)
    x, answers = torch.randn(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), []

    class Net:
        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            answers.append(torch.tanh(x) * float(t))
            return Prediction(process, x, t, answers[-1], X0())

    ran = sdekit.solve(Net(), x, METHODS["exponential-3"], grid).x
    terms = table(METHODS["exponential-3"], process, grid)[0].terms
    built = terms["x"] * x + sum(terms["x0", i + 1] * answer for i, answer in enumerate(answers))
    torch.testing.assert_close(built, ran, rtol=1e-12, atol=1e-12)
