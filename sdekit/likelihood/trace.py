r"""The divergence of a velocity along a path: exact, or estimated with random probes, new ones at every node.

The divergence is the trace of the Jacobian J of a sample's velocity by the sample. Either way of finding it asks for
vectors v' J, each of which costs one pass backward through the network and none forward. Along a path the traces at the
nodes are summed with the weights of a quadrature, and random errors with them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from sdekit._value import Value
from sdekit.likelihood.control import Linear, Principal
from sdekit.likelihood.probes import Probe, Rademacher
from sdekit.noise import content

Pull: TypeAlias = Callable[[Tensor], Tensor]
"""Vectors v, shape (n, B or 1, ...), to J'v, shape (n, B, ...)."""


class Estimates(NamedTuple):
    """Estimates of a trace at a node, or at K of them: shape (m, B) or (K, m, B), float64.

    Attributes:
        forms: the estimates.
        control: those that the same probes give of the control variate, less its trace: of mean zero; or None.
    """

    forms: Tensor
    control: Tensor | None = None


Estimate: TypeAlias = Callable[[Pull, int, Linear | None], Estimates]
"""Called with a pull, the number of the node and a control variate, it returns estimates of the trace."""


STENCIL = torch.tensor([1.0, -4.0, 6.0, -4.0, 1.0], dtype=torch.float64)
"""Fourth differences, which leave of a smooth sequence nothing but noise."""


SINGLE = 1.2
"""By how much jumps from node to node fall short of a variance, for they have also found the share of the control."""


class Trace(Value, ABC):
    """How the divergence is found.

    Attributes:
        chunk: how many vectors go backward through the network at once, by `torch.func.vmap`; memory grows with it.
            With chunk = 1 the passes are plain ones, for a network with an operation that vmap does not know.
    """

    chunk: int = 32

    def random(self, size: int) -> bool:
        """Return whether the estimates for samples of `size` coordinates have errors of their own."""
        return True

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
        value, found = differentiated(drift, x, self.chunk, lambda pull: (estimate or self.on(x))(pull, node, None))
        return value, found.forms


def differentiated(
    drift: Callable[[Tensor], Tensor], x: Tensor, chunk: int, estimate: Callable[[Pull], Estimates]
) -> tuple[Tensor, Estimates]:
    """Return the drift at `x` and estimates made from pulls through it, with their graphs if grad mode is on."""
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        x = x if keep and x.requires_grad else x.detach().requires_grad_()
        value = drift(x)
        require_graph(value)
        found = estimate(_pull(value, x, chunk, keep))
    return (value, found) if keep else (value.detach(), Estimates(found.forms.detach(), found.control))


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
    product = v * image
    return product.reshape(*product.shape[:2], -1).sum(2, dtype=torch.float64)


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
        at_least_one("chunk", self.chunk)

    def random(self, size: int) -> bool:
        return False

    def on(self, x: Tensor) -> Estimate:
        size, shape = x[0].numel(), x.shape[1:]

        def estimate(pull: Pull, node: int, control: Linear | None) -> Estimates:
            total = x.new_zeros(len(x), dtype=torch.float64)
            for first in range(0, size, self.chunk):
                which = torch.arange(first, min(first + self.chunk, size), device=x.device)
                basis = torch.nn.functional.one_hot(which, size).to(x.dtype).reshape(-1, 1, *shape)
                total = total + forms(basis, pull(basis)).sum(0)
            return Estimates(total[None])

        return estimate

    def integral(self, weights: Tensor, estimates: Tensor, size: int) -> tuple[Tensor, Tensor]:
        total = torch.einsum("k,kmb->b", weights, estimates)
        return total, torch.zeros_like(total)


class Probing(Trace):
    """Estimates from random probes: their mean, with the error of independent ones."""

    probes: int

    def __post_init__(self) -> None:
        at_least_one("probes", self.probes)
        at_least_one("chunk", self.chunk)

    def integral(self, weights: Tensor, estimates: Tensor, size: int) -> tuple[Tensor, Tensor]:
        total = torch.einsum("k,kmb->b", weights, estimates) / estimates.shape[1]
        return total, independent_error(weights, estimates.detach())


@dataclass(frozen=True)
class Hutchinson(Probing):
    """Unbiased estimates u' J u of the divergence with random probes u, one pass backward each.

    With a control variate W it is u' J u - beta (u' W u - tr W). A sample's probes are a function of the seed, the
    sample itself, the evaluation and the probe's number: not of its batch.

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

    def on(self, x: Tensor) -> Estimate:
        keys, size = content(x), x[0].numel()

        def estimate(pull: Pull, node: int, control: Linear | None) -> Estimates:
            drawn = [self.probe(keys, (self.seed, node, k), size) for k in range(self.probes)]
            return controlled(torch.stack(drawn).to(x.dtype).reshape(-1, *x.shape), pull, control)

        return estimate


def controlled(probes: Tensor, pull: Pull, control: Linear | None) -> Estimates:
    """Return u' J u and, unless W is known in some directions alone, u' W u - tr W for probes, shape (m, B, ...)."""
    found = forms(probes, pull(probes))
    if control is None or isinstance(control.gaussian, Principal):
        return Estimates(found)
    return Estimates(found, control.form(probes) - control.trace)


def combined(weights: Tensor, estimates: Estimates) -> Tensor:
    """Return the estimates less beta times their control variates, shape (K, m, B), for the nodes of a path.

    The one beta of a sample, from 0 to 1.2, is what leaves the least variance of the weighted sum, as far as the
    estimates themselves tell: the ratio of covariance and variance, from the probes of a node, or from fourth
    differences. (What this biases the sum by is its standard error over the number of estimates.)
    """
    forms, control = estimates
    if control is None:
        return forms
    if len(forms) < len(STENCIL):  # too few to tell
        return forms - control
    found = forms.detach()
    if forms.shape[1] > 1:
        apart = [v - v.mean(1, keepdim=True) for v in (found, control)]
    else:
        apart = [torch.einsum("kmbj,j->kmb", v.unfold(0, 5, 1), STENCIL.to(v)) for v in (found, control)]
    squared = weights[(len(weights) - len(apart[0])) // 2 :][: len(apart[0])] ** 2
    shared, own = (torch.einsum("k,kmb->b", squared, v * apart[1]) for v in apart)
    beta: Tensor = (shared / own.clamp(min=1e-300)).clamp(0, 1.2)
    return forms - beta * control


def independent_error(weights: Tensor, estimates: Tensor) -> Tensor:
    """Return the standard error of a weighted sum of means of independent estimates, (K, m, B): shape (B,)."""
    count = estimates.shape[1]
    variances = estimates.var(1) / count if count > 1 else SINGLE * jumps(estimates[:, 0])
    error: Tensor = torch.einsum("k,kb->b", weights**2, variances).sqrt()
    return error


def jumps(values: Tensor) -> Tensor:
    """Return the variances of the noise on a smooth sequence, (K, B), from fourth differences; NaN for fewer than 5."""
    if len(values) < 5:
        return torch.full_like(values, torch.nan)
    found = torch.einsum("kbj,j->kb", values.unfold(0, 5, 1), STENCIL.to(values)) ** 2 / STENCIL.square().sum()
    return torch.cat([found[:1], found[:1], found, found[-1:], found[-1:]])


def at_least_one(name: str, value: int) -> None:
    """Raise ValueError if a number is not a whole one of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
