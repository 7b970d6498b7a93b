"""A report: findings with a table and a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sdekit.study.figure import draw
from sdekit.study.findings import Findings
from sdekit.study.rows import Rows
from sdekit.study.table import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Report(Findings):
    """The rows of a study, one for each cell, as figures, a table and a plot.

    Raises:
        ValueError: there is no row, or rows are of several models, metrics or numbers of samples, which do not compare.
    """

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """Return the report on all rows of a file, without the model or the data."""
        return cls(tuple(Rows(Path(path)).latest().values()))

    def table(self) -> str:
        """Return a Markdown table of the means and sds, a row a method, a column a budget, real data last."""
        return markdown(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw the metric against the network calls counted, a line a method, and write it to a file if one is given.

        Raises:
            ImportError: matplotlib is missing.
        """
        figure = draw(self)
        if path is not None:
            figure.savefig(path, bbox_inches="tight", dpi=200)
        return figure
