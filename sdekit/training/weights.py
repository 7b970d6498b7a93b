r"""How much an error counts: the squared error of the network's output, times a weight.

An error of the network is an error of every target at once, F' - F'* = (dF'/dF) (F - F*) at the same state x, so a
mean square on one target is a weighted mean square on any other. A loss is chosen apart from what the network predicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from sdekit._value import Value
from sdekit.prediction import X0, Eps, Target
from sdekit.process import Process


class Weight(Value, ABC):
    """The weight factor(t) |F' - F'*|^2 of an error. A subclass gives the target F' and, if it is not 1, the factor."""

    @abstractmethod
    def target(self, predicts: Target) -> Target:
        """Return the target on which the error is measured, for a network that predicts `predicts`."""

    def factor(self, process: Process, t: Tensor) -> Tensor | float:
        """Return what the squared error on that target counts at the times `t`."""
        return 1.0

    def __call__(self, process: Process, predicts: Target, t: Tensor) -> Tensor | float:
        """Return the weight of |F - F*|^2, the squared error of a network that predicts F: factor(t) (dF'/dF)^2."""
        return self.factor(process, t) * slope(process, predicts, self.target(predicts), t) ** 2


@dataclass(frozen=True)
class OnOutput(Weight):
    """The mean square error on whatever the network outputs; in x0 this is the weight 1 / c_out^2.

    It is DDPM's loss for `Eps`, the flow-matching loss for `Velocity` and EDM's loss for `Preconditioned`.
    """

    def target(self, predicts: Target) -> Target:
        return predicts


@dataclass(frozen=True)
class On(Weight):
    """The mean square error on `measured`, whatever the network outputs.

    `On(Eps())`, the default, is DDPM's simple loss, the weight alpha^2 / sigma^2 on x0; `On(Velocity())` is the
    flow-matching loss, with which a network may well predict `X0()`.

    Reference: Ho et al. 2020 (arXiv 2006.11239), eq. 14; Li & He 2025 (arXiv 2511.13720) for X0 with `On(Velocity())`.
    """

    measured: Target = Eps()

    def target(self, predicts: Target) -> Target:
        return self.measured


@dataclass(frozen=True)
class Likelihood(Weight):
    r"""The weight g^2 / 2 on the score, which makes the loss a bound on the negative log-likelihood:

        g^2/2 |score - score*|^2 = w |x0_hat - x0|^2,       w = g^2 alpha^2 / (2 sigma^4) = alpha^2 / sigma^2 (-lam')

    It grows without bound as sigma vanishes, so over uniform times its variance is large; see `UniformLogSNR`.
    Losses are means over coordinates. For nats per sample multiply by the number of coordinates and, over uniform
    times, by t_max - t_min; the bound also has terms that no network changes.

    Reference: Song et al. 2021 (arXiv 2101.09258), eq. 7 and theorem 1.
    """

    def target(self, predicts: Target) -> Target:
        return X0()

    def factor(self, process: Process, t: Tensor) -> Tensor:
        alpha, sigma = process.alpha(t), process.sigma(t)
        alpha_rate, sigma_rate = process.rates(t)
        return alpha * (alpha * sigma_rate - sigma * alpha_rate) / sigma**3  # finite where alpha = 0, unlike g^2


@dataclass(frozen=True)
class MinSNR(Weight):
    """The weight min(alpha^2 / sigma^2, gamma) on x0: `On(Eps())` without its emphasis on nearly clean states.

    Raises:
        ValueError: gamma is not positive.

    Reference: Hang et al. 2023 (arXiv 2303.09556), section 3.4.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise ValueError(f"gamma must be positive, the largest weight of an error of x0; got {self.gamma}.")

    def target(self, predicts: Target) -> Target:
        return X0()

    def factor(self, process: Process, t: Tensor) -> Tensor:
        return (process.alpha(t) / process.sigma(t)).square().clamp(max=self.gamma)


@dataclass(frozen=True)
class TruncatedSNR(Weight):
    """The weight max(alpha^2 / sigma^2, least) on x0: `On(Eps())`, but for noise, where that would see no error of x0.

    (SNR + 1, from the same paper, is `On(V())` on a process that preserves variance.)

    Raises:
        ValueError: least is not positive.

    Reference: Salimans & Ho 2022 (arXiv 2202.00512), section 4.
    """

    least: float = 1.0

    def __post_init__(self) -> None:
        if not self.least > 0:
            raise ValueError(f"least must be positive, the smallest weight of an error of x0; got {self.least}.")

    def target(self, predicts: Target) -> Target:
        return X0()

    def factor(self, process: Process, t: Tensor) -> Tensor:
        return (process.alpha(t) / process.sigma(t)).square().clamp(min=self.least)


def slope(process: Process, answer: Target, target: Target, t: Tensor) -> Tensor | float:
    """Return d target / d answer at fixed x, c (alpha b' - sigma a') / (c' (alpha b - sigma a)): 1 for the same target.

    (Equal to answer.gain / target.gain, but finite where sigma = 0 and both of them vanish.)
    """
    if answer == target:
        return 1.0
    a, b, c = answer.mixture(process, t)
    a_, b_, c_ = target.mixture(process, t)
    alpha, sigma = process.alpha(t), process.sigma(t)
    return c * (alpha * b_ - sigma * a_) / (c_ * (alpha * b - sigma * a))
