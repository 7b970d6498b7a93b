"""Runge-Kutta methods, each a tableau, in time or in a path's coordinates, and Euler-Maruyama."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from torch import Tensor

from sdekit.equation import Equation, ForwardSDE, ReverseSDE, System
from sdekit.noise import Draw
from sdekit.prediction import Prediction
from sdekit.solvers.base import Solver, Step
from sdekit.solvers.leg import Leg, combine, regular
from sdekit.solvers.path import NOISE, STRAIGHT, Path

_Tree: TypeAlias = tuple[Any, ...]


class RungeKutta(Solver):
    """An explicit Runge-Kutta method, given by its tableau. With h = s - t and c_i = sum_j a_ij:

        k_i = drift(x + h sum_j a_ij k_j, t + c_i h),          x_s = x + h sum_i b_i k_i

    Attributes:
        a: the rows below the diagonal, the first stage's empty row left out.
        b: the weights, as many as there are stages.

    Reference: Butcher 1964; Hairer, Norsett & Wanner 1993, section II.1.
    """

    a: ClassVar[tuple[tuple[float, ...], ...]]
    b: ClassVar[tuple[float, ...]]

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        h = s - t
        slopes: list[Tensor] = []
        for row in ((), *self.a):
            c = sum(row)
            at = s if c == 1 else t + c * h
            slopes.append(system.drift(_advance(x, h, row, slopes), at))
        return Step(_advance(x, h, self.b, slopes))


def _advance(x: Tensor, h: Tensor, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            x = x + h * weight * slope
    return x


@dataclass(frozen=True)
class Euler(RungeKutta):
    """Euler's method."""

    a = ()
    b = (1.0,)


@dataclass(frozen=True)
class Heun(RungeKutta):
    """Heun's second-order method, the trapezoidal rule with an Euler predictor."""

    order = 2
    evals = 2
    a = ((1.0,),)
    b = (0.5, 0.5)


@dataclass(frozen=True)
class Midpoint(RungeKutta):
    """The midpoint rule with an Euler predictor. Reference: Runge 1895."""

    order = 2
    evals = 2
    a = ((0.5,),)
    b = (0.0, 1.0)


@dataclass(frozen=True)
class Ralston(RungeKutta):
    """The second-order method of two stages with the least error bound. Reference: Ralston 1962."""

    order = 2
    evals = 2
    a = ((2 / 3,),)
    b = (1 / 4, 3 / 4)


@dataclass(frozen=True)
class RK4(RungeKutta):
    """The classical fourth-order method. Reference: Kutta 1901."""

    order = 4
    evals = 4
    a = ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
    b = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


@dataclass(frozen=True)
class Tableau(RungeKutta):
    """An explicit Runge-Kutta method of one's own, held to the order it claims. By default it is Euler's.

    Args:
        a: the rows below the diagonal, the first stage's empty row left out: row i has i + 1 entries.
        b: the weights, one more than there are rows.
        order: 1 to 8, the order.

    Raises:
        ValueError: the shapes do not fit, or an order condition fails: for every rooted tree of at most `order` nodes,
            sum_i b_i Phi_i(tree) = 1 / gamma(tree), the first of which is sum b = 1.

    Reference: Butcher 1964; Hairer, Norsett & Wanner 1993, theorem II.2.13.

    >>> Tableau(((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), order=3).evals
    3
    """

    a: tuple[tuple[float, ...], ...] = ()  # type: ignore[misc]
    b: tuple[float, ...] = (1.0,)  # type: ignore[misc]
    order: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "a", tuple(tuple(float(v) for v in row) for row in self.a))
        object.__setattr__(self, "b", tuple(float(v) for v in self.b))
        if [len(row) for row in self.a] != list(range(1, len(self.b))):
            raise ValueError(
                f"An explicit tableau of {len(self.b)} stages has rows of 1 to {len(self.b) - 1} entries below the "
                f"diagonal; got rows of {[len(row) for row in self.a]}."
            )
        if self.order not in range(1, 9):
            raise ValueError(f"The order of a tableau lies between 1 and 8; got {self.order!r}.")
        for tree in (tree for n in range(1, self.order + 1) for tree in _trees(n)):
            got, wanted = sum(w * v for w, v in zip(self.b, self._stages(tree), strict=True)), 1 / _density(tree)
            if not abs(got - wanted) < 1e-10:
                size = _size(tree)
                raise ValueError(
                    f"A tableau of order {self.order} must give {wanted:.6g} for the tree {tree} of {size} "
                    f"nodes (the one of 1 node is sum b); got {got:.6g}. Correct a and b, or claim order {size - 1}."
                )

    @property
    def evals(self) -> int:  # type: ignore[override]
        """One network call a stage."""
        return len(self.b)

    def _stages(self, tree: _Tree) -> list[float]:
        """Return the elementary weight Phi_i of every stage i."""
        rows = ((), *self.a)
        below = [self._stages(child) for child in tree]
        return [math.prod(sum(w * v for w, v in zip(row, phi, strict=False)) for phi in below) for row in rows]


@functools.cache
def _trees(nodes: int) -> tuple[_Tree, ...]:
    """Return the rooted trees with that many nodes, each the sorted tuple of its root's subtrees."""
    found: set[_Tree] = set()
    for part in range(1, nodes):  # the largest subtree, and the tree without it
        for child, rest in itertools.product(_trees(part), _trees(nodes - part)):
            found.add(tuple(sorted((*rest, child))))
    return tuple(sorted(found)) if nodes > 1 else ((),)


def _size(tree: _Tree) -> int:
    return 1 + sum(_size(child) for child in tree)


def _density(tree: _Tree) -> int:
    """Return gamma: the product, over all nodes, of the number of nodes from there on."""
    return _size(tree) * math.prod(_density(child) for child in tree)


@dataclass(frozen=True)
class InPath(Solver):
    """A Runge-Kutta method in the coordinates of a path, where y = x / kappa and dy = P dtau: an integrating factor.

    On NOISE and a variance-exploding process it is the method in sigma, EDM's Heun for one; on STRAIGHT and rectified
    flow, the method in time. A step at whose ends the coordinates are not finite is made in those of STRAIGHT.

    Args:
        path: the coordinates.
        method: the tableau, a Runge-Kutta method.

    Reference: Lawson 1967; Karras et al. 2022 (arXiv 2206.00364), algorithm 1.
    """

    path: Path = NOISE
    method: RungeKutta = Heun()

    @property
    def order(self) -> int:  # type: ignore[override]
        """The tableau's."""
        return self.method.order

    @property
    def evals(self) -> int:  # type: ignore[override]
        """The tableau's."""
        return self.method.evals

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Any, ...], noise: Draw) -> Step:
        leg = regular(self.path, system, t, s)
        if not math.isfinite(float(leg.tau_s - leg.tau_t)):
            leg = Leg(STRAIGHT, system, t, s)
        path, rise, known = leg.path, leg.tau_s - leg.tau_t, [system(x, t)]

        def go(row: tuple[float, ...], at: Tensor) -> Tensor:
            part = Leg(path, system, t, at)
            return combine(part, x, tuple(known), [part.scale * rise * share for share in row])

        for row in self.method.a:
            at = path.between(system.process, t, s, sum(row))
            known.append(system(go(row, at), at))
        return Step(go(self.method.b, s))


@dataclass(frozen=True)
class EulerMaruyama(Solver):
    """Euler's method for a stochastic equation: x_s = x + (s - t) drift + sqrt(|s - t|) diffusion(t) z.

    Reference: Maruyama 1955; Kloeden & Platen 1992, section 10.2.
    """

    solves: ClassVar[tuple[type[Equation], ...]] = (ReverseSDE, ForwardSDE)

    def step(self, system: System, x: Tensor, t: Tensor, s: Tensor, past: tuple[Prediction, ...], noise: Draw) -> Step:
        h = s - t
        return Step(x + h * system.drift(x, t) + h.abs().sqrt() * system.diffusion(t) * noise(t, s))
