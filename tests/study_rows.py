"""Rows as a study writes them, made by hand."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdekit.study.rows import REAL, DrawRow, ValueRow


def draw(method: str = "DDIM", budget: int | None = 5, seed: int = 0, **changes: Any) -> Any:
    """Return a draw; real data have no budget."""
    base = dict.fromkeys(DrawRow.__required_keys__)
    told = {"kind": "draw", "id": f"{method}-{budget}-{seed}", "method": method, "budget": budget, "seed": seed}
    model = {"model": None, "print": None} if budget is None else {"model": "net", "print": "f00d"}
    rest = {"samples": 400, "shape": [400, 2], "status": "ok", "nfe": budget, "steps": budget, "seconds": budget}
    on = {"device": "cpu", "threads": 1, "python": "3.11", "torch": "2.4", "sdekit": "0.1", "date": "2026-01-02"}
    return base | told | model | rest | on | changes


def value(of: Any, number: float | None, **changes: Any) -> Any:
    """Return the value of a draw."""
    base = dict.fromkeys(ValueRow.__required_keys__)
    told = {"kind": "value", "id": of["id"], "metric": "FD", "measure": "beef", "value": number, "status": "ok"}
    return base | told | {"date": "2026-01-02"} | changes


def cell(method: str, budget: int | None, numbers: Iterable[float], **changes: Any) -> list[Any]:
    """Return the draws of a method at a budget, one a seed, and their values."""
    rows: list[Any] = []
    for seed, number in enumerate(numbers):
        rows += [(drawn := draw(method, budget, seed, **changes)), value(drawn, number)]
    return rows


FAILED = draw("Heun", 50, 1, nfe=None, status="ValueError: too | long", traceback="Traceback: <b>", where="a.py:1 in f")

ROWS: tuple[Any, ...] = (
    *cell(REAL, None, (0.09, 0.11), shape=[800, 2]),
    *cell("DDIM", 5, (0.8, 0.82)),
    *cell("Heun", 5, (0.5, 0.521), nfe=4),
    *cell("DDIM", 50, (0.201, 0.202)),
    *cell("Heun", 50, (0.0001,)),
    FAILED,
)


def written(path: Path, rows: Sequence[Any] = ROWS) -> Path:
    """Write rows to a file and return its path."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
