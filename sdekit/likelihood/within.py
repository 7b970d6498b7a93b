"""Log-likelihoods to an error that is asked for: nodes and probes are found sample by sample."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from sdekit.grid import Quadratic
from sdekit.likelihood.control import of_data
from sdekit.likelihood.exact import Likelihood, check_data, log_likelihood
from sdekit.likelihood.hadamard import Hadamard
from sdekit.likelihood.integrate import FixedGrid
from sdekit.likelihood.prior import Marginal, prior_share
from sdekit.likelihood.trace import Exact, Trace
from sdekit.oracle import Gaussian
from sdekit.prediction import Model

FIRST = 32
"""The steps of the first try."""


class UnreachedError(RuntimeError):
    """The error that was asked for was not reached within the budget.

    Attributes:
        best: the values so far, each with its error.
    """

    def __init__(self, message: str, best: Likelihood) -> None:
        super().__init__(message)
        self.best = best


class Try(NamedTuple):
    """The next thing to try on a sample: how many steps and how many probes, 0 for an exact trace."""

    steps: int
    probes: int


def log_likelihood_within(
    model: Model,
    x: Tensor,
    nats: float = 0.01,
    calls: int = 2000,
    data: Tensor | Gaussian | None = None,
    batch: int = 2**30,
) -> Likelihood:
    """Return the log-likelihood of `x` with a stated error of at most `nats` for every sample.

    Every sample is tried with 32 steps and few probes. Where its stated error is too large it is tried again with half
    as many steps again, or with twice the probes, whichever has the larger part in the error, until it is not. What a
    sample is given depends on it alone. Up to 16 dimensions the trace is exact.

    Args:
        model: the model.
        x: data, shape (B, ...).
        nats: the largest standard error, that of integration included, of `Likelihood.error`.
        calls: the most network calls for one sample, all tries together.
        data: as for `log_likelihood`.
        batch: how many samples go through the network at once.

    Returns:
        the values of the last tries; `nfe` is the most calls that a sample took.

    Raises:
        ValueError: nats is not positive, calls are too few for one try, or `x` is not a batch of finite states.
        UnreachedError: a sample would need more calls; the values so far are in its `best`.
    """
    if not nats > 0 or calls <= FIRST:
        raise ValueError(f"nats must be positive and calls at least {FIRST + 1}; got nats={nats!r}, calls={calls!r}.")
    check_data(model, x, batch)
    waiting = {Try(FIRST, 0 if x[0].numel() <= 16 else 4): list(range(len(x)))}
    found: dict[int, Likelihood] = {}
    spent, short = [0] * len(x), set[int]()
    while waiting:
        again: dict[Try, list[int]] = defaultdict(list)
        for attempt, which in waiting.items():
            result = _tried(model, x[which], attempt, data, batch)
            for k, i in enumerate(which):
                found[i] = result.part(k)
                spent[i] += result.nfe
                if not float(result.error[k]) <= nats:
                    following = _following(attempt, found[i], x[0].numel())
                    if spent[i] + following.steps + 1 > calls:
                        short.add(i)
                    else:
                        again[following].append(i)
        waiting = dict(again)
    best = replace(Likelihood.joined([found[i] for i in range(len(x))]), nfe=max(spent))
    if data is None and not isinstance(model, Marginal):  # of all samples, as log_likelihood has it
        best = replace(best, prior_share=prior_share(model, best.latent, of_data(x, x.shape[1:])))
    if short:
        worst, named = float(best.error[sorted(short)].max()), sorted(short)
        raise UnreachedError(
            f"Every sample's error must come down to {nats:g} nats within {calls} network calls; samples {named[:8]} "
            f"({len(short)} in all) did not, the worst is at {worst:.3g}. Raise calls or nats; the values so far are "
            "in this error's `best`.",
            best,
        )
    return best


def _tried(model: Model, x: Tensor, attempt: Try, data: Tensor | Gaussian | None, batch: int) -> Likelihood:
    trace: Trace = Hadamard(attempt.probes) if attempt.probes else Exact()
    return log_likelihood(model, x, FixedGrid(grid=Quadratic(attempt.steps)), trace, data, batch)


def _following(attempt: Try, found: Likelihood, dims: int) -> Try:
    if float(found.stderr) > float(found.integration_error):
        probes = 2 * attempt.probes
        return Try(attempt.steps, probes if probes < dims else 0)
    return Try(attempt.steps + attempt.steps // 2, attempt.probes)
