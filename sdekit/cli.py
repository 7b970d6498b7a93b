"""The command line: sdekit train | sample | likelihood | study | demo, on the handwritten digits, and bench."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from sdekit import Dequantization, Grid, Hadamard, Process, Target, __version__, method
from sdekit.likelihood import Integrator, Trace
from sdekit.likelihood.dequantizer import Dequantizer
from sdekit.methods import METHODS
from sdekit.study.scoring import INTEGRATOR
from sdekit.suites.commands import add as add_bench

RUNS = Path("runs/digits")
DIGITS = {
    "test": "test digits",
    "shuffled": "shuffled pixels",
    "noise": "uniform noise",
    "train": "training digits",
}
"""Short names for the sets of `sdekit.demo`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0 done, 1 done but for cells that failed, 2 it cannot be done."""
    given = _parser().parse_args(arguments)
    # so small a network gains little from threads, and loses much where another process has one of the cores
    torch.set_num_threads(1)
    try:
        return int(given.run(given) or 0)
    except ImportError as error:
        told = str(error).rstrip(".")
        advice = "" if "pip install" in told else '. The commands need: pip install "sdekit[demo]"'
        print(f"sdekit {given.command}: {told}{advice}", file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError, ArithmeticError, RuntimeError) as error:
        print(f"sdekit {given.command}: {error}", file=sys.stderr)
        return 2


def _train(given: argparse.Namespace) -> None:
    from sdekit.demo import train

    train(given.model, given.steps, given.process, given.predicts, given.seed)
    print(given.model)


def _sample(given: argparse.Namespace) -> None:
    from sdekit.demo import draw
    from sdekit.demo.pictures import picture
    from sdekit.training import load

    images = draw(load(given.model), method(given.name), given.grid.with_steps(given.steps), seed=given.seed)
    picture({f"{given.name}, {given.steps} steps": images}, given.out)
    print(given.out)


def _likelihood(given: argparse.Namespace) -> None:
    from sdekit.study.scoring import Scoring
    from sdekit.training import load

    data, moments = _samples(given.data, given.seed)
    trace = given.trace
    if hasattr(trace, "seed"):
        trace = replace(trace, seed=trace.seed + given.seed)
    how = given.levels, given.integrator, trace, given.draws, given.seed
    scoring = Scoring(load(given.model), data, *how, moments)
    out = given.out or given.model.with_suffix(".likelihood.jsonl")
    scores = scoring.run(out, given.batch, given.count, partial(tqdm, desc="likelihood", unit="batch"))
    print(f"{scores.table()}\n\n{out}")
    scores.plot(out.with_suffix(".png"))
    print(out.with_suffix(".png"))


def _samples(names: Sequence[str], seed: int) -> tuple[dict[str, Tensor], Tensor | None]:
    """Return the sets of samples by their names, and what the model was trained on if all are digits."""
    files = {name: _read(Path(name)) for name in names if name not in DIGITS}
    if len(files) == len(names):
        return files, None
    from sdekit.demo import TRAIN, sets

    known = sets(seed)
    chosen = {DIGITS.get(name, name): files[name] if name in files else known[DIGITS[name]] for name in names}
    return chosen, None if files else known[TRAIN]


def _read(path: Path) -> Tensor:
    """Return the samples in a file, float32."""
    if path.suffix not in (".npy", ".pt"):
        raise ValueError(f"Data must be {', '.join(DIGITS)}, or a file that ends in .npy or .pt; got {path}.")
    x = torch.from_numpy(np.load(path)) if path.suffix == ".npy" else torch.load(path, weights_only=True)
    if not isinstance(x, Tensor):
        raise ValueError(f"{path} must hold one tensor of samples, (n, ...); it holds a {type(x).__name__}.")
    return x.to(torch.float32)


def _study(given: argparse.Namespace) -> None:
    from sdekit.demo import SAMPLERS, study
    from sdekit.training import load

    methods = {name: method(name) for name in given.methods} if given.methods else SAMPLERS
    report = study(load(given.model), given.out, methods, tuple(given.budgets), tuple(range(given.seeds)))
    report.plot(given.out.with_suffix(".png"))
    print(report.table())


def _demo(given: argparse.Namespace) -> None:
    from sdekit.demo import demo

    demo(given.out, given.steps)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sdekit",
        description="Train, sample, measure and compare on scikit-learn's handwritten digits.",
        epilog="Start with `sdekit demo`. A value such as a process is a name, VP, or JSON: "
        '\'{"type": "VP", "beta_max": 10}\'.',
    )
    parser.add_argument("--version", action="version", version=f"sdekit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    _add_train(commands)
    _add_sample(commands)
    _add_likelihood(commands)
    _add_study(commands)
    _add_demo(commands)
    add_bench(commands)
    return parser


def _add_train(commands: Any) -> None:
    command = _command(commands, "train", _train, "train an MLP on the digits; a run that was stopped goes on")
    command.add_argument("--steps", type=_count, default=3000, help="steps of the whole training")
    command.add_argument("--process", type=_value(Process), default="VP", help="the forward process")
    command.add_argument(
        "--predicts",
        type=_value(Target),
        default='{"type": "Preconditioned", "sigma_data": 0.75}',
        help="what the network learns to output",
    )
    _add_seed(command)


def _add_sample(commands: Any) -> None:
    command = _command(commands, "sample", _sample, "draw ten digits of each kind with one sampler, as a PNG")
    command.add_argument("--method", dest="name", choices=METHODS, default="damped-adams", help="the sampler")
    command.add_argument("--steps", type=_count, default=20, help="steps of the grid")
    command.add_argument("--grid", type=_grid, default="Beta", help="the grid's rule, which ends at clean data")
    command.add_argument("--out", type=Path, default=RUNS / "samples.png", help="the PNG")
    _add_seed(command)


def _add_likelihood(commands: Any) -> None:
    about = "log-likelihood of every sample, in a file row by row, with means and a histogram; resumes"
    command = _command(commands, "likelihood", _likelihood, about)
    sets = ["test", "shuffled", "noise"]
    about = f"the digits {', '.join(DIGITS)}, or files of samples (n, ...), .npy or .pt"
    command.add_argument("--data", nargs="+", default=sets, metavar="DATA", help=about)
    command.add_argument("--count", type=_count, default=100, help="samples of each set, from its start")
    command.add_argument(
        "--levels",
        type=_value(Dequantizer, Dequantization),
        default="17",
        help="how many levels from -1 to 1 the data lie on, or which and how they are dequantised, or Continuous",
    )
    command.add_argument("--draws", type=_count, default=1, help="of the dequantisation, for the multi-sample bound")
    command.add_argument(
        "--trace", type=_value(Trace, Hadamard), default="Exact", help="of the divergence; a number is that of probes"
    )
    command.add_argument("--integrator", type=_value(Integrator), default=INTEGRATOR, help="of the flow")
    command.add_argument("--batch", type=_count, default=64, help="samples at a time")
    command.add_argument(
        "--out", type=Path, help="the rows, by default beside the model; the histogram lies beside them"
    )
    _add_seed(command)


def _add_study(commands: Any) -> None:
    command = _command(commands, "study", _study, "Frechet distance of samplers against network calls; resumes")
    command.add_argument("--methods", nargs="+", choices=METHODS, help="samplers; by default the demo's six")
    command.add_argument("--budgets", nargs="+", type=_count, default=[5, 10, 20, 50], help="network calls")
    command.add_argument("--seeds", type=_count, default=3, help="number of seeds")
    command.add_argument("--out", type=Path, default=RUNS / "study.jsonl", help="the rows; the plot lies beside them")


def _add_demo(commands: Any) -> None:
    command = commands.add_parser(
        "demo", help="all of it, and a page that shows it", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.add_argument("--steps", type=_count, default=3000, help="steps of the training")
    command.add_argument("--out", type=Path, default=RUNS, help="the folder for everything")
    command.set_defaults(run=_demo)


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], about: str) -> Any:
    command = commands.add_parser(
        name, help=about, description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    command.add_argument("--model", type=Path, default=RUNS / "digits.safetensors", help="the checkpoint")
    command.set_defaults(run=run)
    return command


def _add_seed(command: Any) -> None:
    command.add_argument("--seed", type=int, default=0, help="of all randomness")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1; got {text!r}")
    return int(text)


def _value(kind: type[Any], of_number: Callable[[int], Any] | None = None) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            if of_number is not None and text.isdecimal():
                return of_number(int(text))
            return kind.from_json(json.loads(text) if text.startswith("{") else {"type": text})
        except (ValueError, TypeError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def _grid(text: str) -> Any:
    from sdekit import Denoised

    try:
        return Denoised(
            Grid.from_json({"steps": 1, **json.loads(text)} if text.startswith("{") else {"type": text, "steps": 1})
        )
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from error


if __name__ == "__main__":
    sys.exit(main())
