"""A report as records, one an entry: for CSV, pandas and parquet."""

from __future__ import annotations

import csv as csv_format
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdekit.study.entry import Entry
from sdekit.study.findings import Findings
from sdekit.study.rows import OK, REAL

if TYPE_CHECKING:
    from pandas import DataFrame

COLUMNS = {
    "model": "its label",
    "metric": "its name",
    "method": "its label, or real data",
    "budget": "the network calls allowed, none for real data",
    "nfe": "those counted",
    "samples": "behind every value",
    "seeds": "with a value",
    "mean": "over the seeds",
    "sd": "over the seeds",
    "stderr": "the finite-sample error of one value",
    "low": "the lower end of the 95% interval",
    "high": "its upper end",
    "seconds": "for drawing the samples of one seed",
    "rank": "at the budget; ties have one rank, failures none",
    "gap": "mean paired difference from the best at the budget",
    "gap_low": "the lower end of its 95% interval",
    "gap_high": "its upper end",
    "p": "of the gap, adjusted for all pairs at the budget; the best has none",
    "status": "ok, or why a seed has no value",
}
"""What a record holds; what is not known is None."""


def records(findings: Findings) -> list[dict[str, Any]]:
    """Return a record for every entry, as the study orders them, and one for real data."""
    found = []
    for budget in findings.budgets:
        places = {place.method: place for place in findings.ranking(budget)}
        for method, entry in findings.at(budget).items():
            record = {"method": method, "budget": budget, **_figures(entry)}
            if method in places:
                place = places[method]
                record["rank"] = place.rank
                if place.behind:
                    mean = place.behind.gap.interval
                    record |= {"gap": mean.value, "gap_low": mean.low, "gap_high": mean.high, "p": place.behind.p}
            found.append(record)
    if findings.floor:
        found.append({"method": REAL, **_figures(findings.floor)})
    same = {"model": findings.model, "metric": findings.metric, "samples": findings.samples}
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
        "seconds": entry.seconds,
        "status": "; ".join(dict.fromkeys(entry.errors)) or OK,
    }


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return records as CSV, with a header; what is not known is empty."""
    text = io.StringIO()
    writer = csv_format.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def dataframe(rows: Sequence[dict[str, Any]]) -> DataFrame:
    """Return records as a pandas DataFrame.

    Raises:
        ImportError: pandas is missing.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError('dataframe() needs pandas: pip install "sdekit[study]"') from error
    whole = dict.fromkeys(("budget", "nfe", "samples", "seeds", "rank"), "Int64")
    real = dict.fromkeys(
        ("mean", "sd", "stderr", "low", "high", "seconds", "gap", "gap_low", "gap_high", "p"), "float64"
    )
    return pandas.DataFrame.from_records(list(rows), columns=list(COLUMNS)).astype({**whole, **real})


def parquet(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write records to a parquet file.

    Raises:
        ImportError: pandas or pyarrow is missing.
    """
    frame = dataframe(rows)
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise ImportError('parquet() needs pyarrow: pip install "sdekit[bench]"') from error
    frame.to_parquet(path, engine="pyarrow", index=False)
