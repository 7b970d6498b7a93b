"""Reports: every figure with its interval, nothing ranked that failed, nothing compared that does not compare."""

from __future__ import annotations

import csv
import io
import itertools
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from study_rows import FAILED, ROWS, cell, draw, value, written
from torch import Tensor

from sdekit.metrics import FrechetDistance
from sdekit.metrics.paired import PairedRMSE
from sdekit.study import Report
from sdekit.study.blocks import kept, resample
from sdekit.study.comparison import compare
from sdekit.study.entry import Entry, Goal
from sdekit.study.figure import Cost
from sdekit.study.frame import COLUMNS
from sdekit.study.measure import Measure
from sdekit.study.rows import REAL, Rows
from sdekit.study.storage import Store
from sdekit.study.words import answers, p_value

# Tables -------------------------------------------------------------------------------------------------------


def test_the_table() -> None:
    """With two seeds t is 12.7, and an interval 12.7 / sqrt(2) sd; real data share half, so theirs is sqrt(3) wider."""
    assert Report(ROWS).table() == (
        "**FD** of 400 samples, mean ± 95% interval over 2 seeds; lower is better. Bold: the best at each NFE, and "
        "what cannot be told from it at 5%.\n"
        "\n"
        "|           |                 NFE 5 |            NFE 50 |\n"
        "| --------- | --------------------: | ----------------: |\n"
        "| DDIM      |         0.810 ± 0.127 | **0.202 ± 0.006** |\n"
        "| Heun      | **0.510 ± 0.133 [4]** | 1.00e-04 (1 of 2) |\n"
        "| real data |         0.100 ± 0.220 |     0.100 ± 0.220 |\n"
        "\n"
        "- [k]: the network calls counted, where they are fewer than the budget.\n"
        "- real data: held out, against the same reference, at the same n = 400; of the 800 held out, each seed takes "
        "400 by lot.\n"
        "- Heun at NFE 50: ValueError: too | long"
    )


def test_reading_gives_the_same_report(tmp_path: Path) -> None:
    assert Report.read(written(tmp_path / "a.jsonl")).table() == Report(ROWS).table()


def test_a_single_model_and_metric_need_not_be_named() -> None:
    report = Report(ROWS)
    assert (report.methods, report.budgets) == (["DDIM", "Heun"], [5, 50])
    assert report.entries["DDIM", 5] == Entry((0.8, 0.82), nfe=5)
    assert report.floor == Entry((0.09, 0.11))
    assert (report.best(5), report.best(50)) == ("Heun", "DDIM")
    with pytest.raises(ValueError, match=r"one of the study's, \[5, 50\]; got 7"):
        report.best(7)


def test_models_and_metrics_are_told_apart() -> None:
    rows: list[Any] = []
    for model, shift in (("small", 0.0), ("large", 1.0)):
        for drawn in cell("DDIM", 5, (1.0, 1.1), model=model, print=model)[::2]:
            drawn["id"] += model
            rows += [drawn, value(drawn, 1 + shift), value(drawn, 5 + shift, metric="KID", measure="k")]
    real = draw(REAL, None)
    rows += [real, value(real, 0.5)]
    report = Report(tuple(rows))
    assert list(report.findings) == [("small", "FD"), ("small", "KID"), ("large", "FD"), ("large", "KID")]
    found = {key: findings.entries["DDIM", 5].mean for key, findings in report.findings.items()}
    assert list(found.values()) == [1.0, 5.0, 2.0, 6.0]
    assert report.of("small", "FD").floor == report.of("large", "FD").floor == Entry((0.5,))
    assert report.of("small", "KID").floor is None
    assert "**large: KID** of 400" in report.table()
    assert len(report.plot().axes) == 4
    with pytest.raises(ValueError, match=r"got 2 that fit\. Ask for one of: model='small', metric='FD'"):
        report.of("small")
    with pytest.raises(ValueError, match="got 4 that fit"):
        report.best(5)


# What does not compare ----------------------------------------------------------------------------------------

ONE = cell("DDIM", 5, (1.0,))
OTHER = draw(seed=1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "a row of at least one method; got 0 rows"),
        (cell(REAL, None, (1.0,)), "a row of at least one method; got 1 rows"),
        (
            (*ONE, OTHER, value(OTHER, 1.0, measure="another")),
            "one measure to be comparable; got another, beef. The me",
        ),
        (
            (*ONE, draw(seed=1, print="another")),
            r"one model \(its print\) to be comparable; got another, f00d. Two mod",
        ),
        ((*ONE, draw(seed=1, samples=399)), "one samples to be comparable; got 399, 400"),
    ],
)
def test_rows_that_do_not_compare_make_no_report(rows: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Report(tuple(rows))


def test_real_data_by_another_measure_or_of_another_number_are_not_the_floor() -> None:
    real = draw(REAL, None)
    assert Report((*ONE, real, value(real, 1.0, measure="another"))).floor is None
    assert Report((*ONE, *cell(REAL, None, (1.0,), samples=397))).floor is None


# Failures -----------------------------------------------------------------------------------------------------


@given(st.sampled_from([math.nan, math.inf, -math.inf, None]), st.sampled_from(["ok", "not finite", "ValueError: no"]))
def test_what_has_no_value_is_never_ranked(number: float | None, status: str) -> None:
    bad = value(OTHER, number, status=status)
    report = Report((*ONE, OTHER, bad, *cell("Heun", 5, (7.0, 8.0))))
    assert report.best(5) == "Heun"
    assert [place.method for place in report.of().ranking(5)] == ["Heun"]
    assert report.entries["DDIM", 5].errors == ("not finite" if status == "ok" else status,)
    assert "DDIM at NFE 5" in report.table()
    assert answers(report.of())[0].text.endswith("Not ranked, for want of values: DDIM.")


def test_a_draw_that_failed_says_why_under_every_metric() -> None:
    rows = [*cell("DDIM", 50, (1.0, 2.0)), FAILED]
    more = [value(rows[0], 3.0, metric="KID", measure="k"), value(rows[2], 4.0, metric="KID", measure="k")]
    report = Report((*rows, *more))
    for metric in ("FD", "KID"):
        found = report.of(metric=metric)
        assert found.entries["Heun", 50].errors == ("ValueError: too | long", "no row yet of seed 0")
        assert found.best(50) == "DDIM"


def test_a_study_under_way_is_reported_without_ranking_what_is_half_done() -> None:
    report = Report((*cell("DDIM", 5, (1.0, 1.1)), *cell("Heun", 5, (0.1,)), draw("RK4", 5)))
    assert report.best(5) == "DDIM"
    assert report.entries["Heun", 5].errors == ("no row yet of seed 1",)
    assert report.methods == ["DDIM", "Heun"]  # nothing is known of the last


def test_all_may_have_failed() -> None:
    report = Report((draw(status="OSError: gone", nfe=None),))
    assert report.best(5) is None
    assert "OSError: gone" in report.table()
    assert answers(report.of())[0].method is None


# Words --------------------------------------------------------------------------------------------------------


def blocked(shifts: dict[str, float]) -> tuple[Any, ...]:
    """Rows of methods on three seeds with blocks: common noise of 0.05, own noise of 0.0005."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(3, generator=generator).tolist()
    rows: list[Any] = []
    for name, shift in shifts.items():
        for seed, noise in enumerate(common):
            drawn = draw(name, 10, seed)
            own = (0.0005 * torch.randn(21, generator=generator)).tolist()
            number = 1 + shift + 0.05 * noise
            blocks = [number + 0.2 * v for v in own[1:]]
            rows += [drawn, value(drawn, number + own[0], blocks=blocks, stderr=0.05)]
    return tuple(rows)


def test_the_answer_names_the_best_its_ties_and_whom_it_beats() -> None:
    (answer,) = answers(Report(blocked({"far": 1.0, "good": 0.0, "as good": 0.0002, "near": 0.1})).of())
    assert answer.method in ("good", "as good")
    tie = {"good": "as good", "as good": "good"}[answer.method]
    assert answer.text.startswith(f"It cannot be told from {tie} (p = ")
    assert "It beats near by 0.1" in answer.text
    assert "p < 0.001, and one more method (p < 0.001)." in answer.text
    assert answer.value == "0.984 ± 0.231"


def test_without_blocks_three_seeds_say_what_they_cannot() -> None:
    from sdekit.study.words import method_notes

    (first, second) = method_notes(Report(tuple(cell("DDIM", 5, (1, 2, 3)) + cell("Heun", 5, (2, 3, 5)))).of())
    assert "over 3 seeds" in first
    assert "can give no p below 0.25 with 3 seeds" in second
    assert "20 blocks" in method_notes(Report(blocked({"a": 0.0, "b": 0.1})).of())[1]


@given(st.floats(0, 1))
def test_p_is_told_in_two_figures(p: float) -> None:
    told = p_value(p)
    assert told == "p < 0.001" if p < 0.001 else float(told.removeprefix("p = ")) == pytest.approx(p, rel=0.051)


def test_higher_may_be_better() -> None:
    rows = [*cell("DDIM", 5, (0.5, 0.6)), *cell("Heun", 5, (0.7, 0.8))]
    rows = [row | {"higher_is_better": True} if row["kind"] == "value" else row for row in rows]
    findings = Report(tuple(rows)).of()
    assert findings.goal is Goal.HIGH
    assert findings.best(5) == "Heun"
    assert findings.caption.endswith("higher is better")
    assert findings.reach(0.74)["Heun"].calls == 5


# Records ------------------------------------------------------------------------------------------------------


def test_records_have_every_entry_and_real_data() -> None:
    records = Report(ROWS).records
    assert [(r["method"], r["budget"]) for r in records] == [
        ("DDIM", 5), ("Heun", 5), ("DDIM", 50), ("Heun", 50), (REAL, None),
    ]  # fmt: skip
    assert all(list(record) == list(COLUMNS) for record in records)
    first, second, _, failed, real = records
    assert (second["rank"], second["gap"], second["nfe"], second["model"], second["metric"]) == (
        1,
        None,
        4,
        "net",
        "FD",
    )
    assert first["gap"] == pytest.approx(0.2995)
    assert first["gap_low"] < first["gap"] < first["gap_high"]
    assert first["low"] < first["mean"] < first["high"]
    assert (failed["rank"], failed["status"], failed["low"]) == (None, "ValueError: too | long", None)
    assert (real["rank"], real["seeds"]) == (None, 2)


def test_csv_reads_back() -> None:
    report = Report(ROWS)
    rows = list(csv.DictReader(io.StringIO(report.csv())))
    for row, record in zip(rows, report.records, strict=True):
        assert row == {key: "" if v is None else str(v) for key, v in record.items()}


def test_frames_and_parquet(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = Report(ROWS).dataframe()
    assert frame.loc[frame["rank"] == 1, "method"].tolist() == ["Heun", "DDIM"]
    assert frame["budget"].isna().tolist() == [False] * 4 + [True]
    pytest.importorskip("pyarrow")
    Report(ROWS).parquet(tmp_path / "a.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(tmp_path / "a.parquet"), frame)


@pytest.mark.parametrize(
    ("missing", "call"),
    [("pandas", "dataframe"), ("pandas", "parquet"), ("pyarrow", "parquet"), ("matplotlib.figure", "plot")],
)
def test_a_missing_extra_is_named(missing: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "pyarrow":
        pytest.importorskip("pandas")
    monkeypatch.setitem(sys.modules, missing, None)
    extra = {"pandas": "study", "pyarrow": "bench", "matplotlib.figure": "plot"}[missing]
    arguments = [tmp_path / "a"] if call == "parquet" else []
    with pytest.raises(ImportError, match=rf'\w+\(\) needs {missing.split(".")[0]}: pip install "sdekit\[{extra}\]"'):
        getattr(Report(ROWS), call)(*arguments)


# Plots --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_the_plot_is_written(tmp_path: Path, suffix: str) -> None:
    figure = Report(ROWS).plot(tmp_path / f"plot.{suffix}")
    (axes,) = figure.axes
    assert (tmp_path / f"plot.{suffix}").stat().st_size > 5000
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert {text.get_text() for text in axes.texts} >= {"FD", "DDIM", "Heun", "real data"}
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "50"]
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


@pytest.mark.parametrize(("cost", "at"), [(Cost.CALLS, 4.0), (Cost.SECONDS, 5.0)])
def test_the_plot_shows_what_is_whole_at_what_it_costs(cost: Cost, at: float) -> None:
    """Heun took 4 calls of a budget of 5, and 5 seconds; at 50 a seed is missing."""
    (axes,) = Report(ROWS).plot(cost=cost).axes
    points = [line.get_xydata().tolist() for line in axes.lines]
    assert [[at, pytest.approx(0.5105)]] in points
    assert axes.get_xlabel() == cost.value


def test_bands_are_the_intervals() -> None:
    rows = cell("DDIM", 5, (1.0, 1.01, 1.02)) + cell("DDIM", 10, (0.5, 0.52, 0.51))
    (axes,) = Report(tuple(rows)).plot().axes
    band = max((c.get_paths()[0].vertices for c in axes.collections if c.get_paths()), key=len)
    wanted = [end for e in Report(tuple(rows)).entries.values() for end in (e.interval.low, e.interval.high)]
    assert all(min(abs(y - v) for v in band[:, 1]) < 1e-9 for y in wanted)


@pytest.mark.parametrize(
    "rows",
    [
        cell("DDIM", 5, (1.0,)),
        [draw(status="ValueError", nfe=None)],
        cell("DDIM", 5, (0.0, 0.1)) + cell("DDIM", 9, (-1.0, 1.0)),
        [row for k in range(12) for b in (5, 50) for row in cell(f"method {k}", b, (1 + k / 1e3,))],
    ],
)
def test_reports_at_the_edge_are_drawn_tabled_and_put_on_a_page(rows: list[Any], tmp_path: Path) -> None:
    report = Report(tuple(rows))
    report.plot(tmp_path / "plot.png")
    report.plot(cost=Cost.SECONDS)
    assert " of 400 samples" in report.table()
    assert "nan" not in report.table() + report.html(tmp_path / "page.html").read_text().split("<script>")[0]


def test_names_do_not_overlap() -> None:
    rows = [row for k in range(12) for row in cell(f"method {k}", 5, (1 + k / 1e3,))]
    (axes,) = Report(tuple(rows)).plot().axes
    heights = sorted(text.get_position()[1] for text in axes.texts if text.get_text().startswith("method"))
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.04


# Blocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "blocks"), [(20, 20), (397, 20), (5, 2)])
def test_every_sample_is_left_out_once(n: int, blocks: int) -> None:
    left = kept(n, blocks)
    assert len(left) == blocks
    assert torch.stack([torch.bincount(k, minlength=n) for k in left]).sum(0).tolist() == [blocks - 1] * n
    assert all(torch.equal(a, b) for a, b in zip(left, kept(n, blocks), strict=True))


def study(path: Path, metric: Any, shifts: dict[str, float]) -> Path:
    """Write rows and features of methods whose samples are those of a seed, shifted, with a little noise added."""
    measure, rows = Measure(metric), []
    for name, shift in shifts.items():
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            starts = torch.randn(400, 2, generator=generator)
            own = torch.Generator().manual_seed(100 * seed + len(name))
            samples = starts + shift + 0.02 * torch.randn(400, 2, generator=own)
            drawn = draw(name, 5, seed)
            features = measure.extractor(samples)
            Store(path).keep_features(drawn["id"], measure.extractor_print, features)
            found = measure.of(features, (2,))
            known = {"stderr": None if math.isnan(found.stderr) else found.stderr}
            rows += [drawn, value(drawn, found.value, metric=measure.name, measure=measure.print, **known)]
    return written(path, rows)


@dataclass(frozen=True)
class Spread:
    """A plain callable from samples to a number."""

    name: str = "spread"

    def __call__(self, samples: Tensor) -> float:
        assert samples.shape[1:] == (2,)
        return float(samples.square().mean())


@pytest.mark.parametrize(
    "metric", [FrechetDistance(None, torch.randn(500, 2, generator=torch.Generator().manual_seed(9))), Spread()]
)
def test_resampling_needs_no_model_and_no_samples(tmp_path: Path, metric: Any) -> None:
    path = study(tmp_path / "a.jsonl", metric, {"one": 0.5, "another": 0.51})
    before = Report.read(path).of().difference(("one", 5), ("another", 5))
    text = path.read_text()
    after = resample(path, metric).of().difference(("one", 5), ("another", 5))
    assert path.read_text().startswith(text)
    assert after.deltas == before.deltas
    assert (before.blocks, after.blocks, after.dof) == (0, 20, 2 + 3 * 19)
    seen: list[int] = []
    resample(path, metric, progress=lambda todo: seen.append(len(todo)) or todo)  # type: ignore[func-returns-value]
    assert seen == [0]
    assert len(Rows(path).values()) == 6


def test_the_error_of_blocks_is_that_of_the_samples(tmp_path: Path) -> None:
    """For a mean over samples: the sd of the paired differences over the root of their number."""
    path, measure = study(tmp_path / "a.jsonl", Spread(), {"one": 0.5, "another": 0.51}), Measure(Spread())
    found = resample(path, Spread()).of().difference(("one", 5), ("another", 5))
    kinds = [
        torch.cat([Store(path).features(f"{name}-5-{k}", measure.extractor_print).square().mean(1) for k in range(3)])  # type: ignore[union-attr]
        for name in ("one", "another")
    ]
    assert found.error == pytest.approx(float((kinds[0] - kinds[1]).std()) / math.sqrt(1200), rel=0.15)


def test_resampling_keeps_pairs_with_their_reference(tmp_path: Path) -> None:
    """Without block k, the error of the samples that stay is against their own references."""
    generator = torch.Generator().manual_seed(0)
    metric = PairedRMSE(torch.randn(500, 2, generator=generator) * 100)
    drawn = draw("one", 5)
    measure = Measure(metric)
    Store(tmp_path / "a.jsonl").keep_features(drawn["id"], measure.extractor_print, metric.reference[:400] + 0.5)
    row = value(drawn, 0.5, metric="RMSE", measure=measure.print)
    (entry,) = resample(written(tmp_path / "a.jsonl", [drawn, row]), metric).entries.values()
    assert entry.blocks == (pytest.approx([0.5] * 20, rel=1e-4),)


def test_what_cannot_be_resampled_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl")
    with pytest.raises(ValueError, match=r"a\.jsonl must hold values by spread as it is here; it has none"):
        resample(path, Spread())
    with pytest.raises(ValueError, match="at least 2 blocks; got 1"):
        resample(path, Spread(), blocks=1)


@pytest.mark.slow
@pytest.mark.parametrize(("dims", "shift"), [(4, 0.3), (16, 0.0)])
def test_blocks_are_honest_about_frechet_distances(dims: int, shift: float) -> None:
    """Two methods of one law on common starts: the error is right far from the floor, and never too small by much."""
    generator = torch.Generator().manual_seed(1)

    def normal(n: int) -> Tensor:
        return torch.randn(n, dims, generator=generator, dtype=torch.float64)

    distance, left, found = FrechetDistance(None, normal(5000)), kept(400, 20), []
    for _ in range(60):
        starts = [normal(400) for _ in range(3)]
        entries = []
        for _ in range(2):
            drawn = [shift + x + 0.3 * normal(400) for x in starts]
            values = tuple(distance.of(x).value for x in drawn)
            blocks = tuple(tuple(distance.of(x[keep]).value for keep in left) for x in drawn)
            entries.append(Entry(values, 5, seeds=(0, 1, 2), blocks=blocks))
        found.append(compare(*entries))
    true = torch.tensor([difference.value for difference in found]).std()
    stated = torch.tensor([difference.error for difference in found]).square().mean().sqrt()
    assert 0.8 < float(stated / true) < 1.8
    assert sum(difference.p < 0.05 for difference in found) <= 8  # of 60 at 5%: 8 or fewer in 99.6%


# What does not belong together --------------------------------------------------------------------------------------


def test_a_label_that_has_changed_its_meaning_is_refused() -> None:
    """Rows of two samplers under one label would be averaged, and the interval be of nothing."""
    again = cell("DDIM", 5, (0.1, 0.2))
    rows = [row | {"id": f"other-{row['id']}"} for row in again]
    with pytest.raises(ValueError, match=r"'DDIM' at 5 calls has several of seed 0: .* Give the new one a label"):
        Report((*ROWS, *rows))


def test_a_floor_that_has_changed_is_refused() -> None:
    rows = [row | {"id": f"other-{row['id']}"} for row in cell(REAL, None, (0.5, 0.6), shape=[800, 2])]
    with pytest.raises(ValueError, match="'real data' has several of seed 0"):
        Report((*ROWS, *rows))


def test_a_floor_that_failed_says_why() -> None:
    failed = draw(REAL, None, status="TypeError: no tensor")
    report = Report((*ONE, failed))
    assert report.floor == Entry((), errors=("TypeError: no tensor",))
    assert "| real data |" in report.table()


def test_methods_stand_in_the_order_of_the_study_whatever_ended_first() -> None:
    rows = [row | ({"place": 7} if row["kind"] == "draw" else {}) for row in cell("Heun", 5, (0.5, 0.6))]
    rows += [row | ({"place": 3} if row["kind"] == "draw" else {}) for row in cell("DDIM", 5, (0.7, 0.8))]
    assert Report(tuple(rows)).methods == ["DDIM", "Heun"]


def test_labels_do_not_break_the_table() -> None:
    table = Report(tuple(cell("a | b\nc", 5, (0.5, 0.6)))).table()
    assert "| a \\| b c | **0.550 ± 0.635** |" in table


@pytest.mark.parametrize(("asked", "told"), [(True, True), (False, False)])
def test_who_thresholds_is_told(asked: bool, told: bool) -> None:
    sampler = {"type": "Diffusers", "options": [["thresholding", asked], ["solver_order", 3]], "steps": 5}
    table = Report(tuple(cell("DDIM", 5, (0.5, 0.6), sampler=sampler))).table()
    assert ("- DDIM clips or thresholds its samples" in table) == told


def test_overhead_is_the_time_beyond_bare_calls() -> None:
    rows = cell("DDIM", 5, (0.5, 0.6), seconds=3.0, cpu_seconds=2.5, call_seconds=0.4, fit_seconds=7.0)
    (record,) = Report(tuple(rows)).records
    assert record["overhead"] == pytest.approx(3.0 - 5 * 0.4)
    assert (record["seconds"], record["cpu_seconds"], record["fit_seconds"]) == (3.0, 2.5, 7.0)
    assert Report(tuple(cell("DDIM", 5, (0.5, 0.6)))).records[0]["overhead"] is None


def test_a_model_that_was_never_measured_by_a_metric_has_no_table_of_it() -> None:
    """Though it has a cell that failed, which says why under every metric of its own."""
    other = [row | ({"model": "other", "print": "cafe"} if row["kind"] == "draw" else {"metric": "KID", "measure": "k"})
             for row in cell("Heun", 9, (0.5, 0.6))]  # fmt: skip
    failed = draw("Euler", 9, status="ValueError: no", model="other", print="cafe")
    report = Report((*ROWS, *other, failed))
    assert list(report.findings) == [("net", "FD"), ("other", "KID")]
    assert report.of("other", "KID").entries["Euler", 9].errors[0] == "ValueError: no"


def test_a_model_that_could_not_be_loaded_at_first_is_one_model() -> None:
    """Its failed rows know no fingerprint; those of what has been run since take their place."""
    first = [draw("DDIM", 5, seed, print=None, id=f"x{seed}", status="OSError: gone") for seed in (0, 1)]
    first += [draw("Heun", 5, seed, print=None, id=f"y{seed}", status="OSError: gone") for seed in (0, 1)]
    report = Report((*first, *cell("DDIM", 5, (0.5, 0.6))))
    assert report.entries["DDIM", 5].values == (0.5, 0.6)
    assert report.entries["DDIM", 5].complete
    assert report.entries["Heun", 5].errors == ("OSError: gone", "OSError: gone")
