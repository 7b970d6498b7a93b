"""The models of the suites: trained on real data once, and kept by the hash of what determines them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

import sdekit
from sdekit.data import digits, mnist
from sdekit.demo import train
from sdekit.denoiser import Denoiser
from sdekit.metrics.fingerprint import fingerprint
from sdekit.nets import UNet
from sdekit.nets.unet import Stage
from sdekit.prediction import Preconditioned
from sdekit.process import VP
from sdekit.training import LogNormal, Objective, OneDevice, Recipe, Trainer, load
from sdekit.training.dropout import Dropout
from sdekit.training.folder import Checkpoints

STEPS = 3300
MNIST = Path("runs/mnist")
"""Where `benchmarks.mnist` leaves its checkpoints: a finished one is taken, rather than trained again."""


def digits_model() -> Denoiser:
    """Return the class-conditional MLP of the 8x8 digits, that of the demo, in about a minute if it is not kept."""
    path = kept("digits-model", train, digits().train).with_suffix(".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    return load(path) if path.with_name(f"{path.name}.done").exists() else _finished(path)


def _finished(path: Path) -> Denoiser:
    model = train(path)
    path.with_name(f"{path.name}.done").touch()
    return model


def mnist_model() -> Denoiser:
    """Return the class-conditional U-Net of 4,000 MNIST digits: 20 minutes on a CPU, if it is not kept."""
    for folder in (MNIST, kept("mnist-model", mnist_trainer, mnist().train)):
        found = folder / f"step-{STEPS:09d}.safetensors"
        if found.exists():
            return load(found)
    checkpoints, trainer = Checkpoints(folder), mnist_trainer()
    checkpoints.resume(trainer)
    for progress in tqdm(trainer, total=STEPS, initial=trainer.step, desc="train", unit="step"):
        if progress.step % 200 == 0:
            checkpoints.save(trainer)
    return load(checkpoints.save(trainer))


def mnist_trainer(steps: int = STEPS) -> Trainer:
    """Return the training of that U-Net, from its start; products are in bfloat16, which takes half the time."""
    data = mnist()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = UNet(1, (Stage(64), Stage(128)), patch=2, classes=data.classes)
    model = Denoiser(net, VP(), predicts=Preconditioned(sigma_data=0.6))
    recipe = Recipe(steps, batch=64, lr=1e-3, warmup=min(100, steps), final=0.0, clip=1.0)
    objective = Objective(times=LogNormal(mean=-0.5, std=1.2), dropout=Dropout(0.1, none=10))
    return Trainer(
        model, (data.train, data.train_labels), recipe, objective, devices=OneDevice(precision=torch.bfloat16)
    )


def kept(name: str, made: Callable[..., Any], data: torch.Tensor) -> Path:
    """Return where a model is kept: $SDEKIT_CACHE, under the hash of the code that makes it, the data and versions."""
    cache = Path(os.environ.get("SDEKIT_CACHE") or Path.home() / ".cache" / "sdekit")
    return cache / f"{name}-{fingerprint((inspect.getsource(made), data, torch.__version__, sdekit.__version__))}"
