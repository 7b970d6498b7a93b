"""The file of a study: one JSON object a line, appended, never rewritten, safe from a kill at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

OK = "ok"
"""The status of a cell that has its value."""

REAL = "real data"
"""The floor's place among the methods."""


class Row(TypedDict):
    """What is known of one cell, in JSON types, flat enough for `pandas.read_json(path, lines=True)`.

    What was asked: `id`, the fingerprint of what determines the value; `method`, the label in the table; `sampler`,
    the method and its grid's rule; `process`; `model`, its fingerprint; `budget`; `seed`; `metric`, its name;
    `samples`, the number the metric saw; `shape`, of the batch asked for or, for real data, of the held-out set.
    What came out: `status`, "ok" or the error; `where` it arose; `value`; `nfe`, the network calls counted; `steps`;
    `seconds`, for drawing the samples. On what: `device`, `threads`, `python`, `torch`, `sdekit`, `date`.
    """

    id: str
    method: str
    budget: int | None
    seed: int
    status: str
    value: float | None
    nfe: int | None
    steps: int | None
    seconds: float | None
    where: str | None
    metric: str
    samples: int
    shape: list[int]
    sampler: dict[str, Any] | None
    process: dict[str, Any]
    model: str
    device: str | None
    threads: int
    python: str
    torch: str
    sdekit: str
    date: str


@dataclass(frozen=True)
class Rows:
    """The rows in a file. Lines of any other kind are passed over and stay as they are."""

    path: Path

    def latest(self) -> dict[str, Row]:
        """Return the last row of every cell by its id, in the order of the file; one with a value outlasts failures."""
        found: dict[str, Row] = {}
        for row in self._read():
            if row["status"] == OK or found.get(row["id"], row)["status"] != OK:
                found[row["id"]] = row
        return found

    def append(self, row: Row) -> None:
        """Write one row, in one piece, and return when it is on the disk.

        Raises:
            ValueError: a number is not finite, which JSON does not know.
        """
        line = json.dumps(row, allow_nan=False, ensure_ascii=False).encode() + b"\n"
        with self.path.open("ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def mend(self) -> None:
        """Make the file ready for appending: create it, and drop the half of a line that a kill has left at its end."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            tail = content[content.rfind(b"\n") + 1 :]
            if tail.startswith(b"{") and _parse(tail) is None:  # ours, and torn
                file.truncate(len(content) - len(tail))
            elif tail:  # whole, or not ours
                file.write(b"\n")

    def _read(self) -> Iterator[Row]:
        for line in self.path.read_bytes().split(b"\n"):
            row = _parse(line)
            if row is not None and row.keys() >= Row.__required_keys__:
                yield cast(Row, row)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return a line's JSON object, None if it is none."""
    try:
        value = json.loads(line)
    except ValueError:  # not JSON, or not text at all
        return None
    return value if isinstance(value, dict) else None
