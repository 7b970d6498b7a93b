"""Running cells: one after another, or in processes that joblib finds, beside other runners of the same file.

All that is done is in the files, so whoever sees the folder may take part:

    study.run(path, workers=2)                                    # processes of this machine, by loky
    with distributed.Client(address), joblib.parallel_config(backend="dask"):
        study.run(path, workers=100)                              # the workers of a cluster of dask
    ray.util.joblib.register_ray()
    with joblib.parallel_config(backend="ray"):
        study.run(path, workers=100)                              # of ray, which tells of no progress before the end
    executor.map_array(lambda _: study.run(path), range(100))     # jobs of Slurm, by submitit: runners side by side
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pickle
import platform
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdekit.study.bench import Bench, draw_row
from sdekit.study.cells import Cell, Generated
from sdekit.study.claims import PAUSE, Claims
from sdekit.study.planned import Tuned
from sdekit.study.rows import FINE, OK, Row, Rows, key_of
from sdekit.study.storage import Store

ATTEMPTS = 2
"""How often a cell is begun whose worker dies."""


class Task(NamedTuple):
    """A cell to be measured, its id, its rows that told of failures when the run began, and its place in the study."""

    id: str
    cell: Cell
    failed: Mapping[tuple[str, str], Row]
    place: int


class Done(NamedTuple):
    """What became of a task: whether it was seen to, here or by another runner, or is at work there still."""

    task: Task
    settled: bool


@dataclass(frozen=True, eq=False)
class Runner:
    """Measures cells, appends their rows to a file, and keeps what lies beside it.

    Args:
        bench: where they are measured.
        path: the file.
        claims: what this run and others are at work on.
    """

    bench: Bench
    path: Path
    claims: Claims

    def tasks(self, cells: Iterable[Cell]) -> list[Task]:
        """Return the cells that lack a row, each once."""
        rows = Rows(self.path).latest()
        failed: dict[str, dict[tuple[str, str], Row]] = collections.defaultdict(dict)
        for key, row in rows.items():
            if row["status"] != OK:
                failed[row["id"]][key] = row
        found = [Task(id := self.bench.id(cell), cell, failed[id], place) for place, cell in enumerate(cells)]
        return [task for task in {task.id: task for task in found}.values() if not self._settled(task, rows)]

    def run(self, tasks: Sequence[Task], workers: int) -> Iterator[Cell]:
        """Yield the cells as they are settled; those that another runner is at work on come last, when it has."""
        left = list(tasks) if workers == 1 else sorted(tasks, key=_urgency(tasks))
        while left:
            busy = []
            for task, settled in self._serial(left) if workers == 1 else self._parallel(left, workers):
                if settled:
                    yield task.cell
                else:
                    busy.append(task)
            if len(busy) == len(left):
                time.sleep(PAUSE)
            left = busy

    def settle(self, task: Task) -> Done:
        """Measure a cell and append what is news, unless another is at work on it or has just been."""
        rows, store = Rows(self.path), Store(self.path)
        with self.claims.holding(task.id) as attempt:
            if not attempt:
                return Done(task, False)
            known = rows.latest()
            if self._settled(task, known):
                return Done(task, True)
            if attempt > ATTEMPTS:
                found: list[Row] = [self._dead(task)]
            else:
                done = {of for (id, of), row in known.items() if id == task.id and row["status"] == OK}
                found = self.bench.rows(task.cell, task.id, done, store, self.claims)
            found = [{**row, "place": task.place} if row["kind"] == "draw" else row for row in found]
            news = [row for row in found if _is_news(row, known)]
            if news:
                rows.append(*news)
        return Done(task, True)

    def _settled(self, task: Task, rows: Mapping[tuple[str, str], Row]) -> bool:
        """Tell whether every row is there, and ok or a failure since the run began: another runner's, not repeated."""
        draw = task.id, ""
        keys = [draw, *((task.id, measure.print) for measure in self.bench.measures_of(task.cell))]
        found = {key: rows[key] for key in keys if key in rows and rows[key] != task.failed.get(key)}
        return len(found) == len(keys) or (draw in found and found[draw]["status"] != OK)

    def _dead(self, task: Task) -> Row:
        row = draw_row(self.bench, task.cell, task.id)
        row["status"] = f"WorkerDied: the process at work on this cell died, {ATTEMPTS} times. Is there memory enough?"
        return row

    def _serial(self, tasks: Iterable[Task]) -> Iterator[Done]:
        return map(self.settle, tasks)

    def _parallel(self, tasks: Sequence[Task], workers: int) -> Iterator[Done]:
        """Yield what becomes of tasks in other processes. Where one dies, what it was at is tried again, alone."""
        packed = _Packed(self)
        left = {task.id: task for task in tasks}
        batches, vain = [list(tasks)], 0
        while batches:
            batch = [task for task in batches.pop(0) if task.id in left]
            try:
                for done in _joblib(packed, batch, workers):
                    del left[done.task.id]
                    yield done
                continue
            except Exception as error:
                if not _is_death(error):
                    raise
                rows, untold = Rows(self.path).latest(), [task for task in batch if task.id in left]
                ended = [task for task in untold if self._settled(task, rows)]  # of a backend that tells all at the end
                begun = [task for task in untold if task not in ended and self.claims.left(task.id)]
                vain = 0 if ended or begun or len(untold) < len(batch) else vain + 1
                if vain == ATTEMPTS:  # it dies before it comes to work
                    raise
            for task in ended:
                del left[task.id]
                yield Done(task, True)
            batches = [*([task] for task in begun), [task for task in batch if task not in begun], *batches]


class _Packed:
    """A runner as bytes, which each thread of each worker unpacks once."""

    def __init__(self, runner: Runner) -> None:
        try:
            import cloudpickle
            import joblib  # noqa: F401
        except ImportError as error:
            raise ImportError('workers > 1 needs joblib: pip install "sdekit[study]"') from error
        self.run, self.home = runner.claims.run, (platform.node(), os.getpid())
        claims = dataclasses.replace(runner.claims, folder=runner.claims.folder.absolute())
        self.content: bytes = cloudpickle.dumps(dataclasses.replace(runner, path=runner.path.absolute(), claims=claims))

    def settle(self, task: Task) -> Done:
        """Settle a task, by one thread."""
        if getattr(_HERE, "run", None) != self.run:
            _HERE.run, _HERE.runner = self.run, pickle.loads(self.content)
        runner: Runner = _HERE.runner
        if self.home == (platform.node(), os.getpid()):
            return runner.settle(task)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return runner.settle(task)
        finally:
            torch.set_num_threads(threads)


_HERE = threading.local()


def _joblib(packed: _Packed, tasks: Sequence[Task], workers: int) -> Iterator[Done]:
    """Yield what becomes of tasks in the order in which they end, if joblib's backend can tell."""
    from joblib import Parallel, delayed

    stopped = threading.Event()

    def jobs() -> Iterator[Any]:
        for task in tasks:
            if stopped.is_set():
                return
            yield delayed(packed.settle)(task)

    workers = max(2, min(workers, len(tasks)))  # never 1, which is this process
    settings: dict[str, Any] = {"n_jobs": workers, "batch_size": 1, "pre_dispatch": workers}
    try:
        parallel = Parallel(return_as="generator_unordered", **settings)
    except ValueError:  # a backend that gives all results at once
        parallel = Parallel(**settings)
    found = parallel(jobs())
    try:
        for done in found:  # noqa: UP028 - `yield from` would hand our own end on to the workers
            yield done
    except GeneratorExit:  # the caller has seen enough: what has been begun is ended, and no more begun
        stopped.set()
        collections.deque(found, maxlen=0)
        raise


_DEATHS = {
    *("distributed.KilledWorker", "ray.RayActorError", "ray.WorkerCrashedError"),
    *("ray.NodeDiedError", "ray.OutOfMemoryError"),
}


def _is_death(error: Exception) -> bool:
    """Tell whether an error says that a worker has died, in the words of loky, dask or ray."""
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return isinstance(error, BrokenExecutor) or not names.isdisjoint(_DEATHS)


def _urgency(tasks: Sequence[Task]) -> Callable[[Task], int]:
    """Return the order for several workers: fine solutions, which all others need, and the first of the cells that
    share a fitted plan before all others, the rest of these after, so that none waits.
    """
    first: dict[Any, str] = {}
    for id, cell, *_ in tasks:
        if isinstance(cell, Generated) and isinstance(cell.contender, Tuned):
            first.setdefault((cell.contender, cell.budget, cell.model), id)

    def place(task: Task) -> int:
        if task.cell.method == FINE:
            return -1
        if not isinstance(task.cell.contender, Tuned):
            return 1
        return 0 if task.id in first.values() else 2

    return place


def _is_news(row: Row, known: Mapping[tuple[str, str], Row]) -> bool:
    """Tell whether a row adds to what is known: what was made again does not, nor what fails again in the same way."""
    before = known.get(key_of(row))
    return before is None or (before["status"] != OK and before["status"] != row["status"])
