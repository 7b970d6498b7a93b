"""How the data of a component spreads, as a user says it: Isotropic, Diagonal, Full, LowRank.

Each is described by its own numbers, one set for all components or one for each, and decomposes itself once. Each can
also be estimated from weighted data, which is the M-step of `fit`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from sdekit.oracle.spectrum import Spectrum

Numbers: TypeAlias = Tensor | float | list[float]


@runtime_checkable
class Covariance(Protocol):
    """The covariances of the components of a mixture."""

    def spectrum(self, components: int, dim: int) -> Spectrum:
        """Decompose the covariances, one for all or one for each of the components, in dimension `dim`."""


@runtime_checkable
class Family(Protocol):
    """A kind of covariance that can be estimated: Isotropic, Diagonal, Full, or LowRank.of_rank(r)."""

    def estimate(self, x: Tensor, shares: Tensor, means: Tensor, floor: float) -> Spectrum:
        """Return the most likely covariances with no variance below `floor`.

        Args:
            x: data, shape (N, d).
            shares: the weight of each point in each component, shape (N, K), columns summing to 1.
            means: the weighted means, shape (K, d).
            floor: the smallest variance allowed in any direction.
        """


@dataclass(frozen=True, eq=False)
class Isotropic:
    """C = std^2 I.

    Args:
        std: the standard deviation in every direction, one for all components or shape (K,).

    Raises:
        ValueError: a standard deviation is not positive and finite.
    """

    std: Numbers

    def __post_init__(self) -> None:
        _positive(self.std, "A standard deviation")

    def spectrum(self, components: int, dim: int) -> Spectrum:
        """Decompose: one eigenvalue, no direction."""
        values = _numbers(self.std).reshape(-1, 1) ** 2
        return Spectrum(values, values.new_zeros(1, 0, dim)).spectrum(components, dim)

    @staticmethod
    def estimate(x: Tensor, shares: Tensor, means: Tensor, floor: float) -> Spectrum:
        """Return the weighted variances, averaged over the dimensions."""
        values = _variances(x, shares, means).mean(1, keepdim=True).clamp(min=floor)
        return Spectrum(values, values.new_zeros(1, 0, x.shape[1]))


@dataclass(frozen=True, eq=False)
class Diagonal:
    """C = diag(variance).

    Args:
        variance: the variance of each dimension, in the shape of one sample, or of K of them.

    Raises:
        ValueError: a variance is not positive and finite.
    """

    variance: Numbers

    def __post_init__(self) -> None:
        _positive(self.variance, "A variance")

    def spectrum(self, components: int, dim: int) -> Spectrum:
        """Decompose: the eigenvectors are the axes."""
        values = _numbers(self.variance)
        rows = values.reshape(-1, dim) if values.numel() in {dim, components * dim} else values.reshape(1, -1)
        return Spectrum(rows).spectrum(components, dim)

    @staticmethod
    def estimate(x: Tensor, shares: Tensor, means: Tensor, floor: float) -> Spectrum:
        """Return the weighted variances."""
        return Spectrum(_variances(x, shares, means).clamp(min=floor))


@dataclass(frozen=True, eq=False)
class Full:
    """C as a matrix.

    Args:
        covariance: shape (d, d) for all components or (K, d, d), with d counted over the flattened data.

    Raises:
        ValueError: a matrix is not square, finite, symmetric and positive definite.
    """

    covariance: Numbers

    def __post_init__(self) -> None:
        c = _numbers(self.covariance)
        if c.ndim not in (2, 3) or c.shape[-1] != c.shape[-2] or not bool(c.isfinite().all()):
            raise ValueError(
                f"A full covariance must be finite, of shape (d, d) or (K, d, d); got shape {tuple(c.shape)}."
            )
        skew = float((c - c.mT).abs().max() / c.abs().max())
        if skew > 1e-5:
            raise ValueError(
                f"A covariance must be symmetric; got one that differs from its transpose by {skew:.1e} of its largest "
                "entry. Pass (C + C^T) / 2 if that is meant."
            )

    def spectrum(self, components: int, dim: int) -> Spectrum:
        """Decompose by eigenvectors.

        Raises:
            ValueError: the matrix is not positive definite to the precision it was given in.
        """
        c = _numbers(self.covariance)
        values, vectors = torch.linalg.eigh((c + c.mT).reshape(-1, *c.shape[-2:]) / 2)
        given = self.covariance.dtype if isinstance(self.covariance, Tensor) else torch.float64
        rounding = torch.finfo(given).eps if given.is_floating_point else 0.0
        lowest, highest = float(values.min()), float(values.max())
        if lowest <= rounding * highest:
            raise ValueError(
                f"A covariance must be positive definite; its smallest eigenvalue is {lowest:.3g}, its largest "
                f"{highest:.3g}. Add a small multiple of the identity, or use LowRank(factor, std)."
            )
        return Spectrum(values, vectors.mT.contiguous()).spectrum(components, dim)

    @staticmethod
    def estimate(x: Tensor, shares: Tensor, means: Tensor, floor: float) -> Spectrum:
        """Return the weighted covariances, with the eigenvalues that are too small lifted to the floor."""
        values, vectors = torch.linalg.eigh(_scatter(x, shares, means))
        return Spectrum(values.clamp(min=floor), vectors.mT.contiguous())


@dataclass(frozen=True, eq=False)
class LowRank:
    """C = factor factor^T + std^2 I.

    Args:
        factor: shape (d, r) for all components or (K, d, r), with d counted over the flattened data.
        std: the standard deviation in all other directions, one for all components or shape (K,).

    Raises:
        ValueError: the factor has another rank or is not finite, or a standard deviation is not positive.
    """

    factor: Tensor
    std: Numbers

    def __post_init__(self) -> None:
        if self.factor.ndim not in (2, 3) or not bool(self.factor.isfinite().all()):
            raise ValueError(
                f"A factor must be finite, of shape (d, r) or (K, d, r); got shape {tuple(self.factor.shape)}."
            )
        _positive(self.std, "A standard deviation")

    def spectrum(self, components: int, dim: int) -> Spectrum:
        """Decompose by the thin singular value decomposition of the factor."""
        factor = _numbers(self.factor)
        u, s, _ = torch.linalg.svd(factor.reshape(-1, *factor.shape[-2:]), full_matrices=False)
        rest = _numbers(self.std).reshape(-1, 1) ** 2
        values = s**2 + rest
        if u.shape[-1] < u.shape[-2]:
            values = torch.cat([values, rest.expand(len(values), 1)], -1)
        return Spectrum(values, u.mT.contiguous()).spectrum(components, dim)

    @staticmethod
    def of_rank(rank: int) -> Family:
        """Return the family of this rank, to be fitted: probabilistic principal components.

        Reference: Tipping & Bishop 1999, Mixtures of probabilistic principal component analyzers, section 3.3.
        """
        return _Principal(rank)


@dataclass(frozen=True)
class _Principal:
    """The `rank` largest eigenvalues of the weighted covariance, and the mean of all others."""

    rank: int

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"A rank must be at least 0; got {self.rank}.")

    def estimate(self, x: Tensor, shares: Tensor, means: Tensor, floor: float) -> Spectrum:
        if self.rank >= x.shape[1]:
            return Full.estimate(x, shares, means, floor)
        values, vectors = torch.linalg.eigh(_scatter(x, shares, means))
        small, large = values[:, : -self.rank or None], values[:, x.shape[1] - self.rank :]
        values = torch.cat([large, small.mean(1, keepdim=True)], 1).clamp(min=floor)
        return Spectrum(values, vectors[..., x.shape[1] - self.rank :].mT.contiguous())


def _numbers(given: Numbers) -> Tensor:
    """Return what was given in float64 on the CPU, where it is decomposed."""
    numbers = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float64)
    return numbers.detach().to("cpu", torch.float64)


def _positive(given: Numbers, what: str) -> None:
    numbers = _numbers(given)
    if numbers.numel() == 0 or not bool((numbers.isfinite() & (numbers > 0)).all()):
        lowest = float(numbers.min()) if numbers.numel() else "nothing"
        raise ValueError(f"{what} must be positive and finite; got {lowest} as the smallest. Give a small one instead.")


def _variances(x: Tensor, shares: Tensor, means: Tensor) -> Tensor:
    """Return the weighted variance of every dimension, shape (K, d)."""
    return shares.T @ x**2 - means**2


def _scatter(x: Tensor, shares: Tensor, means: Tensor) -> Tensor:
    """Return the weighted covariance matrices, shape (K, d, d)."""
    roots = [(x - m) * share.sqrt()[:, None] for m, share in zip(means, shares.T, strict=True)]
    return torch.stack([root.T @ root for root in roots])
