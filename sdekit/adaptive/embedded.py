"""Embedded exponential pairs, in which every sample has a time, a step and an end of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit._broadcast import like
from sdekit.adaptive.batch import finite, of_samples
from sdekit.adaptive.control import RETRIES, SMALLEST, STRETCH, after_failure, after_success
from sdekit.adaptive.control import first as first_step
from sdekit.adaptive.outcome import Adapted, Control, Status, check_tolerances
from sdekit.adaptive.pairs import PAIRS, Flow, Pair, Span
from sdekit.adaptive.paths import AnswerPath, OnVelocity, scale
from sdekit.prediction import Model, calls
from sdekit.process import Process

EDGE = 5.0
"""Where |lam| is infinite at an end of the run, the part beyond this value is integrated in the angle."""

INNER = 3
"""The highest order of which all stages lie before the end of the step, where sigma may be 0."""

RUNNING = -1


@dataclass(frozen=True)
class Embedded(Control):
    """An embedded exponential pair on the probability flow, with step control for every sample by itself.

    A step is accepted if the estimated error of the sample is at most 1 in

        root mean square over the coordinates of  error / (atol + rtol max(|x_t|, |x_s|))

    with states and errors in units of the marginal's scale sqrt(alpha^2 + sigma^2), so that one tolerance means the
    same on every process. The state goes on with the higher order. After a rejected step the answer at its start is
    kept. The samples still running are asked as one smaller batch, each at its own time, so a sample's result depends
    on no other one. A model whose condition differs by sample must be able to choose among them: `Denoiser.given` is;
    any other model says so in a method `select(which)` that returns the model of the samples with these numbers.

    Where lam is infinite (alpha = 0 or sigma = 0 at an end), the part of the run with |lam| > 5 is integrated with the
    same pair and control on `OnVelocity`, in the angle; no model is asked where sigma = 0.

    Args:
        order: 2 or 3, that of the higher method.
        path: what is integrated with exact weights: OnVelocity(), OnData() or OnNoise().
        rtol: relative tolerance per step.
        atol: absolute tolerance per step, in units of the marginal's scale.
        budget: the network calls that a sample may cost. Where the next step would cost more, its run ends.

    Raises:
        ValueError: an order that does not exist, a tolerance that is not positive, or a budget below 1.

    Reference: Lu et al. 2022 (arXiv 2206.00927), appendix C (adaptive step size); Hairer, Norsett & Wanner 1993, II.4.
    """

    order: int = 3
    path: AnswerPath = OnVelocity()
    rtol: float = 1e-3
    atol: float = 1e-3
    budget: int = 1000

    def __post_init__(self) -> None:
        check_tolerances(self.rtol, self.atol, self.budget)
        if self.order not in PAIRS:
            raise ValueError(f"Embedded pairs have the orders {sorted(PAIRS)}; got {self.order!r}.")
        if not isinstance(self.path, AnswerPath):
            raise TypeError(f"path must be OnData(), OnNoise() or OnVelocity(); got {self.path!r}.")

    def run(self, model: Model, x: Tensor, t: float, s: float) -> Adapted:
        run = _Run(self, model, x, t)
        for path, end in _legs(model.process, self, t, s):
            run.go(path, end)
        status = torch.where(run.status == RUNNING, int(Status.DONE), run.status)
        return Adapted(run.x, run.t, run.nfe, run.calls, status, run.error)


def _legs(process: Process, how: Embedded, t: float, s: float) -> list[tuple[AnswerPath, float]]:
    """Return the paths of a run one after the other, with the time to which each goes."""
    path, ends = how.path, [float(process.lam(end)) for end in (t, s)]
    if all(math.isfinite(end) for end in ends) or (path == OnVelocity() and how.order <= INNER):
        return [(path, s)]
    a, b = (
        end if math.isfinite(u) else float(process.time(math.copysign(EDGE, u)))
        for end, u in zip((t, s), ends, strict=True)
    )
    if not 0 <= (a - t) / (s - t) < (b - t) / (s - t) <= 1:  # nothing between the edges
        return [(OnVelocity(), s)]
    return [(OnVelocity(), a), (path, b), (OnVelocity(), s)]  # one without length asks nothing


class _Run:
    """The state of every sample of a run; all but `x` and `now` live on the CPU in float64, shape (B,)."""

    def __init__(self, how: Embedded, model: Model, x: Tensor, t: float) -> None:
        self.how, self.model, self.process = how, model, model.process
        self.pair: Pair
        self.per_call = calls(model)
        self.calls, self.x, count = 0, x, len(x)
        self.t = torch.full((count,), t, dtype=torch.float64)
        self.error = torch.zeros_like(self.t)
        self.nfe = torch.zeros(count, dtype=torch.long)
        self.status = torch.full((count,), RUNNING)

    def go(self, path: AnswerPath, end: float) -> None:
        """Bring every sample still running to the time `end`, or to the end of its run."""
        self.path, self.end = path, end
        inner = math.isfinite(float(self.process.lam(end)))
        self.pair = PAIRS[self.how.order if inner else min(self.how.order, INNER)]
        self.u = path.at(self.process, self.t)
        self.u_end = path.at(self.process, torch.tensor(end, dtype=torch.float64))
        first = path.pace * first_step(max(self.how.rtol, self.how.atol), self.pair.order)
        self.h = torch.full_like(self.u, first)  # without its sign
        self.before = torch.ones_like(self.u)
        self.failures, self.bad = (torch.zeros(len(self.u), dtype=torch.long) for _ in range(2))
        self.known = torch.zeros(len(self.u), dtype=torch.bool)
        self.now = torch.zeros_like(self.x)
        while len(which := self._running()):
            self._begin(which)
            which = which[self.status[which] == RUNNING]
            if len(which):
                self._attempt(which)

    def _running(self) -> Tensor:
        """Return the numbers of the samples that can pay for a step towards the end of the leg."""
        active = (self.status == RUNNING) & (self.t != self.end)
        cost = self.per_call * (self.pair.evals - self.known.long())
        broke = active & (self.nfe + cost > self.how.budget)
        self.status[broke] = int(Status.BUDGET)
        return (active & ~broke).nonzero().flatten()

    def _ask(self, which: Tensor, x: Tensor, t: Tensor) -> Tensor:
        self.nfe[which] += self._cost(t)
        self.calls += 1
        return self.path.answer(of_samples(self.model, which, len(self.x))(x, t))

    def _cost(self, t: Tensor) -> Tensor | int:
        """Return the network calls of a prediction at the times `t`, a time a sample."""
        if not hasattr(self.model, "calls_at"):
            return self.per_call
        return torch.tensor([calls(self.model, s) for s in t.tolist()])

    def _begin(self, which: Tensor) -> None:
        """Ask for the answers at the starts of steps that are not known from an attempt before."""
        which = which[~self.known[which]]
        if len(which):
            rows = which.to(self.x.device)
            answer = self._ask(which, self.x[rows], self.t[which])
            self.now = self.now.index_copy(0, rows, answer)
            self.known[which] = True
            self.status[which[~finite(answer)]] = int(Status.NOT_FINITE)  # a smaller step would ask the same

    def _attempt(self, which: Tensor) -> None:
        rows, t, u = which.to(self.x.device), self.t[which], self.u[which]
        left = self.u_end - u
        last = self.h[which] * STRETCH >= left.abs()
        h = torch.where(last, left, left.sign() * self.h[which])
        s = torch.where(last, self.end, self.path.time(self.process, torch.where(last, u, u + h)))
        flow = Flow(self.path, self.process, lambda x, at: self._ask(which, x, at))
        there, error, after = self.pair.step(flow, self.x[rows], self.now[rows], Span(t, s, u, h))
        good = self._judge(which, Span(t, s, u, h), there, error)
        reached = rows[good.to(rows.device)]
        self.x = self.x.index_copy(0, reached, there[good.to(rows.device)])
        self.known[which[good]] = after is not None
        if after is not None:
            self.now = self.now.index_copy(0, reached, after[good.to(rows.device)])

    def _judge(self, which: Tensor, span: Span, there: Tensor, error: Tensor) -> Tensor:
        """Return whether the steps to the states `there` are accepted, (B,), and choose the next ones."""
        order = self.pair.order
        size, ratio = self._measure(self.x[which.to(there.device)], span, there, error)
        good = ratio <= 1
        kept, rejected = which[good], which[~good]
        grown = after_success(ratio, self.before[which], self.failures[which] > 0, order)
        self.h[which] = span.h.abs() * torch.where(good, grown, after_failure(ratio, order))
        self.failures[which] = torch.where(good, 0, self.failures[which] + 1)
        self.bad[which] = torch.where(ratio.isfinite(), 0, self.bad[which] + 1)
        self.t[kept], self.u[kept], self.before[kept] = span.s[good], (span.u + span.h)[good], ratio[good]
        self.error[kept] += size[good]
        self.status[rejected[self.h[rejected] < SMALLEST]] = int(Status.STUCK)
        self.status[rejected[self.bad[rejected] > RETRIES]] = int(Status.NOT_FINITE)
        return good

    def _measure(self, x: Tensor, span: Span, there: Tensor, error: Tensor) -> tuple[Tensor, Tensor]:
        """Return the error's root mean square for each sample, plain and in units of the tolerance."""
        x, there, error = x.detach(), there.detach(), error.detach()
        before, after = (like(scale(self.process, at), x) for at in (span.t, span.s))
        largest = torch.maximum((x / before).abs(), (there / after).abs())
        error = error / after
        both = torch.stack([_rms(error), _rms(error / (self.how.atol + self.how.rtol * largest))])
        size, ratio = both.to("cpu", torch.float64)
        return size, torch.where(finite(there), ratio, torch.nan)


def _rms(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1).square().mean(1).sqrt()
