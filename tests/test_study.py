"""Studies: a kill loses nothing, a failure costs one cell, and every figure in the table can be accounted for."""

from __future__ import annotations

import collections
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdekit import (
    DDIM,
    DDPM,
    HEUN,
    RK4,
    VP,
    Denoised,
    Denoiser,
    FromDrift,
    GaussianMixture,
    Karras,
    LogSNR,
    Method,
    ProbabilityFlow,
    RectifiedFlow,
    Times,
    Uniform,
    Velocity,
)
from sdekit.methods import METHODS
from sdekit.metrics import Estimate, PairedRMSE
from sdekit.metrics.fingerprint import fingerprint
from sdekit.nets import MLP
from sdekit.noise import Keyed
from sdekit.plan import trace
from sdekit.prediction import X0, Prediction
from sdekit.process import Process
from sdekit.study import (
    Drawn,
    DrawRow,
    Entry,
    FlowError,
    Function,
    Planned,
    Report,
    Sampler,
    Store,
    Study,
    Tuned,
    ValueRow,
    planned,
    read_study,
)
from sdekit.study.cells import Cell, Generated
from sdekit.study.config import read
from sdekit.study.registry import DATA, METRICS
from sdekit.training import save

MEAN, VAR = 0.5, 0.25


@dataclass(frozen=True)
class Gauss:
    """The exact model of N(MEAN, VAR I): x0_hat = mean + alpha var / (alpha^2 var + sigma^2) (x - alpha mean)."""

    process: Process = VP()
    calls: int = 1

    def __call__(self, x: Tensor, t: Any) -> Prediction:
        t = self.process.check(t)
        alpha, sigma = float(self.process.alpha(t)), float(self.process.sigma(t))
        gain = alpha * VAR / (alpha**2 * VAR + sigma**2)
        return Prediction(self.process, x, t, MEAN + gain * (x - alpha * MEAN), X0())


@dataclass(frozen=True)
class Moments:
    """|mean - MEAN| + |std - sqrt(VAR)|, with a wait to be killed in."""

    name: str = "moments"
    wait: float = 0.0

    def __call__(self, samples: Tensor) -> float:
        time.sleep(self.wait)
        return float((samples.mean() - MEAN).abs() + (samples.std() - math.sqrt(VAR)).abs())


def study(**changes: Any) -> Study:
    settings: dict[str, Any] = {
        "model": Gauss(),
        "methods": {"DDIM": DDIM, "Heun": HEUN, "DDPM": DDPM},
        "metric": Moments(),
        "shape": (64, 2),
        "budgets": (2, 5, 10),
        "seeds": (0, 1),
    }
    return Study(**(settings | changes))


def real(n: int) -> Tensor:
    return MEAN + math.sqrt(VAR) * torch.randn(n, 2, generator=torch.Generator().manual_seed(7))


def broken(samples: Tensor) -> float:
    raise ZeroDivisionError("no   samples\nare good enough")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def draws(report: Report) -> list[DrawRow]:
    return [row for row in report.rows if row["kind"] == "draw"]


def values(report: Report) -> list[ValueRow]:
    return [row for row in report.rows if row["kind"] == "value"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "study.jsonl"


class Spy:
    """A progress bar that remembers the cells it has seen, and may stop after some of them."""

    def __init__(self, stop: int = 10**9) -> None:
        self.seen: list[Cell] = []
        self.stop = stop

    def __call__(self, cells: Any) -> Iterator[Cell]:
        assert len(cells) >= 0
        for cell in itertools.islice(cells, self.stop):
            self.seen.append(cell)
            yield cell


# Resuming ---------------------------------------------------------------------------------------------------


def run_slowly(path: str) -> None:
    """What the process does that is killed; the wait is no part of the metric's name, but of its identity."""
    study(metric=Moments(wait=0.05), floor=real(64)).run(path)


def test_a_killed_run_resumes_to_the_table_of_a_clean_one(path: Path) -> None:
    here = Path(__file__).parent
    code = f"import test_study; test_study.run_slowly({str(path)!r})"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    child = subprocess.Popen([sys.executable, "-c", code], env=env)
    until = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < 4:
        assert child.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = sum(row["kind"] == "draw" for row in lines(path))

    spy, total = Spy(), 1 + 3 * 3 * 2
    slow = study(metric=Moments(wait=0.05), floor=real(64))
    resumed = slow.run(path, progress=spy)
    assert 2 <= done < total
    assert len(spy.seen) == total - done  # the ids of another process are ours
    assert len({row["id"] for row in lines(path)}) == len(lines(path)) / 2 == total
    assert resumed.table() == slow.run(path.with_name("clean.jsonl")).table()


def test_a_finished_run_does_nothing(path: Path) -> None:
    first, before, spy = study().run(path), path.read_bytes(), Spy()
    again = study().run(path, progress=spy)
    assert (spy.seen, path.read_bytes()) == ([], before)
    assert again.table() == first.table() == Report.read(path).table()


@pytest.mark.parametrize("cut", [1, 2, 100, 10**9])
def test_a_torn_last_line_is_dropped_and_made_again(path: Path, cut: int) -> None:
    """However much is missing of the last line: only its newline, some of it, or all of it."""
    clean = study().run(path)
    head, last = path.read_bytes()[:-1].rsplit(b"\n", 1)
    path.write_bytes(head + b"\n" + (last + b"\n")[: max(0, len(last) + 1 - cut)])
    spy = Spy()
    assert study().run(path, progress=spy).table() == clean.table()
    assert len(spy.seen) == (0 if cut == 1 else 1)
    assert sorted(row["id"] for row in lines(path)) == sorted(row["id"] for row in clean.rows)
    assert path.read_bytes().startswith(head + b"\n")
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    "foreign", [b'{"loss": 1.0}\n', b"\n", b"not json\n", b"\xff\xfe\n", b"[1, 2]\n", b"epilogue", b'{"loss": 2.0}']
)
def test_foreign_lines_stay(path: Path, foreign: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(foreign)
    table = study().run(path).table()
    assert path.read_bytes().startswith(foreign.removesuffix(b"\n") + b"\n")
    assert Report.read(path).table() == study().run(path).table() == table


def test_studies_share_a_file(path: Path) -> None:
    one = study(budgets=(2, 5)).run(path, progress=(few := Spy()))
    more = study(budgets=(2, 5, 10)).run(path, progress=(rest := Spy()))
    other = study(model=Gauss(VP(beta_max=10.0)), budgets=(5,)).run(path, progress=(new := Spy()))
    assert (len(few.seen), len(rest.seen), len(new.seen)) == (12, 6, 6)
    assert one.entries == {key: entry for key, entry in more.entries.items() if key[1] < 10}
    assert other.entries["DDIM", 5] != one.entries["DDIM", 5]
    with pytest.raises(ValueError, match="Two models share a label"):
        Report.read(path)


def test_a_run_may_stop_early(path: Path) -> None:
    part = study().run(path, progress=Spy(stop=7))
    whole = study().run(path, progress=(rest := Spy()))
    assert (draws(part), values(part)) == (draws(whole)[:7], values(whole)[:7])
    assert len(rest.seen) == 11


def test_a_new_label_costs_nothing(path: Path) -> None:
    study(methods={"DDIM": DDIM}).run(path)
    report = study(methods={"first order": DDIM, "the same": DDIM}).run(path, progress=(spy := Spy()))
    assert report.methods == ["first order", "the same"]
    assert spy.seen == []


def test_the_rows_of_a_cell_are_on_the_disk_before_the_next_one(path: Path) -> None:
    counts = []

    def watch(cells: Any) -> Iterator[Cell]:
        for cell in cells:
            counts.append(path.read_bytes().count(b"\n"))
            yield cell

    study().run(path, progress=watch)
    assert counts == list(range(2, 38, 2))


def test_progress_may_be_tqdm(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tqdm import tqdm

    study(budgets=(2,)).run(path)
    assert capsys.readouterr() == ("", "")
    study(budgets=(2, 3)).run(path, progress=tqdm)
    assert "6/6" in capsys.readouterr().err


# Identity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"model": Gauss(VP(t_min=1e-2))},
        {"model": Gauss(calls=2)},
        {"methods": {"DDIM": HEUN}},
        {"metric": Moments("other")},
        {"metric": Moments(wait=1e-9)},
        {"shape": (63, 2)},
        {"shape": (64, 3)},
        {"budgets": (4,)},
        {"seeds": (1,)},
        {"grid": Denoised(Uniform(1))},
    ],
)
def test_all_that_matters_is_part_of_the_identity(path: Path, changes: dict[str, Any]) -> None:
    base = {"methods": {"DDIM": DDIM}, "budgets": (5,), "seeds": (0,)}
    study(**base).run(path)
    study(**base | changes).run(path, progress=(spy := Spy()))
    assert len(spy.seen) == 1


def linear(**changes: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.1), nn.Linear(3, 2))
    return Denoiser(Net(net), **({"process": RectifiedFlow(), "predicts": Velocity()} | changes))


class Net(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, t: Tensor, label: int = 0) -> Tensor:
        return self.body(x) + label


def test_a_model_is_known_by_its_weights_and_its_settings() -> None:
    model = linear()
    trained = linear()
    with torch.no_grad():
        trained.net.body[0].bias[1] += 1e-6
    others = [trained, model.given(label=1), model.given(label=2), linear(predicts=X0()), linear().double()]
    prints = [fingerprint(other) for other in [model, *others]]
    assert len(set(prints)) == len(prints)
    model.register_forward_hook(lambda *_: None)
    assert fingerprint(model.eval()) == fingerprint(linear().train()) == prints[0]


def test_functions_count_by_what_they_do() -> None:
    def scaled(by: float) -> Callable[[float], float]:
        return lambda x: by * x

    assert fingerprint(scaled(2.0)) == fingerprint(scaled(2.0)) != fingerprint(scaled(3.0))
    assert fingerprint(lambda x: x + 1) != fingerprint(lambda x: x + 2)


def test_a_circle_has_an_end() -> None:
    circle: list[Any] = [1]
    circle.append(circle)
    assert fingerprint(circle) == fingerprint(circle)


# Contenders -------------------------------------------------------------------------------------------------


def oracle() -> GaussianMixture:
    """The model of `Gauss`, which may be asked about a time for each sample, and differentiated."""
    return GaussianMixture(VP(), torch.full((1, 2), MEAN), math.sqrt(VAR))


def midpoints(model: Any, x: Tensor, count: int) -> Tensor:
    """A solver of one's own: the midpoint rule in t, count answers in all."""
    times = torch.linspace(model.process.t_max, model.process.t_min, count // 2 + 1, dtype=torch.float64).tolist()
    for t, s in itertools.pairwise(times):
        middle = x + (s - t) / 2 * model(x, t).velocity
        x = x + (s - t) * model(middle, (s + t) / 2).velocity
    return x


@dataclass(frozen=True)
class Own:
    """A contender of one's own, which may be mistaken in any way."""

    asks: int = 1
    claims: int = 1
    of: float = 0.0
    extra: int = 0

    def within(self, budget: int, model: Any) -> Own:
        return self

    def run(self, model: Any, like: Tensor, seed: int, first: int) -> Drawn:
        x = torch.randn(len(like) + self.extra, 2, generator=torch.Generator().manual_seed(seed + first))
        for _ in range(self.asks):
            model(x, model.process.t_max)
        return Drawn(x + self.of, self.claims)

    def describe(self) -> dict[str, Any]:
        return {"type": "Own"}


def test_a_function_is_a_contender(path: Path) -> None:
    """It has the starts of the others, and its calls are counted."""
    methods = {"own": Function(midpoints), "midpoint": Sampler(METHODS["midpoint"], Uniform(1))}
    report = study(methods=methods, budgets=(6, 10, 11), seeds=(0,)).run(path)
    found = {(row["method"], row["budget"]): row["nfe"] for row in draws(report)}
    assert [found["own", budget] for budget in (6, 10, 11)] == [6, 10, 10]
    assert draws(report)[0]["sampler"] == {"type": "Function", "solver": "midpoints"}
    for budget in (6, 10):
        own, ours = (report.entries[name, budget].mean for name in ("own", "midpoint"))
        assert own == pytest.approx(ours, rel=1e-4)


@pytest.mark.parametrize(("calls", "asks", "nfe"), [(1, 3, 3), (2, 2, 4)])
def test_the_calls_of_others_are_counted_whatever_they_say(path: Path, calls: int, asks: int, nfe: int) -> None:
    report = study(model=Gauss(calls=calls), methods={"own": Own(asks=asks)}, budgets=(5,)).run(path, batch=20)
    assert [row["nfe"] for row in draws(report)] == [nfe, nfe]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (Own(asks=6), "ValueError: Samples must cost no more than the budget, 5 network calls each; own made 6"),
        (Own(asks=0, claims=6), "ValueError: Samples must cost no more than the budget, 5 network calls each"),
        (Own(of=math.nan), "FloatingPointError: Samples must be finite; sample 0 is not"),
        (Own(extra=1), "ValueError: Samples must have the shape asked for, (64, 2); got (65, 2)"),
    ],
)
def test_contenders_that_err_are_rows(path: Path, own: Own, message: str) -> None:
    report = study(methods={"own": own, "DDIM": DDIM}, budgets=(5,)).run(path)
    failed = [row["status"] for row in draws(report) if row["method"] == "own"]
    assert len(failed) == 2
    assert all(status.startswith(message) for status in failed)
    assert report.best(5) == "DDIM"


def test_plans_are_contenders(path: Path) -> None:
    """A plan alone, the dearest of several that a budget pays for, and the method that they were traced from."""
    plans = tuple(trace(DDIM, VP(), Denoised(LogSNR(steps))) for steps in (4, 7, 9))
    methods = {"one": plans[1], "several": Planned(plans), "DDIM": DDIM}
    report = study(methods=methods, budgets=(3, 7, 8)).run(path)
    nfe = {(row["method"], row["budget"]): row["nfe"] for row in draws(report)}
    assert [nfe[name, 3] for name in methods] == [None, None, 3]
    assert [nfe[name, budget] for name in ("one", "several") for budget in (7, 8)] == [7] * 4
    assert report.entries["one", 7] == report.entries["several", 7]
    assert report.entries["one", 7].mean == pytest.approx(report.entries["DDIM", 7].mean, rel=1e-5)
    guided = study(model=Gauss(calls=2), methods=methods, budgets=(8,)).run(path)
    assert {row["method"]: row["nfe"] for row in draws(guided)} == {"one": None, "several": 8, "DDIM": 8}


def test_a_plan_is_fitted_once_for_all_seeds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fits, fit = [], planned.tune

    def counted(plan: Any, model: Any, starts: Tensor, **settings: Any) -> Any:
        fits.append(starts)
        return fit(plan, model, starts, **settings)

    monkeypatch.setattr(planned, "tune", counted)
    tuned = Tuned(DDIM, Denoised(LogSNR(1)), starts=24)
    report = study(model=oracle(), methods={"tuned": tuned, "DDIM": DDIM}, budgets=(3, 4)).run(path)
    assert [len(starts) for starts in fits] == [24, 24]
    for budget in (3, 4):
        took = {row["fit_seconds"] for row in draws(report) if (row["method"], row["budget"]) == ("tuned", budget)}
        (seconds,) = took
        assert seconds is not None
        assert all(row["seconds"] < seconds for row in draws(report) if row["method"] == "tuned")
        assert {row["nfe"] for row in draws(report) if row["budget"] == budget} == {budget}
        assert report.entries["tuned", budget].mean < report.entries["DDIM", budget].mean
    study(model=oracle(), methods={"tuned": tuned}, budgets=(3, 4), seeds=(5, 6)).run(path)
    assert len(fits) == 2
    with pytest.raises(ValueError, match="must not be fitted on a seed that it is measured on"):
        study(methods={"tuned": replace(tuned, seed=1)})


def test_stochastic_contenders_share_their_brownian_paths(path: Path) -> None:
    """With the budget the samples of a seed come near to each other, which other noise would not let them."""
    kept = {}
    for budget in (8, 64, 512):
        cell = Generated("DDPM", Sampler(DDPM, Denoised(LogSNR(1))), budget, 0, (200, 2), "model")
        other = cell._replace(contender=Sampler(DDPM, Denoised(LogSNR(1)), Keyed()))
        kept[budget] = [torch.cat([part.x for part in draw(c, Gauss(), 200, 200)]) for c in (cell, other)]
    gaps = [[float((kept[a][i] - kept[512][i]).square().mean().sqrt()) for a in (8, 64)] for i in (0, 1)]
    assert gaps[0][1] < 0.2 * gaps[0][0]
    assert gaps[1][1] > 0.5


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_a_sample_keeps_its_condition_in_every_batch(path: Path, batch: int) -> None:
    labels = torch.arange(30) % 3
    methods = {"DDIM": DDIM, "DDPM": DDPM, "own": Function(midpoints)}
    base = {"model": linear().given(label=labels[:, None]), "methods": methods, "shape": (30, 2), "grid": Uniform(1)}
    study(**base, budgets=(4,), seeds=(0,)).run(path, batch=30)
    other = path.with_name("other.jsonl")
    report = study(**base, budgets=(4,), seeds=(0,)).run(other, batch=batch)
    assert {row["status"] for row in report.rows} == {"ok"}
    for row in draws(report):
        whole, parts = Store(path).samples(row["id"]), Store(other).samples(row["id"])
        assert whole is not None
        assert parts is not None
        torch.testing.assert_close(parts, whole)
    fewer = study(**base | {"shape": (31, 2)}, budgets=(4,), seeds=(0,)).run(other)
    assert all("condition must be given for the samples 0 to 30" in row["status"] for row in draws(fewer))


def test_a_fitted_plan_sees_the_conditions(path: Path) -> None:
    model = linear().given(label=torch.linspace(-1, 1, 30)[:, None])
    tuned = {"tuned": Tuned(DDIM, Uniform(1), starts=20)}
    report = study(model=model, methods=tuned, shape=(30, 2), budgets=(4,)).run(path, batch=8)
    assert {row["status"] for row in report.rows} == {"ok"}


# What is kept -----------------------------------------------------------------------------------------------


SHOWN: collections.deque[int] = collections.deque()  # no list, which would be part of what reads it


class Doubled:
    """An extractor that counts what it is shown."""

    name = "doubled"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, samples: Tensor) -> Tensor:
        SHOWN.append(len(samples))
        return 2 * samples

    def __reduce__(self) -> Any:
        return Doubled, ()


@dataclass(frozen=True, eq=False)
class OnDoubled:
    """A metric on features, with an error."""

    power: float = 1.0
    extractor: Any = Doubled()
    stderr: float = 0.5

    @property
    def name(self) -> str:
        return f"power {self.power}"

    def of(self, features: Tensor) -> Estimate:
        return Estimate(float(features.abs().mean() ** self.power), self.stderr)

    def __call__(self, samples: Tensor) -> float:
        return self.of(self.extractor(samples)).value


def test_metrics_share_features_and_new_ones_need_no_new_samples(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SHOWN.clear()
    base = {"methods": {"DDIM": DDIM}, "budgets": (5,)}
    first = study(**base, metric=[OnDoubled(1.0), OnDoubled(2.0), Moments()]).run(path, batch=50)
    assert sum(SHOWN) == 2 * 64
    assert [row["metric"] for row in values(first)] == ["power 1.0", "power 2.0", "moments"] * 2
    assert [row["stderr"] for row in values(first)] == [0.5, 0.5, None] * 2

    monkeypatch.delattr(Sampler, "run")
    report = study(**base, metric=[OnDoubled(3.0), Tensor.std]).run(path)
    assert {row["status"] for row in report.rows} == {"ok"}
    assert sum(SHOWN) == 2 * 64
    one, three = values(first)[0]["value"], values(report)[0]["value"]
    assert one is not None
    assert three == pytest.approx(one**3)


@pytest.mark.parametrize("harm", ["torn", "altered", "gone"])
def test_what_is_harmed_is_drawn_again(path: Path, harm: str) -> None:
    first = study(budgets=(5,)).run(path)
    folder = Store(path).folder("features")
    kept = {file.name: file.read_bytes() for file in folder.iterdir()}
    for file in folder.iterdir():
        content = file.read_bytes()
        content = content[:-1] if harm == "torn" else content[:-1] + bytes([content[-1] ^ 1])
        file.unlink() if harm == "gone" else file.write_bytes(content)
    assert study(budgets=(5,)).run(path, progress=(spy := Spy())).rows == first.rows
    assert spy.seen == []  # what is known needs no features
    report = study(budgets=(5,), metric=Moments("new")).run(path)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == kept
    assert [row["value"] for row in values(report)] == [row["value"] for row in values(first)]
    assert draws(report) == draws(first)


def test_a_failing_extractor_costs_its_metrics_alone(path: Path) -> None:
    def nothing(samples: Tensor) -> Tensor:
        raise ZeroDivisionError("no features")

    report = study(metric=[OnDoubled(extractor=nothing), Moments()]).run(path)
    assert {(row["metric"], row["status"]) for row in values(report)} == {
        ("power 1.0", "ZeroDivisionError: no features"),
        ("moments", "ok"),
    }


def test_the_first_samples_are_kept_to_be_looked_at(path: Path) -> None:
    mine = study(shape=(100, 2), budgets=(5,))
    report = mine.run(path, batch=30)
    for row, cell in zip(draws(report), mine.cells, strict=True):
        shown = Store(path).samples(row["id"])
        assert shown is not None
        assert isinstance(cell, Generated)
        torch.testing.assert_close(shown, draw(cell, Gauss(), 100, 100)[0].x[:64])


def test_the_error_against_the_flow(path: Path) -> None:
    """Of a Gaussian, whose flow from x at t_max ends in mean + std/s (x - alpha mean), s^2 = alpha^2 var + sigma^2."""

    class Exact(PairedRMSE):
        name = "exact"

        def of(self, features: Tensor) -> Estimate:
            process, x = VP(), Keyed(0).start(torch.empty(64, 2))
            alpha, sigma = float(process.alpha(process.t_max)), float(process.sigma(process.t_max))
            spread = math.sqrt(alpha**2 * VAR + sigma**2)
            ends = MEAN + math.sqrt(VAR) / spread * (sigma * x - alpha * MEAN)
            return PairedRMSE(ends).of(features)

    metrics = [FlowError(), Exact(torch.zeros(1, 2))]
    report = study(methods={"DDIM": DDIM}, budgets=(3, 5), seeds=(0,), metric=metrics, floor=real(64)).run(path)
    assert len(values(report)) == 2 + 2 * 2  # real data solve no flow, and the fine solution is it
    for budget in (3, 5):
        fine, exact = (report.of(metric=metric.name).entries["DDIM", budget].mean for metric in metrics)
        assert fine == pytest.approx(exact, rel=0.02)
    assert [row["method"] for row in draws(report)] == ["real data", "fine solution", "DDIM", "DDIM"]
    with pytest.raises(TypeError, match="needs a model and a seed"):
        metrics[0](torch.zeros(1, 2))


# The plan ---------------------------------------------------------------------------------------------------


def test_what_is_to_be_done_is_told_before(path: Path) -> None:
    models = {"a": oracle(), "b": Gauss(VP(beta_max=10.0), calls=2)}
    methods = {"DDIM": DDIM, "tuned": Tuned(DDIM, Denoised(LogSNR(1)), starts=24)}
    mine = study(model=models, methods=methods, budgets=(4, 6), floor=real(100))
    before = mine.plan(path, batch=30)
    assert not path.exists()
    assert (before.cells, sum(before.pending.values())) == (18, 18)
    assert (before.calls, before.fits) == (2 * 2 * 2 * (4 + 6) * 3, 4)  # models, methods, seeds, budgets, batches
    assert before.seconds > 0
    told = str(before).splitlines()
    assert told[0] == "18 cells: 0 done, 18 to do"
    assert told[1] == "network calls: at most 240, each on a batch; before that 4 plans are fitted"
    assert told[2].startswith("time: about ")
    assert told[3:5] == ["  real data     2 cells", "  DDIM          4 cells  a"]
    mine.run(path, batch=30, progress=Spy(stop=6))
    during = mine.plan(path, batch=30)
    assert sum(during.pending.values()) == 12
    assert "6 done, 12 to do" in str(during)
    assert "by the cells that are done" in str(during)
    mine = study(model=models["a"], methods={"DDIM": DDIM}, budgets=(4, 6), floor=real(100))
    mine.run(path)
    assert str(mine.plan(path)) == "6 cells: 6 done, 0 to do"


def test_the_time_told_is_about_the_time_taken(path: Path) -> None:
    class Slow(Gauss):
        def __call__(self, x: Tensor, t: Any) -> Prediction:
            time.sleep(0.01 * (len(x) > 1))
            return super().__call__(x, t)

    mine = study(model=Slow(), budgets=(2, 5))
    told = mine.plan(path).seconds
    mine.run(path, progress=Spy(stop=6))
    learnt = mine.plan(path).seconds
    assert 0.4 < told < 4
    assert 0.3 < learnt < 3


# A study in a file ------------------------------------------------------------------------------------------

CONFIG = """
models:
  zero: {model}
methods:
  DDIM: ddim
  Heun: {{type: Sampler, method: heun, grid: {{type: Denoised, grid: {{type: Karras, rho: 5.0}}}}}}
  tuned: {{type: Tuned, method: ddim, grid: {{type: Denoised, grid: LogSNR}}, starts: 24}}
metrics:
  - {{type: EnergyDistance, reference: {data}}}
  - {{type: SlicedWasserstein, reference: {data}, projections: 16}}
floor: {data}
budgets: [4, 6]
seeds: 2
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save(tmp_path / "zero.safetensors", Denoiser(MLP((2,), hidden=8, depth=1), VP(), predicts=Velocity()))
    torch.save(real(40), tmp_path / "data.pt")
    text = CONFIG.format(model=tmp_path / "zero.safetensors", data=tmp_path / "data.pt")
    (tmp_path / "study.yaml").write_text(text.replace("grid: LogSNR", "grid: {type: LogSNR}"))
    return tmp_path / "study.yaml"


def test_a_study_in_yaml(config: Path, path: Path) -> None:
    mine = read_study(config)
    assert (mine.shape, mine.budgets, mine.seeds, mine.n) == ((40, 2), (4, 6), (0, 1), 40)
    assert mine.methods["Heun"] == Sampler(HEUN, Denoised(Karras(1, rho=5.0)))
    assert mine.methods["tuned"] == Tuned(DDIM, Denoised(LogSNR(1)), starts=24)
    mine = replace(mine, methods={"DDIM": DDIM, "Heun": mine.methods["Heun"]})
    report = mine.run(path)
    assert {row["status"] for row in report.rows} == {"ok"}
    assert {row["metric"] for row in values(report)} == {metric.name for metric in mine.metrics}
    same = replace(read_study(config), methods=mine.methods)
    same.run(path, progress=(spy := Spy()))
    assert spy.seen == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("budgets:", "budget:", r"A study has no key 'budget'. Did you mean budgets\?"),
        ("models:", "grid:", "A study needs 'models'; got"),
        ("DDIM: ddim", "DDIM: dim", "In methods, DDIM: A method must be known by name; got 'dim'. Did you mean ddim"),
        (
            "type: Sampler",
            "type: Samples",
            "In methods, Heun: A stored value must name a known type; got 'Samples'",
        ),
        ("rho: 5.0", "roh: 5.0", "In methods, Heun: Karras has no field 'roh'. Did you mean rho"),
        (
            "type: EnergyDistance",
            "type: Energy",
            "no metric called 'Energy'. Did you mean EnergyDistance",
        ),
        ("projections", "projection", "'SlicedWasserstein' has no setting 'projection'. Did you mean projections"),
        (
            "projections: 16}",
            "projections: 16}\n  - {type: EnergyDistance, reference: digit-test}",
            "no data set called 'digit-test'. Did you mean digits-test",
        ),
        ("seeds: 2", "seeds: [0, 0]", "seeds must all differ"),
        ("budgets: [4, 6]", "budgets: [4, six]", "budgets must hold whole numbers"),
        ("budgets: [4, 6]", "budgets: 4", r"budgets must be a list; got 4"),
        ("seeds: 2", "seeds: [0, 0", "must be YAML"),
        ("zero: ", "zero: {sha256: aa, path: ", "must be YAML"),
    ],
)
def test_what_is_wrong_in_yaml_is_told(config: Path, old: str, new: str, message: str) -> None:
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_study(config)


def test_models_in_yaml_may_have_a_hash_and_labels(config: Path, tmp_path: Path) -> None:
    plain = yaml_of(config)
    file = plain["models"]["zero"]
    torch.save(torch.arange(40), tmp_path / "labels.pt")
    with torch.random.fork_rng():
        save(file, Denoiser(MLP((2,), hidden=8, depth=1, classes=40), VP(), predicts=Velocity()))
    labelled = Study.from_config(plain | {"models": {"zero": {"path": file, "label": str(tmp_path / "labels.pt")}}})
    assert labelled.models["zero"].condition["label"].tolist() == list(range(40))  # type: ignore[union-attr]
    hashed = Study.from_config(plain | {"models": {"zero": {"path": file, "sha256": "aa"}}})
    assert "must have the SHA-256 aa" in str(hashed.plan(tmp_path / "rows.jsonl"))
    with pytest.raises(ValueError, match="A model needs the path of its checkpoint; got"):
        Study.from_config(plain | {"models": {"zero": {"sha256": "aa"}}})


def yaml_of(config: Path) -> dict[str, Any]:
    return dict(read(config))


def test_without_yaml(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[study\]"'):
        read_study(config)


def test_names_of_ones_own(config: Path) -> None:
    DATA.add("my data", lambda: real(10))
    METRICS.add("my metric", lambda power=1.0: OnDoubled(power))
    try:
        mine = Study.from_config(
            yaml_of(config) | {"metrics": [{"type": "my metric", "power": 2.0}], "floor": "my data"}
        )
        assert (mine.metrics[0].name, mine.n) == ("power 2.0", 10)  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match="called 'my data' is known"):
            DATA.add("my data", real)
    finally:
        del DATA.makers["my data"], METRICS.makers["my metric"]


# Failures ---------------------------------------------------------------------------------------------------


def test_a_failing_cell_is_a_row_and_the_study_goes_on(path: Path) -> None:
    methods = {"DDIM": DDIM, "RK4": Sampler(METHODS["rk4"], LogSNR(1))}
    report = study(methods=methods, budgets=(2, 8)).run(path)
    failed = [row for row in draws(report) if row["status"] != "ok"]
    assert len(values(report)) == 6
    assert [(row["method"], row["budget"], row["seed"]) for row in failed] == [("RK4", 2, 0), ("RK4", 2, 1)]
    for row in failed:
        assert row["status"].startswith(
            "BudgetError: A budget must pay for one step; RK4() on LogSNR(steps=1) asks the "
        )
        assert row["where"] is not None
        assert row["where"].startswith("sampler.py:")
        assert row["traceback"] is not None
        assert row["traceback"].startswith("Traceback (most recent call last):")
        assert row["status"] in " ".join(row["traceback"].split())
        assert str(Path(__file__).parents[1]) not in row["traceback"]
        assert (row["nfe"], row["steps"]) == (None, None)
    assert len(report.entries["RK4", 8].values) == 2
    assert "RK4 at NFE 2: BudgetError: A budget must pay for one step" in report.table()
    assert report.best(2) == "DDIM"


def test_failed_cells_are_tried_again_and_the_same_failure_is_told_once(path: Path) -> None:
    report = study(metric=broken).run(path)
    assert {row["status"] for row in values(report)} == {"ZeroDivisionError: no samples are good enough"}
    assert {row["status"] == "ok" and row["nfe"] for row in draws(report)} >= {2, 5, 10}  # drawn, not measured
    before = path.read_bytes()
    study(metric=broken).run(path, progress=(spy := Spy()))
    assert len(spy.seen) == 18
    assert path.read_bytes() == before
    assert [report.best(budget) for budget in (2, 5, 10)] == [None] * 3
    assert "| DDIM |     – |" in report.table()
    assert "nan" not in report.table()


def test_a_cell_that_failed_once_can_come_right(path: Path) -> None:
    class Flaky:
        works = threading.Event()  # no flag, which would be part of what the metric is

        def __call__(self, samples: Tensor) -> float:
            if not self.works.is_set():
                raise OSError("disk away")
            return 1.0

    metric = Flaky()
    assert study(metric=metric).run(path).best(5) is None
    Flaky.works.set()
    assert study(metric=metric).run(path).entries["DDIM", 5] == Entry((1.0, 1.0), nfe=5)
    assert len(lines(path)) == 18 + 36
    assert Report.read(path).entries["DDIM", 5].complete


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_never_the_best(path: Path, bad: float) -> None:
    """One seed of the better method is spoilt: its mean over the rest must not win."""

    def metric(samples: Tensor) -> float:
        metric.count += 1  # type: ignore[attr-defined]
        return [0.1, bad, 0.5, 0.6][metric.count - 1]  # type: ignore[attr-defined]

    metric.count = 0  # type: ignore[attr-defined]
    report = study(methods={"DDIM": DDIM, "DDPM": DDPM}, budgets=(5,), metric=metric).run(path)
    assert report.best(5) == "DDPM"
    assert [row["status"] for row in values(report)] == ["ok", "not finite", "ok", "ok"]
    assert "0.100 (1 of 2)" in report.table()
    assert report.entries["DDPM", 5].mean == 0.55
    assert all(isinstance(row["value"], float | None) for row in values(report))


def test_a_state_that_is_not_finite_is_a_row(path: Path) -> None:
    class Diverging(Gauss):
        def __call__(self, x: Tensor, t: Any) -> Prediction:
            return replace(super().__call__(x, t), answer=x / 0)

    report = study(model=Diverging()).run(path)
    assert all(row["status"].startswith("FloatingPointError: Every state must stay finite") for row in report.rows)
    assert values(report) == []


def test_a_kill_from_the_keyboard_is_no_failure(path: Path) -> None:
    def interrupt(samples: Tensor) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(metric=interrupt).run(path)
    assert path.read_bytes() == b""


# Cost -------------------------------------------------------------------------------------------------------


def draw(cell: Generated, model: Any, n: int, batch: int) -> list[Drawn]:
    contender = cell.ready(model, lambda tuned, fit: fit())
    return list(cell.draw(contender, model, n, batch))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("grid", [Denoised(LogSNR(1)), Uniform(1)])
def test_budgets_are_used_as_far_as_steps_go(name: str, grid: Any) -> None:
    """Every call of a counting model, against the row: not one more than the budget, and no step more would fit."""

    class Counting(Gauss):
        def __call__(self, x: Tensor, t: Any) -> Prediction:
            calls.append(x.shape)
            return super().__call__(x, t)

    for budget in (4, 7, 20):
        calls: list[Any] = []
        sampler = Sampler(METHODS[name], grid)
        if replace(sampler, grid=grid.with_steps(1)).nfe(Gauss()) > budget:
            continue
        (drawn,) = draw(Generated(name, sampler, budget, 0, (3, 2), "model"), Counting(), n=3, batch=3)
        assert drawn.steps is not None
        assert drawn.nfe == len(calls) <= budget
        assert set(calls) == {(3, 2)}
        assert replace(sampler, grid=grid.with_steps(drawn.steps + 1)).nfe(Gauss()) > budget


def test_counted_calls_of_a_guided_model(path: Path) -> None:
    """A model that asks its network twice gets half the steps."""
    report = study(model=Gauss(calls=2), budgets=(5, 10)).run(path)
    found = {(row["method"], row["budget"]): (row["nfe"], row["steps"]) for row in draws(report)}
    assert found["DDIM", 5] == (4, 2)
    assert found["DDIM", 10] == (10, 5)
    assert found["Heun", 10] == (10, 3)


def test_a_budget_below_one_step() -> None:
    rk4 = Sampler(Method(ProbabilityFlow(), RK4()), LogSNR(1))
    with pytest.raises(ValueError, match=r"asks the network 4 times for it, got a budget of 3\. Raise the budget"):
        rk4.within(3, Gauss())
    with pytest.raises(ValueError, match="Times has 1 explicit steps"):
        replace(rk4, grid=Times((1.0, 0.5))).within(8, Gauss())


def test_samplers_go_to_json_and_back() -> None:
    sampler = Sampler(DDPM, Denoised(Karras(5)))
    assert Sampler.from_json(json.loads(json.dumps(sampler.to_json()))) == sampler


# Samples ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP(), RectifiedFlow(t_max=0.999)])
def test_all_methods_start_from_the_same_noise(path: Path, process: Process) -> None:
    starts: dict[tuple[int, float], list[Tensor]] = {}

    class Watching(Gauss):
        def __call__(self, x: Tensor, t: Any) -> Prediction:
            if float(t) == self.process.t_max and x.shape == (64, 2):
                starts.setdefault((seed, float(t)), []).append(x)
            return super().__call__(x, t)

    for seed in (0, 1):
        study(model=Watching(process), seeds=(seed,), metric=lambda x: 0.0).run(path)
    for first, *others in starts.values():
        assert len(others) == 8
        assert all(torch.equal(first, other) for other in others)
    (a, *_), (b, *_) = starts.values()
    assert not torch.equal(a, b)
    assert float(a.std()) == pytest.approx(float(process.sigma(process.t_max)), rel=0.2)


@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_the_batch_size_does_not_matter(name: str, batch: int) -> None:
    sampler = Sampler({"DDIM": DDIM, "DDPM": DDPM}[name], Denoised(LogSNR(1)))
    cell = Generated(name, sampler, 5, 3, (20, 2), "model")
    (whole,) = draw(cell, Gauss(), n=20, batch=20)
    parts = draw(cell, Gauss(), n=20, batch=batch)
    torch.testing.assert_close(torch.cat([part.x for part in parts]), whole.x)
    assert {(part.nfe, part.steps) for part in parts} == {(whole.nfe, whole.steps)} == {(5, 5)}


def test_a_module_is_evaluated_and_left_as_it_was(path: Path) -> None:
    """Without gradients and without dropout, which would also draw from the global generator."""
    grads, model = [], linear()

    def metric(samples: Tensor) -> float:
        grads.append(samples.requires_grad)
        return float(samples.detach().square().mean())

    model.net.body.eval()
    study(model=model, metric=metric, budgets=(2,), grid=Uniform(1)).run(path)
    assert grads == [False] * 6
    assert [module.training for module in model.modules()] == [True, True, False, False, False, False]


# The floor --------------------------------------------------------------------------------------------------


def test_the_floor_at_equal_n(path: Path) -> None:
    report = study(floor=real(64)).run(path)
    assert report.floor == Entry((pytest.approx(Moments()(real(64)), rel=1e-5),))  # one value: all seeds would agree
    assert draws(report)[0]["method"] == "real data"
    first = draws(report)[0]
    assert (first["samples"], first["budget"], first["nfe"], first["model"]) == (64, None, None, None)
    *_, last = [line for line in report.table().splitlines() if line.startswith("|")]
    assert last.split("|")[1].strip() == "real data"
    assert len({cell.strip() for cell in last.split("|")[2:-1]}) == 1
    assert "*" not in last
    assert "real data: held out, against the same reference, at the same n = 64." in report.table()


def test_fewer_held_out_than_samples(path: Path) -> None:
    seen: list[int] = []

    def metric(samples: Tensor) -> float:
        seen.append(len(samples))
        return 1.0

    report = study(floor=real(40), metric=metric).run(path)
    assert set(seen) == {40}
    assert {(row["samples"], row["shape"][0]) for row in draws(report)} == {(40, 40), (40, 64)}
    assert "Every value is of 40 samples, as many as are held out, not of the 64 asked for." in report.table()


def test_more_held_out_than_samples(path: Path) -> None:
    report = study(floor=real(200), seeds=(0, 1, 2)).run(path)
    assert report.floor is not None
    assert len(set(report.floor.values)) == 3
    assert {row["samples"] for row in draws(report)} == {64}
    assert "of the 200 held out, each seed takes 64 by lot." in report.table()


def test_the_floor_is_shared_by_the_studies_of_all_models(path: Path) -> None:
    study(floor=real(64)).run(path)
    study(floor=real(64), model=Gauss(VP(t_min=1e-2))).run(path, progress=(spy := Spy()))
    assert {cell.method for cell in spy.seen} == {"DDIM", "Heun", "DDPM"}


# The report -------------------------------------------------------------------------------------------------


def test_rows_say_how_they_came_about(path: Path) -> None:
    report = study(floor=real(64)).run(path)
    row, value = draws(report)[-1], values(report)[-1]
    assert row.keys() == DrawRow.__required_keys__ | DrawRow.__optional_keys__
    assert value.keys() == ValueRow.__required_keys__
    assert [row, value] == lines(path)[-2:]
    assert row["id"] == value["id"]
    assert (row["model"], row["print"]) == ("model", fingerprint((Gauss(), VP())))
    assert (value["metric"], value["measure"], value["stderr"]) == ("moments", fingerprint(Moments()), None)
    assert row["commit"] is None or len(row["commit"].removesuffix("-dirty")) == 40
    assert row["sampler"] is not None
    assert Sampler.from_json(row["sampler"]) == Sampler(DDPM, Denoised(LogSNR(1)))
    assert VP.from_json(row["process"]) == VP()
    assert (row["method"], row["budget"], row["seed"], row["steps"], row["nfe"]) == ("DDPM", 10, 1, 10, 10)
    assert (row["device"], row["threads"], row["torch"]) == ("cpu", 1, torch.__version__)
    assert sys.modules["sdekit"].__version__ == row["sdekit"]
    assert row["seconds"] is not None
    assert row["cpu_seconds"] is not None
    assert min(row["seconds"], row["cpu_seconds"]) > 0
    assert row["date"].endswith("+00:00")


def test_a_process_made_of_functions_is_described_by_its_type(path: Path) -> None:
    def resume() -> int:
        process = FromDrift(rate=lambda t: -0.5 * torch.ones_like(t), noise=torch.ones_like, t_max=6.0)
        report = study(model=Gauss(process), grid=Uniform(1), budgets=(5,)).run(path, progress=(spy := Spy()))
        assert draws(report)[0]["process"] == {"type": "FromDrift"}
        return len(spy.seen)

    assert (resume(), resume()) == (6, 0)


# Bad calls --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"methods": {}}, ValueError, "at least one method"),
        ({"methods": {"DDIM": DDIM.solver}}, TypeError, "'DDIM' is Exponential"),
        ({"methods": {"real data": DDIM}}, ValueError, "names the floor"),
        ({"grid": 20}, TypeError, "grid must be a Grid; got 20"),
        ({"metric": 1.0}, TypeError, "metric must be a callable"),
        ({"shape": ()}, ValueError, "shape must hold whole numbers of at least 1"),
        ({"shape": (0, 2)}, ValueError, "shape must hold whole numbers of at least 1"),
        ({"budgets": ()}, ValueError, "budgets must hold"),
        ({"budgets": (0, 5)}, ValueError, "budgets must hold whole numbers of at least 1"),
        ({"budgets": (5.0,)}, ValueError, "budgets must hold whole numbers"),
        ({"budgets": (5, 10, 5)}, ValueError, "budgets must all differ"),
        ({"seeds": (1, 1)}, ValueError, "seeds must all differ"),
        ({"seeds": (-1,)}, ValueError, "seeds must hold whole numbers of at least 0"),
        ({"floor": torch.zeros(10, 3)}, ValueError, r"shape drawn, \(2,\) each; got a batch of shape \(10, 3\)"),
        ({"floor": torch.zeros(0, 2)}, ValueError, r"got a batch of shape \(0, 2\)"),
    ],
)
def test_bad_studies(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        study(**changes)


def test_bad_runs(path: Path) -> None:
    with pytest.raises(ValueError, match="batch must hold whole numbers of at least 1"):
        study().run(path, batch=0)
    path.mkdir(parents=True)
    with pytest.raises(OSError, match="directory"):
        study().run(path)
