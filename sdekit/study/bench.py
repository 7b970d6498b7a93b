"""Where cells are measured: a cell goes in, rows come out, whatever happens in between."""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sdekit.metrics.fingerprint import fingerprint
from sdekit.prediction import Model
from sdekit.study.cells import Cell, Generated, Real
from sdekit.study.claims import Claims
from sdekit.study.commit import commit
from sdekit.study.contender import Drawn, described_by
from sdekit.study.failure import Failure, KnownError
from sdekit.study.flow_error import FlowError
from sdekit.study.measure import Measure
from sdekit.study.planned import Planned, Tuned, once
from sdekit.study.price import call_seconds
from sdekit.study.reference import Reference, loaded
from sdekit.study.rows import FINE, NOT_FINITE, OK, DrawRow, Row, ValueRow
from sdekit.study.sampler import described
from sdekit.study.storage import SHOWN, StorageError, Store


@dataclass(frozen=True, eq=False)
class Bench:
    """Draws and measures cells of some models by some metrics.

    Args:
        models: the models, or where to find them, or why they cannot be loaded, by their labels.
        measures: the metrics.
        floor: real samples.
        n: the number of samples of a cell.
        batch: how many of them are drawn at a time.
    """

    models: Mapping[str, Model | Reference | Failure]
    measures: tuple[Measure, ...]
    floor: Tensor | None
    n: int
    batch: int

    @cached_property
    def loaded(self) -> dict[str, Model | Failure]:
        """The models, those given by reference loaded, or why they cannot be: each is tried once."""
        return {label: loaded(model) for label, model in self.models.items()}

    def model(self, label: str) -> Model:
        """Return the model of a label.

        Raises:
            KnownError: it cannot be loaded.
        """
        found = self.loaded[label]
        if isinstance(found, Failure):
            raise KnownError(found)
        return found

    @cached_property
    def prints(self) -> dict[str, str]:
        """The fingerprints of the models, each with its process; of those that cannot be loaded, of where they are."""
        found = {k: self.models[k] if isinstance(m, Failure) else (m, m.process) for k, m in self.loaded.items()}
        return {label: fingerprint(content) for label, content in found.items()}

    def __getstate__(self) -> dict[str, Any]:
        """Return what is sent to another process: not the models that it can load, nor those that nobody can."""
        for measure in self.measures:
            _ = measure.print, measure.extractor_print  # which go with them
        failures = {label: found for label, found in self.loaded.items() if isinstance(found, Failure)}
        sent = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**sent, "models": {**self.models, **failures}, "prints": self.prints}

    def id(self, cell: Cell) -> str:
        """Return the fingerprint of all that determines a cell's samples."""
        content = (self.floor, cell.seed) if isinstance(cell, Real) else cell.content(self.prints[cell.model])
        return fingerprint((content, self.n))

    def call_seconds(self, cell: Generated) -> float:
        """Return the seconds of one bare call of a cell's model on all its samples, in batches, timed once."""
        if cell.model not in self._prices:
            whole, size = -(-self.n // self.batch), min(self.n, self.batch)
            self._prices[cell.model] = whole * call_seconds(self.model(cell.model), (size, *cell.shape[1:]))
        return self._prices[cell.model]

    @cached_property
    def _prices(self) -> dict[str, float]:
        return {}

    def measures_of(self, cell: Cell) -> list[Measure]:
        """Return the metrics that say something of a cell: real data solve no flow, and the fine solution is it."""
        told = isinstance(cell, Real) or cell.method == FINE
        return [m for m in self.measures if not (told and isinstance(m.metric, FlowError))]

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
        flows = [m for m in self.measures if cell.method == FINE and isinstance(m.metric, FlowError)]
        drawn = work.draw([*todo, *flows], "" not in done)
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
        if row["status"] != OK:
            return row
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
        if isinstance(self.cell, Generated):
            row["call_seconds"] = self.bench.call_seconds(self.cell)
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
            model = bench.model(cell.model)
            return cell.draw(cell.ready(model, self._fitted), model, bench.n, bench.batch)
        assert bench.floor is not None
        return (Drawn(x, 0) for x in cell.lot(bench.floor, bench.n).split(bench.batch))

    def _fitted(self, tuned: Tuned, fit: Callable[[], Planned]) -> Planned:
        """Return a fitted plan: from the store, or made now and stored."""
        assert isinstance(self.cell, Generated)
        key = fingerprint((tuned, self.bench.prints[self.cell.model], self.cell.shape[1:]))
        planned, self.fit_seconds = once(key, fit, self.store, self.claims)
        return planned

    def _flow(self, metric: FlowError) -> Tensor:
        """Return the fine solution for this cell, (n, *shape): from the store, or drawn now and stored."""
        assert isinstance(self.cell, Generated)
        cell, key = metric.cell(self.cell), Measure(metric).extractor_print
        id = self.bench.id(cell)

        def make() -> Tensor:
            drawn = metric.draw(cell, self.bench.model(cell.model), self.bench.n, self.bench.batch)
            self.store.keep_features(id, key, drawn)
            return drawn

        found = self.claims.once(id, lambda: self.store.features(id, key), make)
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
    """Return the row of a cell before it is drawn, which tells if its model or its contender cannot be told of."""
    row: DrawRow = {
        "kind": "draw",
        "id": id,
        "model": cell.model,
        "print": None,
        "method": cell.method,
        "sampler": None,
        "process": None,
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
    try:
        if isinstance(cell, Generated):
            row["process"], row["print"] = described(bench.model(cell.model).process), bench.prints[cell.model]
            row["sampler"] = described_by(cell.contender)
    except Exception as error:
        row["status"], row["where"], row["traceback"] = Failure.of(error)
    return row


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
