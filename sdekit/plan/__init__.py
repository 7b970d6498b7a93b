"""A sampler as a table of numbers: traced from a solver, run, analysed exactly, fitted to a model."""

from sdekit.plan.form import Form, NonlinearError
from sdekit.plan.grids import by_law, equidistributed, shortest
from sdekit.plan.law import Law, law, marginal
from sdekit.plan.plan import Plan
from sdekit.plan.rows import Row
from sdekit.plan.run import Carry, pause, run, walk
from sdekit.plan.trace import march, trace
from sdekit.plan.tune import Errors, Tuned, tune

__all__ = [
    "Carry",
    "Errors",
    "Form",
    "Law",
    "NonlinearError",
    "Plan",
    "Row",
    "Tuned",
    "by_law",
    "equidistributed",
    "law",
    "march",
    "marginal",
    "pause",
    "run",
    "shortest",
    "trace",
    "tune",
    "walk",
]
