"""The diffusion transformer: an image as patches that attend to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit._value import Value
from sdekit.nets.attention import CrossAttention, SelfAttention
from sdekit.nets.embedding import modulate, zeroed
from sdekit.nets.inputs import Inputs
from sdekit.nets.network import Json, Network, Told, valued
from sdekit.nets.patches import patches, to_image

__all__ = ["DiT", "Transformer"]


@dataclass(frozen=True)
class Transformer(Value):
    """The size of a transformer; by default that of DiT-S.

    Args:
        width: number of features of a token, a multiple of 4.
        depth: number of blocks.
        attention: number of heads of attention, a divisor of `width`.
        ratio: width of the hidden layer of a block, over `width`.

    Raises:
        ValueError: a number is out of its range.
    """

    width: int = 384
    depth: int = 12
    attention: int = 6
    ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % 4:
            raise ValueError(
                f"The width must be a positive multiple of 4, for sines and cosines of row and column; "
                f"got {self.width}. Take 384."
            )
        if self.depth < 1 or not self.ratio * self.width >= 1:
            raise ValueError(f"A transformer needs a block with a feature; got {self.depth} and ratio={self.ratio}.")
        if self.attention < 1 or self.width % self.attention:
            raise ValueError(f"The heads of attention must divide the width {self.width}; got {self.attention}.")


class DiT(Network):
    """A transformer on the patches of an image, told time and label by adaptive layer norm that starts as nothing.

        h = A patches(x) + position
        h <- h + gate_1 attend(modulate_1(norm(h), c))
        h <- h + attend(norm(h), context)                       only with a context
        h <- h + gate_2 D gelu(C modulate_2(norm(h), c))        `depth` times all three, gates 0 at first
        net(x, t) = image(B modulate(norm(h), c))               B = 0 at first

    Args:
        shape: channels, height and width of an image.
        blocks: the transformer's size.
        patch: height and width of a patch, which must divide those of the image.
        classes: number of classes, or None for a network without labels.
        heads: number of answers, side by side along the channels; 2 for a learned variance.
        inputs: how it is told the time, and the size of a context's tokens.

    Raises:
        ValueError: `shape` is not that of an image, or `patch` does not divide it.

    References:
        Peebles and Xie (2023), arXiv 2212.09748, section 3.2. Its DiT-S/2 is
        DiT((4, 32, 32), Transformer(384, 12, 6), patch=2, classes=1000, heads=2, inputs=Inputs(Sinusoidal(1e-4, 1.0)))
        with times counted in steps.
        The place of the attention to a context: Chen et al. (2023), PixArt-alpha (arXiv 2310.00426), section 2.3.

    >>> net = DiT((1, 8, 4), Transformer(width=16, depth=1, attention=2), patch=4)
    >>> net(torch.zeros(2, 1, 8, 4), torch.tensor(0.5)).shape
    torch.Size([2, 1, 8, 4])
    """

    position: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        blocks: Transformer | Json = Transformer(),
        patch: int = 2,
        classes: int | None = None,
        heads: int = 1,
        inputs: Inputs | Json = Inputs(),
    ) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"An image has channels, height and width, all positive; got {tuple(shape)}.")
        channels, height, width = shape
        if patch < 1 or height % patch or width % patch:
            raise ValueError(f"The patch must divide height and width, {height} and {width}; got {patch}.")
        size = valued(Transformer, blocks)
        super().__init__(classes, heads, inputs, size.width, features=256)
        self.shape, self.blocks, self.patch = (channels, height, width), size, patch
        self.register_buffer("position", positions(height // patch, width // patch, size.width))
        self.inward = nn.Linear(channels * patch**2, size.width)
        self.layers = nn.ModuleList(_Block(size, self.inputs.context) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=1e-6, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(size.width, 2 * size.width))
        self.outward = zeroed(nn.Linear(size.width, heads * channels * patch**2))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the network's answer, shape (B, heads * channels, height, width).

        Args:
            x: images, shape (B, channels, height, width).
            t: times, 0-d or shape (B,), float32 or float64.
            label: integers 0 ... classes, shape (B,), where `classes` says "no label", as None does for all.
            context: tokens, shape (B, L, size), or (B, size) for one each; None for no context.
            mask: true where a token counts, shape (B, L); None if all do.

        Raises:
            ValueError: a shape does not fit; a label is out of range; the network takes no label or no context.
            TypeError: times, labels or a mask are of a wrong type.
        """
        if x.ndim != 4 or x.shape[1:] != self.shape:
            expected = ", ".join(["B", *map(str, self.shape)])
            raise ValueError(f"Images must have shape ({expected}); got {tuple(x.shape)}. Reshape x.")
        told = self.told(len(x), t, label, context, mask)
        h = self.inward(patches(x, self.patch)) + self.position
        for layer in self.layers:
            h = layer(h, told)
        scale, shift = self.modulation(F.silu(told.c))[:, None].chunk(2, dim=-1)
        y = self.outward(modulate(self.norm(h), scale, shift))
        return to_image(y, self.patch, self.shape[1] // self.patch)


class _Block(nn.Module):
    """h + gate attend(modulate(norm(h), c)), then h + gate D gelu(C modulate(norm(h), c)), at first h alone."""

    def __init__(self, size: Transformer, context: int | None) -> None:
        super().__init__()
        n, hidden = size.width, int(size.ratio * size.width)
        self.norm = nn.LayerNorm(n, eps=1e-6, elementwise_affine=False)
        self.modulation = zeroed(nn.Linear(n, 6 * n))
        # The gates begin at zero: if what they close did as well, neither would learn.
        self.own = SelfAttention(n, size.attention)
        self.own.outward.reset_parameters()
        self.cross = None if context is None else CrossAttention(n, context, size.attention)
        self.c = nn.Linear(n, hidden)
        self.d = nn.Linear(hidden, n)

    def forward(self, h: Tensor, told: Told) -> Tensor:
        y: Tensor = self.modulation(F.silu(told.c))[:, None]
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = y.chunk(6, dim=-1)
        h = h + gate_1 * self.own(modulate(self.norm(h), scale_1, shift_1))
        if self.cross is not None:
            h = h + self.cross(self.norm(h), told.tokens)
        hidden = F.gelu(self.c(modulate(self.norm(h), scale_2, shift_2)), approximate="tanh")
        h = h + gate_2 * self.d(hidden)
        return h


def positions(rows: int, columns: int, width: int) -> Tensor:
    """Return where each place of a grid is, shape (rows * columns, width), width a multiple of 4.

        y = (sin w i, cos w i, sin w j, cos w j) in row i and column j,    w = 1 ... 10000^-(1 - 1/k),  k = width / 4

    Reference:
        Vaswani et al. 2017 (arXiv 1706.03762), section 3.5, for each axis by itself.
    """
    w = 10_000.0 ** (-torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    i, j = (torch.arange(n, dtype=torch.float64, device="cpu")[:, None] * w for n in (rows, columns))
    i, j = (torch.cat([phase.sin(), phase.cos()], dim=-1) for phase in (i, j))
    grid = torch.cat([i[:, None].expand(rows, columns, -1), j[None].expand(rows, columns, -1)], dim=-1)
    return grid.reshape(rows * columns, width).float()
