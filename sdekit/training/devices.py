"""Where the steps of a training are computed: on one device, on many, and in how many pieces."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_NOTHING: AbstractContextManager[Any] = nullcontext()


class Devices:
    """How the work of a step is spread; this base is one process, and a subclass says what it does otherwise.

    Every rank knows the whole batch with its times and noise, and computes the losses of its own rows, piece by piece.
    So the gradient is the whole batch's, however many ranks and pieces there are (but for dropout, of which every
    piece has its own).

    Attributes:
        rank: the number of this process among the ranks.
        ranks: how many processes train together.
        pieces: in how many pieces a rank computes its rows, one after another, to need less memory.
    """

    rank: int = 0
    ranks: int = 1
    pieces: int = 1

    def rows(self, batch: int) -> list[slice]:
        """Return the rows of a batch that this rank computes, piece by piece.

        Raises:
            ValueError: there are fewer rows than ranks.
        """
        if batch < self.ranks:
            raise ValueError(
                f"A batch must have a sample for every rank; got {batch} for {self.ranks} ranks. Enlarge the batch."
            )
        first, last = (batch * rank // self.ranks for rank in (self.rank, self.rank + 1))
        pieces = min(self.pieces, last - first)
        ends = [first + (last - first) * i // pieces for i in range(pieces + 1)]
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    def place(self, model: nn.Module) -> None:
        """Put a model, in place, where it is trained and sampled."""

    def prepare(self, loss: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """Return the loss and the optimiser as the steps use them."""
        return loss, optimizer

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Return the context in which the losses are computed."""
        return _NOTHING

    def apart(self, loss: nn.Module) -> AbstractContextManager[Any]:
        """Return the context of every piece but the last, after which alone the ranks' gradients are averaged."""
        return _NOTHING

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a piece's share of the loss to the gradient."""
        loss.backward()

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        """Scale the gradient down to a norm."""
        nn.utils.clip_grad_norm_(parameters, norm)

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of the ranks' values, of any one shape; it may be written into `values`."""
        return values

    def gather(self, parts: list[Tensor], rows: list[slice], batch: int) -> Tensor:
        """Return what the ranks computed of the rows of a batch, of which `parts` are this one's: shape (B,)."""
        if self.ranks == 1:
            return parts[0] if len(parts) == 1 else torch.cat(parts)
        whole = parts[0].new_zeros(batch)
        for part, piece in zip(parts, rows, strict=True):
            whole[piece] = part
        return self.sum(whole)

    def write(self, action: Callable[[], None]) -> None:
        """Do what one process must do, such as writing a file, on the first rank, while the others wait.

        Raises:
            OSError: the first rank failed; every rank hears of it.
        """
        error: Exception | None = None
        if self.rank == 0:
            try:
                action()
            except Exception as caught:  # raised below, once no rank waits for another
                error = caught
        failed = self.ranks > 1 and bool(self.sum(self._flag(error is not None)))
        if error is not None:
            raise error
        if failed:
            raise OSError(
                "Every rank must be able to rely on the first, which could not write; its own error says why."
            )

    def _flag(self, value: bool) -> Tensor:
        return torch.tensor(float(value))


@dataclass(frozen=True)
class OneDevice(Devices):
    """The device the model is on.

    Args:
        pieces: in how many pieces a batch is computed, to need less memory; the gradient is the same.
        precision: what matrix products are computed in, such as torch.bfloat16; None for the model's own dtype.

    Raises:
        ValueError: pieces is not positive, or the precision is float16, whose small gradients vanish unless scaled.
    """

    pieces: int = 1
    precision: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.pieces < 1:
            raise ValueError(f"A batch is computed in 1 piece or more; got pieces={self.pieces}.")
        if self.precision == torch.float16:
            raise ValueError(
                "The gradients of float16 must be scaled, which accelerate does; got precision=torch.float16. "
                "Use torch.bfloat16, or Accelerated(Accelerator(mixed_precision='fp16'))."
            )

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        return _NOTHING if self.precision is None else torch.autocast(device.type, self.precision)


@dataclass(frozen=True)
class Sharded(OneDevice):
    """Many devices under torchrun, each with a part of every parameter: FSDP2's `fully_shard` on the model's network.

    torch.distributed must be initialised. The average of the weights is sharded alike, and so are the optimiser's
    moments. All ranks must call the network together: to sample, each as often as the others.

    Args:
        kinds: classes of modules whose parameters are gathered on their own, such as the blocks of a network; what
            stands in none of them is gathered once for the whole network.
    """

    kinds: tuple[type[nn.Module], ...] = ()
    rank: int = field(init=False)
    ranks: int = field(init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not dist.is_initialized():
            raise ValueError(
                "Sharded spreads a model over the ranks of torch.distributed, which is not initialised. Start the "
                "script with torchrun and call torch.distributed.init_process_group() first."
            )
        object.__setattr__(self, "rank", dist.get_rank())
        object.__setattr__(self, "ranks", dist.get_world_size())

    def place(self, model: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard

        for root in model.children():  # a sampler calls the network, not always the model around it
            if any(True for _ in root.parameters()):
                for part in reversed([m for m in root.modules() if isinstance(m, self.kinds) and m is not root]):
                    fully_shard(part)
                fully_shard(root)

    def sum(self, values: Tensor) -> Tensor:
        dist.all_reduce(values)
        return values


class Accelerated(Devices):
    """Whatever Hugging Face accelerate is configured for: many devices or nodes, mixed precision, its trackers.

    The pieces are its `gradient_accumulation_steps`.

    Args:
        accelerator: accelerate's `Accelerator`.

    Raises:
        TypeError: something else.
    """

    def __init__(self, accelerator: Any) -> None:
        needed = ("prepare", "backward", "reduce", "num_processes", "process_index", "gradient_accumulation_steps")
        if not all(hasattr(accelerator, name) for name in needed):
            raise TypeError(
                f'Accelerated takes accelerate\'s Accelerator; got {accelerator!r}. pip install "sdekit[train]", then '
                "Accelerated(accelerate.Accelerator())."
            )
        self.accelerator = accelerator
        self.rank, self.ranks = accelerator.process_index, accelerator.num_processes
        self.pieces = accelerator.gradient_accumulation_steps

    def place(self, model: nn.Module) -> None:
        model.to(self.accelerator.device)

    def prepare(self, loss: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        loss, prepared = self.accelerator.prepare(loss, optimizer)
        return loss, prepared

    def apart(self, loss: nn.Module) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = self.accelerator.no_sync(loss)
        return context

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss * self.pieces)  # which it divides by

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        self.accelerator.clip_grad_norm_(parameters, norm)

    def sum(self, values: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(values, "sum")
        return total

    def _flag(self, value: bool) -> Tensor:
        return torch.tensor(float(value), device=self.accelerator.device)
