"""What a study knows of one method at one budget: values over the seeds, their mean and its interval."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from scipy.special import ndtri, stdtrit

from sdekit.study.scores import Mean

LEVEL = 0.05
"""One minus the confidence of every interval, and what a p must fall below for "beats"."""


class Goal(Enum):
    """Which way a metric is better."""

    LOW = "lower is better"
    HIGH = "higher is better"

    def loss(self, value: float) -> float:
        """Return a value as something of which less is better."""
        return -value if self is Goal.HIGH else value


class Spent(NamedTuple):
    """What drawing the samples of one seed takes, the mean over the seeds, in seconds, NaN where it is not known.

    Attributes:
        seconds: on the clock.
        cpu_seconds: of the processor.
        overhead: of the clock's, beyond so many bare calls of the network: the sampler's own.
        fit_seconds: before, for fitting the sampler to the model, once for all seeds.
    """

    seconds: float = math.nan
    cpu_seconds: float = math.nan
    overhead: float = math.nan
    fit_seconds: float = math.nan


@dataclass(frozen=True)
class Entry:
    """The values of one method at one budget, over the seeds; equal by its values, calls and errors.

    Args:
        values: the metric, of the seeds that have it.
        nfe: the network calls counted, None if there is no value, or for real data.
        errors: the statuses of the other seeds.
        seeds: of the values.
        stderrs: of the values, from the samples behind each; NaN where none is known.
        blocks: of each value, what it is without one block of its samples, block by block; empty where not known.
        spent: what drawing the samples took.
        shared: the part of its samples that any two seeds have in common, 0 but for real data.
    """

    values: tuple[float, ...]
    nfe: int | None = None
    errors: tuple[str, ...] = ()
    seeds: tuple[int, ...] = field(default=(), compare=False)
    stderrs: tuple[float, ...] = field(default=(), compare=False)
    blocks: tuple[tuple[float, ...], ...] = field(default=(), compare=False)
    spent: Spent = field(default=Spent(), compare=False)
    shared: float = field(default=0.0, compare=False)

    @property
    def seconds(self) -> float:
        """The seconds on the clock for drawing the samples of one seed, nan where they are not known."""
        return self.spent.seconds

    @property
    def mean(self) -> float:
        """The mean over the seeds, nan if there is no value."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def sd(self) -> float:
        """The standard deviation over the seeds (n - 1 in the denominator), nan for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def stderr(self) -> float:
        """The finite-sample error of one value, the root mean square over the seeds; nan if any is not known."""
        known = len(self.stderrs) == len(self.values) > 0
        return math.sqrt(statistics.fmean(e * e for e in self.stderrs)) if known else math.nan

    @property
    def complete(self) -> bool:
        """Whether every seed has its value; nothing else can be the best."""
        return bool(self.values) and not self.errors

    @property
    def interval(self) -> Mean:
        """The mean and its 95% interval: the wider of Student's over the S seeds and that of the stderrs.

            max(t_{S-1} sd / sqrt(1 - c), z stderr) sqrt(c + (1 - c) / S),   c = shared

        Both estimate one thing, as seeds differ by their samples alone: adding them would count it twice, and the
        wider one keeps a lucky agreement of few seeds from looking like precision. With one seed the stderr is all
        there is, with neither the interval is nan. It covers the draw of the samples, not the reference, which all
        values share, nor the bias that a distance has at this number of samples, nor the training of the model.
        """
        count, mean = len(self.values), self.mean
        reaches = [float(ndtri(1 - LEVEL / 2)) * self.stderr]
        if count > 1 and self.shared < 1:
            reaches.append(float(stdtrit(count - 1, 1 - LEVEL / 2)) * self.sd / math.sqrt(1 - self.shared))
        known = [reach for reach in reaches if math.isfinite(reach)]
        reach = max(known) * math.sqrt(self.shared + (1 - self.shared) / count) if known and count else math.nan
        return Mean(mean, mean - reach, mean + reach, count)
