"""Inception's features, and the FID and KID on them, beside those of torch-fidelity itself. The weights are random."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from sdekit.metrics import FrechetDistance, Inception, KernelDistance

ALIVE = [7, 500, 2000]
"""The features that vary. With fewer of them than images the covariances have full rank, and torch-fidelity's square
roots of eigenvalues their full precision."""


@pytest.fixture(scope="module")
def fidelity() -> ModuleType:
    try:
        return import_module("torch_fidelity")
    except Exception as error:  # not ImportError alone: its torchvision may not fit torch
        pytest.skip(f"torch-fidelity cannot be imported: {error}")


@pytest.fixture(scope="module")
def weights(fidelity: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights: He's law for the convolutions; of the last features few are left, of large scale."""
    kind, generator = fidelity.FeatureExtractorInceptionV3, torch.Generator().manual_seed(0)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        patch.setattr(f"{kind.__module__}.load_state_dict_from_url", lambda *_, **__: None)
        network = kind("inception-v3-compat", ["2048"])
    for part in network.modules():
        if isinstance(part, nn.Conv2d):
            part.weight.normal_(0, (2 / part.weight[0].numel()) ** 0.5, generator=generator)
    last = network.Mixed_7c
    branches = [last.branch1x1, last.branch3x3_2a, last.branch3x3_2b, last.branch3x3dbl_3a, last.branch3x3dbl_3b]
    norms = [branch.bn for branch in [*branches, last.branch_pool]]
    alive = torch.zeros(2048).index_fill(0, torch.tensor(ALIVE), 100.0)
    for norm, part in zip(norms, alive.split([len(norm.weight) for norm in norms]), strict=True):
        norm.weight.copy_(part)
        norm.bias.copy_(part)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def images(n: int, seed: int) -> Tensor:
    """Coloured images of 8 bits, (n, 3, 16, 16), with a few large patches each."""
    coarse = torch.randint(0, 256, (n, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)


def scaled(pixels: Tensor) -> Tensor:
    """Return pixels of 8 bits in [-1, 1], as a model has them."""
    return pixels.float() / 127.5 - 1


class Listed(torch.utils.data.Dataset[Tensor]):
    """What torch-fidelity takes for images."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Tensor:
        return self.pixels[i]


def test_every_level_of_8_bits_comes_back(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    inception, seen = Inception(weights), []
    monkeypatch.setattr(inception.network, "forward", lambda x: seen.append(x) or (torch.zeros(len(x), 2048),))
    inception(scaled(levels))
    assert torch.equal(seen[0], levels.expand(-1, 3, -1, -1))


@pytest.mark.slow
@pytest.mark.uses_global_rng  # by torch-fidelity
def test_the_fid_and_the_kid_are_those_of_torch_fidelity(fidelity: ModuleType, weights: Path) -> None:
    real, drawn = images(6, 0), images(6, 1) // 2
    settings = {"kid_subsets": 1, "kid_subset_size": 6, "feature_extractor_weights_path": str(weights)}
    here = {"cuda": False, "save_cpu_ram": True, "verbose": False}  # with no processes beside this one
    theirs = fidelity.calculate_metrics(
        input1=Listed(drawn), input2=Listed(real), fid=True, kid=True, **settings, **here
    )
    kid = KernelDistance(Inception(weights), scaled(real))
    features = kid.extractor(scaled(drawn))
    assert features.std(dim=0).nonzero().flatten().tolist() == ALIVE
    fid = FrechetDistance(kid.extractor, scaled(real)).of(features)
    assert fid.value == pytest.approx(theirs[fidelity.KEY_METRIC_FID], rel=1e-6)
    assert kid.of(features).value == pytest.approx(theirs[fidelity.KEY_METRIC_KID_MEAN], rel=1e-5)  # in float32
    network = fidelity.FeatureExtractorInceptionV3("", ["2048"], feature_extractor_weights_path=str(weights))
    torch.testing.assert_close(features[:2], network.eval()(drawn[:2])[0], rtol=1e-5, atol=1e-3)


def test_two_of_one_file_are_one_map(weights: Path, tmp_path: Path) -> None:
    shutil.copy(weights, tmp_path / "copy.pth")
    one, other = (KernelDistance(Inception(path), torch.zeros(2, 1, 4, 4)) for path in (weights, tmp_path / "copy.pth"))
    assert one.extractor.fingerprint == other.extractor.fingerprint
    assert one.extractor.fingerprint.startswith("Inception:")


def test_a_torchvision_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch_fidelity.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r'fits torch: pip install "sdekit\[fid\]" \(operator torchvision::nms'):
        Inception()
