"""How a training goes: held-out losses by noise level, the noise of its gradient, and who is told."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from strategies import Exact, agree
from torch import nn
from torch.func import functional_call, jacrev
from tqdm import tqdm

from sdekit import EDM, VP, Denoiser, Eps, GaussianMixture, sample
from sdekit.metrics import FrechetDistance
from sdekit.process import Process
from sdekit.training import Objective, Recipe, Trainer, UniformTimes
from sdekit.training.batches import key
from sdekit.training.devices import Accelerated
from sdekit.training.loss import Loss
from sdekit.training.noise_scale import NoiseScale, noise_scale
from sdekit.training.validation import Validation
from sdekit.training.watched import Watched


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 8)
        self.inward, self.outward, self.dropout = nn.Linear(3, 8), nn.Linear(8, 2), nn.Dropout(0.5)

    def forward(self, x, t, label=None):
        h = self.inward(torch.cat([x, t[:, None]], 1))
        h = h if label is None else h + self.label(label)
        return self.outward(self.dropout(torch.tanh(h)))


def denoiser(process: Process = VP()) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(Net().double(), process, predicts=Eps())


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The loss by noise level ----------------------------------------------------------------------------------------------


def truth(process: Process, std: float, low: float, high: float) -> float:
    """Return the mean over uniform t in [low, high] of the least error of eps, for data N(0.7, std^2)."""
    t = torch.linspace(low, high, 2001, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    return float((alpha**2 * std**2 / (alpha**2 * std**2 + sigma**2)).mean())


class Module(nn.Module):
    """An oracle as a module."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.process = oracle, oracle.process

    def forward(self, x, t):
        return self.oracle(x, t)


def test_the_levels_hold_the_true_loss_within_their_errors():
    data = 0.7 + 0.5 * normal(20_000, 1)
    model = Module(Exact(VP(), Eps()))
    levels = Validation(data, Objective(times=UniformTimes()), levels=5)(model)
    assert [level.samples for level in levels] == [4000] * 5
    for level in levels:
        assert abs(level.loss - truth(VP(), 0.5, level.low, level.high)) < 4 * level.error
        assert level.error < 0.03 * level.loss + 0.01
    assert all(a.high < b.low for a, b in itertools.pairwise(levels))


def test_the_errors_are_how_far_other_noise_leads():
    data, model = 0.7 + 0.5 * normal(400, 1), Module(Exact(VP(), Eps()))
    runs = [Validation(data, Objective(times=UniformTimes()), levels=2, seed=seed)(model) for seed in range(60)]
    for found in zip(*runs, strict=True):
        spread = torch.tensor([level.loss for level in found]).std()
        stated = torch.tensor([level.error for level in found]).mean()
        assert 0.65 < spread / stated < 1.35


def test_a_validation_is_the_same_every_time_and_in_any_batches():
    model, data = denoiser(), (normal(50, 2), torch.arange(50) % 4)
    model.net.inward.eval()
    first = Validation(data, repeats=2)(model)
    assert Validation(data, repeats=2)(model) == first
    for level, other in zip(first, Validation(data, repeats=2, batch=7)(model), strict=True):
        agree(torch.tensor(level), torch.tensor(other), 1e-12)
    assert Validation(data, repeats=2, seed=1)(model) != first
    assert Validation(data[0], repeats=2)(model) != first  # the labels matter
    assert model.training
    assert model.net.dropout.training
    assert not model.net.inward.training
    assert all(p.grad is None for p in model.parameters())


def test_the_mean_is_that_of_the_levels():
    validation, model = Validation(normal(64, 2), levels=4), denoiser()
    mean = validation.mean(model)
    agree(mean.loss, sum(level.loss for level in validation(model)) / 4, 1e-12)
    assert mean.samples == 64


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"repeats": 0}, {"batch": 0}, {"levels": 6}], ids=str)
def test_a_validation_says_what_is_wrong(wrong):
    with pytest.raises(ValueError, match=r"every level needs 2 samples.*10 samples|must be positive"):
        Validation(normal(10, 2), **wrong)


# The noise of the gradient --------------------------------------------------------------------------------------------


def direct(loss: Loss, data: torch.Tensor, size: int, steps: int) -> tuple[float, float]:
    """Return tr(Sigma) and |G|^2 from the gradient of every sample."""
    names = {name: p.detach() for name, p in loss.named_parameters()}
    trace, squared = 0.0, 0.0

    for step in range(steps):
        x0 = data[step * size : (step + 1) * size]
        noising = loss.draw(x0, torch.Generator().manual_seed(key(0, "noise scale", step)))
        each = jacrev(lambda values: functional_call(loss, values, (x0, noising)))(names)  # noqa: B023 (used at once)
        g = torch.cat([value.reshape(size, -1) for value in each.values()], 1)
        variance = g.var(0).sum()
        trace += float(variance) / steps
        squared += float(g.mean(0).square().sum() - variance / size) / steps
    return trace, squared


def smooth() -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2)).double()

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t):
            return self.net(x)

    return Denoiser(Plain(), VP(), predicts=Eps())


def test_the_noise_scale_is_that_of_the_gradients_of_samples():
    loss, data = Loss(smooth(), Objective(times=UniformTimes())), normal(64, 2)
    found = noise_scale(loss, lambda step: data[step * 16 : (step + 1) * 16], pieces=16, steps=4)
    trace, squared = direct(loss, data, 16, 4)
    agree(found.trace, trace, 1e-10)
    agree(found.squared, squared, 1e-10)
    agree(found.batch, trace / squared, 1e-8)


def test_the_noise_scale_of_pieces_is_right_on_average():
    loss, data = Loss(smooth(), Objective(times=UniformTimes())), 1.0 + 0.3 * normal(64 * 200, 2)
    found = noise_scale(loss, lambda step: data[step * 64 : (step + 1) * 64], pieces=4, steps=200)
    trace, squared = direct(loss, data, 64, 200)
    assert found.trace == pytest.approx(trace, rel=0.1)
    assert found.squared == pytest.approx(squared, rel=0.1)
    assert found.batch == pytest.approx(trace / squared, rel=0.15)


def test_the_noise_scale_leaves_the_training_alone():
    trainer = Trainer(denoiser(), (normal(64, 2), torch.arange(64) % 4), Recipe(2, batch=16))
    trainer.advance()
    before = copy.deepcopy([p.grad for p in trainer.trained.values()])
    with torch.random.fork_rng():
        found = noise_scale(trainer.loss, (normal(64, 2), torch.arange(64) % 4), size=16, steps=2)
    assert found.trace > 0
    for p, expected in zip(trainer.trained.values(), before, strict=True):
        assert torch.equal(p.grad, expected)


def test_a_gradient_that_is_all_noise_has_no_scale():
    assert NoiseScale(3.0, -1e-9).batch == math.inf
    assert NoiseScale(3.0, 2.0).batch == 1.5


@pytest.mark.parametrize(("pieces", "steps"), [(1, 2), (3, 2), (32, 2), (4, 0)])
def test_a_noise_scale_says_what_is_wrong(pieces, steps):
    with pytest.raises(ValueError, match=r"2 or more equal pieces; got 16 samples|at least one batch"):
        noise_scale(Loss(smooth()), normal(64, 2), size=16, pieces=pieces, steps=steps)


# Who is told ----------------------------------------------------------------------------------------------------------


def training(steps: int = 7) -> Trainer:
    return Trainer(denoiser(EDM()), normal(64, 2), Recipe(steps, batch=16, lr=1e-3))


def test_the_log_gets_means_and_what_checks_say():
    told, trainer = [], training()
    validation = Validation(normal(32, 2), levels=2)
    checks = {"held out": validation, "parameters": lambda model: sum(p.numel() for p in model.parameters())}
    watched = Watched(trainer, lambda values, step: told.append((step, values)), 3, checks, check_every=5)
    assert len(watched) == 7
    losses = [progress.loss for progress in tqdm(watched, disable=True)]
    assert [step for step, _ in told] == [3, 5, 6, 7, 7]
    by_step = {(step, "train/loss" in values): values for step, values in told}
    agree(by_step[6, True]["train/loss"], torch.stack(losses[3:6]).mean(), 1e-6)
    assert by_step[7, True]["train/lr"] == 1e-3
    last = by_step[7, False]
    levels = validation(trainer.average)
    assert last == {
        "check/held out": pytest.approx((levels[0].loss + levels[1].loss) / 2),
        "check/held out/0": levels[0].loss,
        "check/held out/1": levels[1].loss,
        "check/parameters": sum(p.numel() for p in trainer.model.parameters()),
    }


def test_watching_changes_nothing():
    alone, watched = training(), training()
    checks = {"loss": Validation(normal(32, 2), levels=2), "distance": distance}
    for _ in alone:
        pass
    for _ in Watched(watched, lambda values, step: None, 1, checks, check_every=1):
        pass
    for p, q in zip(alone.average.parameters(), watched.average.parameters(), strict=True):
        assert torch.equal(p, q)


def distance(model: Denoiser) -> float:
    """Return the Frechet distance of samples from N(0, I)."""
    return FrechetDistance(None, normal(200, 2))(sample(model, (200, 2)))


def test_a_frechet_distance_is_a_check():
    told = []
    for _ in Watched(training(2), lambda values, step: told.append(values), checks={"distance": distance}):
        pass
    assert told[-1]["check/distance"] > 0
    truth = GaussianMixture(VP(), torch.zeros(1, 2, dtype=torch.float64), 1.0)
    assert told[-1]["check/distance"] > distance(truth)


@pytest.mark.uses_global_rng  # accelerate's trackers name their files at random
def test_trackers_of_accelerate_are_logs(tmp_path):
    accelerate = pytest.importorskip("accelerate")
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = accelerate.Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("points")
    trainer = Trainer(denoiser(EDM()), normal(64, 2), Recipe(6, batch=16), devices=Accelerated(accelerator))
    losses = [p.loss for p in Watched(trainer, accelerator.log, 2, {"loss": Validation(normal(32, 2), levels=2)})]
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "points")).Reload()
    found = {event.step: event.value for event in events.Scalars("train/loss")}
    assert found == {step: pytest.approx(float(losses[step - 2] + losses[step - 1]) / 2) for step in (2, 4, 6)}
    assert [event.step for event in events.Scalars("check/loss/1")] == [6]


def test_steps_between_logs_are_positive():
    with pytest.raises(ValueError, match=r"must be positive; got every=0"):
        Watched(training(), print, every=0)
