"""Scores: log-likelihoods sample by sample, with their means, intervals, a table and a histogram."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from scipy.special import stdtrit
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Score: TypeAlias = dict[str, Any]
"""What is known of one sample, in JSON types, flat enough for `pandas.read_json(path, lines=True)`.

Which: `data`, the name of its set; `index` in it; `samples`, the set's fingerprint; `dims`. How: `settings`, `sdekit`.
What came out, in nats, the mean over draws where there are several: every number of `Likelihood`, `log_prob` and its
parts, `stderr` of random probes (null where one probe says nothing of it), `prior_share` and the like, `nfe` added up.
What that says of the data: `log_mass` and `bits_per_dim`, and `draws_stderr`, the error of log_mass over draws.
"""

_KEYS = {"data", "index", "log_prob", "log_mass", "bits_per_dim", "stderr", "nfe", "dims", "samples", "settings"}


def read(path: Path) -> list[Score]:
    """Return the rows of a file.

    Raises:
        ValueError: a line is none.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not row.keys() >= _KEYS:
            raise ValueError(f"{path} must hold one score a line; line {number} is none. Give another path.")
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Mean:
    """A mean over samples and its 95% interval.

    Attributes:
        value: the mean.
        low: the interval's lower end, NaN for one sample.
        high: its upper end.
        n: the number of samples.

    The interval is Student's, of n - 1 degrees, for what the mean over more samples would be. Errors of random probes
    are independent from sample to sample, so the spread of the samples has them in it; those of the integration may
    have one sign, so the mean of what is stated for them is added, in the root mean square.
    """

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Tensor, common: float = 0.0) -> Mean:
        """Return the mean of `values`, shape (n,), of which `common` is an error that all of them may share."""
        n, mean = len(values), float(values.mean())
        spread = float(values.std()) / n**0.5 if n > 1 else math.nan
        reach = float(stdtrit(n - 1, 0.975)) * math.hypot(spread, common) if n > 1 else math.nan
        return cls(mean, mean - reach, mean + reach, n)

    def __str__(self) -> str:
        reach = self.high - self.value
        digits = 3 if math.isnan(reach) or reach == 0 else max(0, 1 - math.floor(math.log10(reach)))
        return f"{self.value:.{digits}f}" + ("" if math.isnan(reach) else f" ± {reach:.{digits}f}")


@dataclass(frozen=True, eq=False)
class Scores:
    """The rows of a scoring, one for each sample.

    Raises:
        ValueError: there is no row.
    """

    rows: tuple[Score, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("A report needs a row of at least one sample; got none.")

    @classmethod
    def read(cls, path: str | Path) -> Scores:
        """Return the report on all rows of a file, without the model or the data."""
        return cls(tuple(read(Path(path))))

    @property
    def names(self) -> list[str]:
        """The names of the sets, in their order."""
        return list(dict.fromkeys(row["data"] for row in self.rows))

    def column(self, name: str, key: str) -> Tensor:
        """Return one number of every sample of a set, float64, shape (n,); NaN where it is not known."""
        values = [row.get(key) for row in self.rows if row["data"] == name]
        return torch.tensor([math.nan if v is None else float(v) for v in values], dtype=torch.float64)

    def mean(self, name: str, key: str = "log_prob") -> Mean:
        """Return the mean of `log_prob`, `log_mass` or `bits_per_dim` over a set, and its interval."""
        return Mean.of(self.column(name, key), self._common(name, key))

    def difference(self, other: Scores, name: str, key: str = "log_prob") -> Mean:
        """Return the mean of this minus other, sample by sample of the same set, and its interval.

        Raises:
            ValueError: the two are not of the same samples.
        """
        ours, theirs = (
            [(row["samples"], row["index"]) for row in scores.rows if row["data"] == name] for scores in (self, other)
        )
        if ours != theirs:
            raise ValueError(f"A paired difference needs the same samples of {name!r} in both; they differ.")
        common = math.hypot(self._common(name, key), other._common(name, key))
        return Mean.of(self.column(name, key) - other.column(name, key), common)

    def table(self) -> str:
        """Return a Markdown table: a row a set, means with the reach of their 95% intervals."""
        rows = [("", "log-density (nats)", "bits per dimension"), ("---", "---:", "---:")]
        rows += [(name, str(self.mean(name)), str(self.mean(name, "bits_per_dim"))) for name in self.names]
        return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *(f"- {note}" for note in self._notes())])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw histograms of the bits per dimension, one a set, and write them to a file if one is given.

        Raises:
            ImportError: matplotlib is missing.
        """
        from sdekit.study.histogram import draw

        figure = draw({name: self.column(name, "bits_per_dim") for name in self.names})
        if path is not None:
            figure.savefig(path, bbox_inches="tight", dpi=200)
        return figure

    def _common(self, name: str, key: str) -> float:
        """Return the mean error stated for the integration, in the unit of `key`; 0 where none is stated."""
        dims = next(row["dims"] for row in self.rows if row["data"] == name)
        error = float(self.column(name, "integration_error").nan_to_num().mean())
        return error / (dims * math.log(2)) if key == "bits_per_dim" else error

    def _notes(self) -> Sequence[str]:
        notes = [", ".join(f"{len(self.column(name, 'nfe'))} {name}" for name in self.names) + "; ± 95% over samples."]
        for name in self.names:
            parts = [
                f"{label} {mean:.2g}"
                for label, key in _SHARES.items()
                if math.isfinite(mean := float(self.column(name, key).mean())) and mean
            ]
            calls = f"{float(self.column(name, 'nfe').mean()):g} network calls a sample"
            notes.append(f"{name}: {', '.join([calls, *parts])}" + (" (nats, means)." if parts else "."))
        return notes


_SHARES = {
    "error of probes": "stderr",
    "of integration": "integration_error",
    "share of the prior": "prior_share",
    "of the time cut": "cut_share",
    "error of draws": "draws_stderr",
}
