"""How much faster is a study in two processes than in one? One thread each, the same cells, in pairs.

OMP_NUM_THREADS=1 python -m benchmarks.workers            # three pairs, two minutes
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from sdekit import VP, Denoiser, Velocity
from sdekit.methods import METHODS
from sdekit.metrics import SlicedWasserstein
from sdekit.nets import MLP
from sdekit.study import Report, Study

RESULTS = Path(__file__).parent / "results" / "workers.md"
NAMES = ("ddim", "heun", "dpm++2m", "deis-3", "unipc-2", "damped-adams")
PAIRS = 3


def study() -> Study:
    """Return a study of 48 cells on an untrained MLP, half a second each."""
    torch.manual_seed(0)
    model = Denoiser(MLP((64,), hidden=256, depth=4), VP(), predicts=Velocity())
    metric = SlicedWasserstein(torch.randn(1000, 64))
    methods = {name: METHODS[name] for name in NAMES}
    return Study(model, methods, metric, (1500, 64), budgets=(5, 10, 20, 40), seeds=(0, 1))


def timed(given: Study, workers: int) -> tuple[float, Report]:
    """Return the seconds of a run from nothing, and its report."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        report = given.run(Path(folder) / "rows.jsonl", batch=500, workers=workers)
        return time.perf_counter() - begun, report


def main() -> None:
    """Run the pairs and write what they say."""
    torch.set_num_threads(1)
    given = study()
    timed(given, 2)  # the processes start, and modules are loaded
    lines = ["| one process | two | ratio |", "|---:|---:|---:|"]
    ratios = []
    for _ in range(PAIRS):
        (one, alone), (two, together) = timed(given, 1), timed(given, 2)
        if alone.table() != together.table():
            raise AssertionError("Two processes must find what one does; they did not.")
        ratios.append(one / two)
        lines.append(f"| {one:.1f} s | {two:.1f} s | {ratios[-1]:.2f} |")
    lines.append(f"\nMedian {statistics.median(ratios):.2f}; {len(given.cells)} cells, one thread a process.")
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines), file=sys.stdout)


if __name__ == "__main__":
    main()
