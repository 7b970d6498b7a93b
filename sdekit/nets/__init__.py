"""Small networks that answer net(x, t, label): to train on, to test with, to start from."""

from __future__ import annotations

from sdekit.nets.mlp import MLP
from sdekit.nets.unet import UNet

__all__ = ["MLP", "UNet"]
