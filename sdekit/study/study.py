"""A study: models x contenders x budgets of network calls x seeds, by some metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from sdekit.grid import Denoised, Grid, LogSNR
from sdekit.methods import Method
from sdekit.plan import Plan
from sdekit.prediction import Model
from sdekit.study.agenda import Agenda
from sdekit.study.bench import Bench
from sdekit.study.cells import Cell, Generated, Real
from sdekit.study.checks import check_floor, check_grid, check_methods, check_metrics, check_models, distinct, whole
from sdekit.study.claims import Claims
from sdekit.study.config import read, settings
from sdekit.study.contender import Contender
from sdekit.study.flow_error import FlowError
from sdekit.study.measure import Measure
from sdekit.study.planned import Planned
from sdekit.study.reference import Reference
from sdekit.study.report import Report
from sdekit.study.rows import FINE, Row, Rows
from sdekit.study.runner import Runner, Task
from sdekit.study.sampler import Sampler

Metric: TypeAlias = Callable[[Tensor], float]
Progress: TypeAlias = Callable[["Running"], Iterable[Cell]]


@dataclass(frozen=True, eq=False)
class Study:
    """Every contender on every model at every budget with every seed, measured by every metric.

    Each such cell draws samples by the largest run that costs no more network calls than the budget, by a count. All
    cells of a seed start from the same noise, and stochastic ones are driven by the same Brownian paths, so contenders
    differ by what they do alone. Nothing is clipped or thresholded. A model with a condition for each sample bound to
    it, as in `model.given(label=labels)`, keeps sample i at its label whatever the batch.

    Args:
        model: a model, or several by their labels; each may be a `Reference`, which workers load by themselves. A
            module is run in evaluation mode, and put back after.
        methods: by their labels: a `Method`, which runs on `grid`; a `Sampler`, which has a grid of its own; a `Plan`;
            or any `Contender`, `Tuned` and `Function` among them.
        metric: a metric or several, also by labels, which then are their names: callables from samples, (n, *shape), to
            a number, lower is better; they may have a `name`. What those with `extractor` and `of` look at is kept, so
            that new ones need no new samples.
        shape: the shape of the batch to draw, (n, *shape).
        floor: held-out real samples, (m, *shape), measured like the others: what perfect samples would get. That is
            so at equal n alone. So if m < n, only m samples are drawn; if m > n, each seed takes n of the m by lot.
        budgets: numbers of network calls.
        seeds: of the noise; the values' spread over them is the error bar.
        grid: the rule of the grid; its number of steps does not matter.

    Raises:
        TypeError: a model, a method, a metric, the grid, the floor or a label is not one, or numbers no sequence.
        ValueError: nothing is asked for, or something twice, or a number or shape that cannot be; two metrics have one
            name.

    >>> from sdekit import DDIM, HEUN, Denoiser, Eps, VP
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> study = Study(model, {"DDIM": DDIM, "Heun": HEUN}, metric=Tensor.std, shape=(400, 2), budgets=(4, 8))
    >>> report = study.run("runs/zero.jsonl")  # doctest: +SKIP
    """

    model: Model | Reference | Mapping[str, Model | Reference]
    methods: Mapping[str, Method | Plan | Contender]
    metric: Metric | Sequence[Metric] | Mapping[str, Metric]
    shape: tuple[int, ...]
    floor: Tensor | None = None
    budgets: tuple[int, ...] = (5, 10, 20, 50)
    seeds: tuple[int, ...] = (0, 1, 2)
    grid: Grid = Denoised(LogSNR(1))

    def __post_init__(self) -> None:
        for name, least in (("shape", 1), ("budgets", 1), ("seeds", 0)):
            object.__setattr__(self, name, whole(name, getattr(self, name), least))
        distinct("budgets", self.budgets)
        distinct("seeds", self.seeds)
        check_methods(self.methods, self.seeds)
        check_models(self.models)
        check_metrics(self.metric, self.measures)
        check_floor(self.floor, self.shape)
        check_grid(self.grid)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Study:
        """Return the study that is described in plain types, as in a YAML file: see `config.settings`.

        Raises:
            ValueError: a key, a name or a value is unknown, or one is missing.
        """
        return cls(**settings(config))

    @property
    def n(self) -> int:
        """The number of samples in every cell, model's or real: the smaller of what is asked for and what is there."""
        return self.shape[0] if self.floor is None else min(self.shape[0], len(self.floor))

    @property
    def models(self) -> dict[str, Model | Reference]:
        """The models by their labels; a single one is "model"."""
        return dict(self.model) if isinstance(self.model, Mapping) else {"model": self.model}

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics."""
        return tuple(measure.metric for measure in self.measures)

    @cached_property
    def measures(self) -> tuple[Measure, ...]:
        """The metrics, each with the label that it has been given."""
        if isinstance(self.metric, Mapping):
            return tuple(Measure(metric, label) for label, metric in self.metric.items())
        if isinstance(self.metric, Sequence) and not isinstance(self.metric, str):
            return tuple(Measure(metric) for metric in self.metric)
        return (Measure(self.metric),)

    @property
    def contenders(self) -> dict[str, Contender]:
        """The methods as contenders, by their labels."""
        return {label: _contender(method, self.grid) for label, method in self.methods.items()}

    @property
    def cells(self) -> list[Cell]:
        """The cells in the order in which they are run: real data, the fine solution, then from cheap to dear."""
        cells: list[Cell] = []
        if self.floor is not None:  # where all of it is taken, all seeds are one
            seeds = self.seeds[: None if self.n < len(self.floor) else 1]
            cells += [Real(tuple(self.floor.shape), seed) for seed in seeds]
        flows = [metric for metric in self.metrics if isinstance(metric, FlowError)]
        finest = max(flows, key=lambda flow: flow.budget, default=None)
        for model in self.models:
            if finest is not None:
                cells += [Generated(FINE, finest.fine, finest.budget, seed, self.shape, model) for seed in self.seeds]
            for budget in sorted(self.budgets):
                for name, contender in self.contenders.items():
                    cells += [Generated(name, contender, budget, seed, self.shape, model) for seed in self.seeds]
        return cells

    def plan(self, path: str | Path, batch: int = 256) -> Agenda:
        """Return what `run` would do, to be printed: the cells, the network calls, and how long that may take.

        Args:
            path: as for `run`; nothing is written.
            batch: as for `run`.
        """
        runner = self._runner(path, batch)
        return Agenda.of(runner, self.cells)

    def run(
        self,
        path: str | Path,
        batch: int = 256,
        progress: Progress = iter,
        workers: int = 1,
    ) -> Report:
        """Measure the cells that have no values yet, append rows for each to a file, and report on them all.

        Kill it at any moment and run it again: it goes on from there. Several runs may share a file and its work. A
        cell that fails, whatever the reason, is a row that says so, and the next run tries it again. Rows of other
        studies in the file stay as they are. Beside the file lie folders of features, of a few samples of each cell and
        of fitted plans; what is deleted of them is drawn or fitted again where it is needed.

        Args:
            path: the file, one row a line in JSON; it is made if it is not there.
            batch: how many samples are drawn at a time; they depend on it no further than the network's rounding.
            progress: takes the cells to run, of known number, and yields them one by one as they are done, as
                `tqdm.tqdm` does. It may stop early; the report is then on what there is.
            workers: the number of processes, of one thread each, by joblib: on this machine, or on what
                `joblib.parallel_config(backend="dask")` and the like choose. All must see the file.

        Raises:
            ValueError: `batch` or `workers` < 1, or there is nothing to report.
            ImportError: there are several workers, and joblib is missing.
            StorageError: the file, or one beside it, cannot be written.
        """
        whole("workers", (workers,), 1)
        runner = self._runner(path, batch)
        cells = self._known(runner)
        Rows(runner.path).mend()
        for _ in progress(Running(runner, runner.tasks([cell for _, cell in cells]), workers)):
            pass
        return Report(tuple(self._rows(runner, cells)), runner.path)

    def report(self, path: str | Path) -> Report:
        """Report on the cells of this study that are in a file, in the order of the study and with its labels.

        Args:
            path: as for `run`; other rows in it, such as those of what a label meant before, have no part.

        Raises:
            ValueError: there is nothing to report.
        """
        runner = self._runner(path, batch=1)
        return Report(tuple(self._rows(runner, self._known(runner))), runner.path)

    def _runner(self, path: str | Path, batch: int) -> Runner:
        whole("batch", (batch,), 1)
        bench = Bench(self.models, self.measures, self.floor, self.n, batch)
        path = Path(path)
        return Runner(bench, path, Claims(path.with_name(f"{path.name}.claims")))

    def _known(self, runner: Runner) -> list[tuple[str, Cell]]:
        """Return the cells with their ids, which are those before anything has run, whatever that changes."""
        return [(runner.bench.id(cell), cell) for cell in self.cells]

    def _rows(self, runner: Runner, cells: Sequence[tuple[str, Cell]]) -> Iterator[Row]:
        """Yield the rows of this study in the order of its cells, with its labels."""
        known = Rows(runner.path).latest()
        for id, cell in cells:
            row = known.get((id, ""))
            if row is not None and row["kind"] == "draw":
                yield {**row, "method": cell.method, "model": cell.model}
        for id in dict.fromkeys(id for id, _ in cells):
            for measure in runner.bench.measures:
                row = known.get((id, measure.print))
                if row is not None and row["kind"] == "value":
                    yield {**row, "metric": measure.name}


def read_study(path: str | Path) -> Study:
    """Return the study that a YAML file describes: see `config.settings`.

    Raises:
        ValueError: it is no YAML, or something in it is unknown or missing.
        ImportError: PyYAML is missing.
    """
    return Study.from_config(read(path))


class Running:
    """The cells of a run: of known number, settled one by one as they are asked for."""

    def __init__(self, runner: Runner, tasks: Sequence[Task], workers: int) -> None:
        self.runner, self.tasks, self.workers = runner, tasks, workers

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Cell]:
        return self.runner.run(self.tasks, self.workers)


def _contender(method: Any, grid: Grid) -> Contender:
    if isinstance(method, Method):
        return Sampler(method, grid)
    if isinstance(method, Plan):
        return Planned((method,))
    contender: Contender = method
    return contender
