"""What a run would do: cells, network calls, time."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sdekit.study.bench import Bench
from sdekit.study.cells import Cell, Generated
from sdekit.study.failure import Failure
from sdekit.study.planned import Tuned
from sdekit.study.price import call_seconds
from sdekit.study.rows import OK, Row, Rows
from sdekit.study.runner import Runner, Task
from sdekit.study.storage import Store


@dataclass(frozen=True)
class Agenda:
    """The work that a study has before it.

    Args:
        cells: how many there are.
        pending: of these, how many want a draw or a value, by (model, method).
        calls: the network calls that they make at most, each on a batch.
        fits: the plans to be fitted before, whose calls and time are not counted here.
        seconds: that the calls take in one process, metrics apart; NaN if there is nothing to go by.
        measured: how that is known.
        failures: why models cannot be asked, by their labels; their calls and time are not counted.
    """

    cells: int
    pending: Mapping[tuple[str, str], int]
    calls: int
    fits: int
    seconds: float
    measured: str
    failures: Mapping[str, str]

    @classmethod
    def of(cls, runner: Runner, cells: Iterable[Cell]) -> Agenda:
        """Return what a runner would do of some cells."""
        cells, tasks = list(cells), runner.tasks(cells)
        rows, store = Rows(runner.path).latest(), Store(runner.path)
        drawn = [task.cell for task in tasks if _wants_samples(task, runner.bench, rows, store)]
        shapes = {cell.model: cell.shape[1:] for cell in drawn if isinstance(cell, Generated)}
        prices: dict[str, tuple[float, str]] = {}
        failures: dict[str, str] = {}
        for model, shape in shapes.items():
            try:
                prices[model] = _price(runner, model, shape)
            except Exception as error:
                failures[model] = Failure.of(error).status
        asking = [cell for cell in drawn if isinstance(cell, Generated) and cell.model in prices]
        batches = -(-runner.bench.n // runner.bench.batch)
        calls: Counter[str] = Counter()
        for cell in asking:
            calls[cell.model] += cell.budget * batches
        fits = {(c.model, c.contender, c.budget) for c in asking if isinstance(c.contender, Tuned)}
        return cls(
            len({runner.bench.id(cell) for cell in cells}),
            Counter((task.cell.model or "", task.cell.method) for task in tasks),
            sum(calls.values()),
            len(fits),
            math.fsum(calls[model] * price for model, (price, _) in prices.items()),
            " and ".join(dict.fromkeys(how for _, how in prices.values())),
            failures,
        )

    def __str__(self) -> str:
        left = sum(self.pending.values())
        lines = [f"{self.cells} cells: {self.cells - left} done, {left} to do"]
        if left:
            fits = f"; before that {self.fits} plans are fitted" if self.fits else ""
            lines.append(f"network calls: at most {self.calls:,}, each on a batch{fits}")
        if self.calls:
            lines.append(f"time: about {_told(self.seconds)} in one process, by {self.measured}")
        for model, why in self.failures.items():
            count = sum(count for (label, _), count in self.pending.items() if label == model)
            lines.append(f"the model {model!r} fails, and with it {count} cells: {why}")
        width = max((len(method) for _, method in self.pending), default=0)
        several = len({model for model, _ in self.pending if model}) > 1
        lines += [
            f"  {method:<{width}}  {count:>4} cells" + (f"  {model}" if several and model else "")
            for (model, method), count in self.pending.items()
        ]
        return "\n".join(lines)


def _price(runner: Runner, model: str, shape: tuple[int, ...]) -> tuple[float, str]:
    """Return the seconds of one network call on a batch, and how they are known."""
    bench = runner.bench
    batches = -(-bench.n // bench.batch)
    known = [
        row["seconds"] / (row["nfe"] * batches)
        for row in Rows(runner.path).draws().values()
        if row["print"] == bench.prints[model] and row["samples"] == bench.n and row["status"] == OK
        if row["seconds"] and row["nfe"]
    ]
    if known:
        return statistics.median(known), "the cells that are done"
    size = min(bench.n, bench.batch)
    return call_seconds(bench.model(model), (size, *shape)), "one call of the model"


def _wants_samples(task: Task, bench: Bench, rows: Mapping[tuple[str, str], Row], store: Store) -> bool:
    """Tell whether a cell is drawn: where it has not been, or a metric has no value and what it looks at is gone."""

    def done(measure: str) -> bool:
        key = task.id, measure
        return key in rows and rows[key]["status"] == OK

    todo = {m.extractor_print for m in bench.measures_of(task.cell) if not done(m.print)}
    return not done("") or any(store.features(task.id, extractor) is None for extractor in todo)


def _told(seconds: float) -> str:
    """Return a time as people say it.

    >>> _told(0.31), _told(75.0), _told(8000.0)
    ('0.3 s', '1 min 15 s', '2 h 13 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
