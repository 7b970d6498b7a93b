"""Strong errors on one Brownian path, and what keeping the path costs: rewrites benchmarks/results/strong.jsonl.

    OMP_NUM_THREADS=1 python -m benchmarks.strong       # four minutes on one core

The reverse SDE of VP on two mixtures in the plane, nine anisotropic modes as narrow as 0.03 and five of 0.4; 4096
paths, each against a run of SRA1 in 1024 steps on the same path. Equal network calls: SRA1 makes half the steps. The
last rows time runs with a kept path against runs with independent noise.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.problems import rings2d
from sdekit import VP, Beta, BrownianPath, Keyed, LogSNR, Method, Quadratic, ReverseSDE, Uniform, solve
from sdekit.grid import Grid
from sdekit.methods import METHODS
from sdekit.solvers import SRA1, EulerMaruyama, Solver
from sdekit.study.order import ring

CALLS = (16, 32, 64, 128, 256)
LAWS = {"nine narrow": rings2d, "five wide": ring}
GRIDS: dict[str, Callable[[int], Grid]] = {
    "Uniform": Uniform,
    "Quadratic": Quadratic,
    "Beta(0.1)": lambda steps: Beta(steps, 0.1),
    "LogSNR": LogSNR,
}
SOLVERS: dict[str, Solver] = {
    "Euler-Maruyama": EulerMaruyama(),
    "exponential 1 (DDPM)": METHODS["ddpm"].solver,
    "SRA1": SRA1(),
}
RESULTS = Path(__file__).parent / "results" / "strong.jsonl"


def errors(law: str) -> list[dict[str, Any]]:
    process = VP()
    model, path, generator = LAWS[law](process), BrownianPath(seed=3), torch.Generator().manual_seed(0)
    x0 = model.sample(4096, generator)
    x = process.perturb(x0, process.t_max, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))
    fine = solve(model, x, Method(ReverseSDE(), SRA1()), Quadratic(1024), path).x
    rows = []
    for name, solver in SOLVERS.items():
        for grid, make in GRIDS.items():
            for calls in CALLS:
                run = solve(model, x, Method(ReverseSDE(), solver), make(calls // solver.evals), path)
                each = (run.x - fine).square().sum(1).sqrt()
                figures = {"rmse": each.square().mean().sqrt(), "mean": each.mean(), "median": each.median()}
                row = {"law": law, "solver": name, "grid": grid, "calls": run.nfe}
                rows.append(row | {key: float(value) for key, value in figures.items()})
                print(rows[-1], flush=True)
    return rows


def costs() -> list[dict[str, Any]]:
    process = VP()
    model = rings2d(process)
    x = torch.randn(512, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, solver in SOLVERS.items():
        method, ratios = Method(ReverseSDE(), solver), []
        for _ in range(7):
            spent = []
            for noise in (Keyed(3), BrownianPath(3)):
                start = time.process_time()
                solve(model, x, method, LogSNR(64), noise)
                spent.append(time.process_time() - start)
            ratios.append(spent[1] / spent[0])
        ratios.sort()
        rows.append({"solver": name, "path / no path": statistics.median(ratios), "spread": [ratios[1], ratios[-2]]})
        print(rows[-1], flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| law | solver | grid | " + " | ".join(f"{calls} calls" for calls in CALLS) + " |",
        "|" + "---|" * (3 + len(CALLS)),
    ]
    for law, name, grid in itertools.product(LAWS, SOLVERS, GRIDS):
        cells = [row for row in rows if (row["law"], row["solver"], row["grid"]) == (law, name, grid)]
        figures = (f"{row['rmse']:.2g} ({row['mean']:.2g}, {row['median']:.2g})" for row in cells)
        lines.append(f"| {law} | {name} | {grid} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    rows = [row for law in LAWS for row in errors(law)]
    timed = costs()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *timed]), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
