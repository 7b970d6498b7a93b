"""A solver of your own: one pure step. Its order is measured, and it samples like any other."""

from dataclasses import dataclass
from math import log2

import torch

from sdekit import RK4, VP, Euler, GaussianMixture, LogSNR, Method, ProbabilityFlow, Solver, Step, solve


@dataclass(frozen=True)
class Ralston(Solver):
    order = 2
    evals = 2

    def step(self, system, x, t, s, past, noise):
        h = s - t
        k = system.drift(x, t)
        return Step(x + h * (k / 4 + 3 / 4 * system.drift(x + 2 / 3 * h * k, t + 2 / 3 * h)))


angles = torch.arange(8, dtype=torch.float64) * torch.pi / 4
model = GaussianMixture(VP(), torch.stack([angles.cos(), angles.sin()], 1), 0.2)
start = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def run(solver, steps):
    return solve(model, start, Method(ProbabilityFlow(), solver), LogSNR(steps))


exact = run(RK4(), 800).x
for solver in (Euler(), Ralston()):
    coarse, fine = ((run(solver, n).x - exact).square().mean().sqrt() for n in (100, 200))
    print(f"{type(solver).__name__}: declared order {solver.order}, measured {log2(coarse / fine):.2f}")
print(f"network calls of 200 steps: {run(Ralston(), 200).nfe}")

# expected:
# Euler: declared order 1, measured 1.01
# Ralston: declared order 2, measured 2.03
# network calls of 200 steps: 400
