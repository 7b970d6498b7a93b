"""The log-likelihood of every sample of some sets of data, in a file: one JSON object a line, and resumable."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.likelihood import Exact, FixedGrid, Integrator, Likelihood, Trace, log_likelihood
from sdekit.likelihood.dequantizer import Continuous, Dequantizer
from sdekit.metrics.fingerprint import fingerprint
from sdekit.prediction import Model
from sdekit.study.rows import Rows
from sdekit.study.scores import Score, Scores, read

INTEGRATOR = FixedGrid()


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one set that are scored together.

    name: the set. first: the number of the first of them. x: the samples, (B, ...).
    """

    name: str
    first: int
    x: Tensor


@dataclass(frozen=True, eq=False)
class Scoring:
    """How likely a model finds every sample of some sets of data.

    Args:
        model: the model; a module is run in evaluation mode, and put back after.
        data: the samples by the name of the set, shape (n, ...) each, float32 or float64.
        dequantizer: which data the model's numbers stand for: `Dequantization(256)` for 8-bit images from -1 to 1.
        integrator: how the flow is integrated. One whose steps the batch shares makes the values depend on `batch`.
        trace: how the divergence is found; a random one draws anew for every sample, by its number.
        draws: of the dequantizer, for the multi-sample bound; several of them need `Exact()`.
        seed: of the dequantizer's noise.
        moments: draws of what the model was trained on, (n, ...), for the share of the prior; by default each set
            itself.

    Raises:
        ValueError: there is no data, draws is below 1, or there are several and the trace is random.

    >>> from sdekit import VP, Gaussian
    >>> scoring = Scoring(Gaussian(VP(), torch.zeros(2), 0.5), {"zeros": torch.zeros(100, 2)})
    >>> print(scoring.run("runs/zeros.jsonl").table())  # doctest: +SKIP
    """

    model: Model
    data: Mapping[str, Tensor]
    dequantizer: Dequantizer = Continuous()
    integrator: Integrator = INTEGRATOR
    trace: Trace = Exact()
    draws: int = 1
    seed: int = 0
    moments: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.data or any(x.ndim < 1 or x.numel() == 0 for x in self.data.values()):
            raise ValueError(f"Scoring needs samples, (n, ...), in every set; got {_shapes(self.data)}.")
        if not isinstance(self.draws, int) or self.draws < 1:
            raise ValueError(f"draws must be a whole number of at least 1; got {self.draws!r}.")
        if self.draws > 1 and not isinstance(self.trace, Exact):
            raise ValueError(
                f"Several draws need an exact trace: the error of random probes, exponentiated, raises the mean above "
                f"the bound; got draws={self.draws} with {self.trace}. Use Exact(), or one draw."
            )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the values depend on, beside the samples, in JSON types: what two runs must share to be one."""
        settings = {
            "model": fingerprint((self.model, self.model.process)),
            "dequantizer": self.dequantizer.to_json(),
            "integrator": self.integrator.to_json(),
            "trace": self.trace.to_json(),
            "draws": self.draws,
            "seed": self.seed,
            "moments": None if self.moments is None else fingerprint(self.moments),
        }
        known: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        return known

    def run(
        self,
        path: str | Path,
        batch: int = 64,
        count: int | None = None,
        progress: Callable[[Sequence[Batch]], Iterable[Batch]] = iter,
    ) -> Scores:
        """Score the samples that are not in a file yet, append a row for each, batch by batch, and report on them all.

        Kill it at any moment and run it again: it goes on from there. Half a row at the end is dropped and made anew.

        Args:
            path: the file, one `Score` a line in JSON; it is made if it is not there.
            batch: how many samples are scored at a time; the values depend on it no further than the network's
                rounding.
            count: how many of each set, from its start; by default all.
            progress: takes the batches to score and yields them one by one, as `tqdm.tqdm` does. It may stop early;
                the report is then on what there is.

        Raises:
            ValueError: batch or count is below 1; the file holds scores with other settings, of another model or of
                other samples; data that the dequantizer refuses.
            FloatingPointError: a value is not finite; what was scored before stays in the file.
        """
        if batch < 1 or (count is not None and count < 1):
            raise ValueError(f"batch and count must be at least 1; got {batch} and {count}.")
        rows = Rows(Path(path))
        rows.mend()
        done = {(row["data"], row["index"]): row for row in self._agreeing(rows.path)}
        with _evaluating(self.model):
            for one in progress(list(self._batches(done, batch, count))):
                fresh = [row for row in self._score(one) if (row["data"], row["index"]) not in done]
                _append(rows.path, fresh)
                done.update({(row["data"], row["index"]): row for row in fresh})
        asked = ((name, i) for name, x in self.data.items() for i in range(len(x[:count])))
        return Scores(tuple(done[key] for key in asked if key in done))

    @cached_property
    def _sets(self) -> dict[str, str]:
        """The fingerprint of every set, all of it."""
        return {name: fingerprint(x) for name, x in self.data.items()}

    def _agreeing(self, path: Path) -> list[Score]:
        """Return the rows of a file, all of which must have been made with these settings."""
        rows = read(path)
        for row in rows:
            ours = {**self.settings, "samples": self._sets.get(row["data"], row["samples"])}
            theirs = {**row["settings"], "samples": row["samples"]}
            differ = [key for key in ours if ours[key] != theirs.get(key)]
            if differ:
                told = "; ".join(f"{key} {theirs.get(key)} there, {ours[key]} here" for key in differ)
                raise ValueError(
                    f"{path} must hold scores made like those asked for to go on with them; they differ in the row of "
                    f"{row['data']}, {row['index']}: {told}. Give another path, or remove the file."
                )
        return rows

    def _batches(self, done: Mapping[tuple[str, int], Score], batch: int, count: int | None) -> Iterator[Batch]:
        for name, x in self.data.items():
            n = len(x[:count])
            for start in range(0, n, batch):
                missing = [i for i in range(start, min(start + batch, n)) if (name, i) not in done]
                if missing:
                    yield Batch(name, missing[0], x[missing[0] : missing[-1] + 1])

    def _score(self, batch: Batch) -> list[Score]:
        dims, n = batch.x[0].numel(), len(batch.x)
        try:
            drawn = [self.dequantizer.draw(batch.x, self.seed, batch.first, k) for k in range(self.draws)]
            results = [self._likelihood(batch, one.x) for one in drawn]
        except (ValueError, ArithmeticError, RuntimeError) as error:
            where = f"{batch.name}, samples {batch.first} to {batch.first + n - 1}"
            raise type(error)(f"{where}: {error}") from error
        logs = torch.stack([result.log_prob for result in results])
        noise = torch.stack([one.log_noise.to(logs) for one in drawn])
        columns = {
            **_mean_over_draws([_columns(result, n) for result in results]),
            "draws_stderr": self.dequantizer.stderr(logs, noise),
            "log_mass": self.dequantizer.log_mass(logs, dims, noise),
            "bits_per_dim": self.dequantizer.bits_per_dim(logs, dims, noise),
        }
        same = {"dims": dims, "samples": self._sets[batch.name], "settings": self.settings, "sdekit": _version()}
        lists = {name: [_json(v) for v in column.tolist()] for name, column in columns.items()}
        return [
            {"data": batch.name, "index": batch.first + i, **{name: v[i] for name, v in lists.items()}, **same}
            for i in range(n)
        ]

    def _likelihood(self, batch: Batch, x: Tensor) -> Likelihood:
        moments = self.data[batch.name] if self.moments is None else self.moments
        device = _device(self.model, x)
        return log_likelihood(self.model, x.to(device), self.integrator, self.trace, moments.to(device))


def _columns(result: Likelihood, n: int) -> dict[str, Tensor]:
    """Return every number that a likelihood holds of every sample, float64 on the CPU, shape (n,)."""
    found = {}
    for name in ("log_prob", *(field.name for field in dataclasses.fields(result) if field.name != "latent")):
        found[name] = torch.as_tensor(getattr(result, name)).detach().cpu().to(torch.float64).expand(n)
    if not bool(found["log_prob"].isfinite().all()):
        raise FloatingPointError(f"log_prob must be finite; got {found['log_prob'].tolist()}.")
    return found


def _mean_over_draws(draws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of every column over draws; of `stderr` the error of that mean, of `nfe` the sum."""
    columns = {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}
    means = {name: column.mean(0) for name, column in columns.items()}
    return {**means, "stderr": columns["stderr"].square().sum(0).sqrt() / len(draws), "nfe": columns["nfe"].sum(0)}


def _append(path: Path, rows: Sequence[Score]) -> None:
    """Write rows in one piece, and return when they are on the disk."""
    lines = [json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows]
    with path.open("ab") as file:
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())


def _json(value: float) -> float | int | None:
    """Return a number as JSON has it: whole where it is, none where it is not a number."""
    if not math.isfinite(value):
        return None
    return int(value) if value == int(value) else value


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Put a module into evaluation mode, and back."""
    training = isinstance(model, nn.Module) and model.training
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        if isinstance(model, nn.Module):
            model.train(training)


def _device(model: Model, x: Tensor) -> torch.device:
    tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
    return tensors[0].device if tensors else x.device


def _shapes(data: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(x.shape) for name, x in data.items()}


def _version() -> str:
    return str(sys.modules[__package__.split(".")[0]].__version__)
