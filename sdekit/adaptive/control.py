"""The next step of every sample, from the error of the last ones: proportional-integral control."""

from __future__ import annotations

import torch
from torch import Tensor

SAFETY = 0.9
"""The share of the step that would just meet the tolerance."""

INTEGRAL, PROPORTIONAL = 0.7, 0.4
"""The exponents of this error and of the one before, both to be divided by the order of the estimate."""

SHRINK, GROW = 0.2, 5.0
"""The least and the largest ratio of successive steps."""

RETRY = 0.25
"""The ratio after an answer that is not finite."""

RETRIES = 6
"""The times in a row that a step is made smaller because an answer is not finite."""

SMALLEST = 1e-9
"""The least step, in units of lam or of the angle. One that fails at this size leaves the sample stuck."""

STRETCH = 1.02
"""A step that would leave less than this ratio less one goes to the end."""


def after_success(error: Tensor, before: Tensor, failed: Tensor, order: int) -> Tensor:
    """Return the ratio of the next step to an accepted one.

    Args:
        error: the error in units of the tolerance, shape (B,).
        before: that of the last accepted step, 1 if there is none.
        failed: whether the step was rejected before; then the next one is no larger.
        order: the order of the estimate in the step.

    Reference: Gustafsson 1991; Hairer & Wanner 1996, section IV.2, eq. 2.43c.
    """
    error, before = error.clamp(min=1e-10), before.clamp(min=1e-4)
    ratio = SAFETY * error ** (-INTEGRAL / order) * before ** (PROPORTIONAL / order)
    return torch.where(failed, ratio.clamp(SHRINK, 1.0), ratio.clamp(SHRINK, GROW))


def after_failure(error: Tensor, order: int) -> Tensor:
    """Return the ratio of the next attempt to a rejected one; the error may be infinite or NaN."""
    ratio = (SAFETY * error ** (-1 / order)).clamp(SHRINK, SAFETY)
    return torch.where(error.isfinite(), ratio, RETRY)


def first(tolerance: float, order: int) -> float:
    """Return the first step, in units of the path's pace."""
    return float(min(tolerance, 1.0) ** (1 / order))
