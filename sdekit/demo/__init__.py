"""The main job from end to end on real handwritten digits: train, sample, study, likelihood, and a page with it all."""

from sdekit.demo.digits import LEVELS, SAMPLERS, TRAIN, draw, likelihoods, sets, study, train
from sdekit.demo.page import demo

__all__ = ["LEVELS", "SAMPLERS", "TRAIN", "demo", "draw", "likelihoods", "sets", "study", "train"]
