r"""The log-likelihood along a curve of states at which a model was asked.

For any curve Y(tau) of states, whether or not it is a solution of dy/dtau = u,

    d/dtau log p_tau(Y) = - div u(Y) + s . (Y' - u(Y)),          s = grad log p_tau

so that from data, tau = a, to noise, tau = b,

    log p_a(Y_a) = log p_b(Y_b) + \int_a^b div u dtau - \int_a^b s . (Y' - u) dtau

What a solver misses, the defect Y' - u, is made good by the score. What is left is the error of quadratures, of order
six, through the values at the nodes. (For a network the score is its own, and what it is worth depends on how far it
is the gradient of the density that its flow has: the defect is small, so is that.)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

ORDERS = (6, 4)
"""The points of the local polynomials of the quadrature, and of the one that its error is seen against."""


@dataclass(frozen=True, eq=False)
class Curve:
    """States on the straight path and what the model said there: K nodes with tau rising.

    Attributes:
        tau: shape (K,), float64 on the CPU.
        y: the states, shape (K, B, d).
        velocity: u there, of the same shape.
        traces: estimates of div u, shape (K, m, B), float64.
        smooth: what is known of div u without random probes, shape (K, B) or (K, 1): its control variate, or itself.
    """

    tau: Tensor
    y: Tensor
    velocity: Tensor
    traces: Tensor
    smooth: Tensor

    def weights(self, points: int = ORDERS[0]) -> Tensor:
        """Return the weights of the quadrature over the nodes, shape (K,)."""
        return self._steps(points).sum(0)

    def correction(self, points: int = ORDERS[0]) -> Tensor:
        r"""Return - \int s . (Y' - u) dtau in nats, shape (B,)."""
        ahead, behind = self._defects(points)
        return -(ahead + behind) / 2

    def error(self) -> Tensor:
        """Return an estimate of the error of both integrals, in nats, shape (B,): what fewer points, and what the score
        at either end of the defects' steps, would have changed.
        """
        shift = self.change(self.smooth)
        ahead, behind = self._defects(ORDERS[0])
        change = (shift + self.correction() - self.correction(ORDERS[1])).abs()
        return (change + (ahead - behind).abs() / 2).detach()

    def change(self, values: Tensor) -> Tensor:
        """Return by how much the integral of values at the nodes, (K, ...), is less with fewer points."""
        return torch.einsum("k,k...->...", self.weights() - self.weights(ORDERS[1]), values)

    def scores(self) -> Tensor:
        """Return the scores at the nodes, shape (K, B, d); where tau = 0 and there is no noise, that of the next."""
        known = self.tau > 0
        tau = torch.where(known, self.tau, 1.0).to(self.y.device)[:, None, None]
        found = score(self.y, self.velocity, tau)
        return found if bool(known[0]) else torch.cat([found[1:2], found[1:]])

    def _defects(self, points: int) -> tuple[Tensor, Tensor]:
        """Return the sums over steps of score times defect, with the score at either end."""
        scores = self.scores()
        defect = self.y.diff(dim=0) - torch.einsum("sk,kbd->sbd", self._steps(points), self.velocity)
        return (scores[:-1] * defect).sum((0, 2)), (scores[1:] * defect).sum((0, 2))

    def _steps(self, points: int) -> Tensor:
        return steps(tuple(self.tau.tolist()), points).to(self.y.device)


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
