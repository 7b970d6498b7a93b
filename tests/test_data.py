"""The bundled data: the split is stratified, fixed and complete, and the pixels are exact."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from sdekit.data import Images, digits


@pytest.fixture(scope="module")
def data() -> Images:
    return digits()


def test_shapes_types_and_range(data: Images) -> None:
    assert data.train.shape == (1400, 1, 8, 8)
    assert data.test.shape == (397, 1, 8, 8)
    assert data.train_labels.shape == (1400,)
    assert data.test_labels.shape == (397,)
    assert data.train.dtype == data.test.dtype == torch.float32
    assert data.train_labels.dtype == data.test_labels.dtype == torch.int64
    assert (data.shape, data.classes) == ((1, 8, 8), 10)
    assert float(data.train.min()) == -1
    assert float(data.train.max()) == 1


def test_the_split_is_the_data_set(data: Images) -> None:
    """Every image of scikit-learn is in it once, with its label; a pixel k of 0 ... 16 is k / 8 - 1."""
    bunch = load_digits()
    images = ((torch.cat([data.train, data.test]) + 1) * 8).flatten(1).tolist()
    labels = torch.cat([data.train_labels, data.test_labels]).tolist()
    ours = Counter((label, *image) for label, image in zip(labels, images, strict=True))
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


def test_scikit_learn_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[data\]"'):
        digits()


def test_changing_one_copy_does_not_change_the_next(data: Images) -> None:
    digits().train.zero_()
    assert torch.equal(digits().train, data.train)
