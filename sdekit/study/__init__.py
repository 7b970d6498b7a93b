"""Studies: what samplers give for what they cost, kept in a file row by row, shown as a table and a plot."""

from sdekit.study.agenda import Agenda
from sdekit.study.blocks import resample
from sdekit.study.comparison import Difference
from sdekit.study.contender import BudgetError, Contender, Drawn, Function
from sdekit.study.entry import Goal
from sdekit.study.figure import Cost
from sdekit.study.findings import Entry, Findings
from sdekit.study.flow_error import FlowError
from sdekit.study.order import exact_flow, measured_order
from sdekit.study.planned import Planned, Tuned
from sdekit.study.reference import Checkpoint, Factory, Reference
from sdekit.study.report import Report
from sdekit.study.rows import DrawRow, Row, ValueRow
from sdekit.study.sampler import Sampler
from sdekit.study.scores import Mean, Score, Scores
from sdekit.study.scoring import Scoring
from sdekit.study.storage import StorageError, Store
from sdekit.study.study import Study, read_study

__all__ = [
    "Agenda",
    "BudgetError",
    "Checkpoint",
    "Contender",
    "Cost",
    "Difference",
    "DrawRow",
    "Drawn",
    "Entry",
    "Factory",
    "Findings",
    "FlowError",
    "Function",
    "Goal",
    "Mean",
    "Planned",
    "Reference",
    "Report",
    "Row",
    "Sampler",
    "Score",
    "Scores",
    "Scoring",
    "StorageError",
    "Store",
    "Study",
    "Tuned",
    "ValueRow",
    "exact_flow",
    "measured_order",
    "read_study",
    "resample",
]
