"""The command line: sdekit train | sample | likelihood | study | demo, on the handwritten digits."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sdekit import Grid, Process, Target, __version__, method
from sdekit.methods import METHODS

RUNS = Path("runs/digits")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status: 0 done, 2 the request cannot be met."""
    given = _parser().parse_args(arguments)
    # so small a network gains little from threads, and loses much where another process has one of the cores
    torch.set_num_threads(1)
    try:
        given.run(given)
    except ImportError as error:
        print(f'sdekit {given.command}: {error}. The commands need: pip install "sdekit[demo]"', file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"sdekit {given.command}: {error}", file=sys.stderr)
        return 2
    return 0


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
    from sdekit.demo import likelihoods
    from sdekit.demo.page import likelihood_table
    from sdekit.training import load

    print(likelihood_table(likelihoods(load(given.model), given.count, given.seed)))


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
    command = _command(commands, "likelihood", _likelihood, "log-likelihoods of test digits, shuffled pixels and noise")
    command.add_argument("--count", type=_count, default=100, help="images of each kind")
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


def _value(kind: type[Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
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
