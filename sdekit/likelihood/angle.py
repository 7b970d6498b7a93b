r"""Coordinates in which every process is the same flow.

With s = sqrt(alpha^2 + sigma^2), the state y = x / s in the angle theta = atan2(sigma, alpha) is

    y = cos(theta) x0 + sin(theta) eps,          dy / dtheta = cos(theta) eps - sin(theta) x0 = v / s

How a process spends its time and how it scales its states drop out, and with them its infinities: theta is finite where
alpha or sigma vanishes. Log-likelihoods are integrated here; a change of scale adds d log s to a log-density, no more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time, like
from sdekit.grid import Grid
from sdekit.likelihood.trace import require_graph
from sdekit.prediction import Model, Prediction, Velocity
from sdekit.process import Process


@dataclass(frozen=True, kw_only=True)
class TrigFlow(Process):
    """The angle as time: alpha = cos t, sigma = sin t. Its velocity is the v-prediction.

    Reference: Lu & Song 2025 (arXiv 2410.11081), section 3.
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.cos(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sin(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return -torch.sin(t), torch.cos(t)

    def time(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam))


class Turned:
    """A model of any process as a model of `TrigFlow`, on the interval of angles that its times cover."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.calls = getattr(model, "calls", 1)
        self.times = torch.linspace(model.process.t_min, model.process.t_max, 257, dtype=torch.float64)
        self.angles = angle(model.process, self.times)
        self.process: Process = TrigFlow(t_min=float(self.angles[0]), t_max=float(self.angles[-1]))

    def time(self, theta: Tensor) -> Tensor:
        """Return the model's own time at the angle `theta`, 0-d, by false position between neighbours in a table.

        (`Process.time` may be a bisection, which takes ten times as many calls of alpha and sigma.)

        Reference: Dowell & Jarratt 1971, "A modified regula falsi method for computing the root of an equation".
        """
        k = int(torch.searchsorted(self.angles, theta).clamp(1, len(self.angles) - 1))
        low, high = self.times[k - 1], self.times[k]
        below, above = self.angles[k - 1] - theta, self.angles[k] - theta
        if below >= 0 or above <= 0:  # an end, up to rounding: beyond it the model must not be asked
            return low if below >= 0 else high
        moved = 0
        for _ in range(60):
            t = (low * above - high * below) / (above - below)
            gap = angle(self.model.process, t) - theta
            if abs(gap) <= 1e-13 * theta:
                break
            if gap < 0:  # the end that stays a second time counts half
                low, below, above, moved = t, gap, above / 2 if moved < 0 else above, -1
            else:
                high, above, below, moved = t, gap, below / 2 if moved > 0 else below, 1
        return t

    def scale(self, t: Time) -> Tensor:
        """Return s = sqrt(alpha^2 + sigma^2) at the model's own time `t`."""
        return torch.hypot(self.model.process.alpha(t), self.model.process.sigma(t))

    def __call__(self, y: Tensor, theta: Time, /) -> Prediction:
        """Predict the velocity v / s at the states `y` and the angle `theta`, 0-d."""
        t = self.time(as_time(theta))
        s = like(self.scale(t), y)
        prediction = self.model(s * y, t)
        if torch.is_grad_enabled() and y.requires_grad:  # the state's own part of v would hide a lost graph
            require_graph(prediction.answer)
        return Prediction(self.process, y, as_time(theta), prediction.v / s, Velocity())


def angle(process: Process, t: Time) -> Tensor:
    """Return theta = atan2(sigma, alpha) at the times `t` of a process."""
    return torch.atan2(process.sigma(t), process.alpha(t))


@dataclass(frozen=True)
class Angular(Grid):
    """Evenly spaced in the cube root of the angle atan2(sigma, alpha): finer towards the data, finite on every process.

    For log-likelihoods, whose error comes from where the data's details appear; the power is chosen by measurement.

    Raises:
        ValueError: steps is below 1.

    >>> from sdekit import VP
    >>> [round(t, 3) for t in Angular(3)(VP()).tolist()]
    [1.0, 0.194, 0.043, 0.001]
    """

    steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"steps must be a whole number of at least 1; got {self.steps!r}.")

    def times(self, process: Process) -> Tensor:
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        first, last = angle(process, ends) ** (1 / 3)
        inner = torch.lerp(first, last, torch.arange(1, self.steps, dtype=torch.float64) / self.steps) ** 3
        return torch.cat([ends[:1], process.time(-inner.tan().log()), ends[1:]])
