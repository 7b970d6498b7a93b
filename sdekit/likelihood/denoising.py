"""The squared error of denoising, of which every variational bound is made, and how it is estimated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import as_time, like
from sdekit._value import Value
from sdekit.noise import standard_normal
from sdekit.oracle import Gaussian
from sdekit.prediction import Model, Prediction, calls
from sdekit.process import Process


@dataclass(frozen=True)
class Draws(Value):
    """The draws of noise over which an expectation is estimated: sample i's are a function of (seed, first + i).

    Args:
        count: how many for each sample; from 2 on, their spread gives the standard error.
        seed: any whole number.
        first: the number of the batch's first sample.

    Raises:
        ValueError: count is below 1.
    """

    count: int = 64
    seed: int = 0
    first: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 1:
            raise ValueError(f"count must be a whole number of draws, at least 1; got {self.count!r}.")

    def normals(self, like: Tensor, use: int, number: int = 0, part: int = 0) -> Tensor:
        """Return standard normal numbers shaped like the batch `like`; other numbers for another use, number or part.

        `use` is 0 for noise levels, 1 for the noise there, 2 for that of a last state, 3 for that of a chain.
        """
        # five parts to the key where probes have four and the noise of a run three: they never meet under one seed
        return standard_normal(like.detach(), self.first, (self.seed, use, number, part, 0))


class Errors:
    """The errors x0_hat - x of a model about data with noise, and those of a Gaussian model beside it.

    Args:
        model: the model.
        x: the data, shape (B, ...).
        data: the Gaussian model, N(0, I) if none is given.
    """

    def __init__(self, model: Model, x: Tensor, data: Gaussian | None = None) -> None:
        check_data(x)
        self.model = model
        self.x = x
        self.nfe = 0
        mean = torch.zeros(x.shape[1:], dtype=torch.float64, device=x.device) if data is None else data.mean.double()
        self.gaussian = Gaussian(model.process, mean, 1.0 if data is None else data.components.spectrum)

    @property
    def scale(self) -> float:
        """The standard deviation of the Gaussian's data, over all coordinates."""
        spectrum = self.gaussian.components.spectrum
        return math.sqrt(float((spectrum.counts * spectrum.values).sum()) / spectrum.dim)

    def __call__(self, t: Tensor, eps: Tensor) -> tuple[Prediction, Tensor, Tensor]:
        """Return the model's prediction, its error and the square of the Gaussian's, at alpha x + sigma eps.

        The error is of the shape of `x`, in float64, the square of shape (B,); `t` is 0-d or of shape (B,).
        """
        prediction = self.model(self.model.process.perturb(self.x, t, eps), t)
        self.nfe += calls(self.model, t)
        check_finite(
            prediction.answer.detach(),
            f"The model's answer must be finite; at t={float(t.min()):.6g} to {float(t.max()):.6g}",
            "Move t_min or t_max inwards.",
        )
        x, eps = self.x.double(), eps.double()
        beside = self.gaussian(self.model.process.perturb(x, t, eps), t)
        return prediction, _error(prediction, t, x, eps), _squares(_error(beside, t, x, eps))

    def rate(self, lam: Tensor, eps: Tensor) -> Tensor:
        """Return e^{2 lam} (|x0_hat - x|^2 - the Gaussian's) at the levels `lam`, shape (B,)."""
        process = self.model.process
        lo, hi = ends(process)
        t = process.time(lam.clamp(lo, hi)).clamp(process.t_min, process.t_max)
        _, error, beside = self(t, eps)
        return torch.exp(2 * lam) * (_squares(error) - beside)

    def expected(self, t: Tensor) -> Tensor:
        """Return the expectation over the noise of the square of the Gaussian's error, shape (B,)."""
        alpha, sigma, variance = self._scales(t)
        spectrum = self.gaussian.components.spectrum
        noise = spectrum.counts * (alpha * sigma * spectrum.values / variance) ** 2
        x = self.x.double()
        return _squares(self.gaussian(alpha * x, t).x0 - x) + noise.sum()

    def integral(self, t: float, s: float) -> Tensor:
        """Return the integral over lam of e^{2 lam} `expected`, from lam(s) to lam(t), shape (B,)."""
        return self._divergence(as_time(t)) - self._divergence(as_time(s))

    def _divergence(self, t: Tensor) -> Tensor:
        """Return KL(q(z_t | x) || p_t) for the Gaussian's p_t."""
        alpha, sigma, variance = self._scales(t)
        spectrum = self.gaussian.components.spectrum
        terms = spectrum.counts * (sigma**2 / variance - 1 - math.log(2 * math.pi) - 2 * sigma.log())
        return 0.5 * terms.sum() - self.gaussian.log_prob(alpha * self.x.double(), t)

    def _scales(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        alpha, sigma = self.model.process.alpha(t), self.model.process.sigma(t)
        return alpha, sigma, alpha**2 * self.gaussian.components.spectrum.values + sigma**2


def prior_kl(process: Process, x: Tensor, t: float | Tensor) -> Tensor:
    """Return KL(N(alpha x, sigma^2 I) || N(0, sigma^2 I)) at the time `t`, shape (B,), in float64."""
    return _squares(x.double()) * (process.alpha(t) / process.sigma(t)) ** 2 / 2


def ends(process: Process) -> tuple[Tensor, Tensor]:
    """Return lam at t_max and at t_min.

    Raises:
        ValueError: one is infinite.
    """
    lo, hi = process.lam(process.t_max), process.lam(process.t_min)
    if not math.isfinite(float(hi - lo)):
        raise ValueError(
            f"The bound is an integral over lam, which must be finite at both ends; on {process} it runs from "
            f"{float(lo):g} to {float(hi):g}. Move the ends inwards, to t_min=1e-3, say."
        )
    return lo, hi


def _error(prediction: Prediction, t: Tensor, x: Tensor, eps: Tensor) -> Tensor:
    """Return x0_hat - x, in float64, from the error of the network's own answer: no digits are lost where it is small.

    (x0_hat itself, a difference of large numbers where there is much or little noise, is never formed.)
    """
    process, target = prediction.process, prediction.target
    return like(target.gain(process, t), x) * (prediction.answer.double() - target.of(process, t, x, eps))


def _squares(x: Tensor) -> Tensor:
    squares: Tensor = x.square().reshape(len(x), -1).sum(1)
    return squares


def check_data(x: Tensor) -> None:
    """Raise ValueError unless `x` is a batch of finite floating-point data."""
    if x.ndim < 1 or x.numel() == 0 or not x.is_floating_point():
        raise ValueError(
            f"x must be a batch (B, ...) of floating-point data, not empty; got {x.dtype}, shape {tuple(x.shape)}."
        )
    check_finite(x.detach(), "x must be finite", "Take them out.", ValueError)


def check_finite(values: Tensor, what: str, advice: str, error: type[Exception] = FloatingPointError) -> None:
    """Raise an error that names the samples of which a value is not finite."""
    bad = (~values.isfinite().reshape(len(values), -1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise error(f"{what}; samples {bad[:8]} ({len(bad)} in all) are not. {advice}")


def standard_error(values: Tensor) -> Tensor:
    """Return the standard error of the mean over the first dimension, NaN for one value."""
    if len(values) == 1:
        return torch.full_like(values[0], torch.nan)
    spread: Tensor = values.detach().std(0) / len(values) ** 0.5
    return spread
