"""Fitting a member of the family: stage by stage by least squares, then through the whole run by Gauss-Newton."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sdekit._broadcast import like
from sdekit.plan.family import Member, sizes_of, spaced, tau_of, time_of
from sdekit.plan.fine import Counted, Fine
from sdekit.solvers.path import STRAIGHT

SKETCHES = 2
"""The random directions in which the outcome is differentiated for a Gauss-Newton step; its gradient is exact."""


PATH = 0.1
"""The weight of the states before the outcome, which keeps starts near a border between modes on their side of it."""


@dataclass(frozen=True, eq=False)
class Loss:
    """A robust mean over samples of the squared error s per coordinate: mean of (s + floor)^{power/2} 2/power.

    Args:
        floor: the squared error below which samples do not compete.
        power: 2 is the mean square, towards 0 it is the mean logarithm.
    """

    floor: float
    power: float

    def __call__(self, squares: Tensor) -> Tensor:
        return (squares + self.floor).pow(self.power / 2).mean() * (2 / self.power)

    def weight(self, squares: Tensor) -> Tensor:
        """Return the derivative of each sample's loss by its squared error."""
        return (squares + self.floor).pow(self.power / 2 - 1)


@dataclass(frozen=True, eq=False)
class Leaves:
    """A member's numbers, one copy for each sample, so that one backward pass gives every sample's derivatives.

    Args:
        times: shape (n, B).
        terms: shape (e, B), the coefficients c_ij of the pairs.
        pairs: the (i, j) of each.
    """

    times: Tensor
    terms: Tensor
    pairs: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, member: Member, batch: int) -> Leaves:
        """Return a member's leaves for a batch of so many samples."""
        c = member.coefficients(member.taus, member.weights)
        pairs = pairs_of(member)
        times = member.times[list(member.nodes[:-1])]
        terms = torch.stack([c[i, j] for i, j in pairs])
        spread = [v[:, None].expand(-1, batch).clone().requires_grad_() for v in (times, terms)]
        return cls(spread[0], spread[1], pairs)


def pairs_of(member: Member) -> tuple[tuple[int, int], ...]:
    """Return the (i, j) of the coefficients that may differ from 0."""
    n = len(member.weights)
    used = member.free | (member.weights != 0) | torch.eye(n, dtype=torch.bool)
    return tuple((int(i), int(j)) for i, j in used.nonzero())


def states(fine: Fine, leaves: Leaves) -> list[Tensor]:
    """Run a sampler on its leaves; return y where it asked and at the end, differentiable in them."""
    process, y = fine.model.process, fine.start
    kappas = process.alpha(leaves.times) + process.sigma(leaves.times)
    rows: dict[int, list[tuple[int, Tensor]]] = {}
    for (i, j), term in zip(leaves.pairs, leaves.terms, strict=True):
        rows.setdefault(i, []).append((j, term))
    answers: list[Tensor] = []
    made = [y]
    for i in range(len(leaves.times)):
        answers.append(STRAIGHT.of(fine.model(like(kappas[i], y) * y, leaves.times[i])))
        y = sum((like(term, y) * answers[j] for j, term in rows[i]), start=y)
        made.append(y)
    return made


def residual(fine: Fine, leaves: Leaves, made: list[Tensor]) -> Tensor:
    """Return the errors of the outcome and, `PATH` times, of the states before it: shape (B, numbers)."""
    taus = tau_of(fine.model.process, leaves.times)
    parts = [(made[-1] - fine.target).flatten(1)]
    for tau, y in zip(taus[1:], made[1:-1], strict=True):
        at = float(tau[0].detach())
        exact = fine.at(at) + like(tau - at, y) * fine.slope(at)  # to first order, since the times move
        parts.append((PATH / (len(taus) - 1) ** 0.5) * (y - exact).flatten(1))
    return torch.cat(parts, 1)


def squares(y: Tensor, target: Tensor) -> Tensor:
    """Return the squared error per coordinate of each sample, shape (B,), float64."""
    return (y - target).double().square().flatten(1).mean(1).cpu()


class Probe(NamedTuple):
    """In what a model can be differentiated: in the states, and in the times."""

    states: bool
    times: bool


def probe(model: Counted, x: Tensor, t: float) -> Probe:
    """Ask a model whether its answer has derivatives that are finite and, in the time, not 0 everywhere."""
    with torch.enable_grad():
        x = x[:2].detach().clone().requires_grad_()
        at = torch.full((len(x),), t, dtype=torch.float64, requires_grad=True)
        answer = model(x, at).answer
        if not answer.requires_grad:
            return Probe(False, False)
        slopes = torch.autograd.grad(answer.square().sum(), (x, at), allow_unused=True)
    fine = [slope is not None and bool(slope.isfinite().all() and slope.ne(0).any()) for slope in slopes]
    return Probe(fine[0], fine[0] and fine[1])


@torch.no_grad()
def by_stages(fine: Fine, member: Member, ridge: float = 1e-3) -> tuple[Member, Tensor]:
    """Fit the weights row by row, so that each state comes as near as it can to the fine solution at its time.

    Returns the member and its outcome's squared errors, shape (B,). It costs one run.

    The run goes on from the state reached, so later rows make up for what earlier ones have missed.

    Args:
        fine: the fine solution.
        member: the times and the weights to start from.
        ridge: the pull towards those weights, in units of the sums' own size.
    """
    taus, weights = member.taus, member.weights.clone()
    times = member.times
    kappas = (member.process.alpha(times) + member.process.sigma(times)).tolist()
    y, answers = fine.start, []
    for i in range(len(weights)):
        node, onto = member.nodes[i], member.nodes[i + 1]
        answers.append(STRAIGHT.of(fine.model(kappas[node] * y, times[node])))
        here = min(node, len(taus) - 2)
        scale, step = float(taus[here + 1] - taus[here]), float(taus[onto] - taus[node])
        weights[i] = _stage(
            fine, member, i, answers, (fine.at(float(taus[onto])) - y - step * answers[i]) / scale, ridge
        )
        y = y + step * answers[i]
        for j in range(i):
            if weights[i, j] != 0:
                y = y + scale * float(weights[i, j]) * (answers[j] - answers[i])
    return dataclasses.replace(member, weights=weights), squares(y, fine.target)


def _stage(fine: Fine, member: Member, i: int, answers: list[Tensor], wanted: Tensor, ridge: float) -> Tensor:
    """Return row i of the weights, for the best sum of P[j] - P[i]."""
    old = member.weights[i]
    free = member.free[i].nonzero().flatten().tolist()
    if not free:
        return old
    for j in (old.ne(0) & ~member.free[i]).nonzero().flatten().tolist():
        wanted = wanted - float(old[j]) * (answers[j] - answers[i])
    apart = torch.stack([(answers[j] - answers[i])[fine.train].flatten().double() for j in free])
    gram, onto = (apart @ apart.T).cpu(), (apart @ wanted[fine.train].flatten().double()).cpu()
    pull = (ridge * gram.diagonal().mean() + 1e-300) * torch.eye(len(free), dtype=torch.float64)
    row = old.clone()
    row[free] += torch.linalg.solve(gram + pull, onto - gram @ old[free])
    return row


def descend(fine: Fine, member: Member, loss: Loss, probe: Probe, seed: int) -> Iterator[tuple[Member, Tensor]]:
    """Yield the members tried by a damped Gauss-Newton descent, the start first, with their squared errors (B,).

    Each costs one run. It ends where no step is small enough to gain; the caller's budget may end it before.
    """
    generator = torch.Generator().manual_seed(seed)
    damping, best = 1e-2, math.inf
    trial, normal = member, None
    while damping < 1e8:
        with torch.enable_grad():
            leaves = Leaves.of(trial, len(fine.start))
            made = states(fine, leaves)
            errors, error = squares(made[-1].detach(), fine.target), residual(fine, leaves, made)
            total = error.detach().double().square().sum(1).cpu() / made[0][0].numel()
            value = float(loss(total[fine.train]))
            if value < best:
                best, member, damping = value, trial, max(damping / 4, 1e-7)
                weights = torch.zeros_like(total)
                weights[fine.train] = loss.weight(total[fine.train]) / len(fine.train)
                normal = _pulled(_normal(leaves, error, weights, generator), _jacobian(member, leaves, probe.times))
            else:
                damping *= 5
            del leaves, made, error
        yield trial, errors
        if normal is None:
            return
        gradient, hessian = normal
        scale = hessian.diagonal()
        lifted = hessian + damping * torch.diag(scale + 1e-4 * scale.mean() + 1e-300)
        trial = _moved(member, -torch.linalg.solve(lifted, gradient), probe.times)


def _pulled(normal: tuple[Tensor, Tensor], back: Tensor) -> tuple[Tensor, Tensor]:
    gradient, hessian = normal
    return back.T @ gradient, back.T @ hessian @ back


def _normal(leaves: Leaves, error: Tensor, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the gradient of the weighted sum of squared errors in the leaves, and a sketch of its Gauss-Newton matrix.

    Args:
        leaves: where the derivatives are taken.
        error: the errors, shape (B, numbers).
        weights: the samples' weights, shape (B,).
        generator: of the sketch.
    """
    signs = torch.randint(0, 2, (SKETCHES, *error.shape), generator=generator).to(error) * 2 - 1
    passes = [error.detach() * weights[:, None].to(error), *(signs * (1 / SKETCHES**0.5))]
    slopes = []
    for k, direction in enumerate(passes):
        parts = torch.autograd.grad(
            error, (leaves.times, leaves.terms), direction, retain_graph=k + 1 < len(passes), allow_unused=True
        )
        slopes.append(torch.cat(parts).detach().double())
    rows = torch.cat([slope * weights.sqrt() for slope in slopes[1:]], 1)
    return slopes[0].sum(1), rows @ rows.T


def _numbers(member: Member, moving: bool) -> Tensor:
    gaps = sizes_of(member.process, member.taus) if moving else member.taus[:0]
    return torch.cat([gaps, member.weights[member.free]])


def _placed(member: Member, numbers: Tensor, moving: bool) -> tuple[Tensor, Tensor]:
    """Return the nodes and the weights for a vector of numbers."""
    m = len(member.taus) - 1 if moving else 0
    taus = spaced(member.process, member.taus[[0, -1]], numbers[:m]) if moving else member.taus
    at = member.free.nonzero()
    weights = torch.index_put(torch.where(member.free, 0.0, member.weights), (at[:, 0], at[:, 1]), numbers[m:])
    return taus, weights


def _moved(member: Member, by: Tensor, moving: bool) -> Member:
    taus, weights = _placed(member, _numbers(member, moving) + by, moving)
    return dataclasses.replace(member, taus=taus, weights=weights)


def _jacobian(member: Member, leaves: Leaves, moving: bool) -> Tensor:
    """Return the derivatives of the leaves' numbers in the member's, shape (n + e, numbers)."""
    rows, columns = torch.tensor(leaves.pairs).T
    asked = list(member.nodes[:-1])

    def read(numbers: Tensor) -> Tensor:
        taus, weights = _placed(member, numbers, moving)
        return torch.cat([taus[asked], member.coefficients(taus, weights)[rows, columns]])

    back: Tensor = torch.func.jacfwd(read)(_numbers(member, moving))
    taus = member.taus.clone().requires_grad_()
    (pace,) = torch.autograd.grad(time_of(member.process, taus).sum(), taus)
    ahead = torch.cat([pace[asked].nan_to_num(0.0, 0.0, 0.0), torch.ones(len(leaves.pairs), dtype=torch.float64)])
    return ahead[:, None] * back
