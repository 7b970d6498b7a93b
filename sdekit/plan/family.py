r"""A sampler with its numbers as parameters: what `tune` fits.

In the coordinates y = x/(alpha + sigma) and tau = sigma/(alpha + sigma) every process flows alike, dy/dtau = P with
P = eps - x0. A sampler of n answers, in which P and the times may be anything and constant P is exact, is

    Y[i+1] = Y[i] + (tau[i+1] - tau[i]) P[i] + s[i] sum_{j<i} u_ij (P[j] - P[i]),        s[i] a length of step

Every explicit deterministic method is of that form, with weights u of its own.

Reference: Shaul et al. 2024 (arXiv 2403.01329), who call such solvers non-stationary.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.equation import ProbabilityFlow
from sdekit.plan.plan import Plan
from sdekit.plan.rows import Row, shortened
from sdekit.prediction import X0, Mixture, Target
from sdekit.process import Process

LEAST = 1e-6
"""The least step that a fit may make, as a share of the way in tau."""


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
        taus: the nodes, strictly falling, shape (m + 1,); the last is where the run ends, and where that is the clean
            end, those before are at least tau(t_min), the least at which a model is asked.
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
        plan = Plan(self.process, ProbabilityFlow(), Straight(), shortened(rows), asks, (), self._points)
        return plan.to(answers)

    @property
    def _points(self) -> tuple[int, ...]:
        """The start, and of the states at each further node the last, unless the run goes back before that node."""
        later = itertools.accumulate(reversed(self.nodes), min)
        ahead = [*later][-2::-1]  # the first of the nodes to come
        steps = (i for i, node in enumerate(self.nodes[:-1]) if 0 < node < ahead[i])
        return (0, *steps, len(self.nodes) - 1)


def tau_of(process: Process, t: Tensor) -> Tensor:
    """Return tau = sigma/(alpha + sigma) at the times `t`; 0 at the clean end."""
    clean = t == process.clean
    alpha, sigma = process.alpha(t), process.sigma(t)
    return torch.where(clean, 0.0, sigma / (alpha + sigma))


def time_of(process: Process, taus: Tensor) -> Tensor:
    """Return the times at which tau is reached, the inverse of `tau_of`: of 0 the clean end."""
    ends = torch.tensor([process.t_max, process.t_min], dtype=torch.float64)
    first, last = tau_of(process, ends)
    inner = taus.clamp(last, first)
    times = process.time((1 - inner).log() - inner.log()).clamp(process.t_min, process.t_max)
    times = torch.where(taus >= first, ends[0], torch.where(taus <= last, ends[1], times))
    clean = (taus <= 0) & (last > 0)
    return torch.where(clean, torch.full_like(times, process.clean), times)


def stretched(process: Process, taus: Tensor, ends: Tensor) -> Tensor:
    """Return a grid of taus stretched, so that it leads from one end to the other; gaps stay at their least or above.

    Args:
        process: the forward process.
        taus: the nodes, strictly falling, shape (n + 1,).
        ends: the first and the last tau, shape (2,).
    """
    shares = (taus - taus[0]) / (taus[-1] - taus[0])
    return spaced(process, ends, sizes_of(process, torch.lerp(ends[0], ends[1], shares)))


def spaced(process: Process, ends: Tensor, sizes: Tensor) -> Tensor:
    """Return the nodes from one tau to the other whose gaps have these sizes, but for the least that they must have.

    Whatever the sizes, the nodes are those of a `Member`: strictly falling, and with times that are.

    Args:
        process: the forward process.
        ends: the first and the last tau, shape (2,).
        sizes: the logarithms of the gaps' shares of the rest of the way, but for a constant, shape (m,).
    """
    least = _least(process, ends, len(sizes))
    gaps = least + (ends[0] - ends[1] - least.sum()) * torch.softmax(sizes, 0)
    return torch.cat([ends[:1], ends[0] - gaps.cumsum(0)[:-1], ends[1:]])


def sizes_of(process: Process, taus: Tensor) -> Tensor:
    """Return the sizes of which `spaced` makes the nodes `taus`; -inf for a gap at its least or below, where it stays.

    So it is with the gap from t_min to the clean end: a model may be asked at t_min itself, and then is.
    """
    least = _least(process, taus[[0, -1]], len(taus) - 1)
    return (-torch.diff(taus) - least).clamp(min=0).log()


def _least(process: Process, ends: Tensor, count: int) -> Tensor:
    """Return the least that gaps must be: the one that leads to the clean end begins at tau(t_min) or before."""
    asked = _asked(process, ends[1])
    return LEAST * (ends[0] - asked) + torch.cat([ends.new_zeros(count - 1), (asked - ends[1])[None]])


def _asked(process: Process, tau: Tensor) -> Tensor:
    """Return the tau at which a model is asked that is the nearest to a given one."""
    return torch.maximum(tau, tau_of(process, torch.tensor(process.t_min, dtype=torch.float64)))


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
