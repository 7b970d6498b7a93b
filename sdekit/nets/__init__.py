"""Small networks that answer net(x, t, label, context): to train on, to test with, to start from."""

from __future__ import annotations

from sdekit.nets.dit import DiT, Transformer
from sdekit.nets.inputs import Fourier, Inputs, Sinusoidal, TimeFeatures
from sdekit.nets.mlp import MLP
from sdekit.nets.outside import Outside
from sdekit.nets.unet import Stage, UNet

__all__ = [
    "MLP",
    "DiT",
    "Fourier",
    "Inputs",
    "Outside",
    "Sinusoidal",
    "Stage",
    "TimeFeatures",
    "Transformer",
    "UNet",
]
