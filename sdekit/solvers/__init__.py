"""Solvers: how one step from t to s is made. Pure and frozen; equation and grid are somebody else's."""

from sdekit.solvers.base import Solver, Step
from sdekit.solvers.churn import Churn, Restart
from sdekit.solvers.corrected import Corrected, CorrectedNoise
from sdekit.solvers.damped import DampedAdams
from sdekit.solvers.dpm import DPMMultistep, DPMMultistepHeun, DPMppMultistep, DPMppMultistepHeun
from sdekit.solvers.dpm_singlestep import (
    DPMInterleaved,
    DPMInterleavedHeun,
    DPMppInterleaved,
    DPMppInterleavedHeun,
    DPMppSinglestep,
    DPMSinglestep,
)
from sdekit.solvers.er import ER
from sdekit.solvers.exponential import Ancestral, AncestralLarge, Exponential, ExponentialRK
from sdekit.solvers.langevin import Langevin, NormLangevin
from sdekit.solvers.learned import LearnedVariance, WithVariance
from sdekit.solvers.level import Between, Constant, Level, NoiseScale, VaryingSDE
from sdekit.solvers.limited import LimitedAdams
from sdekit.solvers.multistep import IPNDM, Multistep, OneStep, PseudoHeun, PseudoRungeKutta, Ramp
from sdekit.solvers.path import DATA, NOISE, STRAIGHT, InLam, InTime, Mix, Turn
from sdekit.solvers.runge_kutta import (
    RK4,
    Euler,
    EulerMaruyama,
    Heun,
    InPath,
    Midpoint,
    Ralston,
    RungeKutta,
    Tableau,
)
from sdekit.solvers.sa import SA, TruncatedSA
from sdekit.solvers.seeds import SEEDS
from sdekit.solvers.sra import SRA1
from sdekit.solvers.unipc import UniP, UniPC, UniPLinear, UniPNoise, UniPNoiseLinear

__all__ = [
    "DATA",
    "ER",
    "IPNDM",
    "NOISE",
    "RK4",
    "SA",
    "SEEDS",
    "SRA1",
    "STRAIGHT",
    "Ancestral",
    "AncestralLarge",
    "Between",
    "Churn",
    "Constant",
    "Corrected",
    "CorrectedNoise",
    "DPMInterleaved",
    "DPMInterleavedHeun",
    "DPMMultistep",
    "DPMMultistepHeun",
    "DPMSinglestep",
    "DPMppInterleaved",
    "DPMppInterleavedHeun",
    "DPMppMultistep",
    "DPMppMultistepHeun",
    "DPMppSinglestep",
    "DampedAdams",
    "Euler",
    "EulerMaruyama",
    "Exponential",
    "ExponentialRK",
    "Heun",
    "InLam",
    "InPath",
    "InTime",
    "Langevin",
    "LearnedVariance",
    "Level",
    "LimitedAdams",
    "Midpoint",
    "Mix",
    "Multistep",
    "NoiseScale",
    "NormLangevin",
    "OneStep",
    "PseudoHeun",
    "PseudoRungeKutta",
    "Ralston",
    "Ramp",
    "Restart",
    "RungeKutta",
    "Solver",
    "Step",
    "Tableau",
    "TruncatedSA",
    "Turn",
    "UniP",
    "UniPC",
    "UniPLinear",
    "UniPNoise",
    "UniPNoiseLinear",
    "VaryingSDE",
    "WithVariance",
]
