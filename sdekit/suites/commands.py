"""The commands `sdekit bench list | plan | run | resume | report | compare`."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from sdekit._value import suggest
from sdekit.study import BudgetError, Findings, Report, Row
from sdekit.study.comparison import compare
from sdekit.study.entry import LEVEL
from sdekit.study.rows import FINE, OK, REAL
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
    command.add_argument("second", metavar="B", help=f"another, or {' or '.join(map(repr, (FINE, REAL)))}")
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


def _run(given: argparse.Namespace) -> int:
    suite = find(given.suite)
    out = _announce(suite, given)
    report = suite.run(out, given.workers, partial(tqdm, desc=suite.name, unit="cell"))
    with _reading(out):
        _conclude(report)
        failed = failures(report.rows)
    print(out)
    if failed:
        cells = len({row["id"] for row in report.rows})
        print(f"sdekit bench: {len(failed)} of {cells} cells failed; the first: {failed[0]}", file=sys.stderr)
    return 1 if failed else 0


def failures(rows: Iterable[Row]) -> list[str]:
    """Return what is to be said of every cell that failed; that a budget pays for no run is a result, no failure."""
    cells: dict[str, str] = {}
    found: dict[str, str] = {}
    for row in rows:
        if row["kind"] == "draw":
            of = "" if row["budget"] is None else f" on {row['model']} at {row['budget']} evaluations"
            cells[row["id"]] = f"{row['method']}{of}, seed {row['seed']}"
        if row["status"] != OK and not row["status"].startswith(f"{BudgetError.__name__}: "):
            found.setdefault(row["id"], f"{cells.get(row['id'])}: {row['status']}")
    return list(found.values())


def _announce(suite: Suite, given: argparse.Namespace) -> Path:
    """Print what is left to be done, and return the file."""
    out: Path = given.out or Path("runs") / f"{suite.name}.jsonl"
    if given.out is None and suite.name in SUITES and given.suite != suite.name:
        raise ValueError(
            f"{out} is the file of the suite {suite.name!r}, not of {given.suite}. Rename it, or give --out."
        )
    for study, agenda in zip(suite.studies, suite.plan(out), strict=True):
        several = f"{', '.join(study.models)}: " if len(suite.studies) > 1 else ""
        print(f"{several}{agenda}", flush=True)
    return out


def _report(given: argparse.Namespace) -> None:
    with _reading(given.file):
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
    with _reading(given.file):
        every = _read(given.file).findings
        known = list(dict.fromkeys(name for found in every.values() for name in (*found.methods, *found.levels)))
        budgets = sorted({budget for found in every.values() for budget in found.budgets})
        for name in (given.first, given.second):
            if name not in known:
                raise ValueError(f"{given.file} has no method {name!r}. {suggest(name, known)}")
        for budget in given.nfe or ():
            if budget not in budgets:
                raise ValueError(f"{given.file} has nothing at {budget} evaluations; it has {budgets}.")
        for (model, metric), found in every.items():
            for budget in found.budgets if given.nfe is None else given.nfe:
                told = _difference(found, given.first, given.second, budget)
                print(f"{model}, {metric}, {budget} evaluations: {told}")


def _difference(found: Findings, first: str, second: str, budget: int) -> str:
    """Return what is between two methods at a budget, or a method and what it is held against."""
    a, b = (found.levels.get(name, found.entries.get((name, budget))) for name in (first, second))
    missing = [name for name, entry in ((first, a), (second, b)) if entry is None or not entry.values]
    if a is None or b is None or missing:
        return f"no values of {' and '.join(missing)}"
    if REAL in (first, second):  # of other samples, whose chance is their own
        low, high, value = a.interval, b.interval, a.mean - b.mean
        reach = math.hypot(low.high - low.value, high.high - high.value)
        told, sure = abs(value) > reach, "not paired"
    else:
        gap = compare(a, b)
        value, reach = gap.value, gap.interval.high - gap.value
        told, sure = gap.p < LEVEL, f"{p_value(gap.p)} of this pair alone"
    better = found.goal.loss(value) < 0
    verdict = "cannot be told from" if not told else "beats" if better else "is beaten by"
    return f"{first} {verdict} {second}, difference {figures(value, reach)}, {sure}"


def _read(path: Path) -> Report:
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}. Run a suite first: sdekit bench run NAME --out {path}.")
    return Report.read(path)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what broken rows of a file lead to into an error that says so."""
    try:
        yield
    except (LookupError, AttributeError, TypeError) as error:
        raise ValueError(
            f"{path} must hold rows as a study writes them; some of it is not ({type(error).__name__}: {error}). "
            "Restore it, or give another file."
        ) from error
