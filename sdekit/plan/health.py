"""Watching over a run: which state is the first that is not finite."""

from __future__ import annotations

from torch import Tensor


class Health:
    """Finds the first state that is not finite, without making an accelerator wait."""

    def __init__(self, x: Tensor) -> None:
        self.waits = x.device.type == "cpu"
        self.pending: list[tuple[Tensor, str, float]] = []

    def check(self, x: Tensor, where: str, time: float) -> None:
        """Look at the states `x`; on an accelerator, only note what to look at.

        Raises:
            FloatingPointError: one is not finite.
        """
        # a sum is finite only if its terms are; one read of the state, no copy
        self.pending.append((x.detach().reshape(len(x), -1).sum(1), where, time))
        if self.waits:
            self.report()

    def report(self) -> None:
        """Look at what was noted.

        Raises:
            FloatingPointError: one is not finite.
        """
        for total, where, time in self.pending:
            if not bool(total.isfinite().all()):
                bad = (~total.isfinite()).nonzero().flatten().tolist()
                raise FloatingPointError(
                    f"Every state must stay finite; at {where}, t={time:.6g}, samples {bad[:8]} ({len(bad)} in all) "
                    "are not. Look at the model's answer there, or move t_min and t_max inwards."
                )
        self.pending.clear()


def check_batch(x: Tensor) -> None:
    """Raise ValueError if `x` is not a batch of floating-point states."""
    if x.ndim < 1 or not x.is_floating_point():
        raise ValueError(f"x must be a batch (B, ...) of floating-point states; got {x.dtype}, shape {tuple(x.shape)}.")
