"""Distances of sets of points beside direct formulas and other libraries, and their errors beside brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdekit.metrics import (
    EnergyDistance,
    GaussianKernel,
    KernelDistance,
    PairedMedian,
    PairedRMSE,
    PolynomialKernel,
    SlicedWasserstein,
    Wasserstein,
)
from sdekit.metrics.distances import _potentials, _squared_w2
from sdekit.metrics.exact import _matched, _transported

seeds = st.integers(0, 2**31)
sizes = st.integers(3, 25)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute(metric, x: Tensor) -> float:
    """The jackknife, by leaving every sample out in turn."""
    n = len(x)
    without = torch.tensor([metric(x[torch.arange(n) != i]) for i in range(n)], dtype=torch.float64)
    return math.sqrt((n - 1) / n * float((without - without.mean()).square().sum()))


# Kernels --------------------------------------------------------------------------------------------------------------


def direct(kernel, a: np.ndarray, b: np.ndarray) -> float:
    """The U-statistic, pair by pair."""
    own = [np.mean([kernel(x, y) for x, y in itertools.permutations(s, 2)]) for s in (a, b)]
    return own[0] + own[1] - 2 * np.mean([kernel(x, y) for x in a for y in b])


@given(seeds, st.integers(2, 8), st.integers(2, 8), st.integers(1, 4))
def test_kernel_distances_are_the_direct_formulas(seed: int, n: int, m: int, d: int) -> None:
    a, b = normal(seed, n, d), normal(seed + 1, m, d) + 0.5
    cubic = direct(lambda x, y: (x @ y / d + 1) ** 3, a.numpy(), b.numpy())
    assert KernelDistance(None, b)(a) == pytest.approx(cubic, rel=1e-9, abs=1e-9)
    gauss = direct(lambda x, y: np.exp(-((x - y) ** 2).sum() / (2 * 0.7**2)), a.numpy(), b.numpy())
    assert KernelDistance(None, b, GaussianKernel(0.7))(a) == pytest.approx(gauss, rel=1e-9, abs=1e-12)


@given(seeds, st.integers(2, 9), st.integers(1, 4))
def test_the_bandwidth_is_half_the_mean_squared_distance_of_pairs(seed: int, m: int, d: int) -> None:
    b = normal(seed, m, d)
    pairs = [float((x - y).square().sum()) for x, y in itertools.combinations(b, 2)]
    fitted = KernelDistance(None, b, GaussianKernel()).kernel.fitted(b)
    assert isinstance(fitted, GaussianKernel)
    assert 2 * fitted.bandwidth**2 == pytest.approx(np.mean(pairs), rel=1e-10)


def test_kernel_distances_are_not_biased() -> None:
    """Over draws of one law the mean is 0 at any n."""
    for kernel in (PolynomialKernel(), GaussianKernel(1.0)):
        values = [KernelDistance(None, normal(2 * s + 1, 12, 3), kernel)(normal(2 * s, 5, 3)) for s in range(400)]
        assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(400)


@pytest.mark.parametrize("kernel", [PolynomialKernel(), PolynomialKernel(2), GaussianKernel(1.0)], ids=str)
def test_a_kernel_distance_of_a_set_with_itself_is_known(kernel) -> None:
    x = normal(0, 20, 3)
    k = kernel(x, x)
    own, pairs = float(k.diagonal().mean()), float((k.sum() - k.trace()) / (20 * 19))
    assert KernelDistance(None, x, kernel)(x) == pytest.approx(-2 / 20 * (own - pairs), rel=1e-9)


def test_kernel_distance_is_torchmetrics() -> None:
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = normal(0, 30, 4), normal(1, 30, 4) + 0.2
    theirs = kid.poly_mmd(a, b)
    assert KernelDistance(None, b)(a) == pytest.approx(float(theirs), rel=1e-9)


def test_kernels_refuse() -> None:
    with pytest.raises(ValueError, match="degree of a kernel must be at least 1; got 0"):
        PolynomialKernel(0)
    with pytest.raises(ValueError, match="bandwidth of a kernel must be positive; got 0"):
        GaussianKernel(0.0)
    with pytest.raises(ValueError, match="bandwidth of a kernel must be positive"):
        KernelDistance(None, torch.zeros(5, 2), GaussianKernel())(torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"fitted to a reference first"):
        GaussianKernel()(normal(0, 2, 2), normal(1, 2, 2))
    with pytest.raises(ValueError, match=r"KD\[samples\] needs at least 2 samples.*got 1 and 5"):
        KernelDistance(None, normal(0, 5, 2))(normal(1, 1, 2))
    assert KernelDistance(None, normal(0, 5, 2), GaussianKernel()).name == "MMD2[samples]"


# Standard errors ------------------------------------------------------------------------------------------------------


@given(seeds, sizes, sizes, st.integers(1, 4))
def test_errors_from_sums_are_the_jackknife(seed: int, n: int, m: int, d: int) -> None:
    a, b = normal(seed, n, d), normal(seed + 1, m, d) + 0.3
    for metric in (KernelDistance(None, b), KernelDistance(None, b, GaussianKernel(1.0)), EnergyDistance(b)):
        assert metric.of(a).stderr == pytest.approx(brute(metric, a), rel=1e-7, abs=1e-10), metric.name


@pytest.mark.parametrize("kind", [SlicedWasserstein, lambda b: Wasserstein(None, b)], ids=["sliced", "exact"])
@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_errors_from_potentials_are_the_spread_of_new_draws(kind, shift: float) -> None:
    metric = kind(normal(0, 150, 3))
    found = [metric.of(normal(seed, 150, 3) * (1 + shift) + shift) for seed in range(1, 81)]
    spread = float(np.std([one.value for one in found], ddof=1))
    assert 0.75 * spread < np.mean([one.stderr for one in found]) < 1.45 * spread


# Transport ------------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 6), st.integers(1, 3))
def test_wasserstein_is_the_best_of_all_matchings(seed: int, n: int, d: int) -> None:
    a, b = normal(seed, n, d), normal(seed + 1, n, d)
    best = min(float((a[list(order)] - b).square().sum(dim=1).mean()) for order in itertools.permutations(range(n)))
    assert Wasserstein(None, b)(a) ** 2 == pytest.approx(best, rel=1e-9)


@given(seeds, st.integers(1, 12), st.integers(1, 12))
def test_wasserstein_on_the_line_is_the_sliced_one(seed: int, n: int, m: int) -> None:
    pytest.importorskip("ot")
    a, b = normal(seed, n, 1), normal(seed + 1, m, 1)
    expected = SlicedWasserstein(b, projections=1)(a)
    assert Wasserstein(None, b)(a) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(seeds, st.integers(2, 12), st.integers(2, 12))
def test_potentials_are_dual_optimal(seed: int, n: int, m: int) -> None:
    """With v_j = min_i c_ij - u_i the dual value, mean u + mean v, is that of the transport."""
    a, b = normal(seed, n, 2), normal(seed + 1, n, 2)
    cost = torch.cdist(a, b).square()
    value, u = _matched(cost)
    assert float(u.mean() + (cost - u[:, None]).amin(dim=0).mean()) == pytest.approx(value, rel=1e-9)
    x, y = normal(seed + 2, n, 3), normal(seed + 3, m, 3)  # three problems on the line
    for k, u in enumerate(_potentials(x, y).T):
        cost = (x[:, None, k] - y[None, :, k]).square()
        dual = float(u.mean() + (cost - u[:, None]).amin(dim=0).mean())
        assert dual == pytest.approx(float(_squared_w2(x, y)[k]), rel=1e-9, abs=1e-12)


@given(seeds, st.integers(2, 12), st.integers(2, 12))
def test_transports_of_other_sizes_are_dual_optimal(seed: int, n: int, m: int) -> None:
    pytest.importorskip("ot")
    cost = torch.cdist(normal(seed, n, 2), normal(seed + 1, m, 2)).square()
    value, u = _transported(cost)
    assert float(u.mean() + (cost - u[:, None]).amin(dim=0).mean()) == pytest.approx(value, rel=1e-7)


def test_wasserstein_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="at most 5000 points; got 2 and 5001"):
        Wasserstein(None, torch.zeros(5001, 1))(torch.zeros(2, 1))
    monkeypatch.setitem(__import__("sys").modules, "ot", None)
    with pytest.raises(ImportError, match=r'different size needs POT: pip install "sdekit\[bench\]"'):
        Wasserstein(None, torch.zeros(3, 1))(torch.zeros(2, 1))


# Paired ---------------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 30), st.integers(1, 4))
def test_paired_errors_are_the_formulas(seed: int, n: int, d: int) -> None:
    x, y = normal(seed, n, d, 2), normal(seed + 1, n + 3, d, 2)
    errors = ((x - y[:n]) ** 2).flatten(1).mean(1)
    rmse = PairedRMSE(y).of(x.flatten(1))
    assert rmse.value == pytest.approx(float(errors.mean().sqrt()), rel=1e-10)
    assert rmse.stderr == pytest.approx(float(errors.std()) / math.sqrt(n) / (2 * rmse.value), rel=1e-9)
    assert PairedMedian(y)(x) == pytest.approx(float(np.median(errors.sqrt())), rel=1e-10)


def test_paired_metrics_pair() -> None:
    y = normal(0, 40, 2)
    assert PairedRMSE(y)(y + 0.5) == pytest.approx(0.5)
    assert PairedRMSE(y)(y.flip(0)) > 1
    assert PairedMedian(y).of(y + 0.5) == pytest.approx((0.5, 0.0))
    wild = y.clone()
    wild[3] += 1e6
    assert PairedMedian(y)(wild + 0.5) == pytest.approx(0.5)
    assert [metric(y).name for metric in (PairedRMSE, PairedMedian)] == ["RMSE", "median error"]
    with pytest.raises(ValueError, match="Sample i is compared with reference i; got 41 samples and 40"):
        PairedRMSE(y)(normal(1, 41, 2))


def test_the_error_of_a_median_is_the_spread_of_new_draws() -> None:
    y = torch.zeros(200, 3)
    found = [PairedMedian(y).of(normal(seed, 200, 3)) for seed in range(200)]
    spread = float(np.std([one.value for one in found], ddof=1))
    assert np.mean([one.stderr for one in found]) == pytest.approx(spread, rel=0.2)
