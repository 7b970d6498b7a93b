"""Log-likelihoods by the probability flow: exact or estimated traces, adaptive or fixed steps, densities and bits."""

from sdekit.likelihood.adaptive import Adaptive, AdaptiveHeun, Bosh3, Dopri5, Dopri8
from sdekit.likelihood.control import moments
from sdekit.likelihood.dequantization import Dequantization, bits_per_dim
from sdekit.likelihood.exact import Likelihood, log_likelihood
from sdekit.likelihood.hadamard import Hadamard, HutchPP
from sdekit.likelihood.integrate import FixedGrid, Integrator
from sdekit.likelihood.probes import Normals, Probe, Rademacher, Sphere
from sdekit.likelihood.trace import Exact, Hutchinson, Trace

__all__ = [
    "Adaptive",
    "AdaptiveHeun",
    "Bosh3",
    "Dequantization",
    "Dopri5",
    "Dopri8",
    "Exact",
    "FixedGrid",
    "Hadamard",
    "HutchPP",
    "Hutchinson",
    "Integrator",
    "Likelihood",
    "Normals",
    "Probe",
    "Rademacher",
    "Sphere",
    "Trace",
    "bits_per_dim",
    "log_likelihood",
    "moments",
]
