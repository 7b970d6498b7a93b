"""Metrics on features: what every one of them keeps to, the maps they take, and the floor beside them."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sdekit.metrics import (
    Coverage,
    Density,
    EnergyDistance,
    FeatureMap,
    FrechetDistance,
    FrechetInfinity,
    GaussianKernel,
    Identity,
    Inception,
    KernelDistance,
    PairedMedian,
    PairedRMSE,
    Precision,
    Recall,
    SlicedWasserstein,
    Wasserstein,
    floor,
)
from sdekit.metrics.fingerprint import fingerprint

seeds = st.integers(0, 2**31)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unpaired(features, reference: Tensor) -> list:
    return [
        FrechetDistance(features, reference),
        FrechetInfinity(features, reference, parts=3),
        KernelDistance(features, reference),
        KernelDistance(features, reference, GaussianKernel()),
        EnergyDistance(reference, features),
        SlicedWasserstein(reference, 16, features=features),
        Wasserstein(features, reference),
        Precision(features, reference),
        Recall(features, reference),
        Density(features, reference),
        Coverage(features, reference),
    ]


def metrics(features, reference: Tensor) -> list:
    return [*unpaired(features, reference), PairedRMSE(reference), PairedMedian(reference)]


# Every metric ---------------------------------------------------------------------------------------------------------


@given(seeds, st.integers(1, 4))
def test_a_metric_of_samples_is_that_of_their_features(seed: int, d: int) -> None:
    x = normal(seed, 20, d, 2) + 0.4
    for metric in metrics(torch.tanh, normal(seed + 1, 20, d, 2)):
        found = metric.of(metric.extractor(x))
        assert metric(x) == found.value, metric.name
        assert math.isfinite(found.value), metric.name
        assert found.stderr > 0 or metric.name.startswith(("precision", "recall", "coverage")), metric.name


@given(seeds, st.integers(1, 4))
def test_the_order_of_samples_changes_nothing(seed: int, d: int) -> None:
    x = normal(seed, 20, d) + 0.4
    for metric in unpaired(None, normal(seed + 1, 20, d)):
        assert metric.of(x.flip(0)) == pytest.approx(metric.of(x), rel=1e-7, abs=1e-9), metric.name


@given(seeds, st.integers(1, 25))
def test_batches_of_the_map_change_nothing(seed: int, batch: int) -> None:
    x, y = normal(seed, 20, 3) + 0.4, normal(seed + 1, 20, 3)
    for one, other in zip(unpaired(torch.tanh, y), unpaired(FeatureMap(torch.tanh, batch), y), strict=True):
        assert one.of(one.extractor(x)) == pytest.approx(other.of(other.extractor(x)), rel=1e-9, abs=1e-12), one.name
        assert one.extractor.fingerprint == other.extractor.fingerprint


def test_features_kept_in_float32_give_the_metric() -> None:
    x, y = normal(0, 60, 3).float() + 0.4, normal(1, 60, 3).float()
    for metric in metrics(None, y):
        kept = metric.extractor(x)
        assert kept.dtype == torch.float32
        assert metric.of(kept).value == metric(x), metric.name
        exact = dataclasses.replace(metric, reference=y.double())
        assert exact(x.double()) == pytest.approx(metric(x), rel=1e-9, abs=1e-12), metric.name


def test_names_say_the_features() -> None:
    y = normal(0, 9, 2)
    names = [metric.name for metric in metrics(torch.tanh, y)]
    assert names[:6] == ["FD[tanh]", "FD_inf[tanh]", "KD[tanh]", "MMD2[tanh]", "energy[tanh]", "SW2[tanh]"]
    assert names[6:] == [
        *("W2[tanh]", "precision[tanh]", "recall[tanh]", "density[tanh]", "coverage[tanh]", "RMSE", "median error")
    ]


def test_other_shapes_are_refused() -> None:
    for metric in metrics(None, normal(0, 20, 2, 3)):
        with pytest.raises(ValueError, match=r"shape of the reference, \(2, 3\) each; got \(3, 2\)"):
            metric(normal(1, 20, 3, 2))
        with pytest.raises(ValueError, match=r"reference, \(6,\) each; got \(5,\)|one dimension; got 5 and 6"):
            metric.of(normal(1, 20, 5))


# Maps -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (torch.uint8, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_features_are_kept_in_single_precision_at_least(given: torch.dtype, kept: torch.dtype) -> None:
    x = torch.ones(4, 2, 3).to(given)
    assert Identity()(x).dtype == FeatureMap(torch.clone)(x).dtype == kept
    assert Identity()(x).shape == FeatureMap(torch.clone)(x).shape == (4, 6)


def test_a_map_is_one_whoever_wraps_it() -> None:
    extract = FeatureMap(torch.tanh)
    assert FrechetDistance(extract, normal(0, 5, 2)).extractor is extract
    assert isinstance(FrechetDistance(Identity(), normal(0, 5, 2)).extractor, Identity)
    with pytest.raises(ValueError, match="batch must hold at least 1 sample; got 0"):
        FeatureMap(torch.tanh, 0)


# The floor ------------------------------------------------------------------------------------------------------------


def test_the_floor_is_the_mean_over_disjoint_sets() -> None:
    real, metric = normal(0, 100, 2), EnergyDistance(normal(1, 50, 2))
    value, stderr = floor(metric, real, 30, seed=3)
    lot = torch.randperm(100, generator=torch.Generator().manual_seed(3))
    values = [metric(real[lot[30 * k : 30 * k + 30]]) for k in range(3)]
    assert value == pytest.approx(np.mean(values))
    assert stderr == pytest.approx(np.std(values, ddof=1) / math.sqrt(3))


def test_the_floor_of_one_set_has_the_error_of_the_metric() -> None:
    real, metric = normal(0, 40, 2), FrechetDistance(None, normal(1, 50, 2))
    assert floor(metric, real, 40) == pytest.approx(metric.of(real), rel=1e-9)
    with pytest.raises(ValueError, match="got n=41 of 40"):
        floor(metric, real, 41)


# Inception ------------------------------------------------------------------------------------------------------------


class StandIn(nn.Module):
    """In the place of torch-fidelity's network: as strict on what it is given, with pooled colours for features."""

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None = None) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.path = feature_extractor_weights_path
        self.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        assert x.dtype == torch.uint8
        assert x.shape[1] == 3
        return (x.float().mean(dim=(2, 3)) @ self.weight,)


@pytest.fixture
def fidelity(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("fidelity")
def test_inception_is_given_bytes_of_three_channels(tmp_path: Path) -> None:
    grey = torch.tensor([-1.0, 1.0, 0.0, 3.0]).reshape(4, 1, 1, 1).expand(4, 1, 5, 5)
    level = torch.tensor([0.0, 255.0, 128.0, 255.0])
    torch.testing.assert_close(Inception()(grey), level[:, None] * torch.tensor([6.0, 9.0]))
    (tmp_path / "weights.pth").write_bytes(b"")
    assert Inception(tmp_path / "weights.pth").network.path == str(tmp_path / "weights.pth")
    real = normal(0, 30, 3, 4, 4).float()
    assert FrechetDistance(Inception(), real).name == "FD[Inception]"
    assert FrechetDistance(Inception(), real)(real) < 1e-6
    assert KernelDistance(Inception(), real)(-real) > KernelDistance(Inception(), real)(real)


@pytest.mark.usefixtures("fidelity")
def test_inception_refuses() -> None:
    with pytest.raises(ValueError, match=r"\(n, 1 or 3, height, width\); got \(2, 4, 5, 5\)"):
        Inception()(torch.zeros(2, 4, 5, 5))
    with pytest.raises(FileNotFoundError, match=r"none\.pth must be torch-fidelity's file"):
        Inception("none.pth")


def test_inception_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[fid\]"'):
        Inception()


# What stands for a metric's content -----------------------------------------------------------------------------------

OWN = """
import functools, logging, torch
from torch import nn
from torch.nn.functional import softplus
SCALE = 1.0
LEVELS = {"low": [1, 2], "high": torch.ones(2)}
LOG = logging.getLogger(__name__)
def helper(x):
    return x + 1
@functools.cache
def kept(n):
    return n + 1
class Base:
    order = 2
    def of(self, x):
        return x * 1.0
class Net(nn.Module, Base):
    @property
    def width(self):
        return 4
    @staticmethod
    def double(x):
        return 2 * x
    def forward(self, x):
        return torch.tanh(x) + inner(3, x)
def inner(n, x):
    return x if n == 0 else outer(n - 1, x)
def outer(n, x):
    return (lambda y: inner(n, helper(y)) * SCALE)(softplus(x))
def reads():
    LOG.info("%s", LEVELS)
    return kept(3), [SCALE for _ in range(2)]
"""


def prints(source: str, name: str) -> dict[str, str]:
    """The fingerprints of what a file of one's own defines."""
    module = ModuleType(name)
    exec(compile(source, f"{name}.py", "exec"), vars(module))
    return {key: fingerprint(getattr(module, key)) for key in ("outer", "reads", "Net")} | {
        "net": fingerprint(module.Net()),
        "metric": FrechetDistance(module.outer, torch.zeros(2, 1)).extractor.fingerprint,
    }


CODE = {"outer", "Net", "net", "metric"}


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("SCALE = 1.0", "SCALE = 2.0", CODE | {"reads"}),
        ("return x + 1", "return x + 2", CODE),
        ("x if n == 0", "2 * x if n == 0", CODE),
        ("import softplus", "import relu as softplus", CODE),
        ("torch.tanh(x) +", "torch.sin(x) +", {"Net", "net"}),
        ("x * 1.0", "x * 1.5", {"Net", "net"}),
        ("order = 2", "order = 3", {"Net", "net"}),
        ("return 4", "return 5", {"Net", "net"}),
        ("return 2 * x\n", "return 3 * x\n", {"Net", "net"}),
        ("[1, 2]", "[1, 3]", {"reads"}),
        ("torch.ones(2)", "torch.zeros(2)", {"reads"}),
        ("return n + 1", "return n + 2", {"reads"}),
        ("getLogger(__name__)", "getLogger('other')", set()),
    ],
)
def test_an_edit_of_ones_own_code_shows(old: str, new: str, changed: set[str]) -> None:
    assert OWN.count(old) == 1
    before, after = prints(OWN, "own_code"), prints(OWN.replace(old, new), "own_code")
    assert {key for key in before if before[key] != after[key]} == changed


def test_packages_are_known_by_name() -> None:
    for value in (torch.nn.functional.softplus, np.mean, FrechetDistance, dataclasses.replace, nn.Linear):
        read = eval("lambda: found", {"found": value, "__name__": "own_code"})
        other = eval("lambda: found", {"found": f"{value.__module__}.{value.__qualname__}", "__name__": "own_code"})
        assert fingerprint(read) == fingerprint(other)


def test_what_has_no_content_does_not_fail() -> None:
    class Odd:
        def __reduce_ex__(self, protocol: object) -> str:
            raise RuntimeError

        __slots__ = ()

    found = {"odd": Odd(), "lock": threading.Lock(), "draws": torch.Generator(), "file": sys.stdout, "all": []}
    found["all"].append(found)
    read = eval("lambda: (odd, lock, draws, file, all)", found | {"__name__": "own_code"})
    assert fingerprint(read) == fingerprint(read)
    assert fingerprint({"odd": Odd()}) == fingerprint({"odd": Odd()})


def test_a_worker_finds_the_fingerprints_of_its_sender(tmp_path: Path) -> None:
    """Code that travels by value, as that of a script does, and code that is imported."""
    cloudpickle = pytest.importorskip("cloudpickle")
    source = OWN.replace("@functools.cache", "")  # which does not travel by value
    script = f"""
import pickle, sys, cloudpickle
from sdekit.metrics.fingerprint import fingerprint
if len(sys.argv) == 1:
    {"".join(line + chr(10) + "    " for line in source.splitlines())}
    import mine
    values = [outer, reads, Net(), functools.partial(outer, 3), mine.outer, mine.Net()]
    with open("values", "wb") as file:
        cloudpickle.dump(values, file)
else:
    __file__ = "site-packages/worker.py"  # as that of loky's
    with open("values", "rb") as file:
        values = pickle.load(file)
print([fingerprint(value) for value in values])
"""
    assert cloudpickle
    (tmp_path / "mine.py").write_text(OWN)
    (tmp_path / "script.py").write_text(script)
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[1])])
    told = [
        subprocess.run(
            [sys.executable, "script.py", *more],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for more, seed in (([], "1"), (["worker"], "2"))
    ]
    assert told[0] == told[1]
    assert len(set(eval(told[0]))) == 4
