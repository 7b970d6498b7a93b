"""Values without one block of samples at a time, from stored features: what makes few seeds decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from sdekit.metrics.paired import Paired
from sdekit.study.measure import Measure
from sdekit.study.report import Report
from sdekit.study.rows import OK, DrawRow, Rows, ValueRow
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
    done is not done again; it can be stopped at any moment.

    Args:
        path: the file of a study.
        metrics: those of the study whose differences are to be known better.
        blocks: the number of blocks, at least 2.
        progress: takes the rows to be done and yields them one by one, as `tqdm.tqdm` does.

    Raises:
        ValueError: `blocks` < 2, or the study has no value by one of the metrics.
    """
    if blocks < 2:
        raise ValueError(f"A jackknife needs at least 2 blocks; got {blocks}. A usual number is {BLOCKS}.")
    rows, store = Rows(Path(path)), Store(Path(path))
    draws, values = rows.draws(), rows.values()
    for measure in map(Measure, metrics):
        ours = [row for (_, name), row in values.items() if name == measure.print and row["status"] == OK]
        if not ours:
            raise ValueError(f"{path} must hold values by {measure.name} as it is here; it has none. Run the study.")
        todo = [row for row in ours if len(cast(dict[str, Any], row).get("blocks", ())) != blocks]
        for row in progress([row for row in todo if draws[row["id"]]["budget"] is not None]):
            features = store.features(row["id"], measure.extractor_print)
            if features is not None:
                left = _left_out(measure, features, draws[row["id"]], blocks)
                rows.append(cast(ValueRow, {**row, "blocks": left}))
    return Report.read(path)


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
