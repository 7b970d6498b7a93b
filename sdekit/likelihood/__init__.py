"""Log-likelihoods by the probability flow: exact or estimated traces, adaptive or fixed steps, densities and bits."""

from sdekit.likelihood.adaptive import Adaptive, AdaptiveHeun, Bosh3, Dopri5, Dopri8
from sdekit.likelihood.dequantization import Dequantization, bits_per_dim
from sdekit.likelihood.exact import Likelihood, log_likelihood
from sdekit.likelihood.integrate import FixedGrid, Flow, Integrator, Pair
from sdekit.likelihood.trace import Exact, Hutchinson, Normals, Probe, Rademacher, Trace

__all__ = [
    "Adaptive",
    "AdaptiveHeun",
    "Bosh3",
    "Dequantization",
    "Dopri5",
    "Dopri8",
    "Exact",
    "FixedGrid",
    "Flow",
    "Hutchinson",
    "Integrator",
    "Likelihood",
    "Normals",
    "Pair",
    "Probe",
    "Rademacher",
    "Trace",
    "bits_per_dim",
    "log_likelihood",
]
