r"""The log-likelihood along a curve of states at which a model was asked.

For any curve Y(tau) of states, whether or not it is a solution of dy/dtau = u,

    d/dtau log p_tau(Y) = - div u(Y) + s . (Y' - u(Y)),          s = grad log p_tau

so that from data, tau = a, to noise, tau = b,

    log p_a(Y_a) = log p_b(Y_b) + \int_a^b div u dtau - \int_a^b s . (Y' - u) dtau

What a solver misses, the defect Y' - u, is made good by the score, to the square of the defect. What is left is the
error of quadratures through the values at the nodes.

That is so for an exact model. A network's score is not the gradient of the density that its flow has, so there the
second integral is not taken, but for a measure of what the states' errors do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

POINTS, FEWER = 6, 4
"""The points of the local polynomials of the quadrature, and of one to hold it against."""


@dataclass(frozen=True, eq=False)
class Curve:
    """States on the straight path and what the model said there: K nodes with tau rising.

    Attributes:
        tau: shape (K,), float64 on the CPU.
        y: the states, shape (K, B, d).
        velocity: u there, of the same shape.
        smooth: what is known of div u without random errors, shape (K, B) or (K, 1), or None.
        trust: what the score is worth: 1 if it is exact, 0 if it is not.
    """

    tau: Tensor
    y: Tensor
    velocity: Tensor
    smooth: Tensor | None
    trust: float = 1.0

    def weights(self, stride: int = 1) -> Tensor:
        """Return the weights of the quadrature over the nodes, or over one in `stride`: shape (K,)."""
        which = self._nodes(stride)
        some = self._steps(stride).sum(0)
        return some.new_zeros(len(self.tau)).index_put((which.to(some.device),), some)

    def change(self, values: Tensor) -> Tensor:
        """Return by how much the integral of values at the nodes, (K, B), is another with fewer points."""
        few = steps(tuple(self.tau.tolist()), FEWER).sum(0).to(values)
        return torch.einsum("k,kb->b", self.weights() - few, values)

    def correction(self, stride: int = 1) -> Tensor:
        r"""Return - \int s . (Y' - u) dtau in nats, as far as the score is trusted: shape (B,)."""
        ahead, behind = self._defects(stride)
        return -self.trust * (ahead + behind) / 2

    def error(self) -> Tensor:
        """Return an estimate of the error of integration, in nats, shape (B,).

        With I_1, I_2 and I_4 from all nodes, every second and every fourth, the changes a = |I_1 - I_2| and b =
        |I_2 - I_4| tell the order: the error of I_1 is taken for a rho / (1 - rho), rho = a / b between 1/32 and 0.7,
        but for no less than b / 100. Added is half of what the score at one end or the other of each step changes, and
        where the score is not trusted twice what it would have made good.
        """
        one, two, four = (self._known(stride) for stride in (1, 2, 4))
        a, b = (one - two).abs(), (two - four).abs()
        ratio = (a / b.clamp(min=1e-300)).clamp(1 / 32, 0.7)
        ahead, behind = self._defects(1)
        states = (ahead - behind).abs() / 2 + (1 - self.trust) * (ahead + behind).abs()
        return ((a * ratio / (1 - ratio)).maximum(b / 100) + states).detach()

    @cached_property
    def scores(self) -> Tensor:
        """The scores at the nodes, shape (K, B, d); where tau = 0 and there is no noise, that of the next."""
        known = self.tau > 0
        tau = torch.where(known, self.tau, 1.0).to(self.y.device)[:, None, None]
        found = score(self.y, self.velocity, tau)
        return found if bool(known[0]) else torch.cat([found[1:2], found[1:]])

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor]:
        """The inner products of the scores at all nodes with the velocities and with the states, shape (B, K, K)."""
        scores = self.scores.movedim(0, 1)
        return scores @ self.velocity.permute(1, 2, 0), scores @ self.y.permute(1, 2, 0)

    def _known(self, stride: int) -> Tensor:
        """Return what is not random of the integral."""
        found = self.correction(stride)
        return found if self.smooth is None else found + torch.einsum("k,kb->b", self.weights(stride), self.smooth)

    def _defects(self, stride: int) -> tuple[Tensor, Tensor]:
        """Return the sums over steps of score times defect, with the score at either end."""
        which, steps = self._nodes(stride), self._steps(stride)
        with_u, with_y = self._products
        if stride > 1:
            with_u, with_y = (p[:, which].movedim(2, 1)[:, which].movedim(1, 2) for p in (with_u, with_y))
        moved = torch.einsum("sk,bsk->bs", steps, with_u[:, :-1]), torch.einsum("sk,bsk->bs", steps, with_u[:, 1:])
        at, next_to = with_y.diagonal(0, 1, 2), with_y.diagonal(1, 1, 2)
        before = with_y.diagonal(-1, 1, 2)
        return (next_to - at[:, :-1] - moved[0]).sum(1), (at[:, 1:] - before - moved[1]).sum(1)

    def _nodes(self, stride: int) -> Tensor:
        last = len(self.tau) - 1
        return torch.tensor(sorted({*range(0, last, stride), last}))

    def _steps(self, stride: int) -> Tensor:
        return steps(tuple(self.tau[self._nodes(stride)].tolist()), POINTS).to(self.y)


def score(y: Tensor, velocity: Tensor, tau: Tensor | float) -> Tensor:
    """Return the score at tau > 0, in the coordinates of the straight path."""
    return -(y + (1 - tau) * velocity) / tau


@lru_cache(maxsize=64)
def steps(nodes: tuple[float, ...], points: int) -> Tensor:
    """Return the weights of the integral over every step, shape (K - 1, K), by the polynomial through the `points`
    nodes around it; with fewer nodes, through all.
    """
    tau, count = torch.tensor(nodes, dtype=torch.float64), min(points, len(nodes))
    steps = torch.arange(len(nodes) - 1)
    first = (steps - count // 2 + 1).clamp(0, len(nodes) - count)
    near = first[:, None] + torch.arange(count)
    length = (tau[1:] - tau[:-1])[:, None]
    places = (tau[near] - tau[:-1, None]) / length  # the step is [0, 1]
    powers = torch.arange(count, dtype=torch.float64)
    moments = (1 / (powers + 1)).expand(len(steps), count)
    local = torch.linalg.solve(places[:, None, :] ** powers[:, None], moments) * length
    return torch.zeros(len(steps), len(nodes), dtype=torch.float64).scatter_add(1, near, local)
