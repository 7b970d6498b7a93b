"""A law of the time that learns from the losses how often each noise level is worth a look."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import Time
from sdekit.process import Discrete, Process
from sdekit.training.times import Learner, TimeLaw, UniformSteps, UniformTimes, places, steps


@dataclass(frozen=True)
class LossSecondMoment(TimeLaw):
    """Times drawn as often as their losses are large, and weighted so that the expected loss stays what it was:

        p_k = (1 - floor) sqrt(mean L_k^2) / sum_j sqrt(mean L_j^2) + floor / bins,          weight 1 / (bins p_k)

    over slices k of equal share of the law `of`, L_k the last losses seen in each. Until every slice has seen as many
    as it remembers all are drawn alike. The memory is in the buffers of a `Loss`; without one this is the law `of`.

    Args:
        of: the law of the expectation; by default `UniformSteps()` on a `Discrete` process, elsewhere `UniformTimes()`.
        bins: the number of slices; by default the steps of a `Discrete` process, elsewhere 100.
        history: how many losses a slice remembers.
        floor: the share of times drawn alike.

    Raises:
        ValueError: a number out of its range.

    Reference: Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3.3: 10 losses a step, and a floor of 0.001.
    """

    of: TimeLaw | None = None
    bins: int | None = None
    history: int = 10
    floor: float = 0.001

    def __post_init__(self) -> None:
        if not ((self.bins is None or self.bins >= 1) and self.history >= 1 and 0 < self.floor <= 1):
            raise ValueError(f"bins >= 1, history >= 1 and 0 < floor <= 1 must hold; got {self}.")

    def law(self, process: Process) -> TimeLaw:
        """Return the law of the expectation on a process."""
        return self.of or (UniformSteps() if isinstance(process, Discrete) else UniformTimes())

    def quantile(self, process: Process, u: Tensor) -> Tensor:
        return self.law(process).quantile(process, u)

    def cdf(self, process: Process, t: Tensor) -> Tensor:
        return self.law(process).cdf(process, t)

    def density(self, process: Process, t: Time) -> Tensor:
        return self.law(process).density(process, t)

    def learner(self, process: Process) -> Learner:
        usual = steps(process)[1][1] if isinstance(process, Discrete) else 100
        return Memory(self.law(process), self.bins or usual, self.history, self.floor)


class Memory(Learner):
    """What a `LossSecondMoment` has seen.

    Attributes:
        losses: the last losses of every slice, shape (bins, history).
        seen: how many every slice has seen, shape (bins,).
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, of: TimeLaw, bins: int, history: int, floor: float) -> None:
        super().__init__()
        self.of, self.floor = of, floor
        self.register_buffer("losses", torch.zeros(bins, history))
        self.register_buffer("seen", torch.zeros(bins, dtype=torch.int64))

    def masses(self) -> Tensor:
        """Return how often each slice is drawn, p_k: float64, shape (bins,)."""
        root = self.losses.double().square().mean(1).sqrt()
        learned = (1 - self.floor) * root / root.sum().clamp(min=1e-300) + self.floor / len(root)
        masses = torch.where(self.seen.min() < self.losses.shape[1], torch.ones_like(root), learned)
        return masses / masses.sum()

    def draw(self, process: Process, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        masses = self.masses().to(generator.device)
        above, share = masses.cumsum(0), places(n, generator)
        k = torch.searchsorted(above, share, right=True).clamp(max=len(masses) - 1)
        within = (1 - (above[k] - share) / masses[k]).clamp(1e-9, 1 - 1e-9)  # not a rounding into the next slice
        return self.of.quantile(process, (k + within) / len(masses)), 1 / (len(masses) * masses[k])

    @torch.no_grad()
    def observe(self, process: Process, t: Tensor, losses: Tensor) -> None:
        bins, history = self.losses.shape
        share = self.of.cdf(process, t).to(self.seen.device)
        k, order = ((share * bins - 1e-6).ceil().long() - 1).clamp(0, bins - 1).sort(stable=True)
        rank = torch.arange(len(k), device=k.device) - torch.searchsorted(k, k)  # among those of the same slice
        count = torch.bincount(k, minlength=bins)
        last = rank >= count[k] - history
        place = (self.seen[k] + rank) % history
        self.losses[k[last], place[last]] = losses.to(self.losses)[order[last]]
        self.seen += count
