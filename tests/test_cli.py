"""The command line and the demo, small: every step on the real digits, and what is said when it cannot be done."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch

from sdekit.cli import main
from sdekit.demo import demo, likelihoods, study, train
from sdekit.study import Report
from sdekit.training import load

TRAIN = ["train", "--steps", "30", "--process", "RectifiedFlow", "--predicts", "Velocity"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model trained for a few steps, which knows little."""
    path = tmp_path_factory.mktemp("cli") / "model.safetensors"
    assert main([*TRAIN, "--model", str(path)]) == 0
    return path


def size(path):
    """Width and height of a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(head[16:20]), int.from_bytes(head[20:24])


def test_train_stores_what_was_asked(model):
    config = json.loads(model.with_name("model.safetensors.json").read_text())
    assert config["process"]["type"] == "RectifiedFlow"
    assert config["predicts"] == {"type": "Velocity"}
    assert config["training"]["step"] == 30


def test_a_training_that_is_done_is_not_done_again(model):
    before = {name: p.clone() for name, p in load(model).named_parameters()}
    assert main([*TRAIN, "--model", str(model)]) == 0
    assert all(torch.equal(p, before[name]) for name, p in load(model).named_parameters())


def test_another_training_does_not_overwrite(model, capsys):
    before = model.read_bytes()
    assert main(["train", "--steps", "40", "--model", str(model)]) == 2
    assert "Give another path" in capsys.readouterr().err
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    "options", [[], ["--method", "ddpm", "--grid", "Uniform"], ["--grid", '{"type": "Karras", "rho": 5}']]
)
def test_sample_draws_a_picture(model, tmp_path, options):
    out = tmp_path / "deep" / "samples.png"
    assert main(["sample", "--model", str(model), "--steps", "3", "--out", str(out), *options]) == 0
    assert min(size(out)) > 200


def test_likelihood_prints_a_table(model, capsys):
    assert main(["likelihood", "--model", str(model), "--count", "3"]) == 0
    rows = re.findall(r"^\| ([a-z ]+) \| (-?[\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \|$", capsys.readouterr().out, re.M)
    assert [row[0] for row in rows] == ["test digits", "shuffled pixels", "uniform noise"]


def test_study_writes_rows_a_table_and_a_plot(model, tmp_path, capsys):
    out = tmp_path / "study.jsonl"
    command = [
        "study",
        "--model",
        str(model),
        "--out",
        str(out),
        "--methods",
        "ddim",
        "heun",
        "--budgets",
        "2",
        "3",
        "--seeds",
        "1",
    ]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("ddim", "heun", "real data", "NFE 2", "NFE 3"))
    assert Report.read(out).budgets == [2, 3]
    assert len(out.read_text().splitlines()) == 5
    assert min(size(out.with_suffix(".png"))) > 200


def test_demo_makes_a_page(tmp_path, capsys):
    page = demo(tmp_path, steps=10, budgets=(2,), seeds=(0,), count=2)
    text = page.read_text()
    for part in (
        "samples.png",
        "study.png",
        "DPM-Solver++ 2M",
        "real data",
        "shuffled pixels",
        "not the Inception FID",
    ):
        assert part in text
    for row in re.findall(r"<tr>.*?</tr>", text):  # header and rows alike: a name, then a column for each figure
        assert len(re.findall(r"<t[hd]>", row)) in (2, 3)
    assert "<th></th><th>NFE 2</th>" in text
    for name in ("digits.safetensors", "samples.png", "study.png", "study.jsonl", "study.md", "likelihood.md"):
        assert (tmp_path / name).stat().st_size > 0
    assert str(page) in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path):
    """Trained in full, the best sampler is within twice the floor at NFE 20, and real digits are the likeliest."""
    trained = train(tmp_path / "model.safetensors")
    report = study(trained, tmp_path / "study.jsonl", budgets=(20,))
    assert report.entries[report.best(20), 20].mean < 2 * report.floor.mean
    bits = {kind: float(values.mean()) for kind, values in likelihoods(trained, 20).bits.items()}
    assert bits["test digits"] + 3 < min(bits["shuffled pixels"], bits["uniform noise"])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["train", "--process", "VPP"], "Did you mean VP"),
        (["train", "--process", '{"type": "VP", "beta": 1}'], "no field 'beta'"),
        (["train", "--predicts", "ByTime"], "Expected the JSON of a Target"),
        (["train", "--steps", "0"], "at least 1"),
        (["sample", "--method", "ddmi"], "invalid choice"),
        (["sample", "--grid", "Unifrom"], "Did you mean Uniform"),
        (["fly"], "invalid choice"),
    ],
)
def test_what_cannot_be_read_is_explained(command, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_missing_or_torn_model_is_explained(model, tmp_path, capsys):
    assert main(["sample", "--model", str(tmp_path / "none.safetensors")]) == 2
    assert "none.safetensors" in capsys.readouterr().err
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(model.read_bytes()[:5000])
    assert main(["sample", "--model", str(torn)]) == 2
    assert "must be a whole checkpoint" in capsys.readouterr().err


def test_a_missing_package_is_named(model, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "sdekit.demo.pictures", raising=False)
    assert main(["sample", "--model", str(model)]) == 2
    assert "sdekit[demo]" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["train"], ["sample"], ["likelihood"], ["study"], ["demo"]])
def test_help_helps(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command, "--help"])
    assert stop.value.code == 0
    assert len(capsys.readouterr().out) > 200
