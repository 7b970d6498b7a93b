"""What is kept and shown of the suites that ship, from the rows of their runs.

    sdekit bench run digits --workers 2
    python -m benchmarks.suites runs/digits.jsonl        # several files, if wanted

For each: the rows, all tables, the answers and the diagrams under `benchmarks/results` and `docs/images`, and in
`docs/suites.md`, between the marks of its name, the tables of the better methods.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from sdekit.study import Findings, Report
from sdekit.study.rows import FINE, REAL
from sdekit.study.table import markdown
from sdekit.study.words import answers

HOME = Path(__file__).parents[1]
PAGE = HOME / "docs" / "suites.md"
SHOWN = 4
"""A method is on the page if its mean is among the best so many at some number of evaluations."""
OURS = ("sdekit tuned", "sdekit default")
LEFT_OUT = "KD"
"""The kernel distance of some hundred samples tells the least; it is in the `.md` alone."""


def keep(path: Path) -> None:
    """Write what there is to keep of a run."""
    report, name = Report.read(path), path.stem
    results = HOME / "benchmarks" / "results"
    shutil.copyfile(path, results / f"suite_{name}.jsonl")
    parts = [report.table()]
    for (model, metric), found in report.findings.items():
        parts.append("\n".join([f"**{model}, {metric}: the best**", "", *told(found)]))
    (results / f"suite_{name}.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    report.plot().savefig(HOME / "docs" / "images" / f"suite_{name}.png", bbox_inches="tight", dpi=80)
    shown = {key: found for key, found in report.findings.items() if not key[1].startswith(LEFT_OUT)}
    show(name, "\n\n".join(excerpt(found, f"{model}: {metric}") for (model, metric), found in shown.items()))


def told(found: Findings) -> list[str]:
    """Return the answers, a line each."""
    return [f"- At {a.budget} evaluations: {a.method or 'none'}, {a.value}. {a.text}" for a in answers(found)]


def excerpt(found: Findings, heading: str) -> str:
    """Return the tables of the methods that are among the best anywhere, and of real data and the fine solution."""
    chosen = {*OURS, REAL, FINE}
    for budget in found.budgets:
        chosen |= {place.method for place in found.ranking(budget)[:SHOWN]}
    lines = markdown(found, heading).splitlines()
    return "\n".join(line for line in lines if line[:2] != "| " or _first(line) in {*chosen, "", "---"})


def _first(line: str) -> str:
    cell = line.split("|")[1].strip()
    return "---" if cell.startswith("---") else cell


def show(name: str, text: str) -> None:
    """Put a text between the marks of a suite on the page."""
    page = PAGE.read_text(encoding="utf-8")
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    if begin not in page or end not in page:
        raise ValueError(f"{PAGE} must hold {begin} and {end}, between which the tables go; it does not. Add them.")
    head, rest = page.split(begin)
    PAGE.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}", encoding="utf-8")


if __name__ == "__main__":
    for given in sys.argv[1:]:
        keep(Path(given))
