"""The Frechet distance: its error, its limit, torchmetrics' value of it, and statistics that know their source."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sdekit.metrics import (
    FeatureMap,
    FeatureStatistics,
    FrechetDistance,
    FrechetInfinity,
    Identity,
    frechet_distance,
    read_reference,
)
from sdekit.metrics.frechet import frechet_influence
from sdekit.metrics.infinity import _line

seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Linear(nn.Module):
    """A fixed map to d features, in the form in which torchmetrics takes one."""

    def __init__(self, d: int, seed: int = 0) -> None:
        super().__init__()
        self.num_features = d
        self.weight = nn.Parameter(normal(seed, 12, d), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.weight).flatten(1) @ self.weight / 10


# Beside torchmetrics --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [300, 40, 10], ids=["large", "small", "n < d"])
def test_frechet_distance_is_torchmetrics(n: int) -> None:
    """In float64, the type its result has if the features have it."""
    fid = pytest.importorskip("torchmetrics.image.fid")
    extract, a, b = Linear(12), normal(1, n, 3, 2, 2) + 0.3, normal(2, 200, 3, 2, 2)
    theirs = fid.FrechetInceptionDistance(feature=extract)
    theirs.update(b, real=True)
    for part in a.split(7):
        theirs.update(part, real=False)
    expected = theirs.compute()
    assert expected.dtype == torch.float64
    assert FrechetDistance(extract, b)(a) == pytest.approx(float(expected), rel=1e-6)


# The standard error ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "d"), [(400, 6), (60, 4), (20, 30)], ids=["large", "small", "n < d"])
def test_influence_is_the_derivative_along_a_point_mass(n: int, d: int) -> None:
    """Weights 1 + e on sample i: the mean and covariance move, and the distance with them."""
    x, real = normal(0, n, d) * 1.3 + 0.5, FeatureStatistics.of(normal(1, 300, d))
    _, influence = frechet_influence(x, FeatureStatistics.of(x), real)
    e = 1e-5
    for i in (0, 7):
        values = []
        for sign in (1, -1):
            w = torch.full((n,), (1 - sign * e) / n, dtype=torch.float64)
            w[i] += sign * e
            mean = w @ x
            # The covariance of weights that sum to 1, on the scale of the unbiased one.
            covariance = (x - mean).T @ ((x - mean) * w[:, None]) * n / (n - 1)
            values.append(frechet_distance(FeatureStatistics(None, mean, covariance), real))
        derivative = (values[0] - values[1]) / (2 * e)
        scale = n / (n - 1)
        y = x - x.mean(0)
        mean_part = 2 * y @ (x.mean(0) - real.mean)
        centred = mean_part + scale * (influence - mean_part)
        assert derivative == pytest.approx(float(centred[i] - centred.mean()), rel=1e-4, abs=1e-4)


def test_standard_error_is_that_of_the_jackknife() -> None:
    n, x, metric = 150, normal(0, 150, 5) * 1.2 + 0.3, FrechetDistance(None, normal(1, 400, 5))
    real = FeatureStatistics.of(metric.reference)
    kept = [FeatureStatistics.of(x[torch.arange(n) != i]) for i in range(n)]
    without = torch.tensor([frechet_distance(one, real) for one in kept], dtype=torch.float64)
    jackknife = math.sqrt((n - 1) / n * float((without - without.mean()).square().sum()))
    assert metric.of(x).stderr == pytest.approx(jackknife, rel=0.05)


@pytest.mark.parametrize("shift", [0.0, 0.3], ids=["at the floor", "above it"])
def test_standard_error_is_the_spread_of_new_draws(shift: float) -> None:
    """Above the floor to sampling error; at it, where the distance is quadratic, at most sqrt(2) too large."""
    metric = FrechetDistance(None, normal(0, 1000, 6))
    found = [metric.of(normal(seed, 300, 6) * (1 + shift) + shift) for seed in range(1, 201)]
    spread = float(np.std([one.value for one in found], ddof=1))
    stated = float(np.mean([one.stderr for one in found]))
    assert 0.85 * spread < stated < (1.5 if shift == 0 else 1.15) * spread


def test_the_value_is_that_of_the_statistics() -> None:
    x, metric = normal(0, 30, 40), FrechetDistance(None, normal(1, 50, 40))
    assert metric(x) == metric.of(metric.extractor(x)).value
    assert metric(x) == pytest.approx(frechet_distance(metric.statistics(x), metric.real), rel=1e-12)


# To infinitely many samples -------------------------------------------------------------------------------------------


@given(seeds, st.integers(3, 20))
def test_a_line_is_scipys(seed: int, count: int) -> None:
    x, y = np.arange(1.0, count + 1), normal(seed, count).numpy()
    ours, theirs = _line(x, y), scipy.stats.linregress(x, y)
    expected = (theirs.intercept, theirs.intercept_stderr, theirs.rvalue**2)
    np.testing.assert_allclose(ours[:3], expected, rtol=1e-8, atol=1e-12)


def test_the_extrapolation_removes_the_bias_of_few_samples() -> None:
    """Against exact statistics of the law itself the distance is 0, and FD_n is about d (d + 5) / (4 n)."""
    d, n = 8, 400
    law = FeatureStatistics(None, torch.zeros(d).double(), torch.eye(d).double(), "samples")
    finite, infinite = FrechetDistance(None, law), FrechetInfinity(None, law)
    draws = [normal(seed, n, d) for seed in range(40)]
    bias = np.mean([finite(x) for x in draws])
    found = [infinite.of(x) for x in draws]
    assert bias == pytest.approx(d * (d + 5) / (4 * n), rel=0.15)
    values = [one.value for one in found]
    assert abs(np.mean(values)) < 0.15 * bias
    assert np.mean([one.stderr for one in found]) > 0.9 * np.std(values)
    assert min(infinite.fit(x).r_squared for x in draws) > 0.9


def test_the_extrapolation_depends_on_no_order() -> None:
    x, metric = normal(0, 60, 3), FrechetInfinity(None, normal(1, 50, 3), parts=4)
    assert metric.of(x.flip(0)) == pytest.approx(metric.of(x), rel=1e-9)
    assert metric.name == "FD_inf[samples]"
    fit = metric.fit(x)
    assert fit.inverse == pytest.approx([1 / 60, 1 / 30, 1 / 20, 1 / 15])
    assert fit.values[0] == pytest.approx(FrechetDistance(None, metric.reference)(x))


def test_the_extrapolation_refuses() -> None:
    with pytest.raises(ValueError, match="at least 3 parts; got 2"):
        FrechetInfinity(None, normal(0, 9, 2), parts=2)
    with pytest.raises(ValueError, match="need 10; got 9"):
        FrechetInfinity(None, normal(0, 9, 2))(normal(1, 9, 2))


# Statistics that know their source ------------------------------------------------------------------------------------


def test_statistics_of_other_features_are_not_compared() -> None:
    x = normal(0, 20, 3, 2, 2)
    a, b = (FrechetDistance(Linear(4, seed), x) for seed in (0, 1))
    with pytest.raises(ValueError, match=r"one extractor; got Linear:\w+ and Linear:\w+"):
        frechet_distance(a.statistics(x), b.statistics(x))
    with pytest.raises(ValueError, match="one extractor"):
        a.statistics(x).merge(b.statistics(x))
    with pytest.raises(ValueError, match=r"one extractor; got Linear:\w+ and None.*read_reference\(path, extractor\)"):
        frechet_distance(a.statistics(x), FeatureStatistics.of(Linear(4)(x)))
    with pytest.raises(ValueError, match="one extractor"):
        FrechetDistance(Linear(4), b.statistics(x))(x)


def test_a_map_is_known_by_its_weights_not_its_batches_or_place() -> None:
    prints = {FeatureMap(Linear(4), batch).fingerprint for batch in (1, 64)} | {FeatureMap(Linear(4)).fingerprint}
    assert len(prints) == 1
    assert prints != {FeatureMap(Linear(4, seed=1)).fingerprint}
    assert FeatureMap(torch.tanh).fingerprint != FeatureMap(torch.sin).fingerprint


@given(seeds, st.integers(2, 20), st.integers(1, 19))
def test_data_are_known_in_any_order_and_in_any_parts(seed: int, n: int, cut: int) -> None:
    x, identity = normal(seed, n, 2, 2), Identity()
    whole = FeatureStatistics.measured(identity, x)
    shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    parts = [FeatureStatistics.measured(identity, part) for part in shuffled.tensor_split([min(cut, n - 1)])]
    assert parts[0].merge(parts[1]).data == whole.data
    other = x.clone()
    other[0, 0, 0] += 1
    assert FeatureStatistics.measured(identity, other).data != whole.data


def test_statistics_are_stored_and_read_back(tmp_path: Path) -> None:
    x = normal(0, 30, 3, 2, 2)
    ours = FrechetDistance(Linear(5), x).statistics(x)
    ours.save(tmp_path / "ours.npz")
    read = read_reference(tmp_path / "ours.npz", FeatureMap(Linear(5)))
    assert (read.n, read.extractor, read.data) == (ours.n, ours.extractor, ours.data)
    torch.testing.assert_close(read.scatter, ours.scatter, rtol=1e-14, atol=1e-14)
    assert frechet_distance(read, ours) < 1e-12
    metric = FrechetDistance(Linear(5), read)
    assert metric(x + 1) == pytest.approx(FrechetDistance(Linear(5), x)(x + 1), rel=1e-10)
    assert [file.name for file in tmp_path.iterdir()] == ["ours.npz"]
    with pytest.raises(ValueError, match="says n = 30; got 31"):
        read_reference(tmp_path / "ours.npz", n=31)
    with pytest.raises(ValueError, match="says extractor = Linear"):
        read_reference(tmp_path / "ours.npz", Identity())


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed], ids=["plain", "compressed"])
def test_published_statistics_are_read(save, tmp_path: Path) -> None:
    """As EDM, pytorch-fid and clean-fid write them: mu and sigma; ADM's files hold more."""
    x = normal(0, 50, 4)
    save(tmp_path / "ref.npz", mu=x.mean(0).float().numpy(), sigma=np.cov(x.numpy().T), mu_s=np.zeros(3), arr_0=1)
    unknown = read_reference(tmp_path / "ref.npz", Identity())
    assert (unknown.n, unknown.extractor, unknown.data) == (None, "samples", None)
    metric = FrechetDistance(None, unknown)
    assert metric(x * 2) == pytest.approx(FrechetDistance(None, x)(x * 2), rel=1e-6)
    with pytest.raises(ValueError, match="without"):
        unknown.merge(metric.statistics(x))
    stated = read_reference(tmp_path / "ref.npz", Identity(), n=50)
    assert stated.merge(metric.statistics(x)).n == 100


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", images=np.zeros(3))
    np.savez(tmp_path / "evil.npz", mu=np.array([object()]), sigma=np.eye(1))
    (tmp_path / "text.npz").write_text(json.dumps({"mu": 1}))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "other.npz").read_bytes()[:100])
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"mu and sigma; got \['images'\]"):
        read_reference(tmp_path / "other.npz")
    for name in ("evil.npz", "text.npz", "torn.npz", "one.npy"):
        with pytest.raises(ValueError, match="must be an npz file of arrays"):
            read_reference(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_reference(tmp_path / "none.npz")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statistics = FeatureStatistics.of(normal(0, 9, 2))
    statistics.save(tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        dataclasses.replace(statistics, data="0" * 16).save(tmp_path / "a.npz")
    assert (tmp_path / "a.npz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
