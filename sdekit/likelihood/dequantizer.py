"""From densities to probabilities: what several draws say of data, and bits per dimension of continuous data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._value import Value


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """Return -log_prob / (dims log 2): a *density* of continuous data in bits per dimension, shaped like `log_prob`.

    It depends on the unit of the data and may be negative; it is not comparable to a probability of images with
    discrete pixels, for which use `Dequantization.bits_per_dim`.

    Args:
        log_prob: log-density in nats.
        dims: the number of coordinates of a sample.

    Raises:
        ValueError: dims is below 1.

    >>> bits_per_dim(torch.tensor([-2.0]) * math.log(2), dims=2)
    tensor([1.])
    """
    if not isinstance(dims, int) or dims < 1:
        raise ValueError(f"dims must be the number of coordinates of a sample, at least 1; got {dims!r}.")
    return -log_prob / (dims * math.log(2))


@dataclass(frozen=True, eq=False)
class Dequantized:
    """Numbers in the place of data, a draw of what a model has a density of.

    Attributes:
        x: the numbers, of the shape and dtype of the data.
        log_noise: log q(u | k) of the noise in them, u in units of a bin: nats, float64, shape (B,).
    """

    x: Tensor
    log_noise: Tensor


@dataclass(frozen=True, eq=False)
class Mass:
    """What the densities of several draws say of data. In nats, shape (B,).

    Attributes:
        log_mass: the log of the mean weight, in expectation at most log P, and nearer to it the more draws there are.
        average: the mean of the log weights, the bound of a single draw; its gap to `log_mass` is what draws are worth.
        stderr: the standard error of log_mass from the spread of the draws, NaN for one. To first order log_mass lies
            stderr^2 / 2 below log P in expectation. The error of the densities is not in it.
        dims: the number of coordinates of a sample.
    """

    log_mass: Tensor
    average: Tensor
    stderr: Tensor
    dims: int

    @property
    def bits_per_dim(self) -> Tensor:
        """-log_mass / (dims log 2), shape (B,)."""
        return bits_per_dim(self.log_mass, self.dims)


class Dequantizer(Value, ABC):
    """Which data the numbers of a model stand for, and so what its densities say of them:

        log P(k) = log E_q[p(x_k + width u) / q(u | k)] + dims log width  >=  E_q log [p / q] + dims log width

    A subclass gives `draw`, and `width`: how far apart two numbers are whose data differ by one unit.

    Reference: Hoogeboom et al. 2020 (arXiv 2001.11235), section 3; several draws: Burda et al. 2016 (arXiv 1509.00519).
    """

    @property
    @abstractmethod
    def width(self) -> float:
        """How far apart two numbers are whose data differ by one unit: for levels, the width of a bin."""

    @abstractmethod
    def draw(self, x: Tensor, seed: int = 0, first: int = 0, number: int = 0) -> Dequantized:
        """Return a draw of the numbers that a model is asked for, in place of the data `x`.

        Args:
            x: data, shape (B, ...), float32 or float64.
            seed: any whole number.
            first: the number of the batch's first sample; sample i's noise is a function of (seed, number, first + i).
            number: the number of the draw.

        Raises:
            TypeError: the data are not floating-point numbers.
            ValueError: a value is none that the data can have, as when they were scaled otherwise.
        """

    def apply(self, x: Tensor, seed: int = 0, first: int = 0) -> Tensor:
        """Return the numbers of `draw(x, seed, first)`, of the shape and dtype of `x`."""
        return self.draw(x, seed, first).x

    def log_mass(self, log_prob: Tensor, dims: int, log_noise: Tensor | None = None) -> Tensor:
        """Return log (mean over draws of p / q) + dims log width: in expectation a lower bound of log P, nats, (B,).

        With one draw it is the variational bound; with more it is tighter, but then the densities must come from an
        exact trace: the error of random probes, exponentiated, would raise the mean above the bound.

        Args:
            log_prob: log-densities of the numbers drawn, in nats: shape (B,), or (draws, B) for several draws.
            dims: the number of coordinates of a sample.
            log_noise: those of the draws, of the same shape; uniform noise, and none, need not give it.

        Raises:
            ValueError: log_noise is missing, or not of the shape of log_prob.
        """
        weights = self._log_weights(log_prob, log_noise)
        return weights.logsumexp(0) - math.log(len(weights)) + dims * math.log(self.width)

    def bits_per_dim(self, log_prob: Tensor, dims: int, log_noise: Tensor | None = None) -> Tensor:
        """Return -log_mass / (dims log 2): of levels a *probability*, in expectation at least -log2 P / dims, (B,).

        Its arguments are those of `log_mass`.

        Raises:
            ValueError: dims is below 1, or log_noise is missing or not of the shape of log_prob.
        """
        return bits_per_dim(self.log_mass(log_prob, dims, log_noise), dims)

    def stderr(self, log_prob: Tensor, log_noise: Tensor | None = None) -> Tensor:
        """Return the standard error of `log_mass` over draws, sd(w) / (mean(w) sqrt(draws)) with w = p / q: (B,).

        To first order in 1 / draws; NaN for one draw. It says too little where few draws carry the weight, as with
        noise much narrower than p in the bin. Its arguments are those of `log_mass`.

        Raises:
            ValueError: log_noise is missing, or not of the shape of log_prob.
        """
        weights = self._log_weights(log_prob, log_noise)
        draws = len(weights)
        if draws == 1:
            return torch.full_like(weights[0], torch.nan)
        error: Tensor = draws**0.5 * weights.softmax(0).std(0)
        return error

    def mass(
        self, log_prob: Callable[[Tensor], Tensor], x: Tensor, draws: int = 1, seed: int = 0, first: int = 0
    ) -> Mass:
        """Draw, ask for the densities, and return what they say of the data: all of the above in one call.

        Args:
            log_prob: the log-density in nats of numbers, (B, ...) -> (B,).
            x: data, shape (B, ...).
            draws: how many; from 2 on there is a standard error.
            seed: any whole number.
            first: the number of the batch's first sample.

        Raises:
            ValueError: draws is below 1, log_prob's answer is not of shape (B,), or as for `draw`.

        >>> from sdekit.likelihood import Dequantization
        >>> wide = torch.distributions.Uniform(-1.0625, 1.0625)  # over all 17 bins
        >>> mass = Dequantization(17).mass(lambda y: wide.log_prob(y).sum(1), torch.zeros(1, 5), draws=8)
        >>> bool((mass.bits_per_dim - math.log2(17)).abs() < 1e-5)
        True
        """
        if not isinstance(draws, int) or draws < 1:
            raise ValueError(f"draws must be a whole number of at least 1; got {draws!r}.")
        drawn = [self.draw(x, seed, first, k) for k in range(draws)]
        logs = torch.stack([check_answer("log_prob", log_prob(one.x), x) for one in drawn])
        noise, dims = torch.stack([one.log_noise for one in drawn]), x[0].numel()
        average = (logs - noise).mean(0) + dims * math.log(self.width)
        return Mass(self.log_mass(logs, dims, noise), average, self.stderr(logs, noise), dims)

    def _log_weights(self, log_prob: Tensor, log_noise: Tensor | None) -> Tensor:
        """Return log p - log q, shape (draws, B)."""
        if log_noise is not None and log_noise.shape != log_prob.shape:
            raise ValueError(
                f"log_noise must have the shape of log_prob, {tuple(log_prob.shape)}; got {tuple(log_noise.shape)}."
            )
        weights = log_prob - (self._flat() if log_noise is None else log_noise)
        return weights if weights.ndim > 1 else weights[None]

    def _flat(self) -> float:
        """Return log q where it is the same for all noise."""
        raise ValueError(
            f"The noise of {type(self).__name__} is not uniform, so its density belongs to the bound; got no "
            "log_noise. Pass that of draw(x), or use mass(log_prob, x)."
        )


@dataclass(frozen=True)
class Continuous(Dequantizer):
    """Data that are numbers already, given to the model at another scale: no noise, and bits of a *density*.

    Args:
        unit: how far apart two of the model's numbers are whose data differ by one: 2 / 255 for images of 0 ... 255
            that the model sees from -1 to 1, and 1 where it sees the data as they are.
        low: where the model's numbers begin, if they do; data beyond it are refused.
        high: where they end.

    Raises:
        ValueError: the unit is not positive, or low < high does not hold.

    >>> Continuous(unit=0.5).bits_per_dim(torch.zeros(1), dims=3)
    tensor([1.])
    """

    unit: float = 1.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.unit < math.inf:
            raise ValueError(f"unit must be positive and finite; got {self.unit}.")
        check_order(*self._range())

    @property
    def width(self) -> float:
        """The unit."""
        return self.unit

    def draw(self, x: Tensor, seed: int = 0, first: int = 0, number: int = 0) -> Dequantized:
        low, high = self._range()
        check_floating(x)
        check_values(x, ~(x.isfinite() & (x >= low) & (x <= high)), f"be finite and lie within [{low:g}, {high:g}]")
        return Dequantized(x, torch.zeros(len(x), dtype=torch.float64, device=x.device))

    def _range(self) -> tuple[float, float]:
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    def _flat(self) -> float:
        return 0.0


def check_order(low: float, high: float) -> None:
    """Raise ValueError unless low < high."""
    if not low < high:
        raise ValueError(f"low < high must hold; got low={low}, high={high}.")


def check_floating(x: Tensor) -> None:
    """Raise TypeError unless the data are floating-point numbers, to which noise can be added."""
    if not x.is_floating_point():
        raise TypeError(
            f"Data must be float32 or float64 for a density; got {x.dtype}. Convert them, x.float(), and set low and "
            "high to where they are stored: 0 and 255 for bytes."
        )


def check_values(x: Tensor, bad: Tensor, what: str) -> None:
    """Raise ValueError, which says what the data must do, if some do not."""
    if bool(bad.any()):
        raise ValueError(
            f"Data must {what}; {int(bad.sum())} of {x.numel()} values do not, {float(x[bad][0]):g} for one (data run "
            f"from {float(x.min()):g} to {float(x.max()):g}). Set low and high to where the data are stored, and add "
            "no noise before."
        )


def check_answer(what: str, answer: Tensor, x: Tensor) -> Tensor:
    """Return the answer, one number a sample of `x`, or raise ValueError if it is of another shape."""
    if answer.shape != x.shape[:1]:
        raise ValueError(
            f"{what} must have one number a sample, shape ({len(x)},); got {tuple(answer.shape)}. Sum over coordinates."
        )
    return answer
