"""What a training step costs beyond the network: sdekit's trainer beside a loop written by hand, in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.training_overhead

All train the same network on the same data by Karras' loss with fused AdamW. The loop by hand has the arithmetic and
nothing else: random rows, sigma = exp(1.2 z - 1.2), noise, the preconditioned loss, backward, step. Its average is
torch's own, `swa_utils.get_ema_multi_avg_fn`, called on the lists of weights; torch's `AveragedModel` around the same
function is measured too. CPU time, one thread; the kinds take turns block by block, and a ratio is the median over
rounds with the middle half of them as its spread. Rows go to benchmarks/results/training_overhead.jsonl, the table to
training_overhead.md beside it and to stdout.
"""

from __future__ import annotations

import copy
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sdekit import EDM, Denoiser, Preconditioned
from sdekit.nets import UNet
from sdekit.nets.unet import Stage
from sdekit.training import Recipe, Trainer

RESULTS = Path(__file__).parent / "results"
SIGMA_DATA = 0.5
PAIRS = {  # what is compared with what
    "sdekit": "by hand",
    "by hand, EMA": "by hand",
    "sdekit, EMA": "by hand, EMA",
    "by hand, AveragedModel": "by hand, EMA",
}
ALLOWED = {"MLP": 1.1, "U-Net": 1.03}
Step = Callable[[], object]


class MLP(nn.Module):
    """33,794 parameters for points in the plane."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()),
            nn.Linear(128, 2),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        y: Tensor = self.layers(torch.cat([x, t[:, None]], 1))
        return y


def by_hand(net: nn.Module, data: Tensor, batch: int, average: Callable[[], object]) -> Step:
    """A training step with nothing in it that could be left out."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(0)
    ones = (-1,) + (1,) * (data.ndim - 1)

    def step() -> None:
        x0 = data[torch.randint(len(data), (batch,), generator=generator)]
        z = torch.randn(batch, generator=generator)
        sigma = (1.2 * z - 1.2).exp().view(ones)
        x = x0 + sigma * torch.randn(x0.shape, generator=generator)
        total = sigma**2 + SIGMA_DATA**2
        target = (x0 - SIGMA_DATA**2 / total * x) * total.sqrt() / (sigma * SIGMA_DATA)
        loss = nn.functional.mse_loss(net(x * total.rsqrt(), sigma.flatten().log() / 4), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average()

    return step


def kinds(net: nn.Module, data: Tensor, batch: int) -> dict[str, Step]:
    """Every kind of loop, on a copy of the network each."""
    weights = get_ema_multi_avg_fn(0.999)
    plain, averaged, wrapped = (copy.deepcopy(net) for _ in range(3))
    mean = [p.detach().clone() for p in averaged.parameters()]
    current = [p.detach() for p in averaged.parameters()]
    whole = AveragedModel(wrapped, multi_avg_fn=weights)

    def ours(ema: float) -> Step:
        model = Denoiser(copy.deepcopy(net), EDM(), predicts=Preconditioned(SIGMA_DATA))
        return Trainer(model, data, Recipe(10**9, batch=batch, ema=ema)).advance

    return {
        "by hand": by_hand(plain, data, batch, lambda: None),
        "sdekit": ours(0.0),
        "by hand, EMA": by_hand(averaged, data, batch, lambda: weights(mean, current, 1)),
        "sdekit, EMA": ours(0.999),
        "by hand, AveragedModel": by_hand(wrapped, data, batch, lambda: whole.update_parameters(wrapped)),
    }


def seconds(step: Step, count: int) -> float:
    start = time.process_time()
    for _ in range(count):
        step()
    return (time.process_time() - start) / count


def measure(name: str, loops: dict[str, Step], count: int, rounds: int) -> list[dict[str, Any]]:
    for step in loops.values():
        seconds(step, count)
    times = [{kind: seconds(step, count) for kind, step in loops.items()} for _ in range(rounds)]
    rows = []
    for kind in loops:
        other = PAIRS.get(kind, kind)
        ratios = sorted(t[kind] / t[other] for t in times)
        rows.append(
            {
                "network": name,
                "loop": kind,
                "ms": round(1e3 * statistics.median(t[kind] for t in times), 3),
                "beside": other,
                "ratio": round(statistics.median(ratios), 4),
                "spread": [round(ratios[rounds // 4], 4), round(ratios[-1 - rounds // 4], 4)],
                "rounds": rounds,
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| network | loop | ms a step | beside | ratio (middle half) |", "|" + "---|" * 5]
    for row in rows:
        ratio = f"{row['ratio']:.3f} ({row['spread'][0]:.3f}-{row['spread'][1]:.3f})" if row["loop"] in PAIRS else "1"
        lines.append(f"| {row['network']} | {row['loop']} | {row['ms']:.2f} | {row['beside']} | {ratio} |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    points = torch.randn(10_000, 2) * SIGMA_DATA
    images = torch.randn(1400, 1, 8, 8) * SIGMA_DATA
    unet = UNet(1, (Stage(48), Stage(96)))
    print(
        f"{sum(p.numel() for p in MLP().parameters()):,} and {sum(p.numel() for p in unet.parameters()):,} parameters"
    )
    rows = measure("MLP", kinds(MLP(), points, 512), count=100, rounds=41)
    rows += measure("U-Net", kinds(unet, images, 128), count=2, rounds=15)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "training_overhead.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (RESULTS / "training_overhead.md").write_text(table(rows) + "\n", encoding="utf-8")
    print(table(rows))
    sys.exit(any(row["ratio"] > ALLOWED[row["network"]] for row in rows if row["loop"].startswith("sdekit")))


if __name__ == "__main__":
    main()
