"""A report: what a study has found, as figures, tables, plots and a page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdekit.study.entry import Entry
from sdekit.study.figure import Cost, draw
from sdekit.study.findings import Findings
from sdekit.study.frame import as_csv, as_frame, records, write_parquet
from sdekit.study.html import page
from sdekit.study.outcome import Outcome
from sdekit.study.rows import OK, DrawRow, Row, Rows
from sdekit.study.table import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


@dataclass(frozen=True, eq=False)
class Report:
    """The rows of a study, draws and values, and what they say of every model by every metric.

    Where there is one model and one metric, `methods`, `budgets`, `entries`, `floor` and `best` are those of `of()`.

    Args:
        rows: of both kinds.
        path: the file that they are from, for the samples beside it; None if there is none.

    Raises:
        ValueError: there is no row of a method, or rows of one model and metric do not compare.
    """

    rows: tuple[Row, ...]
    path: Path | None = None

    def __post_init__(self) -> None:
        if not self.findings:
            Findings(tuple(Outcome(row, None) for row in self.rows if row["kind"] == "draw"))  # raises

    @classmethod
    def read(cls, path: str | Path) -> Report:
        """Return the report on all rows of a file, without the model or the data."""
        rows = Rows(Path(path))
        return cls((*rows.draws().values(), *rows.values().values()), Path(path))

    @cached_property
    def findings(self) -> dict[tuple[str, str], Findings]:
        """What has been found of each model, by its label, by each metric, by its name."""
        models = dict.fromkeys(str(row["model"]) for row in self._draws if row["budget"] is not None)
        metrics = dict.fromkeys(row["metric"] for row in self.rows if row["kind"] == "value") or {"": None}
        both = {(model, metric): self._outcomes(model, metric) for model in models for metric in metrics}
        return {key: Findings(outcomes) for key, outcomes in both.items() if outcomes}

    def of(self, model: str | None = None, metric: str | None = None) -> Findings:
        """Return what has been found of one model by one metric; each may be left out where there is but one.

        Raises:
            ValueError: there is none such, or more than one.
        """
        fits = [found for key, found in self.findings.items() if model in (None, key[0]) and metric in (None, key[1])]
        if len(fits) != 1:
            have = ", ".join(f"model={key[0]!r}, metric={key[1]!r}" for key in self.findings)
            raise ValueError(
                f"Figures are of one model and one metric to be comparable; got {len(fits)} that fit. Ask for one of: "
                f"{have}."
            )
        return fits[0]

    @property
    def methods(self) -> list[str]:
        """The methods' labels, in the order of the study."""
        return self.of().methods

    @property
    def budgets(self) -> list[int]:
        """The budgets, rising."""
        return self.of().budgets

    @property
    def entries(self) -> dict[tuple[str, int], Entry]:
        """The entry of each method, by label, at each budget."""
        return self.of().entries

    @property
    def floor(self) -> Entry | None:
        """The entry of real data, None if the study has none."""
        return self.of().floor

    @property
    def fine(self) -> Entry | None:
        """The entry of the fine solution of the model's flow, None if the study has none."""
        return self.of().fine

    def best(self, budget: int) -> str | None:
        """Return the method with the lowest mean at a budget; None if none has a value for every seed."""
        return self.of().best(budget)

    def table(self) -> str:
        """Return Markdown tables of means and intervals, a row a method, a column a budget, real data last.

        If there is a fine solution, a second table tells how much worse each method is.
        """
        return "\n\n".join(markdown(found, of=self._heading(found)) for found in self.findings.values())

    def plot(self, path: str | Path | None = None, cost: Cost = Cost.CALLS) -> Figure:
        """Draw every metric against a cost, a line a method, and write the figure to a file if one is given.

        Raises:
            ImportError: matplotlib is missing.
        """
        figure = draw({self._heading(found): found for found in self.findings.values()}, cost)
        if path is not None:
            figure.savefig(path, bbox_inches="tight", dpi=200)
        return figure

    @property
    def records(self) -> list[dict[str, Any]]:
        """A dictionary for every entry, all of one shape: see `frame.COLUMNS`."""
        return [record for found in self.findings.values() for record in records(found)]

    def csv(self) -> str:
        """Return the records as CSV, with a header."""
        return as_csv(self.records)

    def dataframe(self) -> DataFrame:
        """Return the records as a pandas DataFrame.

        Raises:
            ImportError: pandas is missing.
        """
        return as_frame(self.records)

    def parquet(self, path: str | Path) -> None:
        """Write the records to a parquet file.

        Raises:
            ImportError: pandas or pyarrow is missing.
        """
        write_parquet(self.records, Path(path))

    def html(self, path: str | Path, title: str = "Quality against network evaluations", command: str = "") -> Path:
        """Write one page that holds everything and asks for nothing from elsewhere, and return its path.

        Args:
            path: the file.
            title: the page's heading.
            command: what the study was run by, for those who want to do it again.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = page(self.findings, self.path, title, command)
        path.write_text(text, encoding="utf-8", newline="\n")
        return path

    @cached_property
    def _valued(self) -> set[str]:
        """The cells that have been measured by anything."""
        return {row["id"] for row in self.rows if row["kind"] == "value"}

    @cached_property
    def _draws(self) -> list[DrawRow]:
        """The draws, model by model, those of each in the order of the study, as far as their places are known."""

        def place(row: DrawRow) -> tuple[Any, ...]:
            return row["model"], row["method"], row["budget"], row["seed"]

        draws = [row for row in self.rows if row["kind"] == "draw"]
        loaded = {place(row) for row in draws if row["print"]}  # some, maybe, after they could not be at first
        draws = [row for row in draws if row["print"] or place(row) not in loaded]
        models = list(dict.fromkeys(row["model"] for row in draws))
        return sorted(draws, key=lambda row: (models.index(row["model"]), row.get("place", 0)))

    def _heading(self, found: Findings) -> str:
        """Return what tells a finding from the others: the metric, and the model where there are several."""
        several = len({model for model, _ in self.findings}) > 1
        return f"{found.model}: {found.metric}" if several else found.metric

    def _outcomes(self, model: str, metric: str) -> tuple[Outcome, ...]:
        """Return the outcomes of a model by a metric; none without one of a method.

        Those of real data are among them, if by the same measure and of the same number of samples.
        """
        values: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.rows:
            if row["kind"] == "value" and row["metric"] == metric:
                values.setdefault(row["id"], []).append(row)
        ours = [row for row in self._draws if row["budget"] is not None and str(row["model"]) == model]
        samples = {row["samples"] for row in ours}
        real = [row for row in self._draws if row["budget"] is None and row["samples"] in samples]
        measured = {row["method"] for row in ours if row["id"] in values}
        if not measured and any(row["id"] in self._valued for row in ours):
            return ()  # the model was measured, but never by this
        measures = {value["measure"] for row in ours for value in values.get(row["id"], ())}
        outcomes: list[Outcome] = []
        for of in real:
            outcomes += [Outcome(of, v) for v in values.get(of["id"], ()) if v["measure"] in measures]
            outcomes += [Outcome(of, None)] * (of["status"] != OK)
        for of in ours:
            if of["method"] in measured or of["status"] != OK or not metric:
                outcomes += [Outcome(of, v) for v in values.get(of["id"], (None,))]
        return tuple(outcomes) if any(not o.real and not o.fine for o in outcomes) else ()
