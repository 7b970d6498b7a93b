"""A model of your own and a solver of your own in a study, beside what sdekit and other libraries have."""

import itertools

import torch
from torch import nn

from sdekit import DDIM, VP, X0, Denoiser, LogSNR
from sdekit.interop import Torchdiffeq
from sdekit.study import FlowError, Function, Study

torch.manual_seed(0)


class Net(nn.Module):  # your network: what it says of the data
    def forward(self, x, t):
        return torch.tanh(3 * x * (1 - t[:, None]))


def twice(model, x, count):  # your solver: from states at t_max to samples, in at most `count` answers of the model
    times = LogSNR(max(count // 2, 1))(model.process)
    for t, s in itertools.pairwise(times):
        alpha, sigma = model.process.alpha(s), model.process.sigma(s)
        first = model(x, t)
        second = model(alpha * first.x0 + sigma * first.eps, s)
        x = x + (s - t) * (first.velocity + second.velocity) / 2
    return x


model = Denoiser(Net(), VP(), predicts=X0())
methods = {"my solver": Function(twice), "DDIM": DDIM, "rk4": Torchdiffeq("rk4", LogSNR(1))}
study = Study(model, methods, FlowError(), shape=(200, 2), budgets=(8, 32), seeds=(0, 1))
report = study.run("own_study.jsonl")
for method in report.methods:
    print(method, *(f"{report.entries[method, nfe].mean:.3f}" for nfe in report.budgets))
print("best at 32:", report.best(32))

# expected:
# my solver 0.146 0.015
# DDIM 0.058 0.010
# rk4 10.043 0.015
# best at 32: DDIM
