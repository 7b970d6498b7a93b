"""How schedulers of diffusers are driven: what their timesteps mean, and in which words they want the answer."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from sdekit.prediction import Model, Preconditioned
from sdekit.process import EDM, VE, Discrete, Process, RectifiedFlow

ON_TABLES = {
    "DDIM": "DDIMScheduler",
    "DDPM": "DDPMScheduler",
    "DEIS": "DEISMultistepScheduler",
    "DPMSolverMultistep": "DPMSolverMultistepScheduler",
    "DPMSolverSDE": "DPMSolverSDEScheduler",
    "DPMSolverSinglestep": "DPMSolverSinglestepScheduler",
    "Euler": "EulerDiscreteScheduler",
    "EulerAncestral": "EulerAncestralDiscreteScheduler",
    "Heun": "HeunDiscreteScheduler",
    "KDPM2": "KDPM2DiscreteScheduler",
    "KDPM2Ancestral": "KDPM2AncestralDiscreteScheduler",
    "LMS": "LMSDiscreteScheduler",
    "PNDM": "PNDMScheduler",
    "SASolver": "SASolverScheduler",
    "UniPC": "UniPCMultistepScheduler",
}
ON_FLOWS = {"FlowMatchEuler": "FlowMatchEulerDiscreteScheduler", "FlowMatchHeun": "FlowMatchHeunDiscreteScheduler"}
IN_SIGMAS = {
    "CosineDPMSolver": "CosineDPMSolverMultistepScheduler",
    "EDMDPMSolver": "EDMDPMSolverMultistepScheduler",
    "EDMEuler": "EDMEulerScheduler",
}
ON_A_CIRCLE = {"IPNDM": "IPNDMScheduler"}
SCHEDULERS = ON_TABLES | ON_FLOWS | IN_SIGMAS | ON_A_CIRCLE
"""The classes in diffusers by their short names."""

NODES = 1000
"""Entries of the table that is made of a process in continuous time, as many as networks are usually trained on."""


@dataclass(frozen=True, eq=False)
class Drive(ABC):
    """A scheduler on a process.

    Args:
        scheduler: the scheduler.
        process: the process.
    """

    scheduler: Any
    process: Process

    @abstractmethod
    def places(self, timesteps: Tensor) -> Tensor:
        """Return the times of the process that the timesteps stand for, float64."""

    @abstractmethod
    def output(self, model: Model, x: Tensor, scaled: Tensor, t: Tensor) -> Tensor:
        """Return what the scheduler wants to be told of the state `x`, `scaled` as it asks for, at the time `t`."""

    def times(self) -> list[Tensor]:
        """Return the times at which the network is asked, one for each timestep."""
        found = self.places(torch.as_tensor(self.scheduler.timesteps, dtype=torch.float64))
        return list(found.clamp(self.process.t_min, self.process.t_max))


class _OnCircle(Drive):
    """The state is x / n with n = hypot(alpha, sigma), and the answer v / n."""

    def output(self, model: Model, x: Tensor, scaled: Tensor, t: Tensor) -> Tensor:
        size = float(torch.hypot(self.process.alpha(t), self.process.sigma(t)))
        return model(scaled * size, t).v / size

    def places(self, timesteps: Tensor) -> Tensor:
        return self.process.time(-(timesteps * (torch.pi / 2)).tan().log())


class _OnTable(_OnCircle):
    """Timesteps are indices of a table, also in between."""

    def places(self, timesteps: Tensor) -> Tensor:
        return _node(self.process, timesteps)


class _OnFlow(Drive):
    """Timesteps are 1000 sigma, the answer is the velocity eps - x0."""

    def output(self, model: Model, x: Tensor, scaled: Tensor, t: Tensor) -> Tensor:
        return model(x, t).velocity

    def places(self, timesteps: Tensor) -> Tensor:
        return timesteps / float(self.scheduler.config.num_train_timesteps)


class _InSigmas(Drive):
    """The state is x0 + sigma eps, the answer that of a network preconditioned as in EDM, or its negative."""

    def output(self, model: Model, x: Tensor, scaled: Tensor, t: Tensor) -> Tensor:
        config = self.scheduler.config
        sign = -1 if config.prediction_type == "v_prediction" else 1
        return sign * model(x, t).view(Preconditioned(config.sigma_data))

    def places(self, timesteps: Tensor) -> Tensor:
        sigmas: Tensor = self.scheduler.sigmas[: len(timesteps)]
        return self.process.time(-sigmas.double().log())


def library(name: str) -> str:
    """Return the name of a library and its version, for the rows."""
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return f"{name}, which is not installed"


def drive(name: str, kind: Any, process: Process, options: dict[str, Any]) -> Drive:
    """Return a scheduler made for a process.

    Args:
        name: of `SCHEDULERS`.
        kind: its class.
        process: the process.
        options: the arguments that are not about the process.

    Raises:
        ValueError: it is made for another kind of process.
    """
    straight, exploding = isinstance(process, RectifiedFlow), isinstance(process, EDM | VE)
    if name in ON_FLOWS and straight:
        return _OnFlow(kind(**options), process)
    if name in IN_SIGMAS and exploding:
        ends = [float(process.sigma(torch.tensor(t, dtype=torch.float64))) for t in (process.t_min, process.t_max)]
        return _InSigmas(kind(**{"sigma_min": ends[0], "sigma_max": ends[1]} | options), process)
    if name in ON_A_CIRCLE and not (straight or exploding):
        return _OnCircle(kind(**options), process)
    if name in ON_TABLES and straight and "use_flow_sigmas" in inspect.signature(kind.__init__).parameters:
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        return _OnFlow(kind(**flow | options), process)
    if name in ON_TABLES and not (straight or exploding):
        return _OnTable(_tabled(kind, process, options), process)
    fits = [*(ON_FLOWS if straight else IN_SIGMAS if exploding else (ON_TABLES | ON_A_CIRCLE))]
    raise ValueError(f"{name} is not made for {process}. Of diffusers' schedulers these are: {', '.join(fits)}.")


def _tabled(kind: Any, process: Process, options: dict[str, Any]) -> Any:
    """Return a scheduler on the table of a process: alpha^2 / (alpha^2 + sigma^2) at its nodes."""
    steps = process.steps if isinstance(process, Discrete) else NODES
    t = _node(process, torch.arange(steps, dtype=torch.float64))
    shares = torch.sigmoid(2 * process.lam(t))
    if not bool((shares.diff() < 0).all()) or not 0 < float(shares[-1]) < float(shares[0]) < 1:
        raise ValueError(f"A table must go from some noise to some signal; {process} does not. Move its ends inwards.")
    betas = 1 - shares / torch.cat([shares.new_ones(1), shares[:-1]])
    table = {"num_train_timesteps": steps, "trained_betas": betas.tolist(), "prediction_type": "v_prediction"}
    scheduler = kind(**table | options)
    scheduler.alphas_cumprod = shares  # what it has made of the betas in float32 keeps four digits of a small sigma
    return scheduler


def _node(process: Process, index: Tensor) -> Tensor:
    """Return the time of an index of the table, counted from 0."""
    if isinstance(process, Discrete):
        return process.node(index)
    return process.t_min + (process.t_max - process.t_min) * index / (NODES - 1)
