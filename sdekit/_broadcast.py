"""Where a time meets the shape of a batch: the one place, so that nothing else counts dimensions."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

Time: TypeAlias = Any
"""A time as users write it: a number, a 0-d tensor shared by the batch, or a tensor of shape (B,).

(`Any` to a type checker, so that a process may annotate its formulas with the tensors it is handed.)
"""


def as_time(t: Time) -> Tensor:
    """Return `t` as a float64 tensor, on the device it came on (numbers go to the CPU).

    >>> as_time(0.5).dtype
    torch.float64
    """
    return torch.as_tensor(t, dtype=torch.float64)


def like(coefficient: Tensor | float, x: Tensor) -> Tensor | float:
    """Shape a coefficient so that it multiplies the batch `x` sample by sample.

    Numbers and 0-d tensors pass unchanged: torch multiplies by them in the dtype of `x`, on any device and without
    a synchronisation. A tensor of shape (B,) becomes (B, 1, ..., 1) in the dtype and on the device of `x`.

    >>> like(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4)).shape
    torch.Size([2, 1, 1])
    """
    if not isinstance(coefficient, Tensor) or coefficient.ndim == 0:
        return coefficient
    if coefficient.ndim != 1 or x.ndim == 0 or coefficient.shape[0] != x.shape[0]:
        raise ValueError(
            f"A time must be a number or have one entry per sample: t has shape {tuple(coefficient.shape)} but x has "
            f"shape {tuple(x.shape)}. Pass a scalar or a tensor of shape ({x.shape[0] if x.ndim else 1},)."
        )
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))
