"""The one loss: denoising score matching, for every target, process, weight and law of the times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from sdekit._broadcast import like
from sdekit._value import Value
from sdekit.prediction import Prediction
from sdekit.process import Process
from sdekit.training.times import TimeLaw, usual_times
from sdekit.training.weights import OnOutput, Weight


@dataclass(frozen=True)
class Objective(Value):
    r"""Denoising score matching, computed on the network's own output F, where it is finite:

        x_t = alpha x0 + sigma eps,          loss = E[ w(t) (dx0/dF)^2 mean |F(x_t, t) - F*|^2 ]

    with w the weight on x0, t drawn from `times`, eps from N(0, I), and the mean over coordinates. It is a plain
    function of a model and a batch, at home in anybody's training loop; any model has a loss, an oracle too.

    Args:
        weight: what an error counts: `OnOutput()`, `On(target)`, `Likelihood()`, `MinSNR()`.
        times: the law of t; by default `LogNormal()` on `EDM`, whose time is sigma, and `UniformTimes()` elsewhere.

    >>> from sdekit import VP, Denoiser, Eps
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> Objective().each(model, torch.zeros(4, 2), torch.Generator().manual_seed(0)).shape
    torch.Size([4])

    Reference: Vincent 2011; Song et al. 2021 (arXiv 2011.13456), eq. 7; Karras et al. 2022 (arXiv 2206.00364), eq. 8.
    """

    weight: Weight = OnOutput()
    times: TimeLaw | None = None

    def __call__(
        self, model: Callable[..., Prediction], x0: Tensor, generator: torch.Generator, /, **condition: Any
    ) -> Tensor:
        """Return the loss of the batch, the mean of `each`: a scalar."""
        return self._errors(model, x0, generator, condition).mean()

    def each(
        self, model: Callable[..., Prediction], x0: Tensor, generator: torch.Generator, /, **condition: Any
    ) -> Tensor:
        """Return the loss of every sample, a mean over its coordinates: shape (B,).

        Args:
            model: a `Denoiser`, bare or wrapped for distributed training, or any other model.
            x0: clean data, shape (B, ...), floating.
            generator: the source of t and eps, on any device; the global one is not touched.
            condition: what the network takes by name besides x and t, such as label.

        Raises:
            ValueError: x0 is no batch of floating-point samples.
        """
        return self._errors(model, x0, generator, condition).reshape(len(x0), -1).mean(1)

    def _errors(
        self, model: Callable[..., Prediction], x0: Tensor, generator: torch.Generator, condition: dict[str, Any]
    ) -> Tensor:
        """Return the weighted square error of every coordinate, of the shape of x0."""
        if not x0.is_floating_point() or x0.ndim == 0 or len(x0) == 0:
            raise ValueError(
                f"x0 must be a batch of floating-point samples of shape (B, ...); got {x0.dtype} of shape "
                f"{tuple(x0.shape)}. Bytes of images become data by x.float() / 127.5 - 1."
            )
        owner: Any = getattr(model, "module", model)  # where DistributedDataParallel keeps the model
        process: Process = owner.process
        times = self.times or usual_times(process)
        t = times.sample(process, len(x0), generator).to(x0.device)
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=generator.device).to(x0.device)
        x = like(process.alpha(t), x0) * x0 + like(process.sigma(t), x0) * eps
        prediction = model(x, t, **condition)
        target = prediction.target.of(process, t, x0, eps)
        error = mse_loss(prediction.answer, target, reduction="none")
        return like(self.weight(process, prediction.target, t), error) * error
