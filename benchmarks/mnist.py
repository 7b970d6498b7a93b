"""A class-conditional U-Net of 5,000 MNIST digits, trained on a CPU in less than half an hour.

    python -m benchmarks.mnist                                     # train, draw, judge; goes on if stopped
    python -m benchmarks.mnist --steps 20 --count 50 --out /tmp/mnist --picture /tmp/mnist.png           # a look

4,000 digits to train on. Every 200 steps a checkpoint is kept; `log.jsonl` beside them has the loss and the seconds on
the clock since the last one. Digits are drawn for as many labels of each kind, with guidance and without, and judged by
a classifier that was trained apart: how often it sees the label asked for, and the Frechet distance of its features.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sdekit import DAMPED_ADAMS, Beta, Denoiser, Dequantization, Landed, sample
from sdekit.data import mnist
from sdekit.demo.pictures import picture
from sdekit.guidance import classifier_free
from sdekit.metrics import FrechetDistance, image_classifier, image_features
from sdekit.suites.trained import MNIST, STEPS, mnist_trainer
from sdekit.training import load
from sdekit.training.folder import Checkpoints

RESULTS = Path(__file__).parent / "results" / "mnist.md"
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "mnist.png"
LEVELS = Dequantization(256)
GRID = Landed(Beta(20))
SCALES = (1.0, 1.5, 2.5)
"""s in u + s (c - u), with c the model told the label and u not; 1 is c alone."""
SHOWN = 1.5  # in the picture


def train(folder: Path, steps: int, minutes: float) -> None:
    """Train to the end, or for so many minutes in all."""
    training, checkpoints, log = mnist_trainer(steps), Checkpoints(folder), folder / "log.jsonl"
    checkpoints.resume(training)
    spent = sum(row["seconds"] for row in read(log) if row["step"] <= training.step)
    losses: list[Tensor] = []
    start = time.monotonic()
    for progress in tqdm(training, total=steps, initial=training.step, desc="train", unit="step"):
        losses.append(progress.loss)
        late = spent + time.monotonic() - start > 60 * minutes
        if progress.step % 200 == 0 or progress.step == steps or late:
            checkpoints.save(training)
            seconds, start = time.monotonic() - start, time.monotonic()
            spent += seconds
            row = {"step": progress.step, "seconds": seconds, "loss": float(torch.stack(losses).mean())}
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            losses.clear()
        if late:
            break


def read(log: Path) -> list[dict[str, Any]]:
    """Return the rows of a log; of a step that was done twice the last one."""
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return list({row["step"]: row for row in map(json.loads, lines)}.values())


def draw(model: Denoiser, labels: Tensor, scale: float) -> Tensor:
    """Draw a digit for each label, rounded to the levels of the data."""
    told = model.given(label=labels)
    guided = told if scale == 1 else classifier_free(told, model, scale)
    return LEVELS.round(sample(guided, (len(labels), 1, 28, 28), DAMPED_ADAMS, GRID))


def judge(model: Denoiser, count: int) -> list[str]:
    """Return the rows of the table: what a classifier, trained on the same digits, says of `count` digits."""
    data = mnist()
    classifier, distance = image_classifier(data), FrechetDistance(image_features(data), data.train)
    labels = torch.arange(count) % data.classes

    def row(name: str, x: Tensor, asked: Tensor) -> str:
        agreed = float((classifier(x).argmax(1) == asked).double().mean())
        nearest = torch.cdist(x.flatten(1), data.train.flatten(1)).min(1).values.mean()
        return f"| {name} | {agreed:.1%} | {distance(x):.2f} | {float(nearest):.2f} |"

    rows = ["| | agreement | Frechet distance | to the nearest training digit |", "|---|---:|---:|---:|"]
    with torch.no_grad():
        for scale in tqdm(SCALES, desc="judge"):
            rows.append(row(f"s = {scale:g}", draw(model, labels, scale), labels))
        rows.append(row(f"{len(data.test)} test digits", data.test, data.test_labels))
    return rows


def report(folder: Path, model: Denoiser, count: int) -> str:
    """Return what was trained, for how long, and how it is judged."""
    log = read(folder / "log.jsonl")
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    minutes = sum(row["seconds"] for row in log) / 60
    return "\n".join(
        [
            f"U-Net of {parameters:.1f} million parameters on 4,000 MNIST digits, {log[-1]['step']:,} steps of 64 in "
            f"{minutes:.1f} minutes on {torch.get_num_threads()} threads of a CPU, last loss {log[-1]['loss']:.3f}.",
            f"{count:,} digits, as many of each kind, by `DAMPED_ADAMS` in 20 steps under `classifier_free` "
            "guidance of scale s.",
            "",
            *judge(model, count),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--minutes", type=float, default=30.0, help="the longest training, of all starts together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--count", type=int, default=1000, help="digits to judge")
    parser.add_argument("--out", type=Path, default=MNIST, help="the folder of the checkpoints")
    parser.add_argument("--table", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.out, options.steps, options.minutes)
    newest = Checkpoints(options.out).newest()
    assert newest is not None
    model = load(newest)
    with torch.no_grad():
        digits = draw(model, torch.arange(10).repeat_interleave(10), SHOWN)
    picture({f"guidance of scale {SHOWN:g}": digits}, options.picture)
    text = report(options.out, model, options.count)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    options.table.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
