"""The order of convergence of every named method on six processes, measured: rewrites docs/orders.md.

    OMP_NUM_THREADS=1 python -m benchmarks.orders        # three minutes on one core

On the probability flow, the slope of the error of states on a ring of five Gaussians, against DOP853; on the reverse
SDE the weak order, the slope of the exact Wasserstein-2 distance of laws on Gaussian data, without sampling; and the
strong order on one Brownian path for VP. Declared is what the class says, and tests hold it.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch

from sdekit import VE, VP, BrownianPath, Cosine, LogSNR, Method, ProbabilityFlow, Process, RectifiedFlow, SubVP, solve
from sdekit.methods import METHODS
from sdekit.solvers import SRA1, Churn, Langevin, Restart, UniPC
from sdekit.study import measured_order
from sdekit.study.order import ring

PAGE = Path(__file__).parents[1] / "docs" / "orders.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Own(Process):
    """A user's own process: two formulas."""

    t_max: float = 0.98

    def alpha(self, t):
        return torch.cos(t * (math.pi / 2))

    def sigma(self, t):
        return torch.sin(t * (math.pi / 2))


PROCESSES: dict[str, Process] = {
    "VP": VP(),
    "cosine": Cosine(),
    "VE": VE(),
    "sub-VP": SubVP(),
    "straight": RectifiedFlow(),
    "one's own": Own(),
}
BIASED = (Churn, Restart, Langevin)
"""Their error does not vanish with the step alone."""


def orders(method: Method) -> list[float]:
    late = isinstance(method.solver, UniPC)  # whose start shows late
    steps = (512, 1024) if late else (128, 256) if method.solver.memory else (64, 128)
    return [measured_order(method, process, steps) for process in PROCESSES.values()]


@torch.no_grad()
def strong_order(method: Method) -> float:
    """Return the slope of the distance to a fine solution on the same path, from 32 to 128 steps."""
    model, path = ring(VP()), BrownianPath(seed=3)
    generator = torch.Generator().manual_seed(0)
    x0 = model.sample(256, generator)
    x = VP().perturb(x0, 1.0, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))
    fine = solve(model, x, Method(method.equation, SRA1()), LogSNR(1024), path).x
    runs = [solve(model, x, method, LogSNR(n), path).x for n in (32, 128)]
    errors = [float((run - fine).square().mean().sqrt()) for run in runs]
    return math.log(errors[0] / errors[1]) / math.log(4)


def tables() -> str:
    head = "| method | declared | calls a step | " + " | ".join(PROCESSES) + " |"
    flow = [head, "|" + "---|" * (3 + len(PROCESSES))]
    noisy = [head + " strong |", "|" + "---|" * (4 + len(PROCESSES))]
    for name, method in METHODS.items():
        if isinstance(method.solver, BIASED):
            continue
        solver = method.solver
        extra = f" (+{solver.starts} in all)" if solver.starts else ""
        cells = [name, str(solver.order), f"{solver.evals}{extra}", *(f"{order:.2f}" for order in orders(method))]
        if isinstance(method.equation, ProbabilityFlow):
            flow.append("| " + " | ".join(cells) + " |")
        else:
            noisy.append("| " + " | ".join([*cells, f"{strong_order(method):.2f}"]) + " |")
        print(cells, flush=True)
    return "\n".join(["## Probability flow", "", *flow, "", "## Reverse SDE (weak, and strong on VP)", "", *noisy, ""])


def main() -> None:
    torch.set_num_threads(1)
    text = """# Orders of convergence

Made by `python -m benchmarks.orders`. Every run goes from lam = -1 to 1.5, evenly in lam, where no step is spared its
error, as the first steps from pure noise are. Declared orders are those reached globally, from the first step on:
methods that begin with fewer points, as their papers have it, have order 2 however many points they use later. Weak
orders are those of the law, exactly; `damped-adams` is the default.

"""
    PAGE.write_text(text + tables(), encoding="utf-8")


if __name__ == "__main__":
    main()
