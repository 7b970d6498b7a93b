"""A solver of your own: one pure step. It is traced to a table, its order is proven, its error measured."""

from dataclasses import dataclass

import torch

from sdekit import VE, VP, Cosine, LogSNR, Method, ProbabilityFlow, Solver, Step, solve
from sdekit.plan import trace
from sdekit.study import exact_flow, measured_order
from sdekit.study.order import ring


@dataclass(frozen=True)
class TwoThirds(Solver):
    order, evals = 2, 2

    def step(self, system, x, t, s, past, noise):
        h, k = s - t, system.drift(x, t)
        return Step(x + h * (k / 4 + 3 / 4 * system.drift(x + 2 / 3 * h * k, t + 2 / 3 * h)))


mine = Method(ProbabilityFlow(), TwoThirds())
print(trace(mine, VP(), LogSNR(2)))
print("orders", *(f"{measured_order(mine, process):.2f}" for process in (VP(), Cosine(), VE())))

model, x = ring(VP()), torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
exact = exact_flow(model, x, VP().t_max, VP().t_min)
for steps in (10, 20, 40):
    run = solve(model, x, mine, LogSNR(steps))
    print(f"{run.nfe} calls: error {float((run.x - exact).square().mean().sqrt()):.5f}")

# expected:
# ProbabilityFlow() on VP(t_min=0.001, t_max=1.0, beta_min=0.1, beta_max=20.0): 2 steps, 4 answers as X0, 0 noises
#   X0  t=1
#   X1  t=0.536421   = +0.9998 X0 +0.0304658 D0
#   X2  t=0.304631   = +0.839228 X0 +0.00652793 D0 +0.690963 D1
#   X3  t=0.10221    = +0.609133 X2 +0.629723 D2
#   X4  t=0.001      = -0.37037 X2 -1.02902 D2 +2.1271 D3
# orders 2.05 1.99 2.02
# 20 calls: error 0.00458
# 40 calls: error 0.00077
# 80 calls: error 0.00015
