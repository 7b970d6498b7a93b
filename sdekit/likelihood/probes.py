"""Laws of random probes, keyed by the samples themselves."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.noise import hashed, normals


class Probe(Value, ABC):
    """The law of a probe u: zero mean and E[u u'] = I, so that E[u' J u] is the divergence."""

    @abstractmethod
    def __call__(self, samples: Tensor, key: tuple[int, ...], size: int) -> Tensor:
        """Return a probe of `size` numbers for each sample's word, shape (B, size), in float64."""


@dataclass(frozen=True)
class Rademacher(Probe):
    """Random signs, of all laws with independent entries the one with the least variance, sum_{i<j} (J_ij + J_ji)^2.

    Reference: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix", proposition 1.
    """

    def __call__(self, samples: Tensor, key: tuple[int, ...], size: int) -> Tensor:
        return signs(samples, key, size)


@dataclass(frozen=True)
class Normals(Probe):
    """Independent standard normal numbers; against signs, the diagonal of J adds 2 sum_i J_ii^2 to the variance."""

    def __call__(self, samples: Tensor, key: tuple[int, ...], size: int) -> Tensor:
        return normals(samples, key, size)


@dataclass(frozen=True)
class Sphere(Probe):
    """A direction uniform on the sphere, of length sqrt(d): normal numbers without the scatter of their length.

    Reference: Hutchinson 1990 for the class; Girard 1989 for normal and spherical probes.
    """

    def __call__(self, samples: Tensor, key: tuple[int, ...], size: int) -> Tensor:
        z = normals(samples, key, size)
        lengths: Tensor = torch.linalg.vector_norm(z, dim=1, keepdim=True)
        return z * (math.sqrt(size) / lengths)


def signs(samples: Tensor, key: tuple[int, ...], size: int) -> Tensor:
    """Return random signs, 64 from a word: shape (B, size), float64."""
    words = hashed(samples, key, (size + 63) // 64)
    bits = (words[..., None] >> torch.arange(64, device=words.device)) & 1
    return (2 * bits - 1).flatten(1)[:, :size].to(torch.float64)
