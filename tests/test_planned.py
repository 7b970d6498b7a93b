"""Plans in a study: a fit that fails is tried once in a run, and again in the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_study import draws, lines, oracle, study, values

from sdekit import DDIM, Denoised, GaussianMixture, LogSNR
from sdekit.guidance import Interval, classifier_free
from sdekit.study import Tuned, planned

TUNED = Tuned(DDIM, Denoised(LogSNR(1)), starts=24)


class Failing:
    """In the place of `tune`: fails as often as asked, and each time says so in other words."""

    def __init__(self, failures: int) -> None:
        self.failures, self.tries, self.tune = failures, 0, planned.tune

    def __call__(self, *args: Any, **settings: Any) -> Any:
        self.tries += 1
        if self.tries <= self.failures:
            raise ArithmeticError(f"try {self.tries}")
        return self.tune(*args, **settings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "study.jsonl"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_fit_that_fails_is_tried_once_in_a_run(path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    joblib = pytest.importorskip("joblib")
    monkeypatch.setattr(planned, "tune", failing := Failing(2))
    mine = study(model=oracle(), methods={"tuned": TUNED, "DDIM": DDIM}, budgets=(3, 4), seeds=(0, 1, 2))
    with joblib.parallel_config(backend="threading"):
        report = mine.run(path, workers=workers)
    assert failing.tries == 2  # one for each budget
    for budget in (3, 4):
        rows = [row for row in draws(report) if (row["method"], row["budget"]) == ("tuned", budget)]
        ((status, where, told),) = {(row["status"], row["where"], row["traceback"]) for row in rows}
        assert len(rows) == 3
        assert status.startswith("ArithmeticError: try ")
        assert where is not None
        assert where.endswith("in __call__")
        assert told is not None
        assert "in fit" in told
    assert len(values(report)) == 6
    again = mine.run(path)
    assert failing.tries == 4
    assert {row["status"] for row in again.rows} == {"ok"}
    assert len(values(again)) == 12


def test_a_fit_that_fails_again_is_no_news(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planned, "tune", failing := Failing(10))
    mine = study(model=oracle(), methods={"tuned": TUNED}, budgets=(3,))
    mine.run(path)
    said = mine.run(path)
    assert failing.tries == 2
    assert [row["status"] for row in said.rows] == ["ArithmeticError: try 2"] * 2
    assert len(lines(path)) == 4


@pytest.mark.parametrize("budget", [7, 12])
def test_a_plan_whose_times_move_stays_within_its_budget(path: Path, budget: int) -> None:
    """Guided in an interval, a model costs two calls inside and one outside, and the fit may move answers inside."""
    law = oracle()
    other = GaussianMixture(law.process, torch.zeros(1, *law.shape), 1.0)
    guided = classifier_free(law, other, 1.5, Interval(-2.0, 1.0))
    report = study(model=guided, methods={"tuned": TUNED}, budgets=(budget,), seeds=(0,)).run(path)
    (row,) = draws(report)
    assert row["status"] == "ok"
    assert budget // 2 <= (row["nfe"] or 0) <= budget
