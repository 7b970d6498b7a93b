"""The suites that ship, small, and the commands that run them: killed, resumed, reported, compared."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sdekit import DDIM, HEUN, VP, DPMpp2M
from sdekit.cli import main
from sdekit.interop import Diffusers, Torchdiffeq
from sdekit.likelihood import Dequantization
from sdekit.metrics import FrechetDistance
from sdekit.study import FlowError, Function, Report, Study, Tuned
from sdekit.study.table import figures
from sdekit.suites import SUITES, Suite
from sdekit.suites.samplers import DIFFUSERS, OTHERS, OURS
from sdekit.suites.studies import Pooled, Rounded, ring
from sdekit.training import save

pytest.importorskip("diffusers")
yaml = pytest.importorskip("yaml")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Should have t[ab]"),
]
ROOT = Path(__file__).parents[1]


def drawn(count: int, seed: int) -> Tensor:
    return ring().sample(count, torch.Generator().manual_seed(seed))


def small() -> list[Study]:
    methods = {"DDIM": DDIM, "DPM++ 2M": DPMpp2M, "diffusers DDIM": Diffusers("DDIM")}
    metrics = FlowError(), FrechetDistance(None, drawn(500, 0))
    return [Study({"ring": ring()}, methods, metrics, (60, 2), floor=drawn(80, 1), budgets=(4, 8), seeds=(0, 1))]


@pytest.fixture
def tiny(monkeypatch):
    """A suite of its own that takes a second."""
    monkeypatch.setitem(SUITES, "tiny", Suite("tiny", small, "a ring, small"))


# The suites -----------------------------------------------------------------------------------------------------------


def test_the_suites_hold_what_they_promise():
    assert sum(isinstance(method, Tuned) for method in OURS.values()) == 1
    assert len(OURS) >= 6
    assert len(DIFFUSERS) >= 6
    assert set(SUITES) == {"analytic", "digits", "mnist", "patches"}
    assert all(len(suite.about) < 100 for suite in SUITES.values())


def test_every_sampler_of_the_suites_runs(tmp_path):
    """But for the tuned one, which is no quicker for being small."""
    methods = {label: method for label, method in (OURS | DIFFUSERS | OTHERS).items() if label != "sdekit tuned"}
    study = Study(ring(), methods, FrechetDistance(None, drawn(500, 0)), (40, 2), budgets=(20,), seeds=(0,))
    report = study.run(tmp_path / "rows.jsonl")
    assert [row["status"] for row in report.rows] == ["ok"] * (2 * len(methods))
    assert all(report.entries[method, 20].nfe <= 20 for method in methods)


def test_the_study_of_the_analytic_suite():
    pytest.importorskip("sklearn")
    first, second = SUITES["analytic"].studies
    assert first.shape == (1000, 2)
    assert second.shape == (1000, 64)
    assert {len(study.contenders) for study in (first, second)} == {len(OURS | DIFFUSERS | OTHERS)}


def test_features_are_of_rounded_images():
    features = Rounded(lambda x: x.flatten(1), Dequantization(3), "pixels")
    assert features(torch.tensor([[[0.4, 0.6], [-0.6, -2.0]]])).tolist() == [[0.0, 1.0, -1.0, -1.0]]
    assert Pooled()(torch.ones(2, 3, 32, 32)).shape == (2, 48)


def test_a_suite_measures_by_blocks(tmp_path):
    report = Suite("tiny", small, "").run(tmp_path / "rows.jsonl")
    difference = report.of(metric="FD[samples]").difference(("DDIM", 4), ("DPM++ 2M", 4))
    assert difference.blocks == 20
    assert difference.p < 0.05


def test_a_suite_reports_on_its_own_cells_in_its_own_order(tmp_path):
    """Whatever else is in the file, and however many workers have run it."""
    pytest.importorskip("joblib")
    rows = tmp_path / "rows.jsonl"
    whole = Suite("tiny", small, "").run(rows).table()
    assert "DDIM" in whole
    assert Suite("tiny", small, "").run(tmp_path / "two.jsonl", workers=2).table() == whole
    other = [replace(study, methods={**study.methods, "DDIM": HEUN}, budgets=(8,)) for study in small()]
    again = Suite("other", lambda: other, "").run(rows)
    assert again.of(metric="FD[samples]").budgets == [8]
    assert Suite("tiny", small, "").report(rows).table() == whole


# The commands ---------------------------------------------------------------------------------------------------------


def test_list(capsys):
    assert main(["bench", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(SUITES)


def test_plan_run_report_compare(tiny, tmp_path, capsys):
    out, page = tmp_path / "deep" / "rows.jsonl", tmp_path / "page.html"
    assert main(["bench", "plan", "tiny", "--out", str(out)]) == 0
    assert "16 cells: 0 done, 16 to do" in capsys.readouterr().out
    assert not out.exists()
    assert main(["bench", "run", "tiny", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert all(part in told for part in ("| DPM++ 2M", "NFE 8", "real data", "at 4 evaluations: ", str(out)))
    assert main(["bench", "resume", "tiny", "--out", str(out)]) == 0
    assert "16 cells: 16 done, 0 to do" in capsys.readouterr().out
    assert main(["bench", "report", str(out), "--html", str(page), "--csv", str(tmp_path / "a.csv")]) == 0
    assert "sdekit bench run rows" in page.read_text()
    assert len((tmp_path / "a.csv").read_text().splitlines()) > 12
    capsys.readouterr()
    assert main(["bench", "compare", str(out), "DPM++ 2M", "DDIM", "--nfe", "4"]) == 0
    law, flow = sorted(capsys.readouterr().out.splitlines())
    assert law.startswith("ring, FD[samples], 4 evaluations: DPM++ 2M beats DDIM, difference -")
    assert flow.startswith("ring, RMSE to the flow, 4 evaluations: DPM++ 2M ")
    assert re.search(r"p [=<] 0\.0\d+ of this pair alone$", law)
    assert main(["bench", "compare", str(out), "DDIM", "DPM++ 2M", "--nfe", "4"]) == 0
    assert "DDIM is beaten by DPM++ 2M" in capsys.readouterr().out


def test_methods_are_compared_with_real_data_and_the_fine_solution(tiny, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "run", "tiny", "--out", str(out)]) == 0
    found = Report.read(out).of(metric="FD[samples]")
    ours, real = found.entries["DDIM", 4].interval, found.levels["real data"].interval
    capsys.readouterr()

    def told(*names: str) -> tuple[str, str]:
        assert main(["bench", "compare", str(out), *names, "--nfe", "4"]) == 0
        law, flow = sorted(capsys.readouterr().out.splitlines())
        return law, flow

    law, flow = told("DDIM", "real data")
    reach = math.hypot(ours.high - ours.value, real.high - real.value)
    told_by = f"difference {figures(ours.value - real.value, reach)}, not paired"
    assert law == f"ring, FD[samples], 4 evaluations: DDIM cannot be told from real data, {told_by}"
    assert flow.endswith("no values of real data")
    law, flow = told("fine solution", "DDIM")
    gap = found.behind_fine(4)["DDIM"]
    assert f"fine solution beats DDIM, difference {figures(-gap.value, gap.interval.high - gap.value)}, p " in law
    assert flow.endswith("no values of fine solution")


def test_a_run_with_failures_says_so(tmp_path, monkeypatch, capsys):
    """A method that cannot run within a budget is none."""

    def fails(model, x, count):
        raise OSError("no luck")

    def studies(**methods) -> list[Study]:
        return [replace(small()[0], methods={"DDIM": DDIM, "rk4": Torchdiffeq("rk4"), **methods}, budgets=(3, 5))]

    monkeypatch.setitem(SUITES, "sound", Suite("sound", studies, ""))
    monkeypatch.setitem(SUITES, "broken", Suite("broken", lambda: studies(mine=Function(fails)), ""))
    assert main(["bench", "run", "sound", "--out", str(tmp_path / "rows.jsonl")]) == 0
    told = capsys.readouterr()
    assert "rk4 at NFE 3: BudgetError: A budget must pay for a step of rk4" in told.out
    assert "failed" not in told.err
    assert main(["bench", "run", "broken", "--out", str(tmp_path / "rows.jsonl")]) == 1
    told = capsys.readouterr()
    last = "4 of 16 cells failed; the first: mine on ring at 3 evaluations, seed 0: OSError: no luck"
    assert told.err.splitlines()[-1] == f"sdekit bench: {last}"
    assert "| DDIM" in told.out


def test_a_plan_names_the_model_of_each_study(monkeypatch, tmp_path, capsys):
    two = [replace(small()[0], model={label: ring()}) for label in ("one", "two")]
    monkeypatch.setitem(SUITES, "two", Suite("two", lambda: two, ""))
    assert main(["bench", "plan", "two", "--out", str(tmp_path / "rows.jsonl")]) == 0
    told = capsys.readouterr().out
    assert "one: 16 cells" in told
    assert "two: 16 cells" in told


def config(folder: Path) -> Path:
    """Write a study and its model to a folder."""
    from sdekit import Denoiser, Eps
    from sdekit.nets import MLP

    torch.save(drawn(300, 1), folder / "real.pt")
    with torch.random.fork_rng():
        save(folder / "net.safetensors", Denoiser(MLP((2,), hidden=16, depth=1), VP(), predicts=Eps()))
    path = folder / "mine.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "models": {"net": str(folder / "net.safetensors")},
                "methods": {
                    "DDIM": "ddim",
                    "theirs": {"type": "Diffusers", "scheduler": "UniPC", "options": [["solver_order", 3]]},
                    "rk4": {"type": "Torchdiffeq", "solver": "rk4"},
                },
                "metrics": [{"type": "EnergyDistance", "reference": str(folder / "real.pt")}],
                "shape": [100, 2],
                "budgets": [4, 8, 400],
                "seeds": 2,
            },
            sort_keys=False,
        )
    )
    return path


def test_a_study_in_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "run", str(config(tmp_path))]) == 0
    report = Report.read(tmp_path / "runs" / "mine.jsonl")
    assert report.methods == ["DDIM", "theirs", "rk4"]
    assert report.entries["theirs", 8].nfe == 8
    assert "runs/mine.jsonl" in capsys.readouterr().out


def test_a_study_does_not_take_the_file_of_a_suite(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config(tmp_path).rename("digits.yaml")
    assert main(["bench", "plan", "digits.yaml"]) == 2
    assert "is the file of the suite 'digits'" in capsys.readouterr().err
    assert main(["bench", "plan", "digits.yaml", "--out", "mine.jsonl"]) == 0


@pytest.mark.parametrize(("key", "value"), [("shape", []), ("seconds", "fast"), ("id", [1])])
def test_broken_rows_are_explained(tiny, tmp_path, capsys, key, value):
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "run", "tiny", "--out", str(out)]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_text("".join(json.dumps(row | ({key: value} if key in row else {})) + "\n" for row in rows))
    capsys.readouterr()
    assert main(["bench", "report", str(out)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "rows.jsonl must hold rows as a study writes them" in told


def test_killed_and_resumed(tmp_path):
    """The rows are those of a run that nobody disturbed."""
    study, rows = config(tmp_path), tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "sdekit.cli", "bench", "run", str(study), "--out", str(rows)]
    settings = {"cwd": ROOT, "env": {**os.environ, "OMP_NUM_THREADS": "1"}, "stdout": -3, "stderr": -3}
    run = subprocess.Popen(command, **settings)
    with contextlib.suppress(subprocess.TimeoutExpired):
        while not (rows.exists() and rows.read_text().count("\n") > 6):
            run.wait(0.01)
            assert time.monotonic()
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert subprocess.run([*command[:4], "resume", *command[5:]], **settings, check=False).returncode == 0
    assert main(["bench", "run", str(study), "--out", str(tmp_path / "whole.jsonl")]) == 0

    def values(path: Path) -> dict[tuple[str, str], float]:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return {(row["id"], row["metric"]): row["value"] for row in found if row["kind"] == "value"}

    assert values(rows) == values(tmp_path / "whole.jsonl")
    assert len(values(rows)) == 18


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["run", "digit"], "Did you mean digits"),
        (["plan", "none.yaml"], "none.yaml"),
        (["report", "none.jsonl"], "Run a suite first"),
        (["run", "tiny", "--workers", "0", "--out", "w.jsonl"], "workers must hold whole numbers of at least 1"),
        (["run", "tiny", "--out", "/proc/none/rows.jsonl"], "must be able to write"),
    ],
)
def test_what_cannot_be_done_is_explained(tiny, tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *command]) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_method_or_budget_is_explained(tiny, tmp_path, capsys):
    out = str(tmp_path / "rows.jsonl")
    assert main(["bench", "run", "tiny", "--out", out]) == 0
    assert main(["bench", "compare", out, "DDIM", "DPM++2M"]) == 2
    assert "Did you mean DPM++ 2M" in capsys.readouterr().err
    assert main(["bench", "compare", out, "DDIM", "DPM++ 2M", "--nfe", "4", "9"]) == 2
    assert "has nothing at 9 evaluations; it has [4, 8]" in capsys.readouterr().err


def test_a_missing_library_is_a_row_that_says_so(tiny, tmp_path, monkeypatch, capsys):
    """The rest of the suite is run; with the library there, the next run does what is left."""
    out = tmp_path / "rows.jsonl"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "diffusers", None)
        assert main(["bench", "run", "tiny", "--out", str(out)]) == 1
    assert 'pip install "sdekit[bench]"' in capsys.readouterr().out
    assert main(["bench", "resume", "tiny", "--out", str(out)]) == 0
    assert "16 cells: 12 done, 4 to do" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["plan"], ["run"], ["resume"], ["report"], ["compare"]])
def test_help_helps(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", *command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 100
