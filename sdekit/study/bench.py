"""Where cells are measured: a cell goes in, a row comes out, whatever happens in between."""

from __future__ import annotations

import math
import platform
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.prediction import Model
from sdekit.study.cells import Cell
from sdekit.study.fingerprint import fingerprint
from sdekit.study.rows import OK, Row


@dataclass(frozen=True, eq=False)
class Bench:
    """Measures cells of one model by one metric.

    Args:
        model: the model.
        metric: a callable from samples to a number.
        n: the number of samples the metric is given.
        batch: how many of them are drawn at a time.
    """

    model: Model
    metric: Callable[[Tensor], float]
    n: int
    batch: int

    @cached_property
    def fingerprints(self) -> tuple[str, str]:
        """The fingerprints of the model, with its process, and of the metric, with its reference."""
        return fingerprint((self.model, self.model.process)), fingerprint(self.metric)

    def id(self, cell: Cell) -> str:
        """Return the fingerprint of all that determines a cell's value."""
        model, metric = self.fingerprints
        return fingerprint((cell.content(model), self.n, metric))

    def row(self, cell: Cell) -> Row:
        """Measure a cell. An error becomes its status, and so does a value that is not finite."""
        row: Row = {
            "id": self.id(cell),
            "method": cell.method,
            "budget": cell.budget,
            "seed": cell.seed,
            "status": OK,
            "value": None,
            "nfe": None,
            "steps": None,
            "seconds": None,
            "where": None,
            "metric": label(self.metric),
            "samples": self.n,
            "shape": list(cell.shape),
            "sampler": None if cell.sampler is None else _describe(cell.sampler),
            "process": _describe(self.model.process),
            "model": self.fingerprints[0],
            "device": None,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "sdekit": sys.modules[__package__.split(".")[0]].__version__,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            self._measure(cell, row)
        except Exception as error:
            row["status"] = " ".join(f"{type(error).__name__}: {error}".split())
            row["where"] = _where(error)
        return row

    def _measure(self, cell: Cell, row: Row) -> None:
        start = time.perf_counter()
        x, row["nfe"], row["steps"] = cell.draw(self.model, self.n, self.batch)
        row["device"] = str(x.device)
        row["seconds"] = round(time.perf_counter() - start, 6)
        value = float(self.metric(x))
        if not math.isfinite(value):
            raise FloatingPointError(
                f"A metric must return a finite number; {row['metric']} returned {value}. Look at the samples."
            )
        row["value"] = value


def label(metric: Callable[[Tensor], float]) -> str:
    """Return the metric's name: its `name`, or that of the function or class."""
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__))


def _describe(value: Value) -> dict[str, Any]:
    """Return a value's JSON, or no more than its type if it holds a function."""
    try:
        return value.to_json()
    except TypeError:
        return {"type": type(value).__name__}


def _where(error: Exception) -> str:
    """Return the place where an error arose, by the name of the file: the rest is another machine's business."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
