"""Train while being killed at random moments, and say whether the weights are those of a training left in peace.

    python tests/scripts/killed.py FOLDER KILLS

Every attempt is a process of its own, which goes on from the newest checkpoint.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sdekit import VP, Denoiser, Eps
from sdekit.training import Objective, Recipe, Trainer
from sdekit.training.checkpoint import read
from sdekit.training.folder import Checkpoints
from sdekit.training.second_moment import LossSecondMoment

STEPS, EVERY = 100, 5


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 16)
        self.inward, self.dropout, self.outward = nn.Linear(3, 16), nn.Dropout(0.3), nn.Linear(16, 2)

    def forward(self, x, t, label):
        return self.outward(self.dropout(torch.tanh(self.inward(torch.cat([x, t[:, None]], 1)) + self.label(label))))


def training(kind: str) -> Trainer:
    torch.manual_seed(0)
    model = Denoiser(Net(), VP(), predicts=Eps())
    data = torch.randn(50, 2), torch.arange(50) % 4
    batches = data if kind == "tensors" else DataLoader(TensorDataset(*data), batch_size=16, shuffle=True)
    torch.seed()  # an attempt must not owe what it does to the global generator's state
    recipe = Recipe(STEPS, batch=16, lr=1e-2, warmup=20, final=0.1, clip=1.0, ema=0.99)
    return Trainer(model, batches, recipe, Objective(times=LossSecondMoment(bins=8, history=3)))


def attempt(kind: str, folder: Path) -> None:
    """Train to the end, storing on the way."""
    trainer, checkpoints = training(kind), Checkpoints(folder, keep=2)
    checkpoints.resume(trainer)
    for progress in trainer:
        if progress.step % EVERY == 0:
            checkpoints.save(trainer)


def killed(kind: str, folder: Path, kills: int, took: float) -> int:
    """Attempt the training again and again, killing all but the last attempt; return how many kills came in time.

    In peace it takes so many seconds.
    """
    chance, struck = random.Random(0), 0
    for k in range(kills + 1):
        child = os.fork()
        if child == 0:
            attempt(kind, folder)
            os._exit(0)
        if k < kills:
            time.sleep(chance.uniform(0.02, 0.4) * took)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert k < kills or status == 0, "the last attempt failed"
        struck += os.WIFSIGNALED(status)
    return struck


def main() -> None:
    torch.set_num_threads(1)
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    for kind in ("tensors", "loader"):
        attempt(kind, folder / f"{kind} in peace")
        start = time.monotonic()
        attempt(kind, folder / f"{kind} in peace, now that all is loaded")
        struck = killed(kind, folder / kind, kills, time.monotonic() - start)
        newest = [Checkpoints(folder / name).newest() for name in (f"{kind} in peace", kind)]
        assert all(path is not None and path.name == f"step-{STEPS:09d}.safetensors" for path in newest), newest
        (config, peace), (other, war) = (read(path) for path in newest if path is not None)
        assert config == other
        for section, named in peace.items():
            for name, tensor in named.items():
                assert torch.equal(tensor, war[section][name]), (section, name)
        left = sorted(path.name for path in (folder / kind).iterdir())
        assert len(left) == 4, left  # two checkpoints, each with its configuration for people
        print(struck)


if __name__ == "__main__":
    main()
