"""A residual multilayer perceptron, for points and for images small enough to be points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from sdekit.nets.embedding import Embedding, Modulation, zeroed

__all__ = ["MLP"]

_WIDTH = 128  # of the embedding: how finely times are told apart must not depend on the size of the network


class MLP(nn.Module):
    """A residual network of fully connected blocks, each told the time and the label.

        h = A x
        h <- h + C silu(B modulate(norm(h), c))        `depth` times
        net(x, t) = D modulate(norm(h), c)             D = 0 at first

    Args:
        shape: shape of one sample, such as (2,) or (1, 8, 8).
        hidden: number of features of h.
        depth: number of blocks.
        classes: number of classes, or None for a network without labels.

    Raises:
        ValueError: an argument is not positive.

    References:
        The blocks: He et al. (2016), "Identity mappings in deep residual networks" (arXiv 1603.05027), eq. 5.
        The modulation: Peebles and Xie (2023), "DiT" (arXiv 2212.09748), section 3.2.

    >>> MLP((2,), hidden=64).config
    {'shape': [2], 'hidden': 64, 'depth': 4, 'classes': None}
    """

    def __init__(
        self,
        shape: Sequence[int],
        hidden: int = 256,
        depth: int = 4,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        if any(n < 1 for n in shape):
            raise ValueError(f"The sizes of a sample must be positive; got {tuple(shape)}. Omit the batch.")
        if hidden < 1 or depth < 1:
            raise ValueError(f"An MLP needs at least 1 feature and 1 block; got {hidden} and {depth}.")
        self.shape, self.hidden, self.depth, self.classes = tuple(shape), hidden, depth, classes
        self.embedding = Embedding(_WIDTH, classes)
        self.inward = nn.Linear(math.prod(shape), hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = Modulation(_WIDTH, hidden)
        self.outward = zeroed(nn.Linear(hidden, math.prod(shape)))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this architecture, as JSON types."""
        names = ("hidden", "depth", "classes")
        return {"shape": list(self.shape), **{name: getattr(self, name) for name in names}}

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Return the network's answer, of the shape of x.

        Args:
            x: samples, shape (B, *shape).
            t: times of order one, 0-d or shape (B,), float32 or float64.
            label: integers 0 ... classes, shape (B,), where `classes` says "no label", as None does for all.

        Raises:
            ValueError: a shape does not fit; a label is out of range, or given to a network without labels.
            TypeError: times or labels are of a wrong type.
        """
        if x.ndim == 0 or x.shape[1:] != self.shape:
            expected = ", ".join(["B", *map(str, self.shape)])
            raise ValueError(f"Samples must have shape ({expected}); got {tuple(x.shape)}. Reshape x.")
        c = self.embedding(t, label, len(x))
        h = self.inward(x.reshape(len(x), math.prod(self.shape)))
        for block in self.blocks:
            h = block(h, c)
        y: Tensor = self.outward(self.modulation(self.norm(h), c))
        return y.reshape(x.shape)


class _Block(nn.Module):
    """h + C silu(B modulate(norm(h), c)), at first h alone."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = Modulation(_WIDTH, hidden)
        self.b = nn.Linear(hidden, hidden)
        self.c = zeroed(nn.Linear(hidden, hidden))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        y: Tensor = self.c(F.silu(self.b(self.modulation(self.norm(h), c))))
        return h + y
