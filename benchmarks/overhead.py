"""What a step costs beyond the network: sdekit's plans, a loop written by hand, and diffusers' schedulers, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.overhead

The network returns a constant tensor, so all that is left is the sampler. Microseconds of CPU time per step, one
thread, float32, as the slope between 20 and 120 steps; rounds are interleaved, and a ratio is the median over rounds
with the middle half of them as its spread. The loop by hand updates the state in place with numbers known beforehand
and is told the time by a tensor made beforehand. Rows go to benchmarks/results/overhead.jsonl, the table to stdout.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdekit import DDIM, HEUN, VP, X0, Denoiser, DPMpp2M, Eps, LogSNR, Method, ProbabilityFlow
from sdekit.plan import run, trace
from sdekit.solvers import UniPC

SHAPES = [(1, 4, 64, 64), (16, 3, 32, 32), (256, 2), (64, 3072)]
FEW, MANY, ROUNDS = 20, 120, 11
RESULTS = Path(__file__).parent / "results" / "overhead.jsonl"
Run = Callable[[int], object]


def by_hand(x: Tensor, answer: Tensor) -> dict[str, Run]:
    """Loops with the arithmetic of each sampler and nothing else."""
    time_, net = torch.zeros(len(x)), lambda x, t: answer

    def ddim(n: int) -> Tensor:
        y = x.clone()
        for _ in range(n):
            y.mul_(0.99).add_(net(y, time_), alpha=0.01)
        return y

    def two(n: int) -> Tensor:
        y, before = x.clone(), answer
        for _ in range(n):
            now = net(y, time_)
            y.mul_(0.99).add_(now, alpha=0.02).add_(before, alpha=-0.01)
            before = now
        return y

    def unipc(n: int) -> Tensor:
        """Corrector (4 terms) and predictor (3 terms)."""
        y, one, two = x.clone(), answer, answer
        for _ in range(n):
            now = net(y, time_)
            corrected = torch.mul(y, 0.99).add_(now, alpha=0.02).add_(one, alpha=-0.01).add_(two, alpha=0.01)
            y = torch.mul(corrected, 0.99).add_(now, alpha=0.02).add_(one, alpha=-0.01)
            two, one = one, now
        return y

    def heun(n: int) -> Tensor:
        y = x.clone()
        for _ in range(n):
            first = net(y, time_)
            middle = torch.mul(y, 0.99).add_(first, alpha=0.01)
            y.mul_(0.99).add_(first, alpha=0.005).add_(net(middle, time_), alpha=0.005)
        return y

    return {"Euler/DDIM": ddim, "2M": two, "UniPC-2": unipc, "Heun": heun}


def by_plan(x: Tensor, answer: Tensor) -> dict[str, Run]:
    """The same samplers as plans, for networks that predict what the literature has them predict."""

    def runner(method: Method, model: Denoiser) -> Run:
        plans = {n: trace(method, VP(), LogSNR(n), model.predicts) for n in (FEW, MANY)}
        return lambda n: run(plans[n], model, x)

    eps, x0 = (Denoiser(lambda x, t: answer, VP(), predicts=target) for target in (Eps(), X0()))
    return {
        "Euler/DDIM": runner(DDIM, eps),
        "2M": runner(DPMpp2M, x0),
        "UniPC-2": runner(Method(ProbabilityFlow(), UniPC()), x0),
        "Heun": runner(HEUN, eps),
    }


def by_diffusers(x: Tensor, answer: Tensor) -> dict[str, Run]:
    """The schedulers of diffusers, as its pipelines drive them; empty if it is not installed."""
    try:
        import diffusers
    except ImportError:
        return {}

    def runner(kind: Any, **options: Any) -> Run:
        def go(n: int) -> Tensor:
            scheduler = kind(**options)
            scheduler.set_timesteps(n)
            y = x
            for t in scheduler.timesteps:
                y = scheduler.step(answer, t, y).prev_sample
            return y

        return go

    return {
        "Euler/DDIM": runner(diffusers.DDIMScheduler),
        "2M": runner(diffusers.DPMSolverMultistepScheduler),
        "UniPC-2": runner(diffusers.UniPCMultistepScheduler),
        "Heun": runner(diffusers.HeunDiscreteScheduler),
    }


def seconds(f: Run, n: int) -> float:
    start = time.process_time()
    f(n)
    return time.process_time() - start


def slope(f: Run) -> float:
    """Return the microseconds of one step; the fewer steps are run as often as the many to be timed as well."""
    few = statistics.median(seconds(f, FEW) for _ in range(3))
    return 1e6 * (statistics.median(seconds(f, MANY) for _ in range(3)) - few) / (MANY - FEW)


def measure(shape: tuple[int, ...]) -> list[dict[str, Any]]:
    x, answer = torch.randn(shape), torch.randn(shape) * 1e-3
    kinds = {"hand": by_hand(x, answer), "sdekit": by_plan(x, answer), "diffusers": by_diffusers(x, answer)}
    rows = []
    for name in kinds["hand"]:
        runs = {kind: samplers[name] for kind, samplers in kinds.items() if name in samplers}
        for f in runs.values():
            f(FEW)
        rounds = [{kind: slope(f) for kind, f in runs.items()} for _ in range(ROUNDS)]
        for kind in runs:
            ratios = sorted(r[kind] / r["hand"] for r in rounds)
            rows.append(
                {
                    "shape": shape,
                    "sampler": name,
                    "by": kind,
                    "us": round(statistics.median(r[kind] for r in rounds), 2),
                    "ratio": round(statistics.median(ratios), 3),
                    "spread": [round(ratios[ROUNDS // 4], 3), round(ratios[-1 - ROUNDS // 4], 3)],
                }
            )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| sampler | shape | by hand, us | sdekit, us | ratio (middle half) | diffusers, us | ratio |",
        "|" + "---|" * 7,
    ]
    for name in dict.fromkeys(row["sampler"] for row in rows):
        for shape in SHAPES:
            cell = {row["by"]: row for row in rows if row["sampler"] == name and tuple(row["shape"]) == shape}
            ours, theirs = cell["sdekit"], cell.get("diffusers", {"us": "-", "ratio": "-"})
            lines.append(
                f"| {name} | {shape} | {cell['hand']['us']} | {ours['us']} | {ours['ratio']:.2f} "
                f"({ours['spread'][0]:.2f}-{ours['spread'][1]:.2f}) | {theirs['us']} | {theirs['ratio']} |"
            )
    return "\n".join(lines)


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    rows = [row for shape in SHAPES for row in measure(shape)]
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(table(rows))
    worst = max(row["ratio"] for row in rows if row["by"] == "sdekit")
    print(f"\nThe worst ratio of sdekit to the loop by hand: {worst:.2f}")
    sys.exit(worst > 1.5)


if __name__ == "__main__":
    main()
