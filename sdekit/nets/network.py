"""What all networks have in common: how they are told things, and how they are written down."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias, TypeVar

from torch import Tensor, nn

from sdekit._value import Value
from sdekit.nets.attention import Context, Tokens
from sdekit.nets.embedding import Embedding
from sdekit.nets.inputs import Inputs

__all__ = ["Json", "Network", "Told", "valued"]

Json: TypeAlias = Mapping[str, Any]
"""A value as JSON, as a network's config holds it."""

Kind = TypeVar("Kind", bound=Value)


def valued(kind: type[Kind], data: Kind | Json) -> Kind:
    """Return a value that was given as itself or as its JSON."""
    return data if isinstance(data, kind) else kind.from_json(data)


class Told(NamedTuple):
    """What a network is told in one call, as its blocks use it.

    Args:
        c: the embedding of time and label, shape (B, width), or (1, width) for all samples.
        tokens: the context; None in a network without one.
    """

    c: Tensor
    tokens: Tokens | None


class Network(nn.Module):
    """Base of the networks: net(x, t, label, context, mask) is an answer of the shape of x, or several along axis 1.

    Args:
        classes: number of classes, or None for a network without labels.
        heads: number of answers. With 2 the answer of a sample of shape (C, ...) has shape (2 C, ...): first the
            answer itself, then, say, the place of a learned variance.
        inputs: what else the network is told.
        width: size of the embedding of time and label.
        features: number of features of time.

    Raises:
        ValueError: a number is not positive.
    """

    def __init__(self, classes: int | None, heads: int, inputs: Inputs | Json, width: int, features: int = 128) -> None:
        super().__init__()
        if heads < 1:
            raise ValueError(f"A network needs at least 1 head; got {heads}. For the answer alone, take 1.")
        self.classes, self.heads, self.inputs = classes, heads, valued(Inputs, inputs)
        self.embedding = Embedding(width, classes, self.inputs.time, features)
        self.context = None if self.inputs.context is None else Context(self.inputs.context)

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild this architecture, type(net)(**net.config), as JSON types."""
        return {name: _plain(getattr(self, name)) for name in inspect.signature(type(self)).parameters}

    def told(self, samples: int, t: Tensor, label: Tensor | None, context: Tensor | None, mask: Tensor | None) -> Told:
        """Return what the blocks are told, of arguments as `forward` gets them.

        Raises:
            ValueError: a shape does not fit; a label is out of range, or given to a network without labels; a context
                is given to a network without one.
            TypeError: times, labels or a mask are of a wrong type.
        """
        c = self.embedding(t, label, samples)
        if self.context is not None:
            return Told(c, self.context(context, mask, samples))
        if context is not None or mask is not None:
            raise ValueError("A network without a context takes none; got one. Build it with Inputs(context=size).")
        return Told(c, None)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value.to_json() if isinstance(value, Value) else value
