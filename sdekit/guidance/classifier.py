"""A classifier of noisy states, whose gradient guides."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from sdekit._broadcast import Time, like
from sdekit.denoiser import ByTime, Clock
from sdekit.process import Process


class NoisyClassifier(nn.Module):
    """A network as the classifier p(y | x_t) of states at every noise level.

    Args:
        net: a callable net(x, time) -> logits of shape (B, K), with `time` of shape (B,).
        process: the forward process.
        clock: how the network is told the time.

    It is trained by `sdekit.training.classifier.CrossEntropy`, and guides by Potential(classifier.given(labels)).

    Reference: Dhariwal & Nichol 2021 (arXiv 2105.05233), section 4.
    """

    def __init__(self, net: Callable[..., Tensor], process: Process, clock: Clock = ByTime()) -> None:
        super().__init__()
        self.net, self.process, self.clock = net, process, clock

    def forward(self, x: Tensor, t: Time, /) -> Tensor:
        """Return the logits of the classes at the states `x`, shape (B, ...), and the time `t`: shape (B, K).

        Raises:
            ValueError: a time outside the process or of another batch, or a net that does not return (B, K).
        """
        t = self.process.check(t)
        like(t, x)
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), x.dtype)
        time = self.clock(self.process, t).to(x.device, dtype).expand(len(x))
        logits: Tensor = self.net(x.to(dtype), time)
        if logits.ndim != 2 or len(logits) != len(x):
            raise ValueError(
                f"A classifier must return logits of shape ({len(x)}, classes); its net returned {tuple(logits.shape)}."
            )
        return logits

    def given(self, label: Tensor) -> LogProbability:
        """Return log p(label | x_t) as a function of the state and the time; `label` has shape (B,)."""
        return LogProbability(self, label)


class LogProbability(nn.Module):
    """A classifier with its labels bound: see `NoisyClassifier.given`.

    Attributes:
        calls: the network calls it takes.
    """

    calls = 1

    def __init__(self, classifier: NoisyClassifier, label: Tensor) -> None:
        super().__init__()
        self.classifier, self.label = classifier, label

    def forward(self, x: Tensor, t: Time, /) -> Tensor:
        """Return log p(label | x_t), shape (B,), in the dtype of `x`."""
        label = self.label.to(x.device)
        if label.shape != x.shape[:1]:
            raise ValueError(f"There must be a label for each sample, ({len(x)},); got shape {tuple(label.shape)}.")
        logits: Tensor = self.classifier(x, t)
        return logits.log_softmax(1).gather(1, label[:, None])[:, 0].to(x.dtype)

    def select(self, which: Tensor) -> LogProbability:
        """Return the same for some samples of a batch, `which` being their numbers."""
        return LogProbability(self.classifier, self.label[which.to(self.label.device)])
