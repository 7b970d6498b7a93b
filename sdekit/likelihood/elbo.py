r"""The variational bound in continuous time: the squared error of denoising, integrated over the signal-to-noise ratio.

With lam = log(alpha / sigma), half the log signal-to-noise ratio, z = alpha x + sigma eps and x0_hat the model's,

    log p(x) >= E log p(x | z_0) - \int e^{2 lam} E |x - x0_hat(z)|^2 dlam - KL(q(z_T | x) || p(z_T))

where z_0 is the state at t_min and z_T that at t_max. How a process spends its time between drops out: processes with
the same ends in lam have the same bound. For an exact model the integral is known, sample by sample,

    \int e^{2 lam} E |x - x0_hat|^2 dlam = K(t_min) - K(t_max),          K(t) = KL(q(z_t | x) || p_t),

and its mean over the data is the mutual information of data and state gained on the way (I-MMSE). That of a Gaussian
model is a closed form, so only the difference of its error and the model's is left to chance.

Reference: Kingma et al. 2021 (arXiv 2107.00630), eq. 11-17; Guo, Shamai & Verdu 2005 for I-MMSE; Kong et al. 2023
(arXiv 2302.03792), section 2, for its reading at a point and the Gaussian beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.likelihood.decoder import curvature, last, log_decoder
from sdekit.likelihood.denoising import Draws, Errors, ends, prior_kl, standard_error
from sdekit.likelihood.dequantization import Levels, bits_per_dim
from sdekit.oracle import Gaussian
from sdekit.prediction import Model
from sdekit.process import Process


@dataclass(frozen=True)
class LogSNRLaw(Value):
    """A law of lam = log(alpha / sigma) from which noise levels are drawn: its density is linear between even knots.

    It changes the error of a bound, never its expectation. `LogSNRLaw()` is uniform, `around` a bump where models and
    Gaussians usually differ, `adapted` what a model's own errors ask for.

    Args:
        heights: the density at the knots from lam(t_max) to lam(t_min), ends included, up to a factor.

    Raises:
        ValueError: fewer than 2 heights, or one that is not positive.
    """

    heights: tuple[float, ...] = (1.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "heights", tuple(float(height) for height in self.heights))
        if len(self.heights) < 2 or not all(0 < height < math.inf for height in self.heights):
            raise ValueError(f"heights must be at least 2 positive numbers; got {self.heights}.")

    @classmethod
    def around(cls, process: Process, centre: float = 1.5) -> LogSNRLaw:
        """Return the law of density sech(lam - centre) on the range of the process, and a floor of a fifth.

        Centre and width were chosen by measurement, on mixtures in 2 and 64 dimensions of standard deviation near 1.

        Args:
            process: the process.
            centre: where most levels are drawn; for data of another standard deviation subtract its logarithm.
        """
        return cls._floored(1 / (_knots(process, 65) - centre).clamp(-300, 300).cosh())

    @classmethod
    def adapted(
        cls, model: Model, x: Tensor, draws: Draws = Draws(8), knots: int = 25, data: Gaussian | None = None
    ) -> LogSNRLaw:
        """Return the law for data like `x`: heights as the root mean square of what is integrated, and a floor.

        It costs draws.count calls of the network a knot. Where it serves a bound of the same `x`, take another seed.

        Args:
            model: the model.
            x: data, shape (B, ...).
            draws: how many at each knot, in antithetic pairs: an even number.
            knots: how many, at least 2.
            data: the Gaussian model of the data that will be beside the model: see `elbo`.

        Raises:
            ValueError: an odd number of draws, or as for `elbo`.
        """
        if draws.count % 2:
            raise ValueError(f"Draws come in antithetic pairs, so count must be even; got {draws.count}.")
        with torch.no_grad():
            errors, pairs, wanted = Errors(model, x, data), range(draws.count // 2), []
            for i, lam in enumerate(_knots(model.process, knots).to(x.device)):
                noises = [draws.normals(x, 0, i, 1 + k) for k in pairs]
                each = [[errors.rate(lam.expand(len(x)), sign * eps) for sign in (1, -1)] for eps in noises]
                wanted.append(torch.stack([(a + b) / 2 for a, b in each]).square().mean().sqrt().cpu())
        return cls._floored(torch.stack(wanted))

    @classmethod
    def _floored(cls, wanted: Tensor) -> LogSNRLaw:
        """Return the law of which a fifth is uniform: where nothing was seen, something may be."""
        return cls(tuple((0.8 * wanted / wanted.mean().clamp(min=1e-300) + 0.2).tolist()))

    def quantile(self, lo: Tensor, hi: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lam in [lo, hi] below which the share lies, and its rate d lam / d share, one over the density."""
        heights = torch.tensor(self.heights, dtype=torch.float64, device=share.device)
        masses = (heights[1:] + heights[:-1]) / 2
        below, total = torch.cat([masses.new_zeros(1), masses.cumsum(0)]), masses.sum()
        mass = share * total
        k = (torch.searchsorted(below, mass, right=True) - 1).clamp(0, len(masses) - 1)
        first, rise, rest = heights[k], heights[k + 1] - heights[k], mass - below[k]
        # rest = first u + rise u^2 / 2 within the piece, solved without cancellation
        root = (first**2 + 2 * rise * rest).clamp(min=0).sqrt()
        u = 2 * rest / (first + root)
        u = u + (u.clamp(0, 1) - u).detach()  # rounding may leave the piece; it has no part in the slope
        width = (hi - lo) / len(masses)
        return lo + width * (k + u), width * total / (first + rise * u)


def _knots(process: Process, count: int) -> Tensor:
    return torch.lerp(*ends(process), torch.linspace(0, 1, count, dtype=torch.float64))


@dataclass(frozen=True, eq=False)
class Bound:
    """A lower bound of a log-density, or of a log-probability of levels, and its parts: nats, float64, shape (B,).

    Attributes:
        prior: KL(q(z_T | x) || N(0, sigma_T^2 I)), in closed form.
        diffusion: the integral of the squared error of denoising, estimated.
        reconstruction: E log p(x | z_0), estimated.
        stderr: the standard error of log_prob from the draws of noise.
        nfe: calls of the network.
        dims: the number of coordinates of a sample.
    """

    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor
    stderr: Tensor
    nfe: int
    dims: int

    @property
    def log_prob(self) -> Tensor:
        """The bound reconstruction - prior - diffusion: in expectation at most log p(x)."""
        return self.reconstruction - self.prior - self.diffusion

    @property
    def bits_per_dim(self) -> Tensor:
        """-log_prob / (dims log 2): of levels a probability, else a density."""
        return bits_per_dim(self.log_prob, self.dims)


def elbo(
    model: Model,
    x: Tensor,
    draws: Draws = Draws(),
    law: LogSNRLaw | None = None,
    levels: Levels | None = None,
    data: Gaussian | None = None,
) -> Bound:
    """Return the variational bound of log p(x) in continuous time.

    It bounds the law of data made by the reverse equation from N(0, sigma_T^2 I) at t_max, and at t_min the decoder
    N(x0_hat, (sigma / alpha)^2 I). So its mean over data is at most that of their log-density, whatever the model.
    For an exact model it is that log-density up to the decoder, second order in sigma^2, and the prior.

    The draws are antithetic pairs, eps and -eps, at levels that mirror each other within a stratum of the pair's own,
    all of equal share of `law`: what changes slowly with lam adds no error, nor what is odd in the noise. One draw in
    eight more, at least 4, is spent at t_min. The standard error comes from how pairs of neighbouring strata differ; it
    is too large where those are too wide. Gradients flow if grad mode is on and `x` requires grad.

    Args:
        model: the model; a sample's prediction must not depend on the others.
        x: data without noise, shape (B, ...), float32 or float64; on levels, if those are given.
        draws: how many for each sample, an even number of at least 6, and their seed.
        law: where noise levels are drawn, `LogSNRLaw.adapted(model, some_data)` say; by default `LogSNRLaw.around` the
            process, at the scale of `data`.
        levels: where the data lie, if on levels; the bound is then of a probability.
        data: a Gaussian model of the data, on any process, as of `Gaussian.fit`; the nearer to the data, the smaller
            the error. By default N(0, I).

    Raises:
        ValueError: x is no batch of finite floating-point data, or not on the levels; the number of draws is
            odd or below 6; lam is infinite at an end of the process; or `data` is of another shape.
        FloatingPointError: the model's answer is not finite; the message names the noise level and the samples.

    Reference: Kingma et al. 2021 (arXiv 2107.00630), eq. 11-17.

    >>> from sdekit import VP
    >>> model = Gaussian(VP(), torch.zeros(2), 1.0)
    >>> elbo(model, torch.zeros(1, 2)).log_prob  # - log(2 pi)
    tensor([-1.838], dtype=torch.float64)
    """
    if draws.count % 2 or draws.count < 6:
        raise ValueError(f"Draws come in pairs, at least 3 for a standard error: an even count, got {draws.count}.")
    process = model.process
    with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
        errors = Errors(model, x, data)
        law = law or LogSNRLaw.around(process, 1.5 - math.log(errors.scale))
        each = _pairs(errors, draws, law, torch.arange(draws.count // 2, device=x.device))
        decoded = _decoded(errors, Draws(max(4, draws.count // 8), draws.seed, draws.first), levels)
        return Bound(
            prior=prior_kl(process, x, process.t_max),
            diffusion=errors.integral(process.t_min, process.t_max) + each.mean(0),
            reconstruction=decoded.mean(0),
            stderr=torch.hypot(_smooth_error(each.detach()), standard_error(decoded)),
            nfe=errors.nfe,
            dims=x[0].numel(),
        )


def _pairs(errors: Errors, draws: Draws, law: LogSNRLaw, strata: Tensor) -> Tensor:
    """Return the integrand over the density of lam, for a pair of draws in each of the `strata`: shape (pairs, B).

    Strata are numbered from 0, rising, each as often as there are pairs in it.
    """
    x = errors.x
    u = torch.special.ndtr(draws.normals(x.new_empty(len(x), len(strata)).double(), 0))
    each = []
    for sign, place in ((1, strata + u), (-1, strata + 1 - u)):
        lam, rate = law.quantile(*ends(errors.model.process), place / (strata[-1] + 1))
        noises = (sign * draws.normals(x, 1, k) for k in range(len(strata)))
        each.append(torch.stack([rate[:, k] * errors.rate(lam[:, k], eps) for k, eps in enumerate(noises)]))
    return (each[0] + each[1]) / 2


def _smooth_error(each: Tensor) -> Tensor:
    """Return the standard error of the mean of independent values, one a stratum, whose means change smoothly.

    Reference: Gasser, Sroka & Jennen-Steinmetz 1986, "Residual variance and residual pattern in nonlinear regression".
    """
    bends = each[1:-1] - (each[:-2] + each[2:]) / 2
    return (bends.square().mean(0) / 1.5 / len(each)).sqrt()


def _decoded(errors: Errors, draws: Draws, levels: Levels | None) -> Tensor:
    """Return log p(x | z_0) for antithetic pairs of draws of z_0, shape (pairs, B)."""
    x, (t, std) = errors.x, last(errors.model)
    expected, each, bend = errors.expected(t), [], curvature(std, levels)
    for k in range(draws.count // 2):
        eps = draws.normals(x, 2, k)
        for sign in (1, -1):
            _, error, beside = errors(t, sign * eps)
            each.append(log_decoder(x, x + error, std, levels) + bend * (beside - expected) / 2)
    return torch.stack(each).reshape(-1, 2, len(x)).mean(1)
