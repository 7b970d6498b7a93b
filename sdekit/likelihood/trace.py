"""The divergence of a drift: exact, or estimated with random probes.

The divergence is the trace of the Jacobian J of a sample's drift by the sample. Either way of finding it adds up
quadratic forms u' J u, each of which costs one pass backward through the network and none forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.noise import standard_normal


class Trace(Value, ABC):
    """How the divergence is found. A subclass gives the vectors u, and what their forms u' J u add up to.

    Attributes:
        chunk: how many vectors go backward through the network at once, by `torch.func.vmap`; memory grows with it.
            With chunk = 1 the passes are plain ones, for a network with an operation that vmap does not know.
    """

    chunk: int = 32

    @abstractmethod
    def count(self, x: Tensor) -> int:
        """Return the number of vectors for a batch like `x`."""

    @abstractmethod
    def vectors(self, x: Tensor, which: range, draw: int) -> Tensor:
        """Return the vectors numbered `which` of the evaluation `draw`: shape (len(which), B or 1, ...) for `x`."""

    @abstractmethod
    def estimates(self, forms: Tensor) -> Tensor:
        """Return from the forms, shape (count, B), the independent estimates of the divergence, shape (B, K)."""

    @abstractmethod
    def stderr(self, estimates: Tensor) -> Tensor:
        """Return the standard error of the mean of independent estimates, (B, K), of a trace: shape (B,)."""

    def __call__(self, drift: Callable[[Tensor], Tensor], x: Tensor, draw: int = 0) -> tuple[Tensor, Tensor]:
        """Return the drift at the states `x`, (B, ...), and K estimates of its divergence, (B, K), in float64.

        Both are differentiable in turn if grad mode is on, whether `x` requires grad or only the model's parameters do.

        Args:
            drift: the function x -> drift, sample by sample; it is called once.
            x: the states.
            draw: the number of the evaluation; where probes are random, another number means new ones.

        Raises:
            ValueError: the drift carries no graph back to `x`.
        """
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x if keep and x.requires_grad else x.detach().requires_grad_()
            value = drift(x)
            require_graph(value)
            numbers = range(self.count(x))
            chunks = [numbers[k : k + self.chunk] for k in range(0, len(numbers), self.chunk)]
            forms = [_forms(value, x, self.vectors(x, chunk, draw), keep) for chunk in chunks]
            divergence = self.estimates(torch.cat(forms))
        return (value, divergence) if keep else (value.detach(), divergence.detach())


def require_graph(answer: Tensor) -> None:
    """Raise ValueError if an answer computed from a state that requires grad has lost the graph."""
    if not answer.requires_grad:
        raise ValueError(
            "The model's answer must be differentiable in the state for its divergence; it carries no graph. Take "
            "torch.no_grad, torch.inference_mode and detach out of the model; to an answer that is constant, add 0 * x."
        )


def _forms(value: Tensor, x: Tensor, vectors: Tensor, keep: bool) -> Tensor:
    """Return u' J u of every sample for each of the `vectors` u: shape (n, B), float64."""

    def form(u: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(
            value, x, u.expand_as(x), retain_graph=True, create_graph=keep, materialize_grads=True
        )
        return (u * pulled).reshape(len(x), -1).sum(1, dtype=torch.float64)

    forms: Tensor = form(vectors[0])[None] if len(vectors) == 1 else torch.func.vmap(form)(vectors)
    return forms


@dataclass(frozen=True)
class Exact(Trace):
    """The divergence to rounding: the d basis vectors of a sample's coordinates, d passes backward per evaluation.

    Raises:
        ValueError: chunk is below 1.

    >>> drift, divergence = Exact()(lambda x: x**3, torch.tensor([[1.0, 2.0]]))
    >>> divergence.item()  # 3 (1^2 + 2^2)
    15.0
    """

    chunk: int = 32

    def __post_init__(self) -> None:
        _at_least_one("chunk", self.chunk)

    def count(self, x: Tensor) -> int:
        return x[0].numel()

    def vectors(self, x: Tensor, which: range, draw: int) -> Tensor:
        hot = torch.nn.functional.one_hot(torch.tensor(which, device=x.device), self.count(x))
        return hot.to(x.dtype).reshape(len(which), 1, *x.shape[1:])

    def estimates(self, forms: Tensor) -> Tensor:
        return forms.sum(0)[:, None]

    def stderr(self, estimates: Tensor) -> Tensor:
        return torch.zeros_like(estimates[:, 0])


class Probe(Value, ABC):
    """The law of a probe u: zero mean and E[u u'] = I, so that E[u' J u] is the divergence."""

    @abstractmethod
    def of(self, z: Tensor) -> Tensor:
        """Return probes made from independent standard normal numbers `z`, of the shape of `z`."""


@dataclass(frozen=True)
class Rademacher(Probe):
    """Random signs, of all laws with independent entries the one with the least variance, sum_{i<j} (J_ij + J_ji)^2.

    Reference: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix", proposition 1.
    """

    def of(self, z: Tensor) -> Tensor:
        return z.sign()


@dataclass(frozen=True)
class Normals(Probe):
    """Independent standard normal numbers; against signs, the diagonal of J adds 2 sum_i J_ii^2 to the variance."""

    def of(self, z: Tensor) -> Tensor:
        return z


@dataclass(frozen=True)
class Hutchinson(Trace):
    """Unbiased estimates u' J u of the divergence with random probes u, one pass backward each.

    Sample i's probes are a function of (seed, first + i), the evaluation and the probe's number: not of its batch.

    Args:
        probes: how many; from 2 on, their spread gives the standard error.
        probe: the law of a probe, `Rademacher()` or `Normals()`.
        seed: any whole number.
        first: the number of the batch's first sample.
        chunk: how many probes go backward at once.

    Raises:
        ValueError: probes or chunk is below 1.

    Reference: Hutchinson 1990; Grathwohl et al. 2019 (arXiv 1810.01367), section 3.1.
    """

    probes: int = 1
    probe: Probe = Rademacher()
    seed: int = 0
    first: int = 0
    chunk: int = 32

    def __post_init__(self) -> None:
        _at_least_one("probes", self.probes)
        _at_least_one("chunk", self.chunk)

    def count(self, x: Tensor) -> int:
        return self.probes

    def vectors(self, x: Tensor, which: range, draw: int) -> Tensor:
        # four parts to the key where the noise of a run has three: the two never meet under one seed
        noise = [standard_normal(x.detach(), self.first, (self.seed, draw, k, 0)) for k in which]
        return self.probe.of(torch.stack(noise))

    def estimates(self, forms: Tensor) -> Tensor:
        return forms.T

    def stderr(self, estimates: Tensor) -> Tensor:
        """Return the standard error from the spread of the probes: NaN for one, which says nothing of its error."""
        if self.probes == 1:
            return torch.full_like(estimates[:, 0], torch.nan)
        spread: Tensor = estimates.std(1) / self.probes**0.5
        return spread


def _at_least_one(name: str, value: int) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
