"""A study: samplers against budgets of network calls, over several seeds, by one metric."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sdekit.grid import Denoised, Grid, LogSNR
from sdekit.methods import Method
from sdekit.prediction import Model
from sdekit.study.bench import Bench
from sdekit.study.cells import Cell, Generated, Real
from sdekit.study.report import Report
from sdekit.study.rows import OK, REAL, Row, Rows
from sdekit.study.sampler import Sampler


@dataclass(frozen=True, eq=False)
class Study:
    """Every method at every budget with every seed, measured by one metric.

    Each such cell draws samples on a grid with the largest number of steps that costs no more network calls than the
    budget, by a count. All cells of a seed start from the same noise, so methods differ by what they do alone.

    Args:
        model: the model; a module is run in evaluation mode, and put back after.
        methods: by their labels: a `Method`, which runs on `grid`, or a `Sampler`, which has a grid of its own.
        metric: a callable from samples, (n, *shape), to a number, lower is better; it may have a `name`.
        shape: the shape of the batch to draw, (n, *shape).
        floor: held-out real samples, (m, *shape), measured like the others: what perfect samples would get. That is
            so at equal n alone. So if m < n, only m samples are drawn; if m > n, each seed takes n of the m by lot.
        budgets: numbers of network calls.
        seeds: of the noise; the values' spread over them is the error bar.
        grid: the rule of the grid; its number of steps does not matter.

    Raises:
        TypeError: a method, the grid or the metric is not one.
        ValueError: nothing is asked for, or something twice, or a number or shape that cannot be.

    >>> from sdekit import DDIM, HEUN, Denoiser, Eps, VP
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> study = Study(model, {"DDIM": DDIM, "Heun": HEUN}, metric=Tensor.std, shape=(400, 2), budgets=(4, 8))
    >>> report = study.run("runs/zero.jsonl")  # doctest: +SKIP
    """

    model: Model
    methods: Mapping[str, Method | Sampler]
    metric: Callable[[Tensor], float]
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

    @property
    def n(self) -> int:
        """The number of samples in every cell, model's or real: the smaller of what is asked for and what is there."""
        return self.shape[0] if self.floor is None else min(self.shape[0], len(self.floor))

    @property
    def cells(self) -> list[Cell]:
        """The cells in the order in which they are run: real data first, then from cheap to dear."""
        samplers = {k: m if isinstance(m, Sampler) else Sampler(m, self.grid) for k, m in self.methods.items()}
        cells: list[Cell] = []
        if self.floor is not None:  # where all of it is taken, all seeds are one
            cells += [Real(self.floor, seed) for seed in self.seeds[: None if self.n < len(self.floor) else 1]]
        for budget in sorted(self.budgets):
            for name, sampler in samplers.items():
                cells += [Generated(name, sampler, budget, seed, self.shape) for seed in self.seeds]
        return cells

    def run(
        self,
        path: str | Path,
        batch: int = 256,
        progress: Callable[[Sequence[Cell]], Iterable[Cell]] = iter,
    ) -> Report:
        """Measure the cells that have no value yet, append a row for each to a file, and report on them all.

        Kill it at any moment and run it again: it goes on from there. A cell that fails, whatever the reason, is a
        row that says so, and the next run tries it again. Rows of other studies in the file stay as they are.

        Args:
            path: the file, one `Row` a line in JSON; it is made if it is not there.
            batch: how many samples are drawn at a time; they depend on it no further than the network's rounding. A
                model with a condition for each sample bound to it, `given(label=labels)`, needs them all in one.
            progress: takes the cells to run and yields them one by one, as `tqdm.tqdm` does. It may stop
                early; the report is then on what there is.

        Raises:
            ValueError: `batch` < 1, or there is nothing to report.
            OSError: the file cannot be written.
        """
        _check_numbers("batch", (batch,), 1)
        bench, rows = Bench(self.model, self.metric, self.n, batch), Rows(Path(path))
        rows.mend()
        known = rows.latest()
        cells = [(bench.id(cell), cell) for cell in self.cells]
        pending = {id: cell for id, cell in cells if id not in known or known[id]["status"] != OK}
        for cell in progress(list(pending.values())):
            row = bench.row(cell)
            if _is_news(row, known):
                rows.append(row)
            known[row["id"]] = row
        return Report(tuple({**known[id], "method": cell.method} for id, cell in cells if id in known))


def _is_news(row: Row, known: dict[str, Row]) -> bool:
    """Tell whether a row adds to what is known: a cell that fails again in the same way does not."""
    return row["id"] not in known or row["status"] != known[row["id"]]["status"]


def _check_kinds(study: Study) -> None:
    if not study.methods:
        raise ValueError("A study needs at least one method; got none. Pass {'DDIM': DDIM}, say.")
    for name, method in study.methods.items():
        if not isinstance(method, Method | Sampler):
            raise TypeError(
                f"A method must be a Method, or a Sampler with a grid of its own; {name!r} is {method!r}. "
                "Pass DDIM, or Sampler(DDIM, Uniform(1)), say."
            )
    if REAL in study.methods:
        raise ValueError(f"A method must not be called {REAL!r}, which names the floor; give it another label.")
    if not isinstance(study.grid, Grid):
        raise TypeError(f"grid must be a Grid; got {study.grid!r}. Pass Denoised(LogSNR(1)), say.")
    if not callable(study.metric):
        raise TypeError(f"metric must be a callable from samples to a number; got {study.metric!r}.")


def _check_numbers(name: str, values: tuple[int, ...], least: int) -> None:
    if not values or not all(isinstance(v, int) and v >= least for v in values):
        raise ValueError(f"{name} must hold whole numbers of at least {least}, one or more; got {values!r}.")
