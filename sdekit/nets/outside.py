"""Networks of other libraries, asked and read like those of this one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Outside"]


class Outside(nn.Module):
    """A network of another library as net(x, t, label, context).

    Its answer is the tensor it returns, or the first thing in what it returns, such as `.sample` of diffusers' outputs.
    A network that returns a tensor and names its arguments `label` and `context` needs no wrapper.

    Args:
        net: the network, called as net(x, t, **{label: ..., context: ...}) with what is given, t of shape (B,).
        classes: number of classes, if "no label" has the index `classes` in its table: then None stands for that.
        label: its name for the labels.
        context: its name for the context.

    >>> class Theirs(nn.Module):
    ...     def forward(self, x, t, class_labels):
    ...         return {"sample": x + class_labels[:, None]}
    >>> Outside(Theirs(), classes=3)(torch.zeros(2, 1), torch.ones(2))
    tensor([[3.], [3.]])
    """

    def __init__(
        self,
        net: nn.Module,
        classes: int | None = None,
        *,
        label: str = "class_labels",
        context: str = "encoder_hidden_states",
    ) -> None:
        super().__init__()
        self.net, self.classes = net, classes
        self._names = (label, context)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Return the network's answer.

        Raises:
            TypeError: it holds no tensor.
        """
        if label is None and self.classes is not None:
            label = torch.full((len(x),), self.classes, device=x.device)
        given = dict(zip(self._names, (label, context), strict=True))
        answer: Any = self.net(x, t, **{name: value for name, value in given.items() if value is not None})
        held = list(answer.values()) if isinstance(answer, dict) else answer
        first = held[0] if isinstance(held, tuple | list) and held else held
        if not isinstance(first, Tensor):
            raise TypeError(
                f"The network must return a tensor, or hold it first; got {type(answer).__name__}. Wrap it."
            )
        return first
