"""The classifier of the 8x8 digits, as a feature map and as a judge: that of their `image_classifier`."""

from __future__ import annotations

from sdekit.data import digits
from sdekit.metrics.classifier import ImageClassifier, ImageFeatures, image_classifier

__all__ = ["digit_classifier", "digit_features"]


def digit_features() -> ImageFeatures:
    """Return the feature map in which Frechet distances between sets of 8x8 digits are measured.

    What `image_features` says holds here too: it is not the FID. The floor is the distance of the 397 test digits
    from the 1,400 training digits. Both hold the classes in the same proportions. Samples drawn without labels do
    not: even 397 random draws of the training digits themselves are, on average, twice as far from them. Draw
    samples with the labels of the test digits, or many more of them.

    Raises:
        ImportError: scikit-learn, which holds the digits, is missing.
        OSError: the cache directory cannot be written.

    >>> metric = FrechetDistance(digit_features(), digits().train)  # doctest: +SKIP
    """
    return ImageFeatures(digit_classifier(), "digits")


def digit_classifier() -> ImageClassifier:
    """Return the classifier behind `digit_features`, in evaluation mode: from the cache, or else trained now.

    Raises:
        ImportError: scikit-learn, which holds the digits, is missing.
        OSError: the cache directory cannot be written.
    """
    return image_classifier(digits())
