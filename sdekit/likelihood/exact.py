"""The log-likelihood of a model, by the change of variables along its probability flow."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.likelihood.angle import Turned
from sdekit.likelihood.integrate import FixedGrid, Flow, Integrator, Pair
from sdekit.likelihood.prior import prior_share
from sdekit.likelihood.trace import Exact, Trace
from sdekit.prediction import Model

# Chosen by measurement. With an exact trace its 128 network calls err on trained networks by 1e-3 nats (d = 2) to 1e-2
# (d = 64), as those of adaptive methods do; on mixtures of width 0.3 by 1e-6. With random probes, new ones at every
# evaluation err 9 times less than probes held fixed. And no sample depends on its batch.
DEFAULT_INTEGRATOR = FixedGrid()


@dataclass(frozen=True, eq=False)
class Likelihood:
    """A log-likelihood and where its error is. All in nats, float64, shape (B,), but for `latent` and `nfe`.

    Attributes:
        log_prob: log p(x) = log_prior + log_det.
        log_prior: log N(latent; 0, sigma_T^2 I), with T = t_max.
        log_det: the divergence of the velocity, integrated from t_min to t_max.
        latent: the state at t_max, of the shape and dtype of x.
        nfe: calls of the network, forward. The divergence makes none of its own: it goes backward through the same
            calls, once per dimension (`Exact`) or once per probe (`Hutchinson`).
        stderr: the standard error of log_prob from random probes: zero for an exact trace, NaN for one probe, which
            says nothing of its error. The error of integration is not in it; see that one with twice the steps.
        prior_share: log p_T(latent) - log_prior, what log_prob lacks because the marginal at t_max is not the prior.
            Exact if the model knows its marginal (an oracle); else an estimate that takes the marginal for a Gaussian
            with the moments of the data, NaN for fewer than 2 of them.
    """

    log_prob: Tensor
    log_prior: Tensor
    log_det: Tensor
    latent: Tensor
    nfe: int
    stderr: Tensor
    prior_share: Tensor


def log_likelihood(
    model: Model,
    x: Tensor,
    integrator: Integrator = DEFAULT_INTEGRATOR,
    trace: Trace = Exact(),
    data: Tensor | None = None,
) -> Likelihood:
    r"""Return the log-likelihood of `x` under the law that the probability flow of a model has at t_min:

        log p_{t_min}(x) = log p_T(x_T) + \int_{t_min}^T div v(x_t, t) dt,     dx_t/dt = v(x_t, t),  x_{t_min} = x

    "Exact" means up to the prior N(0, sigma_T^2 I), taken for p_T (`prior_share` says how much that is), and to the
    time cut: it is the density of data with the noise of t_min on it. The integral is made in the angle
    atan2(sigma, alpha), where every process is the same flow and takes about the same number of network calls.

    Gradients flow, to `x` and to the model's parameters, if grad mode is on and `x` requires grad. Otherwise nothing is
    recorded, so that a model's likelihood is evaluated without keeping the graph of all its calls.

    Args:
        model: the model; a sample's prediction must not depend on the others (put batch norm in eval mode).
        x: data with the noise of t_min, or without it where that is small: shape (B, ...), float32 or float64.
        integrator: `FixedGrid()`, or `Dopri5(rtol, atol)` and its like where a tolerance must be met.
        trace: `Exact()`, or `Hutchinson(probes)` where the dimension is large.
        data: draws of the data for the estimate of `prior_share`, shape (n, ...); by default `x` itself.

    Raises:
        ValueError: `x` is not a batch of finite floating-point states, or the model's answer has no graph.
        FloatingPointError: a state, a velocity or a divergence on the way is not finite.
        RuntimeError: an adaptive integrator did not reach t_max.

    Reference: Chen et al. 2018 (arXiv 1806.07366), theorem 1; Song et al. 2021 (arXiv 2011.13456), eq. 39.

    >>> from sdekit import VP
    >>> from sdekit.oracle import Gaussian
    >>> result = log_likelihood(Gaussian(VP(), torch.zeros(2), 1.0), torch.zeros(1, 2))
    >>> result.log_prob  # - log(2 pi)
    tensor([-1.838], dtype=torch.float64)
    """
    _check(x)
    keep = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.set_grad_enabled(keep):
        x = x.clone() if x.is_inference() else x
        process, turned = model.process, Turned(model)
        first, last = turned.scale(process.t_min), turned.scale(process.t_max)
        flow = Flow(turned, trace, integrator.draws())
        nothing = torch.zeros(trace.count(x), len(x), dtype=torch.float64, device=x.device)
        end = integrator(flow, Pair(x / first, trace.estimates(nothing)))
        latent = last * end.x
        estimates = end.log_det + x[0].numel() * float((last / first).log())
        log_prior = process.prior().log_prob(latent.reshape(len(x), -1).to(torch.float64))
        log_det = estimates.mean(1)
        return Likelihood(
            log_prob=log_prior + log_det,
            log_prior=log_prior,
            log_det=log_det,
            latent=latent,
            nfe=flow.nfe,
            stderr=trace.stderr(estimates.detach()),
            prior_share=prior_share(model, latent, x if data is None else data),
        )


def _check(x: Tensor) -> None:
    if x.ndim < 1 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(
            f"x must be a batch (B, ...) of floating-point states, not empty; got {x.dtype}, shape {tuple(x.shape)}."
        )
    bad = (~x.detach().isfinite().reshape(len(x), -1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"x must be finite; samples {bad[:8]} ({len(bad)} in all) are not. Take them out.")
