"""Steering a model: towards a label, by a classifier, by a reward, through a measurement; and what is sampled then."""

import torch

from sdekit import VP, Gaussian, GaussianMixture, sample
from sdekit.guidance import Guided, Interval, Linear, Potential, Reward, classifier_free
from sdekit.oracle import Full
from sdekit.prediction import calls

means = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
whole = GaussianMixture(VP(), means, 0.7)  # the model of data with two labels, and the model of the second label
right = GaussianMixture(VP(), means[1:], 0.7)


def told(name, model):
    x = sample(model, (20000, 1))
    print(f"{name}: mean {x.mean():.2f}, std {x.std():.2f}")


def log_label(x, t):
    """The exact classifier of noisy states; a NoisyClassifier learns it."""
    return whole.responsibilities(x, t)[:, 1].log()


middle = classifier_free(right, whole, 3.0, Interval(-1.0, 1.5))
told("the label", right)
told("classifier-free, s = 3", classifier_free(right, whole, 3.0))
told("the same at middle noise levels", middle)
told("exact classifier, s = 3", Guided(whole, Potential(log_label, scale=3.0)))
print("calls within the interval and outside:", calls(middle, 0.3), calls(middle, 0.9))

# what is sampled is not the tilted density of the data, p (p_right / p)^3
grid = torch.linspace(-9, 9, 9001, dtype=torch.float64)[:, None]
tilted = (3 * right.log_prob(grid) - 2 * whole.log_prob(grid)).softmax(0)
print(f"the tilted density itself: mean {(tilted * grid[:, 0]).sum():.2f}")

# a reward on Gaussian data: linear in x0, it moves the mean by the variance times its slope, exactly
normal = Gaussian(VP(), torch.zeros(1, dtype=torch.float64), 1.0)
told("the reward 2 x0 on N(0, 1)", Guided(normal, Reward(lambda x0: 2 * x0[:, 0])))

# a measurement: of two correlated numbers one is seen to be 1, and the other follows
covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
pair = Gaussian(VP(), torch.zeros(2, dtype=torch.float64), Full(covariance))
seen = Linear(torch.tensor([[1.0, 0.0]]), torch.tensor([1.0]), std=0.1, data=Full(covariance))
other = sample(Guided(pair, seen), (20000, 2))[:, 1]
mean, std = 0.8 / 1.01, (1 - 0.8**2 / 1.01) ** 0.5
print(f"the other: mean {other.mean():.2f}, exactly {mean:.2f}; std {other.std():.2f}, exactly {std:.2f}")

# expected:
# the label: mean 1.00, std 0.70
# classifier-free, s = 3: mean 1.73, std 0.44
# the same at middle noise levels: mean 1.50, std 0.41
# exact classifier, s = 3: mean 1.73, std 0.44
# calls within the interval and outside: 2 1
# the tilted density itself: mean 1.18
# the reward 2 x0 on N(0, 1): mean 1.99, std 1.00
# the other: mean 0.80, exactly 0.79; std 0.60, exactly 0.61
