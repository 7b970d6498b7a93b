"""Tables of the benchmark of log-likelihoods: sdekit at a peer's CPU time, calls to an accuracy, coverage, all rows.

python -m benchmarks.coverage benchmarks/results/likelihood.jsonl
"""

from __future__ import annotations

import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results" / "likelihood.jsonl"
QUARTERS = 4
SLACK = 1.05
"""CPU time is known no better than this."""


class Row(NamedTuple):
    """What one setting of one library reached in a cell, over all points and seeds. Errors in nats.

    mean, rms: of |error|. std: over seeds, of one point. noisy: mean |error| against the density of data with the noise
    of t_min. calls: of the network. seconds: CPU time of the batch, the least of all runs. stated: mean stated standard
    error. within: share of values within 3 of them. covered: share inside the stated 95% interval. quarters: `mean` of
    each quarter of the points.
    """

    problem: str
    process: str
    points: int
    library: str
    setting: str
    exact: bool
    seeds: int
    mean: float
    rms: float
    std: float
    noisy: float
    calls: int
    seconds: float
    stated: float | None
    within: float | None
    covered: float | None
    quarters: list[float]


Cell = tuple[str, str, int]


def read(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [Row(**json.loads(line)) for line in path.read_text().splitlines()]


def dumps(row: Row) -> str:
    """Return a row as a line of JSON, figures to four digits."""

    def short(value: object) -> object:
        if isinstance(value, list):
            return [short(entry) for entry in value]
        return float(f"{value:.4g}") if isinstance(value, float) else value

    return json.dumps({name: short(value) for name, value in row._asdict().items()}) + "\n"


def cells(rows: Iterable[Row]) -> dict[Cell, list[Row]]:
    """Return the rows by problem, process and number of points, the most points first."""
    found: dict[Cell, list[Row]] = defaultdict(list)
    for row in rows:
        found[row.problem, row.process, row.points].append(row)
    return found


def affordable(peer: Row, ours: list[Row]) -> Row:
    """Return, of our rows that take no more CPU time than the peer's, the one that states the least error.

    The truth is not looked at. A row that states none comes last, and of equal ones the dearer counts; if every row
    is dearer than the peer's, the cheapest.
    """
    within = [row for row in ours if row.seconds <= SLACK * peer.seconds]
    if not within:
        return min(ours, key=lambda row: row.seconds)
    return min(within, key=lambda row: (float("inf") if row.stated is None else row.stated, -row.seconds))


def equal_time(rows: list[Row]) -> list[str]:
    """Return the comparison with every peer at its own CPU time."""
    lines = [
        "At every peer's CPU time: of sdekit's settings that cost no more, the one that states the least error.",
        "Ratio: mean |error| of the peer over sdekit's, in brackets the range over quarters of the points.",
        "",
        _line("problem", "process", "points", "peer", "s", "calls", "error", "sdekit", "s", "calls", "error", "stated")
        + " ratio |",
        "|---" * 13 + "|",
    ]
    for (problem, process, points), found in cells(rows).items():
        ours = [row for row in found if row.library == "sdekit"]
        for peer in found:
            if peer.library == "sdekit" or not ours:
                continue
            own = affordable(peer, ours)
            ratios = [theirs / mine for theirs, mine in zip(peer.quarters, own.quarters, strict=True)]
            lines.append(
                _line(
                    problem, process, points, f"{peer.library} {peer.setting}", *_cost(peer), _figure(peer.mean),
                    own.setting, *_cost(own), _figure(own.mean), _figure(own.stated),
                )
                + f" {peer.mean / own.mean:.3g} ({min(ratios):.2g}-{max(ratios):.2g}) |"
            )  # fmt: skip
    return lines


def summary(rows: list[Row]) -> list[str]:
    """Return by problem and peer the ratio of errors at the peer's CPU time: the geometric mean, and the worst."""
    lines = [
        "The same ratio over all processes: geometric mean, and in brackets the least; with it the share of its time.",
        "",
        _line("problem", "points", "peer", "peer's error over sdekit's", "sdekit's CPU time over the peer's"),
        "|---" * 5 + "|",
    ]
    groups: dict[tuple[str, int, str], list[tuple[float, float]]] = defaultdict(list)
    for (problem, _, points), found in cells(rows).items():
        ours = [row for row in found if row.library == "sdekit"]
        for peer in found:
            if peer.library != "sdekit" and ours:
                own = affordable(peer, ours)
                ratio = (peer.mean / own.mean, own.seconds / peer.seconds)
                groups[problem, points, f"{peer.library} {peer.setting}"].append(ratio)
    for key, ratios in groups.items():
        gain, share = (statistics.geometric_mean(values) for values in zip(*ratios, strict=True))
        lines.append(_line(*key, f"{gain:.3g} ({min(ratio for ratio, _ in ratios):.2g})", f"{share:.2f}"))
    return lines


def overview(rows: list[Row]) -> list[str]:
    """Return the mean error of every setting on every process."""
    processes = list(dict.fromkeys(row.process for row in rows))
    lines = [
        "Mean |error| in nats, in brackets the network calls.",
        "",
        _line("problem", "points", "library", "setting", *processes),
        "|---" * (4 + len(processes)) + "|",
    ]
    groups: dict[tuple[str, int, str, str], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        groups[row.problem, row.points, row.library, row.setting][row.process] = row
    for key, found in groups.items():
        shown = (f"{_figure(found[p].mean)} ({found[p].calls})" if p in found else "-" for p in processes)
        lines.append(_line(*key, *shown))
    return lines


def calls_to(rows: list[Row], nats: float = 1e-3) -> list[str]:
    """Return the fewest calls, with an exact trace, that end below an error, and the least error of all."""
    lines = [
        f"Network calls with an exact trace to a mean error of {nats:g} nats; in brackets the least error reached.",
        "",
        _line("problem", "process", "sdekit", "torchdiffeq", "zuko"),
        "|---" * 5 + "|",
    ]
    for (problem, process, _), found in cells(row for row in rows if row.exact).items():
        shown = []
        for library in ("sdekit", "torchdiffeq", "zuko"):
            runs = [row for row in found if row.library == library]
            good = [row.calls for row in runs if row.mean <= nats]
            least = min((row.mean for row in runs), default=None)
            shown.append(f"{min(good) if good else '-'} ({_figure(least)})")
        lines.append(_line(problem, process, *shown))
    return lines


def coverage(rows: list[Row]) -> list[str]:
    """Return how often the truth lay within what was stated, by problem and setting, over all processes."""
    lines = [
        "What sdekit stated, over all processes: values within 3 stated standard errors, and in the 95% interval.",
        "",
        _line("problem", "setting", "values", "mean error", "mean stated", "within 3", "in 95%"),
        "|---" * 7 + "|",
    ]
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row.stated is not None:
            groups[row.problem, row.setting].append(row)
    for (problem, setting), found in groups.items():
        counts = [row.points * row.seeds for row in found]

        def mean(values: Iterable[float | None], counts: list[int] = counts) -> float:
            return sum((v or 0.0) * n for v, n in zip(values, counts, strict=True)) / sum(counts)

        error, stated = mean(r.mean for r in found), mean(r.stated for r in found)
        shares = (f"{100 * mean(values):.1f}%" for values in ([r.within for r in found], [r.covered for r in found]))
        lines.append(_line(problem, setting, sum(counts), _figure(error), _figure(stated), *shares))
    return lines


def everything(rows: list[Row]) -> list[str]:
    """Return every row."""
    heads = ("library", "setting", "seeds", "s", "calls", "ms a call", "mean", "rms", "std", "against noisy", "stated")
    lines = ["Every row. `against noisy`: mean error against the density of data with the noise of t_min.", ""]
    for (problem, process, points), found in cells(rows).items():
        lines += [f"**{problem}, {process}, {points} points**", "", _line(*heads, "within 3", "in 95%")]
        lines += ["|---" * (len(heads) + 2) + "|"]
        for row in found:
            errors = (row.mean, row.rms, row.std, row.noisy, row.stated)
            shares = ("-" if share is None else f"{100 * share:.0f}%" for share in (row.within, row.covered))
            rate = f"{1e3 * row.seconds / row.calls:.2f}"
            lines.append(_line(row.library, row.setting, row.seeds, *_cost(row), rate, *map(_figure, errors), *shares))
        lines.append("")
    return lines


def tables(rows: list[Row]) -> str:
    """Return all tables in markdown."""
    parts = (summary(rows), overview(rows), calls_to(rows), coverage(rows), equal_time(rows), everything(rows))
    return "\n\n".join("\n".join(part) for part in parts)


def _cost(row: Row) -> tuple[str, int]:
    return f"{row.seconds:.3g}", row.calls


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _line(*entries: object) -> str:
    return "| " + " | ".join(map(str, entries)) + " |"


if __name__ == "__main__":
    print(tables(read(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)))
