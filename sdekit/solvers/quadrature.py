"""Gauss-Legendre quadrature, for the weights of solvers that have no closed form."""

from __future__ import annotations

import functools
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

Rule: TypeAlias = tuple[Tensor, Tensor]
"""The places and the weights of a quadrature, float64."""


@functools.cache
def gauss(panels: int) -> Rule:
    """Return the places and weights of Gauss-Legendre quadrature on [0, 1], 16 in each of so many equal panels."""
    x, w = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(16))
    starts = torch.arange(panels, dtype=torch.float64)[:, None]
    return ((starts + (x + 1) / 2) / panels).flatten(), (w / (2 * panels)).repeat(panels)
