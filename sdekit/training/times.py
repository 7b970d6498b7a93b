"""Which noise levels a network is trained on: laws of the time t."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from sdekit._broadcast import Time, as_time
from sdekit._value import Value
from sdekit.process import EDM, Discrete, Process


class Learner(nn.Module, ABC):
    """A law that has learned from the losses of a training. All it remembers is in its buffers."""

    @abstractmethod
    def draw(self, process: Process, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw the times of a batch of `n` and their importance weights: see `TimeLaw.draw`."""

    @abstractmethod
    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        """Learn from the losses of a batch, without importance weights, at the times `t`: both of shape (B,)."""


class TimeLaw(Value, ABC):
    """A law of t on [t_min, t_max]. A subclass gives its distribution function and the inverse of that, no more."""

    @abstractmethod
    def quantile(self, process: Process, u: Tensor) -> Tensor:
        """Return the time below which the share `u` of the law lies, for `u` in [0, 1]."""

    @abstractmethod
    def cdf(self, process: Process, t: Tensor) -> Tensor:
        """Return the share of the law below the time `t`: the inverse of `quantile`."""

    def density(self, process: Process, t: Time) -> Tensor:
        """Return the law's density at `t`, per unit of time: the derivative of `cdf`."""
        t = as_time(t)

        def cdf(t: Tensor) -> Tensor:
            return self.cdf(process, t)

        density: Tensor = torch.func.jvp(cdf, (t,), (torch.ones_like(t),))[1]
        return density

    def sample(self, process: Process, n: int, generator: torch.Generator) -> Tensor:
        """Draw the times of a batch of `n`: one from each of n equal slices of the law, in random order.

        Each time alone follows the law; together they cover it evenly, so that the loss of a batch says more about the
        network and less about the times (its standard deviation falls by 0 to 40 percent). The result is in float64,
        on the generator's device, of shape (n,).

        Reference: Kingma et al. 2021 (arXiv 2107.00630), appendix I.1, where the n times share one random number.
        """
        return self.quantile(process, places(n, generator))

    def draw(self, process: Process, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Draw the times of a batch of `n` and their importance weights, both of shape (n,); None for weights of 1."""
        return self.sample(process, n, generator), None

    def learner(self, process: Process) -> Learner | None:
        """Return what draws in place of the law where the law learns from the losses, else None."""
        return None


def places(n: int, generator: torch.Generator) -> Tensor:
    """Return one random number in each of n equal slices of [0, 1), in random order: float64, shape (n,)."""
    slices = torch.randperm(n, generator=generator, device=generator.device)
    within = torch.rand(n, generator=generator, dtype=torch.float64, device=generator.device)
    return within.add_(slices).div_(n)


@dataclass(frozen=True)
class UniformTimes(TimeLaw):
    """The uniform law of t.

    >>> float(UniformTimes().density(EDM(t_min=0.0, t_max=4.0), 1.0))
    0.25
    """

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return process.t_min + (process.t_max - process.t_min) * u

    def cdf(self, process: Process, t: Tensor) -> Tensor:
        return (t - process.t_min) / (process.t_max - process.t_min)

    def density(self, process: Process, t: Time) -> Tensor:
        return torch.full_like(as_time(t), 1 / (process.t_max - process.t_min))


@dataclass(frozen=True)
class UniformSteps(TimeLaw):
    """The uniform law on the steps of a table: the nodes of a `Discrete` process, as DDPM is trained.

    Raises:
        ValueError: when used on a process without a table.

    Reference: Ho et al. 2020 (arXiv 2006.11239), algorithm 1.
    """

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        table, (first, count) = steps(process)
        return table.node(first + (u * count).floor().clamp(max=count - 1))

    def cdf(self, process: Process, t: Tensor) -> Tensor:
        table, (first, count) = steps(process)
        return ((table.steps * t + 1e-6).floor() - first).clamp(0, count) / count

    def density(self, process: Process, t: Time) -> Tensor:
        """Return the share of every step: the law has no density per unit of time."""
        return torch.full_like(as_time(t), 1 / steps(process)[1][1])


class LevelLaw(TimeLaw):
    """A law of the noise level z = log(sigma / alpha), restricted to those the process has.

    A subclass gives the unrestricted law: its distribution function, the inverse of that and its density.
    """

    @abstractmethod
    def below(self, z: Tensor) -> Tensor:
        """Return the share of the unrestricted law below the level `z`."""

    @abstractmethod
    def level(self, share: Tensor) -> Tensor:
        """Return the level below which a share of the unrestricted law lies."""

    @abstractmethod
    def height(self, z: Tensor) -> Tensor:
        """Return the density of the unrestricted law at the level `z`."""

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        below, within = _mass(self, process)
        return _time(process, -self.level(below + within * u))

    def cdf(self, process: Process, t: Tensor) -> Tensor:
        below, within = _mass(self, process)
        return (self.below(-process.lam(t)) - below) / within

    def density(self, process: Process, t: Time) -> Tensor:
        t = as_time(t)
        return self.height(-process.lam(t)) * _fall(process, t) / _mass(self, process)[1]


@dataclass(frozen=True)
class LogNormal(LevelLaw):
    """The normal law of log(sigma / alpha), restricted to the noise levels the process has.

    On `EDM` it is Karras' law of sigma. On `RectifiedFlow`, where log(sigma / alpha) = log(t / (1 - t)), it is the
    logit-normal law of t: with `LogNormal(0.0, 1.0)` and velocity prediction the objective of Stable Diffusion 3.

    Args:
        mean: mean of log(sigma / alpha) before the restriction.
        std: its standard deviation.

    Raises:
        ValueError: std is not positive; or, when used, the process has none of the noise levels the law is made of.

    Reference: Karras et al. 2022 (arXiv 2206.00364), table 1; Esser et al. 2024 (arXiv 2403.03206), eq. 19.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if not 0 < self.std < math.inf:
            raise ValueError(f"std must be positive, the standard deviation of log(sigma/alpha); got {self.std}.")

    def below(self, z: Tensor) -> Tensor:
        share: Tensor = torch.special.erfc((self.mean - z) * (math.sqrt(0.5) / self.std)) / 2  # exact in the lower tail
        return share

    def level(self, share: Tensor) -> Tensor:
        level: Tensor = self.mean + self.std * torch.special.ndtri(share)
        return level

    def height(self, z: Tensor) -> Tensor:
        return torch.exp(-(((z - self.mean) / self.std) ** 2) / 2) / (self.std * math.sqrt(2 * math.pi))


@dataclass(frozen=True)
class UniformLogSNR(TimeLaw):
    """The uniform law of lam = log(alpha / sigma), the clock in which likelihood weights every noise prediction alike.

    Its density per unit of time is proportional to g^2 / sigma^2, the law with which likelihood weighting has the least
    variance where all errors of the noise are of one size. Training on it with the weight `On(Eps())` has the same
    expected loss, up to a constant factor, as training on uniform times with `Likelihood()`; see also `Importance`.

    Raises:
        ValueError: when used on a process whose lam is infinite at an end.

    Reference: Kingma et al. 2021 (arXiv 2107.00630), section 5.1; Song et al. 2021 (arXiv 2101.09258), section 5.1.
    """

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        lo, hi = self._finite(process)
        return _time(process, hi - (hi - lo) * u)

    def cdf(self, process: Process, t: Tensor) -> Tensor:
        lo, hi = self._finite(process)
        return (hi - process.lam(t)) / (hi - lo)

    def density(self, process: Process, t: Time) -> Tensor:
        lo, hi = self._finite(process)
        return _fall(process, as_time(t)) / (hi - lo)

    def _finite(self, process: Process) -> tuple[float, float]:
        lo, hi = _lam_range(process)
        if math.isinf(hi - lo):
            raise ValueError(
                f"lam must be finite on [t_min, t_max]; on {process} it runs from {lo:.3g} to {hi:.3g}. "
                "Raise t_min or lower t_max."
            )
        return lo, hi


def usual_times(process: Process) -> TimeLaw:
    """Return the law a process is usually trained with: `LogNormal()` on `EDM`, whose time is sigma, else uniform."""
    return LogNormal() if isinstance(process, EDM) else UniformTimes()


def steps(process: Process) -> tuple[Discrete, tuple[int, int]]:
    """Return a process with a table, the first of its steps within [t_min, t_max] and how many there are.

    Raises:
        ValueError: the process has no table.
    """
    if not isinstance(process, Discrete):
        raise ValueError(
            f"Steps are those of a table, and need a Discrete process; got {process}. Take Discrete.cosine(), say, or "
            "an objective in continuous time: Objective(Likelihood(), Importance()) for likelihoods."
        )
    first = math.ceil(process.t_min * process.steps - 1 - 1e-6)
    last = math.floor(process.t_max * process.steps - 1 + 1e-6)
    return process, (max(first, 0), last - max(first, 0) + 1)


@lru_cache(maxsize=32)
def _lam_range(process: Process) -> tuple[float, float]:
    return float(process.lam(process.t_max)), float(process.lam(process.t_min))


@lru_cache(maxsize=32)
def _mass(law: LevelLaw, process: Process) -> tuple[float, float]:
    """Return the shares of the unrestricted law below the noise levels of the process and within them."""
    lo, hi = _lam_range(process)
    ends = torch.tensor([-hi, -lo], dtype=torch.float64)
    below, above = law.below(ends).tolist()
    if not above - below > 1e-6:
        raise ValueError(
            f"The process must have noise levels that {law} is made of; log(sigma/alpha) of {process} ranges "
            f"from {-hi:.3g} to {-lo:.3g} only. Set mean within, or widen [t_min, t_max]."
        )
    return below, above - below


def _time(process: Process, lam: Tensor) -> Tensor:
    """Return the time of `lam`; both are kept from leaving their ranges by a rounding."""
    return process.time(lam.clamp(*_lam_range(process))).clamp(process.t_min, process.t_max)


def _fall(process: Process, t: Tensor) -> Tensor:
    """Return -lam'(t), the rate at which the noise level rises."""
    (alpha_rate, sigma_rate), alpha, sigma = process.rates(t), process.alpha(t), process.sigma(t)
    return sigma_rate / sigma - alpha_rate / alpha
