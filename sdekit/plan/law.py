r"""The law of a plan's outcome on Gaussian data, exactly: no sample is drawn, no network asked.

With data N(m, C) the exact model is affine in the state. Along an eigenvector of C with eigenvalue c,

    E[x0 | x] = m + alpha c / v (x - alpha m),      E[eps | x] = sigma / v (x - alpha m),      v = alpha^2 c + sigma^2

so every state of a plan is a sum of the start's mean, the data's mean and independent normal noises, with factors that
are numbers for each eigenvalue. Mean and covariance follow, and with them every distance of Gaussians.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import Time, as_time
from sdekit.oracle import Gaussian
from sdekit.plan.plan import Plan


@dataclass(frozen=True, eq=False)
class Law:
    """A Gaussian law in the eigenspaces of the data's covariance: N(shift * m, variance), float64.

    Args:
        shift: the mean in units of the data's mean, for each eigenvalue, shape (s,).
        variance: the variance along each eigenspace, shape (s,).
        means: the squared length of the data's mean within each eigenspace, shape (s,).
        counts: the dimension of each eigenspace, shape (s,).
    """

    shift: Tensor
    variance: Tensor
    means: Tensor
    counts: Tensor

    def w2(self, other: Law) -> Tensor:
        """Return the Wasserstein-2 distance to another law on the same data, 0-d."""
        return self.frechet(other).sqrt()

    def frechet(self, other: Law) -> Tensor:
        """Return the Frechet distance |mean - mean'|^2 + tr(C + C' - 2 (C C')^{1/2}), the square of `w2`, 0-d."""
        apart = self.means * (self.shift - other.shift) ** 2
        return (apart + self.counts * (self.variance.sqrt() - other.variance.sqrt()) ** 2).sum()

    def kl(self, other: Law) -> Tensor:
        """Return the Kullback-Leibler divergence KL(self | other) in nats, 0-d."""
        ratio = self.variance / other.variance
        apart = self.means * (self.shift - other.shift) ** 2 / other.variance
        return 0.5 * (apart + self.counts * (ratio - 1 - ratio.log())).sum()


def law(plan: Plan, data: Gaussian, start: Law | None = None) -> Law:
    """Return the exact law of a plan's outcome when its model is the exact one of Gaussian data.

    It is differentiable in the times from which the plan was traced.

    Args:
        plan: the table.
        data: the exact model, on the plan's process; any covariance.
        start: the law of the first states; by default N(0, sigma^2 I), from which sampling starts.

    Raises:
        ValueError: the data are on another process, or the plan is the second part of a split one.

    >>> from sdekit import DDIM, VP, LogSNR
    >>> from sdekit.plan import marginal, trace
    >>> data = Gaussian(VP(), torch.zeros(2, dtype=torch.float64), 0.5)
    >>> [round(float(law(trace(DDIM, VP(), LogSNR(n)), data).w2(marginal(data, VP().t_min))), 4) for n in (10, 20)]
    [0.1505, 0.0798]
    """
    if data.process != plan.process:
        raise ValueError(
            f"The data must be on the plan's process, {plan.process}; got {data.process}. Use one for both."
        )
    if plan.points[0] != 0:
        raise ValueError("The law of a run is that of a whole plan; this is the second part of one that was split.")
    start = start or noise(data, plan.rows[0].t)
    answers_at = [_answer(data, plan, t) for _, t in plan.asks]
    # each state's factors of: the data's mean, the noise it started from, and every noise drawn
    first = torch.zeros(2 + len(plan.draws), len(start.shift), dtype=torch.float64)
    first[0], first[1] = start.shift, start.variance.sqrt()
    states, answers = [first], [first] * len(plan.asks)
    for i, row in enumerate(plan.rows):
        if i:
            parts = [(states[k], c) for k, c in row.states] + [(answers[j], c) for j, c in row.answers]
            state = sum((c * part for part, c in parts[1:]), start=parts[0][1] * parts[0][0]) if parts else 0 * first
            for j, c in row.noises:
                state[2 + j] += c
            states.append(state)
        for j in plan.asks_within(i, i + 1):
            slope, offset = answers_at[j]
            answers[j] = slope * states[i]
            answers[j][0] += offset
    outcome = states[plan.points[-1]]
    return dataclasses.replace(start, shift=outcome[0], variance=outcome[1:].square().sum(0))


def marginal(data: Gaussian, t: Time) -> Law:
    """Return the law of Gaussian data at the time `t` of its process; at the clean end that of the data itself."""
    process = data.process
    clean = float(t) == process.clean
    alpha, sigma = (as_time(1.0), as_time(0.0)) if clean else (process.alpha(t), process.sigma(t))
    values = data.components.spectrum.values[0].double()
    return _law(data, alpha.expand_as(values), alpha**2 * values + sigma**2)


def noise(data: Gaussian, t: Time) -> Law:
    """Return the law N(0, sigma(t)^2 I), from which sampling starts at the time `t`."""
    values = torch.zeros_like(data.components.spectrum.values[0], dtype=torch.float64)
    return _law(data, values, values + data.process.sigma(t) ** 2)


def _law(data: Gaussian, shift: Tensor, variance: Tensor) -> Law:
    components = data.components
    return Law(shift, variance, components.offset_products[0].double(), components.spectrum.counts.double())


def _answer(data: Gaussian, plan: Plan, t: Time) -> tuple[Tensor, Tensor]:
    """Return (slope, offset) of the answer slope x + offset m in each eigenspace."""
    process, t = data.process, as_time(t)
    alpha, sigma, values = process.alpha(t), process.sigma(t), data.components.spectrum.values[0].double()
    a, b, c = plan.answers.mixture(process, t)
    slope = (a * alpha * values + b * sigma) / (alpha**2 * values + sigma**2)
    return slope / c, (a - alpha * slope) / c
