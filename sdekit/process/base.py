r"""The Gaussian forward process: alpha(t) and sigma(t) are given, all else is derived.

x_t = alpha(t) x0 + sigma(t) eps,          eps ~ N(0, I),        t_min (data) <= t <= t_max (noise)
dx  = f(t) x dt + g(t) dw,                 f = alpha'/alpha,     g^2 = -2 sigma^2 lam'
lam = log(alpha / sigma)                   half the log signal-to-noise ratio, strictly decreasing in t
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time, like
from sdekit._value import Value


class Normal(NamedTuple):
    """The normal law N(mean, std^2 I) of one sample or of each sample of a batch."""

    mean: Tensor | float
    std: Tensor | float

    def at(self, z: Tensor) -> Tensor:
        """Return mean + std z: a draw, when z is standard normal of the sample's shape."""
        return self.mean + self.std * z

    def log_prob(self, x: Tensor) -> Tensor:
        """Return log N(x; mean, std^2 I) in nats, summed over all but the batch dimension: shape (B,)."""
        std = torch.as_tensor(self.std, dtype=x.dtype, device=x.device)
        terms = ((x - self.mean) / std) ** 2 + math.log(2 * math.pi) + 2 * std.log()
        return -0.5 * terms.reshape(len(x), -1).sum(1)


@dataclass(frozen=True, kw_only=True)
class Process(Value, ABC):
    """A forward process from data at `t_min` to noise at `t_max`. A subclass gives `alpha` and `sigma`, no more.

    Both are written for tensors of times (float64) and may be called with plain numbers. The rest is derived by
    automatic differentiation and bisection; a subclass may override any of it with a closed form.

    Attributes:
        t_min: the smallest time at which a model is asked; sigma may vanish there.
        t_max: the time at which sampling starts; alpha may vanish there.
        clean: the time at which alpha = 1 and sigma = 0 exactly, where a run may end by denoising.

    Raises:
        ValueError: t_min < t_max does not hold, or the signal-to-noise ratio does not fall strictly in t.

    Reference: Song et al. 2021 (arXiv 2011.13456), section 3; Kingma et al. 2021 (arXiv 2107.00630) for lam.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    clean: ClassVar[float] = 0.0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("alpha", "sigma", "rates", "lam", "time", "f", "g2"):
            if name in cls.__dict__:  # so that formulas are written for tensors and called with numbers too
                setattr(cls, name, _takes_numbers(cls.__dict__[name]))

    def __post_init__(self) -> None:
        if not (math.isfinite(self.t_min) and math.isfinite(self.t_max) and self.t_min < self.t_max):
            raise ValueError(f"t_min < t_max must hold and be finite; got t_min={self.t_min}, t_max={self.t_max}.")
        t = torch.linspace(self.t_min, self.t_max, 257, dtype=torch.float64)
        alpha, sigma = self.alpha(t), self.sigma(t)
        if not bool((torch.isfinite(alpha) & torch.isfinite(sigma) & (alpha >= 0) & (sigma >= 0)).all()):
            raise ValueError(f"alpha and sigma must be finite and at least 0 on [t_min, t_max]; {self} is not.")
        rises = ~(torch.diff(alpha.log() - sigma.log()) < 0)
        if bool(rises.any()):
            at = float(t[int(rises.nonzero()[0])])
            raise ValueError(
                "The signal-to-noise ratio alpha/sigma must fall strictly as t grows from data to noise; "
                f"in {self} it does not at t={at:.4g}. Check the formulas, or narrow [t_min, t_max]."
            )

    @abstractmethod
    def alpha(self, t: Time) -> Tensor:
        """Return the signal's scale alpha(t), of the shape of `t`."""

    @abstractmethod
    def sigma(self, t: Time) -> Tensor:
        """Return the noise's standard deviation sigma(t), of the shape of `t`."""

    def rates(self, t: Time) -> tuple[Tensor, Tensor]:
        """Return the time derivatives (alpha'(t), sigma'(t))."""
        t = as_time(t)

        def both(u: Tensor) -> tuple[Tensor, Tensor]:
            return self.alpha(u), self.sigma(u)

        rates: tuple[Tensor, Tensor] = torch.func.jvp(both, (t,), (torch.ones_like(t),))[1]
        return rates

    def f(self, t: Time) -> Tensor:
        """Return the drift's rate f(t) = alpha'/alpha."""
        rate, alpha = self.rates(t)[0], self.alpha(t)
        return rate / alpha

    def g2(self, t: Time) -> Tensor:
        """Return the squared diffusion g(t)^2 = 2 sigma sigma' - 2 sigma^2 alpha'/alpha."""
        t = as_time(t)
        (da, ds), sigma = self.rates(t), self.sigma(t)
        return 2 * sigma * (ds - sigma * da / self.alpha(t))

    def lam(self, t: Time) -> Tensor:
        """Return lam(t) = log(alpha/sigma), half the log signal-to-noise ratio."""
        t = as_time(t)
        return self.alpha(t).log() - self.sigma(t).log()

    def time(self, lam: Time) -> Tensor:
        """Return the time at which `lam` is reached: the inverse of `lam`, to the last bits.

        Raises:
            ValueError: the value is not reached within [t_min, t_max].
        """
        wanted = as_time(lam)
        lo, hi = torch.full_like(wanted, self.t_min), torch.full_like(wanted, self.t_max)
        slack = 1e-9 * (1 + wanted.abs())
        if not bool(((wanted <= self.lam(lo) + slack) & (wanted >= self.lam(hi) - slack)).all()):
            raise ValueError(
                f"lam must lie in [{float(self.lam(self.t_max)):.6g}, {float(self.lam(self.t_min)):.6g}], reached by "
                f"{self}; got values from {float(wanted.min()):.6g} to {float(wanted.max()):.6g}."
            )
        with torch.no_grad():
            # as an angle, which is finite at every end and as precise as lam near the data
            angle = torch.atan(torch.exp(-wanted))
            table = torch.linspace(self.t_min, self.t_max, 257, dtype=wanted.dtype, device=wanted.device)
            k = torch.searchsorted(self.angle(table), angle).clamp(1, len(table) - 1)
            t = _falling_root(lambda u: angle - self.angle(u), table[k - 1], table[k], 1e-14 * angle)
        slope = self.f(t) - self.rates(t)[1] / self.sigma(t)
        newton = (self.lam(t) - wanted) / slope  # the last bits, and the derivative of the inverse
        return torch.where(newton.isfinite(), t - newton, t)

    def angle(self, t: Time) -> Tensor:
        """Return atan2(sigma, alpha), the angle from data (0) to noise (pi/2)."""
        times = as_time(t)
        return torch.atan2(self.sigma(times), self.alpha(times))

    def decay(self, t: Time, s: Time) -> Tensor:
        """Return e^{lam(t) - lam(s)} = alpha_t sigma_s / (alpha_s sigma_t), finite where one of the four is 0."""
        t, s = as_time(t), as_time(s)
        return self.alpha(t) * self.sigma(s) / (self.alpha(s) * self.sigma(t))

    def drift(self, x: Tensor, t: Time) -> Tensor:
        """Return the forward drift f(t) x, of the shape of `x`."""
        return like(self.f(t), x) * x

    def diffusion(self, t: Time) -> Tensor:
        """Return the forward diffusion g(t)."""
        return self.g2(t).clamp(min=0).sqrt()

    def marginal(self, x0: Tensor, t: Time) -> Normal:
        """Return the law of x_t given x0: N(alpha(t) x0, sigma(t)^2 I)."""
        t = self.check(t)
        return Normal(like(self.alpha(t), x0) * x0, like(self.sigma(t), x0))

    def perturb(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """Return x_t = alpha(t) x0 + sigma(t) eps for data `x0` and standard normal `eps` of one shape."""
        if eps.shape != x0.shape:
            raise ValueError(f"eps must have the shape of x0, {tuple(x0.shape)}; got {tuple(eps.shape)}.")
        return self.marginal(x0, t).at(eps)

    def transition(self, x: Tensor, t: Time, s: Time) -> Normal:
        """Return the law of x_s given x_t = x, s >= t: N(a x, (sigma_s^2 - a^2 sigma_t^2) I), a = alpha_s/alpha_t."""
        t, s = self.check(t), self.check(s)
        if bool((s < t).any()):
            raise ValueError("transition goes from data to noise, t <= s; to go back, condition on x0 with posterior.")
        scale = self.alpha(s) / self.alpha(t)
        r = self.decay(s, t)  # e^{lam(s) - lam(t)} <= 1; sigma_s^2 (1 - r^2) does not cancel
        return Normal(like(scale, x) * x, like(self.sigma(s) * (1 - r**2).clamp(min=0).sqrt(), x))

    def posterior(self, x0: Tensor, x: Tensor, t: Time, s: Time) -> Normal:
        """Return the law of x_s given x0 and x_t = x, s <= t, with r = decay(t, s):

            N(sigma_s/sigma_t r x + alpha_s (1 - r^2) x0, sigma_s^2 (1 - r^2) I)

        Reference: Ho et al. 2020 (arXiv 2006.11239), eq. 6-7, where the variance is called beta-tilde.
        """
        t, s = self.check(t), self.check(s)
        if bool((s > t).any()):
            raise ValueError("posterior goes from noise to data, s <= t; to go forward use transition.")
        r = self.decay(t, s)
        keep = (1 - r**2).clamp(min=0)
        mean = like(self.sigma(s) / self.sigma(t) * r, x) * x + like(self.alpha(s) * keep, x) * x0
        return Normal(mean, like(self.sigma(s) * keep.sqrt(), x))

    def prior(self) -> Normal:
        """Return the law from which sampling starts: N(0, sigma(t_max)^2 I)."""
        return Normal(0.0, self.sigma(as_time(self.t_max)))

    def check(self, t: Time) -> Tensor:
        """Return `t` as a tensor, if it lies in [t_min, t_max] up to rounding in float32, or is the clean end.

        Times on an accelerator are not read, since that would make it wait.

        Raises:
            ValueError: a time lies outside.
        """
        times = as_time(t)
        if times.device.type != "cpu" or times.numel() == 0 or torch.compiler.is_compiling():
            return times
        slack = 2.0**-23 * max(abs(self.t_min), abs(self.t_max))
        least, most = (float(end) for end in torch.aminmax(times.detach()))  # cheaper than six comparisons
        inside = self.t_min - slack <= least and most <= self.t_max + slack
        if not (inside or self._inside_or_clean(times, slack)):
            raise ValueError(
                f"A time must lie in [t_min, t_max] = [{self.t_min:g}, {self.t_max:g}] of {type(self).__name__}; "
                f"got {least:g} to {most:g}. Set t_min or t_max if the model allows it."
            )
        return times

    def _inside_or_clean(self, times: Tensor, slack: float) -> bool:
        inside = (times >= self.t_min - slack) & (times <= self.t_max + slack)
        return bool((inside | (times == self.clean)).all())


def _falling_root(f: Callable[[Tensor], Tensor], lo: Tensor, hi: Tensor, tolerance: Tensor) -> Tensor:
    """Return where the falling function f crosses zero in [lo, hi], entry by entry: where |f| <= tolerance.

    False position, in which the value at an end that stays for a second time is halved; every sixth step bisects.

    Reference: Dowell & Jarratt 1971, "A modified regula falsi method for computing the root of an equation".
    """
    at_lo, at_hi = f(lo).clamp(min=0), f(hi).clamp(max=0)
    was_before = torch.full_like(lo, torch.nan)  # equal to neither side
    for k in range(300):
        share = torch.where(at_lo > at_hi, at_lo / (at_lo - at_hi), 1.0) if k % 6 < 5 else torch.full_like(lo, 0.5)
        mid = torch.lerp(lo, hi, share)
        value = f(mid)
        if bool((value.abs() <= tolerance).all()):
            break
        before = value > 0
        again = before == was_before
        at_lo, at_hi = (
            torch.where(before, value, torch.where(again, at_lo / 2, at_lo)),
            torch.where(before, torch.where(again, at_hi / 2, at_hi), value),
        )
        lo, hi, was_before = torch.where(before, mid, lo), torch.where(before, hi, mid), before
    return mid


def _takes_numbers(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def wrapped(self: Process, t: Time) -> Any:
        return method(self, as_time(t))

    return wrapped
