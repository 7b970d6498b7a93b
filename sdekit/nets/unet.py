"""A small U-Net for images: DDPM's, told the time by adaptive group normalisation."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.nets.embedding import Embedding, Modulation, zeroed

__all__ = ["UNet"]

_GROUPS = 8


class UNet(nn.Module):
    """A U-Net of residual blocks, with self-attention at its lowest resolution.

    Level i works at 1 / 2^i of the resolution, with 2^i `width` channels. On the way down it has one block,
    on the way up two, joined by the states after and before it. Every block is told the time and the label.

    Args:
        channels: number of channels of an image.
        width: number of channels at full resolution, a multiple of 8.
        levels: number of resolutions; height and width of an image must be multiples of 2^(levels - 1).
        classes: number of classes, or None for a network without labels.

    Raises:
        ValueError: an argument is not positive, or `width` is not a multiple of 8.

    References:
        Ho, Jain and Abbeel (2020), arXiv:2006.11239, appendix B.
        For the modulation: Dhariwal and Nichol (2021), arXiv:2105.05233, section 3, eq. 3.

    >>> UNet(channels=1, width=8)(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(self, channels: int, width: int = 32, levels: int = 2, classes: int | None = None) -> None:
        super().__init__()
        if channels < 1 or levels < 1:
            raise ValueError(f"A U-Net needs at least 1 channel and 1 level; got {channels} and {levels}.")
        if width < 1 or width % _GROUPS:
            raise ValueError(f"The width must be a positive multiple of {_GROUPS}; got {width}. Take 32.")
        self.channels, self.width, self.levels, self.classes = channels, width, levels, classes
        self.embedding = Embedding(4 * width, classes)
        self.inward = nn.Conv2d(channels, width, 3, padding=1)
        self.level = _Level(width, levels, 4 * width)
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.outward = zeroed(nn.Conv2d(width, channels, 3, padding=1))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this architecture, as JSON types."""
        return {name: getattr(self, name) for name in ("channels", "width", "levels", "classes")}

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the network's answer, of the shape of x.

        Args:
            x: images, shape (B, channels, height, width).
            t: times of order one, 0-d or shape (B,), float32 or float64.
            label: integers 0 ... classes, shape (B,), where `classes` says "no label", as None does for all.

        Raises:
            ValueError: a shape does not fit or cannot be halved often enough; a label is out of range, or
                given to a network without labels.
            TypeError: times or labels are of a wrong type.
        """
        step = 2 ** (self.levels - 1)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"Images must have shape (B, {self.channels}, height, width); got {tuple(x.shape)}. Reshape."
            )
        if x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"Height and width must be multiples of {step} for {self.levels} levels; "
                f"got {tuple(x.shape[2:])}. Pad the images, or take fewer levels."
            )
        c = self.embedding(t, label, len(x))
        h = self.level(self.inward(x), c)
        y: Tensor = self.outward(F.silu(self.norm(h)))
        return y


class _Level(nn.Module):
    """One resolution, and inside it all the lower ones."""

    def __init__(self, n: int, levels: int, embedding: int) -> None:
        super().__init__()
        self.down = _Block(n, n, embedding)
        self.inside = _Half(n, levels - 1, embedding) if levels > 1 else _Middle(n, embedding)
        self.up = nn.ModuleList(_Block(2 * n, n, embedding) for _ in range(2))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y: Tensor = self.down(x, c)
        h: Tensor = self.inside(y, c)
        for block, skip in zip(self.up, (y, x), strict=True):
            h = block(torch.cat([h, skip], dim=1), c)
        return h


class _Half(nn.Module):
    """The levels below, at half the resolution and with twice the channels."""

    def __init__(self, n: int, levels: int, embedding: int) -> None:
        super().__init__()
        self.inward = nn.Conv2d(n, 2 * n, 3, padding=1, stride=2)
        self.level = _Level(2 * n, levels, embedding)
        self.outward = nn.Conv2d(2 * n, n, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.level(self.inward(x), c)
        y: Tensor = self.outward(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return y


class _Middle(nn.Module):
    """The bottom of the U: block, self-attention, block."""

    def __init__(self, n: int, embedding: int) -> None:
        super().__init__()
        self.before = _Block(n, n, embedding)
        self.attention = _Attention(n)
        self.after = _Block(n, n, embedding)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        y: Tensor = self.after(self.attention(self.before(x, c)), c)
        return y


class _Block(nn.Module):
    """S x + B silu(modulate(norm(A silu(norm(x))), c)) with 3x3 convolutions A and B, at first S x alone."""

    def __init__(self, n: int, m: int, embedding: int) -> None:
        super().__init__()
        self.norm_a = nn.GroupNorm(_GROUPS, n)
        self.a = nn.Conv2d(n, m, 3, padding=1)
        self.norm_b = nn.GroupNorm(_GROUPS, m, affine=False)  # the modulation is its affine map
        self.modulation = Modulation(embedding, m)
        self.b = zeroed(nn.Conv2d(m, m, 3, padding=1))
        self.skip = nn.Identity() if n == m else nn.Conv2d(n, m, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.a(F.silu(self.norm_a(x)))
        h = self.b(F.silu(self.modulation(self.norm_b(h), c)))
        y: Tensor = self.skip(x) + h
        return y


class _Attention(nn.Module):
    """x + W softmax(q k^T / sqrt(n)) v over the pixels, with q, k, v linear in norm(x); at first x alone."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, n)
        self.qkv = nn.Linear(n, 3 * n)
        self.outward = zeroed(nn.Linear(n, n))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).chunk(3, dim=-1)
        # Written out, because fused attention has no forward-mode derivative, which exact likelihoods take.
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
        y: Tensor = self.outward(weights @ v)
        return x + y.transpose(1, 2).reshape(x.shape)
