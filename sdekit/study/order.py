"""How fast a sampler converges: its order, measured against what is known exactly."""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sdekit.equation import ProbabilityFlow
from sdekit.grid import Grid, LogSNR
from sdekit.methods import Method
from sdekit.oracle import Gaussian, GaussianMixture
from sdekit.plan import law, marginal, trace
from sdekit.prediction import Model
from sdekit.process import Process
from sdekit.sample import solve


@torch.no_grad()
def exact_flow(model: Model, x: Tensor, t: float, s: float, tolerance: float = 1e-11) -> Tensor:
    """Return where the probability flow takes the states `x` from time t to time s, by scipy's DOP853 in the angle.

    Args:
        model: any model that answers in float64.
        x: states, shape (B, ...), float64.
        t: the time of `x`.
        s: the time to reach, within the process.
        tolerance: relative, and absolute on states scaled by (alpha^2 + sigma^2)^(-1/2).

    Raises:
        RuntimeError: the integrator gave up.

    Reference: Hairer, Norsett & Wanner 1993, section II.5.
    """
    process = model.process
    scale_t, scale_s = (torch.hypot(process.alpha(end), process.sigma(end)) for end in (t, s))

    def rate(theta: float, flat: np.ndarray) -> np.ndarray:
        time = process.time(-torch.tensor(theta, dtype=torch.float64).tan().log()).clamp(process.t_min, process.t_max)
        scale = torch.hypot(process.alpha(time), process.sigma(time))
        state = torch.from_numpy(flat.reshape(x.shape))
        turning: np.ndarray = (model(scale * state, time).v / scale).flatten().numpy()
        return turning

    ends = float(process.angle(t)), float(process.angle(s))
    found = solve_ivp(rate, ends, (x / scale_t).flatten().numpy(), method="DOP853", rtol=tolerance, atol=tolerance)
    if not found.success:
        raise RuntimeError(f"The exact flow from t={t:g} to {s:g} was not found: {found.message} Loosen the tolerance.")
    return torch.from_numpy(found.y[:, -1].copy()).reshape(x.shape) * scale_s


def ring(process: Process) -> GaussianMixture:
    """Return five Gaussians of standard deviation 0.4 on an ellipse in the plane, in float64."""
    angles = torch.arange(5, dtype=torch.float64) * (2 * math.pi / 5)
    return GaussianMixture(process, torch.stack([angles.cos(), 0.6 * angles.sin()], 1), 0.4)


def measured_order(
    method: Method, process: Process, steps: tuple[int, int] = (64, 128), grid: type[Grid] = LogSNR
) -> float:
    """Return the order of convergence of a method on a process: the slope of log error over log steps.

    On the probability flow the error is that of states, on a ring of five Gaussians, against the exact flow. On the
    reverse SDE it is that of their law: the exact Wasserstein-2 distance to N(0.7, 0.25) seen through noise, which
    needs no sample (weak order; the noise must enter linearly).

    The process is run from lam = -1 to 1.5 only: there no step is spared its error, as the first steps from pure noise
    are, so that few steps show the order and a poor start shows too.

    Args:
        method: the equation and the solver.
        process: the forward process.
        steps: two numbers of steps.
        grid: where they fall; smooth in what the method integrates over.

    >>> from sdekit import HEUN, VP
    >>> round(measured_order(HEUN, VP()), 1)
    2.0
    """
    ends = {"t_min": float(process.time(1.5)), "t_max": float(process.time(-1.0))}
    middle = dataclasses.replace(process, **ends)
    errors = [error(method, middle, grid(n)) for n in steps]  # type: ignore[call-arg]
    return math.log(errors[0] / errors[1]) / math.log(steps[1] / steps[0])


@torch.no_grad()
def error(method: Method, process: Process, grid: Grid) -> float:
    """Return the error of one run on the problems of `measured_order`: root of the mean square, or distance of laws."""
    times = grid(process).tolist()
    if isinstance(method.equation, ProbabilityFlow):
        start, end = _flow(process, times[0], times[-1])
        return float((solve(ring(process), start, method, grid).x - end).square().mean().sqrt())
    data = Gaussian(process, torch.tensor([0.7], dtype=torch.float64), 0.5)
    outcome = law(trace(method, process, grid), data, marginal(data, times[0]))
    return float(outcome.w2(marginal(data, times[-1])))


@lru_cache(maxsize=64)
def _flow(process: Process, t: float, s: float) -> tuple[Tensor, Tensor]:
    model, generator = ring(process), torch.Generator().manual_seed(0)
    x0 = model.sample(8, generator)
    x = process.perturb(x0, t, torch.randn(x0.shape, generator=generator, dtype=x0.dtype))
    return x, exact_flow(model, x, t, s)
