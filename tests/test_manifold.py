"""Precision, recall, density and coverage beside their definitions, and their errors beside brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdekit.metrics import Coverage, Density, Precision, Recall

seeds = st.integers(0, 2**31)
KINDS = [Precision, Recall, Density, Coverage]


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def within(points: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    """Whether point i lies in the ball of the other j, (n, m)."""
    radii = [sorted(np.linalg.norm(others - y, axis=1))[k] for y in others]  # the 0th is the point itself
    return np.array([[np.linalg.norm(x - y) <= r for y, r in zip(others, radii, strict=True)] for x in points])


def direct(kind: type, a: np.ndarray, b: np.ndarray, k: int) -> float:
    if kind is Precision:
        return float(within(a, b, k).any(axis=1).mean())
    if kind is Recall:
        return float(within(b, a, k).any(axis=1).mean())
    return float(within(a, b, k).sum(axis=1).mean() / k if kind is Density else within(a, b, k).any(axis=0).mean())


@pytest.mark.parametrize("kind", KINDS)
@given(seeds, st.integers(1, 5), st.integers(6, 20), st.integers(6, 20), st.floats(0, 2))
def test_manifold_metrics_are_their_definitions(kind, seed: int, k: int, n: int, m: int, shift: float) -> None:
    a, b = normal(seed, n, 3) + shift, normal(seed + 1, m, 3)
    expected = direct(kind, a.numpy(), b.numpy(), k)
    assert kind(None, b, k)(a) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [Recall, Coverage])
@given(seeds, st.integers(1, 4), st.integers(7, 20), st.integers(6, 20), st.floats(0, 2))
def test_errors_from_one_pass_are_the_jackknife(kind, seed: int, k: int, n: int, m: int, shift: float) -> None:
    a, metric = normal(seed, n, 2) + shift, kind(None, normal(seed + 1, m, 2), k)
    without = torch.tensor([metric(a[torch.arange(n) != i]) for i in range(n)], dtype=torch.float64)
    jackknife = math.sqrt((n - 1) / n * float((without - without.mean()).square().sum()))
    assert metric.of(a).stderr == pytest.approx(jackknife, abs=1e-9)


@pytest.mark.parametrize(("kind", "most"), [(Precision, 1.3), (Density, 1.5), (Coverage, 1.7), (Recall, 2.5)])
def test_errors_are_not_below_the_spread_of_new_draws(kind, most: float) -> None:
    metric = kind(None, normal(0, 200, 4))
    found = [metric.of(normal(seed, 200, 4) * 1.3) for seed in range(1, 81)]
    spread = float(np.std([one.value for one in found], ddof=1))
    assert 0.8 * spread < np.mean([one.stderr for one in found]) < most * spread


@pytest.mark.parametrize(("kind", "own"), [(Precision, 1), (Recall, 1), (Density, 6 / 5), (Coverage, 1)])
def test_a_set_with_itself(kind, own: float) -> None:
    x = normal(0, 30, 3)
    assert kind(None, x, 5)(x.flip(0)) == pytest.approx(own)


def test_two_draws_of_one_law() -> None:
    a, b = normal(0, 1500, 2), normal(1, 1500, 2)
    assert Density(None, b)(a) == pytest.approx(1, abs=0.06)
    assert Coverage(None, b)(a) == pytest.approx(1 - 2**-5, abs=0.02)


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_do_not_matter(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(0, 50, 3) * 1.2, normal(1, 70, 3)
    whole = kind(None, b).of(a)
    monkeypatch.setattr("sdekit.metrics.distances._BLOCK", 15)
    assert kind(None, b).of(a) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_few_samples_are_refused(kind) -> None:
    assert kind.higher_is_better
    with pytest.raises(ValueError, match=r"needs at least 6 samples and as many in the reference; got 5 and 9"):
        kind(None, normal(0, 9, 2), 5)(normal(1, 5, 2))
    with pytest.raises(ValueError, match="k >= 1; got 0"):
        kind(None, normal(0, 9, 2), 0)
