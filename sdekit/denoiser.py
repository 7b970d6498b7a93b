"""Any network becomes a model: Denoiser(net, process, predicts=...)."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from sdekit._broadcast import Time, as_time, like
from sdekit._value import Value
from sdekit.prediction import Preconditioned, Prediction, Target, WithVariance
from sdekit.process import Discrete, Process

Ask: TypeAlias = tuple[Callable[[Tensor, Any], Tensor], Any]
"""A prepared question: function(x, argument) is the answer about the states `x`."""


class Clock(Value, ABC):
    """How a network is told the time."""

    @abstractmethod
    def __call__(self, process: Process, t: Tensor) -> Tensor:
        """Return the network's time input, of the shape of `t`."""


@dataclass(frozen=True)
class ByTime(Clock):
    """scale t. Reference: Song et al. 2021 (arXiv 2011.13456) tell their networks 999 t."""

    scale: float = 1.0

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return self.scale * t


@dataclass(frozen=True)
class ByIndex(Clock):
    """The index k of a table's step, k = T t - 1 on `Discrete`: whole at the nodes, and between them in between."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        if not isinstance(process, Discrete):
            raise ValueError(f"ByIndex counts the steps of a table and needs a Discrete process; got {process}.")
        k = process.steps * t - 1
        return torch.where((k - k.round()).abs() < 1e-9 * process.steps, k.round(), k)


@dataclass(frozen=True)
class ByNoise(Clock):
    """log(sigma / alpha) / 4. Reference: Karras et al. 2022 (arXiv 2206.00364), table 1, c_noise."""

    def __call__(self, process: Process, t: Tensor) -> Tensor:
        return -process.lam(t) / 4


class Head(Value, ABC):
    """How the output of a network is read: as an answer, and what else there may be beside it."""

    @abstractmethod
    def answer(self, output: Tensor) -> Tensor:
        """Return the answer in the target of the network, of the shape of the state."""

    def read(self, plain: Prediction, output: Tensor) -> Prediction:
        """Return the prediction `plain`, made of the answer, with what else the output says."""
        return plain


@dataclass(frozen=True)
class Single(Head):
    """The output is the answer."""

    def answer(self, output: Tensor) -> Tensor:
        return output


@dataclass(frozen=True)
class MeanAndVariance(Head):
    """The output has twice the channels: the answer, then the place of the variance, as in `WithVariance`.

    Nothing holds the place within [-1, 1], as in the paper; a network that starts at 0 starts in the middle.

    Raises:
        ValueError: dimension 1 of the output is odd or missing.

    Reference: Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3.1.
    """

    def answer(self, output: Tensor) -> Tensor:
        if output.ndim < 2 or output.shape[1] % 2:
            raise ValueError(
                "With a learned variance the network must return (B, 2C, ...), the answer and the place of the "
                f"variance; it returned {tuple(output.shape)}. Build it with heads=2, or use head=Single()."
            )
        return output.chunk(2, 1)[0]

    def read(self, plain: Prediction, output: Tensor) -> Prediction:
        place = output.chunk(2, 1)[1].to(plain.x.dtype)
        return WithVariance(plain.process, plain.x, plain.t, plain.answer, plain.target, place)


class _Told(NamedTuple):
    """What a network was told last: a run like the last one says it again. A network that writes into its time raises
    the version.
    """

    key: Any
    clock: Tensor
    version: int
    told: tuple[Tensor, ...]


_TOLD: weakref.WeakKeyDictionary[Denoiser, _Told] = weakref.WeakKeyDictionary()


class Denoiser(nn.Module):
    """A network as a model on a process.

    Args:
        net: a callable net(x, time, **condition) -> tensor of the shape of `x` (of twice its channels for a head of
            two), with `time` of shape (B,).
        process: the forward process.
        predicts: what the network's output means: X0(), Eps(), Score(), V(), Velocity(), Preconditioned(sigma_data).
        clock: how the network is told the time; by default as t itself, and for `Preconditioned` as `ByNoise()`.
        head: how its output is read; `MeanAndVariance()` is for networks that learn the variance too.

    The network runs in the dtype of its own parameters; the state, and all coefficients, keep theirs.

    >>> from sdekit import VP, Eps
    >>> model = Denoiser(lambda x, t: 0 * x, VP(), predicts=Eps())
    >>> model(torch.ones(2, 3), 0.5).x0.shape
    torch.Size([2, 3])

    Raises:
        ValueError: the target says nothing about the data at t_max, where sampling starts (noise prediction on a
            process with alpha(t_max) = 0).
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        process: Process,
        *,
        predicts: Target,
        clock: Clock | None = None,
        head: Head = Single(),
    ) -> None:
        super().__init__()
        if not isinstance(predicts, Target):
            raise TypeError(f"predicts must be a target such as Eps() or Velocity(); got {predicts!r}.")
        if not bool(predicts.gain(process, process.t_max).isfinite()):
            raise ValueError(
                f"A prediction at t_max must determine x0; {predicts} does not on {process}, where alpha(t_max) = "
                f"{float(process.alpha(process.t_max)):g}. Predict X0(), V() or Velocity(), or lower t_max."
            )
        self.net = net
        self.process = process
        self.predicts = predicts
        self.head = head
        self.clock = clock or (ByNoise() if isinstance(predicts, Preconditioned) else ByTime())
        ends = as_time([process.t_min, process.t_max])
        if not bool(self.clock(process, ends).isfinite().all()):
            raise ValueError(
                f"The network's clock must be finite from t_min to t_max; {self.clock} is not on {process}. Tell it "
                "the time with clock=ByTime(), or move the ends inwards."
            )

    def forward(self, x: Tensor, t: Time, /, **condition: Any) -> Prediction:
        """Predict at the states `x`, shape (B, ...), and the time `t`, a scalar or of shape (B,).

        Raises:
            ValueError: a time outside the process, a batch that does not match, or a net that changes the shape.
        """
        t = self.process.check(t)
        output = self._output(x, t, condition)
        plain = Prediction(self.process, x, t, like_state(self.head.answer(output), x), self.predicts)
        return self.head.read(plain, output)

    def _output(self, x: Tensor, t: Tensor, condition: dict[str, Any]) -> Tensor:
        if t.ndim == 0:
            ((ask, at),) = self._outputs(t[None], x, condition)
            return ask(x, at)
        if t.shape != x.shape[:1]:
            like(t, x)  # raises: a time per sample must fit the batch
        dtype = self._dtype(x)
        factor = self.predicts.scale_in(self.process, t)
        scaled = x if not isinstance(factor, Tensor) and factor == 1 else like(factor, x) * x
        return self.net(scaled.to(dtype), self._clock(t, dtype, x.device), **condition)

    def asks(self, times: Tensor, x: Tensor, /, **condition: Any) -> list[Ask]:
        """Prepare the network for many times: all that depends neither on the state nor on what was answered before.

        Args:
            times: the times, float64, within the process; shape (n,), or (n, B) for a time per sample.
            x: states like those the network will be asked about, shape (B, ...).
            condition: the network's keyword arguments.

        Returns:
            For each time (function, argument): function(x, argument) is the network's answer in the target `predicts`.
        """
        outputs = self._outputs(times, x, condition)
        if isinstance(self.head, Single) and outputs and outputs[0][0] is self.net:
            return outputs

        def answering(ask: Callable[[Tensor, Any], Tensor]) -> Callable[[Tensor, Any], Tensor]:
            return lambda x, at: like_state(self.head.answer(ask(x, at)), x)

        return [(answering(ask), at) for ask, at in outputs]

    def _outputs(self, times: Tensor, x: Tensor, condition: dict[str, Any]) -> list[Ask]:
        """Prepare the network for many times, as `asks` does, to give its whole output."""
        dtype = self._dtype(x)
        clocks = self._told(times, len(x), dtype, x.device)
        factor = self.predicts.scale_in(self.process, times)
        plain = not isinstance(factor, Tensor) and factor == 1
        if plain and dtype == x.dtype and not condition:
            return [(self.net, time) for time in clocks]
        factors = [None] * len(times) if plain else torch.as_tensor(factor).expand_as(times).unbind()

        def ask(x: Tensor, at: tuple[Tensor, Tensor | float | None]) -> Tensor:
            time, scale = at
            return self.net((x if scale is None else x * scale).to(dtype), time, **condition)

        scales = [scale if scale is None else like(scale, x) for scale in factors]
        return [(ask, at) for at in zip(clocks, scales, strict=True)]

    def _told(self, times: Tensor, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
        """Return what the network is told of the times, each of shape (batch,); the same as last time, if it can be."""
        kept = times.ndim == 1 and times.device.type == "cpu" and not times.requires_grad
        kept = kept and not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled())
        key = (self.process, self.clock, times.tolist(), batch, dtype, device) if kept else None
        last = _TOLD.get(self) if kept else None
        if last is not None and last.key == key and last.clock._version == last.version:
            return last.told
        clock = self._clock(times, dtype, device)
        told = clock.reshape(len(times), -1).expand(len(times), batch).unbind()
        if kept:
            _TOLD[self] = _Told(key, clock, clock._version, told)
        return told

    def _clock(self, times: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        coarse = dtype not in (torch.float32, torch.float64)  # a time in half precision would merge with its neighbours
        return self.clock(self.process, times).to(device, torch.float32 if coarse else dtype)

    def given(self, **condition: Any) -> Given:
        """Bind the network's keyword arguments once: the model of p(x | condition)."""
        return Given(self, condition)

    def _dtype(self, x: Tensor) -> torch.dtype:
        first = next(_floating(self.net), None) if isinstance(self.net, nn.Module) else None
        return x.dtype if first is None else first.dtype


def _floating(module: nn.Module) -> Iterator[Tensor]:
    """Yield the floating-point parameters, without the pass over the whole module that `parameters()` starts with."""
    yield from (p for p in module._parameters.values() if p is not None and p.is_floating_point())
    for child in module._modules.values():
        yield from () if child is None else _floating(child)


class Given(nn.Module):
    """A denoiser with its condition bound: see `Denoiser.given`."""

    def __init__(self, model: Denoiser, condition: dict[str, Any]) -> None:
        super().__init__()
        self.model = model
        self.condition = condition

    @property
    def process(self) -> Process:
        """The process of the denoiser."""
        return self.model.process

    def forward(self, x: Tensor, t: Time, /) -> Prediction:
        """Predict at the states `x` and the time `t` under the bound condition."""
        prediction: Prediction = self.model(x, t, **self.condition)
        return prediction

    def asks(self, times: Tensor, x: Tensor, /) -> list[Ask]:
        """Prepare the network for many times under the bound condition: see `Denoiser.asks`."""
        return self.model.asks(times, x, **self.condition)

    @property
    def predicts(self) -> Target:
        """The target in which the denoiser answers."""
        return self.model.predicts


def like_state(answer: Tensor, x: Tensor) -> Tensor:
    """Return a network's answer about the states `x` in their dtype; raise ValueError if it has another shape."""
    if answer.shape != x.shape:
        raise ValueError(
            f"The network must return the shape of its input, {tuple(x.shape)}; it returned "
            f"{tuple(answer.shape)}. For a learned variance set head=MeanAndVariance(); else wrap it."
        )
    return answer.to(x.dtype)
