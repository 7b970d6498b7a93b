"""Mixtures of Gaussians from data, by expectation maximization.

Reference: Dempster, Laird & Rubin 1977; the start is k-means++, Arthur & Vassilvitskii 2007.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit.oracle.components import Components
from sdekit.oracle.covariance import Family
from sdekit.oracle.spectrum import Spectrum

STEPS = 200
"""The most steps of expectation maximization."""

GAIN = 1e-4
"""It stops when a step gains less than this, in nats per sample."""

LLOYD = 10
"""The steps of k-means before it."""

ROWS = 4096
"""The samples whose responsibilities are computed at once."""


def fit_one(data: Tensor, family: Family, floor: float) -> tuple[Tensor, Spectrum]:
    """Return the mean, shape (d,), and the covariance of `data`, shape (N, d), both in float64."""
    x, lowest = _checked(data, 1, family, floor)
    shares = x.new_full((len(x), 1), 1 / len(x))
    mean = x.mean(0)
    return mean, family.estimate(x - mean, shares, torch.zeros_like(mean)[None], lowest)


def expectation_maximization(data: Tensor, components: int, family: Family, floor: float, seed: int) -> Components:
    """Return the mixture that fits `data`, shape (N, d), in float64.

    Args:
        data: the samples.
        components: their number.
        family: the kind of covariance.
        floor: the smallest variance in any direction, in units of the data's mean variance.
        seed: of the start.

    Raises:
        ValueError: fewer points than components, data that is not finite, or of which all points are equal.
    """
    x, lowest = _checked(data, components, family, floor)
    center = x.mean(0)
    x = x - center  # moments about zero would lose digits far from it
    means = _start(x, components, torch.Generator().manual_seed(seed))
    law, before = maximization(x, _nearest(x, means), family, lowest), -torch.inf
    for _ in range(STEPS):
        weights, now = expectation(x, law)
        if now - before < GAIN:
            break
        law, before = maximization(x, weights, family, lowest), now
    return Components(law.means + center, law.spectrum, law.log_weights.exp())


def expectation(x: Tensor, law: Components) -> tuple[Tensor, float]:
    """Return the responsibilities p(k | x), shape (N, K), and the mean log-likelihood in nats."""
    one, zero = torch.ones(()), torch.zeros(())
    seen = [law.given(block, one, zero) for block in x.split(ROWS)]
    return torch.cat([s.weights for s in seen]), float(torch.cat([s.log_prob for s in seen]).mean())


def maximization(x: Tensor, weights: Tensor, family: Family, floor: float) -> Components:
    """Return the most likely mixture for given responsibilities, shape (N, K), with no variance below `floor`."""
    weights = weights.clamp(min=1e-12)  # a component that lost its points becomes a faint copy of the whole data
    counts = weights.sum(0)
    shares = weights / counts
    means = shares.T @ x
    return Components(means, family.estimate(x, shares, means, floor), counts / counts.sum())


def _start(x: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Return starting means, shape (K, d): points drawn far from each other, then a few steps of k-means."""
    chosen = torch.randint(len(x), (1,), generator=generator).to(x.device)
    far = torch.full_like(x[:, :1], torch.inf)
    for _ in range(components - 1):
        far = far.minimum(torch.cdist(x, x[chosen[-1:]]).square())
        chances = (far + far.mean() * 1e-9 + 1e-300)[:, 0].cpu()  # never all 0, even if points repeat
        chosen = torch.cat([chosen, torch.multinomial(chances, 1, generator=generator).to(x.device)])
    means = x[chosen]
    for _ in range(LLOYD):
        members = _nearest(x, means)
        counts = members.sum(0)[:, None]
        means = torch.where(counts > 0, members.T @ x / counts.clamp(min=1), means)
    return means


def _nearest(x: Tensor, means: Tensor) -> Tensor:
    """Return 1 for the nearest mean and 0 for the others, shape (N, K)."""
    return torch.nn.functional.one_hot(torch.cdist(x, means).argmin(1), len(means)).to(x)


def _checked(data: Tensor, components: int, family: Family, floor: float) -> tuple[Tensor, float]:
    """Return the data in float64 and the smallest variance allowed."""
    if not isinstance(family, Family):
        raise TypeError(
            f"covariance must be a family: Isotropic, Diagonal, Full or LowRank.of_rank(r); got {family!r}."
        )
    if not 1 <= components <= len(data):
        raise ValueError(f"components must be from 1 to the number of points, {len(data)}; got {components}.")
    x = data.to(torch.float64)
    spread = float(x.var(0, correction=0).mean())
    if not (0 < spread < torch.inf and floor > 0):
        raise ValueError(
            f"Data must be finite and not all equal, and floor positive; got a mean variance of {spread:g} and floor "
            f"{floor:g}. Remove what is not finite, or give the covariance by hand."
        )
    return x, floor * spread
