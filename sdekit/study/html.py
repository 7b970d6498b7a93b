"""A report as one page of HTML that holds everything and asks for nothing from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from sdekit.study.findings import Findings
from sdekit.study.rows import OK
from sdekit.study.sections import Cell, Rows, section, table
from sdekit.study.sheets import sheet
from sdekit.study.storage import Store

_READING = (
    "An interval is the wider of two: Student's over the seeds, and that of the finite-sample error of the values. "
    "Both estimate one thing, for seeds differ by their samples alone. It covers the draw of the samples. It does not "
    "cover the reference, which all values share; the bias that a distance has at this number of samples, which real "
    "data at the same number show; the training of the model; or, for a method fitted to the model, its fit.",
    "Values of another number of samples, extractor or reference do not compare with these, and rows that differ in "
    "one of them are refused.",
    "A cell that failed, or whose value is not finite, is shown with its reason and never ranked.",
    "A network evaluation (NFE) is one call of the network for a sample, with all that guidance asks counted.",
)


def page(findings: Mapping[tuple[str, str], Findings], path: Path | None, title: str, command: str) -> str:
    """Return the page: the same rows give the same text.

    Args:
        findings: by model and metric.
        path: the file of rows, beside which the samples lie.
        title: the heading.
        command: what the study was run by.
    """
    models = list(dict.fromkeys(model for model, _ in findings))
    headings = {key: f"{key[0]}: {f.metric}" if len(models) > 1 else f.metric for key, f in findings.items()}
    draws = _draws(findings.values())
    sections = [section(found, headings[key], f"s{k}") for k, (key, found) in enumerate(findings.items())]
    sheets = [_sheets(found, path) for found in _first_of(findings).values()] if path else []
    failed = _failures(findings)
    links = [_link(f"s{k}", heading) for k, heading in enumerate(headings.values())]
    links += [_link("samples", "Samples")] * any(sheets) + [_link("failures", "Failures")] * bool(failed)
    links += [_link("reading", "How to read this"), _link("again", "How to reproduce")]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>\n{_part('page.css')}</style></head><body>",
            f'<header><p class="eyebrow">A study of samplers</p><h1>{escape(title)}</h1>{_lead(findings)}</header>',
            f"<nav>{''.join(links)}</nav><main>",
            *sections,
            *(['<section id="samples"><h2>Samples</h2>', *sheets, "</section>"] if any(sheets) else []),
            failed,
            '<section id="reading"><h2>How to read this</h2>',
            f'<ul class="notes">{"".join(f"<li>{escape(text)}</li>" for text in _READING)}</ul></section>',
            _again(findings, draws, path, command),
            f"</main><script>\n{_part('page.js')}</script></body></html>\n",
        ]
    )


def _link(to: str, name: str) -> str:
    return f'<a href="#{to}">{escape(name)}</a>'


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _draws(findings: Iterable[Findings]) -> list[Mapping[str, Any]]:
    """Return the draws behind all findings, each once."""
    return list({o.draw["id"]: o.draw for found in findings for o in found.outcomes}.values())


def _first_of(findings: Mapping[tuple[str, str], Findings]) -> dict[str, Findings]:
    """Return of each model what was found by its first metric."""
    first: dict[str, Findings] = {}
    for (model, _), found in findings.items():
        first.setdefault(model, found)
    return first


def _lead(findings: Mapping[tuple[str, str], Findings]) -> str:
    methods = {method for found in findings.values() for method in found.methods}
    budgets = sorted({budget for found in findings.values() for budget in found.budgets})
    seeds = {seed for found in findings.values() for seed in found.seeds}
    metrics = list(dict.fromkeys(found.metric for found in findings.values()))
    samples = sorted({found.samples for found in findings.values()})
    models = len({model for model, _ in findings})
    parts = [
        _count(len(methods), "method"),
        f"{_count(len(budgets), 'budget')} of {_listed(budgets)} network evaluations",
        _count(len(seeds), "seed"),
        *([_count(models, "model")] if models > 1 else []),
    ]
    return (
        f'<p class="lead">{escape(", ".join(parts))}; {_listed(samples)} samples a value, measured by '
        f"{escape(_listed(metrics))}. All methods of a seed start from the same noise.</p>"
    )


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def _listed(things: Sequence[object]) -> str:
    words = [str(thing) for thing in things]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _sheets(findings: Findings, path: Path) -> str:
    """Return the samples of the first seed, a row a method, a column a budget; "" if there are none to be seen."""
    store, seed = Store(path), findings.seeds[0]
    shown: dict[tuple[str, int | None], str] = {}
    for draw in (outcome.draw for outcome in findings.outcomes if outcome.draw["seed"] == seed):
        samples = store.samples(draw["id"]) if draw["status"] == OK else None
        label = f"Samples of {draw['method']}" + (f" at {draw['budget']} evaluations" if draw["budget"] else "")
        if samples is not None and (html := sheet(samples, label)):
            shown[draw["method"], draw["budget"]] = html
    if not shown:
        return ""
    columns = [budget for budget in findings.budgets if any(b == budget for _, b in shown)]
    heads = "".join(f'<th scope="col">NFE {budget}</th>' for budget in columns)
    rows = []
    for (name, _), held in shown.items():
        if name in findings.levels:
            rows.append(f'<tr><th scope="row">{name}</th><td colspan="{len(columns)}">{held}</td></tr>')
    rows += [
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{shown.get((name, budget), '–')}</td>" for budget in columns)
        + "</tr>"
        for name in findings.methods
    ]
    return (
        f'<div class="scroll" role="region" aria-label="Samples" tabindex="0"><table class="sheets"><caption>'
        f"{escape(findings.model)}, seed {seed}. All sheets start from the same noise: a place in one is the same in "
        f"all.</caption><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _failures(findings: Mapping[tuple[str, str], Findings]) -> str:
    """Return the table of what has no value and why; "" if all is well."""
    found: dict[tuple[str, ...], dict[str, None]] = {}
    for outcome in (o for f in findings.values() for o in f.outcomes if o.error):
        draw, drawn = outcome.draw, outcome.draw["status"] == OK
        row = outcome.value if drawn and outcome.value else draw
        metric = str(outcome.value["metric"]) if drawn and outcome.value else "–"
        where = f" <small>({escape(row['where'])})</small>" if row.get("where") else ""
        trace = f"<details><summary>traceback</summary><pre>{escape(row.get('traceback') or '')}</pre></details>"
        why = escape(str(outcome.error)) + where + (trace if row.get("traceback") else "")
        key = (draw["method"], str(draw["model"]), str(draw["budget"]), metric, why)
        found.setdefault(key, {})[str(draw["seed"])] = None
    if not found:
        return ""
    header = ["Method", "Model", "NFE", "Metric", "Seeds", "Why"]
    body = [
        (key[0], [*(Cell(escape(word), word) for word in (*key[1:4], ", ".join(seeds))), Cell(key[4], "", "wide")])
        for key, seeds in found.items()
    ]
    listed = table("Cells without a value: not ranked, not in any mean.", header, Rows(body))
    return f'<section id="failures"><h2>Failures</h2>{listed}</section>'


def _again(
    findings: Mapping[tuple[str, str], Findings], draws: Sequence[Mapping[str, Any]], path: Path | None, command: str
) -> str:
    """Return what it takes to do it all again."""
    name = path.name if path else "study.jsonl"
    seconds = sum(draw["seconds"] or 0.0 for draw in draws)
    calls = sum((draw["nfe"] or 0) * draw["samples"] for draw in draws)
    values = [outcome.value for found in findings.values() for outcome in found.outcomes if outcome.value]
    measures = dict.fromkeys(f"{value['metric']}: {value['measure']}" for value in values)
    models = dict.fromkeys(f"{draw['model']}: {draw['print']}" for draw in draws if draw["print"])
    facts = {
        "sdekit": _kinds(draws, "sdekit"),
        "Commit": _kinds(draws, "commit"),
        "PyTorch, Python": f"{_kinds(draws, 'torch')}, {_kinds(draws, 'python')}",
        "Device, threads": f"{_kinds(draws, 'device')}, {_kinds(draws, 'threads')}",
        "Seeds": _kinds(draws, "seed"),
        "Model fingerprints": ", ".join(models),
        "Metric fingerprints": ", ".join(measures),
        "Drawn": f"{len(draws)} cells, {calls:,} network evaluations, {seconds:,.0f} s",
        "Dates": f"{min(draw['date'] for draw in draws)} to {max(draw['date'] for draw in draws)}",
    }
    listed = "".join(f"<dt>{key}</dt><dd>{escape(value or '–')}</dd>" for key, value in facts.items())
    run = f"<p>The study was run by</p><pre>{escape(command)}</pre>" if command else ""
    report = f'from sdekit.study import Report\n\nReport.read("{name}").html("report.html")'
    return (
        f'<section id="again"><h2>How to reproduce</h2><dl>{listed}</dl>{run}<p>This page is made from the rows alone, '
        f"without the model or the data:</p><pre>{escape(report)}</pre>{_samplers(draws)}</section>"
    )


def _kinds(draws: Iterable[Mapping[str, Any]], key: str) -> str:
    return ", ".join(str(kind) for kind in dict.fromkeys(draw[key] for draw in draws) if kind is not None)


def _samplers(draws: Iterable[Mapping[str, Any]]) -> str:
    """Return what each method is, folded up: its first description, whatever its budget."""
    described: dict[str, object] = {}
    for draw in draws:
        if draw["sampler"] is not None:
            described.setdefault(draw["method"], draw["sampler"])
    text = "\n".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in described.items())
    return f"<details><summary>The methods in full</summary><pre>{escape(text)}</pre></details>" if text else ""
