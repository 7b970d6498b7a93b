"""Log-likelihoods as the users of other libraries write them: the probability flow with its log-determinant, one ODE.

All start at t_min, end under the prior N(0, sigma_T^2) at t_max, and hold one random probe fixed along the path, or
find the trace from all basis vectors. Written from the documentation of torchdiffeq, scipy and zuko. Beside them the
two small trained networks that they, and sdekit, are asked about.
"""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import zuko
from scipy.integrate import solve_ivp
from torch import Tensor
from torchdiffeq import odeint

from benchmarks.problems import PROBLEMS
from sdekit import EDM, Denoiser, Dequantization, Model, Preconditioned, Process
from sdekit.data import digits
from sdekit.nets import MLP
from sdekit.training import Objective, Recipe, Trainer, UniformLogSNR, load

KEPT = Path(tempfile.gettempdir()) / "sdekit-benchmarks"
Divergence = Callable[[Tensor, Tensor], Tensor]
"""(v, x) -> the divergence of v, shape (B,), or an estimate; v carries a graph to x."""


@dataclass(frozen=True)
class Peer:
    """A library with its settings.

    Args:
        library: its name.
        setting: what a user would have written.
        exact: whether the trace is exact; otherwise another seed gives another value.
        run: (model, x, seed) -> log-likelihoods, shape (B,), and the network calls.
    """

    library: str
    setting: str
    exact: bool
    run: Callable[[Model, Tensor, int], tuple[Tensor, int]]


class Velocity:
    """The velocity of a model's flow, with its calls counted."""

    def __init__(self, model: Model) -> None:
        self.model, self.calls = model, 0

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """Return the velocity; the search for a first step may look past the ends, where the model has no answer."""
        self.calls += 1
        process = self.model.process
        return self.model(x, t.clamp(process.t_min, process.t_max)).velocity

    def with_divergence(self, t: Tensor, x: Tensor, divergence: Divergence) -> tuple[Tensor, Tensor]:
        """Return the velocity and its divergence, both without a graph."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            v = self(t, x)
            found = divergence(v, x)
        return v.detach(), found.detach()

    def log_prob(self, latent: Tensor, log_det: Tensor) -> Tensor:
        """Return the log-likelihood under the prior, in float64."""
        return self.model.process.prior().log_prob(latent.double()) + log_det.double()


def one_probe(x: Tensor, seed: int) -> Divergence:
    """Return Hutchinson's estimate with one vector of random signs, the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    u = 2.0 * torch.randint(0, 2, x.shape, generator=generator).to(x) - 1
    return lambda v, x: (torch.autograd.grad(v, x, u)[0] * u).sum(1)


def looped(v: Tensor, x: Tensor) -> Tensor:
    """Return the divergence, coordinate by coordinate."""
    rows = [torch.autograd.grad(v[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])]
    return torch.stack(rows).sum(0)


def mapped(v: Tensor, x: Tensor) -> Tensor:
    """Return the divergence from all basis vectors at once."""
    basis = torch.eye(x.shape[1], dtype=x.dtype)[:, None].expand(-1, *x.shape)
    rows = torch.autograd.grad(v, x, basis, is_grads_batched=True)[0]
    return torch.einsum("ibi->b", rows)


def by_torchdiffeq(
    model: Model, x: Tensor, divergence: Divergence, tolerance: float, method: str = "dopri5"
) -> tuple[Tensor, int]:
    """Solve for the pair of state and log-determinant; steps end at t_max, beyond which the model has no answer."""
    flow, process = Velocity(model), model.process
    ends = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
    latent, log_det = odeint(
        lambda t, pair: flow.with_divergence(t, pair[0], divergence),
        (x, x.new_zeros(len(x))),
        ends,
        rtol=tolerance,
        atol=tolerance,
        method=method,
        options={"step_t": ends[1:]},
    )
    return flow.log_prob(latent[-1], log_det[-1]), flow.calls


def by_scipy(model: Model, x: Tensor, divergence: Divergence, tolerance: float) -> tuple[Tensor, int]:
    """Solve for the flattened batch with its log-determinants appended."""
    flow, size = Velocity(model), x.numel()

    def rate(t: float, flat: np.ndarray) -> np.ndarray:
        state = torch.from_numpy(flat[:size]).reshape(x.shape).to(x.dtype)
        v, found = flow.with_divergence(torch.tensor(t, dtype=torch.float64), state, divergence)
        return np.concatenate([v.flatten().double().numpy(), found.double().numpy()])

    start = np.concatenate([x.flatten().double().numpy(), np.zeros(len(x))])
    ends = (model.process.t_min, model.process.t_max)
    found = solve_ivp(rate, ends, start, method="RK45", rtol=tolerance, atol=tolerance)
    end = torch.from_numpy(found.y[:, -1].copy())
    return flow.log_prob(end[:size].reshape(x.shape), end[size:]), flow.calls


def by_zuko(model: Model, x: Tensor, seed: int, exact: bool) -> tuple[Tensor, int]:
    """Call its transform with its own tolerances (atol 1e-6, rtol 1e-5) and, if not exact, its Gaussian probe."""
    flow, process = Velocity(model), model.process
    transform = zuko.transforms.FreeFormJacobianTransform(flow, process.t_min, process.t_max, exact=exact)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        latent, log_det = transform.call_and_ladj(x)
    return flow.log_prob(latent, log_det), flow.calls


def reference(model: Denoiser, x: Tensor) -> Tensor:
    """Return the log-likelihood by dopri8 at 1e-9 and the exact trace, in float64. Kept in a temporary folder."""
    model, x = copy.deepcopy(model).double(), x.double()
    key = hashlib.sha256(f"{model.process} {model.predicts}".encode() + x.numpy().tobytes())
    for weight in model.parameters():
        key.update(weight.detach().numpy().tobytes())
    path = KEPT / f"{key.hexdigest()[:20]}.pt"
    if not path.exists():
        KEPT.mkdir(exist_ok=True)
        torch.save(by_torchdiffeq(model, x, mapped, 1e-9, "dopri8")[0], path)
    found: Tensor = torch.load(path)
    return found


def _torchdiffeq(tolerance: float, name: str, divergence: Divergence | None = None) -> Peer:
    return Peer(
        "torchdiffeq",
        f"dopri5 {tolerance:.0e}, {name}",
        divergence is not None,
        lambda model, x, seed: by_torchdiffeq(model, x, divergence or one_probe(x, seed), tolerance),
    )


RANDOM: list[Peer] = [
    _torchdiffeq(1e-3, "one probe"),
    _torchdiffeq(1e-5, "one probe"),
    Peer(
        "scipy",
        "RK45 1e-05, one probe",
        False,
        lambda model, x, seed: by_scipy(model, x, one_probe(x, seed), 1e-5),
    ),
    Peer("zuko", "defaults, one probe", False, lambda model, x, seed: by_zuko(model, x, seed, exact=False)),
]
EXACT: list[Peer] = [
    _torchdiffeq(1e-3, "exact, vmap", mapped),
    _torchdiffeq(1e-4, "exact, vmap", mapped),
    _torchdiffeq(1e-5, "exact, vmap", mapped),
    _torchdiffeq(1e-3, "exact, loop", looped),
    _torchdiffeq(1e-5, "exact, loop", looped),
    Peer("zuko", "defaults, exact", True, lambda model, x, seed: by_zuko(model, x, seed, exact=True)),
]


def network(name: str, process: Process, points: int) -> tuple[Denoiser, Tensor, Tensor]:
    """Return a trained network seen through a process, held-out points (float32) and the data it was trained on.

    It is trained once, on EDM, and kept in a temporary folder: told the noise level alone, it fits any process.

    Args:
        name: mlp2d, on the law rings2d, or mlp64, on the digits, dequantised and flat.
        process: the process.
        points: how many points, 397 at most.
    """
    train, test, hidden, sigma_data = _data(name)
    path = KEPT / f"{name}-likelihood.safetensors"
    if not path.exists():
        KEPT.mkdir(exist_ok=True)
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            net = MLP(train.shape[1:], hidden=hidden, depth=3)
            model = Denoiser(net, EDM(t_min=1e-3, t_max=200.0), predicts=Preconditioned(sigma_data))
            recipe = Recipe(4000, lr=2e-3, warmup=100, final=0.0)
            trainer = Trainer(model, train, recipe, Objective(times=UniformLogSNR()))
            for _ in trainer:
                pass
        trainer.save(path)
    trained = load(path).requires_grad_(False).eval()
    return Denoiser(trained.net, process, predicts=Preconditioned(sigma_data)), test[:points], train


def _data(name: str) -> tuple[Tensor, Tensor, int, float]:
    """Return points to train on, others, the network's width and the deviation of the data."""
    if name == "mlp2d":
        law = PROBLEMS["rings2d"].law(EDM())
        points = law.sample(20_397, torch.Generator().manual_seed(5)).float()
        return points[397:], points[:397], 128, 0.6
    data, levels = digits(), Dequantization(levels=17)
    train = torch.cat([levels.apply(data.train, seed) for seed in range(8)]).flatten(1)
    return train, levels.apply(data.test, 8).flatten(1), 256, 0.75
