"""Train and sample alone, or as one rank of several under torchrun, and store what came out.

python tests/scripts/ranks.py FOLDER PIECES
ACCELERATE_USE_CPU=1 torchrun --standalone --nproc_per_node=2 tests/scripts/ranks.py FOLDER PIECES
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn

from sdekit import VP, Denoiser, Eps, sample
from sdekit.methods import DDPM
from sdekit.sample import share
from sdekit.training import Objective, Recipe, Trainer
from sdekit.training.checkpoint import read
from sdekit.training.devices import Accelerated, Devices, OneDevice, Sharded
from sdekit.training.folder import Checkpoints
from sdekit.training.second_moment import LossSecondMoment

STEPS = 4


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, int] = {}
        self.block = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16))
        self.outward = nn.Linear(16, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.outward(torch.tanh(self.block(torch.cat([x, t[:, None]], 1))))
        return y


def trainer(devices: Devices, steps: int = STEPS) -> Trainer:
    torch.manual_seed(0)
    model = Denoiser(Net().double(), VP(), predicts=Eps())
    data = torch.randn(50, 2, dtype=torch.float64)
    recipe = Recipe(steps, batch=15, lr=1e-2, clip=1.0, ema=0.9)  # a batch that two ranks cannot share evenly
    return Trainer(model, data, recipe, Objective(times=LossSecondMoment(bins=4, history=1)), devices=devices)


def trained(devices: Devices, folder: Path) -> dict[str, Tensor]:
    """Return the first gradient, the losses, and the weights, of a training that is stored and resumed on the way."""
    one = trainer(devices)
    losses = [one.advance().loss]
    found = {f"gradient {name}": p.grad for name, p in one.trained.items()}
    losses.append(one.advance().loss)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(one)
    two = trainer(devices)
    checkpoints.resume(two)
    losses += [progress.loss for progress in two]
    checkpoints.save(two)
    _, sections = read(checkpoints.newest() or "")
    stored = {f"{section} {name}": t for section, named in sections.items() for name, t in named.items()}
    drawn = sample(two.average, (8, 2), seed=3)
    return {**found, **stored, "losses": torch.stack(losses), "drawn": drawn}


def shared(model: nn.Module, rank: int, ranks: int) -> Tensor:
    """Return the set of 22 samples, of which every rank draws some."""
    parts = [sample(model, (len(rows), 2), DDPM, first=rows.start) for rows in share(22, 4, rank, ranks)]
    own: list[Tensor] = [torch.cat(parts)]
    if ranks > 1:
        gathered: list[list[Tensor]] = [[] for _ in range(ranks)]
        dist.all_gather_object(gathered, own)
        own = [x for part in gathered for x in part]
    return torch.cat(own)


def main() -> None:
    torch.set_num_threads(1)
    folder, pieces = Path(sys.argv[1]), int(sys.argv[2])
    devices = Accelerated(Accelerator(gradient_accumulation_steps=pieces))
    found = trained(devices, folder / "ddp")
    found["set"] = shared(trainer(OneDevice()).model, devices.rank, devices.ranks)
    if devices.ranks > 1:
        sharded = trained(Sharded(pieces, kinds=(nn.Sequential,)), folder / "fsdp")
        found |= {f"fsdp {name}": t.full_tensor() if hasattr(t, "full_tensor") else t for name, t in sharded.items()}
    if devices.rank == 0:
        save_file({name: t.detach().contiguous().clone() for name, t in found.items()}, folder / "found.safetensors")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
