r"""A control variate for random traces: the flow of Gaussian data, whose divergence is known.

For x0 ~ N(m, C) the velocity on the straight path is linear in the state, with the Jacobian

    W = (tau I - (1 - tau) C) ((1 - tau)^2 C + tau^2 I)^{-1}

If N(m, C) has the data's moments, W is most of a model's Jacobian J, and u'(J - W) u scatters less than u'J u.

Reference: the linear minimum mean square error estimator, Wiener 1949; control variates, Owen 2013, section 8.9.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

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

_MOMENTS: weakref.WeakKeyDictionary[Model, Gaussian] = weakref.WeakKeyDictionary()


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

    @staticmethod
    def gain(tau: Tensor, variances: Tensor) -> Tensor:
        """Return the eigenvalues of W."""
        tau = tau.to(variances)
        return (tau - (1 - tau) * variances) / ((1 - tau) ** 2 * variances + tau**2)


def linear(gaussian: Gaussian, tau: Tensor) -> Linear:
    """Return W at tau."""
    spectrum, tau = gaussian.components.spectrum, as_time(tau).detach()
    trace = (spectrum.counts * Linear.gain(tau, spectrum.values[0])).sum()
    return Linear(gaussian, tau, float(trace))


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
    process, rows = RectifiedFlow(t_min=0.0, t_max=1.0), data.detach().to(torch.float64).flatten(1)
    n, dims = rows.shape
    if n > 2 * dims:
        return Gaussian.fit(process, data.detach().to(torch.float64), Full, floor=1e-6)
    centred = rows - rows.mean(0)
    total = float(centred.square().sum()) / n
    rank = min(RANK, (n - 1) // 2, dims - 1)
    _, values, directions = torch.linalg.svd(centred / n**0.5, full_matrices=False)
    variances = values[:rank] ** 2
    rest = variances.new_tensor([max((total - float(variances.sum())) / (dims - rank), 1e-6 * total / dims)])
    spectrum = Spectrum(torch.cat([variances.maximum(rest), rest])[None], directions[None, :rank])
    return Gaussian(process, rows.mean(0).reshape(data.shape[1:]), spectrum)


def known(model: Model, data: Tensor | Gaussian | None) -> Gaussian | None:
    """Return the Gaussian of the data's moments: of `data`, or of draws of an exact model, or None."""
    if isinstance(data, Gaussian):
        return data
    if data is not None:
        return moments(data) if len(data) > 1 else None
    if not isinstance(model, Oracle):
        return None
    if model not in _MOMENTS:
        draws = model.sample(DRAWS, torch.Generator(model.components.means.device).manual_seed(0))
        _MOMENTS[model] = moments(draws)
    return _MOMENTS[model]
