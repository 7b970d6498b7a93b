"""Training: an objective for anybody's loop, a loop that resumes bit for bit, and checkpoints that are whole."""

from sdekit.training.batches import Batches
from sdekit.training.checkpoint import load, save
from sdekit.training.classifier import CrossEntropy
from sdekit.training.devices import Accelerated, Devices, OneDevice, Sharded
from sdekit.training.dropout import Dropout
from sdekit.training.folder import Checkpoints
from sdekit.training.hybrid import VLB, Hybrid
from sdekit.training.importance import Importance
from sdekit.training.levels import CosMap, Mode
from sdekit.training.loss import Loss
from sdekit.training.noise_scale import NoiseScale, noise_scale
from sdekit.training.objective import Criterion, Noising, Objective
from sdekit.training.pretrained import from_pretrained, save_pretrained
from sdekit.training.recipe import Recipe
from sdekit.training.second_moment import LossSecondMoment
from sdekit.training.times import LogNormal, TimeLaw, UniformLogSNR, UniformSteps, UniformTimes
from sdekit.training.trainer import Progress, Trainer, train
from sdekit.training.validation import Level, Validation
from sdekit.training.watched import Watched
from sdekit.training.weights import Likelihood, MinSNR, On, OnOutput, TruncatedSNR, Weight

__all__ = [
    "VLB",
    "Accelerated",
    "Batches",
    "Checkpoints",
    "CosMap",
    "Criterion",
    "CrossEntropy",
    "Devices",
    "Dropout",
    "Hybrid",
    "Importance",
    "Level",
    "Likelihood",
    "LogNormal",
    "Loss",
    "LossSecondMoment",
    "MinSNR",
    "Mode",
    "NoiseScale",
    "Noising",
    "Objective",
    "On",
    "OnOutput",
    "OneDevice",
    "Progress",
    "Recipe",
    "Sharded",
    "TimeLaw",
    "Trainer",
    "TruncatedSNR",
    "UniformLogSNR",
    "UniformSteps",
    "UniformTimes",
    "Validation",
    "Watched",
    "Weight",
    "from_pretrained",
    "load",
    "noise_scale",
    "save",
    "save_pretrained",
    "train",
]
