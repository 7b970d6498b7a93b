"""Samplers of other libraries as contenders: they are what they were, and every call is counted."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sdekit import (
    DDIM,
    EDM,
    EULER,
    HEUN,
    VP,
    X0,
    Denoiser,
    Discrete,
    DPMpp2M,
    Eps,
    EulerMaruyama,
    GaussianMixture,
    LogSNR,
    Method,
    Prediction,
    ProbabilityFlow,
    RectifiedFlow,
    ReverseSDE,
    Times,
    Uniform,
    V,
    method,
    solve,
)
from sdekit._value import Value
from sdekit.interop import Diffusers, Torchdiffeq, Torchsde
from sdekit.interop.driving import IN_SIGMAS, ON_FLOWS, SCHEDULERS
from sdekit.interop.torchdiffeq import ADAPTIVE, FIXED
from sdekit.interop.torchsde import SOLVERS
from sdekit.metrics import PairedRMSE
from sdekit.noise import BrownianPath, Keyed
from sdekit.solvers import Midpoint
from sdekit.study import BudgetError, FlowError, Study
from sdekit.study.contender import Counting

pytest.importorskip("diffusers")

MEANS = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.3, -0.8]], dtype=torch.float64)
LIKE = torch.empty(6, 2, dtype=torch.float64)
TABLE, FLOW, SIGMAS = VP(), RectifiedFlow(), EDM()

pytestmark = [  # what diffusers does with numpy, and with a Brownian tree of torchsde
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]"),
]


def oracle(process=TABLE):
    return GaussianMixture(process, MEANS, 0.2)


def process_of(name: str):
    return FLOW if name in ON_FLOWS else SIGMAS if name in IN_SIGMAS else TABLE


def given(name: str) -> Diffusers:
    """A scheduler with options that let it run in few steps."""
    return Diffusers(name, {"skip_prk_steps": True} if name == "PNDM" else {})


def noise() -> Tensor:
    return Keyed(7, 0).start(LIKE)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# They are what sdekit has under their names -------------------------------------------------------------------------


def times_of(contender: Diffusers, process, clean: bool = True) -> Times:
    driven, _ = contender._made(process)
    driven.scheduler.set_timesteps(contender.steps)
    times = dict.fromkeys(float(t) for t in driven.times())
    return Times((*times, process.clean if clean else process.t_min))


@pytest.mark.parametrize("process", [TABLE, Discrete.linear(), Discrete.cosine()], ids=["vp", "linear", "cosine"])
@pytest.mark.parametrize(
    ("contender", "ours"),
    [
        (Diffusers("DDIM", {"timestep_spacing": "trailing"}), DDIM),
        (Diffusers("DPMSolverMultistep", {"timestep_spacing": "trailing"}), DPMpp2M),
        (Diffusers("DPMSolverMultistep", {"solver_order": 1}), DDIM),
    ],
    ids=["DDIM", "DPM++ 2M", "DPM++ 1"],
)
def test_on_a_table(process, contender, ours):
    model, contender = oracle(process), contender.within(10, oracle(process))
    assert contender.steps == 10
    found = contender.run(model, LIKE, seed=7, first=0)
    assert distance(found.x, solve(model, noise(), ours, times_of(contender, process)).x) < 1e-5


class InSigmas:
    """A model of a variance-preserving process, seen as z = x / alpha at the noise level sigma / alpha."""

    def __init__(self, model, sigmas: Tensor) -> None:
        self.model = model
        self.process = EDM(t_min=float(sigmas[-1]), t_max=float(sigmas[0]))

    def __call__(self, z: Tensor, sigma: Tensor) -> Prediction:
        x = z / (1 + sigma**2).sqrt()
        v = self.model(x, self.model.process.time(-sigma.log())).v
        return Prediction(
            self.process, z, sigma, (sigma * z / (1 + sigma**2).sqrt() + v) / (1 + sigma**2).sqrt(), Eps()
        )


@pytest.mark.parametrize(("name", "ours"), [("Euler", EULER), ("Heun", HEUN)])
def test_in_sigmas_of_a_table(name, ours):
    model = oracle()
    contender = Diffusers(name).within(15, model)
    driven, _ = contender._made(TABLE)
    driven.scheduler.set_timesteps(contender.steps)
    found = contender.run(model, LIKE, seed=7, first=0)
    sigmas = torch.tensor([*dict.fromkeys(driven.scheduler.sigmas[:-1].double().tolist())], dtype=torch.float64)
    start = noise() * float(driven.scheduler.init_noise_sigma)
    run = solve(InSigmas(model, sigmas), start, ours, Times((*sigmas.tolist(), 0.0)))
    assert distance(found.x, run.x) < 1e-4
    assert found.nfe == run.nfe == 15


@pytest.mark.parametrize(("name", "ours"), [("FlowMatchEuler", EULER), ("FlowMatchHeun", HEUN)])
def test_on_a_flow(name, ours):
    model = oracle(RectifiedFlow(t_min=0.001, t_max=1.0))
    contender = Diffusers(name).within(15, model)
    found = contender.run(model, LIKE, seed=7, first=0)
    run = solve(model, noise(), ours, times_of(contender, model.process))
    assert distance(found.x, run.x) < 1e-5
    assert found.nfe == run.nfe == 15


@pytest.mark.parametrize(("name", "ours"), [("EDMEuler", EULER), ("EDMDPMSolver", DPMpp2M)])
def test_in_sigmas(name, ours):
    model = oracle(SIGMAS)
    contender = Diffusers(name).within(15, model)
    found = contender.run(model, LIKE, seed=7, first=0)
    start = noise() * (1 + 80.0**2) ** 0.5
    assert distance(found.x, solve(model, start, ours, times_of(contender, SIGMAS)).x) < 1e-4


@pytest.mark.parametrize("grid", [Uniform(1), LogSNR(1)])
@pytest.mark.parametrize(("name", "ours"), [("euler", EULER), ("midpoint", Method(ProbabilityFlow(), Midpoint()))])
def test_odes_with_fixed_steps(grid, name, ours):
    contender = Torchdiffeq(name, grid).within(12, oracle())
    found = contender.run(oracle(), LIKE, seed=7, first=0)
    run = solve(oracle(), noise() * TABLE.sigma(torch.tensor(1.0)), ours, contender.grid)
    assert distance(found.x, run.x) < 1e-5
    assert found.nfe == run.nfe == 12


def test_sdes_on_the_same_brownian_path():
    contender, model = Torchsde("euler", LogSNR(1)).within(20, oracle()), oracle()
    found = contender.run(model, LIKE, seed=7, first=0)
    start = noise() * TABLE.sigma(torch.tensor(1.0))
    ours = solve(model, start, Method(ReverseSDE(), EulerMaruyama()), contender.grid, BrownianPath(7))
    assert distance(found.x, ours.x) < 1e-10
    assert found.nfe == ours.nfe == 20


def test_the_strong_solver_follows_its_path():
    """It comes to where the path leads with order 1, but for the few samples that an error sends to another mode."""
    model, like = oracle(), torch.empty(64, 2, dtype=torch.float64)
    start = Keyed(7).start(like) * TABLE.sigma(torch.tensor(1.0))
    fine = solve(model, start, method("sra1"), LogSNR(1000), BrownianPath(7)).x

    def error(budget):
        x = Torchsde("srk", LogSNR(1)).within(budget, model).run(model, like, 7, 0).x
        return float((x - fine).norm(dim=1).median())

    assert error(240) < 0.4 * error(60) < 0.02


# Calls ----------------------------------------------------------------------------------------------------------------


class Two:
    """A model that makes two network calls an answer."""

    calls, predicts = 2, V()

    def __init__(self, inner) -> None:
        self.inner, self.process = inner, inner.process

    def __call__(self, x, t):
        return self.inner(x, t)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("budget", [6, 11])
@pytest.mark.parametrize("wrap", [lambda m: m, Two], ids=["1", "2"])
def test_calls_of_schedulers_are_counted(name, budget, wrap):
    model = wrap(oracle(process_of(name)))
    counting, contender = Counting(model), given(name).within(budget, model)
    found = contender.run(counting, LIKE, seed=0, first=0)
    assert 0 < found.nfe == counting.nfe(len(LIKE)) <= budget
    if wrap is not Two:  # a step more would be too much
        more = replace(contender, steps=contender.steps + 1).run(model, LIKE, seed=0, first=0)
        assert more.nfe > budget
    assert bool(found.x.isfinite().all())
    assert found.x.dtype == LIKE.dtype


@pytest.mark.parametrize("name", FIXED)
def test_calls_of_fixed_steps_are_counted(name):
    counting, contender = Counting(oracle()), Torchdiffeq(name).within(13, oracle())
    found = contender.run(counting, LIKE, seed=0, first=0)
    assert 13 - 4 < found.nfe == counting.nfe(len(LIKE)) <= 13


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_steps_stay_within_the_budget(name):
    model = oracle(FLOW)
    fine = Torchdiffeq("rk4").within(800, model).run(model, LIKE, seed=0, first=0).x
    errors = []
    for budget in (40, 160):
        found = Torchdiffeq(name).within(budget, model).run(Counting(model), LIKE, seed=0, first=0)
        assert budget / 3 < found.nfe <= budget
        errors.append(PairedRMSE(fine)(found.x))
    assert errors[1] < 0.5 * errors[0]


def test_adaptive_steps_for_too_small_a_budget_are_refused():
    contender = Torchdiffeq("dopri5").within(6, oracle())
    with pytest.raises(BudgetError, match="Raise the budget"):
        contender.run(oracle(), LIKE, seed=0, first=0)


@pytest.mark.parametrize("name", ["dopri5", "bosh3"])
def test_adaptive_steps_of_a_guided_model(name):
    """Its price depends on the time, of which trial steps ask beyond the process's end."""
    times = []

    class Recorded(Two):
        def calls_at(self, t):
            times.append(float(TABLE.time(TABLE.lam(t))))  # refuses a time that the process does not have
            return 2

    model = Recorded(oracle())
    found = Torchdiffeq(name).within(80, model).run(Counting(model), LIKE, seed=0, first=0)
    assert 20 < found.nfe <= 80
    assert min(times) == pytest.approx(TABLE.t_min)


def test_adaptive_steps_do_not_depend_on_how_many_are_drawn_at_a_time():
    """They do on the batch that is the contender's own."""
    like, contender = torch.empty(10, 2, dtype=torch.float64), Torchdiffeq("dopri5", batch=4).within(60, oracle())
    whole = contender.run(oracle(), like, seed=0, first=0).x
    parts = [contender.run(oracle(), part, seed=0, first=4 * k).x for k, part in enumerate(like.split(4))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, replace(contender, batch=5).run(oracle(), like, seed=0, first=0).x)
    with pytest.raises(ValueError, match=r"a multiple of the 4 samples .* got samples from 6"):
        contender.run(oracle(), like[:4], seed=0, first=6)


def test_each_batch_of_adaptive_steps_is_at_its_own_conditions():
    """For Gaussians of deviation 1, which the flow moves as they are."""
    means, start = torch.arange(10.0)[:, None], Keyed(0).start(torch.empty(10, 2))

    def net(x, t, label):
        alpha = TABLE.alpha(t).reshape(-1, 1)
        return label + alpha * (x - alpha * label)

    model = Denoiser(net, TABLE, predicts=X0()).given(label=means)
    x = Torchdiffeq("dopri5", batch=4).within(100, model).run(Counting(model), torch.empty(10, 2), seed=0, first=0).x
    assert distance(x, start + means) < 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_calls_of_sdes_are_counted(name):
    counting, contender = Counting(oracle()), Torchsde(name, LogSNR(1)).within(21, oracle())
    found = contender.run(counting, LIKE, seed=0, first=0)
    assert 19 < found.nfe == counting.nfe(len(LIKE)) <= 21


# Noise ----------------------------------------------------------------------------------------------------------------

NOISY = [
    Diffusers("DDPM"),
    Diffusers("DDIM", {"eta": 1.0}),
    Diffusers("EulerAncestral"),
    Diffusers("SASolver"),
    Diffusers("DPMSolverSDE"),
    Diffusers("KDPM2Ancestral"),
    Diffusers("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
    Torchsde("srk", LogSNR(1)),
]


@pytest.mark.parametrize("contender", NOISY, ids=lambda c: getattr(c, "scheduler", "srk"))
def test_a_sample_is_the_same_in_every_batch(contender):
    contender = contender.within(20, oracle())
    whole = contender.run(oracle(), LIKE, seed=3, first=0).x
    part = contender.run(oracle(), LIKE[:2], seed=3, first=3).x
    assert distance(whole[3:5], part) < 1e-6
    assert distance(whole, contender.run(oracle(), LIKE, seed=4, first=0).x) > 0.1


@pytest.mark.parametrize("contender", NOISY[:3], ids=lambda c: c.scheduler)
def test_the_noise_is_of_the_right_size(contender):
    """On Gaussian data with the steps of the whole table, the spread is that of the data."""
    model = GaussianMixture(TABLE, torch.zeros(1, 1), 0.5)
    contender = contender.within(250, model)
    x = contender.run(model, torch.empty(1500, 1), seed=3, first=0).x
    assert float(x.std()) == pytest.approx(0.5, rel=0.07)


# Thresholding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["DDIM", "DDPM", "DEIS", "DPMSolverMultistep", "SASolver", "UniPC"])
def test_thresholding_takes_vectors_as_it_takes_images(name):
    means = MEANS.repeat(1, 2)
    vectors, images = (GaussianMixture(TABLE, means.reshape(3, *shape), 0.2) for shape in ((4,), (1, 2, 2)))
    contender = Diffusers(name, {"thresholding": True, "sample_max_value": 0.5}).within(8, vectors)
    of_vectors = contender.run(vectors, torch.empty(6, 4, dtype=torch.float64), seed=7, first=0).x
    of_images = contender.run(images, torch.empty(6, 1, 2, 2, dtype=torch.float64), seed=7, first=0).x
    assert distance(of_vectors, of_images.flatten(1)) < 1e-6
    plain = Diffusers(name).within(8, vectors).run(vectors, torch.empty(6, 4, dtype=torch.float64), seed=7, first=0).x
    assert distance(of_vectors, plain) > 0.1


# In a study -----------------------------------------------------------------------------------------------------------


def test_all_libraries_in_one_study(tmp_path):
    methods = {
        "DDIM": DDIM,
        "diffusers": Diffusers("UniPC", {"solver_order": 3}),
        "torchdiffeq": Torchdiffeq("rk4", LogSNR(1)),
        "torchsde": Torchsde("srk", LogSNR(1)),
        "not for this process": Diffusers("FlowMatchEuler"),
    }
    study = Study(oracle(), methods, FlowError(), shape=(20, 2), budgets=(8, 32), seeds=(0, 1))
    report = study.run(tmp_path / "rows.jsonl", batch=8)
    errors = {method: [report.entries[method, budget].mean for budget in (8, 32)] for method in list(methods)[:3]}
    assert all(late < 0.6 * early for early, late in errors.values())
    assert {report.entries[method, 32].nfe for method in list(methods)[:4]} == {32}
    (error,) = set(report.entries["not for this process", 8].errors)
    assert "FlowMatchEuler is not made for VP" in error
    draws = [row for row in report.rows if row["kind"] == "draw" and row["method"] == "diffusers"]
    assert all(row["sampler"]["library"].startswith("diffusers ") for row in draws)


CONTENDERS = [*map(given, SCHEDULERS), Torchdiffeq("rk4"), Torchsde("srk")]


@pytest.mark.parametrize("contender", CONTENDERS, ids=lambda c: getattr(c, "scheduler", type(c).__name__))
def test_they_are_values(contender):
    assert Value.from_json(contender.to_json()) == contender
    assert contender.describe().items() >= contender.to_json().items()


# What cannot be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Diffusers("DPMSolverMultistp"), "Did you mean DPMSolverMultistep"),
        (lambda: Diffusers("UniPC", {"order": 3}).within(5, oracle()), "no option 'order'. Did you mean solver_order"),
        (lambda: Diffusers("Euler").within(5, oracle(SIGMAS)), "these are: CosineDPMSolver, EDMDPMSolver, EDMEuler"),
        (lambda: Diffusers("EDMEuler").within(5, oracle(FLOW)), "these are: FlowMatchEuler, FlowMatchHeun"),
        (lambda: Diffusers("Heun").within(0, oracle()), "Raise the budget"),
        (lambda: Torchdiffeq("rk5"), "Did you mean rk4"),
        (lambda: Torchdiffeq("rk4").within(3, oracle()), "Raise the budget"),
        (lambda: Torchdiffeq("dopri5", batch=0), "at least 1; got a batch of 0"),
        (lambda: Torchsde("srkk"), "Did you mean srk"),
        (lambda: Torchsde("srk", eta=0.0), "eta > 0"),
        (lambda: Torchsde("srk").within(1, oracle()), "Raise the budget"),
    ],
)
def test_what_cannot_be_is_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[bench\]"'):
        Diffusers("DDIM").within(5, oracle())
