r"""A sampler with its numbers as parameters: what `tune` fits.

In the coordinates y = x/(alpha + sigma) and tau = sigma/(alpha + sigma) every process flows alike, dy/dtau = P with
P = eps - x0. A sampler of n answers, in which P and the times may be anything and constant P is exact, is

    Y[i+1] = Y[i] + (tau[i+1] - tau[i]) P[i] + s[i] sum_{j<i} u_ij (P[j] - P[i]),        s[i] a length of step

Every explicit deterministic method is of that form, with weights u of its own.

Reference: Shaul et al. 2024 (arXiv 2403.01329), who call such solvers non-stationary.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.equation import ProbabilityFlow
from sdekit.plan.plan import Plan
from sdekit.plan.rows import Row, shortened
from sdekit.prediction import X0, Mixture, Target
from sdekit.process import Process


@dataclass(frozen=True)
class Straight(Target):
    """The straight velocity P = eps - x0, the derivative of x/(alpha + sigma) in sigma/(alpha + sigma)."""

    def mixture(self, process: Process, t: Tensor) -> Mixture:
        return -1.0, 1.0, 1.0


@dataclass(frozen=True, eq=False)
class Member:
    """One sampler of the family, float64.

    Args:
        process: the forward process.
        taus: the nodes, falling, shape (m + 1,); the last is where the run ends.
        nodes: the node of each state that is asked about, and of the outcome: n + 1 numbers.
        weights: u, shape (n, n), strictly lower triangular.
        free: which of the weights may be fitted, of the same shape.
        ends: the first and the last time, to the last bit; by default as tau says.
    """

    process: Process
    taus: Tensor
    nodes: tuple[int, ...]
    weights: Tensor
    free: Tensor
    ends: tuple[float, float] | None = None

    @property
    def times(self) -> Tensor:
        """The times of the nodes."""
        times = time_of(self.process, self.taus)
        if self.ends is not None:
            times[0], times[-1] = self.ends
        return times

    def coefficients(self, taus: Tensor, weights: Tensor) -> Tensor:
        """Return c with Y[i+1] = Y[i] + sum_j c_ij P[j], shape (n, n), for nodes and weights like the member's own."""
        nodes = torch.tensor(self.nodes)
        steps = taus[nodes[1:]] - taus[nodes[:-1]]
        here = nodes[:-1].clamp(max=len(self.taus) - 2)
        past = (taus[here + 1] - taus[here])[:, None] * weights
        return past + torch.diag(steps - past.sum(1))

    def plan(self, answers: Target) -> Plan:
        """Return the sampler as a table, written for a model that answers in this target."""
        times = self.times
        kappas = (self.process.alpha(times) + self.process.sigma(times))[list(self.nodes)].tolist()
        c = self.coefficients(self.taus, self.weights)
        rows = [Row(float(times[self.nodes[0]]))]
        for i, node in enumerate(self.nodes[1:]):
            terms = tuple((j, kappas[i + 1] * float(c[i, j])) for j in range(i + 1) if c[i, j] != 0)
            rows.append(Row(float(times[node]), ((i, kappas[i + 1] / kappas[i]),), terms))
        asks = tuple((i, float(times[node])) for i, node in enumerate(self.nodes[:-1]))
        points = tuple(range(len(rows)))
        plan = Plan(self.process, ProbabilityFlow(), Straight(), shortened(rows), asks, (), points)
        return plan.to(answers)


def tau_of(process: Process, t: Tensor) -> Tensor:
    """Return tau = sigma/(alpha + sigma) at the times `t`; 0 at the clean end."""
    clean = t == process.clean
    alpha, sigma = process.alpha(t), process.sigma(t)
    return torch.where(clean, 0.0, sigma / (alpha + sigma))


def time_of(process: Process, taus: Tensor) -> Tensor:
    """Return the times at which tau is reached, the inverse of `tau_of`."""
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    first, last = tau_of(process, ends)
    inner = taus.clamp(last, first)
    times = process.time((1 - inner).log() - inner.log())
    times = torch.where(taus >= first, ends[0], torch.where(taus <= last, ends[1], times))
    clean = (taus <= 0) & (last > 0)
    return torch.where(clean, torch.full_like(times, process.clean), times)


def member_of(plan: Plan) -> Member | None:
    """Return a plan as a member of the family; None if it is none: stochastic, or not exact for constant P."""
    if plan.draws or plan.points[0] != 0 or plan.nfe != len(plan.asks):
        return None
    process, n = plan.process, len(plan.asks)
    at = torch.tensor([*(t for _, t in plan.asks), plan.times[-1]], dtype=torch.float64)
    taus = tau_of(process, at)
    kappas = torch.where(at == process.clean, 1.0, process.alpha(at) + process.sigma(at))
    states, answers, _ = plan.to(X0()).expanded
    sums = torch.zeros(n + 1, n + 1, dtype=torch.float64)  # of y0 and of P
    for i in range(n + 1):
        sums[i, 0] = states[i, 0] * kappas[0] / kappas[i]
        for j in range(min(i, n)):  # x0 = y - tau P
            c = answers[i, j] / kappas[i]
            sums[i] += c * sums[j]
            sums[i, j + 1] -= c * taus[j]
    gaps = torch.diff(sums[:, 1:], dim=0)
    off = (sums[:, 0] - 1).abs().max() + (gaps.sum(1) - torch.diff(taus)).abs().max()
    nodes_at = torch.unique(taus).flip(0)
    if float(off) > 1e-8 or len(nodes_at) < 2 or float(taus[-1]) > float(nodes_at[-1]):
        return None
    nodes = tuple(int((nodes_at == tau).nonzero()[0]) for tau in taus)
    here = torch.tensor(nodes[:-1]).clamp(max=len(nodes_at) - 2)
    weights = (gaps / torch.diff(nodes_at)[here][:, None]).tril(-1)
    return Member(process, nodes_at, nodes, weights, weights != 0, (plan.times[0], plan.times[-1]))


def widened(member: Member, width: int) -> Member:
    """Return the member with the weights of the last `width` answers free as well."""
    n = len(member.weights)
    band = torch.ones(n, n, dtype=torch.bool).tril(-1).triu(-width)
    return dataclasses.replace(member, free=member.free | band)


def adams(process: Process, taus: Tensor, points: int) -> Member:
    """Return Adams-Bashforth through so many values of P on a grid of taus: the family's plainest member.

    Args:
        process: the forward process.
        taus: the nodes, falling, shape (n + 1,).
        points: through how many values, as far as they are there.
    """
    n = len(taus) - 1
    weights = torch.zeros(n, n, dtype=torch.float64)
    steps = torch.diff(taus)
    for i in range(n):
        k = min(points, i + 1)
        at = (taus[i - k + 1 : i + 1] - taus[i]) / steps[i]
        powers = torch.arange(k, dtype=torch.float64)
        w = torch.linalg.solve(at[None, :] ** powers[:, None], 1 / (powers + 1))
        weights[i, i - k + 1 : i] = w[:-1]
    return Member(process, taus, tuple(range(n + 1)), weights, weights != 0)
