"""Log-likelihoods by the probability flow: exact or estimated traces, adaptive or fixed steps, densities and bits."""

from sdekit.likelihood.adaptive import Adaptive, AdaptiveHeun, Bosh3, Dopri5, Dopri8
from sdekit.likelihood.control import moments
from sdekit.likelihood.decoder import DenoisingBound, denoising_bound
from sdekit.likelihood.denoising import Draws
from sdekit.likelihood.dequantization import Dequantization, Levels, TruncatedGaussian, Variational
from sdekit.likelihood.dequantizer import Continuous, Dequantizer, Mass, bits_per_dim
from sdekit.likelihood.discrete_bound import DiscreteBound, FixedVariance, discrete_bound
from sdekit.likelihood.elbo import Bound, LogSNRLaw, elbo
from sdekit.likelihood.exact import Likelihood, log_likelihood
from sdekit.likelihood.hadamard import Hadamard, HutchPP
from sdekit.likelihood.integrate import FixedGrid, Integrator
from sdekit.likelihood.probes import Normals, Probe, Rademacher, Sphere
from sdekit.likelihood.trace import Exact, Hutchinson, Trace
from sdekit.likelihood.within import UnreachedError, log_likelihood_within

__all__ = [
    "Adaptive",
    "AdaptiveHeun",
    "Bosh3",
    "Bound",
    "Continuous",
    "DenoisingBound",
    "Dequantization",
    "Dequantizer",
    "DiscreteBound",
    "Dopri5",
    "Dopri8",
    "Draws",
    "Exact",
    "FixedGrid",
    "FixedVariance",
    "Hadamard",
    "HutchPP",
    "Hutchinson",
    "Integrator",
    "Levels",
    "Likelihood",
    "LogSNRLaw",
    "Mass",
    "Normals",
    "Probe",
    "Rademacher",
    "Sphere",
    "Trace",
    "TruncatedGaussian",
    "UnreachedError",
    "Variational",
    "bits_per_dim",
    "denoising_bound",
    "discrete_bound",
    "elbo",
    "log_likelihood",
    "log_likelihood_within",
    "moments",
]
