"""Runs whose steps are chosen on the way: embedded exponential pairs for every sample by itself, and two libraries."""

from sdekit.adaptive.coordinates import AlongAngle, AlongLam, AlongTime, Coordinate
from sdekit.adaptive.embedded import Embedded
from sdekit.adaptive.ode import FixedOde, Ode, TorchDiffEq, TorchDiffEqFixed
from sdekit.adaptive.outcome import Adapted, Control, Status
from sdekit.adaptive.paths import AnswerPath, OnData, OnNoise, OnVelocity
from sdekit.adaptive.run import adapt, encode_adaptively, sample_adaptively
from sdekit.adaptive.sde import Sde, TorchSDE, TorchSDEAdaptive

__all__ = [
    "Adapted",
    "AlongAngle",
    "AlongLam",
    "AlongTime",
    "AnswerPath",
    "Control",
    "Coordinate",
    "Embedded",
    "FixedOde",
    "Ode",
    "OnData",
    "OnNoise",
    "OnVelocity",
    "Sde",
    "Status",
    "TorchDiffEq",
    "TorchDiffEqFixed",
    "TorchSDE",
    "TorchSDEAdaptive",
    "adapt",
    "encode_adaptively",
    "sample_adaptively",
]
