"""What tuning gains: the default plan, tuned on a mixture fitted to the data, and tuned on the model itself.

    python -m benchmarks.tune --problems ring8 digits64 --out benchmarks/results/tune.jsonl
    python -m benchmarks.tune --table benchmarks/results/tune.jsonl

The model is the exact one of a law. The mixture sees 4,000 samples of it, or 500 in 3,072 dimensions, and asks the
model nothing. Both plans are run on the model, from starts that were not tuned on, against the end of the exact flow.
`--bar` names the rows of `benchmarks.nfe_error`, in which the best peer of each cell is found; without them the ratio
is that to the default.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.problems import PROBLEMS, PROCESSES
from sdekit import GaussianMixture, Process, V, sample
from sdekit.oracle import Full, LowRank
from sdekit.plan import Plan, run, trace
from sdekit.plan.tune import tune
from sdekit.study.sampler import Sampler

BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
SAMPLES = 4000
STARTS = {2: 256, 16: 256, 64: 256, 3072: 64}
RESULTS = Path(__file__).parent / "results"


class Found(NamedTuple):
    """One plan on one cell: how far from the exact end it came, and what finding it took."""

    problem: str
    process: str
    nfe: int
    plan: str
    rmse: float
    median: float
    calls: int
    seconds: float


def fitted(model: GaussianMixture, process: Process) -> GaussianMixture:
    """Return a mixture fitted to samples of the data, its size chosen by the dimension alone."""
    wide = math.prod(model.shape) > 256
    data = model.sample(SAMPLES // 8 if wide else SAMPLES, torch.Generator().manual_seed(11))
    family = LowRank.of_rank(8) if wide else Full
    return GaussianMixture.fit(process, data, 10 if wide else 25, family)


def measure(name: str, label: str, budgets: list[int]) -> Iterator[Found]:
    """Yield the three plans of every budget on a problem and a process."""
    process, problem = PROCESSES[label], PROBLEMS[name]
    model = problem.law(process)
    x = problem.start(process) * process.alpha(process.t_max)
    end, limit = problem.ends(process)
    generator = torch.Generator().manual_seed(5)
    starts = torch.randn(STARTS[x.shape[1]], x.shape[1], generator=generator, dtype=x.dtype)
    starts *= process.sigma(process.t_max)
    known = inspect.signature(sample).parameters

    def errors(plan: Plan) -> tuple[float, float]:
        clean = plan.times[-1] == process.clean
        there = limit if clean else end * process.alpha(plan.times[-1])
        each = _squares(run(plan, model, x), there)
        return float(each.mean().sqrt()), float(each.median().sqrt())

    began = time.perf_counter()
    mixture = fitted(model, process)
    fitting = time.perf_counter() - began
    for nfe in budgets:
        chosen = Sampler(known["method"].default, known["grid"].default).within(nfe, model)
        plan = trace(chosen.method, process, chosen.grid.suited(x.shape[1:]), V())
        yield Found(name, label, nfe, "default", *errors(plan), 0, 0.0)
        for kind, on, before in (("mixture", mixture, fitting), ("model", model, 0.0)):
            began = time.perf_counter()
            tuned = tune(plan, on, starts)
            seconds = before + time.perf_counter() - began
            yield Found(name, label, nfe, kind, *errors(tuned.plan), tuned.calls * (on is model), seconds)


def _squares(x: Tensor, end: Tensor) -> Tensor:
    return (x - end).square().mean(1).nan_to_num(nan=math.inf)


def bars(path: Path, rows: list[Found]) -> dict[tuple[str, str, int], float]:
    """Return the best peer's error in each cell, or the default plan's where there is none."""
    best = {(r.problem, r.process, r.nfe): r.rmse for r in rows if r.plan == "default"}
    if path.exists():
        peers: dict[tuple[str, str, int], float] = {}
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if row["library"] != "sdekit":
                cell = row["problem"], row["process"], row["nfe"]
                peers[cell] = min(peers.get(cell, math.inf), row["rmse"])
        best |= {cell: peers[cell] for cell in best if cell in peers}
    return best


def table(rows: list[Found], best: dict[tuple[str, str, int], float]) -> str:
    """Return the report in markdown."""
    lines = ["RMSE over that of the cell's best peer: default / tuned on a fitted mixture / tuned on the model.", ""]
    lines += [f"| problem | process | {' | '.join(f'NFE {n}' for n in BUDGETS)} |", "|---" * (len(BUDGETS) + 2) + "|"]
    ratio = {(r.problem, r.process, r.nfe, r.plan): r.rmse / best[r.problem, r.process, r.nfe] for r in rows}
    kinds = "default", "mixture", "model"
    for problem, process in dict.fromkeys((r.problem, r.process) for r in rows):
        cells = [[ratio.get((problem, process, n, kind), math.nan) for kind in kinds] for n in BUDGETS]
        lines.append(f"| {problem} | {process} | {' | '.join(' / '.join(f'{v:.2f}' for v in c) for c in cells)} |")
    lines += ["", "| plan | ratio, all | NFE 5-10 | NFE 15-50 | median, all | seconds, most |", "|---" * 6 + "|"]
    for kind in kinds:
        of = [r for r in rows if r.plan == kind]
        parts = [
            _mean([ratio[r[:4]] for r in of if low <= r.nfe <= high]) for low, high in ((0, 99), (0, 10), (11, 99))
        ]
        median = _mean([r.median / best[r.problem, r.process, r.nfe] for r in of])
        shown = " | ".join(f"{v:.3f}" for v in (*parts, median))
        lines.append(f"| {kind} | {shown} | {max(r.seconds for r in of):.0f} |")
    return "\n".join(lines)


def _mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else math.nan


def main() -> None:
    """Measure, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--processes", nargs="+", choices=list(PROCESSES), default=list(PROCESSES))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=RESULTS / "tune.jsonl")
    parser.add_argument("--bar", type=Path, default=RESULTS / "nfe_error.jsonl")
    parser.add_argument("--table", type=Path, help="print the table of this file and measure nothing")
    options = parser.parse_args()
    if options.table is None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad(), options.out.open("w") as file:
            for name in options.problems:
                for process in options.processes:
                    for found in measure(name, process, options.budgets):
                        print(json.dumps(found._asdict()), file=file, flush=True)
    lines = (options.table or options.out).read_text().splitlines()
    rows = [Found(**json.loads(line)) for line in lines]
    print(table(rows, bars(options.bar, rows)))


if __name__ == "__main__":
    main()
