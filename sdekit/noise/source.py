"""The noise of a run: keyed by sample and step, or increments of one Brownian path shared by all step counts.

Both are computed from counters by a hash, on the device of the state, so a sample's noise depends on nothing but the
seed, the sample's number and the step (or the time): not on the batch, its order, the rank, or other draws.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from sdekit._broadcast import Time
from sdekit._value import Value
from sdekit.equation import System
from sdekit.noise.hashing import standard_normal

Draw: TypeAlias = Callable[[Time, Time], Tensor]
"""Called as noise(t, s), it returns standard normal noise of the state's shape for the interval from t to s.

It is the Brownian motion's increment over its standard deviation. Asked for the same interval again within a step, it
tells more of the path: sqrt(12/h^3) times the area between the path and its chord, h being the interval's length in the
equation's clock, independent of the increment. For an interval of no length, noise(t, t), it belongs to no path.
"""


@dataclass(frozen=True)
class Noise(Value, ABC):
    """A source of noise.

    Args:
        seed: any whole number.
        first: the number of the batch's first sample; sample i of a batch is sample first + i of the run.
    """

    seed: int = 0
    first: int = 0

    def start(self, like: Tensor) -> Tensor:
        """Return the standard normal noise from which the run starts, shaped like the batch `like`."""
        return standard_normal(like, self.first, (self.seed, 0, 0))

    @abstractmethod
    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        """Return, for a run of `system` from the batch `x`, the function from a step's number to its `Draw`."""

    def along(self, system: System, x: Tensor, times: Sequence[float]) -> Callable[[int], Draw]:
        """Return the same for a run that will ask for these times, as far as they are known.

        What can be prepared for all of them at once may be; the noise is the same.
        """
        return self.on(system, x)


@dataclass(frozen=True)
class Keyed(Noise):
    """Independent noise, keyed by (seed, sample, step, draw within the step).

    Args:
        step: the number of the run's first step, to continue a run that was split.

    >>> import torch
    >>> x = torch.zeros(3, 2)
    >>> torch.equal(Keyed(seed=1).start(x)[2:], Keyed(seed=1, first=2).start(x[2:]))
    True
    """

    step: int = 0

    def on(self, system: System, x: Tensor) -> Callable[[int], Draw]:
        def of_step(k: int) -> Draw:
            count = itertools.count()
            return lambda t, s: standard_normal(x, self.first, (self.seed, 1 + self.step + k, next(count)))

        return of_step
