"""Attention: of the places of a sample to each other, and to the tokens of a context."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdekit.nets.embedding import zeroed

__all__ = ["Context", "CrossAttention", "SelfAttention", "Tokens", "attend"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v, for every head by itself, with d = n / heads.

    Written out, because fused attention has no forward-mode derivative, which exact likelihoods take.

    Args:
        q: queries, shape (B, N, n).
        k: keys, shape (B, M, n), or (1, M, n) for all samples.
        v: values, of the shape of `k`.
        heads: number of heads, a divisor of n.
        mask: true where a key counts, shape (B, M) with at least one key a sample; None if all do.

    Reference:
        Vaswani et al. 2017 (arXiv 1706.03762), eq. 1.
    """
    q, k, v = (y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    y: Tensor = scores.softmax(dim=-1) @ v
    return y.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """W attend(q, k, v) with q, k and v linear in h, at first zero.

    Args:
        n: number of features.
        heads: number of heads, a divisor of `n`.

    Raises:
        ValueError: `heads` does not divide `n`.
    """

    def __init__(self, n: int, heads: int) -> None:
        super().__init__()
        self.heads = _divisor(heads, n)
        self.qkv = nn.Linear(n, 3 * n)
        self.outward = zeroed(nn.Linear(n, n))

    def forward(self, h: Tensor) -> Tensor:
        """Return what the places of h, shape (B, N, n), learn from each other."""
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        y: Tensor = self.outward(attend(q, k, v, self.heads))
        return y


class Tokens(NamedTuple):
    """A context as networks attend to it: a token that says nothing, then those given.

    Args:
        value: shape (B, 1 + L, size), or (1, 1, size) where no sample has a context.
        mask: true where a token counts, shape (B, 1 + L); None if all do.
    """

    value: Tensor
    mask: Tensor | None


class Context(nn.Module):
    """A context made ready: a learned token, which says nothing, stands before all others.

    So a sample without a context, or with all its tokens masked, still has one token to attend to.

    Args:
        size: size of a token.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1, 1, size))

    def forward(self, context: Tensor | None, mask: Tensor | None, samples: int) -> Tokens:
        """Return the tokens of all samples.

        Args:
            context: shape (B, L, size), or (B, size) for one token; None for no context.
            mask: booleans, shape (B, L), true where a token counts; None if all do. A sample whose tokens are all
                masked is one without a context.
            samples: size of the batch, B.

        Raises:
            ValueError: a shape does not fit, or a mask comes without a context.
            TypeError: the mask is not of booleans.
        """
        size = self.none.shape[-1]
        if context is None:
            if mask is not None:
                raise ValueError("A mask says which tokens of a context count; got one without a context. Pass both.")
            return Tokens(self.none, None)
        context = context[:, None] if context.ndim == 2 else context
        if context.ndim != 3 or len(context) != samples or context.shape[-1] != size:
            raise ValueError(
                f"A context must have shape ({samples}, L, {size}), or ({samples}, {size}) for one token; got "
                f"{tuple(context.shape)}. Reshape it."
            )
        value = torch.cat([self.none.expand(samples, -1, -1), context.to(self.none)], dim=1)
        if mask is None:
            return Tokens(value, None)
        if mask.dtype != torch.bool:
            raise TypeError(f"A mask must be of booleans, true where a token counts; got {mask.dtype}. Compare first.")
        if mask.shape != context.shape[:2]:
            raise ValueError(
                f"A mask must have one entry a token, {tuple(context.shape[:2])}; got {tuple(mask.shape)}. Reshape it."
            )
        mask = mask.to(value.device)
        return Tokens(value, torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1))


class CrossAttention(nn.Module):
    """W attend(q, k, v) with q linear in h, k and v in the tokens of a context, at first zero.

    Args:
        n: number of features of h.
        size: size of a token.
        heads: number of heads, a divisor of `n`.

    Raises:
        ValueError: `heads` does not divide `n`.

    Reference:
        Rombach et al. 2022 (arXiv 2112.10752), section 3.3.
    """

    def __init__(self, n: int, size: int, heads: int) -> None:
        super().__init__()
        self.heads = _divisor(heads, n)
        self.q = nn.Linear(n, n, bias=False)
        self.kv = nn.Linear(size, 2 * n, bias=False)
        self.outward = zeroed(nn.Linear(n, n))

    def forward(self, h: Tensor, tokens: Tokens) -> Tensor:
        """Return what the places of h, shape (B, N, n), learn from the tokens."""
        k, v = self.kv(tokens.value).chunk(2, dim=-1)
        y: Tensor = self.outward(attend(self.q(h), k, v, self.heads, tokens.mask))
        return y


def _divisor(heads: int, n: int) -> int:
    if heads < 1 or n % heads:
        raise ValueError(f"The heads of attention must divide the {n} features; got {heads}. Take a divisor.")
    return heads
