r"""A mixture of Gaussians seen through noise, exactly.

With data x0 ~ sum_k w_k N(m_k, C_k) and x = alpha x0 + sigma eps, everything follows from S_k = alpha^2 C_k + sigma^2 I
and y_k = x - alpha m_k, and S_k^{-1} is a function of the eigenvalues of C_k:

    p(x) = sum_k w_k N(x; alpha m_k, S_k)            E[x0 | x, k]         = m_k + alpha C_k S_k^{-1} y_k
    p(k | x) = w_k N(x; alpha m_k, S_k) / p(x)       E[eps | x, k] / sigma = S_k^{-1} y_k

Nothing is divided by alpha or sigma, so all of it is finite where one of them vanishes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from sdekit._broadcast import like
from sdekit.oracle.covariance import Covariance


class Components(nn.Module):
    """The law of the data: K Gaussians in dimension d, with the decomposition of their covariances.

    Args:
        means: shape (K, d), in the dtype and on the device where all is computed.
        covariance: one for all components or one for each.
        weights: probabilities of the components, shape (K,).

    Raises:
        ValueError: means that are not finite, weights that are no probabilities, or shapes that do not match.
    """

    means: Tensor
    log_weights: Tensor
    norms: Tensor
    offsets: Tensor
    offset_products: Tensor

    def __init__(self, means: Tensor, covariance: Covariance, weights: Tensor) -> None:
        super().__init__()
        if means.numel() == 0 or not bool(means.isfinite().all()):
            raise ValueError(f"Means must be finite, at least one; got shape {tuple(means.shape)}. Check the data.")
        total = weights.to("cpu", torch.float64)
        if weights.shape != (len(means),) or not bool((total > 0).all()) or abs(float(total.sum()) - 1) > 1e-5:
            raise ValueError(
                f"Weights must be {len(means)} positive numbers with sum 1, one for each mean; got shape "
                f"{tuple(weights.shape)}, sum {float(total.sum()):g}. Divide by the sum, and drop what has weight 0."
            )
        self.spectrum = covariance.spectrum(*means.shape).to(means)
        self.register_buffer("means", means)
        self.register_buffer("log_weights", (total / total.sum()).log().to(means))
        self.register_buffer("norms", means.square().sum(1))
        self.register_buffer("offsets", self.spectrum.project_each(means))
        self.register_buffer("offset_products", self.spectrum.products(self.offsets, self.offsets, self.norms))

    @property
    def width(self) -> int:
        """The numbers held at once for one state."""
        return len(self.means) * self.spectrum.values.shape[-1]

    def given(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Posterior:
        """Return what the states x = alpha x0 + sigma eps, shape (B, d), say; alpha and sigma 0-d or shape (B,)."""
        return Posterior(self, x, alpha, sigma)


@dataclass(frozen=True, eq=False)
class Posterior:
    """The law of the data given the states `x`: see `Components.given`."""

    data: Components
    x: Tensor
    alpha: Tensor
    sigma: Tensor

    @cached_property
    def log_joint(self) -> Tensor:
        """log w_k N(x; alpha m_k, S_k) in nats, shape (B, K)."""
        spectrum = self.data.spectrum
        square = (self._energy / self._variance).sum(-1)
        log_det = (spectrum.counts * self._variance.log()).sum(-1)
        return self.data.log_weights - 0.5 * (square + log_det + spectrum.dim * math.log(2 * math.pi))

    @cached_property
    def log_prob(self) -> Tensor:
        """log p(x) in nats, shape (B,)."""
        return self.log_joint.logsumexp(1)

    @cached_property
    def weights(self) -> Tensor:
        """p(k | x), shape (B, K), with 0 for what no sum would feel."""
        # left in, the smallest would be subnormal numbers, which make matrix products ten times slower
        weights = self.log_joint.softmax(1)
        return torch.where(weights > torch.finfo(weights.dtype).eps ** 2, weights, 0.0)

    def mean(self, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Return a E[x0 | x] - b grad log p(x), shape (B, d), of which every target is a case, as E[eps | x] is with
        (0, sigma).
        """
        weights, spectrum, means = self.weights, self.data.spectrum, self.data.means
        gain = self._gain(a, b) * weights[..., None]
        signal = like(a, self.x) * weights
        if spectrum.complete:
            return spectrum.lift(gain * self._coordinates) + signal @ means
        rest = gain[..., -1]
        inside = spectrum.lift((gain[..., :-1] - gain[..., -1:]) * self._coordinates)
        return inside + rest.sum(1, keepdim=True) * self.x + (signal - like(self.alpha, self.x) * rest) @ means

    def divergence(self, a: Tensor | float, b: Tensor | float) -> Tensor:
        """Return the divergence in x of `mean(a, b)`, shape (B,).

        It is the mean over k of trace((a alpha C + b) S^{-1}), less the covariance over k of a x0_k + b z_k with z_k =
        S_k^{-1} y_k, since grad log p(k | x) = mean z - z_k. Because alpha x0_k + sigma^2 z_k = x, both lie on a line,
        and with n_k = alpha z_k - x0_k and D = alpha^2 + sigma^2

            z_k = (x + alpha n_k) / D,      x0_k = (alpha x - sigma^2 n_k) / D,
            covariance = alpha (alpha b - sigma^2 a) / D^2  (E|n|^2 - |E n|^2)
        """
        trace = (self.data.spectrum.counts * self._gain(a, b)).sum(-1)
        if len(self.data.means) == 1:
            return trace.expand(self.x.shape[0], 1)[:, 0]
        gain = self._gain(-1.0, self.alpha)
        norms = (gain**2 * self._energy + self.data.offset_products - 2 * self._slant(gain)).sum(-1)
        alpha, noise = self.alpha, self.sigma**2
        slope = like(alpha * (alpha * b - noise * a) / (alpha**2 + noise) ** 2, self.x)
        mean = (self.weights * (trace - slope * norms)).sum(1, keepdim=True)
        return (mean + slope * self.mean(-1.0, alpha).square().sum(1, keepdim=True))[:, 0]

    @cached_property
    def _coordinates(self) -> Tensor:
        """U_k y_k, shape (B, K, r)."""
        x = self.data.spectrum.project(self.x)
        return x - like(self.alpha, x) * self.data.offsets

    @cached_property
    def _variance(self) -> Tensor:
        """The eigenvalues alpha^2 values + sigma^2 of S_k, shape (B or 1, K or 1, s)."""
        wide = self._coordinates
        return like(self.alpha**2, wide) * self.data.spectrum.values + like(self.sigma**2, wide)

    @cached_property
    def _energy(self) -> Tensor:
        """|y_k|^2 by eigenspace, shape (B, K, s).

        Without a (B, K, d) array: |y_k|^2 = |y_j|^2 + (h_k - h_j), h_k = alpha^2 |m_k|^2 - 2 alpha x.m_k, where j is
        the nearest mean. What is left is then exact for the components that matter.
        """
        spectrum, coordinates = self.data.spectrum, self._coordinates
        if spectrum.complete:
            return coordinates**2
        alpha, means = like(self.alpha, self.x), self.data.means
        h = alpha * (alpha * self.data.norms - 2 * (self.x @ means.T))
        near = h.detach().argmin(1)
        nearest = (self.x - alpha * means[near]).square().sum(1, keepdim=True)
        return spectrum.products(coordinates, coordinates, nearest + (h - h.gather(1, near[:, None])))

    def _gain(self, a: Tensor | float, b: Tensor | float) -> Tensor:
        """The eigenvalues of (a alpha C_k + b) S_k^{-1}, shape (B or 1, K or 1, s)."""
        wide = self._coordinates
        return (like(a * self.alpha, wide) * self.data.spectrum.values + like(b, wide)) / self._variance

    def _slant(self, gain: Tensor) -> Tensor:
        """gain times m_k.y_k by eigenspace, shape (B, K, s)."""
        along = self.x @ self.data.means.T - like(self.alpha, self.x) * self.data.norms
        return gain * self.data.spectrum.products(self.data.offsets, self._coordinates, along)
