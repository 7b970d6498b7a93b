"""Strong errors on one Brownian path, and what keeping the path costs: rewrites benchmarks/results/strong.jsonl.

    OMP_NUM_THREADS=1 python -m benchmarks.strong       # two minutes on one core

The reverse SDE of VP on a mixture of nine anisotropic modes in the plane, 512 paths, each against a run of SRA1 in 2048
steps on the same path. Equal network calls: SRA1 makes half the steps. The last rows time runs with a kept path against
runs with independent noise.
"""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.problems import rings2d
from sdekit import VP, BrownianPath, Keyed, LogSNR, Method, Quadratic, ReverseSDE, Uniform, solve
from sdekit.grid import Grid
from sdekit.methods import METHODS
from sdekit.solvers import SRA1, EulerMaruyama, Solver

CALLS = (16, 32, 64, 128, 256)
GRIDS: dict[str, type[Grid]] = {"Uniform": Uniform, "Quadratic": Quadratic, "LogSNR": LogSNR}
SOLVERS: dict[str, Solver] = {
    "Euler-Maruyama": EulerMaruyama(),
    "exponential 1 (DDPM)": METHODS["ddpm"].solver,
    "SRA1": SRA1(),
}
RESULTS = Path(__file__).parent / "results" / "strong.jsonl"


def errors() -> list[dict[str, Any]]:
    process = VP()
    model, path, generator = rings2d(process), BrownianPath(seed=3), torch.Generator().manual_seed(0)
    x0 = model.sample(512, generator)
    x = process.perturb(x0, process.t_max, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))
    fine = solve(model, x, Method(ReverseSDE(), SRA1()), Quadratic(2048), path).x
    rows = []
    for name, solver in SOLVERS.items():
        for grid, kind in GRIDS.items():
            for calls in CALLS:
                run = solve(model, x, Method(ReverseSDE(), solver), kind(calls // solver.evals), path)  # type: ignore
                each = (run.x - fine).square().sum(1).sqrt()
                rmse = float(each.square().mean().sqrt())
                row = {"solver": name, "grid": grid, "calls": run.nfe, "rmse": rmse, "median": float(each.median())}
                rows.append(row)
                print(row, flush=True)
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
        "| solver | grid | " + " | ".join(f"{calls} calls" for calls in CALLS) + " |",
        "|" + "---|" * (2 + len(CALLS)),
    ]
    for name in SOLVERS:
        for grid in GRIDS:
            cells = [row for row in rows if row["solver"] == name and row["grid"] == grid]
            figures = (f"{row['rmse']:.2g} ({row['median']:.2g})" for row in cells)
            lines.append(f"| {name} | {grid} | " + " | ".join(figures) + " |")
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    rows = errors()
    timed = costs()
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *timed]), encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
