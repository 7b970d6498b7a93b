"""Scores in a file: the same in any batch and after any stop, refused where they would not compare, with intervals."""

from __future__ import annotations

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from strategies import normal
from torch import Tensor

from sdekit import VP, Angular, Dequantization, Exact, FixedGrid, Gaussian, GaussianMixture, Hutchinson, log_likelihood
from sdekit.study.scores import Mean, Scores
from sdekit.study.scoring import Scoring

LEVELS = Dequantization(9)
MEANS = torch.tensor([[-0.5, 0.2, 0.0], [0.4, -0.3, 0.6]], dtype=torch.float64)
MODEL = GaussianMixture(VP(), MEANS, 0.3)
GRID = FixedGrid(grid=Angular(24))


def data(n: int = 11, seed: int = 0) -> Tensor:
    return LEVELS.round(MODEL.sample(n, torch.Generator().manual_seed(seed)))


SCORING = Scoring(MODEL, {"data": data(), "noise": LEVELS.round(normal(5, 3))}, LEVELS, GRID)


def test_rows_say_what_the_likelihood_says(tmp_path: Path) -> None:
    scores = SCORING.run(tmp_path / "deep" / "scores.jsonl", batch=4)
    assert [(row["data"], row["index"]) for row in scores.rows] == [
        *(("data", i) for i in range(11)),
        *(("noise", i) for i in range(5)),
    ]
    result = log_likelihood(MODEL, LEVELS.apply(data()), GRID, Exact())
    for key in ("log_prob", "log_prior", "log_det", "prior_share"):
        torch.testing.assert_close(scores.column("data", key), getattr(result, key), rtol=0, atol=1e-10)
    torch.testing.assert_close(scores.column("data", "bits_per_dim"), LEVELS.bits_per_dim(result.log_prob, 3))
    assert scores.column("data", "nfe").unique().tolist() == [25]
    assert scores.column("data", "draws_stderr").isnan().all()  # one draw says nothing of its error
    assert scores.rows == Scores.read(tmp_path / "deep" / "scores.jsonl").rows


@pytest.mark.parametrize("scoring", [SCORING, replace(SCORING, trace=Hutchinson(2), seed=3)], ids=["exact", "random"])
def test_a_score_does_not_depend_on_its_batch(tmp_path: Path, scoring: Scoring) -> None:
    one, other = scoring.run(tmp_path / "a", batch=16), scoring.run(tmp_path / "b", batch=3)
    for key in ("log_prob", "stderr", "bits_per_dim"):
        torch.testing.assert_close(one.column("data", key), other.column("data", key), rtol=0, atol=1e-10)


@pytest.mark.parametrize("batches", [1, 3, 5])
@pytest.mark.parametrize("torn", [0, 1, 40])
def test_a_run_that_was_stopped_goes_on(tmp_path: Path, batches: int, torn: int) -> None:
    whole = tmp_path / "whole"
    SCORING.run(whole, batch=3)
    path = tmp_path / "stopped"
    part = SCORING.run(path, batch=3, progress=lambda todo: itertools.islice(todo, batches))
    text = path.read_bytes()
    assert len(part.rows) == text.count(b"\n") == len(text.splitlines())
    path.write_bytes(text[: len(text) - torn])  # half a row at the end, or one without its line's end
    asked = []
    again = SCORING.run(path, batch=3, progress=lambda todo: asked.extend(todo) or todo)
    assert len(again.rows) == 16
    assert sum(len(batch.x) for batch in asked) == 16 - len(part.rows) + (torn == 40)
    for name in ("data", "noise"):
        for key in ("log_prob", "bits_per_dim"):
            torch.testing.assert_close(
                again.column(name, key), Scores.read(whole).column(name, key), rtol=0, atol=1e-12
            )
    before = path.read_bytes()
    assert SCORING.run(path).rows == again.rows
    assert path.read_bytes() == before


def test_counts_and_sets_can_be_added(tmp_path: Path) -> None:
    path = tmp_path / "scores"
    few = replace(SCORING, data={"data": SCORING.data["data"]}).run(path, count=4)
    assert len(few.rows) == len(path.read_text().splitlines()) == 4
    assert len(SCORING.run(path).rows) == 16
    assert len(path.read_text().splitlines()) == 16
    assert replace(SCORING, data={"data": SCORING.data["data"]}).run(path, count=4).rows == few.rows


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(SCORING, trace=Hutchinson(3)), "trace {'type': 'Exact'.* there, .*'Hutchinson'.* here"),
        (replace(SCORING, seed=1), "seed 0 there, 1 here"),
        (replace(SCORING, integrator=FixedGrid()), "integrator"),
        (replace(SCORING, dequantizer=Dequantization(17)), "dequantizer"),
        (replace(SCORING, moments=data(30)), "moments None there"),
        (replace(SCORING, model=Gaussian(VP(), MEANS[0], 0.3)), "model"),
        (replace(SCORING, data={"data": data(seed=1)}), "samples"),
    ],
)
def test_what_does_not_compare_is_refused(tmp_path: Path, other: Scoring, message: str) -> None:
    path = tmp_path / "scores"
    SCORING.run(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"row of data, 0: {message}.*Give another path, or remove"):
        other.run(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("text", ['{"a": 1}\n', "not JSON\n", "[1]\n"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores").write_text(text)
    with pytest.raises(ValueError, match="must hold one score a line; line 1 is none"):
        SCORING.run(tmp_path / "scores")


def test_several_draws_are_the_multi_sample_bound(tmp_path: Path) -> None:
    scores = replace(SCORING, draws=5, seed=2).run(tmp_path / "scores", batch=4)
    mass = LEVELS.mass(lambda y: log_likelihood(MODEL, y, GRID, Exact()).log_prob, data(), 5, seed=2)
    torch.testing.assert_close(scores.column("data", "log_mass"), mass.log_mass, rtol=0, atol=1e-10)
    torch.testing.assert_close(scores.column("data", "draws_stderr"), mass.stderr, rtol=0, atol=1e-10)
    torch.testing.assert_close(scores.column("data", "bits_per_dim"), mass.bits_per_dim, rtol=0, atol=1e-10)
    assert scores.column("data", "nfe").unique().tolist() == [5 * 25]


def test_a_failure_is_named_and_keeps_what_there_is(tmp_path: Path) -> None:
    bad = data()
    bad[6] = 0.3  # on no level
    path = tmp_path / "scores"
    with pytest.raises(ValueError, match=r"^bad, samples 4 to 7: Data must lie on the 9 levels"):
        replace(SCORING, data={"bad": bad}).run(path, batch=4)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_model_is_asked_in_evaluation_mode(tmp_path: Path) -> None:
    seen = []

    class Watched(Gaussian):
        def forward(self, x, t):
            seen.append(self.training)
            return super().forward(x, t)

    model = Watched(VP(), MEANS[0], 0.3).train()
    replace(SCORING, model=model).run(tmp_path / "scores", count=1)
    assert not any(seen)
    assert model.training


def test_intervals_cover_the_mean_of_the_law() -> None:
    draws = normal(4000, 5, seed=1) ** 3 + 2  # mean 2, far from normal: five samples cover it less than 95 times in 100
    intervals = [Mean.of(row) for row in normal(4000, 5, seed=2) + 2]
    assert 0.94 < sum(m.low < 2 < m.high for m in intervals) / 4000 < 0.96
    assert sum(m.low < 2 < m.high for m in map(Mean.of, draws)) / 4000 > 0.9
    one, wide = Mean.of(normal(50)), Mean.of(normal(50), common=0.5)
    assert wide.high - wide.value > 2.0086 * 0.5
    assert (wide.high - wide.value) ** 2 == pytest.approx((one.high - one.value) ** 2 + (2.0096 * 0.5) ** 2, rel=1e-3)
    assert math.isnan(Mean.of(normal(1)).low)
    assert str(Mean.of(normal(1))).count("±") == 0


def test_a_stated_error_of_integration_widens_the_interval() -> None:
    row = {"data": "a", "log_prob": 1.0, "bits_per_dim": 2.0, "dims": 4, "samples": "s", "settings": {}}
    rows = tuple({**row, "index": i, "integration_error": 0.3} for i in range(10))
    mean = Scores(rows).mean("a")
    assert mean.high - 1 == pytest.approx(2.2622 * 0.3, rel=1e-4)
    bits = Scores(rows).mean("a", "bits_per_dim")
    assert bits.high - 2 == pytest.approx(2.2622 * 0.3 / (4 * math.log(2)), rel=1e-4)


def test_models_are_compared_sample_by_sample(tmp_path: Path) -> None:
    near = GaussianMixture(VP(), MEANS + 0.02, 0.3)
    ours, theirs = SCORING.run(tmp_path / "a"), replace(SCORING, model=near).run(tmp_path / "b")
    gap = ours.difference(theirs, "data")
    assert gap.value == pytest.approx(ours.mean("data").value - theirs.mean("data").value)
    assert gap.high - gap.low < (ours.mean("data").high - ours.mean("data").low) / 3
    few = Scores(ours.rows[:5])
    with pytest.raises(ValueError, match="needs the same samples of 'data' in both"):
        few.difference(theirs, "data")


def test_a_table_and_a_histogram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = SCORING.run(tmp_path / "scores")
    lines = scores.table().splitlines()
    assert lines[2] == f"| data | {scores.mean('data')} | {scores.mean('data', 'bits_per_dim')} |"
    assert "11 data, 5 noise; ± 95% over samples." in lines[5]
    assert "25 network calls a sample, of integration" in lines[6]
    axes = scores.plot(tmp_path / "scores.png").axes[0]
    assert (tmp_path / "scores.png").stat().st_size > 1000
    assert sum(bar.get_height() for bars in axes.containers for bar in bars) == 16
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"sdekit\[plot\]"):
        scores.plot()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {}}, "needs samples"),
        ({"data": {"a": torch.zeros(0, 2)}}, r"got {'a': \(0, 2\)}"),
        ({"draws": 0}, "draws must be a whole number of at least 1; got 0"),
        ({"draws": 2, "trace": Hutchinson()}, "Several draws need an exact trace"),
    ],
)
def test_what_cannot_be_scored_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SCORING, **change)


def test_counts_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch and count must be at least 1; got 0 and None"):
        SCORING.run(tmp_path / "scores", batch=0)
    with pytest.raises(ValueError, match="at least one sample; got none"):
        Scores(())
