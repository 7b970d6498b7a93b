"""A sampler as a table of numbers: traced from a solver, run, analysed exactly, fitted to a model."""

from sdekit.plan.form import Form, NonlinearError
from sdekit.plan.law import Law, law, marginal
from sdekit.plan.plan import Plan
from sdekit.plan.rows import Row
from sdekit.plan.run import Carry, pause, run, walk
from sdekit.plan.trace import march, trace

__all__ = [
    "Carry",
    "Form",
    "Law",
    "NonlinearError",
    "Plan",
    "Row",
    "law",
    "march",
    "marginal",
    "pause",
    "run",
    "trace",
    "walk",
]
