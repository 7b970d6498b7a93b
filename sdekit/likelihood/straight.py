r"""Coordinates in which every process is the same straight path.

With the state y = x / (alpha + sigma) and the time tau = sigma / (alpha + sigma),

    y = (1 - tau) x0 + tau eps,          dy / dtau = eps - x0 = u,          grad log p_tau(y) = -(y + (1 - tau) u) / tau

How a process spends its time and how it scales its states drop out, and with them its infinities. Log-likelihoods are
integrated here. The state at the noise level r = sigma / alpha starts at y = (1 - tau) x, so that

    log p_r(x) = log p_tau((1 - tau) x) + d log(1 - tau)

is the density at x of data with noise of standard deviation r on it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time, like
from sdekit.likelihood.trace import require_graph
from sdekit.prediction import Model, Prediction, Velocity, calls
from sdekit.process import Process, RectifiedFlow

EDGE = 1e-6
"""How near to data and to noise the path of an exact model goes."""


@runtime_checkable
class Everywhere(Protocol):
    """A model that can be asked at every noise level, whatever its process, as an oracle can."""

    def on(self, process: Process, /) -> Model:
        """Return the same law of data seen through another process."""


class Straight:
    """A model of any process as a model of `RectifiedFlow`: over its own noise levels, or over all if it knows them.

    Attributes:
        process: the straight path, from tau at the model's t_min to tau at its t_max.
        own: whether these are the model's own ends.
    """

    predicts = Velocity()

    def __init__(self, model: Model) -> None:
        self.own = not isinstance(model, Everywhere)
        if isinstance(model, Everywhere):
            self.process: Process = RectifiedFlow(t_min=EDGE, t_max=1 - EDGE)
            self.model = model.on(self.process)
        else:
            self.model = model
            self.process = RectifiedFlow(t_min=self.place(model.process.t_min), t_max=self.place(model.process.t_max))
        self.calls = calls(model)

    def calls_at(self, tau: Time, /) -> int:
        """Return the network calls of one prediction at tau."""
        return calls(self.model, self.time(tau)) if hasattr(self.model, "calls_at") else self.calls

    def place(self, t: Time) -> float:
        """Return tau = sigma / (alpha + sigma) at the model's own time `t`."""
        alpha, sigma = self.model.process.alpha(t), self.model.process.sigma(t)
        return float(sigma / (alpha + sigma))

    def time(self, tau: Time) -> Tensor:
        """Return the model's own time at `tau`."""
        process, place = self.model.process, as_time(tau)
        if not self.own:
            return place
        # there and back again may miss the ends by rounding, and beyond them the model must not be asked
        times: Tensor = process.time(torch.log1p(-place) - torch.log(place)).clamp(process.t_min, process.t_max)
        return times

    def __call__(self, y: Tensor, tau: Time, /) -> Prediction:
        """Predict the velocity u at the states `y` and `tau`, 0-d."""
        tau = as_time(tau)
        if not self.own:
            return self.model(y, tau)
        t = self.time(tau)
        scale = self.model.process.alpha(t) + self.model.process.sigma(t)
        prediction = self.model(like(scale, y) * y, t)
        if torch.is_grad_enabled() and y.requires_grad:  # the state's own part of u would hide a lost graph
            require_graph(prediction.answer)
        return Prediction(self.process, y, tau, prediction.mix((-1.0, 1.0, 1.0)), Velocity())
