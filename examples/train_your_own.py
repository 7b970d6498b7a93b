"""Train a model on a tensor of your own in twelve lines: here the two half-moons of scikit-learn."""

import torch
from sklearn.datasets import make_moons

from sdekit import Denoiser, RectifiedFlow, Velocity, log_likelihood, sample
from sdekit.metrics import SlicedWasserstein
from sdekit.nets import MLP
from sdekit.training import train

torch.manual_seed(0)
torch.set_num_threads(1)
data, labels = (torch.from_numpy(a) for a in make_moons(6000, noise=0.08, random_state=0))
data = (data.float() - data.mean(0)) / data.std(0)
model = Denoiser(MLP((2,), hidden=128, classes=2), RectifiedFlow(), predicts=Velocity())
model = train(model, (data[:5000], labels[:5000]), steps=1000, lr=2e-3, final=0.0)
upper = model.given(label=torch.zeros(1000, dtype=torch.int64))  # the first moon
x = sample(upper, (1000, 2))

# how good is it? against points it has not seen
held_out, of = data[5000:], labels[5000:]
distance = SlicedWasserstein(held_out[of == 0])
print("points of the other moon are further away:", distance(x) < 0.2 * distance(held_out[of == 1]))
found = log_likelihood(model.given(label=of[:50]), held_out[:50].double(), data=data)
print(f"log-density of held-out points: {found.log_prob.mean():.2f} nats, known to 0.1: {found.error.max() < 0.1}")

# expected:
# points of the other moon are further away: True
# log-density of held-out points: -0.95 nats, known to 0.1: True
