"""Values without one block of samples at a time, from stored features: what makes few seeds decide."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sdekit.metrics.paired import Paired
from sdekit.study.claims import PAUSE, Claims
from sdekit.study.measure import Measure
from sdekit.study.report import Report
from sdekit.study.rows import OK, DrawRow, Rows, ValueRow, key_of
from sdekit.study.storage import Store

BLOCKS = 20
"""How many blocks the samples of a cell are dealt to: enough for a variance, few enough to be cheap."""


def resample(
    path: str | Path,
    *metrics: Callable[[Tensor], float],
    blocks: int = BLOCKS,
    progress: Callable[[Sequence[ValueRow]], Iterable[ValueRow]] = iter,
) -> Report:
    """Measure every cell again without each block of its samples, add that to the rows, and report on all of them.

    The features beside the rows are all it takes, no model and no new samples. The same samples are left out of every
    method, so that the paired differences of a report are known from within each seed: see `compare`. What has been
    done is not done again; it can be stopped at any moment, and several processes may share it. A warning says how many
    cells are left out because their features are gone or altered.

    Args:
        path: the file of a study.
        metrics: those of the study whose differences are to be known better.
        blocks: the number of blocks, at least 2.
        progress: takes the rows to be done and yields them one by one, as `tqdm.tqdm` does.

    Raises:
        ValueError: `blocks` < 2, or the study has no value by one of the metrics.
    """
    add_blocks(path, *metrics, blocks=blocks, progress=progress)
    return Report.read(path)


def add_blocks(
    path: str | Path,
    *metrics: Callable[[Tensor], float],
    blocks: int = BLOCKS,
    progress: Callable[[Sequence[ValueRow]], Iterable[ValueRow]] = iter,
) -> None:
    """Do the same without a report, as not all rows of a file must compare."""
    if blocks < 2:
        raise ValueError(f"A jackknife needs at least 2 blocks; got {blocks}. A usual number is {BLOCKS}.")
    for measure in map(Measure, metrics):
        work = _Work(Path(path), measure, blocks)
        todo = work.todo()
        found = [(row, work.attempt(row)) for row in progress(todo)]
        if lost := [work.settle(row) if settled is None else settled for row, settled in found].count(False):
            warnings.warn(
                f"{lost} of {len(todo)} cells are not measured by {measure.name} without blocks: their features are "
                f"gone from {work.store.folder('features')}, or altered. Put them back, or run the study anew, into "
                "another file.",
                stacklevel=2,
            )


class _Work:
    """The values of a file by one metric to which those without blocks are added, here and by other processes."""

    def __init__(self, path: Path, measure: Measure, blocks: int) -> None:
        self.rows, self.store, self.measure, self.blocks = Rows(path), Store(path), measure, blocks
        self.claims = Claims(path.with_name(f"{path.name}.claims"))
        self.draws, self.size = self.rows.draws(), -1
        self._read()

    def todo(self) -> list[ValueRow]:
        """Return the rows that lack them.

        Raises:
            ValueError: there is no row of the metric.
        """
        ours = [row for (_, name), row in self.values.items() if name == self.measure.print and row["status"] == OK]
        if not ours:
            raise ValueError(
                f"{self.rows.path} must hold values by {self.measure.name} as it is here; it has none. Run the study."
            )
        return [row for row in ours if not self._done(row) and self.draws[row["id"]]["budget"] is not None]

    def attempt(self, row: ValueRow) -> bool | None:
        """Add what a row lacks; return False if there are no features for it, None if another is at it."""
        with self.claims.holding(f"{row['id']}-{self.measure.print}") as ours:
            if not ours:
                return None
            self._read()
            return self._done(self.values[key_of(row)]) or self._add(row)

    def settle(self, row: ValueRow) -> bool:
        """Do the same, and wait for who is at it."""
        while (found := self.attempt(row)) is None:
            time.sleep(PAUSE)
        return found

    def _add(self, row: ValueRow) -> bool:
        features = self.store.features(row["id"], self.measure.extractor_print)
        if features is None:
            return False
        left = _left_out(self.measure, features, self.draws[row["id"]], self.blocks)
        added = cast(ValueRow, {**row, "blocks": left})
        self.rows.append(added)
        self.size += len(json.dumps(added, ensure_ascii=False).encode()) + 1
        return True

    def _done(self, row: ValueRow) -> bool:
        return len(cast(dict[str, Any], row).get("blocks") or ()) == self.blocks

    def _read(self) -> None:
        """Read the rows, if there are others than those that have been read or written here."""
        size = self.rows.path.stat().st_size if self.rows.path.exists() else 0
        if size != self.size:
            self.values, self.size = self.rows.values(), size


def _left_out(measure: Measure, features: Tensor, draw: DrawRow, blocks: int) -> list[float]:
    """Return the values without each block."""
    found = []
    for keep in kept(len(features), blocks):
        of = measure
        if isinstance(measure.metric, Paired):  # whose sample i belongs to sample i of the reference
            own: Any = measure.metric
            of = Measure(replace(own, reference=own.reference[: len(features)][keep]))
        found.append(of.of(features[keep], tuple(draw["shape"][1:])).value)
    return found


def kept(n: int, blocks: int) -> list[Tensor]:
    """Return the samples that stay when each block is left out, shape (about n - n / blocks,) each, rising.

    Samples are dealt to blocks by a lot that depends on n alone, so that no order in them, such as that of their
    classes, is one of the blocks.
    """
    lot = torch.randperm(n, generator=torch.Generator(device="cpu").manual_seed(n), device="cpu")
    parts = lot.tensor_split(blocks)
    return [torch.cat([part for j, part in enumerate(parts) if j != k]).sort().values for k in range(blocks)]
