"""Images with their classes and their range, and how images of your own become them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["Images", "Source", "images", "split"]

Source: TypeAlias = Tensor | tuple[Tensor, Tensor] | Dataset[Any]
"""Images, (n, channels, height, width); a pair of them and their classes, (n,); or a Dataset of single images,
(channels, height, width), or of pairs of such an image and its class."""


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images on evenly spaced levels from -1 to 1, split once and for all into a training and a test set.

    Args:
        train: images to train on, float32, shape (n, channels, height, width); level k is stored as
            2 k / (levels - 1) - 1.
        train_labels: their classes, int64, shape (n,); all 0 for images without classes.
        test: images to test with, shape (m, channels, height, width).
        test_labels: their classes, shape (m,).
        levels: the number of levels a pixel can have, so that `Dequantization(data.levels)` puts noise in their bins.

    Raises:
        ValueError: a shape or type does not fit, a label is out of range, or a pixel does not lie on a level.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    levels: int

    def __post_init__(self) -> None:
        for name, x, labels in (("train", self.train, self.train_labels), ("test", self.test, self.test_labels)):
            if x.ndim != 4 or len(x) == 0 or x.shape[1:] != self.train.shape[1:] or x.dtype != torch.float32:
                raise ValueError(
                    "Images must be float32 of shape (n, channels, height, width), training and test images alike; "
                    f"got {name} of {x.dtype} and shape {tuple(x.shape)}. Reshape them; images() converts."
                )
            if labels.shape != x.shape[:1] or labels.dtype != torch.int64:
                raise ValueError(
                    f"Labels must be int64, one an image, ({len(x)},); got {name}_labels of {labels.dtype} and shape "
                    f"{tuple(labels.shape)}. Pass the index of the class, 0 for all if there are none."
                )
            if int(labels.min()) < 0 or int(labels.max()) >= self.classes:
                raise ValueError(
                    f"Labels must be 0 ... {self.classes - 1}, the classes of the training images; got "
                    f"{int(labels.min())} ... {int(labels.max())} in {name}_labels."
                )
            _levels(x, self.levels, -1.0, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (channels, height, width)."""
        return tuple(self.train.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes; the labels are 0 ... classes - 1."""
        return int(self.train_labels.max()) + 1


def images(train: Source, test: Source | int, levels: int = 256, low: float = -1.0, high: float = 1.0) -> Images:
    """Return images of your own as `Images`; `low` and `high` say where *they* store the first and the last level.

    Nothing is guessed: bytes and floats of 0 ... 255 need low=0, high=255, floats of 0 ... 1 need low=0, high=1.

    Args:
        train: images, or images and their classes, in tensors or a Dataset; see `Source`.
        test: images to test with, or how many of `train` to hold out, drawn with a fixed seed and stratified.
        levels: the number of levels a pixel can have.
        low: where level 0 is stored in `train` and `test`.
        high: where level levels - 1 is stored.

    Raises:
        TypeError: a source is none of those above.
        ValueError: pixels do not lie on the levels from low to high, or as `Images`.

    >>> bytes_ = torch.arange(256, dtype=torch.uint8).reshape(64, 1, 2, 2)
    >>> data = images(bytes_, test=4, low=0, high=255)
    >>> data.train.shape, data.levels, float(torch.cat([data.train, data.test]).max())
    (torch.Size([60, 1, 2, 2]), 256, 1.0)
    """
    x, labels = _read(train)
    x = _standard(x, levels, low, high)
    if isinstance(test, int):
        return split(x, labels, test, levels)
    y, test_labels = _read(test)
    return Images(x, labels, _standard(y, levels, low, high), test_labels, levels)


def split(x: Tensor, labels: Tensor, test: int, levels: int) -> Images:
    """Hold out `test` of the images x: stratified, drawn with a fixed seed.

    Every prefix of the training images is stratified too.

    Raises:
        ValueError: no image would be left on one side.
    """
    if not 0 < test < len(x):
        raise ValueError(f"From 1 to {len(x) - 1} of {len(x)} images can be held out to test with; got {test}.")
    order = _stratified_order(labels, seed=0)
    kept, held = order[: len(x) - test], order[len(x) - test :]
    return Images(x[kept], labels[kept], x[held], labels[held], levels)


def _read(source: Source) -> tuple[Tensor, Tensor]:
    """Return images and labels; the labels are 0 where there are none."""
    if isinstance(source, Dataset):
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise TypeError(
                f"A Dataset must have a length and be indexed; {type(source).__name__} can only be iterated. Stack "
                "its images into a tensor."
            )
        source = _stacked(source)
    x, labels = source if isinstance(source, tuple) and len(source) == 2 else (source, None)
    if not isinstance(x, Tensor) or not (labels is None or isinstance(labels, Tensor)):
        raise TypeError(
            "Images must come as a tensor, a pair of tensors (images, labels) or a Dataset of them; got "
            f"{type(source).__name__}. Convert them, for instance with torch.from_numpy."
        )
    x = x.detach().cpu()
    if labels is None:
        return x, torch.zeros(len(x), dtype=torch.int64, device="cpu")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"Labels must be whole numbers, 0 ... classes - 1; got {labels.dtype}. Convert them.")
    return x, labels.detach().cpu().to(torch.int64)


def _stacked(dataset: Any) -> Tensor | tuple[Tensor, Tensor]:
    """Return all of a Dataset: its images or, where it gives pairs, images and labels."""
    samples = [dataset[i] for i in range(len(dataset))]
    pairs = [s if isinstance(s, tuple | list) else (s,) for s in samples]
    sizes = {len(pair) for pair in pairs}
    if sizes not in ({1}, {2}) or not all(isinstance(pair[0], Tensor) for pair in pairs):
        kinds = sorted({", ".join(type(part).__name__ for part in pair) for pair in pairs})
        raise TypeError(
            f"A Dataset must give images as tensors, or pairs of a tensor and a class; got ({'), ('.join(kinds)}). "
            "Give it a transform that makes tensors."
        )
    x = torch.stack([pair[0] for pair in pairs])
    return x if sizes == {1} else (x, torch.tensor([int(pair[1]) for pair in pairs], device="cpu"))


def _standard(x: Tensor, levels: int, low: float, high: float) -> Tensor:
    """Return images whose levels lie from low to high with their levels from -1 to 1, in float32."""
    if not low < high:
        raise ValueError(f"low < high must hold; got low={low}, high={high}.")
    return _levels(x, levels, low, high) / ((levels - 1) / 2) - 1


def _levels(x: Tensor, levels: int, low: float, high: float) -> Tensor:
    """Return the level of every pixel, float32 whole numbers 0 ... levels - 1, or say what is wrong with the pixels."""
    if not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels must be a whole number of at least 2, such as 256; got {levels!r}.")
    exact = (x.to(torch.float32) - low) * ((levels - 1) / (high - low))
    nearest = exact.round()
    off = ~(((exact - nearest).abs() < 1e-2) & (nearest >= 0) & (nearest < levels))  # nan is off
    if bool(off.any()):
        raise ValueError(
            f"Pixels must lie on {levels} levels from {low:g} to {high:g}; {int(off.sum())} of {x.numel()} do not, and "
            f"they range from {float(x.min()):g} to {float(x.max()):g}. Say where images() finds the first and last "
            "level, low=0, high=255 for bytes, low=0, high=1 for shares, and how many there are; round what lies "
            "between."
        )
    return nearest


def _stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Return a random order of which every prefix holds the classes in their proportions, but for rounding.

    The i-th of n shuffled members of a class, i = 0 ... n - 1, stands at quantile (i + 1/2) / n; sort by it.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator, device="cpu")
    quantile = torch.empty(len(labels), dtype=torch.float64, device="cpu")
    for label in labels.unique():
        members = labels[shuffled] == label
        n = int(members.sum())
        quantile[members] = (torch.arange(n, dtype=torch.float64, device="cpu") + 0.5) / n
    return shuffled[quantile.argsort(stable=True)]
