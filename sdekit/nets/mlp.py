"""A residual multilayer perceptron, for points and for images small enough to be points."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.nets.attention import CrossAttention
from sdekit.nets.embedding import Modulation, zeroed
from sdekit.nets.inputs import Inputs
from sdekit.nets.network import Json, Network, Told

__all__ = ["MLP"]

_WIDTH = 128  # of the embedding: how finely times are told apart must not depend on the size of the network


class MLP(Network):
    """A residual network of fully connected blocks, each told the time, the label and the context.

        h = A x
        h <- h + attend(norm(h), context)              only with a context, which h attends to as one place
        h <- h + C silu(B modulate(norm(h), c))        `depth` times both
        net(x, t) = D modulate(norm(h), c)             D = 0 at first

    Args:
        shape: shape of one sample, such as (2,) or (1, 8, 8).
        hidden: number of features of h.
        depth: number of blocks.
        classes: number of classes, or None for a network without labels.
        heads: number of answers, side by side along axis 1; 2 for a learned variance.
        inputs: how it is told the time, and the size of a context's tokens.

    Raises:
        ValueError: an argument is not positive, or a scalar sample shall have several answers.

    References:
        The blocks: He et al. (2016), "Identity mappings in deep residual networks" (arXiv 1603.05027), eq. 5.
        The modulation: Peebles and Xie (2023), "DiT" (arXiv 2212.09748), section 3.2.

    >>> import torch
    >>> net = MLP((2,), hidden=64, heads=2)
    >>> net(torch.zeros(5, 2), torch.tensor(0.5)).shape
    torch.Size([5, 4])
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int = 256,
        depth: int = 4,
        classes: int | None = None,
        heads: int = 1,
        inputs: Inputs | Json = Inputs(),
    ) -> None:
        if any(n < 1 for n in shape):
            raise ValueError(f"The sizes of a sample must be positive; got {tuple(shape)}. Omit the batch.")
        if hidden < 1 or depth < 1:
            raise ValueError(f"An MLP needs at least 1 feature and 1 block; got {hidden} and {depth}.")
        if heads > 1 and not shape:
            raise ValueError(f"The {heads} answers stand side by side along axis 1, which a scalar lacks. Take (1,).")
        super().__init__(classes, heads, inputs, _WIDTH)
        self.shape, self.hidden, self.depth = tuple(shape), hidden, depth
        self.inward = nn.Linear(math.prod(shape), hidden)
        self.blocks = nn.ModuleList(_Block(hidden, self.inputs.context) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = Modulation(_WIDTH, hidden)
        self.outward = zeroed(nn.Linear(hidden, heads * math.prod(shape)))

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor | None = None,
        context: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return the network's answer, shape (B, heads * shape[0], ...).

        Args:
            x: samples, shape (B, *shape).
            t: times of order one, 0-d or shape (B,), float32 or float64.
            label: integers 0 ... classes, shape (B,), where `classes` says "no label", as None does for all.
            context: tokens, shape (B, L, size), or (B, size) for one each; None for no context.
            mask: true where a token counts, shape (B, L); None if all do.

        Raises:
            ValueError: a shape does not fit; a label is out of range; the network takes no label or no context.
            TypeError: times, labels or a mask are of a wrong type.
        """
        if x.ndim == 0 or x.shape[1:] != self.shape:
            expected = ", ".join(["B", *map(str, self.shape)])
            raise ValueError(f"Samples must have shape ({expected}); got {tuple(x.shape)}. Reshape x.")
        told = self.told(len(x), t, label, context, mask)
        h = self.inward(x.reshape(len(x), math.prod(self.shape)))
        for block in self.blocks:
            h = block(h, told)
        y: Tensor = self.outward(self.modulation(self.norm(h), told.c))
        return y.reshape(len(x), *(self.heads * n if i == 0 else n for i, n in enumerate(self.shape)))


class _Block(nn.Module):
    """h + C silu(B modulate(norm(h), c)) after h + attend(norm(h), context), at first h alone."""

    def __init__(self, hidden: int, context: int | None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.cross = None if context is None else CrossAttention(hidden, context, heads=1)
        self.modulation = Modulation(_WIDTH, hidden)
        self.b = nn.Linear(hidden, hidden)
        self.c = zeroed(nn.Linear(hidden, hidden))

    def forward(self, h: Tensor, told: Told) -> Tensor:
        if self.cross is not None:
            h = h + self.cross(self.norm(h)[:, None], told.tokens)[:, 0]
        y: Tensor = self.c(F.silu(self.b(self.modulation(self.norm(h), told.c))))
        return h + y
