"""How far a solver is from the flow that it solves: a metric whose reference follows the model and the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdekit.grid import Denoised, LogSNR
from sdekit.methods import METHODS
from sdekit.metrics import Identity, PairedRMSE
from sdekit.prediction import Model
from sdekit.study.cells import Generated
from sdekit.study.contender import Contender
from sdekit.study.rows import FINE
from sdekit.study.sampler import Sampler

RK4 = Sampler(METHODS["exponential-rk-4"], Denoised(LogSNR(1)))
"""A solver of order four, whose error at 400 network calls is far below that of any at the budgets of a study."""


@dataclass(frozen=True, eq=False)
class FlowError:
    """A metric of the errors of samples against a fine solution of the same model from the same starts.

    It is a metric of a study alone, which draws the fine solution once for every model and seed and measures it by the
    other metrics too: what a method is above that is its own doing. The error is free of sampling noise and of what the
    model does not know, and says nothing of how good the samples are. A stochastic method does not solve the flow, so
    to it the metric is unfair; real data have no value.

    Args:
        paired: makes the metric from the fine solution: `PairedRMSE`, `PairedMedian`.
        fine: what draws the fine solution.
        budget: of network calls, for the fine solution.
    """

    paired: Callable[[Tensor], Any] = PairedRMSE
    fine: Contender = RK4
    budget: int = 400
    extractor = Identity()

    @property
    def name(self) -> str:
        """The label of the metric in a table."""
        return f"{getattr(self.paired, 'label', 'error')} to the flow"

    def __call__(self, samples: Tensor) -> float:
        """Raise TypeError: without a model and a seed there is nothing to compare samples with."""
        raise TypeError(
            f"{self.name} needs a model and a seed, which a study has. Call {self.paired} with a reference."
        )

    def cell(self, cell: Generated) -> Generated:
        """Return the cell of the fine solution for a cell's model and seed."""
        return cell._replace(method=FINE, contender=self.fine, budget=self.budget)

    def draw(self, cell: Generated, model: Model, n: int, batch: int) -> Tensor:
        """Return the fine solution, (n, d)."""
        ready = cell.ready(model, lambda _, fit: fit())
        return torch.cat([self.extractor(drawn.x) for drawn in cell.draw(ready, model, n, batch)])
