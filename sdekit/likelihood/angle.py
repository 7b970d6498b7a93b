r"""Coordinates in which every process is the same flow.

With s = sqrt(alpha^2 + sigma^2), the state y = x / s in the angle theta = atan2(sigma, alpha) is

    y = cos(theta) x0 + sin(theta) eps,          dy / dtheta = cos(theta) eps - sin(theta) x0 = v / s

How a process spends its time and how it scales its states drop out, and with them its infinities: theta is finite where
alpha or sigma vanishes. Log-likelihoods are integrated here; a change of scale adds d log s to a log-density, no more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time, like
from sdekit.likelihood.trace import require_graph
from sdekit.prediction import Model, Prediction, Velocity
from sdekit.process import Process, TrigFlow


class Turned:
    """A model of any process as a model of `TrigFlow`, on the interval of angles that its times cover."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.calls = getattr(model, "calls", 1)
        process = model.process
        self.process: Process = TrigFlow(
            t_min=float(process.angle(process.t_min)), t_max=float(process.angle(process.t_max))
        )

    def time(self, theta: Tensor) -> Tensor:
        """Return the model's own time at the angle `theta`."""
        process = self.model.process
        # there and back again may miss the ends by rounding, and beyond them the model must not be asked
        times: Tensor = process.time(self.process.lam(theta)).clamp(process.t_min, process.t_max)
        return times

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
