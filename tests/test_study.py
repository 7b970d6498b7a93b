"""Studies: a kill loses nothing, a failure costs one cell, and every figure in the table can be accounted for."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
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
from sdekit.prediction import X0, Prediction
from sdekit.process import Process
from sdekit.study import Entry, Report, Row, Sampler, Study
from sdekit.study.cells import Cell, Generated
from sdekit.study.fingerprint import fingerprint

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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "study.jsonl"


class Spy:
    """A progress bar that remembers the cells it has seen, and may stop after some of them."""

    def __init__(self, stop: int = 10**9) -> None:
        self.seen: list[Cell] = []
        self.stop = stop

    def __call__(self, cells: Any) -> Iterator[Cell]:
        for cell in cells[: self.stop]:
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
    done = path.read_bytes().count(b"\n")

    spy, total = Spy(), 1 + 3 * 3 * 2
    slow = study(metric=Moments(wait=0.05), floor=real(64))
    resumed = slow.run(path, progress=spy)
    assert 4 <= done < total
    assert len(spy.seen) == total - done  # the ids of another process are ours
    assert len({row["id"] for row in lines(path)}) == len(lines(path)) == total
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
    assert [row["id"] for row in lines(path)] == [row["id"] for row in clean.rows]
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
    with pytest.raises(ValueError, match="one model to be comparable"):
        Report.read(path)


def test_a_run_may_stop_early(path: Path) -> None:
    part = study().run(path, progress=Spy(stop=7))
    assert part.rows == study().run(path, progress=(rest := Spy())).rows[:7]
    assert len(rest.seen) == 11


def test_a_new_label_costs_nothing(path: Path) -> None:
    study(methods={"DDIM": DDIM}).run(path)
    report = study(methods={"first order": DDIM, "the same": DDIM}).run(path, progress=(spy := Spy()))
    assert report.methods == ["first order", "the same"]
    assert spy.seen == []


def test_each_row_is_on_the_disk_before_the_next_cell(path: Path) -> None:
    counts = []

    def watch(cells: Any) -> Iterator[Cell]:
        for cell in cells:
            counts.append(path.read_bytes().count(b"\n"))
            yield cell

    study().run(path, progress=watch)
    assert counts == list(range(18))


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


# Failures ---------------------------------------------------------------------------------------------------


def test_a_failing_cell_is_a_row_and_the_study_goes_on(path: Path) -> None:
    methods = {"DDIM": DDIM, "RK4": Sampler(METHODS["rk4"], LogSNR(1))}
    report = study(methods=methods, budgets=(2, 8)).run(path)
    failed = [row for row in report.rows if row["status"] != "ok"]
    assert [(row["method"], row["budget"], row["seed"]) for row in failed] == [("RK4", 2, 0), ("RK4", 2, 1)]
    for row in failed:
        assert row["status"].startswith(
            "ValueError: A budget must pay for one step; RK4() on LogSNR(steps=1) asks the "
        )
        assert row["where"] is not None
        assert row["where"].startswith("sampler.py:")
        assert (row["value"], row["nfe"], row["steps"]) == (None, None, None)
    assert len(report.entries["RK4", 8].values) == 2
    assert "RK4 at NFE 2: ValueError: A budget must pay for one step" in report.table()
    assert report.best(2) == "DDIM"


def test_failed_cells_are_tried_again_and_the_same_failure_is_told_once(path: Path) -> None:
    report = study(metric=broken).run(path)
    assert {row["status"] for row in report.rows} == {"ZeroDivisionError: no samples are good enough"}
    assert {row["seconds"] is not None and row["nfe"] for row in report.rows} >= {2, 5, 10}  # drawn, not measured
    before = path.read_bytes()
    study(metric=broken).run(path, progress=(spy := Spy()))
    assert len(spy.seen) == 18
    assert path.read_bytes() == before
    assert [report.best(budget) for budget in (2, 5, 10)] == [None] * 3
    assert "| DDIM |     – |" in report.table()
    assert "nan" not in report.table()


def test_a_cell_that_failed_once_can_come_right(path: Path) -> None:
    class Flaky:
        works = False

        def __call__(self, samples: Tensor) -> float:
            if not self.works:
                raise OSError("disk away")
            return 1.0

    metric = Flaky()
    assert study(metric=metric).run(path).best(5) is None
    Flaky.works = True
    assert study(metric=metric).run(path).entries["DDIM", 5] == Entry((1.0, 1.0), nfe=5)
    assert len(lines(path)) == 36
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
    assert report.rows[1]["status"].startswith("FloatingPointError: A metric must return a finite number; metric ret")
    assert "0.100 (1 of 2)" in report.table()
    assert "**0.550 ± 0.071**" in report.table()
    assert all(isinstance(row["value"], float | None) for row in lines(path))


def test_a_state_that_is_not_finite_is_a_row(path: Path) -> None:
    class Diverging(Gauss):
        def __call__(self, x: Tensor, t: Any) -> Prediction:
            return replace(super().__call__(x, t), answer=x / 0)

    report = study(model=Diverging()).run(path)
    assert all(row["status"].startswith("FloatingPointError: Every state must stay finite") for row in report.rows)


def test_a_kill_from_the_keyboard_is_no_failure(path: Path) -> None:
    def interrupt(samples: Tensor) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        study(metric=interrupt).run(path)
    assert path.read_bytes() == b""


# Cost -------------------------------------------------------------------------------------------------------


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
        drawn = Generated(name, sampler, budget, 0, (3, 2)).draw(Counting(), n=3, batch=3)
        assert drawn.steps is not None
        assert drawn.nfe == len(calls) <= budget
        assert set(calls) == {(3, 2)}
        assert replace(sampler, grid=grid.with_steps(drawn.steps + 1)).nfe(Gauss()) > budget


def test_counted_calls_of_a_guided_model(path: Path) -> None:
    """A model that asks its network twice gets half the steps."""
    report = study(model=Gauss(calls=2), budgets=(5, 10)).run(path)
    found = {(row["method"], row["budget"]): (row["nfe"], row["steps"]) for row in report.rows}
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
    cell = Generated(name, sampler, 5, 3, (20, 2))
    whole = cell.draw(Gauss(), n=20, batch=20)
    parts = cell.draw(Gauss(), n=20, batch=batch)
    torch.testing.assert_close(parts.x, whole.x)
    assert (parts.nfe, parts.steps) == (whole.nfe, whole.steps) == (5, 5)


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
    assert report.rows[0]["method"] == "real data"
    assert (report.rows[0]["samples"], report.rows[0]["budget"], report.rows[0]["nfe"]) == (64, None, None)
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
    assert {(row["samples"], row["shape"][0]) for row in report.rows} == {(40, 40), (40, 64)}
    assert "Every value is of 40 samples, as many as are held out, not of the 64 asked for." in report.table()


def test_more_held_out_than_samples(path: Path) -> None:
    report = study(floor=real(200), seeds=(0, 1, 2)).run(path)
    assert report.floor is not None
    assert len(set(report.floor.values)) == 3
    assert {row["samples"] for row in report.rows} == {64}
    assert "of the 200 held out, each seed takes 64 by lot." in report.table()


def test_the_floor_is_shared_by_the_studies_of_all_models(path: Path) -> None:
    study(floor=real(64)).run(path)
    study(floor=real(64), model=Gauss(VP(t_min=1e-2))).run(path, progress=(spy := Spy()))
    assert {cell.method for cell in spy.seen} == {"DDIM", "Heun", "DDPM"}


# The report -------------------------------------------------------------------------------------------------


def test_rows_say_how_they_came_about(path: Path) -> None:
    row = study(floor=real(64)).run(path).rows[-1]
    assert row.keys() == Row.__required_keys__
    assert row == lines(path)[-1]
    assert row["sampler"] is not None
    assert Sampler.from_json(row["sampler"]) == Sampler(DDPM, Denoised(LogSNR(1)))
    assert VP.from_json(row["process"]) == VP()
    assert (row["method"], row["budget"], row["seed"], row["steps"], row["nfe"]) == ("DDPM", 10, 1, 10, 10)
    assert (row["device"], row["threads"], row["torch"]) == ("cpu", 1, torch.__version__)
    assert sys.modules["sdekit"].__version__ == row["sdekit"]
    assert row["seconds"] is not None
    assert row["seconds"] > 0
    assert row["date"].endswith("+00:00")


def test_a_process_made_of_functions_is_described_by_its_type(path: Path) -> None:
    def resume() -> int:
        process = FromDrift(rate=lambda t: -0.5 * torch.ones_like(t), noise=torch.ones_like, t_max=6.0)
        report = study(model=Gauss(process), grid=Uniform(1), budgets=(5,)).run(path, progress=(spy := Spy()))
        assert report.rows[0]["process"] == {"type": "FromDrift"}
        return len(spy.seen)

    assert (resume(), resume()) == (6, 0)


def row(method: str = "DDIM", budget: int | None = 5, seed: int = 0, **changes: Any) -> Row:
    """A row as a study would write it."""
    base = {key: None for key in Row.__required_keys__}
    told = {"id": f"{method} {budget} {seed}", "method": method, "budget": budget, "seed": seed, "status": "ok"}
    rest = {"nfe": budget, "metric": "FD", "samples": 400, "shape": [400, 2], "model": "m", "value": 1.0}
    return base | told | rest | changes  # type: ignore[return-value]


ROWS = (
    row("real data", None, 0, value=0.09),
    row("real data", None, 1, value=0.11),
    *(row("DDIM", 5, s, value=v) for s, v in enumerate((0.8, 0.9))),
    *(row("Heun", 5, s, value=v, nfe=4) for s, v in enumerate((0.5, 0.54))),
    *(row("DDIM", 50, s, value=v) for s, v in enumerate((0.201, 0.202))),
    row("Heun", 50, 0, value=0.0001),
    row("Heun", 50, 1, value=None, nfe=None, status="ValueError: too | long"),
)


def test_the_table() -> None:
    assert Report(ROWS).table() == (
        "**FD** of 400 samples, mean ± sd over 2 seeds; lower is better, the best at each NFE is bold.\n"
        "\n"
        "|           |                 NFE 5 |              NFE 50 |\n"
        "| --------- | --------------------: | ------------------: |\n"
        "| DDIM      |         0.850 ± 0.071 | **0.2015 ± 0.0007** |\n"
        "| Heun      | **0.520 ± 0.028 [4]** |   1.00e-04 (1 of 2) |\n"
        "| real data |         0.100 ± 0.014 |       0.100 ± 0.014 |\n"
        "\n"
        "- [k]: the network calls counted, where they are fewer than the budget.\n"
        "- real data: held out, against the same reference, at the same n = 400.\n"
        "- Heun at NFE 50: ValueError: too | long"
    )


def test_one_seed_has_no_spread() -> None:
    table = Report((row(value=0.1), row("Heun", value=0.2))).table()
    assert "±" not in table
    assert "**0.100**" in table


def test_the_best_of_a_budget() -> None:
    report = Report(ROWS)
    assert (report.best(5), report.best(50)) == ("Heun", "DDIM")
    with pytest.raises(ValueError, match=r"one of the study's, \[5, 50\]; got 7"):
        report.best(7)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "a row of at least one method; got 0 rows"),
        ((row("real data", None),), "a row of at least one method; got 1 rows"),
        ((row(), row(seed=1, model="another")), "one model to be comparable; got another, m"),
        ((row(), row(seed=1, metric="SW2")), "one metric to be comparable; got FD, SW2"),
        ((row(), row("real data", None, samples=397)), "one samples to be comparable; got 397, 400"),
    ],
)
def test_rows_that_do_not_compare_make_no_report(rows: tuple[Row, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Report(rows)


# The plot ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_plot_is_written(tmp_path: Path, suffix: str) -> None:
    figure = Report(ROWS).plot(tmp_path / f"plot.{suffix}")
    (axes,) = figure.axes
    assert (tmp_path / f"plot.{suffix}").stat().st_size > 5000
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {text.get_text() for text in axes.texts} >= {"FD", "DDIM", "Heun", "real data"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "50"]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_the_plot_shows_the_calls_counted_and_whole_entries_only() -> None:
    (axes,) = Report(ROWS).plot().axes
    points = {tuple(map(tuple, line.get_xydata())) for line in axes.lines}
    assert ((4.0, 0.52),) in points  # Heun: 4 calls for a budget of 5, and at 50 a seed is missing


@pytest.mark.parametrize(
    "rows",
    [
        (row(),),
        (row(value=None, nfe=None, status="ValueError"),),
        (row(value=0.0), row(budget=9, value=-1.0)),
        tuple(row(f"method {k}", budget=b, value=1 + k / 1e3) for k in range(12) for b in (5, 50)),
    ],
)
def test_reports_at_the_edge_are_drawn_and_tabled(rows: tuple[Row, ...], tmp_path: Path) -> None:
    Report(rows).plot(tmp_path / "plot.png")
    assert Report(rows).table().startswith("**FD** of 400 samples;")


def test_names_do_not_overlap() -> None:
    rows = tuple(row(f"method {k}", value=1 + k / 1e3) for k in range(12))
    (axes,) = Report(rows).plot().axes
    heights = sorted(text.get_position()[1] for text in axes.texts if text.get_text().startswith("method"))
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.04


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "sdekit\[plot\]"'):
        Report(ROWS).plot()


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
