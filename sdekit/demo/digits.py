"""The steps of the demo, each a function; the command line calls the same ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdekit import (
    DDIM,
    DDPM,
    HEUN,
    VP,
    Beta,
    Denoised,
    Denoiser,
    Grid,
    Landed,
    LogSNR,
    Method,
    Preconditioned,
    Process,
    Target,
    sample,
)
from sdekit.data import Images, digits
from sdekit.likelihood import Dequantization
from sdekit.methods import DAMPED_ADAMS, METHODS, DPMpp2M
from sdekit.metrics import FrechetDistance, digit_features
from sdekit.nets import MLP
from sdekit.study import Report, Sampler, Study
from sdekit.study.scores import Scores
from sdekit.study.scoring import Scoring
from sdekit.training import LogNormal, Objective, Recipe, Trainer, load

GRID = Denoised(LogSNR(20))
SAMPLERS: dict[str, Sampler] = {
    "DDPM": Sampler(DDPM, GRID),
    "DDIM": Sampler(DDIM, GRID),
    "Euler-Maruyama": Sampler(METHODS["euler-maruyama"], GRID),
    "Heun": Sampler(HEUN, GRID),
    "DPM-Solver++ 2M": Sampler(DPMpp2M, GRID),
    "the default": Sampler(DAMPED_ADAMS, Landed(Beta(20))),
}
LEVELS = Dequantization(levels=17)
TRAIN = "training digits"


def train(
    path: Path,
    steps: int = 3000,
    process: Process = VP(),
    predicts: Target = Preconditioned(sigma_data=0.75),
    seed: int = 0,
) -> Denoiser:
    """Train an MLP on the digits and store it at `path`, every 500 steps; a run that was stopped goes on.

    The network learns with the labels and, on every tenth image, without. Pixels are dequantised, so that the model has
    a density of which a likelihood can be asked.

    Raises:
        ValueError: `path` holds a training of another kind, which is left as it is.
    """
    data = _training_data(digits())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLP((1, 8, 8), classes=10)
    model = Denoiser(net, process, predicts=predicts)
    objective = Objective(times=LogNormal(mean=-0.4, std=1.2))
    recipe = Recipe(steps, lr=2e-3, warmup=min(100, steps), final=0.0)
    trainer = Trainer(model, data, recipe, objective, seed)
    if path.exists():
        trainer = _resumed(path, data, trainer)
    bar = tqdm(trainer, total=steps, initial=trainer.step, desc="train", unit="step")
    for progress in bar:
        if progress.step % 100 == 0:
            bar.set_postfix(loss=f"{float(progress.loss):.3f}")
        if progress.step % 500 == 0:
            trainer.save(path)
    trainer.save(path)
    return load(path)


def draw(
    model: Denoiser,
    method: Method = DAMPED_ADAMS,
    grid: Grid = Landed(Beta(20)),
    labels: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Draw a digit for each label (by default ten of each kind, class by class), rounded to the levels of the data."""
    labels = torch.arange(10).repeat_interleave(10) if labels is None else labels
    return LEVELS.round(sample(model.given(label=labels), (len(labels), 1, 8, 8), method, grid, seed))


def likelihoods(model: Denoiser, path: Path, count: int = 100, seed: int = 0) -> Scores:
    """Score test digits, and what should be far less likely, in a file row by row; a run that was stopped goes on."""
    kinds = {name: x for name, x in sets(seed).items() if name != TRAIN}
    scoring = Scoring(model, kinds, LEVELS, seed=seed, moments=digits().train)
    return scoring.run(path, count=count, progress=lambda batches: tqdm(batches, desc="likelihood", unit="batch"))


def sets(seed: int = 0) -> dict[str, Tensor]:
    """Return what a model of the digits can be asked about: the test digits, the same with their pixels shuffled (one
    shuffle for all), uniform noise on their levels, and the training digits, shape (n, 1, 8, 8) each."""
    data, generator = digits(), torch.Generator().manual_seed(seed)
    shuffled = data.test.flatten(1)[:, torch.randperm(64, generator=generator)].reshape(data.test.shape)
    noise = torch.randint(0, LEVELS.levels, data.test.shape, generator=generator) / 8 - 1
    return {"test digits": data.test, "shuffled pixels": shuffled, "uniform noise": noise, TRAIN: data.train}


def study(
    model: Denoiser,
    path: Path,
    methods: Mapping[str, Method | Sampler] = SAMPLERS,
    budgets: tuple[int, ...] = (5, 10, 20, 50),
    seeds: tuple[int, ...] = (0, 1, 2),
) -> Report:
    """Measure samplers by Frechet distance in the features of a digit classifier, at the labels of the test digits."""
    data = digits()
    features = digit_features()
    metric = FrechetDistance(_Rounded(features), data.train)
    conditional = model.given(label=data.test_labels)
    shape = tuple(data.test.shape)
    plan = Study(conditional, methods, metric, shape, floor=data.test, budgets=budgets, seeds=seeds, grid=GRID)
    # one batch, since the labels are those of the whole of it
    return plan.run(path, batch=len(data.test), progress=lambda cells: tqdm(cells, desc="study", unit="cell"))


class _Rounded(torch.nn.Module):
    """Features of images rounded to the levels of the data, as real images are."""

    name = "digit classifier"

    def __init__(self, features: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return self.features(LEVELS.round(x))


def _training_data(data: Images) -> tuple[Tensor, Tensor]:
    """Ten copies of the training digits, each dequantised anew, the last one without labels."""
    images = torch.cat([LEVELS.apply(data.train, seed) for seed in range(10)])
    labels = torch.cat([data.train_labels] * 9 + [torch.full_like(data.train_labels, data.classes)])
    return images, labels


def _resumed(path: Path, data: tuple[Tensor, Tensor], fresh: Trainer) -> Trainer:
    """Return the training stored at `path`, if it is the one that `fresh` would be."""

    def kind(trainer: Trainer) -> tuple[object, ...]:
        model = trainer.model
        return model.process, model.predicts, trainer.recipe, trainer.objective, trainer.seed

    stored = Trainer.load(path, data)
    if kind(stored) != kind(fresh):
        raise ValueError(
            f"{path} must hold the training asked for to go on with it; it holds {kind(stored)}, asked for is "
            f"{kind(fresh)}. Give another path, or remove the file."
        )
    return stored
