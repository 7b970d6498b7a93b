"""Small sets of real data that need no download."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor

__all__ = ["Images", "digits"]


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images, split once and for all into a training and a test set.

    Args:
        train: images to train on, pixels in [-1, 1], float32, shape (n, channels, height, width).
        train_labels: their classes, int64, shape (n,).
        test: images to test with, shape (m, channels, height, width).
        test_labels: their classes, shape (m,).
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (channels, height, width)."""
        return tuple(self.train.shape[1:])

    @property
    def classes(self) -> int:
        """Number of classes; the labels are 0 ... classes - 1."""
        return int(self.train_labels.max()) + 1


def digits() -> Images:
    """Return scikit-learn's 1,797 handwritten digits of 8x8 pixels: 1,400 to train on, 397 to test with.

    A pixel k of 0 ... 16 becomes k / 8 - 1. The split is stratified and drawn with a fixed seed; every prefix
    of the training set, train[:k], is stratified too.

    Raises:
        ImportError: scikit-learn is missing.

    Reference: Alpaydin and Kaynak (1998), "Optical recognition of handwritten digits", UCI repository.

    >>> data = digits()
    >>> data.train.shape, data.test.shape, data.classes
    (torch.Size([1400, 1, 8, 8]), torch.Size([397, 1, 8, 8]), 10)
    """
    try:
        bunch = import_module("sklearn.datasets").load_digits()
    except ImportError as error:
        raise ImportError('digits() needs scikit-learn: pip install "sdekit[data]"') from error
    images = torch.as_tensor(bunch.images, dtype=torch.float32, device="cpu")[:, None] / 8 - 1
    labels = torch.as_tensor(bunch.target, dtype=torch.int64, device="cpu")
    order = _stratified_order(labels, seed=0)
    train, test = order[:1400], order[1400:]
    return Images(images[train], labels[train], images[test], labels[test])


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
