"""What the suites study: models with exact answers, and models trained on real images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sdekit.data
from sdekit.grid import Beta, Landed
from sdekit.likelihood import Dequantization
from sdekit.methods import DAMPED_ADAMS
from sdekit.metrics import EnergyDistance, FrechetDistance, KernelDistance, digit_features, image_features
from sdekit.oracle import Full, GaussianMixture, LowRank
from sdekit.process import VP
from sdekit.study import Contender, FlowError, Study, Tuned
from sdekit.suites.samplers import DIFFUSERS, FEW, OTHERS, OURS
from sdekit.suites.trained import digits_model, mnist_model

SEEDS = (0, 1, 2)
QUICKER: dict[str, Contender] = {"sdekit tuned": Tuned(DAMPED_ADAMS, Landed(Beta(1)), starts=96)}
"""In the place of the tuned sampler where a model takes its time."""


def analytic() -> list[Study]:
    """Return the studies of two laws that are known exactly: eight modes on a circle, and the 8x8 digits as a mixture.

    The errors are the samplers' alone: of deterministic ones against the flow from the same starts, of all in law.
    """
    images = sdekit.data.digits()
    points = torch.cat([images.train, images.test]).double().flatten(1)
    circle, mixture = ring(), GaussianMixture.fit(VP(), points, 10, Full)
    laws = (("ring", circle, EnergyDistance(_drawn(circle, 1_000))), ("digits as a mixture", mixture))
    return [
        Study(
            {label: law},
            OURS | DIFFUSERS | OTHERS,
            (FlowError(), FrechetDistance(None, _drawn(law, 10_000)), *more),
            (1000, *law.shape),
            floor=_drawn(law, 3_000, seed=1),
            budgets=(5, 10, 20, 50),
            seeds=SEEDS,
        )
        for label, law, *more in laws
    ]


def ring() -> GaussianMixture:
    """Return eight modes of deviation 0.1 on a circle of radius 0.9, on VP, in float64."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return GaussianMixture(VP(), 0.9 * torch.stack([angle.cos(), angle.sin()], 1), 0.1)


def digits() -> list[Study]:
    """Return the studies of the class-conditional MLP of the 8x8 digits.

    The first is at the labels of the 397 test digits, beside these digits themselves. The second takes each label ten
    times, for which there are no real digits, but samples enough to tell samplers from the fine solution.
    """
    data, model = sdekit.data.digits(), digits_model()
    features = Rounded(digit_features(), Dequantization(data.levels), "digit classifier")
    distance, (n, *shape) = FrechetDistance(features, data.train), data.test.shape
    return [
        Study(
            {"digits": model.given(label=data.test_labels)},
            OURS | DIFFUSERS | OTHERS,
            (distance, KernelDistance(features, data.train), FlowError()),
            (n, *shape),
            floor=data.test,
            budgets=(5, 6, 8, 10, 20, 50),
            seeds=SEEDS,
        ),
        Study(
            {"digits tenfold": model.given(label=data.test_labels.repeat(10))},
            OURS | DIFFUSERS,
            (distance, FlowError(budget=100)),
            (10 * n, *shape),
            budgets=(5, 6, 8, 10),
            seeds=SEEDS,
        ),
    ]


def mnist() -> list[Study]:
    """Return the study of the class-conditional U-Net of MNIST, at the labels of 400 of the test digits."""
    data = sdekit.data.mnist()
    features = Rounded(image_features(data), Dequantization(data.levels), "MNIST classifier")
    n = 400
    return [
        Study(
            {"MNIST": mnist_model().given(label=data.test_labels[:n])},
            FEW | QUICKER,
            (FrechetDistance(features, data.train), FlowError(budget=100)),
            (n, *data.shape),
            floor=data.test[:n],
            budgets=(5, 8, 10, 20),
            seeds=SEEDS,
        )
    ]


def patches() -> list[Study]:
    """Return the study of colour 32x32 patches of photographs as a mixture of low rank, which is known exactly.

    A mixture in 3,072 dimensions stands in for a network: what it says is exact for its own law.
    """
    law = photographs(sdekit.data.patches(train=1500, test=100).train)
    return [
        Study(
            {"patches as a mixture": law},
            FEW | OTHERS | QUICKER,
            (FlowError(), FrechetDistance(Pooled(), _drawn(law, 5_000))),
            (256, *law.shape),
            floor=_drawn(law, 1_000, seed=1),
            budgets=(5, 8, 10, 20),
            seeds=SEEDS,
        )
    ]


def photographs(x: Tensor, components: int = 6, rank: int = 32) -> GaussianMixture:
    """Return a mixture fitted to images, (n, *shape), in their leading principal directions; the rest is isotropic."""
    mean, flat = x.flatten(1).double().mean(0), x.flatten(1).double()
    values, vectors = torch.linalg.eigh((flat - mean) @ (flat - mean).T)
    axes = ((flat - mean).T @ vectors[:, -rank:]) / values[-rank:].sqrt()
    rest = float((values[:-rank].sum() / (len(x) * (flat.shape[1] - rank))).sqrt())
    inner = GaussianMixture.fit(VP(), (flat - mean) @ axes, components, Full)
    spectrum = inner.components.spectrum
    assert spectrum.directions is not None  # of Full there are
    ways = axes @ (spectrum.directions.mT * spectrum.values[:, None].sqrt())
    means = (mean + inner.means @ axes.T).float().reshape(components, *x.shape[1:])
    return GaussianMixture(VP(), means, LowRank(ways.float(), rest), inner.weights)


class Rounded(nn.Module):
    """Features of images rounded to the levels of the data, as real images are.

    Args:
        features: of images.
        levels: the levels of the data.
        name: the label of the map in a table.
    """

    def __init__(self, features: Callable[[Tensor], Tensor], levels: Dequantization, name: str) -> None:
        super().__init__()
        self.features, self.levels, self.name = features, levels, name

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images x."""
        return self.features(self.levels.round(x))


class Pooled(nn.Module):
    """Means of images, (n, c, h, w), over a grid of four by four, as features, (n, 16 c)."""

    name = "4x4 means"

    def forward(self, x: Tensor) -> Tensor:
        """Return the features of images x."""
        return F.adaptive_avg_pool2d(x, 4).flatten(1)


def _drawn(law: GaussianMixture, count: int, seed: int = 0) -> Tensor:
    return law.sample(count, torch.Generator().manual_seed(seed))
