"""Problems with exact answers: laws of data, the processes they are seen through, and where the exact flow ends.

`TUNING` holds the laws that defaults may be chosen on, `HELD_OUT` those that they must not.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sdekit import EDM, VP, Cosine, GaussianMixture, Process, RectifiedFlow
from sdekit.data import digits
from sdekit.oracle import Diagonal, Full, LowRank

PROCESSES: dict[str, Process] = {"vp": VP(), "cosine": Cosine(), "ve": EDM(), "rf": RectifiedFlow()}
"""sigma/alpha runs from 152 to 0.0105 (VP), 119 to 0.0064 (cosine), 80 to 0.002 (VE) and 999 to 0.001 (straight)."""

CLEAN = 1e-7
"""The sigma/alpha at which the flow has reached its limit."""


@dataclass(frozen=True)
class Problem:
    """A law of data and how many samples of it are followed.

    Args:
        law: the exact model on a process, in float64.
        count: the number of samples.
        seed: of the samples.
    """

    law: Callable[[Process], GaussianMixture]
    count: int = 256
    seed: int = 1

    def start(self, process: Process) -> Tensor:
        """Return x / alpha at t_max, shape (count, d), drawn from the marginal there."""
        generator = torch.Generator().manual_seed(self.seed)
        x0 = self.law(process).sample(self.count, generator)
        eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        return x0 + torch.exp(-process.lam(process.t_max)) * eps

    def ends(self, process: Process) -> tuple[Tensor, Tensor]:
        """Return x / alpha at t_min, and its limit at sigma = 0, along the exact flow. Kept in a temporary folder."""
        start = self.start(process)
        key = hashlib.sha256(start.numpy().tobytes() + self.law(process).components.means.numpy().tobytes()).hexdigest()
        kept = Path(tempfile.gettempdir()) / "sdekit-benchmarks" / f"{key[:20]}.pt"
        if not kept.exists():
            kept.parent.mkdir(exist_ok=True)
            first, last = (float(-process.lam(end)) for end in (process.t_max, process.t_min))
            end = flow(self.law(process), start, first, last)
            torch.save((end, flow(self.law(process), end, last, math.log(CLEAN))), kept)
        end, limit = torch.load(kept)
        return end, limit


def flow(model: GaussianMixture, z: Tensor, first: float, last: float) -> Tensor:
    """Return z = x / alpha at log(sigma/alpha) = last, by DOP853 on dz/dlog(sigma/alpha) = (sigma/alpha) eps_hat."""
    data, one, zero = model.components, torch.ones((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)

    def rate(level: float, flat: np.ndarray) -> np.ndarray:
        state, sigma = torch.from_numpy(flat.reshape(z.shape)), torch.tensor(math.exp(level), dtype=torch.float64)
        return (sigma * data.given(state, one, sigma).mean(zero, sigma)).flatten().numpy()

    found = solve_ivp(rate, (first, last), z.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-10)
    return torch.from_numpy(found.y[:, -1].copy()).reshape(z.shape)


def ring8(process: Process) -> GaussianMixture:
    """Eight modes of deviation 0.1 on a circle of radius 0.9."""
    angle = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
    return GaussianMixture(process, 0.9 * torch.stack([angle.cos(), angle.sin()], 1), 0.1)


def grid25(process: Process) -> GaussianMixture:
    """Five by five modes of deviation 0.06 on [-1, 1]^2."""
    side = torch.linspace(-1, 1, 5, dtype=torch.float64)
    return GaussianMixture(process, torch.cartesian_prod(side, side), 0.06)


def rings2d(process: Process) -> GaussianMixture:
    """Nine modes on two circles, of deviation 0.03 across and 0.18 along."""
    angle = torch.arange(9, dtype=torch.float64) * (2 * math.pi / 9)
    out, along = torch.stack([angle.cos(), angle.sin()], 1), torch.stack([-angle.sin(), angle.cos()], 1)
    radius = torch.where(torch.arange(9) % 2 == 0, 1.1, 0.6).double()
    covariance = 0.03**2 * out[:, :, None] * out[:, None] + 0.18**2 * along[:, :, None] * along[:, None]
    return GaussianMixture(process, radius[:, None] * out, Full(covariance))


@cache
def _fitted(name: str) -> GaussianMixture:
    load = import_module("sklearn.datasets")
    if name == "moons":
        points = torch.tensor(load.make_moons(2000, noise=0.05, random_state=0)[0])
        return GaussianMixture.fit(VP(), 0.7 * _standard(points), 16)
    if name == "cancer16":
        points = torch.tensor(load.load_breast_cancer().data)[:, :16]
        return GaussianMixture.fit(VP(), 0.7 * _standard(points), 4)
    images = digits()
    points = torch.cat([images.train, images.test]).double().flatten(1)
    return GaussianMixture.fit(VP(), points, 10, Diagonal if name == "digits64diag" else Full)


def fitted(name: str) -> Callable[[Process], GaussianMixture]:
    """Return a mixture fitted to a small real data set (floor 1e-3): moons, cancer16, digits64 or digits64diag."""

    def law(process: Process) -> GaussianMixture:
        known = _fitted(name)
        return GaussianMixture(process, known.means, known.components.spectrum, known.weights)

    return law


def _standard(points: Tensor) -> Tensor:
    return (points - points.mean(0)) / points.std(0)


@dataclass(frozen=True)
class Flat:
    """A mixture in 3,072 dimensions whose modes have few strong directions each.

    Args:
        modes: their number.
        rank: strong directions of each.
        apart: the deviation of the means, per coordinate.
        within: the deviation of a mode in its strong directions together, per coordinate.
        rest: the deviation in all other directions.
        decay: the k-th strong direction has a variance in proportion to k^-decay.
    """

    modes: int
    rank: int
    apart: float
    within: float
    rest: float
    decay: float = 0.0

    def __call__(self, process: Process, dim: int = 3072) -> GaussianMixture:
        generator = torch.Generator().manual_seed(self.modes)
        means = self.apart * torch.randn(self.modes, dim, generator=generator, dtype=torch.float64)
        share = torch.arange(1, self.rank + 1, dtype=torch.float64) ** -self.decay
        share = share / share.sum() * self.within**2 * dim
        ways = torch.randn(self.modes, dim, self.rank, generator=generator, dtype=torch.float64)
        return GaussianMixture(process, means, LowRank(torch.linalg.qr(ways)[0] * share.sqrt(), self.rest))


TUNING: dict[str, Problem] = {
    "ring8": Problem(ring8),
    "grid25": Problem(grid25),
    "digits64": Problem(fitted("digits64")),
    "lowrank3072": Problem(Flat(modes=6, rank=6, apart=0.45, within=0.45, rest=0.05), count=32),
}
HELD_OUT: dict[str, Problem] = {
    "rings2d": Problem(rings2d),
    "moons": Problem(fitted("moons")),
    "cancer16": Problem(fitted("cancer16")),
    "digits64diag": Problem(fitted("digits64diag")),
    "patches3072": Problem(Flat(modes=8, rank=32, apart=0.15, within=0.6, rest=0.063, decay=1), count=32),
    "faces3072": Problem(Flat(modes=20, rank=12, apart=0.4, within=0.3, rest=0.03, decay=0.5), count=32),
}
PROBLEMS: dict[str, Problem] = TUNING | HELD_OUT
