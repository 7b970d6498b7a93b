"""What the prior N(0, sigma^2) at t_max is worth: the part of a log-likelihood's error that no solver can remove."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.oracle import Gaussian
from sdekit.prediction import Model


@runtime_checkable
class Marginal(Protocol):
    """A model that knows the density of its states, as an oracle does."""

    def log_prob(self, x: Tensor, t: Time, /) -> Tensor:
        """Return log p_t(x) in nats, shape (B,)."""


def prior_share(model: Model, latent: Tensor, moments: Gaussian | None) -> Tensor:
    """Return log p_T(latent) - log N(latent; 0, sigma_T^2) in nats, shape (B,), T = t_max.

    Exact for a model that knows its marginal; otherwise an estimate, with N(alpha m, alpha^2 C + sigma^2 I) for p_T, m
    and C being the data's moments. NaN without them.

    Args:
        model: the model.
        latent: states at t_max, shape (B, ...).
        moments: the Gaussian with the moments of the data.

    Raises:
        ValueError: the moments are not of the shape of the states.
    """
    process = model.process
    prior = process.prior().log_prob(latent.reshape(len(latent), -1).to(torch.float64))
    marginal = model if isinstance(model, Marginal) else None if moments is None else moments.on(process)
    if marginal is None:
        return torch.full_like(prior, torch.nan)
    return marginal.log_prob(latent, process.t_max).to(torch.float64) - prior
