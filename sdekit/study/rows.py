"""The file of a study: one JSON object a line, appended, never rewritten, safe from a kill at any moment.

Rows are of two kinds. A draw says how the samples of a cell came about, a value what one metric says of them.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, cast

from sdekit.study.storage import locked, storing

OK = "ok"
"""The status of a draw that has its samples, and of a value that is there."""

NOT_FINITE = "not finite"
"""The status of a value that is nan or infinite, which no row holds and no table ranks."""

REAL = "real data"
"""The floor's place among the methods."""

FINE = "fine solution"
"""The place among the methods of what they all approximate: the model's flow from the same starts, solved finely."""


class _Later(TypedDict, total=False):
    """What the rows of earlier versions lack."""

    place: int
    call_seconds: float | None


class DrawRow(_Later):
    """How the samples of a cell came about, in JSON types, flat enough for `pandas.read_json(path, lines=True)`.

    What was asked: `id`, the fingerprint of all that determines the samples; `model`, its label, and `print`, its
    fingerprint, None for real data; `method`, the label in the table; `sampler`, what it is; `process`; `budget`;
    `seed`; `place`, that of the cell in its study; `samples`, their number; `shape`, of the batch asked for or, for
    real data, of the held-out set.
    What came out: `status`, "ok" or the error; `where` it arose, and its `traceback`; `nfe`, the network evaluations of
    one sample, counted; `steps`. What it took: `seconds` and `cpu_seconds` for drawing, `fit_seconds` for fitting the
    sampler to the model before; `call_seconds`, what one bare network evaluation of all samples takes there. On what:
    `device`, `threads`, `python`, `torch`, `sdekit`, `commit`, `date`.
    """

    kind: Literal["draw"]
    id: str
    model: str | None
    print: str | None
    method: str
    sampler: dict[str, Any] | None
    process: dict[str, Any] | None
    budget: int | None
    seed: int
    samples: int
    shape: list[int]
    status: str
    where: str | None
    traceback: str | None
    nfe: int | None
    steps: int | None
    seconds: float | None
    cpu_seconds: float | None
    fit_seconds: float | None
    device: str | None
    threads: int
    python: str
    torch: str
    sdekit: str
    commit: str | None
    date: str


class ValueRow(TypedDict):
    """What one metric says of the samples of a cell.

    `id`, of the draw; `metric`, its name; `measure`, the fingerprint of the metric with its extractor and reference;
    `higher_is_better`, or lower; `value`; `stderr`, its sampling error, None where it is not known; `status`, "ok",
    "not finite" or the error; `where` the error arose, and its `traceback`; `date`.
    """

    kind: Literal["value"]
    id: str
    metric: str
    measure: str
    higher_is_better: bool
    value: float | None
    stderr: float | None
    status: str
    where: str | None
    traceback: str | None
    date: str


Row: TypeAlias = DrawRow | ValueRow


_KEYS = {"draw": DrawRow.__required_keys__, "value": ValueRow.__required_keys__}


def key_of(row: Row) -> tuple[str, str]:
    """Return what a row is about: a cell's id, and the measure of a value, empty for a draw."""
    return row["id"], row["measure"] if row["kind"] == "value" else ""


@dataclass(frozen=True)
class Rows:
    """The rows in a file. Lines of any other kind are passed over and stay as they are."""

    path: Path

    def draws(self) -> dict[str, DrawRow]:
        """Return the last draw of every cell by its id, in the order of the file; one that is ok outlasts failures."""
        return {key[0]: row for key, row in self.latest().items() if row["kind"] == "draw"}

    def values(self) -> dict[tuple[str, str], ValueRow]:
        """Return the last value of every (id, measure), in the order of the file; one that is ok outlasts failures."""
        return {key: row for key, row in self.latest().items() if row["kind"] == "value"}

    def latest(self) -> dict[tuple[str, str], Row]:
        """Return both kinds by (id, measure), where the measure of a draw is empty."""
        last: dict[tuple[str, str], Row] = {}
        for row in self._read():
            key = key_of(row)
            if row["status"] == OK or last.get(key, row)["status"] != OK:
                last[key] = row
        return last

    def append(self, *rows: Row) -> None:
        """Write rows, in one piece, and return when they are on the disk. Several processes may do so at once.

        Raises:
            ValueError: a number is not finite, which JSON does not know.
            StorageError: they cannot be written; nothing of them is, then.
        """
        text = "".join(json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n" for row in rows)
        with _appending(self.path) as (file, size):
            torn = size > 0 and os.pread(file, 1, size - 1) != b"\n"  # by a kill: let it have a line of its own
            _write(file, b"\n" * torn + text.encode())

    def mend(self) -> None:
        """Make the file ready for appending: create it, and drop the half of a line that a kill has left at its end.

        Raises:
            StorageError: it cannot be written.
        """
        with _appending(self.path) as (file, size):
            content = self.path.read_bytes()
            tail = content[content.rfind(b"\n") + 1 :]
            if tail.startswith(b"{") and _parse(tail) is None:  # ours, and torn
                os.ftruncate(file, size - len(tail))
            elif tail:  # whole, or not ours
                _write(file, b"\n")

    def _read(self) -> Iterator[Row]:
        if not self.path.exists():
            return
        for line in self.path.read_bytes().split(b"\n"):
            row = _parse(line) or {}
            if row.keys() >= _KEYS.get(row.get("kind", ""), {""}):
                yield cast(Row, row)


@contextmanager
def _appending(path: Path) -> Iterator[tuple[int, int]]:
    """Yield a file that is ours alone, and its size; if writing to it fails, it is as before."""
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with locked(file):
                size = os.fstat(file).st_size
                try:
                    yield file, size
                except OSError:
                    os.ftruncate(file, size)
                    raise
        finally:
            os.close(file)


def _write(file: int, content: bytes) -> None:
    """Write in one piece, and return when it is on the disk."""
    if os.write(file, content) < len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.fsync(file)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object, None if it is none."""
    try:
        value = json.loads(line)
    except ValueError:  # not JSON, or not text at all
        return None
    return value if isinstance(value, dict) else None
