"""Many processes: what they train and sample together is what one would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from strategies import agree
from torch import Tensor, nn

from sdekit import VP, Denoiser, Eps, GaussianMixture, sample
from sdekit.methods import DDPM
from sdekit.process import Process
from sdekit.sample import share
from sdekit.study.claims import STALE
from sdekit.training import Recipe, Trainer
from sdekit.training.devices import Accelerated, Devices, OneDevice, Sharded

ROOT = Path(__file__).parents[1]
SCRIPT = str(ROOT / "tests" / "scripts" / "ranks.py")


def run(*command: str) -> None:
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


# Many processes, with FSDP's in the same start, for that is what takes the time ---------------------------------------


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What one process finds, and what two find, in pieces."""
    pytest.importorskip("accelerate")
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    run(sys.executable, SCRIPT, str(one), "1")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    run(sys.executable, *launcher, SCRIPT, str(two), "2")
    return load_file(one / "found.safetensors"), load_file(two / "found.safetensors")


@pytest.mark.parametrize("prefix", ["", "fsdp "], ids=["DDP", "FSDP"])
@pytest.mark.parametrize("what", ["gradient", "losses", "model", "average", "adamw", "drawn"])
def test_two_ranks_are_one_process(found, prefix, what):
    alone, together = found
    names = [name for name in alone if name.split()[0].startswith(what)]
    assert names
    for name in names:
        assert torch.count_nonzero(alone[name]) > 0
        agree(together[prefix + name], alone[name], 1e-9)


def test_a_set_sampled_by_two_ranks_is_the_set_sampled_by_one(found):
    alone, together = found
    assert alone["set"].shape == (22, 2)
    assert torch.equal(alone["set"], together["set"])


# Shares ---------------------------------------------------------------------------------------------------------------


@given(n=st.integers(0, 60), batch=st.integers(1, 9), ranks=st.integers(1, 7))
def test_shares_make_the_set_in_the_same_batches(n, batch, ranks):
    alone = list(share(n, batch))
    assert [i for rows in alone for i in rows] == list(range(n))
    assert all(0 < len(rows) <= batch for rows in alone)
    shares = [list(share(n, batch, rank, ranks)) for rank in range(ranks)]
    assert [rows for part in shares for rows in part] == alone
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_share_of_a_rank_there_is_not_is_refused():
    for wrong in ({"n": -1}, {"batch": 0}, {"rank": 2}, {"rank": -1}):
        with pytest.raises(ValueError, match="0 <= rank < ranks must hold"):
            list(share(**{"n": 4, "batch": 2, "rank": 0, "ranks": 2, **wrong}))


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_samples_do_not_depend_on_their_batch(batch):
    model = GaussianMixture(VP(), torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64), 0.1)
    whole = sample(model, (7, 2), DDPM, seed=5)
    parts = [sample(model, (len(rows), 2), DDPM, seed=5, first=rows.start) for rows in share(7, batch)]
    agree(torch.cat(parts), whole, 1e-12)


# Rows and pieces ------------------------------------------------------------------------------------------------------


class Ranked(Devices):
    """One of many ranks, alone in its process."""

    def __init__(self, rank: int, ranks: int, pieces: int) -> None:
        self.rank, self.ranks, self.pieces = rank, ranks, pieces


@given(batch=st.integers(1, 40), ranks=st.integers(1, 5), pieces=st.integers(1, 5))
def test_every_row_is_computed_once(batch, ranks, pieces):
    if batch < ranks:
        with pytest.raises(ValueError, match=f"a sample for every rank; got {batch} for {ranks} ranks"):
            Ranked(0, ranks, pieces).rows(batch)
        return
    rows = [Ranked(rank, ranks, pieces).rows(batch) for rank in range(ranks)]
    assert [i for part in rows for piece in part for i in range(batch)[piece]] == list(range(batch))
    assert all(1 <= len(part) <= pieces for part in rows)
    assert all(range(batch)[piece] for part in rows for piece in part)


class Net(nn.Module):
    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 8)
        self.inward, self.outward = nn.Linear(3, 8), nn.Linear(8, 2)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, t, label=None):
        h = self.inward(torch.cat([x, t[:, None]], 1))
        h = h if label is None else h + self.label(label)
        return self.outward(self.dropout(torch.tanh(h)))


def denoiser(dropout: float = 0.0) -> Denoiser:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Denoiser(Net(dropout).double(), VP(), predicts=Eps())


def data() -> tuple[Tensor, Tensor]:
    return torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 4


@pytest.mark.parametrize("pieces", [2, 3, 16, 99])
def test_pieces_have_the_gradient_of_the_whole(pieces):
    whole, parts = (Trainer(denoiser(), data(), Recipe(3, batch=16), devices=OneDevice(n)) for n in (1, pieces))
    for one, other in zip(whole, parts, strict=True):
        agree(other.loss, one.loss, 1e-12)
        for name, p in whole.trained.items():
            assert torch.count_nonzero(p.grad) > 0
            agree(parts.trained[name].grad, p.grad, 1e-12)


def test_every_piece_has_its_own_dropout():
    x0 = torch.ones(8, 2, dtype=torch.float64)
    seen = []

    class Watched(Net):
        def forward(self, x, t, label=None):
            seen.append(self.dropout(torch.ones(len(x), 8)))
            return super().forward(x, t)

    with torch.random.fork_rng():
        model = Denoiser(Watched(0.5).double(), VP(), predicts=Eps())
    Trainer(model, x0, Recipe(1, batch=8), devices=OneDevice(2)).advance()
    assert len(seen) == 2
    assert not torch.equal(*seen)


def test_half_precision_is_coarse_and_its_weights_are_not():
    half, full = (
        Trainer(denoiser().float(), data()[0].float(), Recipe(40, batch=16, lr=1e-2), devices=OneDevice(1, precision))
        for precision in (torch.bfloat16, None)
    )
    for one, other in zip(half, full, strict=True):
        agree(one.loss, other.loss, 0.1)
    assert one.loss != other.loss
    assert {p.dtype for p in half.trained.values()} == {torch.float32}


def test_devices_say_what_is_wrong():
    with pytest.raises(ValueError, match="got pieces=0"):
        OneDevice(0)
    with pytest.raises(ValueError, match=r"must be scaled.*Accelerated"):
        OneDevice(precision=torch.float16)
    with pytest.raises(ValueError, match="not initialised"):
        Sharded()
    with pytest.raises(TypeError, match=r'got None.*pip install "sdekit\[train\]"'):
        Accelerated(None)


class Silent(Ranked):
    """A second rank whose first has, or has not, failed."""

    def __init__(self, failed: float) -> None:
        super().__init__(1, 2, 1)
        self.failed = failed

    def sum(self, values):
        return values + self.failed


def test_a_rank_hears_that_the_first_could_not_write():
    written = []
    Silent(0.0).write(lambda: written.append(1))
    with pytest.raises(OSError, match="rely on the first, which could not write"):
        Silent(1.0).write(lambda: written.append(1))
    assert written == []


# A study on a cluster -------------------------------------------------------------------------------------------------


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The studies of the tests of running, which the processes of a cluster can import."""
    pytest.importorskip("joblib")
    import test_running

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), str(ROOT)]))
    return test_running


@pytest.fixture(scope="module")
def ray() -> Iterator[ModuleType]:
    ray = pytest.importorskip("ray")
    from ray.util.joblib import register_ray

    register_ray()
    variables = {"PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        options = {"include_dashboard": False, "log_to_driver": False, "object_store_memory": 10**8}
        ray.init(num_cpus=2, runtime_env={"env_vars": variables}, **options)
        yield ray
        ray.shutdown()


@pytest.mark.slow
def test_a_cluster_of_ray(ray, running, tmp_path, monkeypatch):
    import joblib

    monkeypatch.chdir(tmp_path)  # where ray's workers are not
    with joblib.parallel_config(backend="ray"):
        report = running.study().run("study.jsonl", batch=20, workers=2)
    assert running.told(report) == running.told(running.study().run("alone.jsonl", batch=20))


@pytest.mark.slow
def test_a_worker_of_ray_that_dies(ray, running, tmp_path):
    import joblib

    mine = running.study(model=running.deadly(tmp_path, 1), budgets=(2,))
    with joblib.parallel_config(backend="ray"):
        report = mine.run(tmp_path / "study.jsonl", workers=2)
    assert len(list((tmp_path / "graves").iterdir())) == 1
    assert {row["status"] for row in report.rows} == {"ok"}
    assert len(running.values(report)) == len(mine.cells)


@pytest.mark.slow
def test_jobs_of_submitit_share_the_work(running, tmp_path):
    submitit = pytest.importorskip("submitit")
    path = tmp_path / "study.jsonl"
    executor = submitit.AutoExecutor(tmp_path / "jobs", cluster="local")
    executor.update_parameters(timeout_min=5)
    jobs = executor.map_array(lambda _: running.slow().run(path), range(2))
    tables = {job.result().table() for job in jobs}
    alone = running.slow().run(tmp_path / "alone.jsonl")
    assert tables == {alone.table()}
    assert len(running.lines(path)) == len(running.lines(tmp_path / "alone.jsonl"))  # none was done twice
    assert list((tmp_path / "study.jsonl.claims").glob("*.claim")) == []


class Failing:
    """A metric that never is, and counts how often it was asked."""

    name, asked = "failing", 0

    def __call__(self, samples: Tensor) -> float:
        Failing.asked += 1
        raise ArithmeticError("no")


def test_runners_side_by_side_do_not_repeat_failures(running, tmp_path):
    mine, path = running.study(metric=Failing(), methods={"DDPM": DDPM}), tmp_path / "study.jsonl"

    def overtaken(cells):
        mine.run(path)
        yield from cells

    Failing.asked = 0
    mine.run(path, progress=overtaken)
    assert Failing.asked == len(mine.cells)
    mine.run(path)
    assert Failing.asked == 2 * len(mine.cells)


@dataclass(frozen=True)
class Far:
    """A model that ends its process, once, as if that had been on another machine, whose claims no one sees void."""

    folder: str
    process: Process = VP()

    def __call__(self, x, t):
        (claim,) = Path(f"{self.folder}/study.jsonl.claims").glob("*.claim")
        grave = Path(self.folder) / "grave"
        if len(x) > 1 and not grave.exists():
            grave.write_text("")
            claim.write_text(json.dumps({**json.loads(claim.read_text()), "host": "far away"}))
            os.utime(claim, (time.time() + 3 - STALE,) * 2)
            os._exit(1)
        return Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())(x, t)


@pytest.mark.slow
def test_a_worker_that_dies_on_another_machine(running, tmp_path):
    mine = running.study(model=Far(str(tmp_path)), methods={"DDPM": DDPM}, budgets=(2,), seeds=(0,), floor=None)
    report = mine.run(tmp_path / "study.jsonl", workers=2)
    assert (tmp_path / "grave").exists()
    assert {row["status"] for row in report.rows} == {"ok"}
