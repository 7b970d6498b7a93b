"""Pictures of images in rows and columns."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor


def tile(images: Tensor, columns: int) -> Tensor:
    """Lay images (n, 1, h, w) out row by row, one pixel apart: shape (rows (h + 1) + 1, columns (w + 1) + 1)."""
    _, _, h, w = images.shape
    rows = -(-len(images) // columns)
    sheet = torch.full((rows * (h + 1) + 1, columns * (w + 1) + 1), float("nan"))
    for i, image in enumerate(images[:, 0]):
        top, left = i // columns * (h + 1) + 1, i % columns * (w + 1) + 1
        sheet[top : top + h, left : left + w] = image
    return sheet


def picture(panels: dict[str, Tensor], path: Path, columns: int = 10) -> None:
    """Draw batches of images side by side, each under its title, and write the PNG to `path`."""
    across = min(len(panels), 4)
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.1 * across, 3.35 * down), layout="constrained")
    for i, (title, images) in enumerate(panels.items()):
        axes = figure.add_subplot(down, across, i + 1)
        axes.imshow(tile(images.cpu(), columns), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
