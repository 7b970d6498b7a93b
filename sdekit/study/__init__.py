"""Studies: what samplers give for what they cost, kept in a file row by row, shown as a table and a plot."""

from sdekit.study.findings import Entry, Findings
from sdekit.study.order import exact_flow, measured_order
from sdekit.study.report import Report
from sdekit.study.rows import Row
from sdekit.study.sampler import Sampler
from sdekit.study.scores import Mean, Score, Scores
from sdekit.study.scoring import Scoring
from sdekit.study.study import Study

__all__ = [
    "Entry",
    "Findings",
    "Mean",
    "Report",
    "Row",
    "Sampler",
    "Score",
    "Scores",
    "Scoring",
    "Study",
    "exact_flow",
    "measured_order",
]
