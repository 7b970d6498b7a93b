"""The main job from end to end on real handwritten digits: train, sample, study, likelihood, and a page with it all."""

from sdekit.demo.digits import SAMPLERS, draw, likelihoods, study, train
from sdekit.demo.page import demo

__all__ = ["SAMPLERS", "demo", "draw", "likelihoods", "study", "train"]
