"""The parts of a report's page that are about one model and one metric: answers, charts, tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import NamedTuple

from sdekit.study.chart import chart
from sdekit.study.comparison import Difference, Place
from sdekit.study.entry import Entry, Goal
from sdekit.study.figure import Cost
from sdekit.study.findings import Findings
from sdekit.study.pareto import Reach
from sdekit.study.rows import FINE, REAL
from sdekit.study.table import BEHIND, difference, figures, interval, notes_on
from sdekit.study.words import answers, between, method_notes, p_value

_QUALITIES = (2.0, 1.5, 1.25)  # times what real data gets, or the best entry where there is no real data


class Cell(NamedTuple):
    """A table's cell: its HTML, what it is sorted by, and its class."""

    html: str
    key: float | str | None = None
    kind: str = ""


class Rows(NamedTuple):
    """A table's rows, each under its name, and more at the foot that do not sort."""

    body: Sequence[tuple[str, Sequence[Cell]]]
    foot: Sequence[tuple[str, Sequence[Cell]]] = ()


def table(caption: str, header: Sequence[str], rows: Rows) -> str:
    """Return a table that sorts by its headers; the first column names the rows."""
    heads = "".join(f'<th scope="col"><button type="button">{name}</button></th>' for name in header)
    body = "\n".join(_row(name, cells) for name, cells in rows.body)
    feet = "".join(_row(name, cells) for name, cells in rows.foot)
    foot = f"<tfoot>{feet}</tfoot>" if feet else ""
    return (
        f'<div class="scroll" role="region" aria-label="{escape(header[0])}s, a table" tabindex="0">'
        f'<table class="sorts"><caption>{caption}</caption>'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody>{foot}</table></div>"
    )


def _row(name: str, cells: Iterable[Cell]) -> str:
    return f'<tr><th scope="row">{escape(name)}</th>{"".join(map(_cell, cells))}</tr>'


def _cell(cell: Cell) -> str:
    key = "" if cell.key is None or cell.key != cell.key else str(cell.key)
    kind = f' class="{cell.kind}"' if cell.kind else ""
    return f'<td data-v="{escape(key)}"{kind}>{cell.html}</td>'


def section(findings: Findings, heading: str, ident: str) -> str:
    """Return all that is said of one model by one metric."""
    return "\n".join(
        [
            f'<section id="{ident}" aria-labelledby="{ident}-h"><h2 id="{ident}-h">{escape(heading)}</h2>',
            f"<p>{escape(findings.caption[0].upper() + findings.caption[1:])}.</p>",
            _answers(findings),
            _charts(findings, heading),
            _main_table(findings),
            _behind_table(findings),
            _reach_table(findings),
            _front_table(findings),
            "<h3>Every comparison</h3>",
            *(f"<p>{escape(note)}</p>" for note in method_notes(findings)),
            *(_ranking(findings, budget) for budget in findings.budgets),
            "</section>",
        ]
    )


def _answers(findings: Findings) -> str:
    cards = [
        f'<li><span class="eyebrow">Best at {answer.budget} evaluations</span><strong>{escape(answer.method or "–")}'
        f'</strong><span class="value">{escape(answer.value)}</span><p>{escape(answer.text)}</p></li>'
        for answer in answers(findings)
    ]
    return f'<ul class="answers">{"".join(cards)}</ul>'


def _charts(findings: Findings, heading: str) -> str:
    figures = []
    for cost, name in ((Cost.CALLS, "Quality against evaluations"), (Cost.SECONDS, "Quality against time")):
        if drawn := chart(findings, cost, name):
            words = f"<b>{name}.</b> {escape(heading)}, means with 95% intervals; point at a mark for its figures."
            figures.append(f"<figure><figcaption>{words}</figcaption>{drawn}</figure>")
    return f'<div class="charts">{"".join(figures)}</div>'


def _main_table(findings: Findings) -> str:
    caption = (
        f"<b>{escape(findings.metric)}</b>, mean ± reach of the 95% interval. Shaded: the best at each number of "
        "evaluations (NFE); bold: all that cannot be told from it."
    )
    header = ["Method", *(f"NFE {budget}" for budget in findings.budgets)]
    body = [(name, [_value(findings, name, budget) for budget in findings.budgets]) for name in findings.methods]
    foot = [(name, [Cell(_with_reach(e))] * len(findings.budgets)) for name, e in findings.levels.items()]
    notes = "".join(f"<li>{escape(note)}</li>" for note in notes_on(findings))
    listed = f'<ul class="notes">{notes}</ul>' if notes else ""
    return table(caption, header, Rows(body, foot)) + listed


def _behind_table(findings: Findings) -> str:
    """Return the table of how much worse than the fine solution methods are; "" if there is none."""
    found = [findings.behind_fine(budget) for budget in findings.budgets]
    if not any(found):
        return ""
    body = [(name, [_gap(gaps.get(name)) for gaps in found]) for name in findings.methods]
    caption = f"How much worse than the {FINE}: paired difference ± reach of its 95% interval. {BEHIND}"
    header = ["Method", *(f"NFE {budget}" for budget in findings.budgets)]
    return f"<h3>What the sampler does to it</h3>{table(caption, header, Rows(body))}"


def _gap(gap: Difference | None) -> Cell:
    if gap is None:
        return Cell("–")
    return Cell(_small(difference(gap)), gap.value, "tie" if gap.interval.low <= 0 else "")


def _value(findings: Findings, method: str, budget: int) -> Cell:
    entry = findings.entries.get((method, budget))
    if entry is None:
        return Cell("")
    text = _with_reach(entry)
    if entry.nfe not in (None, budget):
        text += f" <small>[{entry.nfe}]</small>"
    if not entry.complete:
        counted = f" ({len(entry.values)} of {len(entry.values) + len(entry.errors)})" if entry.values else ""
        return Cell(f'<span title="{escape(entry.errors[0])}">{text}{counted}</span>', None, "fail")
    kind = "best" if method == findings.best(budget) else "tie" if method in findings.contenders(budget) else ""
    return Cell(text, entry.mean, kind)


def _with_reach(entry: Entry) -> str:
    return _small(interval(entry))


def _small(text: str) -> str:
    mean, sign, reach = text.partition(" ± ")
    return f"{mean} <small>± {reach}</small>" if sign else mean


def _reach_table(findings: Findings) -> str:
    """Return the table of the fewest network calls that reach some qualities."""
    goal = findings.goal
    best = min((e.mean for e in findings.entries.values() if e.complete), key=goal.loss, default=math.nan)
    base = findings.floor.mean if findings.floor and findings.floor.complete else best
    if not base > 0:
        return ""
    of = REAL if findings.floor else "the best of all"
    levels = [factor * base if goal is Goal.LOW else base / factor for factor in _QUALITIES]
    sign = "×" if goal is Goal.LOW else "times below"
    names = [
        f"{factor:g} {sign} {of}: {figures(level, math.nan)}" for factor, level in zip(_QUALITIES, levels, strict=True)
    ]
    found = [findings.reach(level) for level in levels]
    body = [(method, [_reached(reach[method]) for reach in found]) for method in findings.lines]
    caption = (
        "The fewest evaluations, of those tried, at which the mean is as good as a value; in brackets from where the "
        "better end of the interval is to where the worse end is."
    )
    return "<h3>Evaluations that a quality takes</h3>" + table(caption, ["Method", *names], Rows(body))


def _reached(reach: Reach) -> Cell:
    if reach.calls is None:
        return Cell("never" if reach.earliest is None else f"never <small>[{reach.earliest} to never]</small>", 1e300)
    ends = "" if reach.earliest == reach.surely else f" <small>[{reach.earliest} to {reach.surely or 'never'}]</small>"
    return Cell(f"{reach.calls}{ends}", reach.calls)


def _front_table(findings: Findings) -> str:
    body = [
        (
            point.method,
            [
                Cell(str(point.entry.nfe), point.entry.nfe),
                Cell(f"{point.entry.seconds:.3g}", point.entry.seconds),
                Cell(_with_reach(point.entry), point.entry.mean),
            ],
        )
        for point in findings.front
    ]
    caption = (
        f"Pareto front of the means: nothing else in the study is as fast and better. Time is for the "
        f"{findings.samples} samples of a seed, on the machine named below."
    )
    header = ["Method", "NFE", "Seconds", escape(findings.metric)]
    return "<h3>Quality against time</h3>" + table(caption, header, Rows(body)) if body else ""


def _ranking(findings: Findings, budget: int) -> str:
    """Return the ranking at a budget, and every pair below it, folded up."""
    places = findings.ranking(budget)
    if not places:
        return ""
    header = [
        "Method",
        "Rank",
        "Mean (95% interval)",
        "sd of seeds",
        "Error of one",
        "Behind the best",
        "p (Holm)",
        "Seconds",
        "Of these overhead",
    ]
    ranked = table(
        f"At {budget} evaluations. Equal ranks are ties: rank is one more than the number of methods that beat it.",
        header,
        Rows([(place.method, list(_placed(place))) for place in places]),
    )
    return f"<details><summary>At {budget} evaluations</summary>{ranked}{_pairs(findings, budget)}</details>"


def _placed(place: Place) -> Iterator[Cell]:
    entry = place.entry
    yield Cell(str(place.rank), place.rank)
    yield Cell(between(entry.interval), entry.mean)
    yield Cell(figures(entry.sd, math.nan), entry.sd)
    yield Cell(figures(entry.stderr, math.nan), entry.stderr)
    if place.behind:
        yield Cell(between(place.behind.gap.interval), place.behind.gap.value)
        yield Cell(_p(place.behind.p), place.behind.p)
    else:
        yield from (Cell("–", 0), Cell("–", 1))
    for seconds in (entry.seconds, entry.spent.overhead):
        yield Cell("–" if math.isnan(seconds) else f"{seconds:.3g}", seconds)


def _p(p: float) -> str:
    return escape(p_value(p).removeprefix("p ").removeprefix("= "))


def _pairs(findings: Findings, budget: int) -> str:
    body = []
    for (lower, higher), verdict in findings.verdicts(budget).items():
        flips = verdict.gap.flips
        body.append(
            (
                lower,
                [
                    Cell("beats" if verdict.told else "cannot be told from", int(verdict.told)),
                    Cell(escape(higher), higher),
                    Cell(between(verdict.gap.interval), verdict.gap.value),
                    Cell(_p(verdict.p), verdict.p, "tie" if verdict.told else ""),
                    Cell(f"{verdict.gap.p:.2g}", verdict.gap.p),
                    Cell("–" if math.isnan(flips) else f"{flips:.2g}", flips),
                ],
            )
        )
    caption = f"Every pair at {budget} evaluations; p adjusted (Holm), of this pair alone, and by sign flips of seeds."
    header = ["Method", "Verdict", "Other", "By (95% interval)", "p (Holm)", "p alone", "p by flips"]
    return f"<details><summary>All pairs</summary>{table(caption, header, Rows(body))}</details>" if body else ""
