"""Log-likelihoods with an error bar, checked against a law whose density is known."""

import torch

from sdekit import VE, VP, Dopri5, GaussianMixture, Hadamard, log_likelihood, log_likelihood_within

generator = torch.Generator().manual_seed(0)
means = torch.randn(5, 8, dtype=torch.float64, generator=generator)
x = GaussianMixture(VP(), means, 0.5).sample(50, generator)

for process in (VP(), VE()):
    model = GaussianMixture(process, means, 0.5)
    truth = model.log_prob(x)
    exact = log_likelihood(model, x)
    error = (exact.log_prob - truth).abs()
    print(f"{type(process).__name__}, {exact.nfe} calls: below 1e-4: {bool((error < 1e-4).all())}")

guess = log_likelihood(model, x, trace=Hadamard(probes=1))
low, high = guess.interval(0.95)
print(f"one probe a node errs by {(guess.log_prob - truth).abs().mean():.2f} nats, states {guess.error.mean():.2f}")
print(f"95% intervals cover {100 * ((low < truth) & (truth < high)).double().mean():.0f} percent")

asked = log_likelihood_within(model, x, nats=1e-3)
print(f"asked for 0.001 nats: all stated within it: {bool((asked.error <= 1e-3).all())}")

adaptive = log_likelihood(model, x[:10], Dopri5())
print(f"adaptive steps agree: {bool((adaptive.log_prob - truth[:10]).abs().max() < 1e-4)}, {adaptive.nfe} calls")

# expected:
# VP, 65 calls: below 1e-4: True
# VE, 65 calls: below 1e-4: True
# one probe a node errs by 0.01 nats, states 0.05
# 95% intervals cover 100 percent
# asked for 0.001 nats: all stated within it: True
# adaptive steps agree: True, 135 calls
