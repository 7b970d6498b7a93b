"""Draw the pictures of the documentation, in two minutes: python -m docs.pictures [folder]

trajectories.png: what samplers do to the same noise in the plane; plan.png: a table; nfe_error.png: error
against network calls, from benchmarks/results/; likelihood_parts.png: what a log-likelihood's error is made of;
likelihood_calls.png: that of the integration against network calls.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.problems import PROBLEMS
from sdekit import (
    DDIM,
    DDPM,
    EDM,
    RK4,
    VE,
    VP,
    Dopri5,
    FixedGrid,
    Hadamard,
    Hutchinson,
    LogSNR,
    Method,
    Model,
    ProbabilityFlow,
    Process,
    Quadratic,
    RectifiedFlow,
    Uniform,
    log_likelihood,
    trajectory,
)
from sdekit.likelihood import moments
from sdekit.plan import Plan, trace
from sdekit.prediction import Prediction
from sdekit.solvers import DampedAdams, LimitedAdams, UniPC
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


class Blind(nn.Module):
    """A model that hides what it knows of its density and of other noise levels, as a network does."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.process = model, model.process

    def forward(self, x: Tensor, t: Tensor) -> Prediction:
        """Predict at the states `x` and the time `t`."""
        return self.model(x, t)


NODES, PROBES, HELD = (33, 65), (1, 4, 16), "1 probe held fixed, Dopri5"
INTEGRATION = [f"integration, {nodes} nodes" for nodes in NODES]
TRACES = [f"{probes} probe{'s' * (probes > 1)} a node" for probes in PROBES]
ERRORS = [*INTEGRATION, *TRACES]
KINDS = [
    ("a matter of definition", "C0", ["time cut", "prior"]),
    ("an error, of a model asked as a network is", "C1", ERRORS),
    ("of the usual scheme", "0.6", [HELD]),
]


def likelihood_parts(path: Path) -> None:
    """Draw the parts of the error of log-likelihoods, process by process, of a mixture fitted to digits."""
    processes = {"VP": VP(), "VE": VE(), "EDM": EDM(), "RF": RectifiedFlow()}
    known = _known_parts(VP())  # the same on every process
    figure, axes = plt.subplots(1, 4, figsize=(14, 4.2), sharex=True, sharey=True, layout="constrained")
    for axis, (name, process) in zip(axes, processes.items(), strict=True):
        parts = _parts(process)
        for label, colour, names in KINDS:
            axis.barh(names, [parts[k] for k in names], color=colour, label=label)
        axis.plot([known[k] for k in ERRORS], ERRORS, "kD", markersize=4, label="that of an oracle")
        for k, value in parts.items():
            axis.text(1.5 * max(value, known.get(k, 0.0)), k, f"{value:.1g}", va="center", fontsize=8)
        cut, end = (float(process.sigma(t) / process.alpha(t)) for t in (process.t_min, process.t_max))
        axis.set_title(f"{name}: sigma/alpha from {cut:.2g} to {end:.3g}", fontsize=10)
        axis.set(xscale="log", xlim=(3e-6, 60), xlabel="nats, mean over samples")
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=150)


def _parts(process: Process) -> dict[str, float]:
    """Return the mean sizes of the parts for a model that is asked as a network is, against closed forms."""
    law = PROBLEMS["digits64"].law(process)
    x, data = law.sample(24, _generator(1)), moments(law.sample(2000, _generator(0)))
    alpha = process.alpha(process.t_min)
    noisy = law.log_prob(alpha * x, process.t_min) + x.shape[1] * torch.log(alpha)
    runs = {name: log_likelihood(Blind(law), x, _nodes(n)) for name, n in zip(INTEGRATION, NODES, strict=True)}
    runs |= {name: log_likelihood(Blind(law), x, _nodes(65), Hadamard(m), data) for name, m in _probes()}
    runs[HELD] = log_likelihood(Blind(law), x, Dopri5(1e-5, 1e-5), Hutchinson(1))
    last = runs[INTEGRATION[-1]]
    share = law.log_prob(last.latent, process.t_max) - last.log_prior
    found = {"time cut": law.log_prob(x) - noisy, "prior": share}
    found |= {name: run.log_prob + share - noisy for name, run in runs.items()}
    return {name: float(error.abs().mean()) for name, error in found.items()}


def _known_parts(process: Process) -> dict[str, float]:
    """Return the mean errors for the model itself."""
    law = PROBLEMS["digits64"].law(process)
    x = law.sample(24, _generator(1))
    runs = {name: log_likelihood(law, x, _nodes(n)) for name, n in zip(INTEGRATION, NODES, strict=True)}
    runs |= {name: log_likelihood(law, x, _nodes(65), Hadamard(m)) for name, m in _probes()}
    return {name: float((run.corrected - law.log_prob(x)).abs().mean()) for name, run in runs.items()}


def likelihood_calls(path: Path) -> None:
    """Draw the error of log-likelihoods with an exact trace, and what is stated of it, against network calls."""
    steps = [12, 16, 24, 32, 48, 64, 96, 128]
    grids = {
        "LimitedAdams, the default": [FixedGrid(LimitedAdams(), Quadratic(n)) for n in steps],
        "DampedAdams": [FixedGrid(DampedAdams(), Quadratic(n)) for n in steps],
        "RK4": [FixedGrid(RK4(), Quadratic(n // 4)) for n in steps if n > 16],
        "Dopri5, which states none": [Dopri5(10.0**-k, 10.0**-k) for k in range(2, 7)],
    }
    figure, axes = plt.subplots(1, 2, figsize=(10.5, 4), sharey=True, layout="constrained")
    for axis, (name, count) in zip(axes, {"digits64": 16, "rings2d": 64}.items(), strict=True):
        law = PROBLEMS[name].law(VP())
        x = law.sample(count, _generator(1))
        for (label, integrators), colour in zip(grids.items(), ("C1", "C0", "C2", "0.4"), strict=True):
            runs = [log_likelihood(law, x, integrator) for integrator in integrators]
            errors = [float((run.corrected - law.log_prob(x)).abs().mean()) for run in runs]
            calls = [run.nfe for run in runs]
            axis.plot(calls, errors, color=colour, marker="o", markersize=4, label=label)
            axis.plot(calls, [float(run.error.mean()) for run in runs], color=colour, linestyle="--", linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel="network calls", title=name)
        axis.set_xticks([16, 32, 64, 128, 256], ["16", "32", "64", "128", "256"])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("nats: error, and dashed what is stated")
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=150)


def _nodes(count: int) -> FixedGrid:
    return FixedGrid(grid=Quadratic(count - 1))


def _probes() -> list[tuple[str, int]]:
    return list(zip(TRACES, PROBES, strict=True))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def main() -> None:
    """Draw all."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "images")
    folder.mkdir(parents=True, exist_ok=True)
    trajectories(folder / "trajectories.png")
    results = Path(__file__).parents[1] / "benchmarks" / "results"
    nfe_error(results / "nfe_error.jsonl", folder / "nfe_error.png")
    heat_map(trace(Method(ProbabilityFlow(), UniPC()), VP(), LogSNR(8)), folder / "plan.png")
    likelihood_parts(folder / "likelihood_parts.png")
    likelihood_calls(folder / "likelihood_calls.png")


if __name__ == "__main__":
    main()
