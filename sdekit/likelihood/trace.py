r"""The divergence of a velocity along a path: exact, or estimated with random probes, new ones at every node.

The divergence is the trace of the Jacobian J of a sample's velocity by the sample. Either way of finding it asks for
vectors v' J, each of which costs one pass backward through the network and none forward. Along a path the traces at the
nodes are summed with the weights of a quadrature, and random errors with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.likelihood.control import Linear
from sdekit.likelihood.probes import Probe, Rademacher
from sdekit.noise import content

Pull: TypeAlias = Callable[[Tensor], Tensor]
"""Vectors v, shape (n, B or 1, ...), to J'v, shape (n, B, ...)."""

Estimate: TypeAlias = Callable[[Pull, int, Linear | None], Tensor]
"""Called with a pull, the number of the node and a control variate, it returns estimates of the trace, (m, B)."""


class Trace(Value, ABC):
    """How the divergence is found.

    Attributes:
        chunk: how many vectors go backward through the network at once, by `torch.func.vmap`; memory grows with it.
            With chunk = 1 the passes are plain ones, for a network with an operation that vmap does not know.
        random: whether the estimates have errors of their own.
    """

    chunk: int = 32
    random: ClassVar[bool] = True

    @abstractmethod
    def on(self, x: Tensor) -> Estimate:
        """Return the estimates for a run from the data `x`, shape (B, ...), by which random probes are keyed."""

    @abstractmethod
    def integral(self, weights: Tensor, estimates: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return the sum over nodes of weight times trace, and its standard error from random probes, both (B,).

        Args:
            weights: those of a quadrature over the nodes, shape (K,).
            estimates: of the traces at the nodes, shape (K, m, B).
            size: the number of coordinates of a sample.
        """

    def __call__(
        self, drift: Callable[[Tensor], Tensor], x: Tensor, node: int = 0, estimate: Estimate | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the drift at the states `x`, (B, ...), and estimates of its divergence, (m, B), in float64.

        Both are differentiable in turn if grad mode is on, whether `x` requires grad or only the model's parameters do.

        Args:
            drift: the function x -> drift, sample by sample; it is called once.
            x: the states.
            node: the number of the evaluation; where probes are random, another number means new ones.
            estimate: what `on` returned for the data of a run; by default that for `x` itself.

        Raises:
            ValueError: the drift carries no graph back to `x`.
        """
        return differentiated(drift, x, self.chunk, lambda pull: (estimate or self.on(x))(pull, node, None))


def differentiated(
    drift: Callable[[Tensor], Tensor], x: Tensor, chunk: int, estimate: Callable[[Pull], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the drift at `x` and an estimate made from pulls through it, with their graphs if grad mode is on."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if keep and x.requires_grad else x.detach().requires_grad_()
        value = drift(x)
        require_graph(value)
        found = estimate(_pull(value, x, chunk, keep))
    return (value, found) if keep else (value.detach(), found.detach())


def require_graph(answer: Tensor) -> None:
    """Raise ValueError if an answer computed from a state that requires grad has lost the graph."""
    if not answer.requires_grad:
        raise ValueError(
            "The model's answer must be differentiable in the state for its divergence; it carries no graph. Take "
            "torch.no_grad, torch.inference_mode and detach out of the model; to an answer that is constant, add 0 * x."
        )


def _pull(value: Tensor, x: Tensor, chunk: int, keep: bool) -> Pull:
    def one(v: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(
            value, x, v.expand_as(x), retain_graph=True, create_graph=keep, materialize_grads=True
        )
        return pulled

    def pull(vectors: Tensor) -> Tensor:
        if chunk == 1 or len(vectors) == 1:
            return torch.stack([one(v) for v in vectors])
        return torch.cat([torch.func.vmap(one)(part) for part in vectors.split(chunk)])

    return pull


def forms(v: Tensor, image: Tensor) -> Tensor:
    """Return the inner products of vectors, shape (n, B, ...), sample by sample: shape (n, B), float64."""
    return (v * image).flatten(2).sum(2, dtype=torch.float64) if v.ndim > 2 else (v * image).to(torch.float64)


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
    random = False

    def __post_init__(self) -> None:
        at_least_one("chunk", self.chunk)

    def on(self, x: Tensor) -> Estimate:
        size, shape = x[0].numel(), x.shape[1:]

        def estimate(pull: Pull, node: int, control: Linear | None) -> Tensor:
            total = x.new_zeros(len(x), dtype=torch.float64)
            for first in range(0, size, self.chunk):
                which = torch.arange(first, min(first + self.chunk, size), device=x.device)
                basis = torch.nn.functional.one_hot(which, size).to(x.dtype).reshape(-1, 1, *shape)
                total = total + forms(basis, pull(basis)).sum(0)
            return total[None]

        return estimate

    def integral(self, weights: Tensor, estimates: Tensor, size: int) -> tuple[Tensor, Tensor]:
        total = torch.einsum("k,kmb->b", weights, estimates)
        return total, torch.zeros_like(total)


@dataclass(frozen=True)
class Hutchinson(Trace):
    """Unbiased estimates u' J u of the divergence with random probes u, one pass backward each.

    With a control variate W it is tr W + u' (J - W) u. A sample's probes are a function of the seed, the sample itself,
    the evaluation and the probe's number: not of its batch.

    The standard error is found from the spread of the probes of each node, and for a single probe from how the
    estimates jump from node to node, where the trace itself is smooth (fourth differences).

    Args:
        probes: how many at each node.
        probe: the law of a probe, `Rademacher()`, `Normals()` or `Sphere()`.
        seed: any whole number.
        chunk: how many probes go backward at once.

    Raises:
        ValueError: probes or chunk is below 1.

    Reference: Hutchinson 1990; Grathwohl et al. 2019 (arXiv 1810.01367), section 3.1.
    """

    probes: int = 1
    probe: Probe = Rademacher()
    seed: int = 0
    chunk: int = 32

    def __post_init__(self) -> None:
        at_least_one("probes", self.probes)
        at_least_one("chunk", self.chunk)

    def on(self, x: Tensor) -> Estimate:
        keys, size = content(x), x[0].numel()

        def estimate(pull: Pull, node: int, control: Linear | None) -> Tensor:
            drawn = [self.probe(keys, (self.seed, node, k), size) for k in range(self.probes)]
            return controlled(torch.stack(drawn).to(x.dtype).reshape(-1, *x.shape), pull, control)

        return estimate

    def integral(self, weights: Tensor, estimates: Tensor, size: int) -> tuple[Tensor, Tensor]:
        total = torch.einsum("k,kmb->b", weights, estimates) / estimates.shape[1]
        return total, independent_error(weights, estimates.detach())


def controlled(probes: Tensor, pull: Pull, control: Linear | None) -> Tensor:
    """Return u' (J - W) u + tr W for probes, shape (m, B, ...): shape (m, B)."""
    image = pull(probes)
    if control is None:
        return forms(probes, image)
    return forms(probes, image - control(probes)) + control.trace


def independent_error(weights: Tensor, estimates: Tensor) -> Tensor:
    """Return the standard error of a weighted sum of means of independent estimates, (K, m, B): shape (B,)."""
    count = estimates.shape[1]
    variances = estimates.var(1) / count if count > 1 else jumps(estimates[:, 0])
    error: Tensor = torch.einsum("k,kb->b", weights**2, variances).sqrt()
    return error


def jumps(values: Tensor) -> Tensor:
    """Return the variances of the noise on a smooth sequence, (K, B), from fourth differences; NaN for fewer than 5."""
    if len(values) < 5:
        return torch.full_like(values, torch.nan)
    stencil = values.new_tensor([1.0, -4.0, 6.0, -4.0, 1.0])
    found = torch.einsum("kbj,j->kb", values.unfold(0, 5, 1), stencil) ** 2 / stencil.square().sum()
    return torch.cat([found[:1], found[:1], found, found[-1:], found[-1:]])


def at_least_one(name: str, value: int) -> None:
    """Raise ValueError if a number is not a whole one of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
