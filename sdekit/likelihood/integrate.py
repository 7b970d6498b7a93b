"""What goes from data to noise on the straight path, and looks at the model on the way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time
from sdekit._value import Value
from sdekit.equation import ProbabilityFlow
from sdekit.grid import Grid, Quadratic, Reversed, Times
from sdekit.likelihood.control import Linear, linear, traces
from sdekit.likelihood.curve import Curve
from sdekit.likelihood.straight import Straight
from sdekit.likelihood.trace import Estimate, Estimates, Trace, combined, differentiated
from sdekit.methods import Method
from sdekit.oracle import Gaussian
from sdekit.prediction import Prediction, Velocity, calls
from sdekit.sample import solve
from sdekit.solvers import LimitedAdams, Solver


class Flow:
    """The model's velocity u on the straight path with estimates of its divergence, from one call of the model.

    Args:
        straight: the model, on the straight path.
        trace: how the divergence is found.
        x: the data of the run, by which random probes are keyed.
        control: the Gaussian of the data's moments, whose own divergence is known, or None.

    Attributes:
        nfe: the calls of the network so far.
        asked: how often the velocity was asked for.
    """

    def __init__(self, straight: Straight, trace: Trace, x: Tensor, control: Gaussian | None) -> None:
        self.straight, self.trace, self.control = straight, trace, control
        self.process = straight.process
        self.estimate: Estimate = trace.on(x)
        self.nfe = self.asked = 0

    def linear(self, tau: Tensor) -> Linear | None:
        """Return the control variate at tau."""
        return None if self.control is None else linear(self.control, tau)

    def __call__(self, y: Tensor, tau: Time, node: int) -> tuple[Tensor, Estimates]:
        """Return u at the states `y`, (B, ...), and estimates of its divergence."""
        self.nfe += calls(self.straight, tau)
        self.asked += 1
        control = self.linear(as_time(tau))
        return differentiated(
            lambda x: self.straight(x, tau).velocity,
            y,
            self.trace.chunk,
            lambda pull: self.estimate(pull, node, control),
        )


class Integral(NamedTuple):
    r"""What a path gives: \int div u dtau with all that goes with it, in nats, float64, shape (B,), and its end.

    Attributes:
        end: the states at the last tau, of the shape of the data.
        value: the integral of the divergence, and what the score makes good.
        stderr: the standard error of random probes.
        error: an estimate of the error of integration; NaN where there is none.
        first: the divergence at the first tau.
        score: the score there, of the shape of the data.
    """

    end: Tensor
    value: Tensor
    stderr: Tensor
    error: Tensor
    first: Tensor
    score: Tensor


class Integrator(Value, ABC):
    """How the path from data to noise is found."""

    @abstractmethod
    def __call__(self, flow: Flow, start: Tensor) -> Integral:
        """Go from the states `start` at the first tau, (B, ...), to the last."""


@dataclass(frozen=True)
class FixedGrid(Integrator):
    r"""Any solver of the probability flow on a grid, from data to noise.

    Every call of the network is a node where the divergence is found too, from the same call, and one more is made at
    the end. The integral is a quadrature through all nodes, and for an exact model what the states miss of the flow is
    made good by its score: see `curve`. Random probes are drawn anew at every node, so that their errors average out. A
    sample's value does not depend on its batch.

    Args:
        solver: a solver that is deterministic. The default makes one call a step: `LimitedAdams(0.5)` for an exact
            model, where what the limit costs is made good, and `LimitedAdams(4)` for a network, where it is not.
        grid: where the steps fall on the straight path, RectifiedFlow(tau_min, tau_max); the default is even in the
            root of tau, where the data's own scales are. Of a clean end nothing is taken.

    Raises:
        TypeError: the solver does not solve the probability flow.
    """

    solver: Solver | None = None
    grid: Grid = Quadratic(64)

    def __post_init__(self) -> None:
        if self.solver is not None and ProbabilityFlow not in self.solver.solves:
            raise TypeError(f"Likelihoods go along the probability flow, which {self.solver} does not solve.")

    def __call__(self, flow: Flow, start: Tensor) -> Integral:
        """Go from the first tau to the last.

        Raises:
            ValueError: the grid does not reach from one to the other.
            FloatingPointError: a state, a velocity or a divergence is not finite.
        """
        times, seen = self._times(flow), Recorder(flow)
        method = Method(ProbabilityFlow(), self.solver or LimitedAdams(4.0 if flow.straight.own else 0.5))
        end = solve(seen, start, method, Reversed(Times(tuple(times.tolist())))).x
        if float(times[0]) not in seen.nodes:  # the end is a node too
            seen(end, times[0])
        return integral(flow, seen, end)

    def _times(self, flow: Flow) -> Tensor:
        process = flow.process
        times = self.grid(process)
        times = times[times >= process.t_min]
        ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
        if not torch.allclose(times[[0, -1]], ends, rtol=0, atol=1e-9 * (process.t_max - process.t_min)):
            raise ValueError(
                f"The grid must reach from noise to data, tau from {process.t_max:g} to {process.t_min:g}; {self.grid} "
                f"goes from {float(times[0]):g} to {float(times[-1]):g}. Use one over the whole path: Quadratic(64)."
            )
        return times


class Node(NamedTuple):
    """Where the model was asked: the state, the velocity, and estimates of its divergence."""

    y: Tensor
    velocity: Tensor
    traces: Estimates


class Recorder:
    """The model of a flow, which remembers all that it was asked; of several questions at one tau the last."""

    predicts = Velocity()

    def __init__(self, flow: Flow) -> None:
        self.flow, self.process, self.calls = flow, flow.process, flow.straight.calls
        self.nodes: dict[float, Node] = {}
        self.asked = 0

    def __call__(self, y: Tensor, tau: Time, /) -> Prediction:
        """Predict u at the states `y` and tau, 0-d."""
        u, traces = self.flow(y, tau, self.asked)
        self.asked += 1
        check(self.flow, float(tau), u, traces.forms)
        self.nodes[float(tau)] = Node(y, u, traces)  # what is referred to, a run does not write into
        return Prediction(self.process, y, as_time(tau), u, Velocity())


def check(flow: Flow, tau: float, u: Tensor, traces: Tensor) -> None:
    """Raise FloatingPointError, which says where and in which samples, if the model's answer is not finite."""
    sums = u.detach().reshape(len(u), -1).sum(1).to(torch.float64) + traces.detach().sum(0)
    if not bool(sums.isfinite().all()):
        bad = (~sums.isfinite()).nonzero().flatten().tolist()
        raise FloatingPointError(
            f"The velocity and its divergence must stay finite; at t={float(flow.straight.time(tau)):.6g} (node "
            f"{flow.asked}), samples {bad[:8]} ({len(bad)} in all) are not. Look at the model's "
            "answer there, or move t_min and t_max inwards."
        )


def integral(flow: Flow, seen: Recorder, end: Tensor) -> Integral:
    """Return what the nodes of a path give."""
    taus = sorted(seen.nodes)
    nodes = [seen.nodes[t] for t in taus]
    found = _stacked([node.traces for node in nodes])
    random = flow.trace.random(end[0].numel())
    smooth = None if random else found.forms.mean(1).detach()
    if random and flow.control is not None:
        smooth = traces(flow.control, as_time(taus)).to(found.forms)[:, None]
    curve = Curve(
        torch.tensor(taus, dtype=torch.float64),
        torch.stack([node.y for node in nodes]).reshape(len(nodes), len(end), -1),
        torch.stack([node.velocity for node in nodes]).reshape(len(nodes), len(end), -1),
        smooth,
        trust=0.0 if flow.straight.own else 1.0,
    )
    weights = curve.weights()
    values = combined(weights, found)
    even = smooth[:, 0] if random and smooth is not None else torch.zeros_like(weights)  # no part of the noise
    noisy = values - even[:, None, None]
    value, stderr = flow.trace.integral(weights, noisy, curve.y.shape[2])
    if random:  # what neighbouring nodes leave of each other's noise depends on their weights
        stderr = torch.hypot(stderr, curve.change(noisy.detach().mean(1)))
    return Integral(
        end=nodes[-1].y.reshape(end.shape),
        value=value + weights @ even + curve.correction(),
        stderr=stderr,
        error=curve.error(),
        first=values[0].mean(0),
        score=curve.scores[0].reshape(end.shape),
    )


def _stacked(estimates: list[Estimates]) -> Estimates:
    controls = [one.control for one in estimates if one.control is not None]
    return Estimates(torch.stack([one.forms for one in estimates]), torch.stack(controls) if controls else None)
