"""A U-Net for images: DDPM's, told the time by adaptive group normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sdekit._value import Value
from sdekit.nets.attention import CrossAttention, SelfAttention
from sdekit.nets.embedding import Modulation, zeroed
from sdekit.nets.inputs import Inputs
from sdekit.nets.network import Json, Network, Told, valued
from sdekit.nets.patches import to_channels, to_pixels

__all__ = ["Stage", "UNet"]

_GROUPS = 8


@dataclass(frozen=True)
class Stage(Value):
    """What a U-Net does at one resolution.

    Args:
        width: number of channels, a multiple of 8.
        blocks: number of residual blocks on the way down; on the way up there is one more.
        attention: number of heads of the attention that follows every block, a divisor of `width`; 0 for none.
        dropout: probability with which a feature of a block is dropped in training.

    Raises:
        ValueError: a number is out of its range.
    """

    width: int = 64
    blocks: int = 1
    attention: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.width < 1 or self.width % _GROUPS:
            raise ValueError(f"The width must be a positive multiple of {_GROUPS}; got {self.width}. Take 32.")
        if self.blocks < 1:
            raise ValueError(f"A stage needs at least 1 block; got {self.blocks}.")
        if self.attention < 0 or (self.attention and self.width % self.attention):
            raise ValueError(
                f"The heads of attention must divide the width {self.width}, or be 0 for none; got {self.attention}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"Dropout must be a probability from 0 up to, but not, 1; got {self.dropout}.")


class UNet(Network):
    """A U-Net of residual blocks, with attention at its lowest resolution and wherever a stage asks for it.

    Stage i works at 1 / 2^i of the resolution. The state after every block and every change of resolution on the way
    down is joined to one block on the way up. Every block is told the time and the label; attention is to the pixels
    of the same resolution, then to the context.

    Args:
        channels: number of channels of an image.
        stages: what is done at each resolution, from the highest to the lowest.
        patch: size of the squares of pixels that are made channels before the first stage, and pixels after the last;
            height and width of an image must be multiples of patch * 2^(stages - 1).
        classes: number of classes, or None for a network without labels.
        heads: number of answers, side by side along the channels; 2 for a learned variance.
        inputs: how it is told the time, and the size of a context's tokens.

    Raises:
        ValueError: an argument is not positive.

    References:
        Ho, Jain and Abbeel (2020), arXiv:2006.11239, appendix B.
        For the modulation: Dhariwal and Nichol (2021), arXiv:2105.05233, section 3, eq. 3.
        For the attention to a context: Rombach et al. (2022), arXiv:2112.10752, section 3.3.

    >>> net = UNet(1, stages=(Stage(8), Stage(16, attention=2)), classes=10)
    >>> net(torch.zeros(2, 1, 8, 8), torch.tensor(0.5)).shape
    torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        stages: Sequence[Stage | Json] = (Stage(32), Stage(64)),
        patch: int = 1,
        classes: int | None = None,
        heads: int = 1,
        inputs: Inputs | Json = Inputs(),
    ) -> None:
        if channels < 1 or patch < 1 or not stages:
            raise ValueError(
                f"A U-Net needs at least 1 channel, 1 stage and patches of 1 pixel; got channels={channels}, "
                f"stages={stages} and patch={patch}."
            )
        levels = tuple(valued(Stage, stage) for stage in stages)
        width = levels[0].width
        super().__init__(classes, heads, inputs, 4 * width)
        self.channels, self.stages, self.patch = channels, levels, patch
        self.inward = nn.Conv2d(channels * patch**2, width, 3, padding=1)
        self.level = _Level(self.stages, 4 * width, self.inputs.context)
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.outward = zeroed(nn.Conv2d(width, heads * channels * patch**2, 3, padding=1))

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
            t: times of order one, 0-d or shape (B,), float32 or float64.
            label: integers 0 ... classes, shape (B,), where `classes` says "no label", as None does for all.
            context: tokens, shape (B, L, size), or (B, size) for one each; None for no context.
            mask: true where a token counts, shape (B, L); None if all do.

        Raises:
            ValueError: a shape does not fit or cannot be halved often enough; a label is out of range; the network
                takes no label or no context.
            TypeError: times, labels or a mask are of a wrong type.
        """
        step = self.patch * 2 ** (len(self.stages) - 1)
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"Images must have shape (B, {self.channels}, height, width); got {tuple(x.shape)}. Reshape."
            )
        if x.shape[2] % step or x.shape[3] % step:
            raise ValueError(
                f"Height and width must be multiples of {step} for patches of {self.patch} and {len(self.stages)} "
                f"stages; got {tuple(x.shape[2:])}. Pad the images, or take fewer stages."
            )
        told = self.told(len(x), t, label, context, mask)
        h = self.level(self.inward(to_channels(x, self.patch)), told)
        return to_pixels(self.outward(F.silu(self.norm(h))), self.patch)


class _Level(nn.Module):
    """One resolution, and inside it all the lower ones."""

    def __init__(self, stages: Sequence[Stage], embedding: int, context: int | None) -> None:
        super().__init__()
        stage, *lower = stages
        n = stage.width
        self.down = nn.ModuleList(_Cell(n, stage, embedding, context) for _ in range(stage.blocks))
        self.inside = _Half(n, lower, embedding, context) if lower else _Middle(stage, embedding, context)
        self.up = nn.ModuleList(_Cell(2 * n, stage, embedding, context) for _ in range(stage.blocks + 1))

    def forward(self, x: Tensor, told: Told) -> Tensor:
        states = [x]
        for cell in self.down:
            states.append(cell(states[-1], told))
        h: Tensor = self.inside(states[-1], told)
        for cell in self.up:
            h = cell(torch.cat([h, states.pop()], dim=1), told)
        return h


class _Half(nn.Module):
    """The levels below, at half the resolution."""

    def __init__(self, n: int, stages: Sequence[Stage], embedding: int, context: int | None) -> None:
        super().__init__()
        self.inward = nn.Conv2d(n, stages[0].width, 3, padding=1, stride=2)
        self.level = _Level(stages, embedding, context)
        self.outward = nn.Conv2d(stages[0].width, n, 3, padding=1)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        h = self.level(self.inward(x), told)
        y: Tensor = self.outward(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return y


class _Middle(nn.Module):
    """The bottom of the U: block, attention, block."""

    def __init__(self, stage: Stage, embedding: int, context: int | None) -> None:
        super().__init__()
        self.before = _Block(stage.width, stage, embedding)
        self.attention = _Attention(stage.width, max(stage.attention, 1), context)
        self.after = _Block(stage.width, stage, embedding)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        y: Tensor = self.after(self.attention(self.before(x, told), told), told)
        return y


class _Cell(nn.Module):
    """A block and, if the stage asks for it, attention."""

    def __init__(self, n: int, stage: Stage, embedding: int, context: int | None) -> None:
        super().__init__()
        self.block = _Block(n, stage, embedding)
        self.attention = _Attention(stage.width, stage.attention, context) if stage.attention else None

    def forward(self, x: Tensor, told: Told) -> Tensor:
        y: Tensor = self.block(x, told)
        return y if self.attention is None else self.attention(y, told)


class _Block(nn.Module):
    """S x + B drop(silu(modulate(norm(A silu(norm(x))), c))) with 3x3 convolutions A and B, at first S x alone."""

    def __init__(self, n: int, stage: Stage, embedding: int) -> None:
        super().__init__()
        m = stage.width
        self.norm_a = nn.GroupNorm(_GROUPS, n)
        self.a = nn.Conv2d(n, m, 3, padding=1)
        self.norm_b = nn.GroupNorm(_GROUPS, m, affine=False)  # the modulation is its affine map
        self.modulation = Modulation(embedding, m)
        self.dropout = nn.Dropout(stage.dropout) if stage.dropout else nn.Identity()
        self.b = zeroed(nn.Conv2d(m, m, 3, padding=1))
        self.skip = nn.Identity() if n == m else nn.Conv2d(n, m, 1)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        h = self.a(F.silu(self.norm_a(x)))
        h = self.b(self.dropout(F.silu(self.modulation(self.norm_b(h), told.c))))
        y: Tensor = self.skip(x) + h
        return y


class _Attention(nn.Module):
    """x + attend(norm(x)), over the pixels, and then x + attend(norm(x), context), at first x alone."""

    def __init__(self, n: int, heads: int, context: int | None) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, n)
        self.own = SelfAttention(n, heads)
        self.cross = None if context is None else CrossAttention(n, context, heads)

    def forward(self, x: Tensor, told: Told) -> Tensor:
        h = self.own(self.norm(x).flatten(2).transpose(1, 2))
        x = x + h.transpose(1, 2).reshape(x.shape)
        if self.cross is not None:
            h = self.cross(self.norm(x).flatten(2).transpose(1, 2), told.tokens)
            x = x + h.transpose(1, 2).reshape(x.shape)
        return x
