"""Samples to be looked at, as parts of a page: images as a sheet in a PNG, points of the plane as a cloud in SVG."""

from __future__ import annotations

import base64
import struct
import zlib
from html import escape

import torch
from torch import Tensor

_PIXELS = 16 * 32 * 32  # a sheet has at most about so many: 64 images of 16 x 16, 16 of 32 x 32, 4 of 64 x 64
_COLOUR_TYPES = {1: 4, 3: 6}  # grey and RGB, each with transparency, which the gaps have


def sheet(samples: Tensor, label: str) -> str:
    """Return samples, (n, *shape), as HTML; "" if they are neither images, 1 or 3 x h x w, nor points, 2."""
    if samples.ndim == 4 and samples.shape[1] in _COLOUR_TYPES:
        pixels = tiled(_bytes(samples))
        data = base64.b64encode(png(pixels)).decode()
        width, height = pixels.shape[1], pixels.shape[0]
        return f'<img src="data:image/png;base64,{data}" width="{width}" height="{height}" alt="{escape(label)}">'
    if samples.ndim == 2 and samples.shape[1] == 2:
        return _cloud(samples.to(torch.float64), label)
    return ""


def tiled(images: Tensor) -> Tensor:
    """Return the first images of (n, c, h, w), uint8, in a square with gaps of one pixel, (H, W, c + 1), uint8."""
    _, c, h, w = images.shape
    side = 1
    while (side + 1) ** 2 <= len(images) and (side + 1) ** 2 * h * w <= _PIXELS:
        side += 1
    pixels = torch.zeros(side * (h + 1) - 1, side * (w + 1) - 1, c + 1, dtype=torch.uint8)
    for k, image in enumerate(images[: side * side]):
        top, left = k // side * (h + 1), k % side * (w + 1)
        pixels[top : top + h, left : left + w, :c] = image.permute(1, 2, 0)
        pixels[top : top + h, left : left + w, c] = 255
    return pixels


def png(pixels: Tensor) -> bytes:
    """Return pixels, (H, W, 2 or 4), uint8, as a PNG of grey or RGB with transparency."""
    height, width, channels = pixels.shape
    lines = b"".join(b"\0" + line.numpy().tobytes() for line in pixels.contiguous())
    header = struct.pack(">IIBBBBB", width, height, 8, _COLOUR_TYPES[channels - 1], 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )


def _bytes(images: Tensor) -> Tensor:
    """Return images in 0 ... 255; numbers that are not whole lie in -1 ... 1, as the data of sdekit do."""
    if images.dtype == torch.uint8:
        return images
    return ((images.to(torch.float64).nan_to_num() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def _cloud(points: Tensor, label: str) -> str:
    """Return points of the plane, (n, 2), about their median, as wide as three times their middle half."""
    low, middle, high = points.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)
    reach = float((high - low).max()) * 1.5 or 1.0
    placed = ((points - middle) / reach * 48 + 50).clamp(1, 99)
    dots = "".join(f"M{x:.1f},{100 - y:.1f}h0" for x, y in placed.tolist())
    return f'<svg class="cloud" viewBox="0 0 100 100" role="img" aria-label="{escape(label)}"><path d="{dots}"/></svg>'
