r"""The last step, from a state with the noise of t_min on it to data: a density of numbers, a probability of levels.

A model says what data a state z = alpha x + sigma eps comes from, and the decoder is the Gaussian around that,

    p(x | z) = N(x; x0_hat(z), std^2 I),          std = sigma / alpha,

or for data on levels its mass in the bin of each. As t_min goes to the data, it is what Bayes' rule makes of a smooth
density: to second order in std^2 over the variance of the data, while N(x; z / alpha, std^2 I) is to first order only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import as_time
from sdekit.likelihood.denoising import Draws, check_data, standard_error
from sdekit.likelihood.dequantization import Levels
from sdekit.prediction import Model, calls
from sdekit.process import Normal


@dataclass(frozen=True, eq=False)
class DenoisingBound:
    """A lower bound of a log-density of data, draw by draw of the noise of t_min.

    Attributes:
        weights: log p_{t_min}(z) + log p(x | z) - log q(z | x) of every draw z: nats, float64, shape (draws, B).
        nfe: calls of the network by the decoder, one a draw; those of the density are not counted.
    """

    weights: Tensor
    nfe: int

    @property
    def log_prob(self) -> Tensor:
        """The mean over the draws, in expectation a lower bound of log p(x), shape (B,)."""
        return self.weights.mean(0)

    @property
    def stderr(self) -> Tensor:
        """The standard error of `log_prob`, NaN for one draw; shape (B,)."""
        return standard_error(self.weights)

    @property
    def tightened(self) -> Tensor:
        """The log of the mean of e^weights, a tighter bound in expectation, shape (B,). It wants exact densities.

        Reference: Burda et al. 2016 (arXiv 1509.00519), theorem 1.
        """
        return self.weights.logsumexp(0) - math.log(len(self.weights))


def denoising_bound(
    model: Model,
    x: Tensor,
    density: Callable[[Tensor], Tensor],
    draws: Draws = Draws(8),
    levels: Levels | None = None,
) -> DenoisingBound:
    """Return a bound of log p(x) for data without noise, from the density of data with the noise of t_min on them:

        log p(x) >= E log [p_r(y) p(x | y) / q(y | x)],          y ~ q(y | x) = N(x, r^2 I),  r = sigma / alpha

    It bounds the law of data decoded from noisy ones of that density, whatever the density is.

    Args:
        model: the model that decodes.
        x: data, shape (B, ...), float32 or float64; on levels, if those are given.
        density: the function y -> log p_r(y) in nats, shape (B,): of a network that of its flow, `lambda y:
            log_likelihood(model, y).log_prob`; of an oracle its own, log p_{t_min}(alpha y) + d log alpha.
        draws: how many y, and their seed.
        levels: where the data lie, if on levels; the bound is then of a probability.

    Raises:
        ValueError: x is no batch of finite floating-point data, or not on the levels; sigma(t_min) is 0; or the
            density's answer is not of shape (B,).

    Reference: Kingma et al. 2021 (arXiv 2107.00630), eq. 11, with the last state only.

    >>> from sdekit import VP
    >>> from sdekit.oracle import Gaussian
    >>> law = Gaussian(VP(), torch.zeros(2, dtype=torch.float64), 1.0)
    >>> bound = denoising_bound(law, torch.ones(1, 2), lambda y: law.log_prob(y))
    >>> bool((bound.log_prob - law.log_prob(torch.ones(1, 2))).abs() < 1e-3)
    True
    """
    check_data(x)
    t, std = last(model)
    law, alpha = model.process.marginal(x, t), float(model.process.alpha(t))
    scale = x[0].numel() * math.log(alpha)  # from the density of y = z / alpha to that of the state z
    weights = []
    for k in range(draws.count):
        z = law.at(draws.normals(x, 2, k))
        decoded = log_decoder(x, model(z, t).x0, std, levels)
        marginal = density(z / alpha)
        if marginal.shape != x.shape[:1]:
            raise ValueError(f"density must return shape ({len(x)},), a number a sample; got {tuple(marginal.shape)}.")
        weights.append(marginal.to(torch.float64) - scale + decoded - Normal(*map(_double, law)).log_prob(_double(z)))
    return DenoisingBound(torch.stack(weights), draws.count * calls(model, t))


def log_decoder(x: Tensor, mean: Tensor, std: Tensor, levels: Levels | None = None) -> Tensor:
    """Return log N(x; mean, std^2 I), or the log of its mass in the bins of `x`, in nats: float64, shape (B,).

    Args:
        x: data, shape (B, ...).
        mean: of the shape of `x`.
        std: 0-d, or of the shape of `x`.
        levels: where the data lie, if on levels.
    """
    if levels is None:
        return Normal(_double(mean), _double(std).expand(x.shape)).log_prob(_double(x))
    return log_mass(levels, x, mean, std).reshape(len(x), -1).sum(1)


def log_mass(levels: Levels, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the log of a Gaussian's mass in the bin of each coordinate, nats, float64, of the shape of `x`:

        log [Phi((x + width/2 - mean) / std) - Phi((x - width/2 - mean) / std)]

    with open bins at both ends, so that the masses of all levels sum to 1. No digits are lost in the tails.

    Args:
        levels: the levels; their noise plays no part.
        x: data on the levels.
        mean: the Gaussian's mean, of a shape that broadcasts with `x`.
        std: its standard deviation, likewise.

    Raises:
        ValueError: a value is not on a level.

    Reference: Ho et al. 2020 (arXiv 2006.11239), eq. 13.

    >>> from sdekit.likelihood import Dequantization
    >>> bits = Dequantization(levels=2)
    >>> log_mass(bits, torch.tensor([-1.0, 1.0]), torch.tensor(0.0), torch.tensor(1.0)).exp()
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    levels._check(x)
    level = ((_double(x) - levels.low) / levels.width).round()
    centre = (levels.low + levels.width * level - _double(mean)) / _double(std)
    half = levels.width / 2 / _double(std)
    first, final = level == 0, level == levels.levels - 1
    # the bin is mirrored to lie mostly below the mean, where Phi is small and its logarithm precise
    mirrored = ~first & (final | (centre > 0))
    centre = torch.where(mirrored, -centre, centre)
    upper = torch.special.log_ndtr(centre + half)
    lower = torch.special.log_ndtr(centre - half)
    return torch.where(first | final, upper, upper + (-torch.expm1(lower - upper)).log())


def curvature(std: Tensor, levels: Levels | None = None) -> Tensor:
    """Return what log_decoder falls by in the square of an error of one coordinate, twice: 1 / std^2 for a density.

    For levels it is -d^2/dmean^2 log Phi at the middle of a bin, which goes to 0 where the Gaussian fits into one.

    Args:
        std: the decoder's standard deviation, 0-d.
        levels: where the data lie, if on levels.
    """
    if levels is None:
        return 1 / std**2
    half = levels.width / 2 / std
    share: Tensor = torch.exp(-(half**2) / 2) * half * (2 / math.pi) ** 0.5 / torch.special.erf(half * 0.5**0.5)
    return share / std**2


def last(model: Model) -> tuple[Tensor, Tensor]:
    """Return t_min and the decoder's standard deviation sigma / alpha there.

    Raises:
        ValueError: sigma(t_min) is 0, so that the last state is the data.
    """
    process = model.process
    t = as_time(process.t_min)
    std = process.sigma(t) / process.alpha(t)
    if not bool(std > 0):
        raise ValueError(f"A decoder needs noise at its end; sigma(t_min) of {process} is 0. Raise t_min, to 1e-3 say.")
    return t, std


def _double(x: Tensor | float) -> Tensor:
    return torch.as_tensor(x).to(torch.float64)
