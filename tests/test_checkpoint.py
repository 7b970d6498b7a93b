"""Checkpoints: what is loaded is what was saved, at whatever moment the machine stopped, or it is an error."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import sdekit
import sdekit.nets
from sdekit import (
    EDM,
    VP,
    X0,
    ByTime,
    Cosine,
    Denoiser,
    Discrete,
    Eps,
    FromDrift,
    Preconditioned,
    RectifiedFlow,
    Score,
    V,
    Velocity,
)
from sdekit.nets import MLP
from sdekit.training import LogNormal, MinSNR, Objective, Recipe, Trainer, load, save


class Tiny(nn.Module):
    """A network for points in the plane, with what a file must keep: tied weights, a buffer, dropout, labels."""

    def __init__(self, width: int = 8, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = {"width": width, "dropout": dropout}
        self.label = nn.Embedding(4, width)
        self.inward, self.outward = nn.Linear(3, width), nn.Linear(width, 2)
        self.middle, self.again = nn.Linear(width, width), nn.Linear(width, width)
        self.again.weight = self.middle.weight
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("scale", torch.ones(2))

    def forward(self, x, t, label=None):
        h = self.inward(torch.cat([x, t[:, None]], 1))
        h = h if label is None else h + self.label(label)
        h = self.dropout(torch.tanh(self.again(torch.tanh(self.middle(h)))))
        return self.outward(h) * self.scale


def tiny(seed: int = 0, **config) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tiny(**config)


def denoiser(seed: int = 0, **config) -> Denoiser:
    return Denoiser(tiny(seed, **config), VP(), predicts=Eps())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def same(a: nn.Module, b: nn.Module) -> bool:
    mine, other = a.state_dict(), b.state_dict()
    return mine.keys() == other.keys() and all(
        torch.equal(mine[name], other[name]) and mine[name].dtype == other[name].dtype for name in mine
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "model.safetensors"


# There and back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("predicts", [X0(), Eps(), Score(), V(), Velocity(), Preconditioned(0.3)], ids=str)
@pytest.mark.parametrize(
    "process", [VP(beta_max=12.0), Cosine(), EDM(), Discrete.linear(20)], ids=lambda p: type(p).__name__
)
def test_a_model_comes_back_equal(path, process, predicts):
    model = Denoiser(tiny(3, width=5), process, predicts=predicts)
    save(path, model)
    back = load(path, net=Tiny)
    assert (back.process, back.predicts, back.clock) == (model.process, model.predicts, model.clock)
    assert same(back, model)
    x = normal(4, 2)
    assert torch.equal(back(x, 0.4).answer, model(x, 0.4).answer)
    assert not back.training


def test_what_sdekit_has_needs_no_help(path):
    with torch.random.fork_rng():
        net = MLP((2,), hidden=8, depth=1)
    save(path, Denoiser(net, RectifiedFlow(), predicts=Velocity(), clock=ByTime(1000.0)))
    back = load(path)
    assert isinstance(back.net, MLP)
    assert back.clock == ByTime(1000.0)
    assert same(back.net, net)


def test_a_network_without_config_is_built_by_a_function(path):
    with torch.random.fork_rng():
        first, second = (nn.Sequential(nn.Flatten(), nn.Linear(2, 2)) for _ in range(2))
    save(path, Denoiser(first, VP(), predicts=Eps()))
    assert same(load(path, net=lambda: second).net, first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes_stay(path, dtype):
    model = denoiser().to(dtype)
    model.net.outward.float()
    save(path, model)
    assert same(load(path, net=Tiny), model)


def test_tied_weights_stay_tied(path):
    save(path, denoiser())
    net = load(path, net=Tiny).net
    assert net.again.weight is net.middle.weight


def test_a_model_on_a_device_is_loaded_on_the_cpu(path, device):
    save(path, denoiser().to(device))
    assert same(load(path, net=Tiny), denoiser())


def test_the_header_and_the_file_beside_say_what_it_is(path):
    save(path, denoiser())
    beside = json.loads((path.parent / "model.safetensors.json").read_text())
    assert beside["process"] == VP().to_json()
    assert beside["net"] == {"class": "Tiny", "config": {"width": 8, "dropout": 0.0}}
    assert beside["sdekit"] == sdekit.__version__
    header = path.read_bytes()[8 : 8 + int.from_bytes(path.read_bytes()[:8], "little")]
    assert json.loads(json.loads(header)["__metadata__"]["sdekit"]) == beside
    assert torch.equal(load_file(path)["model/net.scale"], torch.ones(2))
    (path.parent / "model.safetensors.json").unlink()
    assert same(load(path, net=Tiny), denoiser())


def test_nothing_else_is_left_behind(path):
    save(path, denoiser())
    save(path, denoiser(1))
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.safetensors", "model.safetensors.json"]


# Going on ------------------------------------------------------------------------------------------------------------


def shuffled():
    return normal(50, 2), torch.arange(50) % 4


def made(step):
    return normal(16, 2, seed=step), {"label": torch.arange(16) % 4}


@pytest.mark.parametrize("batches", [shuffled(), made], ids=["tensors", "function"])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(path, batches, ema):
    recipe = Recipe(20, batch=16, lr=1e-2, warmup=12, final=0.1, weight_decay=0.1, clip=0.5, ema=ema)

    def fresh():
        return Trainer(denoiser(dropout=0.3), batches, recipe, Objective(MinSNR(), LogNormal()), seed=7)

    whole, stopped = fresh(), fresh()
    losses = [p.loss.item() for p in whole]
    for _ in itertools.islice(stopped, 8):
        pass
    stopped.save(path)
    del stopped
    resumed = Trainer.load(path, batches, net=Tiny)
    assert (resumed.step, resumed.seed, resumed.recipe, resumed.objective) == (8, 7, recipe, whole.objective)
    assert [p.loss.item() for p in resumed] == losses[8:]
    assert same(resumed.model, whole.model)
    assert same(resumed.average, whole.average)
    for p, q in zip(whole.optimizer.state.values(), resumed.optimizer.state.values(), strict=True):
        assert p.keys() == q.keys()
        assert all(torch.equal(p[k], q[k]) for k in p)


def test_a_training_not_begun_is_resumed_too(path):
    trainer = Trainer(denoiser(), shuffled(), Recipe(3, batch=16))
    trainer.save(path)
    resumed = Trainer.load(path, shuffled(), net=Tiny)
    assert [p.loss.item() for p in resumed] == [p.loss.item() for p in trainer]


def test_frozen_parameters_stay_frozen(path):
    model = denoiser()
    model.net.inward.requires_grad_(False)
    trainer = Trainer(model, shuffled(), Recipe(4, batch=16))
    trainer.advance()
    trainer.save(path)
    resumed = Trainer.load(path, shuffled(), net=Tiny)
    assert not resumed.model.net.inward.weight.requires_grad
    assert resumed.model.net.outward.weight.requires_grad
    assert resumed.advance().loss == trainer.advance().loss


def test_a_trainers_file_loads_as_its_averaged_model(path, device):
    trainer = Trainer(denoiser().to(device), shuffled(), Recipe(5, batch=16, lr=1e-2))
    for _ in trainer:
        pass
    trainer.save(path)
    back = load(path, net=Tiny)
    assert same(back, trainer.average.cpu())
    assert not same(back, trainer.model.cpu())
    assert Trainer.load(path, shuffled(), Tiny, device).model.net.scale.device.type == device.type


def test_a_models_file_is_no_trainer(path):
    save(path, denoiser())
    with pytest.raises(ValueError, match=r"must be saved by a trainer.*it holds a model"):
        Trainer.load(path, shuffled(), net=Tiny)


# What cannot be saved or loaded --------------------------------------------------------------------------------------


def test_an_unknown_network_is_named(path, monkeypatch):
    save(path, denoiser())
    monkeypatch.setattr(sdekit.nets, "Tinny", Tiny, raising=False)
    with pytest.raises(ValueError, match=r"is a 'Tiny'.*Did you mean Tinny\?.*pass net=Tiny"):
        load(path)


def test_weights_that_do_not_fit_are_named(path):
    save(path, denoiser())
    with pytest.raises(ValueError, match=r"(?s)must fit the network Tiny.*size mismatch"):
        load(path, net=lambda **config: tiny(width=4))
    with pytest.raises(ValueError, match=r"(?s)must fit the network Linear.*Missing key"):
        load(path, net=lambda **config: tiny().outward)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Denoiser(lambda x, t: x, VP(), predicts=Eps()), "an nn.Module has weights to store"),
        (
            Denoiser(tiny(), FromDrift(rate=lambda t: -t, noise=lambda t: 1 + t), predicts=V()),
            "FromDrift holds <function",
        ),
        (Denoiser(tiny(width=torch.tensor(8)), VP(), predicts=Eps()), "Tensor is not JSON serializable"),
    ],
    ids=["net", "process", "config"],
)
def test_what_cannot_be_stored_is_refused(path, model, message):
    with pytest.raises(TypeError, match=message):
        save(path, model)
    assert not path.exists()


def test_the_name_tells_the_format(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .safetensors; got 'model.pt'"):
        save(tmp_path / "model.pt", denoiser())


def test_weights_that_are_not_finite_are_not_saved(path):
    save(path, denoiser())
    model = denoiser(1)
    with torch.no_grad():
        model.net.outward.bias[1] = torch.inf
    with pytest.raises(ValueError, match=r"must hold finite numbers; model/net.outward.bias does not"):
        save(path, model)
    assert same(load(path, net=Tiny), denoiser())


def test_a_missing_file_is_missing(path):
    with pytest.raises(FileNotFoundError, match=r"model.safetensors"):
        load(path)


def test_a_file_cut_short_is_damaged(path):
    save(path, denoiser())
    content = path.read_bytes()
    for length in [0, 7, 8, 9, 500, *range(1000, len(content), 211), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(
            ValueError, match=r"model.safetensors must be a whole checkpoint; it cannot be read.*earlier one"
        ):
            load(path, net=Tiny)


def test_a_changed_byte_is_noticed(path):
    save(path, denoiser())
    content = path.read_bytes()
    for place in range(0, len(content), 37):
        changed = bytearray(content)
        changed[place] ^= 0x11
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=r"must be a whole checkpoint|must be a checkpoint written by sdekit"):
            load(path, net=Tiny)


def test_other_peoples_safetensors_are_told_apart(path):
    path.parent.mkdir()
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"must be a checkpoint written by sdekit; it holds tensors only"):
        load(path)


def test_a_format_of_the_future_is_refused(path, monkeypatch):
    monkeypatch.setattr("sdekit.training.checkpoint.FORMAT", 2)
    save(path, denoiser())
    monkeypatch.setattr("sdekit.training.checkpoint.FORMAT", 1)
    with pytest.raises(ValueError, match=r"was written by sdekit .* Upgrade"):
        load(path, net=Tiny)


# When writing fails --------------------------------------------------------------------------------------------------


class FullDisk:
    """A file on a full disk, which takes some bytes and then no more."""

    def __init__(self, path, mode):
        self.path = Path(path)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def write(self, content):
        self.path.write_bytes(content[: len(content) // 2])
        full()


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted(*args, **kwargs):
    raise KeyboardInterrupt


@pytest.mark.parametrize("place", ["open", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(path, monkeypatch, place):
    save(path, denoiser())
    old = {p.name: p.read_bytes() for p in path.parent.iterdir()}
    with monkeypatch.context() as patch:
        if place == "open":
            module = sys.modules["sdekit.training.checkpoint"]
            patch.setattr(module, "open", FullDisk, raising=False)
        else:
            patch.setattr(os, place, full)
        with pytest.raises(
            OSError, match=r"must be written whole.*No space left on device.*untouched. Free some space"
        ):
            save(path, denoiser(1))
    assert {p.name: p.read_bytes() for p in path.parent.iterdir()} == old
    assert same(load(path, net=Tiny), denoiser())


def test_an_interrupt_leaves_the_old_file(path, monkeypatch):
    save(path, denoiser())
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save(path, denoiser(1))
    assert len(list(path.parent.iterdir())) == 2
    assert same(load(path, net=Tiny), denoiser())


def test_what_killed_saves_left_is_swept_away(path):
    save(path, denoiser())
    old, others, new = (
        path.with_name(n) for n in (".model.safetensors.1a", ".other.safetensors.1a", ".model.safetensors.2b")
    )
    for left in (old, others, new):
        left.write_text("half a checkpo")
    os.utime(old, (0, 0))
    os.utime(others, (0, 0))
    os.utime(new, (2e9, 2e9))  # another process may be writing it
    save(path, denoiser())
    assert [p.exists() for p in (old, others, new)] == [False, True, True]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"must be written whole.*save elsewhere"):
        save(tmp_path / "file" / "model.safetensors", denoiser())


KILLED = """
import os, random, signal, sys, time
import torch
from torch import nn
from sdekit import VP, Denoiser, Eps
from sdekit.training import load, save

class Filled(nn.Module):
    def __init__(self, k=0):
        super().__init__()
        self.config = {"k": k}
        self.weight = nn.Parameter(torch.full((300_000,), float(k)))

path, kills = sys.argv[1], int(sys.argv[2])
save(path, Denoiser(Filled(), VP(), predicts=Eps()))
chance, last, caught = random.Random(0), 0, 0
for _ in range(kills):
    child = os.fork()
    if child == 0:
        for k in range(last + 1, last + 10_000):
            save(path, Denoiser(Filled(k), VP(), predicts=Eps()))
    time.sleep(chance.uniform(0.01, 0.2))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    net = load(path, net=Filled).net
    k = net.config["k"]
    assert k >= last and bool((net.weight == k).all()), (k, last)
    caught += any(name.startswith(".") for name in os.listdir(os.path.dirname(path)))  # the next saves sweep it away
    last = k
print(last, caught)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_whenever_it_is_killed_the_last_good_checkpoint_loads(tmp_path, kills):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "model.safetensors"), str(kills)]
    run = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, cwd=Path(__file__).parents[1]
    )
    assert run.returncode == 0, run.stderr
    saves, caught_in_the_act = map(int, run.stdout.split())
    assert saves > 0
    if kills >= 100:
        assert caught_in_the_act > 0
