"""The command line and the demo, small: every step on the real digits, and what is said when it cannot be done."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch

from sdekit.cli import main
from sdekit.data import digits
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


def test_likelihood_writes_rows_a_table_and_a_plot(model, tmp_path, capsys):
    command = ["likelihood", "--model", str(model), "--out", str(tmp_path / "rows.jsonl"), "--batch", "2"]
    assert main([*command, "--count", "3"]) == 0
    told = capsys.readouterr().out
    rows = re.findall(r"^\| ([a-z ]+) \| (-?[\d.]+) ± [\d.]+ \| ([\d.]+) ± [\d.]+ \|$", told, re.M)
    assert [row[0] for row in rows] == ["test digits", "shuffled pixels", "uniform noise"]
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 9
    assert min(size(tmp_path / "rows.png")) > 200
    assert main([*command, "--count", "4", "--data", "train", "test"]) == 0
    assert (tmp_path / "rows.jsonl").read_text().splitlines()[:9] == lines
    names = [json.loads(line)["data"] for line in (tmp_path / "rows.jsonl").read_text().splitlines()[9:]]
    assert names == ["training digits"] * 4 + ["test digits"]


def test_likelihood_reads_samples_from_files(model, tmp_path, capsys):
    images = digits().test[:5]
    torch.save(images, tmp_path / "a.pt")
    np.save(tmp_path / "b.npy", (8 * (images + 1)).byte().numpy())
    command = ["likelihood", "--model", str(model), "--batch", "3"]
    levels = '{"type": "Dequantization", "levels": 17, "low": 0, "high": 16}'
    assert main([*command, "--data", str(tmp_path / "a.pt"), "--out", str(tmp_path / "a.jsonl")]) == 0
    assert "5 " + str(tmp_path / "a.pt") in capsys.readouterr().out
    assert main([*command, "--data", str(tmp_path / "b.npy"), "--out", str(tmp_path / "b.jsonl")]) == 2
    assert "b.npy, samples 0 to 2: Data must lie on the 17 levels from -1 to 1" in capsys.readouterr().err
    rest = ["--levels", levels, "--trace", "2", "--integrator", '{"type": "FixedGrid", "solver": {"type": "Euler"}}']
    assert main([*command, *rest, "--data", str(tmp_path / "b.npy"), "--out", str(tmp_path / "b.jsonl")]) == 0
    row = json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])
    assert row["settings"]["trace"]["probes"] == 2
    assert row["stderr"] > 0
    assert row["nfe"] == 65


@pytest.mark.parametrize(
    ("data", "message"),
    [("none.npy", "No such file"), ("a.csv", "a file that ends in .npy or .pt; got a.csv"), ("d.pt", "holds a dict")],
)
def test_samples_that_cannot_be_read_are_explained(model, tmp_path, monkeypatch, capsys, data, message):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": torch.zeros(2)}, "d.pt")
    assert main(["likelihood", "--model", str(model), "--data", data]) == 2
    assert message in capsys.readouterr().err


def test_likelihoods_of_other_settings_are_not_mixed(model, tmp_path, capsys):
    command = ["likelihood", "--model", str(model), "--out", str(tmp_path / "rows.jsonl"), "--count", "1"]
    assert main([*command, "--data", "test"]) == 0
    assert main([*command, "--data", "test", "--seed", "1"]) == 2
    assert "seed 0 there, 1 here. Give another path" in capsys.readouterr().err


def test_likelihoods_outlast_a_missing_package(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    out = tmp_path / "rows.jsonl"
    assert main(["likelihood", "--model", str(model), "--out", str(out), "--count", "2", "--data", "test"]) == 2
    told = capsys.readouterr()
    assert "| test digits |" in told.out
    assert 'pip install "sdekit[plot]"' in told.err
    assert len(out.read_text().splitlines()) == 2


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
    assert len(out.read_text().splitlines()) == 10  # every cell's samples, and their value
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
    for name in (
        "digits.safetensors",
        "samples.png",
        "study.png",
        "study.jsonl",
        "study.md",
        "likelihood.md",
        "likelihood.jsonl",
        "likelihood.png",
    ):
        assert (tmp_path / name).stat().st_size > 0
    assert str(page) in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path):
    """Trained in full, the best sampler is within twice the floor at NFE 20, and real digits are the likeliest."""
    trained = train(tmp_path / "model.safetensors")
    report = study(trained, tmp_path / "study.jsonl", budgets=(20,))
    assert report.entries[report.best(20), 20].mean < 2 * report.floor.mean
    scores = likelihoods(trained, tmp_path / "likelihood.jsonl", 20)
    bits = {name: scores.mean(name, "bits_per_dim").value for name in scores.names}
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
        (["likelihood", "--levels", "1"], "levels must be a whole number of at least 2"),
        (["likelihood", "--trace", "Exakt"], "Did you mean Exact"),
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
