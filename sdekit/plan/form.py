"""Symbols in a state's place: what a linear step computes with when it is traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypeAlias

from torch import Tensor

Symbol: TypeAlias = tuple[str, int]
"""("x", i): state i; ("f", j): the model's answer j; ("z", j): noise j."""

Number: TypeAlias = Any
"""A coefficient: a float, or a 0-d tensor where its derivative is wanted."""


class NonlinearError(TypeError):
    """A solver did to a state what is not linear, so its steps are no table of numbers."""


class Form:
    """A linear form: a sum of symbols with coefficients. It knows sums and multiples by numbers, and nothing else.

    >>> x, f = Form({("x", 0): 1.0}), Form({("f", 0): 1.0})
    >>> (0.5 * x - f / 4 + x).terms
    {('x', 0): 1.5, ('f', 0): -0.25}
    """

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Symbol, Number]) -> None:
        self.terms = terms

    def __add__(self, other: Any) -> Form:
        if not isinstance(other, Form):
            if isinstance(other, int | float) and other == 0:  # where a sum() starts
                return self
            _refuse("a number was added to a state")
        terms = dict(self.terms)
        for symbol, c in other.terms.items():
            terms[symbol] = terms[symbol] + c if symbol in terms else c
        return Form(terms)

    def __mul__(self, c: Any) -> Form:
        if isinstance(c, Form):
            _refuse("two states were multiplied")
        c = number(c)
        return Form({symbol: c * value for symbol, value in self.terms.items()})

    def __truediv__(self, c: Any) -> Form:
        if isinstance(c, Form):
            _refuse("a state was divided by a state")
        c = number(c)
        return Form({symbol: value / c for symbol, value in self.terms.items()})

    def __neg__(self) -> Form:
        return self * -1.0

    def __pos__(self) -> Form:
        return self

    def __sub__(self, other: Any) -> Form:
        return self.__add__(other * -1.0)

    def __rsub__(self, other: Any) -> Form:
        return self.__neg__().__add__(other)

    __radd__ = __add__
    __rmul__ = __mul__

    @classmethod
    def __torch_function__(
        cls, function: Any, kinds: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Form:
        name = getattr(function, "__name__", "").strip("_")
        if kwargs or len(args) != 2 or name not in _OPERATIONS:
            _refuse(f"torch's {name} was applied to a state")
        form: Form = _OPERATIONS[name](*args)
        return form

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        _refuse(f"a state's .{name} was asked for")

    def __bool__(self) -> bool:
        _refuse("a decision was made on a state")

    def __pow__(self, other: Any) -> Form:
        _refuse("a power of a state was taken")

    def __abs__(self) -> Form:
        _refuse("the absolute value of a state was taken")

    def __rtruediv__(self, other: Any) -> Form:
        _refuse("something was divided by a state")

    def __lt__(self, other: Any) -> bool:
        _refuse("a state was compared")

    __gt__ = __le__ = __ge__ = __lt__

    def __repr__(self) -> str:
        return " ".join(f"{float(c):+.6g} {symbol}{index}" for (symbol, index), c in self.terms.items()) or "0"


def _times(a: Any, b: Any) -> Form:
    return a.__mul__(b) if isinstance(a, Form) else Form.__mul__(b, a)


def _plus(a: Any, b: Any) -> Form:
    return a.__add__(b) if isinstance(a, Form) else Form.__add__(b, a)


def _minus(a: Any, b: Any) -> Form:
    return _plus(a, b * -1.0)


def _over(a: Any, b: Any) -> Form:
    return Form.__truediv__(a, b) if isinstance(a, Form) else Form.__rtruediv__(b, a)


_OPERATIONS: dict[str, Callable[[Any, Any], Form]] = {
    "mul": _times,
    "rmul": _times,
    "add": _plus,
    "radd": _plus,
    "sub": _minus,
    "rsub": lambda a, b: _minus(b, a),
    "div": _over,
    "truediv": _over,
}
"""By the names of torch's functions, which it hands over when a tensor stands on the left."""


def number(c: Any) -> Number:
    """Return a coefficient as a float, or as it is where its derivative is wanted."""
    if isinstance(c, Tensor):
        if c.ndim:
            _refuse(f"a state was multiplied by a tensor of shape {tuple(c.shape)}")
        return c if c.requires_grad else c.item()
    return float(c)


def _refuse(what: str) -> NoReturn:
    raise NonlinearError(
        f"A traced step may use sums of states, answers and noise, and their multiples by numbers; {what}. Run such a "
        "solver step by step, with solve or trajectory."
    )
