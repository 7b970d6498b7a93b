"""What the prior N(0, sigma^2) at t_max is worth: the part of a log-likelihood's error that no solver can remove."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.prediction import Model
from sdekit.process.base import Normal, Process


@runtime_checkable
class Marginal(Protocol):
    """A model that knows the density of its states, as an oracle does."""

    def log_prob(self, x: Tensor, t: Time, /) -> Tensor:
        """Return log p_t(x) in nats, shape (B,)."""


def prior_share(model: Model, latent: Tensor, data: Tensor) -> Tensor:
    """Return log p_T(latent) - log N(latent; 0, sigma_T^2) in nats, shape (B,), T = t_max.

    Exact for a model that knows its marginal; otherwise an estimate, with the Gaussian of the moments of `data` for
    p_T: N(alpha m, alpha^2 C + sigma^2 I), with the full covariance C if there are more points than dimensions, its
    diagonal if not. NaN for fewer than 2 points.

    Args:
        model: the model.
        latent: states at t_max, shape (B, ...).
        data: draws of the data, shape (n, ...).

    Raises:
        ValueError: the data have not the shape of the states.
    """
    if data.shape[1:] != latent.shape[1:]:
        raise ValueError(
            f"Data must have the shape of the states, (n, {', '.join(map(str, latent.shape[1:]))}); got "
            f"{tuple(data.shape)}."
        )
    process = model.process
    prior = process.prior().log_prob(_rows(latent))
    if isinstance(model, Marginal):
        return model.log_prob(latent, process.t_max).to(torch.float64) - prior
    return _gaussian(process, _rows(latent), _rows(data.detach().to(latent.device))) - prior


def _gaussian(process: Process, z: Tensor, points: Tensor) -> Tensor:
    """Return the log-density at `z` of the Gaussian with the moments of `points`, carried to t_max."""
    if len(points) < 2:
        return torch.full_like(z[:, 0], torch.nan)
    alpha, sigma = (f(process.t_max).to(z.device) for f in (process.alpha, process.sigma))
    mean = alpha * points.mean(0)
    if len(points) <= points.shape[1]:
        return Normal(mean, (alpha**2 * points.var(0) + sigma**2).sqrt()).log_prob(z)
    noise = sigma**2 * torch.eye(len(mean), dtype=z.dtype, device=z.device)
    covariance = alpha**2 * points.T.cov().reshape(noise.shape) + noise
    log_prob: Tensor = torch.distributions.MultivariateNormal(mean, covariance).log_prob(z)
    return log_prob


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).to(torch.float64)
