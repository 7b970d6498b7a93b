"""Guides: each multiplies the density by a factor h(x_t)^s, and so adds s grad log h to the score.

A guide is a small object that belongs to no model. `Guided(model, *guides)` puts them together.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sdekit.guidance.scale import ALWAYS, Interval, Scale, strength
from sdekit.prediction import Model
from sdekit.process import Process


@dataclass(frozen=True, eq=False, kw_only=True)
class Guide(ABC):
    """A factor h^scale of the density. One of `Ratio`, `Potential`, or what derives from `ThroughData`.

    Args:
        scale: the exponent s, a number or a function of lam = log(alpha / sigma).
        within: the noise levels at which the guide acts.
    """

    scale: Scale = 1.0
    within: Interval = ALWAYS

    def strength(self, process: Process, t: Tensor) -> Tensor:
        """Return the exponent at the times `t`, of their shape; 0 outside the interval."""
        return strength(process, t, self.scale, self.within)

    @property
    def calls(self) -> int:
        """The calls of networks of its own that the guide makes for a prediction, the models of a `Ratio` apart."""
        return 0

    @abstractmethod
    def holds(self) -> tuple[Any, ...]:
        """Return the models and functions that the guide is made of."""

    @abstractmethod
    def select(self, which: Tensor, of: Callable[[Any], Any]) -> Self:
        """Return the guide of some samples of a batch.

        Args:
            which: their numbers.
            of: gives a model or function that the guide holds for these samples.
        """


@dataclass(frozen=True, eq=False)
class Ratio(Guide):
    """h = p_above(x_t) / p_below(x_t): the score gains s (score of `above` - score of `below`).

    With a conditional model above and an unconditional one below, h is their p(y | x_t): classifier-free guidance. With
    a good model above and a worse one below it is autoguidance; with two conditions, one wanted and one not.

    Args:
        above: the model whose density is raised.
        below: the model whose density is lowered; on the same process.

    References:
        Ho & Salimans 2022 (arXiv 2207.12598); Liu et al. 2022 (arXiv 2206.01714) for several;
        Karras et al. 2024 (arXiv 2406.02507) for autoguidance.
    """

    above: Model
    below: Model

    def holds(self) -> tuple[Any, ...]:
        return self.above, self.below

    def select(self, which: Tensor, of: Callable[[Any], Any]) -> Self:
        return replace(self, above=of(self.above), below=of(self.below))


@dataclass(frozen=True, eq=False)
class Potential(Guide):
    """h = exp(log_h(x_t, t)), any function of the noisy state whose gradient autograd can take: classifier guidance.

    Args:
        log_h: a function of the states, shape (B, ...), and the time, that returns shape (B,), sample by sample:
            `classifier.given(label)` of a `NoisyClassifier`. An attribute `calls` says how many network calls it makes.

    Reference: Song et al. 2021 (arXiv 2011.13456), eq. 14; Dhariwal & Nichol 2021 (arXiv 2105.05233), section 4.
    """

    log_h: Callable[[Tensor, Tensor], Tensor]

    @property
    def calls(self) -> int:
        return int(getattr(self.log_h, "calls", 0))

    def gradient(self, x: Tensor, t: Tensor) -> Tensor:
        """Return grad log h at the states `x`, shape (B, ...), and the time `t`."""
        return gradient(lambda x: self.log_h(x, t.clone()), x)  # made anew where inference mode is off

    def holds(self) -> tuple[Any, ...]:
        return (self.log_h,)

    def select(self, which: Tensor, of: Callable[[Any], Any]) -> Self:
        return replace(self, log_h=of(self.log_h))


class ThroughData(Guide):
    """h is a function of x0_hat, the model's E[x0 | x_t]; the chain rule goes through the network:

        grad_x log h = J^T grad log h(x0_hat),        J = d x0_hat / d x = alpha / sigma^2 Cov[x0 | x_t]

    which costs a pass backward through it. `Frozen(guide)` is the same without the network's Jacobian.
    """

    @abstractmethod
    def gradient(self, x0: Tensor, process: Process, t: Tensor) -> Tensor:
        """Return grad log h with respect to x0_hat at `x0`, of its shape."""


@dataclass(frozen=True, eq=False)
class Reward(ThroughData):
    """h = exp(reward(x0_hat)). For a loss, give its negative.

    On Gaussian data and with a linear reward this is the exact tilt by E[exp(reward(x0)) | x_t]; otherwise the mean
    stands for the law of x0 given x_t, which is too sure of itself at high noise.

    Args:
        reward: a differentiable function of data, shape (B, ...), that returns shape (B,), sample by sample.

    Reference: Chung et al. 2023 (arXiv 2209.14687); Bansal et al. 2023 (arXiv 2302.07121).
    """

    reward: Callable[[Tensor], Tensor]

    @property
    def calls(self) -> int:
        return int(getattr(self.reward, "calls", 0))

    def gradient(self, x0: Tensor, process: Process, t: Tensor) -> Tensor:
        return gradient(self.reward, x0)

    def holds(self) -> tuple[Any, ...]:
        return (self.reward,)

    def select(self, which: Tensor, of: Callable[[Any], Any]) -> Self:
        return replace(self, reward=of(self.reward))


@dataclass(frozen=True, eq=False)
class Frozen(Guide):
    """A guide through x0_hat that holds the predicted noise fixed, so that J = d x0_hat / d x is I / alpha:

        x0_hat = (x - sigma eps_hat) / alpha

    It saves the pass backward and is a cruder guide: where J should damp it, it pulls at full strength. At high noise
    1 / alpha is large; an `Interval`, or a scale that falls with the noise, keeps it in check.

    Args:
        guide: the guide through x0_hat; both scales multiply.
    """

    guide: ThroughData

    def strength(self, process: Process, t: Tensor) -> Tensor:
        return super().strength(process, t) * self.guide.strength(process, t)

    @property
    def calls(self) -> int:
        return self.guide.calls

    def holds(self) -> tuple[Any, ...]:
        return self.guide.holds()

    def select(self, which: Tensor, of: Callable[[Any], Any]) -> Self:
        return replace(self, guide=self.guide.select(which, of))


def gradient(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return the gradient of f at `x`, sample by sample; with its own graph if grad mode is on.

    Raises:
        ValueError: f does not return one number a sample, or the number does not depend on `x`.
    """
    keep = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        x = attached(x, keep)
        value = f(x)
        if value.shape != x.shape[:1]:
            raise ValueError(
                f"A guide must give one number a sample, shape ({len(x)},); it gave {tuple(value.shape)}. Sum over the "
                "coordinates."
            )
        return pulled(value, x, torch.ones_like(value), keep)


def attached(x: Tensor, keep: bool) -> Tensor:
    """Return `x` with gradients to be taken: itself, if `keep` and it has a graph, else a leaf of its own."""
    return x if keep and x.requires_grad else x.detach().clone().requires_grad_()


def pulled(value: Tensor, x: Tensor, cotangent: Tensor, keep: bool) -> Tensor:
    """Return the transposed Jacobian d value / d x times `cotangent`; with its graph if `keep`."""
    if not value.requires_grad:
        raise ValueError(
            "What guides must be differentiable in the state; it carries no graph. Take torch.no_grad and detach out "
            "of the model or the function."
        )
    (found,) = torch.autograd.grad(value, x, cotangent, create_graph=keep, materialize_grads=True)
    return found


def total(terms: list[Tensor]) -> Tensor:
    """Return the sum of at least one tensor."""
    return functools.reduce(torch.add, terms)
