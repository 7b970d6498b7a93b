"""Checkpoints: what is loaded is what was saved, at whatever moment the machine stopped, or it is an error."""

from __future__ import annotations

import copy
import errno
import itertools
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

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
from sdekit.denoiser import MeanAndVariance, Single
from sdekit.guidance.classifier import NoisyClassifier
from sdekit.nets import MLP, UNet
from sdekit.nets.unet import Stage
from sdekit.training import LogNormal, MinSNR, Objective, Recipe, Trainer, load, save
from sdekit.training.checkpoint import configuration, read, write
from sdekit.training.classifier import CrossEntropy
from sdekit.training.folder import Checkpoints
from sdekit.training.pretrained import from_pretrained, save_pretrained
from sdekit.training.second_moment import LossSecondMoment


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


def test_what_a_law_has_learned_is_resumed(path):
    objective = Objective(times=LossSecondMoment(bins=4, history=2))
    whole, stopped = (Trainer(denoiser(), shuffled(), Recipe(12, batch=16), objective) for _ in range(2))
    losses = [p.loss.item() for p in whole]
    for _ in itertools.islice(stopped, 6):
        pass
    stopped.save(path)
    resumed = Trainer.load(path, shuffled(), net=Tiny)
    assert [p.loss.item() for p in resumed] == losses[6:]
    again = Trainer(denoiser(1), shuffled(), Recipe(12, batch=16), objective)
    again.restore(path)
    for name, buffer in stopped.loss.state_dict().items():
        assert torch.equal(again.loss.state_dict()[name], buffer)
    assert any(name.startswith("learner") and bool(t.any()) for name, t in again.loss.state_dict().items())


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_loader_goes_on_where_it_stopped(path, shuffle):
    """Even one that shuffles by torch's global generator, which is seeded anew for every step."""

    def fresh():
        loader = DataLoader(TensorDataset(*shuffled()), batch_size=16, shuffle=shuffle)
        return Trainer(denoiser(dropout=0.3), loader, Recipe(11, lr=1e-2))

    whole, stopped, resumed = fresh(), fresh(), fresh()
    losses = [p.loss.item() for p in whole]
    for _ in itertools.islice(stopped, 6):
        pass
    stopped.save(path)
    resumed.advance()
    resumed.restore(path)
    assert [p.loss.item() for p in resumed] == losses[6:]
    assert same(resumed.average, whole.average)


def test_data_made_by_the_global_generator_are_resumed(path):
    def fresh():
        return Trainer(denoiser(), lambda step: torch.randn(8, 2), Recipe(6))

    whole, stopped, resumed = fresh(), fresh(), fresh()
    losses = [p.loss.item() for p in whole]
    for _ in itertools.islice(stopped, 2):
        pass
    stopped.save(path)
    resumed.restore(path)
    assert [p.loss.item() for p in resumed] == losses[2:]


def test_a_training_may_be_made_longer_but_not_another(path):
    def trainer(seed=0, objective=Objective(), process=VP(), **recipe):
        model = Denoiser(tiny(), process, predicts=Eps())
        return Trainer(model, shuffled(), Recipe(**{"steps": 3, "batch": 16, **recipe}), objective, seed)

    trained = trainer()
    for _ in trained:
        pass
    trained.save(path)
    longer = trainer(steps=5)
    longer.restore(path)
    assert (longer.step, len(longer)) == (3, 2)
    for name, other in {
        "seed": trainer(seed=1),
        "recipe": trainer(lr=0.1),
        "objective": trainer(objective=Objective(MinSNR())),
        "process": trainer(process=Cosine()),
    }.items():
        before = [t.clone() for t in other.model.state_dict().values()]
        with pytest.raises(ValueError, match=rf"must hold the training asked for.*its {name} is"):
            other.restore(path)
        assert other.step == 0
        assert all(map(torch.equal, before, other.model.state_dict().values()))


def test_fine_tuning_is_a_new_training_of_a_stored_model(path):
    trainer = Trainer(denoiser(), shuffled(), Recipe(20, batch=16, lr=1e-2))
    for _ in trainer:
        pass
    trainer.save(path)
    tuned = Trainer(load(path, net=Tiny), normal(50, 2, seed=3), Recipe(10, batch=16, lr=1e-3), seed=1)
    assert tuned.step == 0
    assert same(tuned.model, trainer.average)
    for _ in tuned:
        pass
    assert not same(tuned.model, trainer.average)


def test_a_classifier_is_trained_stored_and_resumed(path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [nn.Linear(2, 4) for _ in range(3)]

    class Logits(nn.Module):
        def __init__(self, layer=None):
            super().__init__()
            self.layer = layer or nets[2]

        def forward(self, x, t):
            return self.layer(x)

    x0 = normal(50, 2)
    data = x0, (x0[:, 0] > 0).long()

    def fresh():
        model = NoisyClassifier(Logits(copy.deepcopy(nets[0])), VP(), ByTime(10.0))
        return Trainer(model, data, Recipe(9, batch=50, lr=0.1), CrossEntropy())

    whole, stopped = fresh(), fresh()
    losses = [p.loss.item() for p in whole]
    assert losses[-1] < 0.8 * losses[0]
    for _ in itertools.islice(stopped, 4):
        pass
    stopped.save(path)
    resumed = Trainer.load(path, data, net=Logits, kind=NoisyClassifier)
    assert [p.loss.item() for p in resumed] == losses[4:]
    resumed.save(path)
    back = load(path, net=Logits, kind=NoisyClassifier)
    assert same(back, whole.average)
    assert (back.process, back.clock) == (VP(), ByTime(10.0))
    with pytest.raises(ValueError, match=r"must be a Denoiser; it is a 'NoisyClassifier'. Pass kind=NoisyClassifier"):
        load(path, net=Logits)


def test_a_network_with_a_learned_variance_comes_back(path):
    with torch.random.fork_rng():
        model = Denoiser(MLP((2,), hidden=8, depth=1, heads=2), VP(), predicts=Eps(), head=MeanAndVariance())
    save(path, model)
    assert load(path).head == MeanAndVariance()
    config, sections = read(path)
    write(path, {name: value for name, value in config.items() if name != "head"}, sections)
    assert load(path).head == Single()


# A folder of checkpoints ---------------------------------------------------------------------------------------------


def trained(folder: Path, steps: int, keep: int = 2) -> tuple[Trainer, Checkpoints]:
    checkpoints = Checkpoints(folder, keep)
    trainer = Trainer(denoiser(dropout=0.3), shuffled(), Recipe(9, batch=16, lr=1e-2))
    checkpoints.resume(trainer)
    for _ in itertools.islice(trainer, steps):
        checkpoints.save(trainer)
    return trainer, checkpoints


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name[5:14]) for path in folder.glob("step-*.safetensors"))


def test_the_last_checkpoints_are_kept_and_found(tmp_path):
    _, checkpoints = trained(tmp_path, 5)
    assert steps_in(tmp_path) == [4, 5]
    assert checkpoints.newest() == tmp_path / "step-000000005.safetensors"
    assert [p.name[5:14] for p in checkpoints.paths()] == ["000000005", "000000004"]
    resumed, _ = trained(tmp_path, 3)
    alone, _ = trained(tmp_path / "alone", 8)
    assert resumed.step == 8
    assert same(resumed.average, alone.average)
    assert len(list(tmp_path.glob("step-*"))) == 4  # two, and their configurations


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b[:-9] + b"\x11" + b[-8:]])
def test_a_torn_checkpoint_is_passed_over(tmp_path, damage):
    trained(tmp_path, 5)
    newest = tmp_path / "step-000000005.safetensors"
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match=r"passed over for an older one: .*step-000000005.*whole checkpoint"):
        again, _ = trained(tmp_path, 0)
    assert again.step == 4
    with pytest.warns(UserWarning, match="passed over"):
        again, _ = trained(tmp_path, 2)
    assert steps_in(tmp_path) == [5, 6]
    alone, _ = trained(tmp_path / "alone", 6)
    assert same(again.average, alone.average)


def test_an_empty_folder_is_a_beginning(tmp_path):
    assert Checkpoints(tmp_path / "none").newest() is None
    trainer = Trainer(denoiser(), shuffled(), Recipe(2, batch=16))
    assert Checkpoints(tmp_path / "none").resume(trainer) is None
    assert trainer.step == 0
    assert not (tmp_path / "none").exists()
    with pytest.raises(ValueError, match="got keep=0"):
        Checkpoints(tmp_path, keep=0)


def test_other_files_in_the_folder_stay(tmp_path):
    others = ["notes.txt", "step-1.safetensors", ".step-000000001.safetensors", "step-000000001.safetensors.bak"]
    for name in others:
        (tmp_path / name).write_text("mine")
    left = tmp_path / ".step-000000001.safetensors.0123abcd"
    left.write_text("half a checkpo")
    os.utime(left, (0, 0))
    trained(tmp_path, 4, keep=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [*others, "step-000000004.safetensors", "step-000000004.safetensors.json"]
    )


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_full_disk_costs_no_checkpoint(tmp_path, monkeypatch, place):
    trainer, checkpoints = trained(tmp_path, 2, keep=1)
    trainer.advance()
    with monkeypatch.context() as patch:
        patch.setattr(os, place, full)
        with pytest.raises(OSError, match="No space left on device"):
            checkpoints.save(trainer)
    assert steps_in(tmp_path) == [2]
    assert checkpoints.newest() == tmp_path / "step-000000002.safetensors"
    checkpoints.save(trainer)
    assert steps_in(tmp_path) == [3]


def test_a_folder_that_is_read_only_keeps_what_it_has(tmp_path, monkeypatch):
    trainer, checkpoints = trained(tmp_path, 2)
    trainer.advance()

    def refused(path, mode):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:  # for root may write where nobody may
        patch.setattr(sys.modules["sdekit.training.checkpoint"], "open", refused, raising=False)
        with pytest.raises(OSError, match=r"must be written whole.*Permission denied"):
            checkpoints.save(trainer)
    assert steps_in(tmp_path) == [1, 2]
    assert checkpoints.newest() == tmp_path / "step-000000002.safetensors"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_a_training_killed_again_and_again_ends_where_one_in_peace_does(tmp_path, kills):
    script = Path(__file__).parent / "scripts" / "killed.py"
    root = str(Path(__file__).parents[1])
    run = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(kills)],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert all(int(struck) > 0 for struck in run.stdout.split())


# Two files in a folder -----------------------------------------------------------------------------------------------


def test_a_pretrained_model_comes_back_equal(tmp_path):
    model = Denoiser(tiny(3, width=5), EDM(), predicts=Preconditioned(0.3))
    save_pretrained(tmp_path / "it", model)
    assert sorted(p.name for p in (tmp_path / "it").iterdir()) == ["config.json", "model.safetensors"]
    for back in (from_pretrained(tmp_path / "it", net=Tiny), load(tmp_path / "it" / "model.safetensors", net=Tiny)):
        assert same(back, model)
        assert (back.process, back.predicts, back.clock) == (model.process, model.predicts, model.clock)
    config = json.loads((tmp_path / "it" / "config.json").read_text())
    assert config["net"] == {"class": "Tiny", "config": {"width": 5, "dropout": 0.0}}
    assert set(load_file(tmp_path / "it" / "model.safetensors")) == set(model.state_dict())


@pytest.mark.parametrize("build", [lambda: MLP((2,), 8, 1), lambda: UNet(1, (Stage(8), Stage(16)), classes=3)])
def test_networks_of_sdekit_are_rebuilt_by_their_class(tmp_path, build):
    with torch.random.fork_rng():
        net = build()
    save_pretrained(tmp_path, Denoiser(net, VP(), predicts=Eps()))
    assert same(from_pretrained(tmp_path).net, net)


def test_a_folder_of_links_is_one_too(tmp_path):
    """As a cache of models lays them out: names that link to files named by their content."""
    save_pretrained(tmp_path / "blobs", denoiser())
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to(Path("..") / "blobs" / name)
    assert same(from_pretrained(tmp_path / "snapshot", net=Tiny), denoiser())


def test_weights_written_by_others_are_read_by_the_configuration(tmp_path):
    save_pretrained(tmp_path, denoiser())
    save_file(load_file(tmp_path / "model.safetensors"), tmp_path / "model.safetensors")
    assert same(from_pretrained(tmp_path, net=Tiny), denoiser())
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config.json"):
        from_pretrained(tmp_path, net=Tiny)


def test_a_configuration_that_is_not_the_weights_own_is_told_of(tmp_path, monkeypatch):
    save_pretrained(tmp_path, denoiser())
    calls = []

    def second_fails(*paths):
        calls.append(paths)
        return full() if len(calls) == 2 else replace(*paths)

    replace = os.replace
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", second_fails)  # the new weights are there, the new configuration is not
        with pytest.raises(OSError, match="No space left"):
            save_pretrained(tmp_path, Denoiser(tiny(), Cosine(), predicts=V()))
    with pytest.warns(UserWarning, match=r"config.json is not what model.safetensors was saved with"):
        assert from_pretrained(tmp_path, net=Tiny).process == Cosine()


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a folder with model.safetensors in it"):
        from_pretrained(tmp_path)


# Files that mean harm ------------------------------------------------------------------------------------------------


class Harm:
    """An object that, when it is unpickled, leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("dump", [pickle.dumps, lambda harm: b"\x80\x04" + pickle.dumps(harm)])
def test_a_pickle_is_refused_and_not_run(tmp_path, dump):
    mark = tmp_path / "mark"
    (tmp_path / "model.safetensors").write_bytes(dump(Harm(mark)))
    for read_it in (load, Trainer.load):
        with pytest.raises(ValueError, match="must be a whole checkpoint; it cannot be read"):
            read_it(tmp_path / "model.safetensors", *([shuffled()] if read_it is not load else []))
    with pytest.raises(ValueError, match="must be a whole checkpoint; it cannot be read"):
        from_pretrained(tmp_path)
    torch.save(Harm(mark), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must be a whole checkpoint; it cannot be read"):
        from_pretrained(tmp_path)
    assert not mark.exists()


def sealed(path: Path, change) -> None:
    """Store a changed configuration under the right fingerprint, as only somebody who means it can."""
    save(path, denoiser())
    config, sections = read(path)
    write(path, change(config), sections)


HARMFUL = {
    "class": (lambda c: {**c, "net": {"class": "os.system", "config": {"command": "true"}}}, "is a 'os.system'"),
    "builtin": (lambda c: {**c, "net": {"class": "eval", "config": {}}}, "is a 'eval'"),
    "path": (lambda c: {**c, "net": {"class": "../../nets", "config": {}}}, "is a '../../nets'"),
    "kind": (lambda c: {**c, "model": "os.system"}, "must be a Denoiser; it is a 'os.system'"),
    "process": (lambda c: {**c, "process": {"type": "os.system", "command": "true"}}, "known type; got 'os.system'"),
    "base": (lambda c: {**c, "process": {"type": "Process"}}, "is a kind of such types"),
    "field": (lambda c: {**c, "process": {**c["process"], "__class__": 1}}, "no field '__class__'"),
    "value": (lambda c: {**c, "process": {**c["process"], "beta_min": "a"}}, "must be what builds one"),
    "other": (lambda c: {**c, "clock": c["process"]}, "JSON of a Clock"),
    "list": (lambda c: [c], "configuration"),
    "config": (lambda c: {**c, "net": {"class": "MLP", "config": "x"}}, "configuration"),
    "argument": (lambda c: {**c, "net": {"class": "MLP", "config": {"command": "x"}}}, "must be what builds one"),
    "missing": (lambda c: {k: v for k, v in c.items() if k != "process"}, "configuration"),
    "format": (lambda c: {**c, "format": "new"}, "configuration"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_configuration_that_means_harm_is_refused(path, name):
    change, message = HARMFUL[name]
    sealed(path, change)
    with pytest.raises(ValueError, match=message):
        load(path, net=Tiny if name in ("process", "base", "field", "value", "other") else None)


def test_a_configuration_nested_without_end_is_refused(path):
    deep = {"format": 1, "net": {"class": "MLP", "config": {}}, "process": {}}
    text = json.dumps(deep)[:-1] + ', "x": ' + "[" * 100_000 + "]" * 100_000 + "}"
    with pytest.raises(ValueError, match="its configuration cannot be read"):
        configuration(path, text)


def test_names_of_tensors_are_no_paths(path):
    save(path, denoiser())
    config, sections = read(path)
    write(path, config, {**sections, "../../etc": {"../passwd": torch.zeros(1)}})
    assert same(load(path, net=Tiny), denoiser())
    assert sorted(p.name for p in path.parent.parent.rglob("*")) == [
        "model.safetensors",
        "model.safetensors.json",
        "runs",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"training": "yes"},
        {"training": {"step": 1}},
        {"training": {"step": "1", "seed": 0, "recipe": {}, "objective": {}, "trained": []}},
        {"training": {"step": 1, "seed": 0, "recipe": {"type": "VP"}, "objective": {}, "trained": []}},
    ],
    ids=str,
)
def test_a_training_that_makes_no_sense_is_refused(path, change):
    Trainer(denoiser(), shuffled(), Recipe(3, batch=16)).save(path)
    config, sections = read(path)
    write(path, {**config, **change}, sections)
    with pytest.raises(ValueError, match=r"how far a training went|Expected the JSON of a Recipe"):
        Trainer.load(path, shuffled(), net=Tiny)


@pytest.mark.parametrize("section", ["average", "model", "adamw.exp_avg"])
def test_tensors_of_another_training_are_refused(path, section):
    trainer = Trainer(denoiser(), shuffled(), Recipe(3, batch=16))
    trainer.advance()
    trainer.save(path)
    config, sections = read(path)
    name = next(iter(sections[section]))
    write(path, config, {**sections, section: {**sections[section], name: torch.zeros(3, 3, 3)}})
    with pytest.raises(ValueError, match=r"must have the (tensors|shape)"):
        trainer.restore(path)


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
