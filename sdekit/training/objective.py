"""The one loss: denoising score matching, for every target, process, weight and law of the times."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sdekit._value import Value
from sdekit.prediction import Prediction, combined
from sdekit.process import Process
from sdekit.training.dropout import Dropout
from sdekit.training.times import Learner, TimeLaw, usual_times
from sdekit.training.weights import OnOutput, Weight


class Noising(NamedTuple):
    """What is drawn for the loss of a batch: all of its randomness but that of the network.

    Attributes:
        t: the times, float64, shape (B,).
        eps: the noise, like the data.
        weight: the importance weights of the samples, shape (B,); None for 1.
        dropped: which samples lose their condition, bool, shape (B,); None for none.
    """

    t: Tensor
    eps: Tensor
    weight: Tensor | None = None
    dropped: Tensor | None = None

    def rows(self, rows: slice) -> Noising:
        """Return what is drawn for some rows of the batch."""
        return self._each(lambda part: part[rows])

    def to(self, device: torch.device) -> Noising:
        """Return the same on another device."""
        return self._each(lambda part: part.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Noising:
        weight, dropped = (None if part is None else change(part) for part in self[2:])
        return Noising(change(self.t), change(self.eps), weight, dropped)


class Criterion(Value, ABC):
    """A loss of predictions of noised data. A subclass has the fields `times` and `dropout`, and gives `at`."""

    times: TimeLaw | None
    dropout: Dropout | None

    @abstractmethod
    def at(self, model: Callable[..., Prediction], x0: Tensor, noising: Noising, /, **condition: Any) -> Tensor:
        """Return the loss of every sample at the times and the noise given, times its importance weight: shape (B,).

        Args:
            model: a `Denoiser`, bare or wrapped for distributed training, or any other model.
            x0: clean data, shape (B, ...), floating.
            noising: times and noise, of `draw` or one's own.
            condition: what the network takes by name besides x and t, such as label.

        Raises:
            ValueError: x0 is no batch of floating-point samples.
        """

    def draw(
        self, process: Process, x0: Tensor, generator: torch.Generator, law: TimeLaw | Learner | None = None
    ) -> Noising:
        """Draw times, noise and which conditions to leave out for a batch.

        Args:
            process: the model's process.
            x0: clean data, shape (B, ...), floating.
            generator: the source, on any device; the global one is not touched.
            law: the law of the times, if not the objective's.

        Raises:
            ValueError: x0 is no batch of floating-point samples.
        """
        check_batch(x0)
        law = self.law(process) if law is None else law
        t, weight = law.draw(process, len(x0), generator)
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=generator.device)
        dropped = None if self.dropout is None else self.dropout.draw(len(x0), generator)
        drawn = Noising(t, eps, weight, dropped)
        return drawn if x0.device == generator.device else drawn.to(x0.device)

    def law(self, process: Process) -> TimeLaw:
        """Return the law of the times on a process."""
        return self.times or usual_times(process)

    def __call__(
        self, model: Callable[..., Prediction], x0: Tensor, generator: torch.Generator, /, **condition: Any
    ) -> Tensor:
        """Return the loss of the batch, the mean of `each`: a scalar."""
        return self.each(model, x0, generator, **condition).mean()

    def each(
        self, model: Callable[..., Prediction], x0: Tensor, generator: torch.Generator, /, **condition: Any
    ) -> Tensor:
        """Return the loss of every sample at times and noise drawn now: see `draw` and `at`."""
        return self.at(model, x0, self.draw(process_of(model), x0, generator), **condition)

    def predict(
        self, model: Callable[..., Prediction], x0: Tensor, noising: Noising, condition: dict[str, Any]
    ) -> tuple[Prediction, Process]:
        """Return what the model says of the noised data, with its condition where that was not left out.

        The process beside it is the model's, for use at the times of the batch.
        """
        check_batch(x0)
        t, eps, _, dropped = noising
        process = cast(Process, Scales(process_of(model), t))
        if self.dropout is not None and dropped is not None:
            condition = self.dropout.apply(dropped, condition)
        return model(combined(process.alpha(t), x0, process.sigma(t), eps), t, **condition), process


@dataclass(frozen=True)
class Objective(Criterion):
    r"""Denoising score matching, computed on the network's own output F, where it is finite:

        x_t = alpha x0 + sigma eps,          loss = E[ w(t) (dx0/dF)^2 mean |F(x_t, t) - F*|^2 ]

    with w the weight on x0, t drawn from `times`, eps from N(0, I), and the mean over coordinates. It is a plain
    function of a model and a batch, at home in anybody's training loop; any model has a loss, an oracle too.

    Args:
        weight: what an error counts: `OnOutput()`, `On(target)`, `Likelihood()`, `MinSNR()`.
        times: the law of t; by default `LogNormal()` on `EDM`, whose time is sigma, and `UniformTimes()` elsewhere.
        dropout: which conditions are left out; by default none.

    >>> from sdekit import VP, Denoiser, Eps
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> Objective().each(model, torch.zeros(4, 2), torch.Generator().manual_seed(0)).shape
    torch.Size([4])

    Reference: Vincent 2011; Song et al. 2021 (arXiv 2011.13456), eq. 7; Karras et al. 2022 (arXiv 2206.00364), eq. 8.
    """

    weight: Weight = OnOutput()
    times: TimeLaw | None = None
    dropout: Dropout | None = None

    def at(self, model: Callable[..., Prediction], x0: Tensor, noising: Noising, /, **condition: Any) -> Tensor:
        prediction, process = self.predict(model, x0, noising, condition)
        return scaled(squared(self.weight, prediction, process, x0, noising), noising.weight)


def squared(weight: Weight, prediction: Prediction, process: Process, x0: Tensor, noising: Noising) -> Tensor:
    """Return the weighted mean square error of every sample's prediction: shape (B,)."""
    target = prediction.target
    error = mse_loss(prediction.answer, target.of(process, noising.t, x0, noising.eps), reduction="none")
    return scaled(mean(error), weight(process, target, noising.t))


class Scales:
    """A process at the times of a batch: alpha and sigma, which all that a loss needs is made of, computed once."""

    def __init__(self, process: Process, t: Tensor) -> None:
        self._process, self._t = process, t
        self._alpha, self._sigma = process.alpha(t), process.sigma(t)

    def alpha(self, t: Tensor) -> Tensor:
        """Return alpha(t)."""
        return self._alpha if t is self._t else self._process.alpha(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma(t)."""
        return self._sigma if t is self._t else self._process.sigma(t)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)


def mean(values: Tensor) -> Tensor:
    """Return the mean over all but the batch dimension: shape (B,)."""
    return (values if values.ndim == 2 else values.reshape(len(values), -1)).mean(1)


def scaled(losses: Tensor, factor: Tensor | float | None) -> Tensor:
    """Return losses times a factor, which is no work where it is 1 or None."""
    if isinstance(factor, Tensor):
        return losses * factor.to(losses)
    return losses if factor is None or factor == 1 else losses * factor


def process_of(model: Any) -> Process:
    """Return the process of a model, also of one that DistributedDataParallel and its like have wrapped."""
    process: Process = getattr(model, "module", model).process
    return process


def check_batch(x0: Tensor) -> None:
    """Raise ValueError unless `x0` is a batch of floating-point samples."""
    if not x0.is_floating_point() or x0.ndim == 0 or len(x0) == 0:
        raise ValueError(
            f"x0 must be a batch of floating-point samples of shape (B, ...); got {x0.dtype} of shape "
            f"{tuple(x0.shape)}. Bytes of images become data by x.float() / 127.5 - 1."
        )
