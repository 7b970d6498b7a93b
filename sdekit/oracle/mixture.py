"""Exact models of Gaussian data and of mixtures of it: what a perfectly trained network would say."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from sdekit._broadcast import Time, like
from sdekit.oracle.components import Components, Posterior
from sdekit.oracle.covariance import Covariance, Family, Full, Isotropic
from sdekit.oracle.fit import expectation_maximization, fit_one
from sdekit.prediction import Prediction, V
from sdekit.process import Process

BLOCK = 2**20
"""The numbers a model holds at once; larger batches are answered in blocks of rows."""


class Oracle(nn.Module):
    """An exact model: the score, the density and the divergence of the flow are known at every time.

    It computes in the dtype of its means, on their device (`oracle.double()`, `oracle.to(device)` as any module), and
    answers in the dtype of the state. Where the noise is small beside the data, densities want float64 means.

    Its arguments are those of `GaussianMixture`, of which every oracle is a case.

    Attributes:
        predicts: the target in which it answers.
    """

    predicts = V()

    def __init__(
        self, process: Process, means: Tensor, covariance: Covariance | float, weights: Tensor | None = None
    ) -> None:
        super().__init__()
        if not isinstance(process, Process):
            raise TypeError(
                f"An oracle's first argument must be a process, such as VP(); got {type(process).__name__}."
            )
        means = floating(means)
        if means.ndim == 0:
            raise ValueError(
                "Means must have shape (K, ...), one for each component; got a number. Use Gaussian for one."
            )
        if weights is None:
            weights = torch.full((len(means),), 1 / max(len(means), 1), dtype=torch.float64)
        self.process = process
        self.shape = means.shape[1:]
        self.components = Components(
            means.reshape(len(means), self.shape.numel()).clone(),
            _covariance(covariance),
            torch.as_tensor(weights),
        )

    def forward(self, x: Tensor, t: Time, /) -> Prediction:
        """Predict E[x0 | x] and E[eps | x] at the states `x`, shape (B, ...), and the time `t`, scalar or shape (B,).

        Both are exact, and finite even where alpha = 0 or sigma = 0.

        Raises:
            ValueError: states or times whose shapes do not match, or a time outside the process.
        """
        t = self.process.check(t)
        return Prediction(self.process, x, t, self._by_rows(self._answer, x, t).reshape(x.shape), self.predicts)

    def on(self, process: Process, /) -> Self:
        """Return the same law of data seen through another process; the law itself is shared."""
        seen = copy.copy(self)
        seen.process = process
        return seen

    def log_prob(self, x: Tensor, t: Time | None = None) -> Tensor:
        """Return log p_t(x) in nats, shape (B,); without a time, that of the data.

        Raises:
            ValueError: states or times whose shapes do not match, or a time outside the process.
        """
        t = None if t is None else self.process.check(t)
        return self._by_rows(lambda y, s: self._posterior(y, s).log_prob, x, t)

    def divergence(self, x: Tensor, t: Time) -> Tensor:
        """Return the divergence of the velocity alpha' x0 + sigma' eps of the probability flow at `x`, shape (B,).

        Raises:
            ValueError: states or times whose shapes do not match, or a time outside the process.
        """
        return self._by_rows(self._divergence, x, self.process.check(t))

    def responsibilities(self, x: Tensor, t: Time | None = None) -> Tensor:
        """Return p_t(k | x), shape (B, K): the exact classifier of noisy states; without a time, of data.

        Raises:
            ValueError: states or times whose shapes do not match, or a time outside the process.
        """
        t = None if t is None else self.process.check(t)
        return self._by_rows(lambda y, s: self._posterior(y, s).log_joint.softmax(1), x, t)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw `n` exact samples of the data, shape (n, ...)."""
        data = self.components
        source, means = generator.device, data.means
        weights = data.log_weights.to(source, torch.float64).exp()
        chosen = torch.multinomial(weights, n, replacement=True, generator=generator).to(means.device)
        noise = torch.randn(n, means.shape[1], generator=generator, dtype=means.dtype, device=source).to(means.device)
        x = means[chosen]
        for k in chosen.unique().tolist():
            x[chosen == k] += data.spectrum.color(noise[chosen == k], k)
        return x.reshape(n, *self.shape)

    def extra_repr(self) -> str:
        """Name the process, the number of components and the shape of the data."""
        return f"{self.process}, components={len(self.components.means)}, shape={tuple(self.shape)}"

    def _posterior(self, x: Tensor, t: Tensor | None) -> Posterior:
        if t is None:  # the data itself: no noise
            return self.components.given(x, torch.ones(()), torch.zeros(()))
        return self.components.given(x, self.process.alpha(t), self.process.sigma(t))

    def _answer(self, x: Tensor, t: Tensor) -> Tensor:
        posterior = self._posterior(x, t)
        return posterior.mean(-posterior.sigma, posterior.alpha * posterior.sigma)

    def _divergence(self, x: Tensor, t: Tensor) -> Tensor:
        posterior = self._posterior(x, t)
        alpha_rate, sigma_rate = self.process.rates(t)
        return posterior.divergence(alpha_rate, sigma_rate * posterior.sigma)

    def _by_rows(self, f: Callable[..., Tensor], x: Tensor, t: Tensor | None) -> Tensor:
        """Call f(x, t) on flattened states, block by block so that memory stays bounded."""
        if x.ndim == 0 or x.shape[1:] != self.shape:
            raise ValueError(
                f"States must have the shape of the data behind the batch, (B, {', '.join(map(str, self.shape))}); "
                f"got {tuple(x.shape)}."
            )
        if t is not None:
            like(t, x)  # raises if the batches differ
        rows = max(1, BLOCK // self.components.width)
        blocks = x.to(self.components.means).reshape(x.shape[0], self.shape.numel()).split(rows)
        times = itertools.repeat(t) if t is None or t.ndim == 0 else iter(t.split(rows))
        return torch.cat([f(block, time) for block, time in zip(blocks, times, strict=False)]).to(x)


class Gaussian(Oracle):
    """The exact model of Gaussian data, x0 ~ N(mean, C).

    Args:
        process: the forward process.
        mean: the mean, in the shape of one sample.
        covariance: Isotropic, Diagonal, Full or LowRank; a number is the standard deviation of Isotropic.

    Raises:
        ValueError: numbers that are not finite, a covariance that is not positive definite, or shapes that differ.

    >>> from sdekit import VP
    >>> model = Gaussian(VP(), torch.zeros(2), 1.0)
    >>> bool(model(torch.ones(1, 2), 0.5).score.allclose(-torch.ones(1, 2)))  # N(0, I) stays what it is
    True
    """

    def __init__(self, process: Process, mean: Tensor, covariance: Covariance | float) -> None:
        super().__init__(process, floating(mean)[None], covariance)

    @property
    def mean(self) -> Tensor:
        """The mean, in the shape of one sample."""
        return self.components.means.reshape(self.shape)

    @classmethod
    def fit(cls, process: Process, data: Tensor, covariance: Family = Full, floor: float = 1e-3) -> Self:
        """Fit to `data`, shape (N, ...), by maximum likelihood.

        Args:
            process: the forward process.
            data: the samples.
            covariance: the family: Isotropic, Diagonal, Full or LowRank.of_rank(r).
            floor: the smallest variance in any direction, in units of the data's mean variance.

        Raises:
            ValueError: data that is not finite, or of which all points are equal.
        """
        mean, spectrum = fit_one(floating(data).flatten(1), covariance, floor)
        return cls(process, mean.to(floating(data)).reshape(data.shape[1:]), spectrum)


class GaussianMixture(Oracle):
    """The exact model of a mixture of Gaussians, x0 ~ sum_k weights_k N(means_k, C_k).

    Args:
        process: the forward process.
        means: shape (K, ...), in the shape of the data.
        covariance: Isotropic, Diagonal, Full or LowRank, one for all components or one for each; a number is the
            standard deviation of Isotropic.
        weights: probabilities of the components, shape (K,); by default all the same.

    Raises:
        ValueError: numbers that are not finite, a covariance that is not positive definite, weights that are not
            positive with sum 1, or shapes that do not match.

    >>> from sdekit import VP
    >>> model = GaussianMixture(VP(), torch.tensor([[-1.0], [1.0]]), 0.1)
    >>> model(torch.tensor([[0.5]]), 0.5).x0
    tensor([[0.1528]])
    """

    @property
    def means(self) -> Tensor:
        """The means, shape (K, ...)."""
        return self.components.means.reshape(-1, *self.shape)

    @property
    def weights(self) -> Tensor:
        """The probabilities of the components, shape (K,)."""
        return self.components.log_weights.exp()

    @classmethod
    def fit(
        cls,
        process: Process,
        data: Tensor,
        components: int,
        covariance: Family = Full,
        floor: float = 1e-3,
        seed: int = 0,
    ) -> Self:
        """Fit to `data`, shape (N, ...), by expectation maximization from a start by k-means.

        Args:
            process: the forward process.
            data: the samples.
            components: their number K.
            covariance: the family: Isotropic, Diagonal, Full or LowRank.of_rank(r).
            floor: the smallest variance in any direction, in units of the data's mean variance.
            seed: of the start; the same seed gives the same mixture.

        Raises:
            ValueError: fewer points than components, data that is not finite, or of which all points are equal.
        """
        given = floating(data)
        law = expectation_maximization(given.flatten(1), components, covariance, floor, seed)
        means = law.means.to(given).reshape(components, *given.shape[1:])
        return cls(process, means, law.spectrum, law.log_weights.exp())


def floating(numbers: Tensor) -> Tensor:
    """Return numbers as a tensor detached from any graph, integers in torch's default dtype."""
    tensor = torch.as_tensor(numbers).detach()
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())


def _covariance(given: Covariance | float) -> Covariance:
    if isinstance(given, Covariance) and not isinstance(given, type):
        return given
    if isinstance(given, int | float) or (isinstance(given, Tensor) and given.ndim == 0):
        return Isotropic(float(given))
    raise TypeError(
        "A covariance must be a number, the standard deviation, or one of Isotropic, Diagonal, Full, LowRank; got "
        f"{given if isinstance(given, type) else type(given).__name__}. Wrap a matrix as Full(matrix)."
    )
