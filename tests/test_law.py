"""The law of a plan on Gaussian data is exact: it agrees with impulses sent through a run, and with closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from exact import PLAIN, PROCESSES, gaussian, measured_order, name, normal
from exact import law as law_by_impulses
from scipy.linalg import sqrtm
from torch import Tensor

from sdekit import (
    DDIM,
    DDPM,
    HEUN,
    VE,
    VP,
    Cosine,
    Denoised,
    DPMpp2M,
    Gaussian,
    Karras,
    LogSNR,
    Method,
    Process,
    RectifiedFlow,
    ReverseSDE,
    Uniform,
    V,
)
from sdekit.oracle import Diagonal, Full, LowRank
from sdekit.plan import Law, law, marginal, run, trace

on_every_process = pytest.mark.parametrize("process", PROCESSES, ids=name)
by_every_method = pytest.mark.parametrize("method", PLAIN.values(), ids=PLAIN)

SPREAD = torch.tensor([[1.0, 0.3, 0.1], [0.3, 0.8, 0.0], [0.1, 0.0, 0.5]], dtype=torch.float64)
MEAN = torch.tensor([0.5, -1.0, 0.2], dtype=torch.float64)


@on_every_process
@by_every_method
def test_the_law_is_that_of_the_run(process: Process, method: Method) -> None:
    """In one dimension, with the marginal at the start, against a run on impulses."""
    model = gaussian(process, mean=0.7, std=0.5)
    data = Gaussian(process, torch.tensor([0.7], dtype=torch.float64), 0.5)
    for grid in (LogSNR(5), Karras(4)):
        mean, std = law_by_impulses(model, method, grid)
        plan = trace(method, process, grid)
        outcome = law(plan, data, marginal(data, plan.times[0]))
        assert float(0.7 * outcome.shift) == pytest.approx(float(mean[-1]), abs=1e-10)
        assert float(outcome.variance.sqrt()) == pytest.approx(float(std[-1]), rel=1e-10)


@pytest.mark.parametrize("method", [DDIM, DPMpp2M, HEUN], ids=["ddim", "2m", "heun"])
def test_covariances_of_any_shape(method: Method) -> None:
    data, plan = Gaussian(VP(), MEAN, Full(SPREAD)), trace(method, VP(), LogSNR(6))
    ends = run(plan, data, torch.cat([torch.zeros(1, 3), torch.eye(3)]).double())
    push = ends[1:] - ends[0]
    outcome = law(plan, data)
    variances = torch.linalg.eigvalsh(push.T @ push) * float(VP().sigma(1.0)) ** 2
    torch.testing.assert_close(outcome.variance.sort().values, variances, rtol=1e-10, atol=0)
    assert float((outcome.means * outcome.shift**2).sum()) == pytest.approx(float(ends[0].square().sum()))


@pytest.mark.parametrize("kind", ["diagonal", "low rank", "isotropic"])
def test_every_kind_of_covariance_is_the_full_one(kind: str) -> None:
    variances, factor, mean = torch.arange(1.0, 6.0).double(), normal(5, 2), normal(5)
    covariance, full = {
        "diagonal": (Diagonal(variances), torch.diag(variances)),
        "low rank": (LowRank(factor, 0.3), factor @ factor.T + 0.09 * torch.eye(5)),
        "isotropic": (0.7, 0.49 * torch.eye(5)),
    }[kind]
    data = Gaussian(VP(), mean, covariance)
    same = Gaussian(VP(), mean, Full(full.double()))
    plan = trace(DPMpp2M, VP(), LogSNR(6))
    for a, b in [(data, same), (same, data)]:
        ours, theirs = law(plan, a), law(plan, b)
        assert float(ours.w2(marginal(a, 1e-3))) == pytest.approx(float(theirs.w2(marginal(b, 1e-3))), rel=1e-5)
        assert float(ours.kl(marginal(a, 1e-3))) == pytest.approx(float(theirs.kl(marginal(b, 1e-3))), rel=1e-5)


def test_distances_are_those_of_gaussians() -> None:
    data = Gaussian(VP(), MEAN, Full(SPREAD))
    a, b = law(trace(DDPM, VP(), LogSNR(4)), data), marginal(data, 0.001)
    root = data.components.spectrum.directions[0].numpy()
    m = root @ MEAN.numpy()
    (ma, ca), (mb, cb) = ((law_.shift.numpy() * m, np.diag(law_.variance.numpy())) for law_ in (a, b))
    frechet = ((ma - mb) ** 2).sum() + np.trace(ca + cb - 2 * sqrtm(ca @ cb).real)
    inverse = np.linalg.inv(cb)
    det = np.log(np.linalg.det(cb) / np.linalg.det(ca))
    kl = 0.5 * (np.trace(inverse @ ca) - 3 + (mb - ma) @ inverse @ (mb - ma) + det)
    assert float(a.frechet(b)) == pytest.approx(frechet)
    assert float(a.w2(b)) == pytest.approx(math.sqrt(frechet))
    assert float(a.kl(b)) == pytest.approx(kl)
    assert float(a.kl(a)) == float(a.w2(a)) == 0


def test_the_clean_end_is_the_data() -> None:
    for process in (VP(), VE(), RectifiedFlow(t_min=0.0)):
        data = Gaussian(process, MEAN, Full(SPREAD))
        end = marginal(data, process.clean)
        torch.testing.assert_close(end.variance.sort().values, torch.linalg.eigvalsh(SPREAD))
        grid = Denoised(LogSNR(200)) if process.t_min > process.clean else Uniform(200)
        fine = law(trace(HEUN, process, grid, V()), data)
        assert float(fine.w2(end)) < 0.02


@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("process", [VP(), Cosine(), VE()], ids=name)
def test_weak_orders_are_read_off(process: Process, eta: float) -> None:
    data = Gaussian(process, torch.tensor([0.7], dtype=torch.float64), 0.5)
    for solver in dict.fromkeys(m.solver for m in PLAIN.values() if m.equation == ReverseSDE()):
        errors = []
        for n in (100, 200):
            plan = trace(Method(ReverseSDE(eta), solver), process, LogSNR(n))
            outcome = law(plan, data, marginal(data, plan.times[0]))
            errors.append(float(outcome.w2(marginal(data, plan.times[-1]))))
        assert measured_order((100, 200), errors) > solver.order - 0.2, solver


def test_the_law_has_derivatives_in_the_grid() -> None:
    data = Gaussian(VP(), MEAN, Full(SPREAD))
    ends = LogSNR(4)(VP())

    def error(inner: Tensor) -> Tensor:
        times = torch.cat([ends[:1], inner, ends[-1:]])
        return law(trace(DPMpp2M, VP(), times), data).frechet(marginal(data, 1e-3))

    assert torch.autograd.gradcheck(error, ends[1:-1].clone().requires_grad_())


def test_the_law_of_what_was_cut_is_refused() -> None:
    data = Gaussian(VP(), MEAN, Full(SPREAD))
    with pytest.raises(ValueError, match="second part"):
        law(trace(DDIM, VP(), LogSNR(4)).split(2)[1], data)
    with pytest.raises(ValueError, match="on the plan's process"):
        law(trace(DDIM, VE(), LogSNR(4)), data)


def test_laws_are_what_they_say() -> None:
    law_ = marginal(Gaussian(VP(), MEAN, 0.5), 0.3)
    assert isinstance(law_, Law)
    assert float(law_.counts.sum()) == 3
    assert float(law_.means.sum()) == pytest.approx(float(MEAN.square().sum()))
