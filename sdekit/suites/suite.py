"""A suite: studies that share a file, the metrics of which are measured once more by blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdekit._value import suggest
from sdekit.metrics.features import OnFeatures
from sdekit.study import Agenda, Report, Study, read_study
from sdekit.study.blocks import add_blocks
from sdekit.study.rows import OK, key_of
from sdekit.suites.studies import analytic, digits, mnist, patches

Progress = Callable[..., Iterable[Any]]


@dataclass(frozen=True, eq=False)
class Suite:
    """Studies that are run one after another into one file.

    Args:
        name: what it is called.
        make: makes the studies, and the models if they have not been made before.
        about: what it is, in a line.
        batch: how many samples are drawn at a time.
    """

    name: str
    make: Callable[[], Sequence[Study]]
    about: str
    batch: int = 512

    @cached_property
    def studies(self) -> tuple[Study, ...]:
        """The studies."""
        return tuple(self.make())

    def plan(self, path: str | Path) -> Iterator[Agenda]:
        """Yield what each study has before it; nothing is written."""
        for study in self.studies:
            yield study.plan(path, self.batch)

    def run(self, path: str | Path, workers: int = 1, progress: Progress = iter) -> Report:
        """Run what is left of the studies, and then measure by blocks, so that three seeds decide.

        Args:
            path: the file of the rows; those that are not of these studies stay as they are, and out of the report.
            workers: the number of processes.
            progress: takes what is to be done, of known number, and yields it as it is done, as `tqdm.tqdm` does.
        """
        for study in self.studies:
            report = study.run(path, self.batch, progress, workers)
            known = {row["metric"] for row in report.rows if row["kind"] == "value" and row["status"] == OK}
            again = [m for m in study.measures if isinstance(m.metric, OnFeatures) and m.name in known]
            add_blocks(path, *(measure.metric for measure in again), progress=progress)
        return self.report(path)

    def report(self, path: str | Path) -> Report:
        """Report on the cells of the studies that are in a file, in the order of the studies."""
        rows = [row for study in self.studies for row in study.report(path).rows]
        each = {(key_of(row), row.get("model"), row.get("method")): row for row in rows}  # studies may share cells
        return Report(tuple(each.values()), Path(path))


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite("analytic", analytic, "two laws known exactly: errors against the exact flow and in law"),
        Suite("digits", digits, "8x8 digits, a class-conditional MLP: Frechet distance in a classifier's features"),
        Suite("mnist", mnist, "MNIST, a class-conditional U-Net: Frechet distance in a classifier's features"),
        Suite("patches", patches, "32x32 colour patches as a mixture of low rank: errors against the exact flow"),
    )
}
"""The suites that ship, by name."""


def find(name: str) -> Suite:
    """Return the suite of that name, or of the one study in a YAML file, by whose name it is called.

    Raises:
        ValueError: there is none such, or the file does not describe a study.
        ImportError: PyYAML is missing.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Suite(Path(name).stem, lambda: [read_study(name)], f"the study in {name}")
    if name not in SUITES:
        raise ValueError(f"There is no suite called {name!r}. {suggest(name, list(SUITES))} Or give a .yaml file.")
    return SUITES[name]
