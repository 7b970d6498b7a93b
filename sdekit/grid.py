"""Where the steps fall: grids of times from noise to data, never part of a solver."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.process import Discrete, Process


class Grid(Value, ABC):
    """A rule for the times of a run. `grid(process)` gives steps + 1 times, strictly falling, float64, on the CPU."""

    @abstractmethod
    def times(self, process: Process) -> Tensor:
        """Return the times; `__call__` checks them."""

    def __call__(self, process: Process) -> Tensor:
        """Return the times from noise to data.

        Raises:
            ValueError: the times are not finite, not strictly falling, or outside the process.
        """
        times = process.check(self.times(process))
        if times.ndim != 1 or len(times) < 2 or not bool((torch.diff(times) < 0).all()):
            raise ValueError(
                f"A grid needs at least two strictly falling times; {self} on {process} gives {times.tolist()[:8]}. "
                "Use fewer steps, or other times."
            )
        return times

    def with_steps(self, steps: int) -> Self:
        """Return the same rule with another number of steps."""
        return dataclasses.replace(self, steps=steps)  # type: ignore[type-var]

    def suited(self, shape: tuple[int, ...]) -> Self:
        """Return the grid for samples of that shape: itself, if the rule does not depend on it."""
        return self


@dataclass(frozen=True)
class _Steps(Grid):
    """A grid of a given number of steps, from t_max to t_min."""

    steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1; got {self.steps!r}.")

    def _place(self) -> Tensor:
        return torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)

    def _between(self, process: Process, times: Tensor) -> Tensor:
        """Set the ends exactly, which a map there and back may miss by rounding."""
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        return torch.cat([ends[:1], times[1:-1], ends[1:]])


@dataclass(frozen=True)
class Uniform(_Steps):
    """Evenly spaced in time.

    >>> from sdekit import RectifiedFlow
    >>> Uniform(4)(RectifiedFlow(t_min=0.0, t_max=1.0)).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def times(self, process: Process) -> Tensor:
        return self._between(process, torch.lerp(*_ends(process.t_max, process.t_min), self._place()))


@dataclass(frozen=True)
class Quadratic(_Steps):
    """Evenly spaced in the square root of time. Reference: Song et al. 2021 (arXiv 2010.02502), appendix D.2."""

    def times(self, process: Process) -> Tensor:
        if process.t_min < 0:
            raise ValueError(f"Quadratic takes a square root of time and needs t_min >= 0; got {process.t_min}.")
        return self._between(process, torch.lerp(*_ends(process.t_max**0.5, process.t_min**0.5), self._place()) ** 2)


@dataclass(frozen=True)
class LogSNR(_Steps):
    """Evenly spaced in lam = log(alpha/sigma). Reference: Lu et al. 2022 (arXiv 2206.00927), section 3.4."""

    def times(self, process: Process) -> Tensor:
        return self._between(process, process.time(torch.lerp(*_finite_lams(self, process), self._place())))


@dataclass(frozen=True)
class Karras(_Steps):
    """Evenly spaced in (sigma/alpha)^(1/rho). Reference: Karras et al. 2022 (arXiv 2206.00364), eq. 5."""

    rho: float = 7.0

    def times(self, process: Process) -> Tensor:
        first, last = (torch.exp(-lam / self.rho) for lam in _finite_lams(self, process))
        return self._between(process, process.time(-self.rho * torch.lerp(first, last, self._place()).log()))


@dataclass(frozen=True)
class Angular(_Steps):
    """Evenly spaced in the cube root of the angle atan2(sigma, alpha): finer towards the data, finite on every process.

    For log-likelihoods, whose error comes from where details appear; the power is chosen by measurement.

    >>> from sdekit import VP
    >>> [round(t, 3) for t in Angular(3)(VP()).tolist()]
    [1.0, 0.194, 0.043, 0.001]
    """

    def times(self, process: Process) -> Tensor:
        first, last = (process.angle(end) ** (1 / 3) for end in (process.t_max, process.t_min))
        theta = torch.lerp(first, last, self._place()) ** 3
        return self._between(process, process.time(-theta.tan().log()))


@dataclass(frozen=True)
class Beta(_Steps):
    r"""Dense where data take shape: times are quantiles of a law of the noise level rho = sigma/alpha, whose density is

        dF / dlog rho = u^{0.8} / (1 + u)^{1.2},          u = rho / centre,

    so rho / (rho + centre) has a Beta law, cut at the ends. Above the centre steps spread slowly, below it fast.

    Args:
        centre: the noise level around which steps are densest, in units of the data: where features turn into details.
            If none is given it is 0.07 d^(1/4) for samples of d numbers, 0.2 where d is not known; data of another
            scale than a standard deviation of 1/2 to 1 scale it. Fitted, as the exponents, on four laws of data.

    >>> from sdekit import RectifiedFlow
    >>> [round(t, 3) for t in Beta(4)(RectifiedFlow()).tolist()]
    [0.999, 0.789, 0.385, 0.121, 0.001]
    """

    centre: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centre is not None and not 0 < self.centre < math.inf:
            raise ValueError(f"centre is a noise level sigma/alpha and must be positive; got {self.centre}.")

    def suited(self, shape: tuple[int, ...]) -> Self:
        return self if self.centre else dataclasses.replace(self, centre=0.07 * math.prod(shape) ** 0.25)

    def times(self, process: Process) -> Tensor:
        centre = self.centre or 0.2
        # beyond these noise levels F is flat, so that alpha = 0 and sigma = 0 are not infinitely far
        ends = process.angle(torch.tensor([process.t_min, process.t_max])).tan()
        lo, hi = ends.clamp(centre * 1e-9, centre * 1e9).log().tolist()
        levels = torch.linspace(lo, hi, 8001, dtype=torch.float64)
        u = levels.exp() / centre
        shares = torch.cumulative_trapezoid(u**0.8 / (1 + u) ** 1.2, levels).numpy()
        level = np.interp(1 - self._place(), np.concatenate([[0.0], shares / shares[-1]]), levels)
        lams = torch.from_numpy(-level).clamp(process.lam(process.t_max), process.lam(process.t_min))
        return self._between(process, process.time(lams))


@dataclass(frozen=True)
class Times(Grid):
    """Times given one by one, strictly falling."""

    at: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", tuple(float(t) for t in self.at))

    def times(self, process: Process) -> Tensor:
        return torch.tensor(self.at, dtype=torch.float64)

    def with_steps(self, steps: int) -> Self:
        """Raise: explicit times have the number of steps they have."""
        raise ValueError(f"Times has {len(self.at) - 1} explicit steps; use Uniform or LogSNR to choose a number.")


@dataclass(frozen=True)
class _Around(Grid):
    """A grid made of another."""

    grid: Grid

    def with_steps(self, steps: int) -> Self:
        return dataclasses.replace(self, grid=self.grid.with_steps(steps))

    def suited(self, shape: tuple[int, ...]) -> Self:
        return dataclasses.replace(self, grid=self.grid.suited(shape))


@dataclass(frozen=True)
class Denoised(_Around):
    """A grid whose last step goes to the clean end, where sigma = 0: it replaces x by x0_hat (Tweedie's formula).

    `Denoised(LogSNR(20))` makes 20 steps, 19 of them as `LogSNR(19)` would. This is how samplers of the literature end
    ("append zero"); on a process with sigma(t_min) = 0, which ends there anyway, the inner grid is unchanged.
    """

    def times(self, process: Process) -> Tensor:
        if process.t_min <= process.clean:
            return self.grid(process)
        steps = getattr(self.grid, "steps", None)
        if steps == 1:
            return torch.tensor([process.t_max, process.clean], dtype=torch.float64)
        times = (self.grid.with_steps(steps - 1) if steps else self.grid)(process)
        return torch.cat([times, torch.tensor([process.clean], dtype=torch.float64)])


@dataclass(frozen=True)
class Landed(_Around):
    """A grid whose last time is the clean end, where sigma = 0, in the place of t_min: the same steps, no call more.

    For solvers that can step there (`Solver.lands`); another ends with x0_hat at the last time but one. On a process
    with sigma(t_min) = 0, which ends there anyway, the inner grid is unchanged.
    """

    def times(self, process: Process) -> Tensor:
        times = self.grid(process)
        if process.t_min <= process.clean:
            return times
        return torch.cat([times[:-1], torch.tensor([process.clean], dtype=torch.float64)])


@dataclass(frozen=True)
class Reversed(_Around):
    """The times of another grid from data to noise, for encoding; a clean end is left out."""

    def times(self, process: Process) -> Tensor:
        times = self.grid(process)
        return times[times >= process.t_min].flip(0)

    def __call__(self, process: Process) -> Tensor:
        return self.times(process)


@dataclass(frozen=True)
class _Spacing(_Steps):
    """Steps of a table, `steps` network calls and then the clean end."""

    @abstractmethod
    def indices(self, total: int) -> Tensor:
        """Return the table's indices k, falling, for a table of `total` steps."""

    def times(self, process: Process) -> Tensor:
        if not isinstance(process, Discrete):
            raise ValueError(
                f"{type(self).__name__} picks steps of a table and needs a Discrete process; got "
                f"{type(process).__name__}. Use Uniform, Quadratic, LogSNR or Karras."
            )
        if self.steps > process.steps:
            raise ValueError(f"At most the table's {process.steps} steps can be taken; got {self.steps}.")
        return torch.cat([process.node(self.indices(process.steps)), torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class Leading(_Spacing):
    """k = i floor(T/n) + offset. Reference: Lin et al. 2023 (arXiv 2305.08891), table 2; DDPM's own for n = T."""

    offset: int = 0

    def indices(self, total: int) -> Tensor:
        return torch.arange(self.steps - 1, -1, -1) * (total // self.steps) + self.offset


@dataclass(frozen=True)
class Trailing(_Spacing):
    """k = round(T - i T/n) - 1, which starts at the last step of the table. Reference: Lin et al. 2023, table 2."""

    def indices(self, total: int) -> Tensor:
        places = total - torch.arange(self.steps, dtype=torch.float64) * (total / self.steps)
        return places.round().long() - 1


@dataclass(frozen=True)
class Linspace(_Spacing):
    """k = round of n values from T-1 to 0, both included. Reference: Lin et al. 2023, table 2."""

    def indices(self, total: int) -> Tensor:
        return torch.linspace(total - 1, 0, self.steps, dtype=torch.float64).round().long()


def _ends(first: float, last: float) -> tuple[Tensor, Tensor]:
    return torch.tensor(first, dtype=torch.float64), torch.tensor(last, dtype=torch.float64)


def _finite_lams(grid: Grid, process: Process) -> tuple[Tensor, Tensor]:
    lams = process.lam(process.t_max), process.lam(process.t_min)
    if not all(math.isfinite(float(lam)) for lam in lams):
        raise ValueError(
            f"{type(grid).__name__} needs a finite log-SNR at both ends; {process} has {float(lams[0]):g} at t_max and "
            f"{float(lams[1]):g} at t_min. Move the ends inwards (t_min=1e-3, say), or use Uniform or Quadratic."
        )
    return lams
