"""Times drawn from one law in the place of another."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.process import Process
from sdekit.training.times import TimeLaw, UniformLogSNR, UniformTimes


@dataclass(frozen=True)
class Importance(TimeLaw):
    """Draws from one law, weighted so that every loss is, in expectation, what it is under another.

        E_by[w loss] = E_of[loss],          w = of.density / by.density

    With `Likelihood()` the law `Importance()` has the loss of uniform times at a fraction of its variance.

    Args:
        of: the law of the expectation.
        by: the law that is drawn from, positive wherever `of` is.

    Reference: Song et al. 2021 (arXiv 2101.09258), section 5.1.
    """

    of: TimeLaw = UniformTimes()
    by: TimeLaw = UniformLogSNR()

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return self.by.quantile(process, u)

    def cdf(self, process: Process, t: Tensor) -> Tensor:
        return self.by.cdf(process, t)

    def density(self, process: Process, t: Time) -> Tensor:
        return self.by.density(process, t)

    def draw(self, process: Process, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        t = self.by.sample(process, n, generator)
        return t, self.of.density(process, t) / self.by.density(process, t)
