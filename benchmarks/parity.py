"""How near sdekit's samplers come to those of diffusers: rewrites docs/parity.md from the tests that compare them.

    OMP_NUM_THREADS=1 python -m benchmarks.parity       # a minute on one core

Same network, same start, same noise; the distance is the largest difference of the ends, relative to the states.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "parity.md"
HEAD = """# Parity with diffusers

Made by `python -m benchmarks.parity` with diffusers {version}: the same network, start and noise. The distance is the
largest difference of the ends relative to the states, over all cases: both tables of betas, spacings, steps and
options. Where their states or noise levels are float32 it is rounding, near 1e-6; else it is near 1e-12.

| what | cases | worst distance |
|---|---|---|"""


class Listener:
    """Hears every distance that the tests measure, by the test that measures it."""

    def __init__(self) -> None:
        self.heard: dict[str, list[float]] = {}
        self.cases: dict[str, int] = {}
        self.said: dict[str, str] = {}
        self.now = ""

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        for module in {item.module for item in items}:
            module.distance = self.listening(module.distance)

    def pytest_runtest_setup(self, item: Any) -> None:
        self.now = item.originalname
        self.cases[self.now] = self.cases.get(self.now, 0) + 1
        self.said[self.now] = " ".join((item.function.__doc__ or "").split())

    def listening(self, measure: Callable[..., float]) -> Callable[..., float]:
        @functools.wraps(measure)
        def heard(*tensors: Any) -> float:
            far = measure(*tensors)
            self.heard.setdefault(self.now, []).append(far)
            return far

        return heard


def words(name: str) -> str:
    return re.sub("^test ", "", name.replace("_", " ")).replace(" plus plus", "++")


def page(listener: Listener) -> str:
    lines = [HEAD.format(version=version("diffusers"))]
    same = {name: far for name, far in listener.heard.items() if "their" not in name}
    lines += [f"| {words(name)} | {listener.cases[name]} | {max(far):.1e} |" for name, far in same.items()]
    lines += ["", "## Where diffusers is pinned as it is, for it errs", ""]
    lines += [f"- {words(name)}. {said}" for name, said in listener.said.items() if "their" in name]
    return "\n".join(lines) + "\n"


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    listener = Listener()
    tests = [str(path) for path in sorted((ROOT / "tests").glob("test_parity*.py"))]
    if pytest.main(["-q", "-p", "no:cacheprovider", *tests], plugins=[listener]):
        sys.exit("Not written, since tests failed.")
    PAGE.write_text(page(listener), encoding="utf-8")


if __name__ == "__main__":
    main()
