"""Running a study: in several processes, killed at random, beside another, on a disk that is full."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import test_study
import torch
from test_study import Gauss, Moments, Spy, draws, lines, real, study, values
from torch import Tensor

from sdekit import DDIM, DDPM, VP, GaussianMixture
from sdekit.prediction import Prediction
from sdekit.process import Process
from sdekit.study import Checkpoint, Factory, Report, StorageError, Store, Study, Tuned, rows
from sdekit.study.runner import ATTEMPTS

pytest.importorskip("joblib")

HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "study.jsonl"


def told(report: Report) -> list[Any]:
    """What a report says, but for what depends on when and where."""
    changing = ("date", "seconds", "cpu_seconds", "fit_seconds", "call_seconds", "traceback")
    return [{k: v for k, v in row.items() if k not in changing} for row in report.rows]


def child(call: str) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    return subprocess.Popen([sys.executable, "-c", f"import test_running; test_running.{call}"], env=env)


@dataclass(frozen=True)
class Slow(Gauss):
    """A model whose every answer takes some time."""

    wait: float = 0.01

    def __call__(self, x: Tensor, t: Any) -> Prediction:
        if len(x) > 1:
            time.sleep(self.wait)
        return super().__call__(x, t)


def slow() -> Study:
    return study(model=Slow(), floor=real(64))


def run_slowly(path: str, workers: int = 1) -> None:
    """What the processes do that are killed."""
    slow().run(path, workers=workers)


# Killed -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_five_kills_at_random_moments_leave_no_trace(path: Path, workers: int) -> None:
    clean = slow().run(path.with_name("clean.jsonl"))
    lot, total = random.Random(workers), len(slow().cells)
    for kill in range(5):
        runner = child(f"run_slowly({str(path)!r}, {workers})")
        begun = path.stat().st_size if path.exists() else 0
        until = time.monotonic() + 120
        while not path.exists() or path.stat().st_size == begun:
            if runner.poll() is not None:
                break
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(lot.uniform(0.0, 0.25))
        runner.send_signal(signal.SIGKILL)
        runner.wait()
        assert kill or len(lines_of(path)) < 2 * total
    again = slow().run(path)
    assert told(again) == told(clean)
    assert again.table() == clean.table()
    assert Report.read(path).table() == clean.table() or workers > 1  # rows of two workers come as they end
    assert len({(row["id"], row.get("measure")) for row in lines(path)}) == len(lines(path)) == 2 * total


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


@pytest.mark.slow
def test_two_runners_share_the_work(path: Path) -> None:
    runners = [child(f"run_slowly({str(path)!r})") for _ in range(2)]
    assert [runner.wait(timeout=120) for runner in runners] == [0, 0]
    assert len({row["id"] for row in lines(path)}) == len(lines(path)) / 2 == len(slow().cells)  # none was done twice
    assert told(slow().run(path, progress=(spy := Spy()))) == told(slow().run(path.with_name("clean.jsonl")))
    assert spy.seen == []
    assert list(Path(f"{path}.claims").glob("*.claim")) == []


# In several processes ---------------------------------------------------------------------------------------


def mixture() -> GaussianMixture:
    return GaussianMixture(VP(), torch.linspace(-1, 1, 9).reshape(3, 3), 0.2)


def many() -> Study:
    methods = {"DDIM": DDIM, "DDPM": DDPM, "tuned": Tuned(DDIM, test_study.Denoised(test_study.LogSNR(1)), starts=24)}
    models = {"one": mixture(), "two": Factory(mixture), "three": GaussianMixture(VP(), torch.ones(1, 3), 0.2)}
    return Study(models, methods, [Moments(), Tensor.std], (50, 3), budgets=(2, 3), seeds=(0, 1))


def test_two_workers_find_what_one_finds(path: Path) -> None:
    serial = many().run(path, batch=20)
    parallel = many().run(path.with_name("two.jsonl"), batch=20, workers=2, progress=(spy := Spy()))
    assert told(parallel) == told(serial)
    assert len(spy.seen) == len(many().cells) - 12  # of two models that are equal
    stores = [Store(path), Store(path.with_name("two.jsonl"))]
    for row in draws(serial):
        one, two = (store.samples(row["id"]) for store in stores)
        assert one is not None
        assert two is not None
        assert torch.equal(one, two)
    assert len(list(stores[1].folder("plans").iterdir())) == 4  # each fitted once for all seeds
    assert many().run(path.with_name("two.jsonl"), workers=2, progress=(rest := Spy())).table() == serial.table()
    assert rest.seen == []


def test_a_run_of_several_processes_may_stop_early(path: Path) -> None:
    part = study().run(path, workers=2, progress=Spy(stop=5))
    assert len(draws(part)) >= 5
    assert told(study().run(path)) == told(study().run(path.with_name("clean.jsonl")))


@dataclass(frozen=True)
class Deadly:
    """A model that ends its process, as a crash in C or a lack of memory does: so many times, or ever."""

    folder: str
    deaths: int
    process: Process = VP()

    def __call__(self, x: Tensor, t: Any) -> Prediction:
        graves = Path(self.folder)
        if len(x) > 1 and len(list(graves.iterdir())) < self.deaths:
            (graves / f"{os.getpid()}").write_text("")
            os._exit(1)
        return Gauss()(x, t)


def deadly(tmp_path: Path, deaths: int) -> dict[str, Any]:
    (tmp_path / "graves").mkdir()
    return {"sound": Gauss(), "deadly": Deadly(str(tmp_path / "graves"), deaths)}


@pytest.mark.slow
def test_a_cell_whose_worker_dies_is_tried_again(path: Path, tmp_path: Path) -> None:
    mine = study(model=deadly(tmp_path, 1), budgets=(2,))
    report = mine.run(path, workers=2)
    assert len(list((tmp_path / "graves").iterdir())) == 1
    assert {row["status"] for row in report.rows} == {"ok"}
    assert len(values(report)) == len(mine.cells) == 12


@pytest.mark.slow
def test_a_cell_whose_workers_all_die_is_a_row(path: Path, tmp_path: Path) -> None:
    mine = study(model=deadly(tmp_path, 10**6), budgets=(2,), methods={"DDIM": DDIM}, seeds=(0,))
    report = mine.run(path, workers=2)
    status = {model: {row["status"] for row in draws(report) if row["model"] == model} for model in mine.models}
    assert status["sound"] == {"ok"}
    (said,) = status["deadly"]
    assert said.startswith("WorkerDied: the process at work on this cell died, 2 times")
    assert len(list((tmp_path / "graves").iterdir())) == ATTEMPTS


class Unsendable:
    name = "unsendable"

    def __call__(self, samples: Tensor) -> float:
        return 1.0

    def __setstate__(self, state: Any) -> None:
        os._exit(1)

    def __getstate__(self) -> Any:
        return {"any": 1}


@pytest.mark.slow
def test_a_worker_that_dies_before_it_begins_is_no_endless_loop(path: Path) -> None:
    with pytest.raises(Exception, match="terminated"):
        study(metric=Unsendable()).run(path, workers=2)


@pytest.mark.slow
def test_a_cluster_of_dask(path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    import joblib

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    cluster = distributed.LocalCluster(**options)
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        report = many().run(path, batch=20, workers=2)
    assert told(report) == told(many().run(path.with_name("serial.jsonl"), batch=20))


@pytest.mark.slow
def test_a_worker_of_dask_that_dies(path: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    import joblib

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    cluster = distributed.LocalCluster(**options)
    with cluster, distributed.Client(cluster), joblib.parallel_config(backend="dask"):
        report = study(model=deadly(tmp_path, 1), budgets=(2,)).run(path, workers=2)
    assert {row["status"] for row in report.rows} == {"ok"}
    assert len(values(report)) == 12


def test_threads_work_too(path: Path) -> None:
    import joblib

    with joblib.parallel_config(backend="threading"):
        report = many().run(path, batch=20, workers=2)
    assert told(report) == told(many().run(path.with_name("serial.jsonl"), batch=20))


def test_without_joblib(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "joblib", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[study\]"'):
        study().run(path, workers=2)
    assert len(draws(study().run(path))) == 18


# The disk ---------------------------------------------------------------------------------------------------


def full(*_: Any) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["rows", "features", "half a row"])
def test_a_full_disk_stops_the_run_and_loses_nothing(path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study().run(path, progress=Spy(stop=3))
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        if where == "half a row":
            whole = os.write
            patch.setattr(rows.os, "write", lambda file, content: whole(file, content[:9]))
        else:
            patch.setattr(*((rows.os, "write", full) if where == "rows" else (os, "replace", full)))
        with pytest.raises(StorageError, match=r"write to .*study.jsonl.*No space left.*run it again"):
            study().run(path)
    assert path.read_bytes() == before
    assert told(study().run(path, progress=(spy := Spy()))) == told(study().run(path.with_name("clean.jsonl")))
    assert len(spy.seen) == 15
    assert [file for file in Store(path).folder("features").iterdir() if file.suffix != ".safetensors"] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(path: Path) -> None:
    path.parent.mkdir()
    path.parent.chmod(0o500)
    with pytest.raises(StorageError, match="must be able to write"):
        study().run(path)


def test_a_folder_that_is_a_file(path: Path) -> None:
    path.parent.write_text("")
    with pytest.raises(StorageError, match=r"must be able to write to .*give another path"):
        study().run(path)


@pytest.mark.slow
def test_a_worker_on_a_full_disk_stops_the_run(path: Path) -> None:
    study().run(path, progress=Spy(stop=3))
    Store(path).folder("features").rename(path.parent / "elsewhere")
    Store(path).folder("features").write_text("")
    before = path.read_bytes()
    with pytest.raises(StorageError, match="must be able to write"):
        study().run(path, workers=2)
    assert path.read_bytes() == before


# Models by reference ----------------------------------------------------------------------------------------


def test_a_model_by_reference_is_the_model(path: Path) -> None:
    base = {"methods": {"DDIM": DDIM}, "metric": Tensor.std, "shape": (20, 3), "budgets": (3,), "seeds": (0,)}
    Study(mixture(), **base).run(path)
    Study(Factory(mixture), **base).run(path, progress=(spy := Spy()))
    assert spy.seen == []


def test_checkpoints_are_known_by_their_hash(path: Path, tmp_path: Path) -> None:
    import hashlib

    from sdekit import Denoiser, Eps
    from sdekit.nets import MLP
    from sdekit.training import save

    with torch.random.fork_rng():
        model = Denoiser(MLP((2,), hidden=8, depth=1), VP(), predicts=Eps())
    file = tmp_path / "model.safetensors"
    save(file, model)
    base = {"methods": {"DDIM": DDIM}, "metric": Tensor.std, "shape": (20, 2), "budgets": (3,), "seeds": (0,)}
    Study(model, **base).run(path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    Study(Checkpoint(str(file), digest), **base).run(path, progress=(spy := Spy()), workers=2)
    assert spy.seen == []
    (row,) = Study(Checkpoint(str(file), "00"), **base).run(path).rows
    assert row["status"].startswith("ValueError: ")
    assert "must have the SHA-256 00; its is" in row["status"]
