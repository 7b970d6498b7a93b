"""Covariances, decomposed once: whatever is asked of them later is a function of their eigenvalues."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Spectrum(nn.Module):
    """The covariances of K components in dimension d, by their eigenvalues and orthonormal directions:

        C_k = U_k^T diag(values_k) U_k + rest_k (I - U_k^T U_k),        U_k U_k^T = I

    so that g(C) y = U^T g(values) U y + g(rest) (y - U^T U y) for every function g, at no more than the price of U.

    Args:
        values: eigenvalues, shape (K, s), or (1, s) if shared. Where the r directions do not fill the space, s = r + 1
            and the last is `rest`, the eigenvalue of everything orthogonal to them; otherwise s = r = d.
        directions: the rows of U, shape (K, r, d), or (1, r, d) if shared; None means the axes of the space.
    """

    values: Tensor
    directions: Tensor | None
    counts: Tensor

    def __init__(self, values: Tensor, directions: Tensor | None = None) -> None:
        super().__init__()
        counts = torch.ones(values.shape[-1], dtype=values.dtype, device=values.device)
        if directions is not None and directions.shape[-2] < directions.shape[-1]:
            counts[-1] = directions.shape[-1] - directions.shape[-2]
        self.complete = directions is None or directions.shape[-2] == directions.shape[-1]
        self.register_buffer("values", values)
        self.register_buffer("directions", directions)
        self.register_buffer("counts", counts)  # how many dimensions share each eigenvalue

    @property
    def dim(self) -> int:
        """The dimension d of the space."""
        return self.values.shape[-1] if self.directions is None else self.directions.shape[-1]

    def spectrum(self, components: int, dim: int) -> Spectrum:
        """Return a copy: a spectrum is a covariance that needs no decomposition.

        Raises:
            ValueError: it describes another number of components, or another dimension.
        """
        sizes = {1 if u is None else len(u) for u in (self.values, self.directions)}
        if not sizes <= {1, components} or self.dim != dim:
            raise ValueError(
                f"A covariance must be one for all components or one for each; got {max(sizes)} of dimension "
                f"{self.dim} for {components} means of dimension {dim}. Count dimensions over the flattened data."
            )
        return Spectrum(self.values, self.directions)

    def project(self, x: Tensor) -> Tensor:
        """Return the coordinates U_k x of the states `x`, shape (B, d): shape (B, K, r), or (B, 1, r) if shared."""
        if self.directions is None:
            return x[:, None]
        size, rank, dim = self.directions.shape
        return (x @ self.directions.reshape(size * rank, dim).T).reshape(x.shape[0], size, rank)

    def project_each(self, means: Tensor) -> Tensor:
        """Return the coordinates U_k m_k of one vector per component, shape (K, d): shape (K, r)."""
        return means if self.directions is None else (self.directions @ means[:, :, None])[..., 0]

    def lift(self, coordinates: Tensor) -> Tensor:
        """Return the sum over k of U_k^T c_k for coordinates of shape (B, K, r): shape (B, d)."""
        if self.directions is None:
            return coordinates.sum(1)
        size, rank, dim = self.directions.shape
        if size == 1:
            coordinates = coordinates.sum(1)
        return coordinates.reshape(coordinates.shape[0], size * rank) @ self.directions.reshape(size * rank, dim)

    def products(self, a: Tensor, b: Tensor, total: Tensor) -> Tensor:
        """Split inner products by eigenspace: from coordinates, shape (..., r), and the whole (...): shape (..., s)."""
        split = a * b
        return split if self.complete else torch.cat([split, (total - split.sum(-1))[..., None]], -1)

    def color(self, z: Tensor, k: int) -> Tensor:
        """Return C_k^{1/2} z for standard normal `z`, shape (n, d): draws of N(0, C_k)."""
        root = self.values[k % len(self.values)].sqrt()
        if self.directions is None:
            return root * z
        u = self.directions[k % len(self.directions)]
        if self.complete:
            return (root * (z @ u.T)) @ u
        return root[-1] * z + ((root[:-1] - root[-1]) * (z @ u.T)) @ u
