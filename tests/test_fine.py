"""The fine solution of a study: what it is, how methods are held against it, and where a report says so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from study_rows import ROWS, cell
from torch import Tensor

from sdekit import DDIM, VP, Gaussian
from sdekit.metrics import FrechetDistance, PairedMedian
from sdekit.study import FlowError, Report, Study, Tuned
from sdekit.study.rows import FINE, REAL
from sdekit.study.storage import Store
from sdekit.study.words import answers

EXACT = Gaussian(VP(), torch.full((2,), 0.3), 0.5)
NEAR = {"DDIM": (2.0, 2.2, 2.1), "Heun": (1.5, 1.6, 1.4), "Euler": (1.0001, 1.1, 0.9999)}


def told(gaps: dict[str, Any], **changes: Any) -> Report:
    rows = [*cell(REAL, None, (0.9, 1.0, 1.1)), *cell(FINE, 400, (1.0, 1.1, 1.0), **changes)]
    return Report(tuple(rows + [row for name, numbers in gaps.items() for row in cell(name, 5, numbers)]))


def study(**changes: Any) -> Study:
    given = {"model": EXACT, "methods": {"DDIM": DDIM}, "metric": [torch.std, FlowError(budget=40)], "shape": (60, 2)}
    return Study(**{**given, "budgets": (3, 6), "seeds": (0, 1), **changes})


# In a study -----------------------------------------------------------------------------------------------------------


def test_it_is_drawn_once_for_a_seed_and_measured_by_all_other_metrics(tmp_path: Path) -> None:
    calls = 0

    class Counted(Gaussian):
        def __call__(self, x: Tensor, t: Any) -> Any:
            nonlocal calls
            calls += len(x) > 1
            return super().__call__(x, t)

    report = study(model=Counted(VP(), torch.full((2,), 0.3), 0.5)).run(tmp_path / "a.jsonl")
    assert [(row["method"], row["budget"]) for row in report.rows if row["kind"] == "draw"][:3] == [
        (FINE, 40), (FINE, 40), ("DDIM", 3),
    ]  # fmt: skip
    std, flow = report.of(metric="std"), report.of(metric="RMSE to the flow")
    assert std.fine is not None
    assert (std.fine.complete, len(std.fine.values)) == (True, 2)
    assert 30 < (std.fine.nfe or 0) <= 40
    assert calls == 2 * ((std.fine.nfe or 0) + 3 + 6) + 3  # and three that time one
    assert flow.fine is None
    for found in (std, flow):
        assert (found.methods, found.budgets) == (["DDIM"], [3, 6])
    gaps = std.behind_fine(3)["DDIM"]
    drawn = std.entries["DDIM", 3].values
    assert gaps.deltas == pytest.approx([a - b for a, b in zip(drawn, std.fine.values, strict=True)])


def test_the_error_is_against_it(tmp_path: Path) -> None:
    mine = study(
        metric=[
            FrechetDistance(None, EXACT.sample(100, torch.Generator().manual_seed(0))),
            FlowError(budget=40),
            FlowError(PairedMedian, budget=20),
        ]
    )
    report = mine.run(tmp_path / "a.jsonl")
    rows = {(row["method"], row["budget"], row["seed"]): row for row in report.rows if row["kind"] == "draw"}
    assert {key[1] for key in rows if key[0] == FINE} == {40}  # the finest of several
    store = Store(tmp_path / "a.jsonl")
    kept = [store.samples(rows[key]["id"]) for key in ((FINE, 40, 0), ("DDIM", 6, 0))]
    apart = (kept[0] - kept[1]).flatten(1)
    rmse = report.of(metric="RMSE to the flow").entries["DDIM", 6].values[0]
    assert rmse == pytest.approx(float(apart.square().mean().sqrt()), rel=1e-5)


def test_two_processes_draw_it_no_more_than_one(tmp_path: Path) -> None:
    mine = study(methods={"DDIM": DDIM, "tuned": Tuned(DDIM, study().grid, starts=24)})
    one, two = mine.run(tmp_path / "a.jsonl"), mine.run(tmp_path / "b.jsonl", workers=2)
    assert one.table() == two.table()
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "a.jsonl").read_text().splitlines()) == 2 * (1 + 2 * 2) + 2 * (1 + 4 * 2)


def test_a_method_must_not_take_its_name() -> None:
    with pytest.raises(ValueError, match="must not be called 'fine solution', which names what a FlowError compares"):
        study(methods={FINE: DDIM})


# In a report ----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 60).filter(lambda n: n != 5))
def test_it_is_never_ranked_whatever_its_budget(budget: int) -> None:
    rows = (*ROWS, *cell(FINE, budget, (0.01, 0.011)))
    with_it, without = Report(rows).of(), Report(ROWS).of()
    assert (with_it.methods, with_it.budgets, with_it.entries) == (without.methods, without.budgets, without.entries)
    assert with_it.ranking(5) == without.ranking(5)
    assert with_it.fine is not None
    assert with_it.fine.values == (0.01, 0.011)


def test_how_much_worse_is_paired() -> None:
    found = told({"Heun": (1.5, 1.6, 1.5)}).of()
    gap = found.behind_fine(5)["Heun"]
    assert gap.value == pytest.approx(0.5)
    assert gap.interval.high - gap.interval.low < 1e-9 < found.entries["Heun", 5].interval.high - 1.54


def test_where_higher_is_better_less_is_worse() -> None:
    rows = [*cell(FINE, 400, (0.9, 0.8)), *cell("DDIM", 5, (0.5, 0.4)), *cell("Heun", 5, (0.95, 0.85))]
    rows = [row | {"higher_is_better": True} if row["kind"] == "value" else row for row in rows]
    gaps = Report(tuple(rows)).of().behind_fine(5)
    assert gaps["DDIM"].value == pytest.approx(0.4)
    assert gaps["Heun"].value == pytest.approx(-0.05)


def test_the_table_says_who_has_reached_it() -> None:
    table = told(NEAR).table()
    assert "| fine solution |     1.03 ± 0.14 |\n" in table
    assert "- fine solution: of the same network's flow from the same starts, by 400 network calls.\n" in table
    _, rows = table.split("**FD**, how much worse than the fine solution: paired, ± 95% interval.")
    for row in ("| DDIM  |           1.07 ± 0.14 |", "| Heun  |         0.467 ± 0.143 |", "| **(0.00 ± 2.48)e-04** |"):
        assert row in rows
    (answer,) = answers(told(NEAR).of())
    assert "As good as the fine solution, so far as can be told: Euler." in answer.text
    (answer,) = answers(told({"DDIM": NEAR["DDIM"]}).of())
    assert "Every method is worse than the fine solution." in answer.text
    (answer,) = answers(told({"a": NEAR["Euler"], "b": NEAR["Euler"]}).of())
    assert "No method can be told to be worse than the fine solution." in answer.text


def test_it_is_in_the_records_the_plot_and_the_page(tmp_path: Path) -> None:
    report = told(NEAR)
    first, *_, real, fine = report.records
    assert first["fine_gap"] == pytest.approx(3.2 / 3)
    assert first["fine_gap_low"] < first["fine_gap"] < first["fine_gap_high"]
    assert (real["method"], fine["method"], fine["nfe"], fine["budget"]) == (REAL, FINE, 400, None)
    (axes,) = report.plot().axes
    assert FINE in {text.get_text() for text in axes.texts}
    page = report.html(tmp_path / "a.html").read_text()
    assert page.count('<th scope="row">fine solution</th>') == 1
    assert "How much worse than the fine solution" in page
    assert "<title>fine solution: 1.03 ± 0.14</title>" in page


@pytest.mark.parametrize("status", ["ok", "ValueError: no"])
def test_one_without_values_compares_with_nothing(status: str) -> None:
    rows = [row | ({"value": None, "status": "not finite"} if row["kind"] == "value" else {"status": status})
            for row in cell(FINE, 400, (1.0, 1.1))]  # fmt: skip
    report = Report((*rows, *cell("DDIM", 5, (2.0, 2.1))))
    assert report.of().behind_fine(5) == {}
    assert math.isnan(report.fine.mean if report.fine else 0.0)
    assert "how much worse" not in report.table()
    assert "| fine solution |" in report.table()
