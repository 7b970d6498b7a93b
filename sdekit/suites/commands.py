"""The commands `sdekit bench list | plan | run | resume | report | compare`."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sdekit._value import suggest
from sdekit.study import Findings, Report
from sdekit.study.comparison import Difference
from sdekit.study.table import figures
from sdekit.study.words import answers, p_value
from sdekit.suites.suite import SUITES, Suite, find


def add(commands: Any) -> None:
    """Add `bench` to the commands of a parser."""
    about = "suites of samplers, sdekit's and other libraries', on models and data that ship; resumes"
    bench = commands.add_parser("bench", help=about, description=about)
    parts = bench.add_subparsers(dest="part", required=True)
    parts.add_parser("list", help="the suites").set_defaults(run=_list)
    _add_run(parts, "plan", _plan, "what a run would do: cells, network calls, time; nothing is written")
    for name, about in (("run", "run a suite, and report"), ("resume", "the same: go on with a run that was stopped")):
        command = _add_run(parts, name, _run, about)
        command.add_argument("--workers", type=int, default=1, help="processes, of one thread each")
    command = parts.add_parser("report", help="tables of a file of rows, and a page that shows it all")
    command.add_argument("file", type=Path, help="the rows")
    command.add_argument("--html", type=Path, help="the page")
    command.add_argument("--csv", type=Path, help="a record for every entry")
    command.set_defaults(run=_report)
    command = parts.add_parser("compare", help="is A better than B? by every metric, on every model")
    command.add_argument("file", type=Path, help="the rows")
    command.add_argument("first", metavar="A", help="a method, by its label in the table")
    command.add_argument("second", metavar="B", help="another")
    command.add_argument("--nfe", type=int, nargs="+", help="network calls of A and B; by default all")
    command.set_defaults(run=_compare)


def _add_run(parts: Any, name: str, run: Any, about: str) -> Any:
    command = parts.add_parser(name, help=about, description=about)
    command.add_argument("suite", help=f"{', '.join(SUITES)}, or a study in a .yaml file")
    command.add_argument("--out", type=Path, help="the rows, by default runs/NAME.jsonl")
    command.set_defaults(run=run)
    return command


def _list(given: argparse.Namespace) -> None:
    width = max(map(len, SUITES))
    for suite in SUITES.values():
        print(f"{suite.name:<{width}}  {suite.about}")


def _plan(given: argparse.Namespace) -> None:
    _announce(find(given.suite), given)


def _run(given: argparse.Namespace) -> None:
    suite = find(given.suite)
    out = _announce(suite, given)
    report = suite.run(out, given.workers, partial(tqdm, desc=suite.name, unit="cell"))
    _conclude(report)
    print(out)


def _announce(suite: Suite, given: argparse.Namespace) -> Path:
    """Print what is left to be done, and return the file."""
    out: Path = given.out or Path("runs") / f"{suite.name}.jsonl"
    for agenda in suite.plan(out):
        print(agenda, flush=True)
    return out


def _report(given: argparse.Namespace) -> None:
    report = _read(given.file)
    _conclude(report)
    if given.csv:
        given.csv.write_text(report.csv())
        print(given.csv)
    if given.html:
        title = f"{given.file.stem}: quality against network evaluations"
        print(report.html(given.html, title, f"sdekit bench run {given.file.stem} --out {given.file}"))


def _conclude(report: Report) -> None:
    """Print the tables, and what is best at every budget."""
    print(report.table())
    for (model, metric), found in report.findings.items():
        print(f"\n{model}, {metric}: the best")
        for answer in answers(found):
            print(f"- at {answer.budget} evaluations: {answer.method or 'none'}, {answer.value}. {answer.text}")


def _compare(given: argparse.Namespace) -> None:
    report = _read(given.file)
    known = list(dict.fromkeys(method for found in report.findings.values() for method in found.methods))
    for name in (given.first, given.second):
        if name not in known:
            raise ValueError(f"{given.file} has no method {name!r}. {suggest(name, known)}")
    for (model, metric), found in report.findings.items():
        for budget in given.nfe or found.budgets:
            told = _difference(found, given.first, given.second, budget)
            print(f"{model}, {metric}, {budget} evaluations: {told}")


def _difference(found: Findings, first: str, second: str, budget: int) -> str:
    missing = [name for name in (first, second) if (name, budget) not in found.entries]
    if missing or not all(found.entries[name, budget].values for name in (first, second)):
        return f"no values of {' and '.join(missing) or 'one of them'}"
    difference: Difference = found.difference((first, budget), (second, budget))
    mean = difference.interval
    better = (difference.value < 0) == (found.goal.name == "LOW")
    verdict = "cannot be told from" if difference.p > 0.05 else "beats" if better else "is beaten by"
    return (
        f"{first} {verdict} {second}, difference {figures(mean.value, mean.high - mean.value)}, {p_value(difference.p)}"
    )


def _read(path: Path) -> Report:
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. Run a suite first: sdekit bench run NAME --out {path}.")
    return Report.read(path)
