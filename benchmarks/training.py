"""What to predict, and on which process: models of the 8x8 digits after equal CPU time.

    OMP_NUM_THREADS=1 python -m benchmarks.training                # everything, two cells at a time; goes on if stopped
    python -m benchmarks.training --seeds 1 --seconds 5 --out /tmp/training.jsonl                  # a look
    python -m benchmarks.training --table benchmarks/results/training.jsonl                        # the tables alone

A cell is a process, a prediction and a seed: the same network, told the label, is trained for so many seconds of the
processor time of one thread. Then it draws a digit for the label of every test digit, four times over, and says how
many bits 100 test digits have. Two more models, on a chain of 200 steps, have a fixed and a learned variance; they are
trained for equally many steps and judged by the bound of their chain. The tables go to a file beside the rows.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import torch

from sdekit import (
    DAMPED_ADAMS,
    EDM,
    VP,
    X0,
    Beta,
    ByNoise,
    Cosine,
    Denoiser,
    Dequantization,
    Discrete,
    Eps,
    Hadamard,
    Landed,
    Leading,
    Model,
    Preconditioned,
    Process,
    RectifiedFlow,
    Score,
    Target,
    V,
    Velocity,
    discrete_bound,
    log_likelihood,
    sample,
)
from sdekit.data import digits
from sdekit.denoiser import Head, MeanAndVariance, Single
from sdekit.likelihood.denoising import Draws
from sdekit.likelihood.discrete_bound import FixedVariance
from sdekit.metrics import FrechetDistance, digit_features
from sdekit.nets import MLP
from sdekit.study.scores import Mean
from sdekit.study.table import figures
from sdekit.training import Objective, On, Recipe, Trainer
from sdekit.training.hybrid import Hybrid
from sdekit.training.objective import Criterion
from sdekit.training.times import UniformSteps

RESULTS = Path(__file__).parent / "results" / "training.jsonl"
LEVELS = Dequantization(17)
PROCESSES: dict[str, Process] = {"VP": VP(), "Cosine": Cosine(), "EDM": EDM(), "RectifiedFlow": RectifiedFlow()}
PREDICTIONS: dict[str, tuple[Target, Objective]] = {
    "eps": (Eps(), Objective()),
    "x0": (X0(), Objective()),
    "v": (V(), Objective()),
    "score": (Score(), Objective()),
    "score, loss on eps": (Score(), Objective(On(Eps()))),
    "flow velocity": (Velocity(), Objective()),
    "preconditioned": (Preconditioned(sigma_data=0.75), Objective()),
}
CHAIN = Discrete.cosine(200)
VARIANCES: dict[str, tuple[Head, int, Criterion]] = {
    "fixed": (Single(), 1, Objective(times=UniformSteps())),
    "learned": (MeanAndVariance(), 2, Hybrid(levels=LEVELS)),
}
LINKED = 4000  # training steps of the models of a chain
COPIES = 10  # of the training digits, each with other noise in the bins
DRAWS = 4  # of digits for the test labels
UNKNOWN = 0.25  # stated errors of this share of the bits and more say that they are not known
SCORED = 100  # test digits whose bits are asked for


class Cell(NamedTuple):
    """One training: of a prediction on a process, or of a variance on the "chain"."""

    process: str
    kind: str
    seed: int


class Row(NamedTuple):
    """What came out of a cell.

    Attributes:
        cell: which.
        budget: seconds of processor time given to the training, if not of a chain.
        steps: how many steps were done.
        figures: what was measured, by name; what is missing could not be.
        note: why it could not.
    """

    cell: Cell
    budget: float
    steps: int
    figures: dict[str, float]
    note: str = ""


def cells(seeds: int) -> Iterator[Cell]:
    """Yield all cells, a seed at a time."""
    for seed in range(seeds):
        yield from (Cell("chain", kind, seed) for kind in VARIANCES)
        yield from (Cell(process, kind, seed) for kind in PREDICTIONS for process in PROCESSES)


def measure(cell: Cell, budget: float) -> Row:
    """Train the model of a cell and judge it."""
    torch.set_num_threads(1)
    trainer = _trainer(cell)
    found: dict[str, float] = {}
    notes, start = [], time.process_time()
    try:
        for _ in trainer:
            if cell.process != "chain" and time.process_time() - start > budget:
                break
    except FloatingPointError as error:
        return Row(cell, budget, trainer.step, found, str(error))
    for judge in (_bounds,) if cell.process == "chain" else (_frechet, _bits):
        try:
            found.update(judge(trainer.average))
        except (FloatingPointError, ValueError) as error:  # a sample or a density is not finite
            notes.append(str(error))
    return Row(cell, budget, trainer.step, found, " ".join(notes))


def _trainer(cell: Cell) -> Trainer:
    data = digits()
    head, heads, objective = VARIANCES.get(cell.kind, (Single(), 1, None))
    with torch.random.fork_rng():
        torch.manual_seed(cell.seed)
        net = MLP((1, 8, 8), classes=10, heads=heads)
    if objective is not None:
        model = Denoiser(net, CHAIN, predicts=Eps(), head=head)
        recipe = Recipe(LINKED, batch=128, lr=1e-3, warmup=100, final=0.0)
        return Trainer(model, (data.train, data.train_labels), recipe, objective, cell.seed)
    process, (predicts, objective) = PROCESSES[cell.process], PREDICTIONS[cell.kind]
    clock = ByNoise() if isinstance(process, EDM) else None  # else it would be told sigma, up to 80
    model = Denoiser(net, process, predicts=predicts, clock=clock)
    x = torch.cat([LEVELS.apply(data.train, seed) for seed in range(COPIES)])
    recipe = Recipe(10**6, batch=128, lr=1e-3, warmup=100)
    return Trainer(model, (x, data.train_labels.repeat(COPIES)), recipe, objective, cell.seed)


def _frechet(model: Denoiser) -> dict[str, float]:
    """Return the distance of digits drawn for the test labels from the training digits, the mean over several draws."""
    data = digits()
    metric, conditional = FrechetDistance(digit_features(), data.train), model.given(label=data.test_labels)
    drawn = [sample(conditional, data.test.shape, DAMPED_ADAMS, Landed(Beta(20)), seed) for seed in range(DRAWS)]
    return {"Frechet distance": sum(metric(LEVELS.round(x)) for x in drawn) / DRAWS}


def _bits(model: Denoiser) -> dict[str, float]:
    """Return the bits per dimension of test digits given their labels, and the mean of the errors stated for them."""
    data = digits()
    x, conditional = LEVELS.apply(data.test[:SCORED]), model.given(label=data.test_labels[:SCORED])
    found = log_likelihood(conditional, x, trace=Hadamard(8), data=data.train)
    stated = found.error.mean() / (x[0].numel() * math.log(2))
    return {"bits": float(LEVELS.bits_per_dim(found.log_prob, x[0].numel()).mean()), "stated": float(stated)}


def _bounds(model: Denoiser) -> dict[str, float]:
    """Return the bits per dimension of the test digits by the bound of the chain, at every variance there is."""
    data = digits()
    conditional = model.given(label=data.test_labels)
    kinds: dict[str, Model] = {"learned": conditional}
    if isinstance(model.head, Single):
        kinds = {"beta": FixedVariance(conditional, 1.0), "beta~": FixedVariance(conditional, -1.0)}
    bounds = {
        name: discrete_bound(kind, data.test, Leading(CHAIN.steps), Draws(2), LEVELS) for name, kind in kinds.items()
    }
    return {name: float(bound.bits_per_dim.mean()) for name, bound in bounds.items()}


def run(path: Path, seeds: int, budget: float, workers: int) -> None:
    """Measure the cells that `path` does not hold yet, and add them to it as they are done."""
    rows = read(path)
    if any(row.budget != budget for row in rows):
        raise SystemExit(f"{path} must hold rows of {budget:g} seconds; it holds others. Give another path.")
    todo = [cell for cell in cells(seeds) if cell not in {row.cell for row in rows}]
    digit_features()  # trained here once, for all workers to read
    path.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context) as pool, path.open("a") as file:
        pending = [pool.submit(measure, cell, budget) for cell in todo]
        for done, future in enumerate(as_completed(pending), 1):
            row = future.result()
            file.write(json.dumps(row._asdict() | {"cell": row.cell._asdict()}) + "\n")
            file.flush()
            print(f"{done}/{len(todo)}", *row.cell, row.steps, row.figures, row.note[:60], flush=True)


def read(path: Path) -> list[Row]:
    """Return the rows of a file, none if there is no file; a last line that was torn is dropped."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    rows = (json.loads(line) for line in lines)
    return [Row(**{**row, "cell": Cell(**row["cell"])}) for row in rows]


def tables(rows: list[Row]) -> str:
    """Return the tables of what was measured."""
    budget, seeds = rows[0].budget, len({row.cell.seed for row in rows})
    data = digits()
    floor = FrechetDistance(digit_features(), data.train)(data.test)
    parts = [
        f"Models of the 8x8 digits after {budget:g} s of one thread's processor time: means over {seeds} trainings and "
        "their 95% intervals (Student's). MLP of 256 features and 4 blocks, AdamW at 1e-3, batches of 128, averaged "
        "weights. Losses are mean squares on the network's own output unless said otherwise, at uniform times; on EDM "
        "at log-normal sigma (-1.2, 1.2), and told log(sigma) / 4. Every process has its default ends.",
        f"**Frechet distance** in the features of a digit classifier, {len(data.test)} digits drawn for the test "
        f"labels by `DAMPED_ADAMS` in 20 steps, mean of {DRAWS} draws; floor {floor:.2f}, the test digits themselves.",
        _table(rows, "Frechet distance"),
        f"**Bits per dimension** of {SCORED} test digits given their labels, with uniform noise in the bins: "
        f"`log_likelihood` with `Hadamard(8)`; unknown where the error stated is {UNKNOWN:.0%} or more.",
        _table(rows, "bits"),
        "**Stated error** of one digit's bits, of integration and probes:",
        _table(rows, "stated"),
        "**Training steps**:",
        _table(rows, "steps"),
        f"**Fixed and learned variance**, cosine table of {CHAIN.steps} steps, noise prediction, trained on the "
        f"levels: bits per dimension of {len(data.test)} test digits given their labels, by `discrete_bound` with 2 "
        "draws. The fixed one is trained by L_simple, the learned one by L_hybrid, both for "
        f"{LINKED} steps from the same weights with the same batches, the rate falling to 0.",
        _variances(rows),
    ]
    faults = [f"- {' '.join(map(str, row.cell))}: {row.note}" for row in rows if row.note]
    return "\n\n".join([*parts, "\n".join(faults)]).rstrip() + "\n"


def _table(rows: list[Row], name: str) -> str:
    lines = ["| | " + " | ".join(PROCESSES) + " |", "|---|" + "---:|" * len(PROCESSES)]
    for kind in PREDICTIONS:
        fields = (_field([row for row in rows if row.cell[:2] == (process, kind)], name) for process in PROCESSES)
        lines.append(f"| {kind} | " + " | ".join(fields) + " |")
    return "\n".join(lines)


def _field(rows: list[Row], name: str) -> str:
    if name == "steps":
        return f"{sum(row.steps for row in rows) / len(rows):.0f}" if rows else ""
    known = rows
    if name == "bits":
        known = [row for row in rows if row.figures.get("stated", 0) < UNKNOWN * abs(row.figures.get("bits", 0))]
    values = [row.figures[name] for row in known if math.isfinite(row.figures.get(name, math.nan))]
    if not values:
        return "unknown"
    mean = Mean.of(torch.tensor(values, dtype=torch.float64))
    return figures(mean.value, mean.high - mean.value) + f" ({len(values)} of {len(rows)})" * (len(values) < len(rows))


def _variances(rows: list[Row]) -> str:
    of = {kind: {row.cell.seed: row for row in rows if row.cell[:2] == ("chain", kind)} for kind in VARIANCES}
    chain = {name: of["fixed"] for name in ("beta", "beta~")} | {"learned": of["learned"]}
    lines = ["| variance | bits per dimension | learned less this, paired by seed |", "|---|---:|---:|"]
    for name, by_seed in chain.items():
        shared = sorted(seed for seed in by_seed if seed in of["learned"])
        gaps = [of["learned"][seed].figures["learned"] - by_seed[seed].figures[name] for seed in shared]
        gap = Mean.of(torch.tensor(gaps, dtype=torch.float64)) if gaps and name != "learned" else None
        less = "" if gap is None else figures(gap.value, gap.high - gap.value)
        lines.append(f"| {name} | {_field(list(by_seed.values()), name)} | {less} |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, and print the tables."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=12.0, help="of processor time for each training")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", type=Path, help="print the tables of this file and measure nothing")
    options = parser.parse_args()
    path = options.table or options.out
    if options.table is None:
        run(path, options.seeds, options.seconds, options.workers)
    text = tables(read(path))
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
