"""Exact models, to hold everything else against: score, density and divergence of the flow, known at every time."""

from sdekit.oracle.covariance import Covariance, Diagonal, Family, Full, Isotropic, LowRank
from sdekit.oracle.empirical import Empirical
from sdekit.oracle.mixture import Gaussian, GaussianMixture, Oracle
from sdekit.oracle.spectrum import Spectrum

__all__ = [
    "Covariance",
    "Diagonal",
    "Empirical",
    "Family",
    "Full",
    "Gaussian",
    "GaussianMixture",
    "Isotropic",
    "LowRank",
    "Oracle",
    "Spectrum",
]
