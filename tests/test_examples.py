"""Every example runs, is short, and prints what it says it prints."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
HEADER = "# expected:"
MAX_LINES = 60
MAX_SECONDS = 120
TOLERANCE = 0.05

# A number stands on its own: the 0 of x0 and the 2 of W2 belong to a word.
NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?!\w)")


def expectation(source: str) -> list[str]:
    """Return the lines of the comment block that closes an example, headed by `# expected:`."""
    lines = source.rstrip().splitlines()
    if HEADER not in lines:
        raise ValueError(f"An example must end in a block of comments headed {HEADER!r}. Add one.")
    block = lines[lines.index(HEADER) + 1 :]
    if not block or not all(line.startswith("#") for line in block):
        raise ValueError(f"After {HEADER!r} come comments, at least one, and nothing else. Move code above it.")
    return [line[1:].strip() for line in block]


def agree(line: str, expected: str) -> bool:
    """Are the words of two lines equal, and the numbers to 5 percent? The width of a gap does not count."""
    numbers, expected_numbers = NUMBER.findall(line), NUMBER.findall(expected)
    words, expected_words = (NUMBER.sub(" # ", text).split() for text in (line, expected))
    return words == expected_words and all(
        math.isclose(float(a), float(b), rel_tol=TOLERANCE) for a, b in zip(numbers, expected_numbers, strict=True)
    )


def test_the_readme_runs_as_written() -> None:
    """Its first program, with a shorter training."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    program = text.split("```python\n")[1].split("```")[0]
    assert "steps=2000" in program
    told = "print(tuple(x.shape), r.nfe > 0, bool(r.log_prob.isfinite().all()))"
    code = program.replace("steps=2000", "steps=20") + told
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == "(1000, 2) True True"


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MAX_LINES
    run = subprocess.run(
        [sys.executable, str(path)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
        timeout=MAX_SECONDS,
    )
    assert run.returncode == 0, run.stderr
    printed = [line.strip() for line in run.stdout.strip().splitlines()]
    for got, expected in itertools.zip_longest(printed, expectation(source), fillvalue="(no line)"):
        assert agree(got, expected), f"printed:  {got}\nexpected: {expected}\n\nAll it printed:\n{run.stdout}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("W2 = 0.103", "W2 = 0.1"),
        ("x0   -1.0", "x0 -1.01"),
        ("mean [ 1.00, -2e-3]", "mean [1.04, -2.05e-3]"),
        ("DPM++2M: 20 calls, 5.", "DPM++2M: 20 calls, 5."),
        ("", ""),
    ],
)
def test_lines_that_agree(line: str, expected: str) -> None:
    assert agree(line, expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("W2 = 0.11", "W2 = 0.1"), ("x1 = 1", "x2 = 1"), ("a 1", "a -1"), ("a 1 2", "a 1"), ("nan", "1.0")],
)
def test_lines_that_differ(line: str, expected: str) -> None:
    assert not agree(line, expected)


@pytest.mark.parametrize("source", ["print(1)", "# expected:", "# expected:\n# 1\nprint(1)"])
def test_an_example_without_expectation_is_refused(source: str) -> None:
    with pytest.raises(ValueError, match="expected:"):
        expectation(source)
