"""What a guided model of digits gains and loses: agreement with the label asked for, and Frechet distance.

python -m benchmarks.guidance      # trains two denoisers and a classifier, which are kept: a few minutes on one core
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.svm import SVC
from torch import Tensor, nn
from tqdm import tqdm

from sdekit import DAMPED_ADAMS, Beta, Denoiser, Landed, Model, sample, solve
from sdekit.data import digits
from sdekit.demo import LEVELS, train
from sdekit.guidance import (
    Guided,
    Interval,
    NoisyClassifier,
    Potential,
    Ratio,
    Rescaled,
    classifier_free,
)
from sdekit.metrics import FrechetDistance, digit_classifier, digit_features
from sdekit.nets import MLP
from sdekit.training import Recipe, Trainer
from sdekit.training.classifier import CrossEntropy

RESULTS = Path(__file__).parent / "results" / "guidance"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "guidance.png"
KEPT = Path(tempfile.gettempdir()) / "sdekit-guidance"
COUNT = 1000
SEEDS = (0, 1, 2)
GRID = Landed(Beta(20))
SCALES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
"""s in u + s (c - u): 0 is unconditional, 1 conditional; w = s - 1."""
MIDDLE = Interval.of_noise(0.2, 3.0)

Row = dict[str, Any]


class Readout(nn.Module):
    """Logits of the ten digits from a small MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = MLP((1, 8, 8), hidden=128, depth=2), nn.Linear(64, 10)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        logits: Tensor = self.head((x + self.body(x, t)).flatten(1))
        return logits


def classifier(model: Denoiser) -> NoisyClassifier:
    """Train a noise-aware classifier on the training digits."""
    data = digits()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = NoisyClassifier(Readout(), model.process)
    images = torch.cat([LEVELS.apply(data.train, seed) for seed in range(10)])
    trainer = Trainer(fresh, (images, data.train_labels.repeat(10)), Recipe(1500, final=0.0), CrossEntropy())
    for _ in tqdm(trainer, desc="classifier"):
        pass
    return trainer.average


def judges() -> dict[str, Callable[[Tensor], Tensor]]:
    """Return two classifiers apart from the models: one trained on the test digits, one on the training digits."""
    data = digits()
    machine = SVC(C=10.0, gamma="scale").fit(data.test.flatten(1).numpy(), data.test_labels.numpy())
    network = digit_classifier().eval()
    return {
        "svc": lambda x: torch.as_tensor(np.asarray(machine.predict(x.flatten(1).numpy()))),
        "network": lambda x: network(x).argmax(1),
    }


def settings(model: Denoiser, weak: Denoiser, noisy: NoisyClassifier, labels: Tensor) -> dict[tuple[str, float], Model]:
    """Return every guided model by its kind and scale."""
    c, u = model.given(label=labels), model
    found: dict[tuple[str, float], Model] = {("classifier-free", s): classifier_free(c, u, s) for s in SCALES}
    for s in (1.5, 2.0, 3.0, 5.0):
        found["classifier-free, 0.2 < sigma/alpha <= 3", s] = classifier_free(c, u, s, MIDDLE)
        found["classifier-free, rescaled by 0.7", s] = Rescaled(classifier_free(c, u, s), 0.7)
        found["autoguidance", s] = Guided(c, Ratio(c, weak.given(label=labels), scale=s - 1))
    for s in (1.0, 2.0, 4.0):
        found["classifier", s] = Guided(u, Potential(noisy.given(labels), scale=s))
    return found


def measure(models: dict[tuple[str, float], Model], labels: Tensor) -> list[Row]:
    """Return agreement, Frechet distance and calls of every model over all seeds."""
    data, rows, judge = digits(), [], judges()
    distance = FrechetDistance(digit_features(), data.train)
    for (kind, scale), model in tqdm(models.items(), desc="guidance"):
        found, start = [], time.process_time()
        for seed in SEEDS:
            x = LEVELS.round(sample(model, (COUNT, 1, 8, 8), grid=GRID, seed=seed))
            shares = {name: float((f(x) == labels).double().mean()) for name, f in judge.items()}
            found.append({**shares, "fd": distance(x)})
        seconds = (time.process_time() - start) / len(SEEDS)
        mean = {name: round(statistics.mean(f[name] for f in found), 4) for name in found[0]}
        spread = {f"{name}_std": round(statistics.stdev(f[name] for f in found), 4) for name in found[0]}
        rows.append({"kind": kind, "scale": scale, "nfe": nfe(model), "s": round(seconds, 2), **mean, **spread})
    return rows


def nfe(model: Model) -> int:
    """Return the network calls of a run."""
    with torch.no_grad():
        return solve(model, torch.zeros(COUNT, 1, 8, 8), DAMPED_ADAMS, GRID).nfe


def real() -> list[Row]:
    """Return the same figures of real digits: the floor of the distance, and how often the judges are right."""
    data, judge = digits(), judges()
    distance = FrechetDistance(digit_features(), data.train)
    network = float((judge["network"](data.test) == data.test_labels).double().mean())
    svc = float((judge["svc"](data.train) == data.train_labels).double().mean())
    again = torch.randint(0, len(data.train), (COUNT,), generator=torch.Generator().manual_seed(0))
    return [
        {"kind": "test digits", "n": len(data.test), "network": round(network, 4), "fd": round(distance(data.test), 4)},
        {"kind": "training digits", "n": len(data.train), "svc": round(svc, 4)},
        {"kind": "training digits drawn again", "n": COUNT, "fd": round(distance(data.train[again]), 4)},
    ]


def table(rows: list[Row]) -> str:
    """Return the rows in markdown."""
    lines = [
        f"Digits asked for by label, {COUNT:,} samples in the proportions of the training set, mean over {len(SEEDS)} "
        "seeds (standard deviation between them), the default sampler.",
        "",
        "| guidance | s | calls | agrees: SVC | agrees: network | Frechet distance |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        if "scale" in row:
            shares = (f"{100 * row[k]:.1f}% ({100 * row[f'{k}_std']:.1f})" for k in ("svc", "network"))
            lines.append(
                f"| {row['kind']} | {row['scale']:g} | {row['nfe']} | {' | '.join(shares)} | "
                f"{row['fd']:.3f} ({row['fd_std']:.3f}) |"
            )
    lines.append("")
    for row in rows:
        if "scale" not in row:
            figures = ", ".join(f"{k} {row[k]}" for k in ("svc", "network", "fd") if k in row)
            lines.append(f"- real, {row['kind']}, n = {row['n']}: {figures}")
    return "\n".join(lines) + "\n"


def draw(rows: list[Row], path: Path) -> None:
    """Draw agreement and Frechet distance against the scale, and one against the other."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.9), layout="constrained")
    guided = [row for row in rows if "scale" in row]
    for kind in dict.fromkeys(row["kind"] for row in guided):
        line = [row for row in guided if row["kind"] == kind and row["scale"] > 0]
        s, share, fd = ([row[k] for row in line] for k in ("scale", "svc", "fd"))
        for axis, x, y in ((axes[0], s, share), (axes[1], s, fd), (axes[2], share, fd)):
            axis.plot(x, y, marker="o", markersize=4, label=kind)
    axes[0].axhline(0.97, color="0.6", linewidth=1)
    floor = next(row["fd"] for row in rows if row["kind"] == "test digits")
    for axis in axes[1:]:
        axis.axhline(floor, color="k", linestyle=":", linewidth=1)
        axis.set(yscale="log", ylabel="Frechet distance")
    axes[0].set(xlabel="scale s", ylabel="share of samples with the label asked for (SVC)")
    axes[1].set(xlabel="scale s")
    axes[2].set(xlabel="share of samples with the label asked for (SVC)")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000, help="training steps of the denoiser")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    data = digits()
    KEPT.mkdir(exist_ok=True)
    model, weak = (train(KEPT / f"{n}.safetensors", steps=n) for n in (steps, 500))
    labels = data.train_labels[:COUNT]  # every prefix of the training set has its proportions
    models = settings(model, weak, classifier(model), labels)
    rows = [*sorted(measure(models, labels), key=lambda row: str(row["kind"])), *real()]
    RESULTS.with_suffix(".jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    RESULTS.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    draw(rows, PICTURE)
    print(table(rows))


if __name__ == "__main__":
    main()
