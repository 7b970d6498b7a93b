"""Samplers of other libraries as contenders: the same model, starts and budget, driven as their users drive them."""

from sdekit.interop.diffusers import Diffusers
from sdekit.interop.torchdiffeq import Torchdiffeq
from sdekit.interop.torchsde import Torchsde

__all__ = ["Diffusers", "Torchdiffeq", "Torchsde"]
