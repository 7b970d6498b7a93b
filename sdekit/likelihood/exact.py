"""The log-likelihood of a model, by the change of variables along its probability flow."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from sdekit.likelihood.control import of_data, of_model
from sdekit.likelihood.integrate import FixedGrid, Flow, Integrator
from sdekit.likelihood.prior import Marginal, prior_share
from sdekit.likelihood.straight import Straight
from sdekit.likelihood.trace import Exact, Trace
from sdekit.oracle import Empirical, Gaussian
from sdekit.prediction import Model


@dataclass(frozen=True, eq=False)
class Likelihood:
    """A log-likelihood and where its error is. All in nats, float64, shape (B,), but for `latent` and `nfe`.

    Attributes:
        log_prior: log N(latent; 0, sigma_T^2 I), with T = t_max.
        log_det: the divergence of the velocity, integrated from t_min to t_max, and d log alpha(t_min), since the flow
            starts from alpha x.
        latent: the state at t_max, of the shape and dtype of x; of an oracle the noise that x becomes, times sigma_T.
        nfe: calls of the network, forward. The divergence makes none of its own: it goes backward through the same
            calls, once per dimension (`Exact`) or once per probe.
        stderr: the standard error of log_prob from random probes, zero for an exact trace.
        integration_error: an estimate of the error of integration, at least zero; with random probes and no `data`, of
            the states alone. NaN from an adaptive integrator, which makes none.
        prior_share: log p_T(latent) - log_prior, what log_prob lacks because the marginal at t_max is not the prior.
            Exact if the model knows its marginal (an oracle); else an estimate that takes the marginal for a Gaussian
            with the moments of the data, NaN for fewer than 2 of them.
        cut_share: log p_0(x) - log p_r(x), what log_prob lacks because the path stops at t_min, to first order in r^2:
            -r^2/2 (div s + |s|^2), by the heat equation.
    """

    log_prior: Tensor
    log_det: Tensor
    latent: Tensor
    nfe: int
    stderr: Tensor
    integration_error: Tensor
    prior_share: Tensor
    cut_share: Tensor

    @property
    def log_prob(self) -> Tensor:
        """log p_r(x) = log_prior + log_det, the density at x of data with the noise r = sigma/alpha of t_min on it,
        under a flow that starts from the prior.
        """
        return self.log_prior + self.log_det

    @property
    def corrected(self) -> Tensor:
        """log_prob + prior_share + cut_share: the log-density of the data themselves, as far as it is known."""
        return self.log_prob + self.prior_share + self.cut_share

    @property
    def error(self) -> Tensor:
        """The standard error of log_prob with the error of integration, as the root of the sum of squares."""
        return torch.hypot(self.stderr, self.integration_error)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the ends of the interval that covers log p_r(x) with this probability, the errors taken for normal."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1; got {level!r}.")
        reach = torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)).item() * self.error
        return self.log_prob - reach, self.log_prob + reach

    def part(self, k: int) -> Likelihood:
        """Return the result of sample `k` alone."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        one: dict[str, Any] = {name: v[k : k + 1] if isinstance(v, Tensor) else v for name, v in values.items()}
        return Likelihood(**one)

    @staticmethod
    def joined(parts: list[Likelihood]) -> Likelihood:
        """Return one result for the parts of a batch, in order."""
        if len(parts) == 1:
            return parts[0]
        values = {f.name: [getattr(part, f.name) for part in parts] for f in fields(Likelihood)}
        joined: dict[str, Any] = {name: max(v) if name == "nfe" else torch.cat(v) for name, v in values.items()}
        return Likelihood(**joined)


def log_likelihood(
    model: Model,
    x: Tensor,
    integrator: Integrator = FixedGrid(),
    trace: Trace = Exact(),
    data: Tensor | Gaussian | None = None,
    batch: int = 2**30,
) -> Likelihood:
    r"""Return the log-likelihood of `x` under the law that the probability flow of a model makes of its prior:

        log p_r(x) = log p_T(x_T) + \int_{t_min}^T div v(x_t, t) dt,     dx_t/dt = v(x_t, t),  x_{t_min} = alpha x

    "Exact" means up to the prior N(0, sigma_T^2 I), taken for p_T (`prior_share` says how much that is), and to the
    time cut: it is the density of data with the noise r = sigma/alpha of t_min on it (`cut_share`). A model that knows
    all noise levels, an oracle, is asked from 1e-6 to 1e6 whatever its process, and neither is left.

    The integral is made on the straight path, where every process is the same, in float64; the default takes 65 calls.

    Gradients flow, to `x` and to the model's parameters, if grad mode is on and `x` requires grad. Otherwise nothing is
    recorded, so that a model's likelihood is evaluated without keeping the graph of all its calls.

    Args:
        model: the model; a sample's prediction must not depend on the others (put batch norm in eval mode).
        x: data, shape (B, ...), float32 or float64. A sample's value is the same in any batch.
        integrator: `FixedGrid(grid=Quadratic(n))`, which makes n + 1 calls, or `Dopri5(rtol, atol)` and its like.
        trace: `Exact()`, or `Hadamard(probes)` where the dimension is large.
        data: draws of the data, shape (n, ...), or a `Gaussian` of their moments: a control variate for random traces
            (with more than two draws for each dimension) and the estimate of `prior_share`. By default draws of an
            exact model; otherwise there is no control variate, and the moments for `prior_share` are those of `x`.
        batch: how many samples go through the network at once.

    Raises:
        ValueError: `x` is not a batch of finite floating-point states, or the model's answer has no graph.
        FloatingPointError: a state, a velocity or a divergence on the way is not finite.
        RuntimeError: an adaptive integrator did not reach t_max.

    Reference: Chen et al. 2018 (arXiv 1806.07366), theorem 1; Song et al. 2021 (arXiv 2011.13456), eq. 39.

    >>> from sdekit import VP
    >>> from sdekit.oracle import Empirical, Gaussian
    >>> result = log_likelihood(Gaussian(VP(), torch.zeros(2), 1.0), torch.zeros(1, 2))
    >>> result.log_prob  # - log(2 pi)
    tensor([-1.8379], dtype=torch.float64)
    """
    check_data(model, x, batch)
    keep = torch.is_grad_enabled() and x.requires_grad
    with torch.inference_mode(False), torch.set_grad_enabled(keep):
        x = x.clone() if x.is_inference() else x
        given = of_data(data, x.shape[1:])
        control = (given if data is not None else of_model(model)) if trace.random(x[0].numel()) else None
        of_prior = None if isinstance(model, Marginal) else given if data is not None else of_data(x, x.shape[1:])
        parts = [_one_batch(model, part, integrator, trace, (control, of_prior)) for part in x.split(batch)]
        return Likelihood.joined(parts)


def _one_batch(
    model: Model, x: Tensor, integrator: Integrator, trace: Trace, moments: tuple[Gaussian | None, Gaussian | None]
) -> Likelihood:
    straight = Straight(model)
    first, last = straight.process.t_min, straight.process.t_max
    wide = x.to(torch.float64)
    flow = Flow(straight, trace, x, moments[0])
    found = integrator(flow, (1 - first) * wide)
    process, dims = model.process, x[0].numel()
    scale = float(process.sigma(process.t_max)) / last  # from the straight path's state to the model's own
    latent = scale * found.end
    return Likelihood(
        log_prior=process.prior().log_prob(latent.reshape(len(x), -1)),
        log_det=found.value + dims * (math.log1p(-first) + math.log(scale)),
        latent=latent.to(x.dtype),
        nfe=flow.nfe,
        stderr=found.stderr,
        integration_error=found.error,
        prior_share=prior_share(straight.model, latent if straight.own else found.end, moments[1]),
        cut_share=_cut(found.first, found.score, first),
    )


def _cut(divergence: Tensor, score: Tensor, tau: float) -> Tensor:
    """Return -r^2/2 (div s + |s|^2), of the score in units of the data, from div u = -(tau div s + d) / (1 - tau)."""
    if tau == 0:
        return torch.zeros_like(divergence)
    flat = score.reshape(len(score), -1)
    curvature = -((1 - tau) * divergence + flat.shape[1]) / tau
    return -(tau**2) / 2 * (curvature + flat.square().sum(1)).detach()


def check_data(model: Model, x: Tensor, batch: int) -> None:
    """Raise an error if `x` is no batch of finite states, or the model has no density."""
    if isinstance(model, Empirical):
        raise TypeError("A set of points has no density, so Empirical has no likelihood; give its points a width.")
    if x.ndim < 1 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(
            f"x must be a batch (B, ...) of floating-point states, not empty; got {x.dtype}, shape {tuple(x.shape)}."
        )
    if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
        raise ValueError(f"batch must be a whole number of at least 1; got {batch!r}.")
    bad = (~x.detach().isfinite().reshape(len(x), -1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"x must be finite; samples {bad[:8]} ({len(bad)} in all) are not. Take them out.")
