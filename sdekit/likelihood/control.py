r"""A control variate for random traces: the flow of Gaussian data, whose divergence is known.

For x0 ~ N(m, C) the velocity on the straight path is linear in the state, with the Jacobian

    W = (tau I - (1 - tau) C) ((1 - tau)^2 C + tau^2 I)^{-1}

If N(m, C) has the data's moments, W is most of a model's Jacobian J, and u'(J - W) u scatters less than u'J u.

Reference: the linear minimum mean square error estimator, Wiener 1949; control variates, Owen 2013, section 8.9.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdekit._broadcast import as_time
from sdekit.oracle import Full, Gaussian, Oracle, Spectrum
from sdekit.prediction import Model
from sdekit.process import RectifiedFlow

RANK = 64
"""The directions that are kept of a covariance in more dimensions than there are data."""

DRAWS = 2000
"""The samples from which the moments of an exact model are found."""

_MOMENTS: weakref.WeakKeyDictionary[Oracle, tuple[Any, Gaussian]] = weakref.WeakKeyDictionary()


class Principal(Gaussian):
    """A Gaussian of which the largest directions are known: too little to tell how random probes err."""


class Linear(NamedTuple):
    """A linear map of states, shape (n, B, ...), by `matrix` and what is `rest` times the state, and its trace."""

    gaussian: Gaussian
    tau: Tensor
    trace: float

    def __call__(self, v: Tensor) -> Tensor:
        """Return W v for vectors `v`, shape (n, B, ...)."""
        law, rows = self.gaussian.components, v.reshape(v.shape[0] * v.shape[1], -1).to(torch.float64)
        gain = self.gain(self.tau, law.spectrum.values[0])
        along = law.spectrum.project(rows)
        if law.spectrum.complete:
            out = law.spectrum.lift(gain * along)
        else:
            out = gain[-1] * rows + law.spectrum.lift((gain[:-1] - gain[-1]) * along)
        return out.to(v).reshape(v.shape)

    def form(self, v: Tensor) -> Tensor:
        """Return v' W v for vectors `v`, shape (n, B, ...): shape (n, B), float64."""
        law, rows = self.gaussian.components, v.reshape(v.shape[0] * v.shape[1], -1).to(torch.float64)
        gain, along = self.gain(self.tau, law.spectrum.values[0]), law.spectrum.project(rows)[:, 0].square()
        if law.spectrum.complete:
            return (along @ gain).reshape(v.shape[:2])
        return (gain[-1] * rows.square().sum(1) + along @ (gain[:-1] - gain[-1])).reshape(v.shape[:2])

    @staticmethod
    def gain(tau: Tensor, variances: Tensor) -> Tensor:
        """Return the eigenvalues of W."""
        tau = tau.to(variances)
        return (tau - (1 - tau) * variances) / ((1 - tau) ** 2 * variances + tau**2)


def linear(gaussian: Gaussian, tau: Tensor) -> Linear:
    """Return W at tau, 0-d."""
    tau = as_time(tau).detach()
    return Linear(gaussian, tau, float(traces(gaussian, tau[None])))


def traces(gaussian: Gaussian, taus: Tensor) -> Tensor:
    """Return the traces of W at the taus, shape (K,)."""
    spectrum = gaussian.components.spectrum
    return (spectrum.counts * Linear.gain(taus[:, None], spectrum.values[0])).sum(1)


def moments(data: Tensor) -> Gaussian:
    """Return the Gaussian of the moments of `data`, shape (n, ...), in float64.

    With more than two points for each dimension the covariance is the full one; otherwise its `RANK` largest directions
    are kept, and the mean variance of the others (probabilistic principal components).

    Raises:
        ValueError: fewer than 2 points, or numbers that are not finite.

    Reference: Tipping & Bishop 1999, Mixtures of probabilistic principal component analyzers, section 3.3.
    """
    if len(data) < 2 or not data.is_floating_point() or not bool(data.isfinite().all()):
        raise ValueError(f"Moments need at least 2 finite floating-point samples; got shape {tuple(data.shape)}.")
    process, rows = RectifiedFlow(t_min=0.0, t_max=1.0), data.detach().to(torch.float64).reshape(len(data), -1)
    n, dims = rows.shape
    if n > 2 * dims:
        fitted = Gaussian.fit(process, rows, Full, floor=1e-6)
        return Gaussian(process, fitted.mean.reshape(data.shape[1:]), fitted.components.spectrum)
    centred = rows - rows.mean(0)
    total = float(centred.square().sum()) / n
    rank = min(RANK, (n - 1) // 2, dims - 1)
    _, values, directions = torch.linalg.svd(centred / n**0.5, full_matrices=False)
    variances = values[:rank] ** 2
    rest = variances.new_tensor([max((total - float(variances.sum())) / (dims - rank), 1e-6 * total / dims)])
    spectrum = Spectrum(torch.cat([variances.maximum(rest), rest])[None], directions[None, :rank])
    return Principal(process, rows.mean(0).reshape(data.shape[1:]), spectrum)


def of_data(data: Tensor | Gaussian | None, shape: torch.Size) -> Gaussian | None:
    """Return the Gaussian of the moments of `data`, or None without data, or with too few to have moments.

    Raises:
        ValueError: the data are not of the shape of the samples.
    """
    if data is None:
        return None
    found = data.shape if isinstance(data, Gaussian) else data.shape[1:]
    if found != shape:
        raise ValueError(f"Data must have the shape of the samples, {tuple(shape)}; got {tuple(found)}.")
    if isinstance(data, Gaussian):
        return data
    return moments(data) if len(data) > 1 and bool((data != data[:1]).any()) else None


def of_model(model: Model) -> Gaussian | None:
    """Return the Gaussian of the moments of draws of an exact model, or None for any other."""
    if not isinstance(model, Oracle):
        return None
    version = tuple((id(b), 0 if b.is_inference() else b._version) for b in model.buffers())
    if _MOMENTS.get(model, (None,))[0] != version:
        draws = model.sample(DRAWS, torch.Generator(model.components.means.device).manual_seed(0))
        _MOMENTS[model] = version, moments(draws)
    return _MOMENTS[model][1]
