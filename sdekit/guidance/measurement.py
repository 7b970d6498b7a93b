r"""Linear measurements of data, y = A x0 + std n, as guides: inverse problems and inpainting.

The law of y given x_t needs the law of x0 given x_t. Taken to be N(x0_hat, C_t),

    grad log h(x0_hat) = A^T (A C_t A^T + std^2 I)^{-1} (y - A x0_hat),        C_t = (C^{-1} + (alpha / sigma)^2 I)^{-1}

where C is the covariance that the data are taken to have. For Gaussian data with that covariance all of it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sdekit._broadcast import like
from sdekit.guidance.guides import ThroughData
from sdekit.oracle import Covariance, Isotropic
from sdekit.process import Process


@dataclass(frozen=True, eq=False)
class Linear(ThroughData):
    """The likelihood of y = A x0 + std n, with n standard normal.

    Args:
        matrix: A, shape (m, d), with d counted over the flattened data.
        observed: y, shape (m,), or (B, m) for one a sample.
        std: the standard deviation of the noise of the measurement.
        data: the covariance C that the data are taken to have: `Full(C)` is exact for Gaussian data,
            `Isotropic(std)` is pseudoinverse guidance; None takes x0_hat for x0, as diffusion posterior sampling.

    Raises:
        ValueError: shapes that do not match; no noise in the measurement, while x0_hat is taken for x0.

    References:
        Chung et al. 2023 (arXiv 2209.14687), theorem 1, for None, whose algorithm has a step size in place of std;
        Song, Vahdat, Mardani & Kautz 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR.
    """

    matrix: Tensor
    observed: Tensor
    std: float
    data: Covariance | None = None

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.observed.ndim not in (1, 2) or self.observed.shape[-1] != len(self.matrix):
            raise ValueError(
                f"A matrix of shape (m, d) measures data as (m,) or (B, m); got {tuple(self.matrix.shape)} and "
                f"{tuple(self.observed.shape)}. Flatten the data and what was measured."
            )
        _check_noise(self.std, self.data)

    def gradient(self, x0: Tensor, process: Process, t: Tensor) -> Tensor:
        a, flat = self.matrix.to(x0.device, torch.float64), x0.flatten(1).double()
        missing = self.observed.to(flat) - flat @ a.T
        covariance = self._seen(a, process, t.to(x0.device)) + self.std**2 * torch.eye(len(a)).to(a)
        weighed: Tensor = torch.linalg.solve(covariance, missing[..., None])[..., 0]
        return (weighed @ a).reshape(x0.shape).to(x0)

    def _seen(self, a: Tensor, process: Process, t: Tensor) -> Tensor:
        """Return A C_t A^T, shape (m, m), or (B, m, m) for a time per sample."""
        if self.data is None:
            return torch.zeros(len(a), len(a)).to(a)
        spectrum = self.data.spectrum(1, a.shape[1]).to(a)
        left = _remaining(spectrum.values[0], process, t)
        if spectrum.directions is None:
            return (a * left[..., None, :]) @ a.T
        coordinates = a @ spectrum.directions[0].T
        if spectrum.complete:
            return (coordinates * left[..., None, :]) @ coordinates.T
        rest = left[..., -1:]
        along = (coordinates * (left[..., :-1] - rest)[..., None, :]) @ coordinates.T
        return along + rest[..., None] * (a @ a.T)

    def holds(self) -> tuple[Any, ...]:
        return ()

    def select(self, which: Tensor, of: Callable[[Any], Any]) -> Self:
        return replace(self, observed=_rows(self.observed, which, 2))


@dataclass(frozen=True, eq=False)
class Inpainting(ThroughData):
    """The likelihood of the pixels that a mask shows, y = x0 + std n there: `Linear` without its matrix.

    Args:
        mask: bool, True where the data are known, in the shape of one sample.
        observed: the data, in the shape of one sample or of a batch; what the mask hides is not looked at.
        std: the standard deviation of their noise.
        data: `Isotropic(std)` of the data; or None, which takes x0_hat for x0. Data with correlations want
            Linear(torch.eye(d)[mask.flatten()], observed[mask], std, data=Full(C)).

    Raises:
        ValueError: shapes that do not match; no noise, while x0_hat is taken for x0.
    """

    mask: Tensor
    observed: Tensor
    std: float
    data: Isotropic | None = None

    def __post_init__(self) -> None:
        batch = self.observed.ndim - self.mask.ndim
        if self.mask.dtype != torch.bool or batch not in (0, 1) or self.observed.shape[batch:] != self.mask.shape:
            raise ValueError(
                f"A mask must be bool, in the shape of one sample of what is observed; got {self.mask.dtype}, "
                f"{tuple(self.mask.shape)} and {tuple(self.observed.shape)}."
            )
        _check_noise(self.std, self.data)

    def gradient(self, x0: Tensor, process: Process, t: Tensor) -> Tensor:
        left = torch.zeros_like(t)
        if self.data is not None:
            spread = torch.as_tensor(self.data.std, dtype=torch.float64, device=t.device)
            left = _remaining(spread.reshape(1) ** 2, process, t)[..., 0]
        missing = torch.where(self.mask.to(x0.device), self.observed.to(x0) - x0, 0.0)
        return like(1 / (left + self.std**2), x0) * missing

    def holds(self) -> tuple[Any, ...]:
        return ()

    def select(self, which: Tensor, of: Callable[[Any], Any]) -> Self:
        return replace(self, observed=_rows(self.observed, which, self.mask.ndim + 1))


def _remaining(variance: Tensor, process: Process, t: Tensor) -> Tensor:
    """Return the eigenvalues of C_t for those of C, shape (s,): (s,), or (B, s) for a time per sample."""
    alpha, sigma = process.alpha(t)[..., None], process.sigma(t)[..., None]
    return variance * sigma**2 / (alpha**2 * variance + sigma**2)


def _rows(observed: Tensor, which: Tensor, ndim: int) -> Tensor:
    return observed[which.to(observed.device)] if observed.ndim == ndim else observed


def _check_noise(std: float, data: Covariance | None) -> None:
    if std < 0 or (std == 0 and data is None):
        raise ValueError(
            f"A measurement must have noise, std > 0, where x0_hat is taken for x0; got {std}. Say how the data "
            "spread: data=Isotropic(1.0)."
        )
