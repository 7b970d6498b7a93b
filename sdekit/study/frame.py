"""A report as records, one an entry: for CSV, pandas and parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdekit.study.entry import Entry
from sdekit.study.findings import Findings
from sdekit.study.rows import OK

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = {
    "model": "its label",
    "metric": "its name",
    "method": "its label, or real data, or the fine solution",
    "budget": "the network calls allowed, none for those two",
    "nfe": "those counted",
    "samples": "behind every value",
    "print": "the model's fingerprint",
    "measure": "that of the metric with its extractor and reference",
    "device": "on which the samples were drawn",
    "seeds": "with a value",
    "mean": "over the seeds",
    "sd": "over the seeds",
    "stderr": "the finite-sample error of one value",
    "low": "the lower end of the 95% interval",
    "high": "its upper end",
    "seconds": "for drawing the samples of one seed",
    "cpu_seconds": "of the processor for that",
    "overhead": "seconds beyond the bare calls of the network",
    "fit_seconds": "for fitting the sampler to the model before, once for all seeds",
    "rank": "at the budget; ties have one rank, failures none",
    "gap": "mean paired difference from the best at the budget",
    "gap_low": "the lower end of its 95% interval",
    "gap_high": "its upper end",
    "p": "of the gap, adjusted for all pairs at the budget; the best has none",
    "fine_gap": "how much worse than the fine solution, paired",
    "fine_gap_low": "the lower end of its 95% interval",
    "fine_gap_high": "its upper end",
    "status": "ok, or why a seed has no value",
}
"""What a record holds; what is not known is None."""

_WORDS = ("model", "metric", "method", "print", "measure", "device", "status")


def records(findings: Findings) -> list[dict[str, Any]]:
    """Return a record for every entry, as the study orders them, and for real data and the fine solution."""
    found = []
    for budget in findings.budgets:
        places, behind = {place.method: place for place in findings.ranking(budget)}, findings.behind_fine(budget)
        for method, entry in findings.at(budget).items():
            record = {"method": method, "budget": budget, **_figures(entry)}
            if method in places:
                place = places[method]
                record["rank"] = place.rank
                if place.behind:
                    mean = place.behind.gap.interval
                    record |= {"gap": mean.value, "gap_low": mean.low, "gap_high": mean.high, "p": place.behind.p}
            if method in behind:
                mean = behind[method].interval
                record |= {"fine_gap": mean.value, "fine_gap_low": mean.low, "fine_gap_high": mean.high}
            found.append(record)
    found += [{"method": name, **_figures(entry)} for name, entry in findings.levels.items()]
    same = {"model": findings.model, "metric": findings.metric, "samples": findings.samples}
    same |= {"print": findings.print, "measure": findings.measure, "device": findings.device}
    return [{key: _known({**same, **record}.get(key)) for key in COLUMNS} for record in found]


def _figures(entry: Entry) -> dict[str, Any]:
    mean = entry.interval
    return {
        "nfe": entry.nfe,
        "seeds": len(entry.values),
        "mean": mean.value,
        "sd": entry.sd,
        "stderr": entry.stderr,
        "low": mean.low,
        "high": mean.high,
        **entry.spent._asdict(),
        "status": "; ".join(dict.fromkeys(entry.errors)) or OK,
    }


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return records as CSV, with a header; what is not known is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_frame(rows: Sequence[dict[str, Any]]) -> DataFrame:
    """Return records as a pandas DataFrame.

    Raises:
        ImportError: pandas is missing.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError('dataframe() needs pandas: pip install "sdekit[study]"') from error
    whole = dict.fromkeys(("budget", "nfe", "samples", "seeds", "rank"), "Int64")
    real = dict.fromkeys([key for key in COLUMNS if key not in whole and key not in _WORDS], "float64")
    return pandas.DataFrame.from_records(list(rows), columns=list(COLUMNS)).astype({**whole, **real})


def write_parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write records to a parquet file.

    Raises:
        ImportError: pandas or pyarrow is missing.
    """
    frame = as_frame(rows)
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError('parquet() needs pyarrow: pip install "sdekit[bench]"') from error
    frame.to_parquet(path, engine="pyarrow", index=False)
