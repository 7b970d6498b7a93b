"""The samplers of the suites: sdekit's own, and those of other libraries at their usual and at their best settings."""

from __future__ import annotations

from sdekit.grid import Beta, Denoised, Landed, LogSNR
from sdekit.interop import Diffusers, Torchdiffeq, Torchsde
from sdekit.methods import DAMPED_ADAMS, DDIM, DDPM, HEUN, DPMpp2M, method
from sdekit.study import Contender, Sampler, Tuned

EVEN = Denoised(LogSNR(1))
"""Even steps in the log-SNR, and the clean end: the grid of most papers."""

OURS: dict[str, Contender] = {
    "sdekit tuned": Tuned(DAMPED_ADAMS, Landed(Beta(1))),
    "sdekit default": Sampler(DAMPED_ADAMS, Landed(Beta(1))),
    "sdekit DDIM": Sampler(DDIM, EVEN),
    "sdekit DPM++ 2M": Sampler(DPMpp2M, EVEN),
    "sdekit UniPC-3": Sampler(method("unipc-3"), EVEN),
    "sdekit exponential-3": Sampler(method("exponential-3"), EVEN),
    "sdekit Heun": Sampler(HEUN, EVEN),
    "sdekit DDPM": Sampler(DDPM, EVEN),
    "sdekit DPM++ 2M SDE": Sampler(method("dpm++2m-sde"), EVEN),
}
"""Ours, the last two stochastic."""

KARRAS = ("use_karras_sigmas", True)
EXPONENTIAL = ("use_exponential_sigmas", True)

DIFFUSERS: dict[str, Contender] = {
    "diffusers DDIM": Diffusers("DDIM", {"timestep_spacing": "trailing"}),
    "diffusers DPM++ 2M": Diffusers("DPMSolverMultistep"),
    "diffusers DPM++ 2M Karras": Diffusers("DPMSolverMultistep", (KARRAS,)),
    "diffusers DPM++ 2M log-SNR": Diffusers("DPMSolverMultistep", (EXPONENTIAL,)),
    "diffusers DPM++ 3M log-SNR": Diffusers("DPMSolverMultistep", (EXPONENTIAL, ("solver_order", 3))),
    "diffusers DPM++ 2S log-SNR": Diffusers("DPMSolverSinglestep", (EXPONENTIAL,)),
    "diffusers UniPC-2": Diffusers("UniPC"),
    "diffusers UniPC-3 log-SNR": Diffusers("UniPC", (EXPONENTIAL, ("solver_order", 3))),
    "diffusers DEIS-3": Diffusers("DEIS", {"solver_order": 3}),
    "diffusers Heun Karras": Diffusers("Heun", (KARRAS,)),
    "diffusers LMS Karras": Diffusers("LMS", (KARRAS,)),
    "diffusers PNDM": Diffusers("PNDM", {"skip_prk_steps": True}),
    "diffusers IPNDM": Diffusers("IPNDM"),
    "diffusers Euler a": Diffusers("EulerAncestral", {"timestep_spacing": "trailing"}),
    "diffusers DPM++ 2M SDE Karras": Diffusers("DPMSolverMultistep", (("algorithm_type", "sde-dpmsolver++"), KARRAS)),
    "diffusers SA-Solver": Diffusers("SASolver"),
}
"""Those of diffusers on a table, the last three stochastic."""

OTHERS: dict[str, Contender] = {
    "torchdiffeq rk4": Torchdiffeq("rk4", LogSNR(1)),
    "torchdiffeq dopri5": Torchdiffeq("dopri5"),
    "torchsde srk": Torchsde("srk", LogSNR(1)),
}
"""General solvers of differential equations, on the flow or on the reverse SDE."""


_LEFT_OUT = {"sdekit Heun", "sdekit DDPM"} | {
    f"diffusers {name}"
    for name in ("DPM++ 2M", "DPM++ 3M log-SNR", "DPM++ 2S log-SNR", "LMS Karras", "PNDM", "IPNDM", "SA-Solver")
}

FEW: dict[str, Contender] = {label: c for label, c in (OURS | DIFFUSERS).items() if label not in _LEFT_OUT}
"""Sixteen for models that take their time: all but those that others of their kind surpass on the digits."""
