"""Training: one loss that is every loss, laws of the times, a loop that can be stopped anywhere."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from strategies import TARGETS, VIEWS, Exact, agree, column, drawn_process, normal, number, shapes, times
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from sdekit import (
    EDM,
    VE,
    VP,
    X0,
    ByTime,
    Cosine,
    Denoiser,
    Discrete,
    Eps,
    Preconditioned,
    RectifiedFlow,
    SubVP,
    V,
    Velocity,
)
from sdekit._value import Value
from sdekit.training import (
    Likelihood,
    LogNormal,
    MinSNR,
    Objective,
    On,
    OnOutput,
    Recipe,
    TimeLaw,
    Trainer,
    UniformLogSNR,
    UniformTimes,
    load,
    train,
)
from sdekit.training.batches import Shuffled, key
from sdekit.training.devices import Accelerated, OneDevice
from sdekit.training.dropout import Dropout
from sdekit.training.loss import Loss
from sdekit.training.second_moment import LossSecondMoment
from sdekit.training.times import usual_times

PROCESSES = [VP(), SubVP(), VE(), EDM(), RectifiedFlow(), Cosine(), Discrete.linear(100)]
WEIGHTS = [OnOutput(), On(Eps()), On(Velocity()), Likelihood(), MinSNR()]
LAWS = st.one_of(st.just(UniformTimes()), st.just(UniformLogSNR()), st.builds(LogNormal, number(-2, 1), number(0.5, 2)))
TWO_POINTS = torch.tensor([[1.0, 0.5], [-1.0, -0.5]]).repeat(32, 1)


class Tiny(nn.Module):
    """A network for points in the plane, with what training may meet: dropout, a buffer, labels."""

    def __init__(self, width: int = 16, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = {"width": width, "dropout": dropout}
        self.label = nn.Embedding(4, width)
        self.inward, self.outward = nn.Linear(3, width), nn.Linear(width, 2)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x, t, label=None):
        h = self.inward(torch.cat([x, t[:, None]], 1))
        h = h if label is None else h + self.label(label)
        if self.training:
            self.calls += 1
        return self.outward(self.dropout(torch.tanh(h)))


def answering(process, predicts):
    """Return the model that answers with `answer`, where that target says anything about x0."""
    assume(predicts.gain(process, process.t_max).isfinite())
    return Denoiser(answer, process, predicts=predicts)


def tiny(seed: int = 0, **config) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny(**config)


def denoiser(seed: int = 0, **config) -> Denoiser:
    return Denoiser(tiny(seed, **config), VP(), predicts=Eps())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def answer(x, t):
    """Return what a network might say, smooth and of size one."""
    return torch.cos(2 * x) + column(t, x).sin() * x


def drawn(process, x0, law=None, seed=0):
    """Return the t and eps that an objective draws, as the tests understand it."""
    source = generator(seed)
    t = (law or usual_times(process)).sample(process, len(x0), source)
    return t, torch.randn(x0.shape, dtype=x0.dtype, generator=source)


def per_sample(error):
    return error.square().reshape(len(error), -1).mean(1)


# The loss ------------------------------------------------------------------------------------------------------------


@drawn_process
def test_velocity_on_its_output_is_flow_matching(process, draw):
    x0 = normal(*draw(shapes()))
    t, eps = drawn(process, x0, UniformTimes())
    alpha, sigma, alpha_rate, sigma_rate = (
        column(c, x0) for c in (process.alpha(t), process.sigma(t), *process.rates(t))
    )
    model = answering(process, Velocity())
    expected = per_sample(answer(alpha * x0 + sigma * eps, t) - (alpha_rate * x0 + sigma_rate * eps))
    agree(Objective(times=UniformTimes()).each(model, x0, generator()), expected, 1e-12)


def test_on_the_straight_path_it_is_the_papers():
    x0, process = normal(8, 2), RectifiedFlow()
    t, eps = drawn(process, x0)
    s = t[:, None]
    model = Denoiser(answer, process, predicts=Velocity())
    expected = per_sample(answer((1 - s) * x0 + s * eps, t) - (eps - x0))
    agree(Objective().each(model, x0, generator()), expected, 1e-12)


@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_preconditioned_on_edm_is_the_papers(sigma_data):
    y, process = normal(64, 2), EDM()
    sigma, eps = drawn(process, y, LogNormal(-1.2, 1.2))
    s = sigma[:, None]
    total = s**2 + sigma_data**2
    net = answer((y + s * eps) / total.sqrt(), sigma.log() / 4)
    denoised = sigma_data**2 / total * (y + s * eps) + s * sigma_data / total.sqrt() * net
    expected = total[:, 0] / (sigma * sigma_data) ** 2 * per_sample(denoised - y)
    model = Denoiser(lambda x, t: -answer(x, t), process, predicts=Preconditioned(sigma_data))
    got = Objective().each(model, y, generator())
    flipped = Denoiser(answer, process, predicts=Preconditioned(sigma_data))
    agree(
        torch.minimum((got / expected - 1).abs(), (Objective().each(flipped, y, generator()) / expected - 1).abs()), 0
    )


@drawn_process
def test_the_error_on_any_target_is_the_error_of_that_view(process, draw):
    x0, measured = normal(*draw(shapes())), draw(st.sampled_from(VIEWS))
    model = answering(process, draw(TARGETS))
    t, eps = drawn(process, x0, UniformTimes())
    view = model(process.perturb(x0, t, eps), t).view(measured)
    expected = per_sample(view - measured.of(process, t, x0, eps))
    agree(Objective(On(measured), UniformTimes()).each(model, x0, generator()), expected, 1e-5)


@drawn_process
def test_likelihood_is_half_g_squared_on_the_score(process, draw):
    x0 = normal(5, 2)
    model = answering(process, draw(TARGETS))
    t, eps = drawn(process, x0, UniformTimes())
    score = model(process.perturb(x0, t, eps), t).score
    expected = process.g2(t) / 2 * per_sample(score + eps / process.sigma(t)[:, None])
    agree(Objective(Likelihood(), UniformTimes()).each(model, x0, generator()), expected, 1e-5)


@drawn_process
def test_min_snr_caps_the_weight_of_x0(process, draw):
    x0, gamma = normal(5, 2), draw(number(0.1, 10))
    model = answering(process, draw(TARGETS))
    t, eps = drawn(process, x0, UniformTimes())
    weight = (process.alpha(t) / process.sigma(t)).square().clamp(max=gamma)
    expected = weight * per_sample(model(process.perturb(x0, t, eps), t).x0 - x0)
    agree(Objective(MinSNR(gamma), UniformTimes()).each(model, x0, generator()), expected, 1e-5)


@drawn_process
def test_likelihood_over_time_is_noise_prediction_over_lam(process, draw):
    t, predicts = draw(times(process, 4)), draw(TARGETS)
    lo, hi = process.lam(process.t_max), process.lam(process.t_min)
    density = UniformLogSNR().density(process, t) * (hi - lo)
    agree(On(Eps())(process, predicts, t) * density / Likelihood()(process, predicts, t), 1, 1e-6)


class Ends(TimeLaw):
    """The times t_min and t_max, half of the batch each."""

    def cdf(self, process, t):
        return (t > process.t_min).double()

    def quantile(self, process, u):
        t_min, t_max = torch.tensor([process.t_min, process.t_max], dtype=torch.float64)
        return torch.where(u < 0.5, t_min, t_max)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_losses_are_finite_at_the_ends(process, weight):
    for predicts in VIEWS:
        model = Denoiser(answer, process, predicts=predicts)
        assert Objective(weight, Ends()).each(model, normal(8, 2), generator()).isfinite().all()


@pytest.mark.parametrize("predicts", [X0(), V(), Velocity(), Preconditioned()], ids=str)
def test_losses_are_finite_where_alpha_and_sigma_vanish(predicts):
    model = Denoiser(answer, RectifiedFlow(t_min=0.0, t_max=1.0), predicts=predicts, clock=ByTime())
    weights = [OnOutput(), On(X0()), MinSNR()]
    if predicts != X0():  # whose error says nothing about the noise where there is none
        weights += [On(V()), On(Velocity()), On(Eps())]
    for weight in weights:
        assert Objective(weight, Ends()).each(model, normal(8, 2), generator()).isfinite().all()


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_the_truth_minimises_it(process, weight):
    x0 = 0.7 + 0.5 * normal(20_000, 1)
    objective = Objective(weight, UniformLogSNR())
    best = objective(Exact(process, Eps()), x0, generator(1))
    for wrong in ({"mean": 0.9}, {"mean": 0.5}, {"std": 0.65}, {"std": 0.4}):
        assert best < objective(Exact(process, Eps(), **wrong), x0, generator(1))


def test_the_loss_is_the_mean_over_samples():
    model, x0 = denoiser(), normal(16, 2)
    each = Objective().each(model, x0, generator())
    assert each.shape == (16,)
    agree(Objective()(model, x0, generator()), each.mean(), 1e-14)
    assert Objective()(model, x0, generator()).requires_grad


def test_conditions_reach_the_network():
    model, x0, label = denoiser(), normal(6, 2), torch.arange(6) % 4
    direct = Objective()(model, x0, generator(), label=label)
    assert direct != Objective()(model, x0, generator())
    assert direct == Objective()(model.given(label=label), x0, generator())


def test_a_wrapped_model_has_a_loss():
    class Wrapped(nn.Module):  # as DistributedDataParallel does, which needs a process group
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    model, x0 = denoiser(), normal(6, 2)
    assert Objective()(Wrapped(model), x0, generator()) == Objective()(model, x0, generator())


def test_a_float32_network_on_float64_data_and_back(device):
    model = denoiser().to(device)
    for dtype in (torch.float32, torch.float64):
        loss = Objective()(model, normal(6, 2).to(device, dtype), generator())
        assert loss.dtype == dtype
        assert loss.device.type == device.type
        loss.backward()


@pytest.mark.parametrize("x0", [torch.zeros(3, 2, dtype=torch.uint8), torch.zeros(0, 2), torch.tensor(1.0)])
def test_what_is_no_batch_is_refused(x0):
    with pytest.raises(ValueError, match=r"batch of floating-point samples.*got.*127.5"):
        Objective()(denoiser(), x0, generator())


def test_gamma_must_be_positive():
    with pytest.raises(ValueError, match="gamma must be positive"):
        MinSNR(0.0)


# The times -----------------------------------------------------------------------------------------------------------


@drawn_process
def test_times_lie_within_and_laws_invert(process, draw):
    law, n, seed = draw(LAWS), draw(st.integers(1, 40)), draw(st.integers(0, 99))
    try:
        t = law.sample(process, n, generator(seed))
    except ValueError as error:
        assert "must have noise levels" in str(error)  # noqa: PT017 (LogNormal, on a short process)
        return
    assert t.shape == (n,)
    assert t.dtype == torch.float64
    assert ((t >= process.t_min) & (t <= process.t_max)).all()
    u = draw(st.lists(number(0.001, 0.999), min_size=3, max_size=3))
    agree(law.cdf(process, law.quantile(process, torch.tensor(u, dtype=torch.float64))), u, 1e-6)


@drawn_process
def test_a_batch_takes_one_time_from_every_slice(process, draw):
    law, n = draw(st.sampled_from([UniformTimes(), UniformLogSNR()])), draw(st.integers(1, 40))
    places = law.cdf(process, law.sample(process, n, generator(draw(st.integers(0, 99))))) * n
    agree(places.sort().values.sub(torch.arange(n) + 0.5).abs().clamp(min=0.5), 0.5, 1e-5)


@drawn_process
def test_density_is_the_derivative_of_the_law(process, draw):
    law, u, h = draw(LAWS), torch.tensor(draw(number(0.05, 0.95)), dtype=torch.float64), 1e-4
    try:
        t, wider = law.quantile(process, u), law.quantile(process, u + h) - law.quantile(process, u - h)
    except ValueError:
        return
    agree(law.density(process, t) * wider / (2 * h), 1, 2e-3 if "betas" in repr(process) else 1e-4)


def first_times(law, process, count=4000):
    """Return the time of the first sample of many batches: independent draws, as every sample sees them."""
    source = generator(1)
    return torch.stack([law.sample(process, 5, source)[0] for _ in range(count)])


def test_the_laws_are_what_they_say():
    t = first_times(UniformTimes(), VP())
    assert stats.kstest(t, stats.uniform(1e-3, 1 - 1e-3).cdf).pvalue > 0.01
    lam = VP().lam(first_times(UniformLogSNR(), VP()))
    lo, hi = float(VP().lam(1.0)), float(VP().lam(1e-3))
    assert stats.kstest(lam, stats.uniform(lo, hi - lo).cdf).pvalue > 0.01


@pytest.mark.parametrize("process", [EDM(), RectifiedFlow(), VP(t_min=0.1, t_max=0.6)], ids=lambda p: type(p).__name__)
def test_log_normal_is_restricted_not_clamped(process):
    t = first_times(LogNormal(-0.8, 1.1), process)
    lo, hi = (float(-process.lam(end)) for end in (process.t_min, process.t_max))
    law = stats.truncnorm((lo + 0.8) / 1.1, (hi + 0.8) / 1.1, loc=-0.8, scale=1.1)
    assert stats.kstest(-process.lam(t), law.cdf).pvalue > 0.01
    assert ((t > process.t_min) & (t < process.t_max)).all()


def test_on_the_straight_path_log_normal_is_logit_normal():
    t = first_times(LogNormal(0.0, 1.0), RectifiedFlow(t_min=0.0, t_max=1.0))
    assert stats.kstest(t.logit(), stats.norm.cdf).pvalue > 0.01


def test_the_usual_law_of_edm_is_karras():
    assert usual_times(EDM()) == LogNormal(-1.2, 1.2)
    assert usual_times(VP()) == UniformTimes()


def test_laws_say_what_does_not_fit():
    with pytest.raises(ValueError, match="std must be positive"):
        LogNormal(std=0.0)
    with pytest.raises(ValueError, match=r"must have noise levels.*ranges from -4\.56.*Set mean within"):
        LogNormal(mean=-40.0).sample(VP(), 2, generator())
    with pytest.raises(ValueError, match=r"lam must be finite.*Raise t_min"):
        UniformLogSNR().sample(RectifiedFlow(t_min=0.0), 2, generator())


# The loop ------------------------------------------------------------------------------------------------------------


def states(trainer):
    """Return all that a trainer's future depends on."""
    return [*trainer.model.state_dict().values(), *trainer.average.state_dict().values(), torch.tensor(trainer.step)]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(states(a), states(b), strict=True))


@pytest.mark.parametrize(
    ("process", "predicts"), [(VP(), Eps()), (RectifiedFlow(), Velocity()), (EDM(), Preconditioned())], ids=str
)
def test_training_lowers_the_loss(process, predicts, device):
    model = Denoiser(tiny(), process, predicts=predicts).to(device)
    losses = [p.loss for p in Trainer(model, TWO_POINTS, Recipe(300, batch=64, lr=1e-2))]
    assert torch.stack(losses[-50:]).mean() < 0.7 * torch.stack(losses[:10]).mean()


def test_train_returns_the_averaged_model():
    model = denoiser()
    average = train(model, TWO_POINTS, steps=5, lr=1e-2, seed=3)
    trainer = Trainer(denoiser(), TWO_POINTS, Recipe(5, lr=1e-2), seed=3)
    assert [p.step for p in trainer] == [1, 2, 3, 4, 5]
    assert torch.equal(average.net.inward.weight, trainer.average.net.inward.weight)
    assert torch.equal(model.net.inward.weight, trainer.model.net.inward.weight)
    assert not average.training
    assert not average.net.inward.weight.requires_grad


def test_it_is_a_bare_loop():
    model, data = denoiser().double(), normal(100, 2)
    bare = copy.deepcopy(model)
    trainer = Trainer(model, data, Recipe(6, batch=100, lr=1e-2, weight_decay=0.1), seed=1)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(6):
        x0 = data[torch.randperm(100, generator=generator(key(1, "epoch", step)))]
        loss = Objective()(bare, x0, generator(key(1, step)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        agree(trainer.advance().loss, loss.detach(), 1e-12)
    agree(model.net.outward.weight.detach(), bare.net.outward.weight.detach(), 1e-12)


def test_the_average_follows_its_recursion():
    trainer = Trainer(denoiser().double(), TWO_POINTS.double(), Recipe(30, lr=1e-2, ema=0.6))
    expected = [p.detach().clone() for p in trainer.model.parameters()]
    for k, _ in enumerate(trainer):
        decay = min(0.6, (1 + k) / (10 + k))
        for mean, p in zip(expected, trainer.model.parameters(), strict=True):
            mean.mul_(decay).add_((1 - decay) * p.detach())
    assert decay == 0.6
    for mean, p in zip(expected, trainer.average.parameters(), strict=True):
        agree(p, mean, 1e-12)
    assert trainer.average.net.calls == trainer.model.net.calls == 30


def test_without_an_average_the_model_is_its_own():
    trainer = Trainer(denoiser(), TWO_POINTS, Recipe(2, ema=0.0))
    assert trainer.average is trainer.model
    assert [p.step for p in trainer] == [1, 2]


def test_everything_follows_from_the_seed():
    def run(seed):
        trainer = Trainer(denoiser(dropout=0.5), TWO_POINTS, Recipe(4, batch=8), seed=seed)
        return trainer, [p.loss.item() for p in trainer]

    before = torch.random.get_rng_state()
    first, losses = run(0)
    torch.rand(())  # whatever others draw makes no difference
    second, again = run(0)
    torch.random.set_rng_state(before)
    assert losses == again
    assert same(first, second)
    assert losses != run(1)[1]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_stopped_training_goes_on():
    whole, stopped = (Trainer(denoiser(), TWO_POINTS, Recipe(7, batch=8)) for _ in range(2))
    for _ in whole:
        pass
    for _ in itertools.islice(stopped, 3):
        pass
    assert (stopped.step, len(stopped)) == (3, 4)
    assert [p.step for p in tqdm(stopped, disable=True)] == [4, 5, 6, 7]
    assert same(whole, stopped)
    assert len(stopped) == 0
    assert list(stopped) == []


def test_progress_costs_nothing_until_it_is_read():
    progress = Trainer(denoiser(), TWO_POINTS, Recipe(3, lr=0.5)).advance()
    assert isinstance(progress.loss, torch.Tensor)
    assert not progress.loss.requires_grad
    assert (progress.step, progress.lr) == (1, 0.5)


def test_the_losses_of_any_step_can_be_asked_for():
    trainer = Trainer(denoiser(dropout=0.5), TWO_POINTS, Recipe(3, batch=8, lr=1e-9))
    seen = [p.loss for p in trainer]
    for step, loss in enumerate(seen):
        assert trainer.losses(step).shape == (8,)
        agree(trainer.losses(step).mean().detach(), loss, 1e-5)


def test_the_rate_warms_up_and_decays():
    recipe = Recipe(100, lr=2.0, warmup=10, final=0.1)
    assert recipe.rate(0) == pytest.approx(0.2, rel=1e-3)
    assert recipe.rate(9) == pytest.approx(2 * (0.1 + 0.9 * (0.5 + 0.5 * math.cos(0.09 * math.pi))))
    assert recipe.rate(50) == pytest.approx(2 * 0.55)
    assert recipe.rate(99) == pytest.approx(0.2, rel=1e-2)
    assert {Recipe(100, lr=2.0).rate(k) for k in range(100)} == {2.0}


@dataclass(frozen=True)
class Halving(Value):
    """A rate that halves every so many steps."""

    every: int = 2

    def __call__(self, step):
        return 0.5 ** (step // self.every)


def test_a_rate_of_ones_own_is_followed_and_stored(tmp_path):
    recipe = Recipe(6, lr=Halving(2), warmup=2, ema=0.0)
    trainer = Trainer(denoiser(), TWO_POINTS, recipe)
    assert [p.lr for p in trainer] == [0.5, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert trainer.optimizer.param_groups[0]["lr"] == 0.25
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    with pytest.raises(TypeError, match=r"Recipe holds <function.*named subclass"):
        Trainer(denoiser(), TWO_POINTS, Recipe(6, lr=lambda step: 0.1)).save(tmp_path / "model.safetensors")


def test_a_loss_in_a_loop_of_ones_own_trains_like_the_trainer():
    """As Lightning and Fabric call it: a module, any optimiser, nothing of the trainer."""
    data, labels = normal(64, 2), torch.arange(64) % 4
    objective = Objective(MinSNR(), LossSecondMoment(bins=4, history=1), Dropout(0.25, none=3))
    trainer = Trainer(denoiser().double(), (data, labels), Recipe(8, batch=16, lr=1e-2, ema=0.0), objective, seed=2)
    loss = Loss(denoiser().double(), objective)
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-2, weight_decay=0.0)
    batches = Shuffled((data, labels), 16, seed=2)
    loss.train()
    for step, progress in enumerate(trainer):
        x0, label = batches(step)
        noising = loss.draw(x0, generator(key(2, step)))
        losses = loss(x0, noising, label=label)
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        loss.observe(noising, losses)
        agree(progress.loss, losses.mean().detach(), 1e-12)
    for name, t in loss.state_dict().items():
        agree(trainer.loss.state_dict()[name], t, 1e-12)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adagrad, torch.optim.RAdam])
def test_a_loss_trains_by_any_optimiser_and_draws_of_its_own(kind):
    loss = Loss(denoiser())
    optimizer = kind(loss.parameters(), lr=0.05)
    seen = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(150):
            mean = loss(TWO_POINTS).mean()
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
            seen.append(mean.item())
    assert sum(seen[-30:]) < 0.9 * sum(seen[:30])


@pytest.fixture
def accelerate():
    """The library, with nothing left of what others have set in it."""
    library = pytest.importorskip("accelerate")
    library.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield library
    library.state.AcceleratorState._reset_state(reset_partial_state=True)


def test_accelerate_on_one_device_changes_nothing(accelerate):
    plain, other = (
        Trainer(denoiser(dropout=0.5), TWO_POINTS, Recipe(5, batch=16, lr=1e-2, clip=0.1), devices=devices)
        for devices in (OneDevice(), Accelerated(accelerate.Accelerator(cpu=True)))
    )
    assert [p.loss for p in plain] == [p.loss for p in other]
    assert same(plain, other)


def test_mixed_precision_of_accelerate_is_torchs(accelerate):
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    own, theirs = (
        Trainer(denoiser(), TWO_POINTS, Recipe(5, batch=16, lr=1e-2), devices=devices)
        for devices in (OneDevice(precision=torch.bfloat16), Accelerated(accelerator))
    )
    full = Trainer(denoiser(), TWO_POINTS, Recipe(5, batch=16, lr=1e-2))
    for one, other, exact in zip(own, theirs, full, strict=True):
        agree(one.loss, other.loss, 1e-3)
        assert one.loss != exact.loss


def test_what_batches_draw_from_the_global_generator_follows_from_the_seed():
    def augmented(step):
        return TWO_POINTS[:8] + 0.1 * torch.randn(8, 2)

    def losses(seed):
        torch.rand(())
        return [p.loss.item() for p in Trainer(denoiser(), augmented, Recipe(4), seed=seed)]

    state = torch.random.get_rng_state()
    first = losses(0)
    assert losses(0) == first != losses(1)
    torch.random.set_rng_state(state)


def test_gradients_are_clipped():
    trainer = Trainer(denoiser(), TWO_POINTS, Recipe(1, clip=1e-3))
    trainer.advance()
    firsts = [s["exp_avg"].flatten() for s in trainer.optimizer.state.values()]
    assert float(torch.cat(firsts).norm()) == pytest.approx(1e-4, rel=1e-2)  # Adam's (1 - 0.9) times the gradient


def test_frozen_parameters_stay():
    model = denoiser()
    model.net.inward.requires_grad_(False)
    frozen = model.net.inward.weight.clone()
    train(model, TWO_POINTS, steps=2)
    assert torch.equal(model.net.inward.weight, frozen)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"warmup": 9},
        {"final": 2.0},
        {"weight_decay": -1.0},
        {"clip": 0.0},
        {"ema": 1.0},
    ],
    ids=str,
)
def test_a_recipe_says_what_is_wrong_with_it(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"must hold; got {name}={value!r}"):
        Recipe(**{"steps": 8, **wrong})


def test_a_model_without_parameters_is_refused():
    with pytest.raises(ValueError, match="must have parameters that require a gradient"):
        Trainer(Denoiser(answer, VP(), predicts=Eps()), TWO_POINTS, Recipe(1))


def poisoned(step):
    """Return batches of which one holds a NaN."""
    x0 = normal(8, 2, seed=step).float()
    if step == 3:
        x0[5, 1] = math.nan
    return x0


def test_a_loss_that_is_not_finite_is_reported_before_it_does_harm(tmp_path):
    trainer = Trainer(denoiser(), poisoned, Recipe(6))
    good = Trainer(denoiser(), poisoned, Recipe(3))
    for _ in good:
        pass
    with pytest.raises(FloatingPointError, match=r"at step 3 it is nan.*lower lr.*trainer.losses\(3\)"):
        for _ in trainer:
            pass
    for p, expected in zip(trainer.model.parameters(), good.model.parameters(), strict=True):
        assert torch.equal(p, expected)
    assert (~trainer.losses(3).isfinite()).nonzero().flatten().tolist() == [5]
    trainer.save(tmp_path / "still-good.safetensors")


@pytest.mark.parametrize("patience", [2, 4, 50])
def test_on_an_accelerator_it_is_reported_later_but_nothing_bad_is_saved(tmp_path, patience):
    path = tmp_path / "model.safetensors"
    trainer = Trainer(denoiser(), poisoned, Recipe(8))
    trainer._patience = patience  # as if looking at a loss took time
    for progress in itertools.islice(trainer, 3):
        assert progress.loss.isfinite()
    trainer.save(path)
    with pytest.raises(FloatingPointError, match="at step 3 it is nan"):
        for _ in trainer:
            pass
    assert trainer.step == min(3 + patience - 1, 8)
    with pytest.raises(ValueError, match="finite"):
        trainer.save(path)
    assert load(path, net=Tiny).net.outward.weight.isfinite().all()


# The batches ---------------------------------------------------------------------------------------------------------


@given(n=st.integers(1, 12), size=st.integers(1, 30), seed=st.integers(0, 9))
def test_every_sample_comes_once_an_epoch(n, size, seed):
    trainer = Trainer(denoiser(), torch.arange(2.0 * n).reshape(n, 2), Recipe(9, batch=size), seed=seed)
    rows = torch.cat([trainer._batch(k)[0] for k in range(2 * n)])[:, 0] / 2
    assert len(rows) == 2 * n * size
    for epoch in rows.reshape(-1, n):
        assert sorted(epoch.tolist()) == list(range(n))
    assert torch.equal(trainer._batch(1)[0][:, 0] / 2, rows[size : 2 * size])  # and in any order


class Told(nn.Module):
    """A network that remembers what it was told."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, x, t, **condition):
        self.seen.append({"n": len(x), **condition})
        return x * self.weight


def told(batches, steps=4, **recipe):
    net = Told()
    train(Denoiser(net, VP(), predicts=Eps()), batches, steps, **recipe)
    return net.seen


def test_labels_go_with_their_samples():
    data = torch.arange(10.0)[:, None]
    trainer = Trainer(denoiser(), (data, torch.arange(10)), Recipe(5, batch=4))
    for k in range(5):
        x0, label = trainer._batch(k)
        assert torch.equal(x0[:, 0].long(), label)
    (seen, *_) = told((data, torch.arange(10)), batch=4)
    assert seen["label"].shape == (4,)


def test_batches_of_any_kind():
    x0, y = normal(6, 2).float(), torch.arange(6)
    assert [s["n"] for s in told([x0, x0[:2]])] == [6, 2, 6, 2]
    assert [s["n"] for s in told(lambda k: x0[: k + 1])] == [1, 2, 3, 4]
    assert torch.equal(told([(x0, y)], 1)[0]["label"], y)
    assert told([(x0, {"text": "a cat"})], 1) == [{"n": 6, "text": "a cat"}]
    loader = DataLoader(TensorDataset(x0, y), batch_size=4, generator=generator())
    assert [s["n"] for s in told(loader, 3)] == [4, 2, 4]
    assert [s["n"] for s in told(DataLoader(TensorDataset(x0), batch_size=4, generator=generator()), 3)] == [4, 2, 4]


def test_batches_that_do_not_fit_are_refused():
    x0 = normal(6, 2)
    with pytest.raises(ValueError, match=r"as many labels; got lengths \[6, 4\]"):
        told((x0, torch.arange(4)))
    with pytest.raises(ValueError, match=r"got lengths \[0\]"):
        told(x0[:0])
    with pytest.raises(TypeError, match=r"must come as batches; TensorDataset.*DataLoader"):
        told(TensorDataset(x0))
    with pytest.raises(ValueError, match=r"a batch for every step; at step 2"):
        told(iter([x0, x0]))
    with pytest.raises(TypeError, match=r"A batch must be a tensor x0.*got dict"):
        told([{"image": x0}])
    with pytest.raises(TypeError, match=r"got tuple of \['Tensor', 'Tensor', 'Tensor'\]"):
        told([(x0, x0, x0)])
