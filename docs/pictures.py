"""Draw the pictures of the documentation: python docs/pictures.py [folder]

trajectories.png: what samplers do to the same noise in the plane; plan.png: a table; nfe_error.png: error
against network calls, from benchmarks/results/.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from sdekit import DDIM, DDPM, VP, LogSNR, Method, ProbabilityFlow, RectifiedFlow, Uniform, trajectory
from sdekit.plan import Plan, trace
from sdekit.solvers import UniPC
from sdekit.study import exact_flow
from sdekit.study.order import ring


def trajectories(path: Path) -> None:
    """Draw six paths of DDIM at 5 and 20 steps, and of DDPM, beside the exact flow."""
    process = RectifiedFlow()
    model = ring(process)
    model.components.spectrum.values *= 0.05
    start = process.sigma(process.t_max) * torch.randn(
        6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7)
    )
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), sharex=True, sharey=True, layout="constrained")
    times = torch.linspace(process.t_max, process.t_min, 60, dtype=torch.float64).tolist()
    exact = torch.stack([start, *(exact_flow(model, start, times[0], t, 1e-8) for t in times[1:])])
    runs = {
        "the exact flow": exact,
        "DDIM, 5 steps": _points(model, start, DDIM, 5),
        "DDIM, 20 steps": _points(model, start, DDIM, 20),
        "DDPM, 20 steps": _points(model, start, DDPM, 20),
    }
    centres = model.components.means
    for axis, (name, run) in zip(axes, runs.items(), strict=True):
        axis.scatter(*centres.T, s=260, color="0.85", zorder=0)
        for sample in run.unbind(1):
            axis.plot(*sample.T, marker="." if len(run) < 60 else "", linewidth=1.2)
        axis.set_title(name, fontsize=11)
        axis.set_aspect("equal")
    figure.savefig(path, dpi=150)


def _points(model, start, method, steps):
    with torch.no_grad():
        return torch.stack([point.x for point in trajectory(model, start, method, Uniform(steps))])


def heat_map(plan: Plan, path: Path) -> None:
    """Draw the coefficients of a plan: a row a state, a column what it is summed from."""
    rows, states = plan.rows[1:], len(plan.rows) - 1
    table = np.zeros((len(rows), states + len(plan.asks)))
    for i, row in enumerate(rows):
        for k, c in row.states:
            table[i, k] = c
        for j, c in row.answers:
            table[i, states + j] = c
    most = np.abs(table).max()
    figure, axis = plt.subplots(figsize=(9, 4.2), layout="constrained")
    image = axis.imshow(np.where(table == 0, np.nan, table), cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
    names = [f"$X_{{{k}}}$" for k in range(states)] + [f"$D_{{{j}}}$" for j in range(len(plan.asks))]
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(rows)), [f"$X_{{{i + 1}}}$, t = {row.t:.3g}" for i, row in enumerate(rows)])
    axis.axvline(states - 0.5, color="0.5", linewidth=0.8)
    for (i, k), c in np.ndenumerate(table):
        if c:
            axis.text(k, i, f"{c:.2f}", ha="center", va="center", fontsize=7, color="w" if abs(c) > 0.6 * most else "k")
    figure.colorbar(image, ax=axis, label="coefficient")
    figure.savefig(path, dpi=150)


def nfe_error(rows: Path, path: Path) -> None:
    """Draw error against network calls on three problems: the default, known samplers, and the best of all others."""
    shown = {
        ("default", "default"): "sdekit's default",
        ("UniPC-3", "quad"): "UniPC-3, quadratic (diffusers)",
        ("DPMSolverMultistep-2", "karras"): "DPM-Solver++ 2M, Karras (diffusers)",
        ("Heun", "karras"): "Heun, Karras (diffusers)",
    }
    found = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
    problems = [("grid25", "vp"), ("digits64", "rf"), ("lowrank3072", "cosine")]
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    for axis, cell in zip(axes, problems, strict=True):
        here = [row for row in found if (row["problem"], row["process"]) == cell]
        for key, label in shown.items():
            line = sorted((row["nfe"], row["rmse"]) for row in here if (row["sampler"], row["grid"]) == key)
            axis.plot(*zip(*line, strict=True), marker="o", markersize=4, label=label)
        peers = [row for row in here if row["library"] != "sdekit"]
        calls = sorted({row["nfe"] for row in peers})
        best = [min(row["rmse"] for row in peers if row["nfe"] == nfe) for nfe in calls]
        axis.plot(calls, best, "k--", linewidth=1, label="the best of 148 others, cell by cell")
        axis.set(xscale="log", yscale="log", xlabel="network calls", title=f"{cell[0]}, {cell[1]}")
        axis.set_xticks(calls, [str(nfe) for nfe in calls])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("root mean square error")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Draw all."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "images")
    folder.mkdir(parents=True, exist_ok=True)
    trajectories(folder / "trajectories.png")
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    nfe_error(results / "nfe_error.jsonl", folder / "nfe_error.png")
    heat_map(trace(Method(ProbabilityFlow(), UniPC()), VP(), LogSNR(8)), folder / "plan.png")


if __name__ == "__main__":
    main()
