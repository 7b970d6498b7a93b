"""An objective with its model as one module: what wrappers for many devices hold and call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sdekit.prediction import Prediction
from sdekit.training.objective import Criterion, Noising, Objective, process_of


class Loss(nn.Module):
    """The loss of a model as a module, for Lightning, Fabric, DistributedDataParallel, or a loop of one's own:

        loss = Loss(model)(x0, label=label).mean()

    Args:
        model: what is trained, a `Denoiser`; or any other model.
        objective: its objective.

    The draws may be made apart, once for a batch whose rows then go to many devices or come one after another:

        noising = loss.draw(x0, generator)
        losses = loss(x0, noising)
        loss.observe(noising, losses)

    A law of the times that learns, such as `LossSecondMoment()`, keeps what it has seen in the buffers of this module.

    >>> from sdekit import VP, Denoiser, Eps
    >>> loss = Loss(Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps()))
    >>> loss(torch.zeros(4, 2), loss.draw(torch.zeros(4, 2), torch.Generator().manual_seed(0))).shape
    torch.Size([4])
    """

    def __init__(self, model: Callable[..., Prediction], objective: Criterion = Objective()) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        process = process_of(model)
        self.learner = objective.law(process).learner(process)

    def draw(self, x0: Tensor, generator: torch.Generator | None = None) -> Noising:
        """Draw times and noise for a batch, by the law as it has learned so far.

        Args:
            x0: clean data, shape (B, ...), floating.
            generator: the source; by default torch's global generator of the CPU.

        Raises:
            ValueError: x0 is no batch of floating-point samples.
        """
        source = torch.default_generator if generator is None else generator
        return self.objective.draw(process_of(self.model), x0, source, self.learner)

    def forward(self, x0: Tensor, noising: Noising | None = None, /, **condition: Any) -> Tensor:
        """Return the loss of every sample, a mean over its coordinates: shape (B,).

        Args:
            x0: clean data, shape (B, ...), floating.
            noising: times and noise; without them they are drawn here, and in training mode the law learns here too.
            condition: what the network takes by name besides x and t, such as label.

        Raises:
            ValueError: x0 is no batch of floating-point samples.
        """
        drawn = self.draw(x0) if noising is None else noising
        losses = self.objective.at(self.model, x0, drawn, **condition)
        if noising is None and self.training:
            self.observe(drawn, losses)
        return losses

    def observe(self, noising: Noising, losses: Tensor) -> None:
        """Tell a law that learns what the losses of a batch were; others do not listen.

        Args:
            noising: what was drawn.
            losses: what `forward` returned, shape (B,).
        """
        if self.learner is not None:
            plain = losses.detach() if noising.weight is None else losses.detach() / noising.weight
            self.learner.observe(process_of(self.model), noising.t, plain)
