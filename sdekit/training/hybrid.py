"""The variational bound of a chain as an objective, alone or beside a simple one: how variances are learned."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit._broadcast import as_time, like
from sdekit.likelihood import Levels
from sdekit.likelihood.chain import decoder_std, step_kl
from sdekit.likelihood.decoder import log_decoder
from sdekit.prediction import Eps, Prediction, WithVariance
from sdekit.process import Process
from sdekit.training.dropout import Dropout
from sdekit.training.objective import Criterion, Noising, scaled, squared
from sdekit.training.times import TimeLaw, UniformSteps, steps
from sdekit.training.weights import On, Weight


@dataclass(frozen=True)
class VLB(Criterion):
    r"""The variational bound of the chain of a `Discrete` process, in nats per coordinate:

        loss = T E_k[L_k] / dims,     L_0 = -log p(x0 | x_{t_0}),     L_k = KL(q(x_{t_{k-1}} | x_{t_k}, x0) || p)

    over its T steps, the terms of `sdekit.likelihood.discrete_bound` but the one at t_max, which no network changes.
    A variance is learned if the model predicts one, `Denoiser(..., head=MeanAndVariance())`; else it is beta~.

    Args:
        levels: where the data lie, if on levels; L_0 is then that of the discretised decoder.
        times: the law of the steps, by default `UniformSteps()`; `LossSecondMoment()` has much less variance.
        dropout: which conditions are left out; by default none.

    Raises:
        ValueError: when used on a process without a table, or at a time between its steps.

    Reference: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 4-7.
    """

    levels: Levels | None = None
    times: TimeLaw | None = None
    dropout: Dropout | None = None

    def law(self, process: Process) -> TimeLaw:
        return self.times or UniformSteps()

    def at(self, model: Callable[..., Prediction], x0: Tensor, noising: Noising, /, **condition: Any) -> Tensor:
        prediction, _ = self.predict(model, x0, noising, condition)
        return scaled(bound(prediction, x0, noising, self.levels), noising.weight)


@dataclass(frozen=True)
class Hybrid(Criterion):
    """L_simple + scale L_vlb, for models that predict the variance: the first trains the answer, the second the rest.

    L_vlb is `VLB`'s, with the answer held fixed, so that its noisy gradient reaches the variance alone.

    Args:
        weight: what an error of the answer counts in L_simple; by default DDPM's.
        scale: what L_vlb counts, in nats per coordinate.
        levels: where the data lie, if on levels.
        times: the law of the steps, by default `UniformSteps()`.
        dropout: which conditions are left out; by default none.

    Raises:
        ValueError: scale is not positive; or when used, as `VLB`.
        TypeError: when used, the model predicts no variance.

    Reference: Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 16.
    """

    weight: Weight = On(Eps())
    scale: float = 0.001
    levels: Levels | None = None
    times: TimeLaw | None = None
    dropout: Dropout | None = None

    def __post_init__(self) -> None:
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, what the bound counts beside L_simple; got {self.scale}.")

    def law(self, process: Process) -> TimeLaw:
        return self.times or UniformSteps()

    def at(self, model: Callable[..., Prediction], x0: Tensor, noising: Noising, /, **condition: Any) -> Tensor:
        prediction, process = self.predict(model, x0, noising, condition)
        if not isinstance(prediction, WithVariance):
            raise TypeError(
                f"The model must predict a variance for L_vlb to train; it returned {type(prediction).__name__}. Build "
                "it with head=MeanAndVariance(), or train it with Objective()."
            )
        simple = squared(self.weight, prediction, process, x0, noising)
        held = dataclasses.replace(prediction, answer=prediction.answer.detach())
        return scaled(simple + self.scale * bound(held, x0, noising, self.levels).to(simple), noising.weight)


def bound(prediction: Prediction, x0: Tensor, noising: Noising, levels: Levels | None = None) -> Tensor:
    """Return T L_k / dims, each sample's share of the bound: see `VLB`.

    Args:
        prediction: what the model says of the noised data.
        x0: the data, shape (B, ...).
        noising: times, which are nodes of the table, and noise.
        levels: where the data lie, if on levels.
    """
    process, target, t = prediction.process, prediction.target, noising.t
    table, (first, count) = steps(process)
    k = (table.steps * t - 1).round()
    if t.device.type == "cpu" and not bool(((table.steps * t - 1 - k).abs() < 1e-4).all()):
        raise ValueError("The bound counts the steps of a table; got times between them. Draw with UniformSteps().")
    error = like(target.gain(process, t), x0) * (prediction.answer - target.of(process, t, x0, noising.eps))
    place = prediction.place if isinstance(prediction, WithVariance) else None
    inner, last = (k > first).nonzero()[:, 0], (k <= first).nonzero()[:, 0]
    told = -1.0 if place is None else place[inner]
    terms = step_kl(process, table.node(k[inner]), table.node(k[inner] - 1), error[inner], told)
    losses = torch.zeros(len(x0), dtype=torch.float64, device=x0.device)
    losses = losses.index_copy(0, inner, terms.double().reshape(len(inner), error[0].numel()).sum(1))
    if len(last):
        ends = table.node(as_time(float(first))), table.node(as_time(float(first + 1)))
        std = decoder_std(process, *ends, 1.0 if place is None else place[last].double())
        x = x0[last]
        losses = losses.index_copy(0, last, -log_decoder(x, x + error[last], std, levels))
    return (losses * (count / error[0].numel())).to(error)
