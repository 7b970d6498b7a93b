"""Metrics on samples: exact where a closed form exists, and independent of order, batches and devices."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sdekit.data import Images, digits, images, mnist
from sdekit.metrics import (
    EnergyDistance,
    FeatureStatistics,
    FrechetDistance,
    ImageClassifier,
    Metric,
    SlicedWasserstein,
    digit_classifier,
    digit_features,
    frechet_distance,
    image_classifier,
    image_features,
)
from sdekit.metrics import classifier as classifier_module

seeds = st.integers(0, 2**31)
sizes = st.integers(2, 40)
dimensions = st.integers(1, 12)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_moments(mean: Tensor, covariance: Tensor, n: int = 100) -> FeatureStatistics:
    return FeatureStatistics(n, mean, covariance * (n - 1))


def covariance(seed: int, d: int) -> Tensor:
    """A well-conditioned one."""
    a = normal(seed, d, d)
    return a @ a.T / d + torch.eye(d, dtype=torch.float64)


def metrics(reference: Tensor) -> list[Metric]:
    return [FrechetDistance(None, reference), SlicedWasserstein(reference, 16), EnergyDistance(reference)]


# Statistics -------------------------------------------------------------------------------------------------


@given(seeds, sizes, dimensions, st.floats(-1e3, 1e3))
def test_statistics_are_numpys(seed: int, n: int, d: int, offset: float) -> None:
    x = normal(seed, n, d) + offset
    s = FeatureStatistics.of(x)
    assert s.n == n
    np.testing.assert_allclose(s.mean, x.numpy().mean(0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(s.covariance, np.cov(x.numpy().T).reshape(d, d), rtol=1e-9, atol=1e-9)


@given(seeds, sizes, dimensions, st.lists(st.integers(1, 39), max_size=5), st.floats(-100, 100))
def test_statistics_of_parts_merge_into_those_of_the_whole(
    seed: int, n: int, d: int, cuts: list[int], offset: float
) -> None:
    x = normal(seed, n, d) + offset
    parts = [part for part in x.tensor_split(sorted(min(c, n) for c in cuts)) if len(part)]
    whole = FeatureStatistics.of(x)
    merged = FeatureStatistics.of(parts[0])
    for part in parts[1:]:
        merged = merged.merge(FeatureStatistics.of(part))
    assert merged.n == n
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-10, atol=1e-11)
    tolerance = 1e-10 * float(whole.scatter.trace())
    torch.testing.assert_close(merged.scatter, whole.scatter, rtol=1e-10, atol=tolerance)


def test_statistics_are_summed_in_float64() -> None:
    x = normal(0, 2000, 4).float() + 1e3
    torch.testing.assert_close(FeatureStatistics.of(x).covariance, x.double().T.cov(), rtol=1e-10, atol=1e-12)


# Frechet distance -------------------------------------------------------------------------------------------


@given(seeds, dimensions, st.floats(0.1, 10), st.floats(0.1, 10))
def test_frechet_distance_of_commuting_gaussians(seed: int, d: int, a: float, b: float) -> None:
    """S_a = Q diag(u) Q^T, S_b = Q diag(v) Q^T: F = |m_a - m_b|^2 + |sqrt(u) - sqrt(v)|^2."""
    q = torch.linalg.qr(normal(seed, d, d)).Q
    u, v = a * normal(seed + 1, d).square(), b * normal(seed + 2, d).square()
    m = normal(seed + 3, 2, d)
    expected = float((m[0] - m[1]).square().sum() + (u.sqrt() - v.sqrt()).square().sum())
    value = frechet_distance(
        with_moments(m[0], q @ u.diag() @ q.T),
        with_moments(m[1], q @ v.diag() @ q.T),
    )
    assert value == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(seeds, dimensions)
def test_frechet_distance_is_the_formula_with_sqrtm(seed: int, d: int) -> None:
    a, b, m = covariance(seed, d), covariance(seed + 1, d), normal(seed + 2, 2, d)
    root = scipy.linalg.sqrtm((a @ b).numpy())
    expected = float((m[0] - m[1]).square().sum() + a.trace() + b.trace()) - 2 * np.trace(root).real
    assert frechet_distance(with_moments(m[0], a), with_moments(m[1], b)) == pytest.approx(expected, rel=1e-8)


@given(seeds, sizes, st.integers(1, 60), st.floats(1e-3, 1e3))
def test_frechet_distance_to_itself_is_0_even_if_singular(seed: int, n: int, d: int, scale: float) -> None:
    s = FeatureStatistics.of(scale * normal(seed, n, d) @ normal(seed + 1, d, d))
    assert 0 <= frechet_distance(s, s) <= 1e-12 * float(s.covariance.trace())


@given(seeds, st.integers(2, 8), st.integers(9, 30), st.floats(-10, 10))
def test_frechet_distance_with_fewer_samples_than_dimensions(seed: int, n: int, d: int, c: float) -> None:
    """A set and its multiple by c: S_b = c^2 S_a, so that F = (1 - c)^2 |m|^2 + (1 - |c|)^2 tr S_a."""
    x = normal(seed, n, d)
    s = FeatureStatistics.of(x)
    trace = float(s.covariance.trace())
    expected = (1 - c) ** 2 * float(s.mean.square().sum()) + (1 - abs(c)) ** 2 * trace
    value = frechet_distance(s, FeatureStatistics.of(c * x))
    assert value == pytest.approx(expected, rel=1e-8, abs=1e-8 * trace)


@given(seeds, sizes, sizes, dimensions)
def test_frechet_distance_is_symmetric(seed: int, n: int, m: int, d: int) -> None:
    a, b = FeatureStatistics.of(normal(seed, n, d)), FeatureStatistics.of(2 * normal(seed + 1, m, d))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-10)


@given(seeds, sizes, dimensions, st.integers(1, 50))
def test_frechet_distance_does_not_depend_on_batches(seed: int, n: int, d: int, batch: int) -> None:
    x, reference = normal(seed, n, d), normal(seed + 1, 20, d)
    whole = frechet_distance(FeatureStatistics.of(x.tanh()), FeatureStatistics.of(reference.tanh()))
    assert FrechetDistance(torch.tanh, reference, batch)(x) == pytest.approx(whole, rel=1e-9, abs=1e-12)


def test_features_of_more_axes_are_flattened() -> None:
    x, reference = normal(0, 30, 1, 4, 4), normal(1, 40, 1, 4, 4)
    conv = nn.utils.skip_init(nn.Conv2d, 1, 2, 3, dtype=torch.float64)
    for p in conv.parameters():
        nn.init.normal_(p, generator=torch.Generator().manual_seed(0))
    flat = frechet_distance(*(FeatureStatistics.of(conv(a).flatten(1)) for a in (x, reference)))
    assert FrechetDistance(conv, reference)(x) == pytest.approx(flat, rel=1e-9)


class Mode(nn.Module):
    """Records the mode it is called in; half of it is frozen in evaluation mode."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.frozen = nn.Dropout().eval()
        self.seen: list[tuple[bool, bool]] = []
        self.fails = fails

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, torch.is_grad_enabled()))
        if self.fails:
            raise RuntimeError("features failed")
        return x


def test_a_module_is_evaluated_without_gradient_and_put_back() -> None:
    module = Mode()
    FrechetDistance(module, normal(0, 9, 2), batch=4)(normal(1, 5, 2))
    assert set(module.seen) == {(False, False)}
    assert (module.training, module.frozen.training) == (True, False)


def test_a_module_is_put_back_after_a_failure() -> None:
    module = Mode(fails=True)
    with pytest.raises(RuntimeError, match="features failed"):
        FrechetDistance(module, normal(0, 9, 2))(normal(1, 5, 2))
    assert module.training


# Distances from coordinates ---------------------------------------------------------------------------------


@given(seeds, sizes, st.integers(1, 5), st.integers(1, 3))
def test_sliced_wasserstein_of_a_shift(seed: int, n: int, d: int, frames: int) -> None:
    """Every projection is shifted by u.v, and over an orthonormal frame the mean of (u.v)^2 is |v|^2 / d."""
    x, v = normal(seed, n, d), normal(seed + 1, d)
    metric = SlicedWasserstein(x, projections=frames * d, seed=seed)
    assert metric(x + v) == pytest.approx(float(v.norm()) / math.sqrt(d), rel=1e-9)


@given(seeds, st.integers(1, 9), st.integers(1, 9))
def test_sliced_wasserstein_couples_sets_of_different_size(seed: int, n: int, m: int) -> None:
    """Repeated to a common size n m, both sets are the same measures, and couple point by point in order."""
    a, b = normal(seed, n, 1), normal(seed + 1, m, 1)
    couples = a.sort(0).values.repeat_interleave(m, 0) - b.sort(0).values.repeat_interleave(n, 0)
    expected = float(couples.square().mean().sqrt())
    assert SlicedWasserstein(b, projections=1)(a) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_sliced_wasserstein_of_wide_samples_uses_all_projections() -> None:
    """With fewer projections than dimensions there is one frame; |v| / sqrt(d) then holds on average."""
    x, v = normal(0, 3, 50), normal(1, 50)
    values = [SlicedWasserstein(x, projections=20, seed=s)(x + v) ** 2 for s in range(100)]
    assert np.mean(values) == pytest.approx(float(v.square().sum()) / 50, rel=0.1)


@given(seeds, st.integers(1, 5), st.floats(-100, 100), st.floats(-100, 100))
def test_energy_distance_of_two_points(seed: int, d: int, a: float, b: float) -> None:
    x, y = a * normal(seed, 1, d), b * normal(seed + 1, 1, d)
    assert EnergyDistance(x)(y) == pytest.approx(2 * float((x - y).norm()), rel=1e-9)


@given(seeds, sizes, sizes)
def test_energy_distance_on_the_line_is_that_of_the_distribution_functions(seed: int, n: int, m: int) -> None:
    """In one dimension E = 2 integral (F - G)^2 dx, with F and G the distribution functions of the sets."""
    a, b = normal(seed, n), normal(seed + 1, m)
    x = torch.cat([a, b]).sort().values
    f, g = ((s[:, None] <= x[:-1]).double().mean(0) for s in (a, b))
    expected = 2 * float(((f - g).square() * x.diff()).sum())
    assert EnergyDistance(b[:, None])(a[:, None]) == pytest.approx(expected, rel=1e-9)


def test_energy_distance_does_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(0, 50, 3), normal(1, 70, 3)
    whole = EnergyDistance(b)(a)
    monkeypatch.setattr("sdekit.metrics.distances._BLOCK", 16)
    assert EnergyDistance(b)(a) == pytest.approx(whole, rel=1e-12)


# All metrics ------------------------------------------------------------------------------------------------


@given(seeds, sizes, st.integers(1, 5))
def test_a_metric_of_the_reference_itself_is_0_in_any_order(seed: int, n: int, d: int) -> None:
    x = normal(seed, n, d)
    shuffled = x[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    for metric in metrics(x):
        assert metric(shuffled) == pytest.approx(0, abs=1e-12), metric.name


@given(seeds, sizes, st.integers(1, 5))
def test_a_metric_does_not_depend_on_the_order_of_samples(seed: int, n: int, d: int) -> None:
    x = normal(seed, n, d) + 1
    for metric in metrics(normal(seed + 1, 15, d)):
        assert metric(x.flip(0)) == pytest.approx(metric(x), rel=1e-9, abs=1e-12), metric.name


def test_a_metric_grows_with_the_error_and_does_not_depend_on_the_device(device: torch.device) -> None:
    reference, x = normal(0, 200, 2, 3).to(device), normal(1, 150, 2, 3)
    for metric in metrics(reference):
        near, far = metric(x.to(device)), metric((x + 1).to(device))
        assert type(near) is float
        assert near < far / 2
        assert near == metric(x), metric.name


def test_a_metric_takes_samples_that_require_gradients() -> None:
    x = normal(0, 5, 2).requires_grad_()
    assert all(metric(x) > 0 for metric in metrics(normal(1, 6, 2)))


def test_names_label_a_table() -> None:
    x = normal(0, 3, 1, 8, 8)
    names = [m.name for m in (*metrics(x), FrechetDistance(torch.tanh, x), FrechetDistance(nn.Tanh(), x))]
    assert names == ["FD[samples]", "SW2", "energy", "FD[tanh]", "FD[Tanh]"]


# Errors -----------------------------------------------------------------------------------------------------


def test_samples_must_be_good() -> None:
    x = normal(0, 6, 2)
    for metric in metrics(x):
        with pytest.raises(ValueError, match=r"finite; got nan or inf in 2 of 6"):
            metric(x.clone().index_fill_(0, torch.tensor([1, 4]), math.nan))
        with pytest.raises(ValueError, match=r"not be empty; got \(0, 2\)"):
            metric(x[:0])
        with pytest.raises(TypeError, match="must be a tensor; got list"):
            metric([[1.0, 2.0]])  # type: ignore[arg-type]
    for metric in metrics(x)[1:]:
        with pytest.raises(ValueError, match=r"shape of the reference, \(2,\) each; got \(3,\)"):
            metric(normal(0, 6, 3))


def test_statistics_must_be_good() -> None:
    mean, scatter = torch.zeros(2).double(), torch.eye(2).double()
    with pytest.raises(ValueError, match=r"n >= 1.*n = 0"):
        FeatureStatistics(0, mean, scatter)
    with pytest.raises(ValueError, match=r"got n = 5, \(3,\), \(2, 2\)"):
        FeatureStatistics(5, torch.zeros(3).double(), scatter)
    with pytest.raises(TypeError, match=r"float64; got torch.float32"):
        FeatureStatistics(5, mean.float(), scatter)
    with pytest.raises(ValueError, match="finite"):
        FeatureStatistics(5, mean, scatter * math.inf)
    with pytest.raises(ValueError, match=r"one dimension; got 2 and 3"):
        FeatureStatistics(5, mean, scatter).merge(FeatureStatistics.of(normal(0, 5, 3)))


def test_frechet_distance_refuses() -> None:
    x = FeatureStatistics.of(normal(0, 5, 2))
    with pytest.raises(ValueError, match=r"one dimension; got 2 and 3"):
        frechet_distance(x, FeatureStatistics.of(normal(0, 5, 3)))
    with pytest.raises(ValueError, match=r"at least 2 samples; got n = 1"):
        frechet_distance(x, FeatureStatistics.of(normal(0, 1, 2)))
    with pytest.raises(ValueError, match=r"negative eigenvalues; got -1"):
        frechet_distance(x, with_moments(x.mean, torch.tensor([1.0, -1.0]).double().diag()))
    with pytest.raises(ValueError, match="reference holds 1"):
        FrechetDistance(None, normal(0, 1, 2))
    with pytest.raises(ValueError, match="batch must hold at least 1 sample; got 0"):
        FrechetDistance(None, normal(0, 5, 2), batch=0)
    with pytest.raises(ValueError, match=r"one row a sample, \(5, d\); got \(\)"):
        FrechetDistance(torch.sum, normal(0, 5, 2))(normal(0, 5, 2))
    with pytest.raises(ValueError, match="at least 1 projection; got 0"):
        SlicedWasserstein(normal(0, 5, 2), projections=0)


# Digits -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache directory that holds a trained classifier."""
    path = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SDEKIT_CACHE", str(path))
        digit_classifier()
    return path


@pytest.fixture
def cached(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one file of the cache that the test sees."""
    monkeypatch.setenv("SDEKIT_CACHE", str(cache))
    (file,) = cache.iterdir()
    return file


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.usefixtures("cached")
def test_classifier_knows_the_digits(device: torch.device) -> None:
    data, classifier = digits(), digit_classifier().to(device)
    predicted = classifier(data.test.to(device)).argmax(dim=1).cpu()
    assert (predicted == data.test_labels).double().mean() > 0.97
    assert not classifier.training
    assert not any(p.requires_grad for p in classifier.parameters())


@pytest.mark.usefixtures("cached")
def test_digit_features_tell_digits_from_noise() -> None:
    data = digits()
    metric = FrechetDistance(digit_features(), data.train)
    assert metric.name == "FD[digits]"
    assert digit_features()(data.test).shape == (397, 32)
    floor = metric(data.test)
    assert 0 < floor < 5
    assert metric(normal(0, 397, 1, 8, 8).clamp(-1, 1)) > 50 * floor
    assert metric(data.test[data.test_labels != 3]) > 3 * floor
    with pytest.raises(ValueError, match=r"shape \(n, 1, 8, 8\); got \(5, 64\)"):
        metric(normal(0, 5, 64))


@pytest.mark.usefixtures("cached")
def test_classifier_made_without_gradients_still_gives_them() -> None:
    with torch.inference_mode():
        classifier = digit_classifier()
    x = digits().test[:2].requires_grad_()
    classifier(x).log_softmax(dim=1)[:, 3].sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_classifier_is_trained_once_and_always_alike(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = cached.read_bytes()
    stored = digit_classifier()
    weights = classifier_module._train(digits())
    assert all(torch.equal(weights[name], p) for name, p in stored.state_dict().items())
    monkeypatch.setattr(classifier_module, "_train", None)  # from here on nothing may be trained
    assert same(digit_classifier(), stored)
    assert cached.read_bytes() == before


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"not a safetensors file",
        lambda content: content[:-4] + bytes(4),  # readable, but not what was written
    ],
    ids=["truncated", "empty", "foreign", "altered"],
)
def test_a_damaged_file_is_replaced(damage, cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored, content = digit_classifier(), cached.read_bytes()
    weights = stored.state_dict()
    monkeypatch.setattr(classifier_module, "_train", lambda data: weights)
    cached.write_bytes(damage(content))
    assert same(digit_classifier(), stored)
    assert cached.read_bytes() == content
    assert [file.name for file in cached.parent.iterdir()] == [cached.name]


def test_a_failed_write_leaves_nothing(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = digit_classifier().state_dict()
    monkeypatch.setenv("SDEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(classifier_module, "_train", lambda data: weights)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device.*Set SDEKIT_CACHE"):
        digit_classifier()
    assert list(tmp_path.iterdir()) == []


def test_the_training_decides_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    before = classifier_module._recipe_hash(data)
    assert classifier_module._recipe_hash(digits()) == before
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert classifier_module._recipe_hash(data) != before
    monkeypatch.undo()
    data.train[0, 0, 0, 0] += 1
    assert classifier_module._recipe_hash(data) != before


# Classifiers of other images ------------------------------------------------------------------------------------------


def stripes(n: int = 60) -> Images:
    """Bright columns on the left in class 0, on the right in class 1."""
    labels = torch.arange(n) % 2
    x = torch.full((n, 1, 6, 10), -1.0)
    for i, label in enumerate(labels.tolist()):
        x[i, :, :, 5 * label + i % 5] = 1.0
    return images((x, labels), test=10)


@given(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40), st.integers(2, 12))
def test_classifiers_take_images_of_any_size(channels: int, height: int, width: int, classes: int) -> None:
    with torch.device("meta"):
        net = ImageClassifier((channels, height, width), classes)
        x = torch.zeros(3, channels, height, width)
        assert net.features(x).shape == (3, 32)
        assert net(x).shape == (3, classes)


def test_a_classifier_of_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDEKIT_CACHE", str(tmp_path))
    data = stripes()
    classifier = image_classifier(data)
    assert torch.equal(classifier(data.test).argmax(1), data.test_labels)
    monkeypatch.setattr(classifier_module, "_train", lambda data: classifier.state_dict())
    image_classifier(stripes(80))
    assert len(list(tmp_path.iterdir())) == 2  # a file for each set of data
    metric = FrechetDistance(image_features(data), data.train)
    assert metric.name == "FD[classifier]"
    assert metric(data.test) < metric(-data.test) / 10
    with pytest.raises(ValueError, match="at least 2 classes; these have 1"):
        image_classifier(images(data.train, 5))


@given(seeds, st.integers(0, 3))
def test_images_move_by_up_to_so_many_pixels(seed: int, furthest: int) -> None:
    x = normal(seed, 4, 2, 8, 9)
    moved = classifier_module._moved(x, furthest, torch.Generator().manual_seed(seed))
    padded = nn.functional.pad(x, [furthest] * 4, mode="replicate")
    windows = padded.unfold(2, 8, 1).unfold(3, 9, 1)  # (4, 2, places, places, 8, 9)
    same = (windows == moved[:, :, None, None]).all(1).flatten(-2).all(-1).flatten(1)
    assert bool(same.any(1).all())


def test_images_move_apart() -> None:
    """Not all in one way, and in every way in the end."""
    x = torch.zeros(500, 1, 5, 5)
    x[:, :, 2, 2] = 1
    moved = classifier_module._moved(x, 1, torch.Generator().manual_seed(0))
    places = moved.flatten(1).argmax(1).unique().tolist()
    assert places == [6, 7, 8, 11, 12, 13, 16, 17, 18]


@pytest.mark.slow
def test_mnist_is_known_and_told_from_noise() -> None:
    """Trained once in 25 seconds, in the cache of the machine."""
    data = mnist()
    predicted = image_classifier(data)(data.test).argmax(dim=1)
    assert (predicted == data.test_labels).double().mean() >= 0.97
    metric = FrechetDistance(image_features(data), data.train)
    floor = metric(data.test)
    assert metric(data.test[data.test_labels != 3]) > 3 * floor
    assert metric(normal(0, 1000, 1, 28, 28).clamp(-1, 1).float()) > 50 * floor
