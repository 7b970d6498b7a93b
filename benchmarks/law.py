"""How long the exact analysis of a plan takes: python -m benchmarks.law (seconds; one thread)."""

from __future__ import annotations

import statistics
import time

import torch

from sdekit import DDIM, DDPM, VP, Gaussian, LogSNR
from sdekit.methods import METHODS
from sdekit.oracle import Diagonal
from sdekit.plan import law, marginal, trace


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    variances, mean = (torch.rand(3072, generator=generator, dtype=torch.float64) for _ in range(2))
    data = Gaussian(VP(), mean, Diagonal(variances + 0.01))
    print(
        "| plan of 20 steps, 3,072 eigenvalues | law, ms (middle half of 21) | W2 to the data's marginal | KL, nats |"
    )
    print("|---|---|---|---|")
    methods = {"DDIM": DDIM, "unipc-3": METHODS["unipc-3"], "damped-adams": METHODS["damped-adams"], "DDPM": DDPM}
    for name, method in {**methods, "sra1": METHODS["sra1"]}.items():
        plan, spent = trace(method, VP(), LogSNR(20)), []
        for _ in range(21):
            start = time.process_time()
            outcome = law(plan, data)
            spent.append(1e3 * (time.process_time() - start))
        low, middle, high = statistics.quantiles(spent)
        end = marginal(data, VP().t_min)
        distances = f"{float(outcome.w2(end)):.3g} | {float(outcome.kl(end)):.3g}"
        print(f"| {name} | {middle:.1f} ({low:.1f}-{high:.1f}) | {distances} |")


if __name__ == "__main__":
    main()
