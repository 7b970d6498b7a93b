"""Normals computed from counters by a hash, on the device of the state: no generator, no order, no batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = (1 << 64) - 1
_BLOCK = 2**15  # words at once: they and what is made of them stay in a core's cache


def standard_normal(like: Tensor, first: int, key: tuple[int, ...]) -> Tensor:
    """Return standard normal noise shaped like the batch `like`: sample i depends on (key, first + i) alone."""
    size = like.shape[1:].numel()
    out = torch.empty(1, 2, len(like) * ((size + 1) // 2), dtype=torch.float64, device=like.device)
    fill(counters(like, first, key, (size + 1) // 2), torch.zeros(1, dtype=torch.int64), out)
    return out[0].T.reshape(len(like), -1)[:, :size].to(like.dtype).reshape(like.shape)


def counters(like: Tensor, first: int, key: tuple[int, ...], count: int) -> Tensor:
    """Return the counters of `count` words for each sample of a batch, from number `first` on: shape (B * count,).

    Counters are hashed by SplitMix64.

    Reference: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", figure 16.
    """
    step = _signed(_GOLDEN)
    samples = mixed(torch.arange(first, first + len(like), device=like.device) * step + word(key))
    return (samples[:, None] + torch.arange(1, count + 1, device=like.device) * step).flatten()


def fill(counters: Tensor, keys: Tensor, out: Tensor) -> None:
    """Write a pair of normals for every key and counter to `out`, shape (keys, 2, counters), floating-point."""
    keys = keys.to(counters.device)[:, None]
    width = max(1, (_BLOCK if counters.device.type == "cpu" else 64 * _BLOCK) // max(1, len(keys)))
    for i in range(0, len(counters), width):
        block = out[..., i : i + width]
        _box_muller(mixed(counters[i : i + width] + keys), block[:, 0], block[:, 1])


def content(x: Tensor) -> Tensor:
    """Return a word for each sample of a batch, a hash of its numbers in float32: shape (B,), int64.

    What is keyed by it is a function of the sample itself, wherever in whichever batch it comes.
    """
    bits = x.detach().reshape(len(x), -1).to(torch.float32).add(0.0).view(torch.int32).to(torch.int64)
    places = torch.arange(1, bits.shape[1] + 1, device=x.device) * _signed(_GOLDEN)
    return mixed(mixed(bits + places).sum(1))


def hashed(samples: Tensor, key: tuple[int, ...], count: int) -> Tensor:
    """Return `count` random words for each sample's word: shape (B, count), int64, each of 64 random bits."""
    each = mixed(samples + word(key))
    return mixed(each[:, None] + torch.arange(1, count + 1, device=samples.device) * _signed(_GOLDEN))


def normals(samples: Tensor, key: tuple[int, ...], count: int) -> Tensor:
    """Return `count` standard normal numbers for each sample's word: shape (B, count), float64."""
    bits = hashed(samples, key, (count + 1) // 2)
    out = torch.empty(2, *bits.shape, dtype=torch.float64, device=bits.device)
    _box_muller(bits, out[0], out[1])
    return out.movedim(0, -1).flatten(1)[:, :count]


def word(key: tuple[int, ...]) -> int:
    """Fold a key into one word."""
    state = 0
    for part in key:
        state = _mix(state + _GOLDEN * (part + 1))
    return _signed(state)


def words(begun: list[int], last: Tensor) -> Tensor:
    """Return the words of keys of which all but the last parts are folded already; shapes broadcast."""
    return mixed(torch.tensor(begun) + (last + 1) * _signed(_GOLDEN))


def _box_muller(bits: Tensor, first: Tensor, second: Tensor) -> None:
    """Make two normals of every word, of radius sqrt(-2 log u), u being its upper half, and of the angle in its lower.

    u lies in (0, 1), so the largest normal is 6.8.

    Reference: Box & Muller 1958.
    """
    angle = (bits << 32).to(first.dtype).mul_(math.pi / 2**63)
    radius = _shift(bits, 32).to(first.dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    torch.mul(radius, torch.cos(angle), out=first)
    torch.mul(radius, angle.sin_(), out=second)


def _signed(word: int) -> int:
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word


def _mix(z: int) -> int:
    z &= _WORD
    z = ((z ^ (z >> 30)) * _MIX1) & _WORD
    z = ((z ^ (z >> 27)) * _MIX2) & _WORD
    return z ^ (z >> 31)


def _shift(z: Tensor, n: int) -> Tensor:
    """Shift right without the sign."""
    return (z >> n).bitwise_and_((1 << (64 - n)) - 1)


def mixed(z: Tensor) -> Tensor:
    """Hash words by SplitMix64's finaliser."""
    for n, factor in _ROUNDS:
        z = _shift(z, n).bitwise_xor_(z).mul_(factor)
    return _shift(z, 31).bitwise_xor_(z)


_ROUNDS = (30, _signed(_MIX1)), (27, _signed(_MIX2))
