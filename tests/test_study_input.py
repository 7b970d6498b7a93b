"""What a study is given: what is wrong with it is said at once, and what fails later costs its own cells alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdekit.interop
from sdekit import DDIM, VP, GaussianMixture, LogSNR
from sdekit.metrics import FeatureStatistics, FrechetDistance, KernelDistance, read_reference
from sdekit.study import (
    Agenda,
    Checkpoint,
    Drawn,
    Factory,
    Function,
    Report,
    Sampler,
    Store,
    Study,
    read_study,
    resample,
)

LAW = GaussianMixture(VP(), torch.tensor([[1.0, 0.0], [-1.0, 0.5]]), 0.2)
REAL, HELD = (LAW.sample(60, torch.Generator().manual_seed(seed)) for seed in (5, 6))
FD = FrechetDistance(None, REAL)


def study(**changes: Any) -> Study:
    settings = {
        "model": LAW,
        "methods": {"DDIM": DDIM},
        "metric": FD,
        "shape": (50, 2),
        "budgets": (4,),
        "seeds": (0, 1),
    }
    return Study(**(settings | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.jsonl"


def rows(path: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row for row in found if row["kind"] == kind]


def solver(model: Any, x: Tensor, count: int) -> Tensor:
    return x


# What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": 5}, "budgets must be a sequence of whole numbers; got 5. Pass a tuple"),
        ({"seeds": 3}, "seeds must be a sequence"),
        ({"shape": 50}, "shape must be a sequence"),
        ({"methods": [DDIM]}, "methods must be a mapping from labels; got list"),
        ({"methods": {"own": solver}}, r"'own' is function. Pass .*Function\(solver\)"),
        ({"methods": {"own": Function}}, "'own' is the class Function itself, not one of its instances"),
        ({"methods": {"own": Sampler}}, "'own' is the class Sampler itself"),
        ({"methods": {1: DDIM}}, "The labels of methods must be strings, and not empty; got 1"),
        ({"methods": {"": DDIM}}, "The labels of methods must be strings, and not empty; got ''"),
        ({"model": None}, "model.* is NoneType"),
        ({"model": "net.safetensors"}, "is str. .* Reference such as Checkpoint"),
        ({"model": nn.Linear(2, 2)}, "must be called as model.x, t. and have a process; 'model' is Linear"),
        ({"model": {1: LAW}}, "The labels of models must be strings"),
        ({"metric": FrechetDistance}, "got the class FrechetDistance itself"),
        ({"metric": {1: FD}}, "The labels of metric must be strings"),
        ({"floor": HELD.numpy()}, "The floor must be a tensor of real samples; got ndarray"),
        ({"grid": LogSNR}, "grid must be a Grid; got the class LogSNR"),
    ],
)
def test_what_is_of_another_kind_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        study(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budgets": (True,)}, r"whole numbers of at least 1, one or more; got \(True,\)"),
        ({"seeds": (0.0,)}, r"whole numbers of at least 0, one or more; got \(0.0,\)"),
        ({"floor": torch.tensor(1.0)}, r"got a batch of shape \(\)"),
        ({"metric": (FD, FD)}, "Metrics must all differ; .* are one"),
        ({"metric": {"one": FD, "other": FrechetDistance(None, REAL)}}, "Metrics must all differ; 'one' and 'other'"),
        (
            {"metric": (FD, FrechetDistance(None, HELD))},
            r"two are called 'FD\[samples\]'. Give them labels, as in metric=",
        ),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes)


@pytest.mark.parametrize("name", ["budgets", "seeds", "shape", "methods", "model", "metric", "floor", "grid"])
def test_no_message_holds_a_whole_tensor(name: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        study(**{name: torch.linspace(-1, 1, 2000)})
    assert len(str(caught.value)) < 300


def test_whole_numbers_of_any_kind_are_numbers(path: Path) -> None:
    given = study(budgets=np.array([4]), seeds=torch.arange(2), shape=torch.Size([50, 2])).run(path)
    assert study().plan(path).pending == {}
    assert {row["seed"] for row in given.rows if row["kind"] == "draw"} == {0, 1}


def test_labels_name_metrics(path: Path) -> None:
    both = study(metric={"train": FD, "test": FrechetDistance(None, HELD)})
    assert [metric for _, metric in both.run(path).findings] == ["train", "test"]
    report = resample(path, *both.metrics)
    assert {key[1]: len(found.entries["DDIM", 4].blocks) for key, found in report.findings.items()} == {
        "train": 2,
        "test": 2,
    }
    assert [metric for _, metric in both.report(path).findings] == ["train", "test"]


# What fails later -------------------------------------------------------------------------------------------


class Own:
    """A contender that may be told of in any way."""

    def __init__(self, describe: Callable[[], Any]) -> None:
        self.describe = describe

    def within(self, budget: int, model: Any) -> Own:
        return self

    def run(self, model: Any, like: Tensor, seed: int, first: int) -> Drawn:
        return Drawn(torch.zeros_like(like), 1)


def raising() -> Any:
    raise KeyError("nothing")


@pytest.mark.parametrize(
    ("describe", "status"),
    [
        (raising, "KeyError: 'nothing'"),
        (lambda: {"w": torch.zeros(2)}, "describe.. must return a dictionary of JSON types; Object of type Tensor"),
        (lambda: {"w": float("nan")}, "describe.. must return a dictionary of JSON types; Out of range"),
        (lambda: "Own", "describe.. must return a dictionary; got str"),
    ],
)
def test_what_cannot_be_told_of_fails_alone(path: Path, describe: Callable[[], Any], status: str) -> None:
    report = study(methods={"DDIM": DDIM, "own": Own(describe)}).run(path)
    assert report.entries["DDIM", 4].errors == ()
    assert all(re.search(status, error) for error in report.entries["own", 4].errors)
    assert len(report.entries["own", 4].errors) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_cannot_be_loaded_fails_alone(path: Path, workers: int) -> None:
    tries = path.with_name("tries")

    def broken() -> Any:
        with tries.open("a") as file:
            file.write("x")
        raise OSError("no such net")

    models = {"good": LAW, "broken": Factory(broken), "gone": Checkpoint("gone.safetensors"), "odd": Factory(object)}
    both = study(model=models)
    plan = str(both.plan(path))
    assert "the model 'broken' fails, and with it 2 cells: OSError: no such net" in plan
    assert "network calls: at most 8," in plan
    tries.unlink()
    report = both.run(path, workers=workers)
    assert tries.read_text() == "x"
    entries = {model: found.entries["DDIM", 4] for (model, _), found in report.findings.items()}
    assert (len(entries["good"].values), entries["good"].errors) == (2, ())
    assert entries["broken"].errors == ("OSError: no such net",) * 2
    assert "gone.safetensors" in entries["gone"].errors[0]
    assert "what Factory loads is object" in entries["odd"].errors[0]
    assert list(Report.read(path).findings) == list(report.findings)
    mended = study(model=models | {"broken": Factory(lambda: LAW)}).run(path)
    assert mended.of("broken").entries["DDIM", 4].errors == ()


# What lies beside the rows ----------------------------------------------------------------------------------


def test_a_plan_counts_no_calls_for_what_is_stored(path: Path) -> None:
    study(floor=HELD).run(path)
    more = study(floor=HELD, metric=(FD, KernelDistance(None, REAL)))
    found: Agenda = more.plan(path)
    assert (sum(found.pending.values()), found.calls) == (4, 0)
    drawn = [row["id"] for row in rows(path, "draw") if row["budget"]]
    (Store(path).folder("features") / f"{drawn[0]}-samples.safetensors").unlink()
    assert more.plan(path).calls == 4


def test_two_share_the_blocks(path: Path) -> None:
    study(budgets=(2, 4, 8), seeds=tuple(range(5))).run(path)
    before = len(rows(path, "value"))
    here = Path(__file__).parent
    code = f"import sys; sys.path[:0] = {[str(here), str(here.parent)]}\nimport test_study_input as t\n"
    run = [sys.executable, "-c", f"{code}t.resample({str(path)!r}, t.FD)"]
    children = [subprocess.Popen(run) for _ in range(2)]
    assert [child.wait() for child in children] == [0, 0]
    added = rows(path, "value")[before:]
    assert len(added) == len({row["id"] for row in added}) == 15
    assert all(len(row["blocks"]) == 20 for row in added)


@pytest.mark.parametrize("harm", ["gone", "altered"])
def test_cells_without_features_are_told(path: Path, harm: str) -> None:
    study(seeds=(0, 1, 2)).run(path)
    one = next(Store(path).folder("features").iterdir())
    one.unlink() if harm == "gone" else one.write_bytes(one.read_bytes()[:-1] + b"\0")
    with pytest.warns(UserWarning, match=r"1 of 3 cells are not measured by FD\[samples\] without blocks"):
        report = resample(path, FD)
    assert report.entries["DDIM", 4].blocks == ()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="1 of 1 cells"):
            resample(path, FD)


# In a file --------------------------------------------------------------------------------------------------


ENTRIES = "[{type: FrechetDistance, features: null, reference: REFERENCE}]"
TEXT = f"""\
models: {{net: net.safetensors}}
methods: {{DDIM: ddim}}
metrics: {ENTRIES}
shape: [50, 2]
budgets: [4]
seeds: 2
"""


def written(path: Path, *changes: tuple[str, str]) -> Path:
    np.save(path.with_name("real.npy"), REAL.numpy())
    np.savez(path.with_name("statistics.npz"), mu=REAL.mean(0), sigma=np.cov(REAL.T))
    text = TEXT
    for old, new in (*changes, ("REFERENCE", str(path.with_name("real.npy")))):
        assert old in text or old == "REFERENCE"
        text = text.replace(old, new)
    path = path.with_name("study.yaml")
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 2", "seeds: 2\nbudgets: [8]", "line 7: the key 'budgets' is there twice"),
        ("DDIM: ddim", "DDIM: ddim, DDIM: heun", "line 2: the key 'DDIM' is there twice"),
        ("seeds: 2", "\tseeds: 2", "line 6: it must be YAML, indented by spaces"),
        ("seeds: 2", "seeds: 0", "how many there are, at least 1; got 0"),
        ("seeds: 2", "seeds: -1", "how many there are, at least 1; got -1"),
        ("seeds: 2", "seeds: true", "how many there are, at least 1; got True"),
        ("seeds: 2", "floor: 3", "In floor: Data must be named"),
        ("seeds: 2", "floor: gone.pt", "In floor: there is no file gone.pt"),
        ("REFERENCE", "gone.npz", "In metrics: there is no file gone.npz"),
        ("features: null", "features: 3", "In metrics: There is no feature map called 3"),
        (
            ENTRIES,
            "FrechetDistance",
            "metrics must be a list",
        ),
        (ENTRIES, "{type: X}", "metrics must be a list"),
    ],
)
def test_a_file_is_refused_where_it_is_wrong(path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_study(written(path, (old, new)))


def test_a_file_gives_metrics_labels_and_options_as_mappings(path: Path) -> None:
    label = f"{{train: {ENTRIES[1:-1]}}}"
    uni = "U: {type: Diffusers, scheduler: UniPC, options: {solver_order: 3}}"
    found = read_study(written(path, (ENTRIES, label), ("DDIM: ddim", uni)))
    assert [measure.name for measure in found.measures] == ["train"]
    assert found.methods == {"U": sdekit.interop.Diffusers("UniPC", {"solver_order": 3})}


def test_a_file_names_published_statistics(path: Path) -> None:
    file = str(path.with_name("statistics.npz"))
    (metric,) = read_study(written(path, ("REFERENCE", file))).metrics
    assert metric(HELD) == pytest.approx(FD(HELD), rel=1e-5)
    with pytest.raises(ValueError, match=r"KernelDistance needs the samples of its reference, of which .*npz holds"):
        read_study(written(path, ("REFERENCE", file), ("FrechetDistance", "KernelDistance")))


# Published statistics ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "must hold real numbers; got mu of dtype <U1"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 0.9], [0.0, 1.0]])}, "symmetric; got entries that differ by 0.9"),
    ],
)
def test_a_file_that_holds_no_statistics_is_refused(path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(path.with_suffix(".npz"), **arrays)
    with pytest.raises(ValueError, match=message):
        read_reference(path.with_suffix(".npz"))


def test_rounding_leaves_a_covariance_symmetric(path: Path) -> None:
    sigma = REAL[:9] @ REAL[:9].T * (1 + 1e-7 * REAL[:9].sum(1))
    np.savez(path.with_suffix(".npz"), mu=np.zeros(9), sigma=sigma.numpy())
    assert isinstance(read_reference(path.with_suffix(".npz")), FeatureStatistics)


def test_a_reference_must_be_read_before(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), mu=np.zeros(2), sigma=np.eye(2))
    with np.load(path.with_suffix(".npz")) as file, pytest.raises(TypeError, match=r"NpzFile. .* read_reference"):
        FrechetDistance(None, file)
    with pytest.raises(TypeError, match=r"got ndarray. Convert"):
        FrechetDistance(None, REAL.numpy())
