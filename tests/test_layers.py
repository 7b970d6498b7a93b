"""The shape of the library: imports go downwards, files and functions stay small, importing is cheap."""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "sdekit"

# A module imports only from lines above its own, and inside its own folder. "sdekit" is sdekit/__init__.py.
# nets, data and metrics stand low because they may use only process, not because others build on them.
ORDER = """
_value _atomic
_broadcast
process
nets
data
metrics
prediction
denoiser oracle
guidance
equation
grid noise
solvers
methods
plan
sample
adaptive likelihood
training
study
interop
sdekit
demo
suites
cli
__main__
"""
RANK = {layer: rank for rank, line in enumerate(ORDER.split("\n")) for layer in line.split()}

MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
MAX_PARAMETERS = 6
MAX_FIELDS = 8
MAX_IMPORT_SECONDS = 1.5
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc"}
DOCUMENTED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
OPTIONAL = {
    "torchvision",
    "sklearn",
    "matplotlib",
    "diffusers",
    "accelerate",
    "mlxtend",
    "skimage",
    "tensorboard",
    "joblib",
}
OPTIONAL |= {
    "cloudpickle",
    "yaml",
    "dask",
    "distributed",
    "pandas",
    "pyarrow",
    "ot",
    "torch_fidelity",
    "torchmetrics",
    "PIL",
}


# Reading the sources --------------------------------------------------------------------------------------------------


@cache
def sources() -> dict[str, Path]:
    """Every module of sdekit by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(sources()[module].read_text(encoding="utf-8"))


def layer(module: str) -> str:
    """The name under which a module stands in the order: its top file or folder."""
    return module.split(".")[1] if "." in module else module


def type_only(root: ast.AST) -> set[ast.AST]:
    """Nodes under `if TYPE_CHECKING:`, which never run."""
    blocks = [n for n in ast.walk(root) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    return {node for block in blocks for statement in block.body for node in ast.walk(statement)}


def targets(node: ast.AST, module: str, known: set[str]) -> Iterator[str]:
    """Yield the sdekit modules that an import statement of `module` names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "sdekit")
    if not isinstance(node, ast.ImportFrom):
        return
    base = node.module or ""
    if node.level:
        is_package = any(name.startswith(f"{module}.") for name in known) or module == "sdekit"
        parents = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
        base = ".".join([*parents, *([base] if base else [])])
    if base.split(".")[0] == "sdekit":
        for alias in node.names:
            yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base


def imports(module: str) -> Iterator[tuple[ast.stmt, str]]:
    """Yield (statement, imported sdekit module) for every import anywhere in `module`, functions included."""
    for node in ast.walk(tree(module)):
        for target in targets(node, module, set(sources())):
            yield node, target  # type: ignore[misc]


def functions(module: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree(module)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """Number of lines of a function, without its docstring, comments and blank lines."""
    numbers = set(range(function.lineno, (function.end_lineno or function.lineno) + 1))
    for node in ast.walk(function):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node):
            docstring = node.body[0]
            numbers -= set(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return sum(1 for n in numbers if lines[n - 1].strip() and not lines[n - 1].lstrip().startswith("#"))


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Names of a function's parameters, without self and cls."""
    a = function.args
    every = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(extra for extra in (a.vararg, a.kwarg) if extra)]
    return [p.arg for p in every if p.arg not in {"self", "cls"}]


def classes() -> Iterator[type]:
    """Every class that a module of sdekit defines."""
    for name in sources():
        if not name.endswith("__main__"):
            values = vars(importlib.import_module(name)).values()
            yield from (v for v in values if isinstance(v, type) and v.__module__ == name)


def where(module: str, node: ast.AST) -> str:
    return f"{sources()[module].relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 1)}"


def report(problems: list[str]) -> None:
    if problems:
        pytest.fail("\n".join(problems), pytrace=False)


# Imports --------------------------------------------------------------------------------------------------------------


def test_every_module_has_a_place_in_the_order() -> None:
    unknown = sorted({layer(m) for m in sources()} - RANK.keys())
    report([f"give {name} a place in the order (ORDER in {Path(__file__).name})" for name in unknown])


def test_imports_go_strictly_downwards() -> None:
    problems = []
    for module in sources():
        here = layer(module)
        for node, target in imports(module):
            there = layer(target)
            # a layer without a place fails the test above; __init__ gathers the public names from everywhere
            if here == "sdekit" or here == there or not {here, there} <= RANK.keys():
                continue
            if RANK[there] >= RANK[here]:
                problems.append(f"{where(module, node)}: {target} is imported but not below {here}")
    report(problems)


def test_no_import_cycle() -> None:
    graph: dict[str, set[str]] = {}
    for module in sources():
        skipped = type_only(tree(module))
        needed = {target for node, target in imports(module) if node not in skipped}
        # importing a.b.c runs a.b first, unless we are inside a.b already
        parents = {t.rsplit(".", 1)[0] for t in needed if t.count(".") > 1}
        graph[module] = needed | {p for p in parents if not f"{module}.".startswith(f"{p}.")}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"import cycle: {' <- '.join(error.args[1])}", pytrace=False)


@pytest.mark.parametrize(
    ("module", "statement", "expected"),
    [
        ("sdekit.a.b", "import torch, sdekit.p", ["sdekit.p"]),
        ("sdekit.a.b", "from sdekit import p, VP", ["sdekit.p", "sdekit"]),
        ("sdekit.a.b", "from sdekit.a.c import X, Y", ["sdekit.a.c", "sdekit.a.c"]),
        ("sdekit.a.b", "from . import c, X", ["sdekit.a.c", "sdekit.a"]),
        ("sdekit.a.b", "from .c import X", ["sdekit.a.c"]),
        ("sdekit.a.b", "from .. import p", ["sdekit.p"]),
        ("sdekit.a.b", "from ..p import X", ["sdekit.p"]),
        ("sdekit.a", "from .c import X", ["sdekit.a.c"]),
        ("sdekit.a", "from ..p import X", ["sdekit.p"]),
        ("sdekit", "from .p import X", ["sdekit.p"]),
        ("sdekit.p", "from torch import sdekit", []),
    ],
)
def test_imports_are_read_right(module: str, statement: str, expected: list[str]) -> None:
    known = {"sdekit", "sdekit.a", "sdekit.a.b", "sdekit.a.c", "sdekit.p"}
    assert list(targets(ast.parse(statement).body[0], module, known)) == expected


# Size -----------------------------------------------------------------------------------------------------------------


def test_no_module_is_a_drawer() -> None:
    names = [(module, {part.strip("_") for part in module.split(".")}) for module in sources()]
    report([f"{module}: name it for what it does" for module, parts in names if parts & FORBIDDEN_NAMES])


def test_files_are_short() -> None:
    lengths = {m: len(path.read_text(encoding="utf-8").splitlines()) for m, path in sources().items()}
    report([f"{m}: {n} lines, at most {MAX_FILE_LINES}" for m, n in lengths.items() if n > MAX_FILE_LINES])


def test_functions_are_short() -> None:
    problems = []
    for module, path in sources().items():
        lines = path.read_text(encoding="utf-8").splitlines()
        for function in functions(module):
            if (length := code_lines(function, lines)) > MAX_FUNCTION_LINES:
                size = f"{length} lines of code, at most {MAX_FUNCTION_LINES}"
                problems.append(f"{where(module, function)}: {function.name}, {size}")
    report(problems)


def test_functions_have_few_parameters() -> None:
    report(
        [
            f"{where(module, function)}: {function.name}, {len(names)} parameters, at most {MAX_PARAMETERS}"
            for module in sources()
            for function in functions(module)
            if len(names := parameters(function)) > MAX_PARAMETERS
        ]
    )


def test_dataclasses_have_few_fields() -> None:
    report(
        [
            f"{cls.__module__}.{cls.__name__}: {count} fields, at most {MAX_FIELDS}"
            for cls in classes()
            if dataclasses.is_dataclass(cls) and (count := len(dataclasses.fields(cls))) > MAX_FIELDS
        ]
    )


# Words ----------------------------------------------------------------------------------------------------------------


def test_public_methods_are_described() -> None:
    """By their own docstring or, where they override, by the one of the method they override."""
    report(
        [
            f"{cls.__module__}.{cls.__name__}.{name} has no docstring"
            for cls in classes()
            for name, method in vars(cls).items()
            if not cls.__name__.startswith("_") and not name.startswith("_")
            if callable(method) or isinstance(method, property | cached_property | classmethod | staticmethod)
            if not inspect.getdoc(getattr(cls, name))
        ]
    )


# The cost of importing sdekit -----------------------------------------------------------------------------------------


def fresh(code: str) -> str:
    """Run code in a new interpreter and return what it prints."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_leaves_optional_libraries_alone() -> None:
    loaded = fresh("import sdekit, sys; print(*{name.split('.')[0] for name in sys.modules})").split()
    assert "sdekit" in loaded
    assert OPTIONAL.intersection(loaded) == set()


def test_import_is_cheap() -> None:
    # Processor time: what the import itself costs, on an idle machine as beside other tests.
    code = "import time, torch; t = time.process_time(); import sdekit; print(time.process_time() - t)"
    seconds = min(float(fresh(code)) for _ in range(3))
    assert seconds < MAX_IMPORT_SECONDS
