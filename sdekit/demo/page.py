"""The demo: every step in turn, then a page with the pictures and the figures."""

from __future__ import annotations

import html
from pathlib import Path

import torch

from sdekit.data import digits
from sdekit.demo.digits import SAMPLERS, draw, likelihoods, study, train
from sdekit.demo.pictures import picture
from sdekit.study import Report
from sdekit.study.scores import Scores

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>sdekit: digits</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
img {{ max-width: 100% }} table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }}
th:first-child, td:first-child {{ text-align: left }} small {{ color: #666 }}
</style></head><body>
<h1>Handwritten digits: six samplers of one model</h1>
<p>A small network, trained by denoising score matching on the 1,400 training images of scikit-learn's digits.</p>
<h2>Samples, at most 20 network calls (NFE) each</h2><p><img src="samples.png" alt="digits drawn by each sampler"></p>
<h2>Quality against network calls</h2><p><img src="study.png" alt="Frechet distance against NFE"></p>
{study}
<p><small>The Frechet distance is taken in the features of a small digit classifier. It is not the Inception FID, nor
comparable with published FIDs. Real data: the 397 test digits, measured like the samples. [k]: the network calls
counted, where they are fewer than the budget.</small></p>
<h2>Exact log-likelihood by the probability-flow ODE</h2>
{likelihood}<p><img src="likelihood.png" alt="histograms of bits per dimension"></p>
<p><small>Mean and 95% interval over {count} images of each kind, without labels; {nfe} network calls an image. Bits
per dimension bound those of the 17-level pixels from above (uniform dequantisation).</small></p>
</body></html>
"""


def demo(
    folder: Path,
    steps: int = 3000,
    budgets: tuple[int, ...] = (5, 10, 20, 50),
    seeds: tuple[int, ...] = (0, 1, 2),
    count: int = 100,
) -> Path:
    """Train, sample, study and measure likelihoods; write everything below `folder` and return the page's path.

    Args:
        folder: where all of it goes.
        steps: steps of the training.
        budgets: network calls, for the study.
        seeds: seeds of the study.
        count: images of each kind whose likelihood is measured.
    """
    model = train(folder / "digits.safetensors", steps)
    panels = {"real (test)": _by_class()}
    for name, chosen in SAMPLERS.items():
        sampler = chosen.within(20, model)
        panels[f"{name}, NFE {sampler.nfe(model)}"] = draw(model, sampler.method, sampler.grid)
    picture(panels, folder / "samples.png")
    report = study(model, folder / "study.jsonl", SAMPLERS, budgets, seeds)
    report.plot(folder / "study.png")
    (folder / "study.md").write_text(report.table() + "\n", encoding="utf-8")
    scores = likelihoods(model, folder / "likelihood.jsonl", count)
    scores.plot(folder / "likelihood.png")
    (folder / "likelihood.md").write_text(scores.table() + "\n", encoding="utf-8")
    page = folder / "index.html"
    page.write_text(_html(report, scores), encoding="utf-8")
    print(f"\n{report.table()}\n\n{scores.table()}\n")
    for path in sorted(folder.iterdir()):
        print(path)
    return page


def _by_class() -> torch.Tensor:
    data = digits()
    return torch.cat([data.test[data.test_labels == k][:10] for k in range(data.classes)])


def _html(report: Report, scores: Scores) -> str:
    nfe = scores.column("test digits", "nfe")
    return _PAGE.format(
        study=_table(report.table()), likelihood=_table(scores.table()), count=len(nfe), nfe=int(nfe.max())
    )


def _table(markdown: str) -> str:
    """Turn the table in a Markdown text into HTML; the line that rules off the header is dropped."""
    lines = [line.strip()[1:-1].split("|") for line in markdown.splitlines() if line.startswith("|")]
    rows = []
    for i, cells in enumerate(lines):
        if i != 1:
            tag = "td" if i else "th"
            texts = (html.escape(cell.strip()) for cell in cells)
            bold = (f"<b>{t.strip('*')}</b>" if t.startswith("**") else t for t in texts)
            rows.append("<tr>" + "".join(f"<{tag}>{t}</{tag}>" for t in bold) + "</tr>")
    return f"<table>{''.join(rows)}</table>"
