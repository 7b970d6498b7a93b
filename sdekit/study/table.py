"""A report as a Markdown table that reads well unrendered too."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sdekit.study.comparison import Difference
from sdekit.study.entry import LEVEL, Entry
from sdekit.study.findings import Findings
from sdekit.study.rows import FINE, REAL

BEHIND = (
    "Model and starts are the same, so it is the sampler's own doing. Bold: not told from it, or better; better is no "
    "merit, but an error that happens to help."
)
"""How a table of how far methods are behind the fine solution is read."""


def markdown(findings: Findings, of: str) -> str:
    """Return the table of a report under a caption that begins with what it is `of`; notes below."""
    header = ["", *(f"NFE {budget}" for budget in findings.budgets)]
    body = [[method, *(_field(findings, method, budget) for budget in findings.budgets)] for method in findings.methods]
    body += [[name, *[interval(entry)] * len(findings.budgets)] for name, entry in findings.levels.items()]
    notes = [f"- {note}" for note in notes_on(findings)]
    return "\n".join(
        [
            f"**{of}** {findings.caption}. Bold: the best at each NFE, and what cannot be told from it at {LEVEL:.0%}.",
            "",
            *_aligned(header, body),
            *([""] if notes else []),
            *notes,
            *_behind(findings, of),
        ]
    )


def _behind(findings: Findings, of: str) -> Iterator[str]:
    """Yield the lines of the table of how much worse than the fine solution methods are, none if there is none."""
    found = [findings.behind_fine(budget) for budget in findings.budgets]
    if not any(found):
        return
    yield from ("", f"**{of}**, how much worse than the {FINE}: paired, ± 95% interval. {BEHIND}", "")
    header = ["", *(f"NFE {budget}" for budget in findings.budgets)]
    yield from _aligned(header, [[name, *(_gap(gaps.get(name)) for gaps in found)] for name in findings.methods])


def _gap(gap: Difference | None) -> str:
    if gap is None:
        return "–"
    return f"**{difference(gap)}**" if gap.interval.low <= 0 else difference(gap)


def difference(gap: Difference) -> str:
    """Return a difference with the reach of its 95% interval."""
    mean = gap.interval
    return figures(mean.value, mean.high - mean.value)


def interval(entry: Entry) -> str:
    """Return the mean of an entry with the reach of its 95% interval, "–" where there is no value."""
    mean = entry.interval
    return figures(mean.value, mean.high - mean.value)


def figures(mean: float, reach: float) -> str:
    """Return "mean ± reach" with three figures of the larger, and up to two more where the reach is too small to show.

    >>> figures(0.123456, 0.0123), figures(1234.5, math.nan), figures(1.5e-7, 2e-10), figures(-3e-4, 0.0659)
    ('0.123 ± 0.012', '1234', '(1.500 ± 0.002)e-07', '-0.0003 ± 0.0659')
    """
    if math.isnan(mean):
        return "–"
    size = abs(mean) if math.isnan(reach) else max(abs(mean), reach)
    exponent = math.floor(math.log10(size)) if size else 0
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
    if findings.fine:
        yield f"{FINE}: of the same network's flow from the same starts, by {findings.fine.nfe} network calls."
    for method in dict.fromkeys(row["method"] for row in drawn if clips(row["sampler"])):
        yield f"{method} clips or thresholds its samples, as it was asked to; no other does."
    if asked > n:
        yield f"Every value is of {n} samples, as many as are held out, not of the {asked} asked for."
    failed: dict[tuple[str, str], dict[int, str]] = {}
    for (method, budget), entry in entries.items():
        for error in dict.fromkeys(entry.errors):
            failed.setdefault((method, error.partition(":")[0]), {}).setdefault(budget, error)
    for (method, _), errors in failed.items():
        yield f"{method} at NFE {', '.join(map(str, errors))}: {next(iter(errors.values()))}"


def clips(sampler: Any) -> bool:
    """Tell whether a sampler, as its row describes it, has been asked to clip or to threshold what it draws."""
    if isinstance(sampler, Mapping):
        return any(clips(part) for part in sampler.values())
    if isinstance(sampler, Sequence) and not isinstance(sampler, str):
        asked = len(sampler) == 2 and sampler[0] in ("clip_sample", "thresholding") and bool(sampler[1])
        return asked or any(map(clips, sampler))
    return False


def _aligned(header: list[str], body: list[list[str]]) -> Iterator[str]:
    """Yield the lines of a table, columns of one width, the first one flush left."""
    header, *body = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in (header, *body)]
    widths = [max(3, *(len(cell) for cell in column)) for column in zip(header, *body, strict=True)]
    rules = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    for cells in (header, rules, *body):
        yield "| " + " | ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) + " |"
