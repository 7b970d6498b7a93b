"""The exact model of a data set itself: every point a component without width."""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.oracle.mixture import Oracle, floating
from sdekit.prediction import X0, Prediction
from sdekit.process import Process


class Empirical(Oracle):
    """The exact model of a finite data set: its denoiser is a softmax over all points,

        x0 = sum_i w_i data_i,          w = softmax(-|x - alpha data_i|^2 / (2 sigma^2))

    and the nearest point where sigma = 0. This is the minimum of the denoising loss on the data, so a sampler run on it
    returns the data: the reference for memorization. The noise E[eps | x] is not finite where sigma = 0.

    Args:
        process: the forward process.
        data: the points, shape (N, ...).

    Raises:
        ValueError: no data, or data that is not finite.

    >>> from sdekit import VP
    >>> Empirical(VP(), torch.tensor([[-1.0], [1.0]]))(torch.tensor([[0.3]]), 0.0).x0
    tensor([[1.]])

    Reference: Karras et al. 2022 (arXiv 2206.00364), appendix B.3, eq. 57.
    """

    def __init__(self, process: Process, data: Tensor) -> None:
        # A width at the level of rounding is none, and keeps all that follows finite where sigma = 0.
        super().__init__(process, data, torch.finfo(floating(data).dtype).eps)

    def forward(self, x: Tensor, t: Time, /) -> Prediction:
        """Predict E[x0 | x] at the states `x`, shape (B, ...), and the time `t`, a scalar or of shape (B,).

        Raises:
            ValueError: states or times whose shapes do not match, or a time outside the process.
        """
        t = self.process.check(t)
        return Prediction(self.process, x, t, self._by_rows(self._answer, x, t).reshape(x.shape), X0())

    def log_prob(self, x: Tensor, t: Time | None = None) -> Tensor:
        """Return log p_t(x) in nats, shape (B,).

        Raises:
            ValueError: no time, since points have no density; otherwise as `forward`.
        """
        if t is None:
            raise ValueError(
                "A data set has a density only with noise on it; got no time. Pass t > 0, or fit a mixture."
            )
        return super().log_prob(x, t)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` points of the data with replacement, shape (n, ...)."""
        data = self.components.means
        chosen = torch.randint(len(data), (n,), generator=generator, device=generator.device).to(data.device)
        return data[chosen].reshape(n, *self.shape)

    def _answer(self, x: Tensor, t: Tensor) -> Tensor:
        return self._posterior(x, t).weights @ self.components.means
