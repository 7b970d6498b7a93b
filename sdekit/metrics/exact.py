"""The Wasserstein-2 distance of two small sets, exactly: the best of all ways to carry one into the other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor

from sdekit.metrics.distances import distances
from sdekit.metrics.estimate import Estimate, influenced
from sdekit.metrics.features import OnFeatures, rows

__all__ = ["Wasserstein"]

_LARGEST = 5000  # points a set; 200 MB of distances, and a time that grows with the cube


@dataclass(frozen=True, eq=False)
class Wasserstein(OnFeatures):
    """Wasserstein-2 distance to a reference set, by the optimal transport of all of its mass.

        W2(a, b)^2 = min over couplings p_ij with sums 1/n and 1/m of  sum_ij p_ij |a_i - b_j|^2

    Sets of one size are matched point by point; others need POT. Between two draws of one law it is of order n^(-1/d),
    in many dimensions almost as far as between any two: look at the floor before choosing it.

    Args:
        features: a map from samples, (n, *shape), to features, (n, d); None for the samples themselves.
        reference: the real samples, shape (m, *shape), m at most 5,000.

    Raises:
        ValueError: a set has more than 5,000 samples, is empty or not finite; the dimensions differ.
        ImportError: the sets differ in size, and POT is missing.

    Reference: Peyre and Cuturi (2019), "Computational optimal transport", arXiv:1803.00567, eq. 2.11.

    >>> round(Wasserstein(None, torch.zeros(2, 1))(torch.tensor([[3.0], [-4.0]])) ** 2, 12)
    12.5
    """

    features: Callable[[Tensor], Tensor] | None
    reference: Tensor

    label: ClassVar[str] = "W2"

    def __post_init__(self) -> None:
        rows(self.reference)

    def of(self, features: Tensor) -> Estimate:
        """Return W2 between features, shape (n, d), and the reference's, and its standard error.

        The influence of a sample on W2^2 is its optimal dual potential.
        """
        a, b = self._pair(features)
        if max(len(a), len(b)) > _LARGEST:
            raise ValueError(
                f"An exact transport is for at most {_LARGEST} points; got {len(a)} and {len(b)}. "
                "Give fewer, or take SlicedWasserstein."
            )
        cost = distances(a, b).square()
        squared, potential = _matched(cost) if len(a) == len(b) else _transported(cost)
        return Estimate(squared, influenced(potential)).root()


def _matched(cost: Tensor) -> tuple[float, Tensor]:
    """Return the mean cost of the best matching, and a dual potential of the rows."""
    from scipy.optimize import linear_sum_assignment  # here, as it takes half a second to import

    row, column = linear_sum_assignment(cost.numpy())
    matched = cost[:, torch.from_numpy(column)]  # of row k with the partner of row i at [k, i]
    paid = matched.diagonal()
    # u_k <= u_i + cost(k, partner of i) - cost(i, partner of i): shortest ways in a graph without negative circles
    potential = torch.zeros(len(row), dtype=cost.dtype)
    for _ in range(len(row)):
        shorter = torch.minimum(potential, (matched + (potential - paid)).amin(dim=1))
        if torch.equal(shorter, potential):
            break
        potential = shorter
    return float(paid.mean()), potential


def _transported(cost: Tensor) -> tuple[float, Tensor]:
    """Return the cost of the best transport between sets of any size, and a dual potential of the rows."""
    try:
        ot = import_module("ot")
    except ImportError as error:
        raise ImportError('W2 of sets of different size needs POT: pip install "sdekit[bench]"') from error
    n, m = cost.shape
    weights = [torch.full((k,), 1 / k, dtype=cost.dtype).numpy() for k in (n, m)]
    squared, log = ot.emd2(*weights, cost.numpy(), log=True, numItermax=10_000_000)
    if log["warning"]:
        raise ValueError(f"The optimal transport of {n} to {m} points was not found: {log['warning']}. Give fewer.")
    return float(squared), torch.from_numpy(log["u"])
