"""Forward processes x_t = alpha(t) x0 + sigma(t) eps: two functions of time, and everything that follows from them."""

from sdekit.process.base import Normal, Process
from sdekit.process.discrete import Discrete
from sdekit.process.drift import FromDrift
from sdekit.process.named import EDM, VE, VP, Cosine, RectifiedFlow, SubVP, TrigFlow

__all__ = [
    "EDM",
    "VE",
    "VP",
    "Cosine",
    "Discrete",
    "FromDrift",
    "Normal",
    "Process",
    "RectifiedFlow",
    "SubVP",
    "TrigFlow",
]
