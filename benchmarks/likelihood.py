"""Log-likelihoods: error, stated error, network calls and CPU time, beside torchdiffeq, scipy and zuko.

    OMP_NUM_THREADS=1 python -m benchmarks.likelihood                             # everything
    python -m benchmarks.likelihood --problems digits64 --processes vp edm
    python -m benchmarks.likelihood --again                                       # sdekit anew, beside the kept peers
    python -m benchmarks.likelihood --table benchmarks/results/likelihood.jsonl

A cell is a problem, a process and a number of points. On laws the error is that of log p_0, known in closed form; on
the two trained networks (mlp2d, mlp64) that of dopri8 at 1e-9 with the exact trace in float64, cut and prior as they
are. sdekit is compared with a peer at the peer's CPU time: of its settings that cost no more, the one that states the
least error.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.coverage import QUARTERS, RESULTS, Row, dumps, read, tables
from benchmarks.likelihood_peers import EXACT, RANDOM, Peer, network, reference
from benchmarks.problems import PROBLEMS
from sdekit import (
    EDM,
    VE,
    VP,
    Denoiser,
    Exact,
    FixedGrid,
    Gaussian,
    Model,
    Process,
    Quadratic,
    RectifiedFlow,
    SubVP,
    log_likelihood,
)
from sdekit.likelihood import Hadamard, moments

PROCESSES: dict[str, Process] = {
    "vp": VP(t_min=1e-5),
    "subvp": SubVP(t_min=1e-5),
    "ve": VE(),
    "edm": EDM(),
    "rf": RectifiedFlow(t_min=0.0, t_max=1.0),
}
"""As their likelihoods are asked for: cut at 1e-5 (VP, sub-VP), at a sigma of 0.01 (VE) and 0.002 (EDM), whole (RF)."""


class Answer(NamedTuple):
    """Log-likelihoods, the calls they took, their stated standard errors and half their 95% intervals."""

    value: Tensor
    calls: int
    stated: Tensor | None = None
    half: Tensor | None = None


@dataclass(frozen=True)
class Setting:
    """A library with its settings: `run` goes from (case, seed) to an answer."""

    library: str
    name: str
    exact: bool
    run: Callable[[Case, int], Answer]


@dataclass(frozen=True, eq=False)
class Case:
    """A model with points whose log-likelihood is known.

    Args:
        model: an exact law or a trained network.
        x: the points, shape (B, d).
        truth: their log-likelihoods.
        noisy: the same for data with the noise of t_min: for a network the truth itself.
        data: the Gaussian of the training data's moments; none for a law, which has its own.
        alpha: by which peers scale the points, so that they too have the density of data with noise sigma/alpha on it.
        exact: whether to run exact traces; otherwise random ones only.
        seeds: how often random probes are drawn.
    """

    model: Model
    x: Tensor
    truth: Tensor
    noisy: Tensor
    data: Gaussian | None
    alpha: float
    exact: bool
    seeds: int


KINDS: dict[str, list[tuple[int, bool, int]]] = {
    "rings2d": [(256, True, 8)],
    "digits64": [(64, False, 8), (16, True, 8)],
    "patches3072": [(16, False, 4)],
    "lowrank3072": [(16, False, 4)],
    "mlp2d": [(128, True, 8)],
    "mlp64": [(16, True, 8)],
}
"""By problem: the number of points, whether traces are exact there too, and the number of seeds."""
DEFAULT_PROBLEMS = ["rings2d", "digits64", "patches3072", "mlp2d", "mlp64"]


def case(problem: str, process: str, points: int, exact: bool, seeds: int) -> Case:
    """Return a cell's model and points."""
    if problem.startswith("mlp"):
        # networks have no answer where a noise level is 0, so the straight path keeps its own ends
        chosen = RectifiedFlow() if process == "rf" else PROCESSES[process]
        model, x, data = network(problem, chosen, points)
        alpha = float(chosen.alpha(chosen.t_min))
        truth = reference(model, alpha * x.double()) + x.shape[1] * math.log(alpha)
        return Case(model, x, truth, truth, moments(data), alpha, exact, seeds)
    law, generator = PROBLEMS[problem].law(PROCESSES[process]), torch.Generator().manual_seed(1)
    x = law.sample(points, generator)
    return Case(law, x, law.log_prob(x), law.log_prob(x, law.process.t_min), None, 1.0, exact, seeds)


def of_peers(given: Case) -> Iterator[Setting]:
    """Yield the peers' settings."""
    for peer in RANDOM + (EXACT if given.exact else []):
        yield Setting(peer.library, peer.setting, peer.exact, partial(_theirs, peer))


def of_sdekit(given: Case) -> Iterator[Setting]:
    """Yield settings of the default integrator from few nodes to many, with random traces and exact ones."""
    dims = given.x.shape[1]
    wanted: list[tuple[int, Hadamard | Exact]] = [(nodes, Hadamard(probes)) for nodes, probes in ladder(dims)]
    if given.exact:
        wanted += [(nodes, Exact()) for nodes in (25, 33, 49, 65, 97, 129, 193, 257)]
    for nodes, trace in wanted:
        exact = isinstance(trace, Exact)
        name = "exact" if isinstance(trace, Exact) else f"Hadamard({trace.probes})"
        yield Setting("sdekit", f"{nodes} nodes, {name}", exact, partial(_ours, nodes, trace))


def ladder(dims: int) -> list[tuple[int, int]]:
    """Return (nodes, probes) for random traces in this many dimensions."""
    if dims <= 2:
        return [(65, 1), (65, 4)]
    if dims < 1000:
        few = [(nodes, probes) for nodes in (17, 21, 25, 33, 49) for probes in (1, 2, 4)]
        return [*few, *((65, probes) for probes in (1, 2, 4, 8, 16))]
    return [(25, 1), (33, 1), (49, 1), (65, 1), (65, 2), (97, 1), (65, 4), (97, 4), (129, 4), (97, 8)]


def _theirs(peer: Peer, given: Case, seed: int) -> Answer:
    value, calls = peer.run(given.model, given.alpha * given.x, seed)
    return Answer(value + given.x.shape[1] * math.log(given.alpha), calls)


def _ours(nodes: int, trace: Hadamard | Exact, given: Case, seed: int) -> Answer:
    one = trace if isinstance(trace, Exact) else replace(trace, seed=seed)
    integrator = FixedGrid(grid=Quadratic(nodes - 1))  # one call more than there are steps
    found = log_likelihood(given.model, given.x, integrator, one, given.data)
    # a network's truth has its cut and prior as they are, a law's has neither
    value = found.log_prob if isinstance(given.model, Denoiser) else found.corrected
    low, high = found.interval(0.95)
    return Answer(value, found.nfe, found.error, (high - low) / 2)


def measure(problem: str, process: str, libraries: tuple[Callable[[Case], Iterator[Setting]], ...]) -> Iterator[Row]:
    """Yield what every setting reaches on a problem and a process."""
    for points, exact, seeds in KINDS[problem]:
        given = case(problem, process, points, exact, seeds)
        for settings in libraries:
            for setting in settings(given):
                yield _row(problem, process, given, setting)


def _row(problem: str, process: str, given: Case, setting: Setting) -> Row:
    answers: list[Answer] = []
    seconds: list[float] = []
    for seed in range(2 if setting.exact else given.seeds):  # an exact trace is run twice for the sake of time alone
        start = time.process_time()
        answers.append(setting.run(given, seed))
        seconds.append(time.process_time() - start)
    kept = answers[:1] if setting.exact else answers
    values = torch.stack([a.value for a in kept]).double()
    error = (values - given.truth).abs().nan_to_num(nan=math.inf)
    stated, half = _stacked([a.stated for a in kept]), _stacked([a.half for a in kept])
    return Row(
        problem=problem,
        process=process,
        points=len(given.x),
        library=setting.library,
        setting=setting.name,
        exact=setting.exact,
        seeds=len(kept),
        mean=float(error.mean()),
        rms=float(error.square().mean().sqrt()),
        std=float(values.var(0).mean().sqrt()) if len(kept) > 1 else 0.0,
        noisy=float((values - given.noisy).abs().mean()),
        calls=answers[0].calls,
        seconds=min(seconds),
        stated=None if stated is None else float(stated.mean()),
        within=None if stated is None else float((error <= 3 * stated).double().mean()),
        covered=None if half is None else float((error <= half).double().mean()),
        quarters=[float(part.mean()) for part in error.chunk(QUARTERS, dim=1)],
    )


def _stacked(parts: list[Tensor | None]) -> Tensor | None:
    """Return what was stated, if anything: one probe by itself says nothing of its error."""
    known = [part for part in parts if part is not None and bool(part.isfinite().all())]
    return torch.stack(known) if len(known) == len(parts) else None


def main() -> None:
    """Measure, or print the tables of what was measured."""
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(KINDS), default=DEFAULT_PROBLEMS)
    parser.add_argument("--processes", nargs="+", choices=list(PROCESSES), default=list(PROCESSES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="keep the peers' rows of the file, measure sdekit only")
    parser.add_argument("--table", type=Path, help="print the tables of this file and measure nothing")
    options = parser.parse_args()
    if options.table is None:
        cells = [(problem, process) for problem in options.problems for process in options.processes]
        kept = [row for row in read(options.out) if row.library != "sdekit"] if options.again else []
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with torch.no_grad(), options.out.open("w") as file:
            for row in kept:
                file.write(dumps(row))
            for problem, process in cells:
                for found in measure(problem, process, (of_sdekit,) if options.again else (of_peers, of_sdekit)):
                    file.write(dumps(found))
                    file.flush()
    print(tables(read(options.table or options.out)))


if __name__ == "__main__":
    main()
