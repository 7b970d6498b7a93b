r"""The steps of a chain from noise to data and the last one, coordinate by coordinate: what variational bounds sum.

A step from t to s has the mean of the posterior q(x_s | x_t, x) in which the model's x0_hat stands for x, and a
variance of which `place` says where its logarithm lies between the posterior's, beta~ (-1), and beta (1).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit._broadcast import like
from sdekit.process import Process


def step_kl(process: Process, t: Tensor, s: Tensor, error: Tensor, place: Tensor | float) -> Tensor:
    """Return KL(q(x_s | x_t, x) || p(x_s | x_t)) of every coordinate, in nats, of the shape of `error`:

        1/2 [g + e^{-g} - 1 + e^{-g} (SNR(s) - SNR(t)) (x0_hat - x)^2],          g = (1 + place) log(sigma_t / sigma_s)

    Args:
        process: the process.
        t: the time of the state, 0-d or of shape (B,).
        s: the time after the step, s < t, of the shape of `t`.
        error: x0_hat - x, shape (B, ...).
        place: where the variance lies, a number or of the shape of `error`.

    Reference: Kingma et al. 2021 (arXiv 2107.00630), eq. 25-33; Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 15.
    """
    whole = like((process.sigma(t) / process.sigma(s)).log(), error)  # log(beta / beta~) / 2
    gain = like((process.alpha(s) / process.sigma(s)) ** 2 * (1 - process.decay(t, s) ** 2), error)
    excess = torch.as_tensor(whole * (1 + place))
    return (excess + (-excess).expm1() + (-excess).exp() * gain * error**2) / 2


def decoder_std(process: Process, t: Tensor, before: Tensor, place: Tensor | float) -> Tensor:
    """Return the standard deviation of the data after the last step, from the time `t`, of the shape of `place`:

        sigma / alpha (1 - r^2)^{(1 - place) / 4},          r = decay(before, t)

    A step to data has no posterior variance; as in DDPM, that of the step before stands for it.

    Args:
        process: the process.
        t: the last time, 0-d.
        before: the time before it, 0-d.
        place: where the variance lies.
    """
    widest, shrinkage = process.sigma(t) / process.alpha(t), (1 - process.decay(before, t) ** 2).sqrt()
    std: Tensor = widest * shrinkage ** ((1 - place) / 2)
    return std
