"""Integrators that choose their own steps, on torchdiffeq."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.likelihood.curve import score
from sdekit.likelihood.integrate import Flow, Integral, Integrator, check
from sdekit.likelihood.trace import Estimates


@dataclass(frozen=True)
class Adaptive(Integrator):
    """A Runge-Kutta pair of torchdiffeq with step control; see its subclasses.

    A step is accepted if for every sample the error estimated for its coordinates, and for its log-determinant, is at
    most atol + rtol |value| in the root mean square. Over a run the errors add up: from 1 to 500 times the tolerance
    were measured. The steps are shared by the batch, so a sample's value depends on its batch, by no more than that;
    where it matters use `FixedGrid`. The states are held in float64.

    Random probes are held fixed along the path: with new ones at every evaluation the integrand would be noise, whose
    error estimate no step can bring down. But then their errors add up instead of averaging out; with random probes
    prefer `FixedGrid`.

    Args:
        rtol: relative tolerance per step.
        atol: absolute tolerance per step, in units of states of unit variance, and in nats.
        max_nfe: the network calls after which to give up.

    Raises:
        ValueError: a tolerance is not positive, or max_nfe is below 1.

    Reference: Hairer, Norsett & Wanner 1993, section II.4 for the step control.
    """

    rtol: float = 1e-6
    atol: float = 1e-6
    max_nfe: int = 10_000

    _method: ClassVar[str]

    def __post_init__(self) -> None:
        if not (0 < self.rtol < math.inf and 0 < self.atol < math.inf):
            raise ValueError(f"Tolerances must be positive and finite; got rtol={self.rtol}, atol={self.atol}.")
        if not isinstance(self.max_nfe, int) or self.max_nfe < 1:
            raise ValueError(f"max_nfe must be a whole number of at least 1; got {self.max_nfe!r}.")

    def __call__(self, flow: Flow, start: Tensor) -> Integral:
        """Go from the first tau to the last.

        Raises:
            FloatingPointError: the velocity or its divergence is not finite; the message names the time and samples.
            RuntimeError: the steps became too small, or max_nfe was reached.
        """
        from torchdiffeq import odeint  # only here: it takes long to import

        process, device = flow.process, start.device
        ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64, device=device)
        at = ends[0].cpu()

        def slope(tau: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            nonlocal at
            # on the CPU, where times are checked; the search for the first step may look past the end
            at = tau.detach().cpu().clamp(process.t_min, process.t_max)
            if flow.nfe >= self.max_nfe:
                raise RuntimeError(self._stuck(flow, at, f"{flow.nfe} network calls were made"))
            u, traces = flow(state[0], at, 0)
            check(flow, float(at), u, traces.forms)
            return u, _values(traces).T

        first, traces = flow(start, at, 0)
        try:
            y, divergence = odeint(
                slope,
                (start, torch.zeros_like(_values(traces).T)),
                ends,
                rtol=self.rtol,
                atol=self.atol,
                method=self._method,
                options={"norm": _worst, "step_t": ends[1:]},  # step_t: the last step ends at the end
            )
        except AssertionError as error:
            raise RuntimeError(self._stuck(flow, at, str(error))) from error
        value, stderr = flow.trace.integral(torch.ones(1).to(divergence), divergence[-1:].mT, start[0].numel())
        return Integral(
            end=y[-1],
            value=value,
            stderr=stderr,
            error=torch.full_like(stderr, torch.nan),
            first=_values(traces).mean(0),
            score=score(start, first, process.t_min),
        )

    def _stuck(self, flow: Flow, at: Tensor, why: str) -> str:
        return (
            f"{type(self).__name__} must reach t_max within max_nfe={self.max_nfe} network calls, in steps that "
            f"float64 can represent; at t={float(flow.straight.time(at)):.6g}, {why}. Loosen rtol and atol to what "
            "the precision of the model allows, evaluate it in float64, or use FixedGrid()."
        )


def _values(traces: Estimates) -> Tensor:
    return traces.forms if traces.control is None else traces.forms - traces.control


def _worst(state: tuple[Tensor, Tensor]) -> Tensor:
    """The largest root mean square of a sample's entries, so that no sample hides in the mean of its batch.

    Without a graph: steps are not to be differentiated, nor the square root of zero.
    """
    squares = [part.detach().reshape(len(part), -1).square().mean(1).max() for part in state]
    return torch.stack(squares).max().sqrt()


@dataclass(frozen=True)
class Dopri5(Adaptive):
    """Order 5, 6 network calls a step: see `Adaptive`. Reference: Dormand & Prince 1980."""

    _method = "dopri5"


@dataclass(frozen=True)
class Dopri8(Adaptive):
    """Order 8, 13 network calls a step, the cheapest below errors of 1e-5: see `Adaptive`.

    Reference: Prince & Dormand 1981.
    """

    _method = "dopri8"


@dataclass(frozen=True)
class Bosh3(Adaptive):
    """Order 3, 3 network calls a step: see `Adaptive`. Reference: Bogacki & Shampine 1989."""

    _method = "bosh3"


@dataclass(frozen=True)
class AdaptiveHeun(Adaptive):
    """Order 2, 2 network calls a step, Heun's method with Euler's in it: see `Adaptive`."""

    _method = "adaptive_heun"
