"""Solvers: how one step from t to s is made. Pure and frozen; equation and grid are somebody else's."""

from sdekit.solvers.base import Solver, Step
from sdekit.solvers.exponential import Ancestral, AncestralLarge, Exponential, TruncatedExponential
from sdekit.solvers.runge_kutta import RK4, Euler, EulerMaruyama, Heun, RungeKutta

__all__ = [
    "RK4",
    "Ancestral",
    "AncestralLarge",
    "Euler",
    "EulerMaruyama",
    "Exponential",
    "Heun",
    "RungeKutta",
    "Solver",
    "Step",
    "TruncatedExponential",
]
