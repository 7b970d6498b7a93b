"""Error against network calls: sdekit's samplers, diffusers' and the literature's formulas, on problems solved exactly.

    python -m benchmarks.nfe_error --problems ring8 digits64 --out benchmarks/results/nfe_error.jsonl
    python -m benchmarks.nfe_error --again                  # sdekit anew, beside the peers of the last run
    python -m benchmarks.nfe_error --table benchmarks/results/nfe_error.jsonl

A cell is a problem, a process and a budget of network calls. Its figure is the root mean square, per coordinate, of the
distance to the end of the exact flow at t_min, or to its limit at sigma = 0 for samplers that end there. In every cell
the best of the peers (diffusers and the formulas, on all grids) is found anew; what is compared is the ratio to it.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks import formulas, peers
from benchmarks.problems import HELD_OUT, PROBLEMS, PROCESSES, TUNING, Problem
from sdekit import (
    VP,
    Beta,
    Karras,
    LogSNR,
    Method,
    Process,
    Quadratic,
    Uniform,
    sample,
    solve,
)
from sdekit.grid import Grid
from sdekit.methods import METHODS
from sdekit.study.sampler import Sampler

BUDGETS = (5, 6, 8, 10, 15, 20, 30, 50)
DEFAULT = "default"
OURS = ("damped-adams", "dpm++2m", "unipc-3", "ipndm")
"""The named methods that are run beside the default; the peers have most of the others."""


class Found(NamedTuple):
    """One run: who made it, with what, and how far from the exact end it came."""

    problem: str
    process: str
    nfe: int
    library: str
    sampler: str
    grid: str
    rmse: float
    median: float


class Case:
    """A problem seen through a process, where calls are counted."""

    def __init__(self, problem: Problem, process: Process) -> None:
        self.process, self.model = process, problem.law(process)
        self.start, (self.end, self.limit) = problem.start(process), problem.ends(process)
        self.calls = 0

    def __call__(self, z: Tensor, r: float) -> Tensor:
        """Return x0_hat at z = x / alpha and r = sigma / alpha."""
        self.calls += 1
        data, one = self.model.components, torch.ones((), dtype=z.dtype)
        return data.given(z, one, torch.tensor(r, dtype=z.dtype)).mean(one, torch.zeros((), dtype=z.dtype))

    def levels(self, grid: Grid) -> list[float]:
        """Return sigma / alpha on a grid."""
        return [float(r) for r in torch.exp(-self.process.lam(grid(self.process)))]

    def errors(self, z: Tensor, clean: bool) -> tuple[float, float]:
        """Return the root mean square error and the median over samples of the same."""
        each = (z - (self.limit if clean else self.end)).square().mean(1)
        each = each.nan_to_num(nan=math.inf)
        return float(each.mean().sqrt()), float(each.median().sqrt())


Runs = Callable[[Case, int], Iterator[tuple[str, str, str, Tensor, bool]]]


def common_grids(process: Process, steps: int) -> dict[str, Grid | list[float]]:
    """Return the grids that every sampler is run on; `quad` is the root of time, on VE that of VP at equal noise."""
    grids: dict[str, Any] = {"logsnr": LogSNR(steps), "karras": Karras(steps)}
    if process != PROCESSES["ve"]:
        return grids | {"time": Uniform(steps), "quad": Quadratic(steps)}
    same = VP(t_max=float(VP().time(process.lam(process.t_max))), t_min=float(VP().time(process.lam(process.t_min))))
    for name, rule in (("time", Uniform(steps)), ("quad", Quadratic(steps))):
        grids[name] = [float(r) for r in torch.exp(-same.lam(rule(same)))]
    return grids


def of_peers(case: Case, budget: int) -> Iterator[tuple[str, str, str, Tensor, bool]]:
    """Yield library, sampler, grid, end and whether it is the clean end, for every peer within a budget."""
    for library, samplers in (("formula", dict(formulas.named())), ("diffusers", peers.SAMPLERS)):
        for name, run in samplers.items():
            steps = peers.steps_within(name, budget) if library == "diffusers" else budget
            if steps < 2:
                continue
            for grid, rule in common_grids(case.process, steps).items():
                levels = rule if isinstance(rule, list) else case.levels(rule)
                yield library, name, grid, run(case, case.start, levels), False
            if library == "diffusers" and name in peers.MULTISTEP and not name.startswith("DEIS"):
                first, last = case.levels(LogSNR(1))
                for own in peers.OWN:
                    levels = peers.own_levels(own, first, last, budget)
                    yield library, name, f"own-{own}", run(case, case.start, levels), True


def of_sdekit(case: Case, budget: int) -> Iterator[tuple[str, str, str, Tensor, bool]]:
    """Yield the same for sdekit: every method for the flow on the common grids, and the default of `sample`."""
    default = inspect.signature(sample).parameters
    yield from _run(case, budget, DEFAULT, DEFAULT, default["method"].default, default["grid"].default)
    for name in OURS:
        for grid in (LogSNR(1), Quadratic(1), Beta(1)):
            label = str(grid).replace("steps=1", "").replace("grid=", "").replace(", rho=7.0", "")
            yield from _run(case, budget, name, label.replace(", centre=None", ""), METHODS[name], grid)


def _run(
    case: Case, budget: int, name: str, label: str, method: Method, grid: Grid
) -> Iterator[tuple[str, str, str, Tensor, bool]]:
    try:
        chosen = Sampler(method, grid).within(budget, case.model)
    except ValueError:  # it asks for more calls than that, or for another grid
        return
    times = chosen.grid(case.process)
    point = solve(case.model, case.start * case.process.alpha(times[0]), chosen.method, chosen.grid)
    case.calls += point.nfe
    clean = point.t < case.process.t_min
    yield "sdekit", name, label, point.x if clean else point.x / case.process.alpha(times[-1]), clean


def measure(name: str, process: str, budgets: tuple[int, ...], libraries: tuple[Runs, ...]) -> Iterator[Found]:
    """Yield what every sampler reaches on a problem and a process; a run over budget yields nothing."""
    case = Case(PROBLEMS[name], PROCESSES[process])
    for budget in budgets:
        for runs in libraries:
            case.calls = 0
            for library, sampler, grid, end, clean in runs(case, budget):
                if case.calls <= budget:
                    yield Found(name, process, budget, library, sampler, grid, *case.errors(end, clean))
                case.calls = 0


def table(rows: list[Found]) -> str:
    """Return the report in markdown: the ratio to the best peer by cell, then geometric means of every sampler."""
    cells: dict[tuple[str, str, int], list[Found]] = defaultdict(list)
    for row in rows:
        cells[row.problem, row.process, row.nfe].append(row)
    best = {c: min((r for r in found if r.library != "sdekit"), key=lambda r: r.rmse) for c, found in cells.items()}
    lines = ["Root mean square error of sdekit's default, and in brackets its ratio to the best peer of the cell.", ""]
    lines += [f"| problem | process | {' | '.join(f'NFE {n}' for n in BUDGETS)} |", "|---" * (len(BUDGETS) + 2) + "|"]
    for problem, process in dict.fromkeys((r.problem, r.process) for r in rows):
        shown = []
        for nfe in BUDGETS:
            own = [r for r in cells[problem, process, nfe] if r.sampler == DEFAULT]
            bar = best.get((problem, process, nfe))
            shown.append(f"{own[0].rmse:.2g} ({own[0].rmse / bar.rmse:.2f})" if own and bar else "-")
        lines.append(f"| {problem} | {process} | {' | '.join(shown)} |")
    for title, kept in (("TUNING", TUNING), ("HELD_OUT", HELD_OUT)):
        lines += ["", f"One sampler on one grid everywhere, laws of {title}: geometric mean of the ratio.", ""]
        lines += ["| sampler | all | NFE 5-10 | NFE 15-50 |", "|---|---|---|---|"]
        lines += _ranking([r for r in rows if r.problem in kept], best)
    return "\n".join(lines)


def _ranking(rows: list[Found], best: dict[tuple[str, str, int], Found], shown: int = 12) -> list[str]:
    ratios: dict[str, dict[tuple[str, str, int], float]] = defaultdict(dict)
    for r in rows:
        cell = (r.problem, r.process, r.nfe)
        ratios[f"{r.library} {r.sampler} {r.grid}"][cell] = max(r.rmse, 1e-300) / best[cell].rmse
    whole = max((len(of) for of in ratios.values()), default=0)
    entries = []
    for name, of in ratios.items():
        if len(of) == whole:
            parts = [
                list(of.values()),
                [v for c, v in of.items() if c[2] <= 10],
                [v for c, v in of.items() if c[2] > 10],
            ]
            entries.append((name, [math.exp(sum(map(math.log, p)) / len(p)) if p else math.nan for p in parts]))
    entries.sort(key=lambda entry: entry[1][0])
    kept = entries[:shown] + [e for e in entries[shown:] if DEFAULT in e[0]]
    return [f"| {name} | {' | '.join(f'{v:.2f}' for v in values)} |" for name, values in kept]


def main() -> None:
    """Measure, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--processes", nargs="+", choices=list(PROCESSES), default=list(PROCESSES))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "nfe_error.jsonl")
    parser.add_argument("--again", action="store_true", help="keep the peers' rows of the file, measure sdekit only")
    parser.add_argument("--table", type=Path, help="print the table of this file and measure nothing")
    options = parser.parse_args()
    if options.table is None:
        cells = [(name, process) for name in options.problems for process in options.processes]
        kept: list[Found] = []
        if options.again:
            kept = [row for row in read(options.out) if row.library != "sdekit"]
            cells = list(dict.fromkeys((row.problem, row.process) for row in kept))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        libraries: tuple[Runs, ...] = (of_sdekit,) if options.again else (of_peers, of_sdekit)
        with torch.no_grad(), options.out.open("w") as file:
            for row in kept:
                file.write(json.dumps(row._asdict()) + "\n")
            for name, process in cells:
                for found in measure(name, process, tuple(options.budgets), libraries):
                    file.write(json.dumps(found._asdict()) + "\n")
    print(table(read(options.table or options.out)))


def read(path: Path) -> list[Found]:
    """Return the rows of a file."""
    return [Found(**json.loads(line)) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    main()
