"""The time and the label of a sample as one vector; and how it acts on features."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.nets.inputs import Sinusoidal, TimeFeatures

__all__ = ["Embedding", "Modulation", "modulate", "zeroed"]

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zeroed(layer: Layer) -> Layer:
    """Return the layer with weight and bias set to zero, so that what it closes begins as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return (1 + scale) x + shift."""
    return torch.addcmul(shift, x, 1 + scale)


class Embedding(nn.Module):
    """The time and, if there are classes, the label of a sample as one vector.

        c = B silu(A y(t)) + e[label],    y the features of time

    Args:
        width: size of the vector.
        classes: number of classes, or None for a network without labels. The table e has one row more, at
            index `classes`, for "no label"; single samples may carry it, as training for guidance needs.
        time: the features of time.
        features: their number, even: how finely times are told apart does not depend on the size of the network.

    Raises:
        ValueError: `features` is odd, or a number is not positive.
    """

    def __init__(
        self, width: int, classes: int | None = None, time: TimeFeatures = Sinusoidal(), features: int = 128
    ) -> None:
        super().__init__()
        if features < 2 or features % 2:
            raise ValueError(f"The number of features of time must be even and positive; got {features}. Make it so.")
        if width < 1:
            raise ValueError(f"The width of an embedding must be positive; got {width}.")
        if classes is not None and classes < 1:
            raise ValueError(f"There must be at least 1 class; got {classes}. Without labels, pass None.")
        self.classes = classes
        self.time = time.layer(features)
        self.a = nn.Linear(features, width)
        self.b = nn.Linear(width, width)
        self.e = None if classes is None else nn.Embedding(classes + 1, width)

    def forward(self, t: Tensor, label: Tensor | None, samples: int) -> Tensor:
        """Return the vectors, shape (samples, width), or (1, width) if all samples share one.

        Args:
            t: times, 0-d or shape (samples,), float32 or float64.
            label: integers 0 ... classes, shape (samples,); None for no label.
            samples: size of the batch.

        Raises:
            TypeError: `t` is not of float32 or float64, or `label` not of integers.
            ValueError: a shape does not fit; a label is out of range, or given to a network without labels.
        """
        _check_time(t, samples)
        weight = self.a.weight
        y = self.time(t.to(weight.device).reshape(-1)).to(weight.dtype)
        c: Tensor = self.b(F.silu(self.a(y)))
        if self.e is None or self.classes is None:
            if label is not None:
                raise ValueError("A network without classes takes no label; got one. Build it with classes.")
            return c
        if label is None:
            label = torch.full((1,), self.classes, device=weight.device)
        else:
            _check_label(label, samples, self.classes)
        e: Tensor = self.e(label.to(weight.device))
        return c + e


class Modulation(nn.Module):
    """Scale and shift features as the embedding says: y = (1 + scale(c)) x + shift(c), at first y = x.

    References:
        Perez et al. (2018), "FiLM" (arXiv 1709.07871), eq. 2.
        Zero at the start: Peebles and Xie (2023), "DiT" (arXiv 2212.09748), section 3.2.

    Args:
        width: size of the embedding c.
        features: number of features, on axis 1 of x.
    """

    def __init__(self, width: int, features: int) -> None:
        super().__init__()
        self.linear = zeroed(nn.Linear(width, 2 * features))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """Return x, shape (B, features, ...), modulated by c, shape (B, width) or (1, width)."""
        y: Tensor = self.linear(F.silu(c))
        scale, shift = y.reshape(*y.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
        return modulate(x, scale, shift)


def _check_time(t: Tensor, samples: int) -> None:
    if t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"Times must be float32 or float64; got {t.dtype}. Coarser ones merge near times.")
    if t.ndim != 0 and t.shape != (samples,):
        raise ValueError(f"Times must be 0-d or one a sample, ({samples},); got {tuple(t.shape)}. Reshape.")


def _check_label(label: Tensor, samples: int, classes: int) -> None:
    if label.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"Labels must be int32 or int64; got {label.dtype}. Pass the index of the class.")
    if label.shape != (samples,):
        raise ValueError(f"Labels must be one a sample, ({samples},); got {tuple(label.shape)}. Reshape.")
    if torch.compiler.is_compiling() or samples == 0:
        return  # a compiled graph cannot look at values; the table then refuses the index in its own words
    low, high = (int(bound) for bound in label.aminmax())
    if low < 0 or high > classes:
        raise ValueError(
            f"Labels must be 0 ... {classes - 1}, or {classes} for none; got {low} ... {high}. Check them."
        )
