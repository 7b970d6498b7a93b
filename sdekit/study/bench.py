"""Where cells are measured: a cell goes in, rows come out, whatever happens in between."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit.metrics.fingerprint import fingerprint
from sdekit.prediction import Model
from sdekit.study.cells import Cell, Generated, Real
from sdekit.study.claims import Claims
from sdekit.study.contender import Drawn
from sdekit.study.failure import Failure
from sdekit.study.flow_error import FlowError
from sdekit.study.measure import Measure
from sdekit.study.planned import Planned, Tuned
from sdekit.study.reference import Reference
from sdekit.study.rows import NOT_FINITE, OK, DrawRow, Row, ValueRow
from sdekit.study.sampler import described
from sdekit.study.storage import SHOWN, StorageError, Store

_FITTING = threading.Lock()  # derivatives forwards, which a fit takes, are one thread's business


@dataclass(frozen=True, eq=False)
class Bench:
    """Draws and measures cells of some models by some metrics.

    Args:
        models: the models, or where to find them, by their labels.
        measures: the metrics.
        floor: real samples.
        n: the number of samples of a cell.
        batch: how many of them are drawn at a time.
    """

    models: Mapping[str, Model | Reference]
    measures: tuple[Measure, ...]
    floor: Tensor | None
    n: int
    batch: int

    @cached_property
    def loaded(self) -> dict[str, Model]:
        """The models, those given by reference loaded."""
        return {k: m.load() if isinstance(m, Reference) else m for k, m in self.models.items()}

    @cached_property
    def prints(self) -> dict[str, str]:
        """The fingerprints of the models, each with its process."""
        return {label: fingerprint((model, model.process)) for label, model in self.loaded.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: not the models that it can load, but their fingerprints."""
        for measure in self.measures:
            _ = measure.print, measure.extractor_print  # which go with them
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "prints": self.prints}

    def id(self, cell: Cell) -> str:
        """Return the fingerprint of all that determines a cell's samples."""
        content = (self.floor, cell.seed) if isinstance(cell, Real) else cell.content(self.prints[cell.model])
        return fingerprint((content, self.n))

    def measures_of(self, cell: Cell) -> list[Measure]:
        """Return the metrics that say something of a cell: real data solve no flow."""
        return [m for m in self.measures if not (isinstance(cell, Real) and isinstance(m.metric, FlowError))]

    def rows(self, cell: Cell, id: str, done: Collection[str], store: Store, claims: Claims) -> list[Row]:
        """Measure a cell: return the row of its draw, if it was drawn, and those of the values that were missing.

        What is stored of its samples is used; else they are drawn again. An error becomes a status.

        Args:
            cell: the cell.
            id: of it.
            done: the measures, by their fingerprints, whose values are known; "" if the row of the draw is.
            store: where features lie and are laid.
            claims: what others are at work on.

        Raises:
            StorageError: they cannot be written.
        """
        todo = [measure for measure in self.measures_of(cell) if measure.print not in done]
        work = _Work(self, cell, id, store, claims)
        drawn = work.draw(todo, "" not in done)
        if drawn is not None and drawn["status"] != OK:
            return [drawn]
        return [*([] if drawn is None else [drawn]), *(work.value(measure) for measure in todo)]


class _Work:
    """A cell at work: its features by the fingerprints of their extractors, or why there are none."""

    def __init__(self, bench: Bench, cell: Cell, id: str, store: Store, claims: Claims) -> None:
        self.bench, self.cell, self.id, self.store, self.claims = bench, cell, id, store, claims
        self.features: dict[str, Tensor | Failure] = {}
        self.fit_seconds: float | None = None

    def draw(self, measures: Sequence[Measure], anew: bool) -> DrawRow | None:
        """Find the features that measures need; if one is missing, or `anew`, draw them and return the row of that."""
        missing = {}
        for measure in measures:
            stored = None if anew else self.store.features(self.id, measure.extractor_print)
            if stored is None:
                missing[measure.extractor_print] = measure.extractor
            else:
                self.features[measure.extractor_print] = stored
        if not (missing or anew):
            return None
        row = self._row()
        try:
            self._draw(row, missing)
        except StorageError:
            raise
        except Exception as error:
            row["status"], row["where"], row["traceback"] = Failure.of(error)
        return row

    def _draw(self, row: DrawRow, missing: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        parts: dict[str, list[Tensor]] = {key: [] for key in missing}
        shown: list[Tensor] = []
        for x in self._batches(row):
            shown += [x.cpu()] if sum(map(len, shown)) < SHOWN else []
            for key, extractor in missing.items():
                if key not in self.features:
                    try:
                        parts[key].append(extractor(x).cpu())
                    except Exception as error:
                        self.features[key] = Failure.of(error)
        for key in missing.keys() - self.features.keys():
            self.features[key] = features = torch.cat(parts[key])
            self.store.keep_features(self.id, key, features)
        self.store.keep_samples(self.id, torch.cat(shown))

    def _batches(self, row: DrawRow) -> Iterator[Tensor]:
        """Yield the samples batch by batch, and write into the row what they took."""
        batches = self._drawn()
        row["fit_seconds"] = self.fit_seconds
        wall = cpu = 0.0
        while True:
            begun, busy = time.perf_counter(), time.process_time()
            drawn = next(batches, None)
            wall, cpu = wall + time.perf_counter() - begun, cpu + time.process_time() - busy
            row["seconds"], row["cpu_seconds"] = round(wall, 6), round(cpu, 6)
            if drawn is None:
                return
            row["device"], row["steps"] = str(drawn.x.device), drawn.steps
            row["nfe"] = max(drawn.nfe, row["nfe"] or 0) if self.cell.budget else None
            yield drawn.x

    def _drawn(self) -> Iterator[Drawn]:
        bench, cell = self.bench, self.cell
        if isinstance(cell, Generated):
            model = bench.loaded[cell.model]
            return cell.draw(cell.ready(model, self._fitted), model, bench.n, bench.batch)
        assert bench.floor is not None
        return (Drawn(x, 0) for x in cell.lot(bench.floor, bench.n).split(bench.batch))

    def _fitted(self, tuned: Tuned, fit: Callable[[], Planned]) -> Planned:
        """Return a fitted plan: from the store, or made now and stored."""
        assert isinstance(self.cell, Generated)
        key = fingerprint((tuned, self.bench.prints[self.cell.model], self.cell.shape[1:]))

        def find() -> Planned | None:
            stored = self.store.plan(key)
            self.fit_seconds = None if stored is None else float(stored["seconds"])
            return None if stored is None else Planned.from_json(stored["planned"])

        def make() -> Planned:
            with _FITTING:
                begun = time.perf_counter()
                planned = fit()
                self.fit_seconds = round(time.perf_counter() - begun, 6)
            self.store.keep_plan(key, {"planned": planned.to_json(), "seconds": self.fit_seconds})
            return planned

        return self.claims.once(key, find, make)

    def _flow(self, metric: FlowError) -> Tensor:
        """Return the fine solution for this cell, (n, *shape): from the store, or drawn now and stored."""
        assert isinstance(self.cell, Generated)
        cell, key = metric.cell(self.cell), fingerprint(metric.extractor)
        id = self.bench.id(cell)

        def make() -> Tensor:
            drawn = metric.draw(cell, self.bench.loaded[cell.model], self.bench.n, self.bench.batch)
            self.store.keep_features(id, key, drawn)
            return drawn

        found = self.claims.once(f"{id}-flow", lambda: self.store.features(id, key), make)
        return found.reshape(-1, *cell.shape[1:])

    def value(self, measure: Measure) -> ValueRow:
        """Return the row of a value. One that is not finite is none."""
        row: ValueRow = {
            "kind": "value",
            "id": self.id,
            "metric": measure.name,
            "measure": measure.print,
            "higher_is_better": measure.higher_is_better,
            "value": None,
            "stderr": None,
            "status": OK,
            "where": None,
            "traceback": None,
            "date": _now(),
        }
        features = self.features[measure.extractor_print]
        try:
            if isinstance(features, Failure):
                row["status"], row["where"], row["traceback"] = features
                return row
            metric = measure.metric
            if isinstance(metric, FlowError):
                measure = Measure(metric.paired(self._flow(metric)))
            found = measure.of(features, self.cell.shape[1:])
        except Exception as error:
            row["status"], row["where"], row["traceback"] = Failure.of(error)
            return row
        if math.isfinite(found.value):
            row["value"], row["stderr"] = found.value, found.stderr if math.isfinite(found.stderr) else None
        else:
            row["status"] = NOT_FINITE
        return row

    def _row(self) -> DrawRow:
        return draw_row(self.bench, self.cell, self.id)


def draw_row(bench: Bench, cell: Cell, id: str) -> DrawRow:
    """Return the row of a cell before it is drawn."""
    return {
        "kind": "draw",
        "id": id,
        "model": cell.model,
        "print": bench.prints[cell.model] if cell.model is not None else None,
        "method": cell.method,
        "sampler": cell.contender.describe() if cell.contender is not None else None,
        "process": described(bench.loaded[cell.model].process) if cell.model is not None else None,
        "budget": cell.budget,
        "seed": cell.seed,
        "samples": bench.n,
        "shape": list(cell.shape),
        "status": OK,
        "where": None,
        "traceback": None,
        "nfe": None,
        "steps": None,
        "seconds": None,
        "cpu_seconds": None,
        "fit_seconds": None,
        "device": None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "sdekit": sys.modules[__package__.split(".")[0]].__version__,
        "commit": commit(),
        "date": _now(),
    }


@cache
def commit() -> str | None:
    """Return the commit of sdekit's sources, with "-dirty" if they were changed; None if they are installed."""
    sources = Path(__file__).parents[2]
    if not (sources / ".git").exists():
        return None
    ask = ["git", "-C", str(sources), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(ask, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
