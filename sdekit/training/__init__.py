"""Training: an objective for anybody's loop, a loop that resumes bit for bit, and checkpoints that are whole."""

from sdekit.training.batches import Batches
from sdekit.training.checkpoint import load, save
from sdekit.training.objective import Objective
from sdekit.training.recipe import Recipe
from sdekit.training.times import LogNormal, TimeLaw, UniformLogSNR, UniformTimes
from sdekit.training.trainer import Progress, Trainer, train
from sdekit.training.weights import Likelihood, MinSNR, On, OnOutput, Weight

__all__ = [
    "Batches",
    "Likelihood",
    "LogNormal",
    "MinSNR",
    "Objective",
    "On",
    "OnOutput",
    "Progress",
    "Recipe",
    "TimeLaw",
    "Trainer",
    "UniformLogSNR",
    "UniformTimes",
    "Weight",
    "load",
    "save",
    "train",
]
