r"""How noisy a gradient is: the batch size at which twice the batch is worth less than twice the steps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sdekit.training.batches import Batches, key, rows_of, source, unpack
from sdekit.training.loss import Loss


class NoiseScale(NamedTuple):
    """The size of a gradient and of its noise.

    Attributes:
        trace: the variance of the gradient of one sample, tr(Sigma), summed over the parameters.
        squared: the squared norm of the true gradient, |G|^2; an unbiased estimate, which may be negative.
    """

    trace: float
    squared: float

    @property
    def batch(self) -> float:
        """B_simple = tr(Sigma) / |G|^2: with a smaller batch the noise rules a step, with a larger one the gradient."""
        return self.trace / self.squared if self.squared > 0 else float("inf")


def noise_scale(
    loss: Loss, batches: Batches, size: int = 256, pieces: int = 8, steps: int = 10, seed: int = 0
) -> NoiseScale:
    r"""Estimate the noise scale of a loss's gradient from the gradients of batches and of their pieces.

    With G_B the gradient of a batch of B samples and G_b those of its pieces of b samples,

        |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b),        tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1/b - 1/B),

    each averaged over the pieces and over `steps` batches before one is divided by the other. Nothing is trained, and
    the gradients in `.grad` are left alone. (Times are drawn evenly over a batch. That takes noise from G_B which
    tr(Sigma) counts, so |G|^2 comes out too small by less than tr(Sigma) / B.)

    Args:
        loss: the model with its objective, such as a trainer's `loss`.
        batches: data to draw batches from, as for a trainer.
        size: samples in a batch, where the data are tensors.
        pieces: in how many pieces a batch is cut.
        steps: number of batches.
        seed: any whole number.

    Raises:
        ValueError: pieces is less than 2, or does not divide the batch; or steps is not positive.

    Reference: McCandlish et al. 2018 (arXiv 1812.06162), eq. 2.9 and appendix A.1.
    """
    if steps < 1:
        raise ValueError(f"The noise scale needs at least one batch; got steps={steps}.")
    batch = source(batches, size, seed)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    trace, squared = 0.0, 0.0
    for step in range(steps):
        x0, condition = unpack(batch(step), parameters[0].device)
        n, b = len(x0), len(x0) // pieces if pieces > 1 else 0
        if b == 0 or n % pieces:
            raise ValueError(f"A batch must be cut into 2 or more equal pieces; got {n} samples and {pieces} pieces.")
        noising = loss.draw(x0, torch.Generator(x0.device).manual_seed(key(seed, "noise scale", step)))
        small, total = 0.0, [torch.zeros_like(p) for p in parameters]
        for first in range(0, n, b):
            rows = slice(first, first + b)
            mean = loss(x0[rows], noising.rows(rows), **rows_of(condition, rows, n)).mean()
            gradient = torch.autograd.grad(mean, parameters, materialize_grads=True)
            small += _squared(gradient) / pieces
            torch._foreach_add_(total, gradient, alpha=1 / pieces)
        large = _squared(total)
        squared += (n * large - b * small) / (n - b) / steps
        trace += (small - large) / (1 / b - 1 / n) / steps
    return NoiseScale(trace, squared)


def _squared(gradient: list[Tensor] | tuple[Tensor, ...]) -> float:
    return float(torch.stack([g.double().square().sum() for g in gradient]).sum())
