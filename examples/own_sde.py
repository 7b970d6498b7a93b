"""A diffusion process of your own: two formulas, and drift, log-SNR, transitions, samplers and likelihood follow."""

from dataclasses import dataclass
from math import pi

import torch

from sdekit import DDIM, GaussianMixture, Process, Uniform, log_likelihood, sample


@dataclass(frozen=True, kw_only=True)
class Trigonometric(Process):
    t_max: float = 0.98

    def alpha(self, t):
        return torch.cos(t * pi / 2)

    def sigma(self, t):
        return torch.sin(t * pi / 2)


process = Trigonometric()
t = torch.tensor(0.5)
print(f"f = {process.f(t):.4f}, g = {process.diffusion(t):.4f}, lam = {process.lam(t):.4f}")
print(f"time(lam(0.3)) = {process.time(process.lam(0.3)):.4f}")

# an exact model of a known law on the process, so that every figure below can be checked
corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
model = GaussianMixture(process, corners, 0.25)
x = sample(model, (4000, 2), DDIM, Uniform(200))
print(f"mean |x| = {x.abs().mean():.3f}, spread about the corners = {(x - x.sign()).std():.3f}")

found = log_likelihood(model, corners)
print(f"log p at the corners = {found.log_prob.mean():.2f}, exactly {model.log_prob(corners).mean():.2f}")

# expected:
# f = -1.5708, g = 1.7725, lam = 0.0000
# time(lam(0.3)) = 0.3000
# mean |x| = 1.000, spread about the corners = 0.250
# log p at the corners = -0.45, exactly -0.45
