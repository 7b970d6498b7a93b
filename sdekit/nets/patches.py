"""Squares of pixels as channels, or as tokens, and back."""

from __future__ import annotations

from torch import Tensor

__all__ = ["patches", "to_channels", "to_image", "to_pixels"]


def to_channels(x: Tensor, patch: int) -> Tensor:
    """Return images, shape (B, C, H, W), with every square of pixels as one: (B, C patch^2, H / patch, W / patch)."""
    if patch == 1:
        return x
    squares: Tensor = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
    return squares.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def to_pixels(y: Tensor, patch: int) -> Tensor:
    """Return the images of which `to_channels` made y."""
    if patch == 1:
        return y
    squares: Tensor = y.unflatten(1, (-1, patch, patch))
    return squares.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)


def patches(x: Tensor, patch: int) -> Tensor:
    """Return the patches of images, shape (B, C, H, W), row by row: (B, H W / patch^2, C patch^2)."""
    return to_channels(x, patch).flatten(2).transpose(1, 2)


def to_image(tokens: Tensor, patch: int, rows: int) -> Tensor:
    """Return the images of which `patches` made the tokens, in `rows` rows."""
    return to_pixels(tokens.transpose(1, 2).unflatten(2, (rows, -1)), patch)
