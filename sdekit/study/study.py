"""A study: models x contenders x budgets of network calls x seeds, by some metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from sdekit.study.claims import Claims
from sdekit.study.config import read, settings
from sdekit.study.contender import Contender
from sdekit.study.measure import Measure
from sdekit.study.planned import Planned, Tuned
from sdekit.study.reference import Reference
from sdekit.study.report import Report
from sdekit.study.rows import REAL, Row, Rows
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
        metric: a metric or several: callables from samples, (n, *shape), to a number, lower is better; they may have a
            `name`. What those with `extractor` and `of` look at is kept, so that new ones need no new samples.
        shape: the shape of the batch to draw, (n, *shape).
        floor: held-out real samples, (m, *shape), measured like the others: what perfect samples would get. That is
            so at equal n alone. So if m < n, only m samples are drawn; if m > n, each seed takes n of the m by lot.
        budgets: numbers of network calls.
        seeds: of the noise; the values' spread over them is the error bar.
        grid: the rule of the grid; its number of steps does not matter.

    Raises:
        TypeError: a method, the grid or a metric is not one.
        ValueError: nothing is asked for, or something twice, or a number or shape that cannot be.

    >>> from sdekit import DDIM, HEUN, Denoiser, Eps, VP
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> study = Study(model, {"DDIM": DDIM, "Heun": HEUN}, metric=Tensor.std, shape=(400, 2), budgets=(4, 8))
    >>> report = study.run("runs/zero.jsonl")  # doctest: +SKIP
    """

    model: Model | Reference | Mapping[str, Model | Reference]
    methods: Mapping[str, Method | Plan | Contender]
    metric: Metric | Sequence[Metric]
    shape: tuple[int, ...]
    floor: Tensor | None = None
    budgets: tuple[int, ...] = (5, 10, 20, 50)
    seeds: tuple[int, ...] = (0, 1, 2)
    grid: Grid = Denoised(LogSNR(1))

    def __post_init__(self) -> None:
        _check_kinds(self)
        _check_numbers("shape", self.shape, 1)
        _check_numbers("budgets", self.budgets, 1)
        _check_numbers("seeds", self.seeds, 0)
        for name in ("budgets", "seeds"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f"{name} must all differ; got {getattr(self, name)}. Leave out the repeated ones.")
        if self.floor is not None and (len(self.floor) == 0 or tuple(self.floor.shape[1:]) != tuple(self.shape[1:])):
            raise ValueError(
                f"The floor must hold real samples of the shape drawn, {self.shape[1:]} each; got a batch of shape "
                f"{tuple(self.floor.shape)}. Reshape one of the two."
            )

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
        return tuple(self.metric) if isinstance(self.metric, Sequence) else (self.metric,)

    @property
    def contenders(self) -> dict[str, Contender]:
        """The methods as contenders, by their labels."""
        return {label: _contender(method, self.grid) for label, method in self.methods.items()}

    @property
    def cells(self) -> list[Cell]:
        """The cells in the order in which they are run: real data first, then from cheap to dear."""
        cells: list[Cell] = []
        if self.floor is not None:  # where all of it is taken, all seeds are one
            seeds = self.seeds[: None if self.n < len(self.floor) else 1]
            cells += [Real(tuple(self.floor.shape), seed) for seed in seeds]
        for model in self.models:
            for budget in sorted(self.budgets):
                for name, contender in self.contenders.items():
                    cells += [Generated(name, contender, budget, seed, tuple(self.shape), model) for seed in self.seeds]
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
        _check_numbers("workers", (workers,), 1)
        runner = self._runner(path, batch)
        Rows(runner.path).mend()
        for _ in progress(Running(runner, runner.tasks(self.cells), workers)):
            pass
        return Report(tuple(self._rows(runner)), runner.path)

    def _runner(self, path: str | Path, batch: int) -> Runner:
        _check_numbers("batch", (batch,), 1)
        bench = Bench(self.models, tuple(Measure(metric) for metric in self.metrics), self.floor, self.n, batch)
        path = Path(path)
        return Runner(bench, path, Claims(path.with_name(f"{path.name}.claims")))

    def _rows(self, runner: Runner) -> Iterator[Row]:
        """Yield the rows of this study in the order of its cells, with its labels."""
        known, cells = Rows(runner.path).latest(), [(runner.bench.id(cell), cell) for cell in self.cells]
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


def _check_kinds(study: Study) -> None:
    if not study.methods:
        raise ValueError("A study needs at least one method; got none. Pass {'DDIM': DDIM}, say.")
    for name, method in study.methods.items():
        if not isinstance(method, Method | Plan | Contender):
            raise TypeError(
                f"A method must be a Method, a Plan, or a contender such as Sampler; {name!r} is {method!r}. "
                "Pass DDIM, Sampler(DDIM, Uniform(1)), or Function(solver), say."
            )
        if isinstance(method, Tuned) and method.seed in study.seeds:
            raise ValueError(f"A plan must not be fitted on a seed that it is measured on; {name!r} has {method.seed}.")
    if REAL in study.methods:
        raise ValueError(f"A method must not be called {REAL!r}, which names the floor; give it another label.")
    if not study.models:
        raise ValueError("A study needs at least one model; got none.")
    if not isinstance(study.grid, Grid):
        raise TypeError(f"grid must be a Grid; got {study.grid!r}. Pass Denoised(LogSNR(1)), say.")
    if not study.metrics or not all(callable(metric) for metric in study.metrics):
        raise TypeError(f"metric must be a callable from samples to a number, or several; got {study.metric!r}.")


def _check_numbers(name: str, values: tuple[int, ...], least: int) -> None:
    if not values or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"{name} must hold whole numbers of at least {least}, one or more; got {values!r}.")
