"""Probes that cover the space along the path, and probes that first find where the trace is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sdekit.likelihood.control import Linear
from sdekit.likelihood.probes import signs
from sdekit.likelihood.trace import Estimate, Estimates, Probing, Pull, controlled, forms
from sdekit.noise import content, hashed, normals

COVERED = 0.4
"""How fast errors fall, in logarithms of the variance, with each time that the columns are gone through."""

MANY = 2.5
"""The rounds from which on the errors themselves tell how fast they fall."""

TABLE = 512
"""The largest square of columns that is kept whole; of larger ones entries are computed."""


@dataclass(frozen=True)
class Hadamard(Probing):
    r"""Columns of a randomly signed Hadamard matrix H, other ones at every node, until all have come, and again.

    With random signs s, u_j = s H_j is a probe as good as random signs; and since \sum_j u_j u_j' = D I, the forms of
    all D columns add up to the trace itself. Where the Jacobian changes slowly from node to node the errors of a round
    of columns cancel, and fall much faster than with the root of the number of probes. D is the least power of two that
    is not below d, and only the first d rows are used. The order of the columns, as the signs, is a function of the
    seed and of the sample itself.

    The standard error is not that of independent probes. With V that one's square, q = (nodes times probes) / D the
    rounds made and c the nodes of a round, let Y_rj = \sum_{k = r mod c} (-1)^{k // c} w_k f_kj be what the columns
    give when the rounds alternate in sign: its variance is what half the probes would leave, but for what all leave. If
    log errors fall with q^{0.9}, the variance sought is V z^{1.87}, with 2 z - z^{1.87} = \sum_r var_j(Y_rj) / (m V).
    For q < 2.5, where that says little, it is V e^{-0.4 q}. Both are our own, measured on mixtures in 64 dimensions.

    Args:
        probes: how many columns at each node, at most D.
        seed: any whole number.
        chunk: how many go backward at once.

    Raises:
        ValueError: probes or chunk is below 1.

    Reference: Bekas, Kokiopoulou & Saad 2007, "An estimator for the diagonal of a matrix", section 3, for Hadamard
        columns.
    """

    probes: int = 1
    seed: int = 0
    chunk: int = 32

    def random(self, size: int) -> bool:
        return self._count(size) < _columns(size)  # all the columns at a node give the trace itself

    def on(self, x: Tensor) -> Estimate:
        keys, size = content(x), x[0].numel()
        columns, count = _columns(size), self._count(size)
        order = hashed(keys, (self.seed, 1), columns).argsort(1)
        signed = signs(keys, (self.seed, 0), size)
        square = _square(columns, size, x.device)

        def estimate(pull: Pull, node: int, control: Linear | None) -> Estimates:
            which = torch.arange(count, device=x.device) + (node % _round(columns, count)) * count
            chosen = order[:, which % columns].T
            probes = (signed * square(chosen)).to(x.dtype).reshape(count, *x.shape)
            return controlled(probes, pull, control)

        return estimate

    def integral(self, weights: Tensor, estimates: Tensor, size: int) -> tuple[Tensor, Tensor]:
        count, columns = estimates.shape[1], _columns(size)
        total, apart = super().integral(weights, estimates, size)
        rounds = len(weights) * count / columns
        if not self.random(size):
            return total, torch.zeros_like(apart)
        usual = math.exp(-COVERED * min(rounds, MANY) / 2)
        if rounds < MANY:
            return total, usual * apart
        share = _alternating(weights, estimates.detach(), _round(columns, count)) / apart.square().clamp(min=1e-300)
        return total, apart * (_fallen(share.clamp(max=1.0)) ** 0.935).clamp(max=usual)

    def _count(self, size: int) -> int:
        return min(self.probes, _columns(size))


def _columns(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _round(columns: int, count: int) -> int:
    return -(-columns // count)


def _square(columns: int, size: int, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return the function from numbers of columns, shape (...), to their first `size` rows, shape (..., size)."""
    rows = torch.arange(size, device=device)
    if columns > TABLE:
        return lambda which: _hadamard(which[..., None], rows)
    table = _hadamard(torch.arange(columns, device=device)[:, None], rows)
    return lambda which: table[which]


def _hadamard(i: Tensor, j: Tensor) -> Tensor:
    """Return Sylvester's matrix at (i, j): -1 to the number of common binary digits."""
    common = i & j
    for shift in (8, 4, 2, 1) if len(j) <= 2**16 else (32, 16, 8, 4, 2, 1):
        common = common ^ (common >> shift)
    return 1.0 - 2.0 * (common & 1)


def _alternating(weights: Tensor, estimates: Tensor, cycle: int) -> Tensor:
    """Return the variance that the columns' alternating sums have, shape (B,)."""
    nodes = torch.arange(len(weights), device=weights.device)
    turned = (weights * (1 - 2 * ((nodes // cycle) % 2)))[:, None, None] * estimates
    sums = turned.new_zeros(cycle, *estimates.shape[1:]).index_add(0, nodes % cycle, turned)
    if estimates.shape[1] == 1:  # then from one node of the round to the next
        return cycle * sums[:, 0].diff(dim=0).square().mean(0) / 2
    return sums.var(1).sum(0) / estimates.shape[1]


def _fallen(share: Tensor) -> Tensor:
    """Return z in [0, 1] with 2 z - z^1.87 = share, by Newton's method from below."""
    z = share / 2
    for _ in range(20):
        z = (z - (2 * z - z**1.87 - share) / (2 - 1.87 * z**0.87 + 1e-3)).clamp(0, 1)
    return z


@dataclass(frozen=True)
class HutchPP(Probing):
    """Hutch++: a third of the probes finds the directions of the largest images, another the trace in them exactly, and
    the last estimates what is left. At each node anew, without a control variate. Gradients
    take the directions for fixed.

    Args:
        probes: how many passes backward at each node, in three equal parts: a multiple of 3.
        seed: any whole number.
        chunk: how many go backward at once.

    Raises:
        ValueError: probes is no multiple of 3, or chunk is below 1.

    Reference: Meyer, Musco, Musco & Woodruff 2021 (arXiv 2010.09649), algorithm 1.
    """

    probes: int = 6
    seed: int = 0
    chunk: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.probes % 3:
            raise ValueError(f"Hutch++ takes its probes in three equal parts; got probes={self.probes}. Use 6, 9, 12.")

    def on(self, x: Tensor) -> Estimate:
        keys, size = content(x), x[0].numel()
        part = min(self.probes // 3, size)

        def estimate(pull: Pull, node: int, control: Linear | None) -> Estimates:
            def image(v: Tensor) -> Tensor:
                return pull(v.reshape(-1, *x.shape)).reshape(-1, len(x), size)

            sketch = torch.stack([normals(keys, (self.seed, node, k), size) for k in range(part)]).to(x.dtype)
            found = torch.linalg.qr(image(sketch).detach().permute(1, 2, 0)).Q  # (B, d, part)
            basis = found.permute(2, 0, 1)
            inside = forms(basis, image(basis)).sum(0)
            probes = torch.stack([signs(keys, (self.seed, node, k, 1), size) for k in range(part)]).to(x.dtype)
            rest = probes - torch.einsum("bdk,bek,mbe->mbd", found, found, probes)
            outside = forms(rest, image(rest))
            return Estimates(inside + outside)

        return estimate
