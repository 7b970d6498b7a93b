r"""The variational bound of a chain of steps, term by term, as DDPM is trained and judged by it.

A chain t_N > ... > t_0 makes data from noise by p(x_s | x_t) = N(mu(x_t), e^g beta~ I), s the time next to t, with the
mean of the posterior q(x_s | x_t, x) in which the model's x0_hat stands for x, and g how much the logarithm of the
variance exceeds the posterior's, beta~ = sigma_s^2 (1 - r^2), r = decay(t, s). The two are Gaussian, so that

    KL(q(x_s | x_t, x) || p(x_s | x_t)) = 1/2 sum [g + e^{-g} - 1 + e^{-g} (SNR(s) - SNR(t)) (x - x0_hat)^2]

over the coordinates, with SNR = alpha^2 / sigma^2; only x_t is left to chance.

Reference: Ho et al. 2020 (arXiv 2006.11239), eq. 5 and 8; Kingma et al. 2021 (arXiv 2107.00630), eq. 25-33.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.grid import Grid
from sdekit.likelihood.chain import decoder_std, step_kl
from sdekit.likelihood.decoder import curvature, log_decoder
from sdekit.likelihood.denoising import Draws, Errors, prior_kl, standard_error
from sdekit.likelihood.dequantization import Levels, bits_per_dim
from sdekit.oracle import Gaussian
from sdekit.prediction import Model, Prediction, calls
from sdekit.process import Process
from sdekit.solvers.learned import WithVariance


@dataclass(frozen=True, eq=False)
class FixedVariance:
    """A model whose reverse steps all have the variance of one place between DDPM's two: beta~ at -1, beta at 1.

    Args:
        model: the model.
        place: where the logarithm of the variance lies between those of beta~ (-1) and beta (1).
    """

    model: Model
    place: float = 1.0

    @property
    def process(self) -> Process:
        """The process of the model."""
        return self.model.process

    @property
    def calls(self) -> int:
        """How often the model asks its network."""
        return calls(self.model)

    def __call__(self, x: Tensor, t: Time, /) -> WithVariance:
        """Predict at the states `x`, shape (B, ...), and the time `t`."""
        now = self.model(x, t)
        place = torch.full_like(x, self.place)
        return WithVariance(**{f.name: getattr(now, f.name) for f in fields(Prediction)}, place=place)


@dataclass(frozen=True, eq=False)
class DiscreteBound:
    """The negative of a lower bound, term by term.

    Attributes:
        times: t_N > ... > t_0, shape (N + 1,).
        terms: L_T = KL(q(x_{t_N} | x) || N(0, sigma^2 I)), then the KL of each step from t_N on, and at last L_0 =
            -E log p(x | x_{t_0}): nats, float64, shape (N + 2, B).
        stderr: the standard error of log_prob from the draws of noise, NaN for one: shape (B,).
        nfe: calls of the network.
        dims: the number of coordinates of a sample.
    """

    times: Tensor
    terms: Tensor
    stderr: Tensor
    nfe: int
    dims: int

    @property
    def log_prob(self) -> Tensor:
        """The bound, minus the sum of the terms: in expectation at most log p(x), shape (B,)."""
        return -self.terms.sum(0)

    @property
    def bits_per_dim(self) -> Tensor:
        """-log_prob / (dims log 2): of levels a probability, else a density, shape (B,)."""
        return bits_per_dim(self.log_prob, self.dims)


def discrete_bound(
    model: Model,
    x: Tensor,
    grid: Grid,
    draws: Draws = Draws(2),
    levels: Levels | None = None,
    data: Gaussian | None = None,
) -> DiscreteBound:
    """Return the variational bound of a chain of steps, the sum of L_T, the KL of every step, and L_0.

    The variance of a step is the posterior's, beta~, or what a model says that predicts `WithVariance`: learned, or as
    given by `FixedVariance(model, place)`. The decoder is N(x0_hat, (sigma / alpha)^2 I) at t_0; a variance that the
    model says lies between that of the step before (-1), as in DDPM, and sigma^2 / alpha^2 (1).

    Args:
        model: the model; a sample's prediction must not depend on the others.
        x: data without noise, shape (B, ...), float32 or float64; on levels, if those are given.
        grid: the times; a clean end is left out. `Leading(T)` takes every step of a table of T.
        draws: how many states x_t for each time and sample, and their seed.
        levels: where the data lie, if on levels; L_0 is then that of the discretised decoder.
        data: a Gaussian model of the data: see `elbo`.

    Raises:
        ValueError: x is no batch of finite floating-point data, or not on the levels; or the grid has fewer than two
            times with noise.
        FloatingPointError: the model's answer is not finite; the message names the time and the samples.

    Reference: Ho et al. 2020 (arXiv 2006.11239), eq. 5; Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 4-7 and 15.

    >>> from sdekit import Discrete, Leading
    >>> model = Gaussian(Discrete.linear(100, 1e-3, 0.2), torch.zeros(2), 1.0)
    >>> white = FixedVariance(model)  # of white data beta is the exact variance
    >>> bound = discrete_bound(white, torch.zeros(1, 2), Leading(100), data=model)
    >>> bound.terms.shape, bound.log_prob  # - log(2 pi)
    (torch.Size([101, 1]), tensor([-1.838], dtype=torch.float64))
    """
    process = model.process
    times = _times(grid, process)
    with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
        errors = Errors(model, x, data)

        def noises(i: int) -> Iterable[Tensor]:
            return (draws.normals(x, 3, i, k) for k in range(draws.count))

        steps = [_step(errors, t, s, noises(i)) for i, (t, s) in enumerate(itertools.pairwise(times))]
        chance = torch.stack([*steps, _decode(errors, times, noises(len(steps)), levels)])
        return DiscreteBound(
            times=times,
            terms=torch.cat([prior_kl(process, x, times[0])[None], chance.mean(1)]),
            stderr=torch.stack([standard_error(each) for each in chance]).square().sum(0).sqrt(),
            nfe=errors.nfe,
            dims=x[0].numel(),
        )


def _times(grid: Grid, process: Process) -> Tensor:
    times = grid(process)
    times = times[(times >= process.t_min) & (process.sigma(times.clamp(min=process.t_min)) > 0)]
    if len(times) < 2:
        raise ValueError(f"A chain needs two times or more with noise at them; {grid} on {process} has {len(times)}.")
    return times


def _step(errors: Errors, t: Tensor, s: Tensor, noises: Iterable[Tensor]) -> Tensor:
    """Return the KL of the step from t to s at every draw of x_t, shape (draws, B)."""
    process, expected = errors.model.process, errors.expected(t)
    each = []
    for eps in noises:
        prediction, error, beside = errors(t, eps)
        place, usual = _places(errors.model, prediction)
        terms = step_kl(process, t, s, error, place)
        # the same of the Gaussian beside: how the square of its error differs from what is expected of it
        known = step_kl(process, t, s, beside.sqrt(), usual) - step_kl(process, t, s, expected.sqrt(), usual)
        each.append(terms.reshape(len(error), -1).sum(1) - known)
    return torch.stack(each)


def _decode(errors: Errors, times: Tensor, noises: Iterable[Tensor], levels: Levels | None) -> Tensor:
    """Return -log p(x | x_{t_0}) at every draw of x_{t_0}, shape (draws, B)."""
    before, t = times[-2:]
    process, x, expected = errors.model.process, errors.x.double(), errors.expected(t)
    each = []
    for eps in noises:
        prediction, error, beside = errors(t, eps)
        learned = isinstance(prediction, WithVariance)
        places = _places(errors.model, prediction) if learned else (1.0, 1.0)
        std, known = (decoder_std(process, t, before, place) for place in places)
        each.append(-log_decoder(x, x + error, std, levels) - curvature(known, levels) * (beside - expected) / 2)
    return torch.stack(each)


def _places(model: Model, prediction: Prediction) -> tuple[Tensor | float, float]:
    """Return the place of the variance, and what is known of it before noise is drawn, for the Gaussian beside."""
    if isinstance(prediction, WithVariance):
        return prediction.place.double(), model.place if isinstance(model, FixedVariance) else 0.0
    return -1.0, -1.0
