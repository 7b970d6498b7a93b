"""A report as a Markdown table that reads well unrendered too."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sdekit.study.entry import LEVEL, Entry
from sdekit.study.findings import Findings
from sdekit.study.rows import REAL


def markdown(findings: Findings, of: str) -> str:
    """Return the table of a report under a caption that begins with what it is `of`; notes below."""
    header = ["", *(f"NFE {budget}" for budget in findings.budgets)]
    body = [[method, *(_field(findings, method, budget) for budget in findings.budgets)] for method in findings.methods]
    if findings.floor:
        body.append([REAL, *[interval(findings.floor)] * len(findings.budgets)])
    notes = [f"- {note}" for note in notes_on(findings)]
    return "\n".join(
        [
            f"**{of}** {findings.caption}. Bold: the best at each NFE, and what cannot be told from it at {LEVEL:.0%}.",
            "",
            *_aligned(header, body),
            *([""] if notes else []),
            *notes,
        ]
    )


def interval(entry: Entry) -> str:
    """Return the mean of an entry with the reach of its 95% interval, "–" where there is no value."""
    mean = entry.interval
    return figures(mean.value, mean.high - mean.value)


def figures(mean: float, reach: float) -> str:
    """Return "mean ± reach" with three figures of the mean, and up to two more where the reach is too small to show.

    >>> figures(0.123456, 0.0123), figures(1234.5, math.nan), figures(1.5e-7, 2e-10)
    ('0.123 ± 0.012', '1234', '(1.500 ± 0.002)e-07')
    """
    if math.isnan(mean):
        return "–"
    exponent = math.floor(math.log10(abs(mean))) if mean else 0
    if not -4 < exponent < 6:
        inner = figures(mean / 10.0**exponent, reach / 10.0**exponent)
        return f"({inner})e{exponent:+03d}" if "±" in inner else f"{inner}e{exponent:+03d}"
    decimals = max(0, 2 - exponent)
    if reach > 0:
        decimals = min(max(decimals, -math.floor(math.log10(reach))), decimals + 2)
    return f"{mean:.{decimals}f}" + ("" if math.isnan(reach) else f" ± {reach:.{decimals}f}")


def _field(findings: Findings, method: str, budget: int) -> str:
    entry = findings.entries.get((method, budget))
    if entry is None:
        return ""
    text = interval(entry)
    if entry.values and entry.errors:
        text += f" ({len(entry.values)} of {len(entry.values) + len(entry.errors)})"
    if entry.nfe not in (None, budget):
        text += f" [{entry.nfe}]"
    return f"**{text}**" if method in findings.contenders(budget) else text


def notes_on(findings: Findings) -> Iterator[str]:
    """Yield what must be known to read the figures right."""
    entries, n = findings.entries, findings.samples
    if any(entry.nfe not in (None, budget) for (_, budget), entry in entries.items()):
        yield "[k]: the network calls counted, where they are fewer than the budget."
    drawn = [outcome.draw for outcome in findings.outcomes]
    asked = max((row["shape"][0] for row in drawn if row["budget"] is not None), default=n)
    held_out = max((row["shape"][0] for row in drawn if row["budget"] is None), default=n)
    if findings.floor:
        lot = f"; of the {held_out} held out, each seed takes {n} by lot" if held_out > n else ""
        yield f"{REAL}: held out, against the same reference, at the same n = {n}{lot}."
    if asked > n:
        yield f"Every value is of {n} samples, as many as are held out, not of the {asked} asked for."
    for (method, budget), entry in entries.items():
        for error in dict.fromkeys(entry.errors):
            yield f"{method} at NFE {budget}: {error}"


def _aligned(header: list[str], body: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table, columns of one width, the first one flush left."""
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(header, *body, strict=True)]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for cells in (header, rules, *body):
        yield "| " + " | ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) + " |"
