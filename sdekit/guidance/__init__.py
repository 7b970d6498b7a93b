"""Conditioning at sampling time: models whose density is multiplied by guides."""

from sdekit.guidance.classifier import LogProbability, NoisyClassifier
from sdekit.guidance.guided import Guided, Rescaled, classifier_free, ho_salimans
from sdekit.guidance.guides import Frozen, Guide, Potential, Ratio, Reward, ThroughData
from sdekit.guidance.measurement import Inpainting, Linear
from sdekit.guidance.scale import Interval, Scale

__all__ = [
    "Frozen",
    "Guide",
    "Guided",
    "Inpainting",
    "Interval",
    "Linear",
    "LogProbability",
    "NoisyClassifier",
    "Potential",
    "Ratio",
    "Rescaled",
    "Reward",
    "Scale",
    "ThroughData",
    "classifier_free",
    "ho_salimans",
]
