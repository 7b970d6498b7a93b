"""What the laws are drawn over: processes, times, shapes, targets, stored values; and one model that is exact."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

import sdekit
from sdekit import (
    EDM,
    VE,
    VP,
    X0,
    Cosine,
    Discrete,
    Eps,
    FromDrift,
    Preconditioned,
    Prediction,
    Process,
    RectifiedFlow,
    Score,
    SubVP,
    V,
    Velocity,
)
from sdekit._value import Value
from sdekit.likelihood.dequantization import Variational
from sdekit.plan import Row
from sdekit.prediction import Target
from sdekit.solvers import Constant


# fmt: off
@dataclass(frozen=True, kw_only=True)
class Own(Process):
    power: float = 2.0
    def alpha(self, t):
        return 1 / (1 + t**self.power)
    def sigma(self, t):
        return t
# fmt: on


def number(low: float, high: float) -> SearchStrategy[float]:
    """Draw a float, both ends included."""
    return st.floats(low, high)


def drifting(a: float, b: float, c: float, d: float) -> FromDrift:
    """Return the process of f = -(a + b t) and g^2 = c + d t."""
    return FromDrift(rate=lambda t: -(a + b * t), noise=lambda t: (c + d * t).sqrt())


START = number(1e-4, 1e-2)
BETAS = {"t_min": START, "beta_min": number(0.01, 1), "beta_max": number(2, 30)}

KINDS: dict[str, SearchStrategy[Process]] = {
    "VP": st.builds(VP, **BETAS),
    "SubVP": st.builds(SubVP, **BETAS),
    "VE": st.builds(VE, sigma_min=number(1e-3, 0.1), sigma_max=number(1, 100)),
    "EDM": st.builds(EDM, t_min=number(1e-3, 1e-2), t_max=number(1, 100)),
    "RectifiedFlow": st.builds(RectifiedFlow, t_min=START, t_max=number(0.9, 0.9999)),
    "Cosine": st.builds(Cosine, t_min=START, t_max=number(0.9, 0.9946), s=number(1e-3, 0.05)),
    "linear betas": st.builds(Discrete.linear, st.integers(2, 200), number(1e-5, 1e-3), number(0.01, 0.2)),
    "cosine betas": st.builds(Discrete.cosine, st.integers(2, 200)),
    "random betas": st.builds(Discrete, betas=st.lists(number(1e-4, 0.5), min_size=2, max_size=30)),
    "FromDrift": st.builds(drifting, number(0, 5), number(-1, 5), number(0.01, 5), number(0, 5)),
    "Own": st.builds(Own, t_min=START, power=number(1, 4)),
}
TABLES = st.one_of(*(KINDS[f"{kind} betas"] for kind in ("linear", "cosine", "random")))
TARGETS: SearchStrategy[Target] = st.one_of(
    *map(st.just, (X0(), Eps(), Score(), V(), Velocity())), st.builds(Preconditioned, number(0.1, 2))
)
VIEWS = (X0(), Eps(), Score(), V(), Velocity(), Preconditioned(0.7))


def drawn_process(law: Callable[..., None]) -> Callable[..., None]:
    """Hold law(process, draw) to processes of every kind, but the one whose integrals take seconds."""
    kinds = st.sampled_from([kind for kind in KINDS if kind != "FromDrift"])

    @given(data=st.data())
    def test(data: Any) -> None:
        law(data.draw(kinds.flatmap(KINDS.__getitem__), label="process"), data.draw)

    test.__name__, test.__doc__ = law.__name__, law.__doc__
    return test


def every_process(law: Callable[..., None]) -> Callable[..., None]:
    """Hold law(process, draw) to every kind of process, with its share of the examples; `draw` draws the rest."""

    @pytest.mark.parametrize("kind", KINDS)
    @settings(max_examples=max(10, settings.default.max_examples // 5))
    @given(data=st.data())
    def test(kind: str, data: st.DataObject) -> None:
        law(data.draw(KINDS[kind], label="process"), data.draw)

    test.__name__ = test.__qualname__ = law.__name__
    test.__module__, test.__doc__ = law.__module__, law.__doc__
    return test


@st.composite
def times(draw: DrawFn, process: Process, *shape: int) -> Tensor:
    """Draw times within the process, both ends included: 0-d, or of shape (B,) and rising."""
    count = shape[0] if shape else 1
    places = draw(st.lists(number(0, 1), min_size=count, max_size=count).map(sorted))
    whole = process.t_min + (process.t_max - process.t_min) * torch.tensor(places, dtype=torch.float64)
    return whole.clamp(process.t_min, process.t_max).reshape(shape)


def shapes(rank: int = 4) -> SearchStrategy[tuple[int, ...]]:
    """Draw the shape of a batch, of rank 1 to `rank`; one sample, one coordinate and none but samples included."""
    return st.lists(st.integers(1, 3), min_size=1, max_size=rank).map(tuple)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Return standard normal numbers in float64."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def agree(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    """Assert that two numbers or tensors are equal up to `tolerance`, relative to the largest entry if that is big."""
    actual, expected = (torch.as_tensor(v, dtype=torch.float64) for v in (actual, expected))
    actual, expected = torch.broadcast_tensors(actual, expected)
    size = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance * size)


@dataclass(frozen=True)
class Exact:
    """The exact model of data N(mean, std^2 I), which answers in whatever is asked of it."""

    process: Process
    answers: Target = V()
    mean: float = 0.7
    std: float = 0.5

    def __call__(self, x: Tensor, t: Any) -> Prediction:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        pull = -self.score(x, t)
        eps = column(sigma, x) * pull
        x0 = self.mean + self.std**2 * column(alpha, x) * pull
        t = torch.as_tensor(t, dtype=torch.float64)
        return Prediction(self.process, x, t, self.answers.of(self.process, t, x0, eps), self.answers)

    def score(self, x: Tensor, t: Any) -> Tensor:
        """Return the gradient of log N(x; alpha mean, alpha^2 std^2 + sigma^2)."""
        alpha, sigma = (column(c(t), x) for c in (self.process.alpha, self.process.sigma))
        return -(x - alpha * self.mean) / (alpha**2 * self.std**2 + sigma**2)


def column(c: Tensor, x: Tensor) -> Tensor:
    """Shape one coefficient per sample so that it multiplies the batch."""
    return c.reshape(-1, *[1] * (x.ndim - 1)) if c.ndim else c


FIELDS: dict[str, Any] = {
    "a": number(-2, -0.1),
    "answers": st.just(V()),
    "asks": st.just(((0, 1.0),)),
    "at": st.just((1.0, 0.5, 0.25)),
    "b": number(0.1, 2),
    "betas": st.lists(number(0.01, 0.5), min_size=2, max_size=5).map(tuple),
    "draws": st.just(()),
    "equation": st.just(sdekit.ProbabilityFlow()),
    "grid": st.builds(sdekit.Karras, st.integers(1, 99), number(1, 9)),
    "hi": number(0.6, 0.9),
    "level": st.just(Constant(0.5)),
    "levels": st.integers(2, 256),
    "lo": number(0.1, 0.5),
    "method": st.just(sdekit.DDIM),
    "none": st.integers(1, 99),
    "path": st.just("model.safetensors"),
    "plans": st.just((sdekit.trace(sdekit.DDIM, VP(), sdekit.Uniform(3)),)),
    "points": st.just((0, 1)),
    "process": st.just(VP()),
    "rows": st.just((Row(1.0), Row(0.5, ((0, 0.5),), ((0, 0.5),)))),
    "scheduler": st.sampled_from(["DDIM", "UniPC"]),
    "share": number(0, 1),
    "solver": st.sampled_from([sdekit.Euler(), sdekit.Exponential(3)]),
    "std": number(0.01, 5),
    "steps": st.integers(1, 99),
    "t": number(0, 1),
}
"""What the required fields of sdekit's values are drawn from; a value with a new one finds it here."""


def values() -> list[type[Value]]:
    """Return every class of sdekit that can be a stored value."""
    for module in pkgutil.walk_packages(sdekit.__path__, "sdekit."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, queue = [], [Value]
    for kind in queue:
        queue += kind.__subclasses__()
        if (
            kind.__module__.startswith("sdekit")
            and not kind.__name__.startswith("_")
            and not inspect.isabstract(kind)
            and "__dataclass_fields__" in vars(kind)
            and kind not in (FromDrift, Variational)  # which hold functions
        ):
            found.append(kind)
    return sorted(set(found), key=lambda kind: kind.__name__)


def built(kind: type[Value]) -> SearchStrategy[Value]:
    """Draw a value of that class."""
    absent = dataclasses.MISSING
    required = [f.name for f in dataclasses.fields(kind) if f.init and f.default is f.default_factory is absent]
    return st.builds(kind, **{name: FIELDS[name] for name in required})
