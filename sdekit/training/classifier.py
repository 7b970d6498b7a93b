"""The loss of a classifier of noisy states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from sdekit._broadcast import like
from sdekit.training.dropout import Dropout
from sdekit.training.objective import Criterion, Noising, process_of
from sdekit.training.times import TimeLaw


@dataclass(frozen=True)
class CrossEntropy(Criterion):
    """The cross-entropy -log p(label | x_t) of a `NoisyClassifier`, trained like a denoiser:

        Trainer(NoisyClassifier(net, process), (x0, labels), recipe, CrossEntropy())

    Args:
        times: the law of t; by default that of `Objective`.

    Reference: Dhariwal & Nichol 2021 (arXiv 2105.05233), section 4.
    """

    times: TimeLaw | None = None
    dropout: Dropout | None = field(default=None, init=False)

    def at(self, model: Callable[..., Any], x0: Tensor, noising: Noising, /, **condition: Any) -> Tensor:
        label = condition.get("label")
        if not isinstance(label, Tensor) or label.shape != x0.shape[:1]:
            raise ValueError(
                f"A classifier is trained on batches (x0, labels), a label for each of {len(x0)} samples; got "
                f"{tuple(label.shape) if isinstance(label, Tensor) else label!r}."
            )
        process, t = process_of(model), noising.t
        x = like(process.alpha(t), x0) * x0 + like(process.sigma(t), x0) * noising.eps
        losses = cross_entropy(model(x, t), label, reduction="none")
        return losses if noising.weight is None else losses * noising.weight.to(losses)
