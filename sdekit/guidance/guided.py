"""Models made of models: a density times the factors of guides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from sdekit._broadcast import Time, like
from sdekit.guidance.guides import Frozen, Guide, Potential, Ratio, ThroughData, attached, pulled, total
from sdekit.guidance.scale import ALWAYS, Interval, Scale
from sdekit.guidance.together import mapped, selected, together
from sdekit.prediction import Model, Prediction, Score, Target, V, calls, exchange
from sdekit.process import Process

Active = list[tuple[Guide, Tensor]]


class Guided(nn.Module):
    r"""A model whose density at every noise level is multiplied by guides:

        score = grad log p(x_t) + sum_i s_i grad log h_i(x_t),        p(x_t) prod_i h_i(x_t)^{s_i}

    It is a model like any other: it can be sampled from, integrated, and guided again. Guides add, in any order. Those
    that work through x0_hat use that of `model`; to have them work on a guided one, guide that one again.

    Args:
        model: the model that is guided.
        guides: `Ratio`, `Potential`, `Reward`, `Linear`, `Inpainting`, `Frozen`.

    What has no weight is not evaluated: neither a guide outside its interval, nor a model whose shares cancel. Under
    torch.no_grad gradients are taken all the same; in grad mode they can be differentiated in turn.

    Raises:
        TypeError: a guide is none.
        ValueError: a model of a guide is on another process.

    >>> from sdekit import VP, GaussianMixture
    >>> above, below = (GaussianMixture(VP(), torch.tensor([[m]]), 0.5) for m in (1.0, -1.0))
    >>> model = Guided(below, Ratio(above, below, scale=1.0))
    >>> model(torch.zeros(1, 1), 0.1).x0.allclose(above(torch.zeros(1, 1), 0.1).x0)
    True
    """

    def __init__(self, model: Model, *guides: Guide) -> None:
        super().__init__()
        for guide in guides:
            if not isinstance(guide, Guide):
                raise TypeError(f"A guide must be a Ratio, a Potential, a Reward ...; got {type(guide).__name__}.")
            for other in guide.holds() if isinstance(guide, Ratio) else ():
                if other.process != model.process:
                    raise ValueError(
                        f"All models must be on one process; {model.process} is guided by one on {other.process}."
                    )
        self.model, self.guides = model, guides
        held = [part for guide in guides for part in guide.holds()]
        self.parts = nn.ModuleList(part for part in held if isinstance(part, nn.Module))

    @property
    def process(self) -> Process:
        """The process of the model that is guided."""
        return self.model.process

    @property
    def predicts(self) -> Target:
        """The target in which it answers, that of the model that is guided."""
        predicts = getattr(self.model, "predicts", None)
        return predicts if isinstance(predicts, Target) else V()

    @property
    def calls(self) -> int:
        """The most network calls of one prediction: see `calls_at`."""
        models = {id(m): m for guide in self.guides if isinstance(guide, Ratio) for m in guide.holds()}
        models[id(self.model)] = self.model
        return sum(getattr(m, "calls", 1) for m in models.values()) + sum(guide.calls for guide in self.guides)

    def calls_at(self, t: Time, /, *also: Model) -> int:
        """Return the network calls of one prediction at the time `t`: each model and classifier asked counts one.

        Conditional and unconditional count two, in one batch or not. Passes backward are not counted. `also` are models
        to be asked in any case.
        """
        active = self._active(self.process.check(t))
        models = {id(model): model for model in [*self._asked(active), *also]}
        return sum(calls(model, t) for model in models.values()) + sum(guide.calls for guide, _ in active)

    def forward(self, x: Tensor, t: Time, /) -> Prediction:
        """Predict at the states `x`, shape (B, ...), and the time `t`, a scalar or of shape (B,).

        Raises:
            ValueError: what a model or a guide does not accept.
        """
        t = self.process.check(t)
        like(t, x)
        return self._predict(x, t, [])[0]

    def both(self, x: Tensor, t: Time, /) -> tuple[Prediction, Prediction]:
        """Return the guided prediction and, from the same evaluation, that of the model alone."""
        t = self.process.check(t)
        like(t, x)
        guided, alone = self._predict(x, t, [self.model])
        return guided, alone

    def select(self, which: Tensor) -> Self:
        """Return the model of some samples of a batch, `which` being their numbers: adaptive solvers ask for it."""
        chosen: dict[int, Any] = {}

        def of(held: Any) -> Any:
            if id(held) not in chosen:
                chosen[id(held)] = selected(held, which)  # what was one model stays one
            return chosen[id(held)]

        return type(self)(of(self.model), *(guide.select(which, of) for guide in self.guides))

    def _active(self, t: Tensor) -> Active:
        """Return the guides that act at any of the times `t`, and how strongly."""
        strengths = [(guide, guide.strength(self.process, t)) for guide in self.guides]
        return [(guide, s) for guide, s in strengths if bool((s != 0).any())]

    def _weights(self, active: Active) -> list[tuple[Model, Tensor]]:
        """Return the models of the sum of predictions and their weights; those whose weights cancel are left out."""
        weights: dict[int, tuple[Model, Tensor]] = {id(self.model): (self.model, torch.ones(()))}
        for guide, s in active:
            if isinstance(guide, Ratio):
                for model, part in ((guide.above, s), (guide.below, -s)):
                    before = weights.get(id(model), (model, 0.0))[1]
                    weights[id(model)] = model, before + part
        return [(model, weight) for model, weight in weights.values() if bool((weight != 0).any())]

    def _asked(self, active: Active) -> list[Model]:
        """Return the models that a prediction evaluates."""
        models = [model for model, _ in self._weights(active)]
        through = any(isinstance(guide, ThroughData | Frozen) for guide, _ in active)
        return [self.model, *models] if through and all(m is not self.model for m in models) else models

    def _predict(self, x: Tensor, t: Tensor, also: list[Model]) -> list[Prediction]:
        """Return the guided prediction, and those of the models `also`, each asked no more than once."""
        active = self._active(t)
        known, terms = self._through_network(x, t, active)
        models = {id(model): model for model in [*self._asked(active), *also] if id(model) not in known}
        known.update(zip(models, together(list(models.values()), x, t), strict=True))
        weights = self._weights(active)
        answer = total([like(weight, x) * known[id(model)].view(self.predicts) for model, weight in weights])
        for guide, s in active:
            if isinstance(guide, Potential):
                terms.append(like(s, x) * guide.gradient(x, t))
            if isinstance(guide, Frozen):
                slope = guide.guide.gradient(known[id(self.model)].x0, self.process, t)
                terms.append(like(s / self.process.alpha(t), x) * slope)
        if terms:
            score, target = Score().mixture(self.process, t), self.predicts.mixture(self.process, t)
            answer = answer + like(exchange(self.process, t, score, target)[1], x) * total(terms)
        first = known.get(id(self.model), known[id(weights[0][0])])
        guided = replace(first, x=x, t=t, answer=answer, target=self.predicts)
        return [guided, *(known[id(model)] for model in also)]

    def _through_network(self, x: Tensor, t: Tensor, active: Active) -> tuple[dict[int, Prediction], list[Tensor]]:
        """Return, if there are guides through x0_hat, the model's prediction and what they add to the score."""
        through = [(guide, s) for guide, s in active if isinstance(guide, ThroughData)]
        if not through:
            return {}, []
        keep = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            y = attached(x, keep)
            t = t.clone()  # a normal tensor, also in inference mode
            now = self.model(y, t)
            x0 = now.x0
            with torch.set_grad_enabled(keep):
                slope = total([like(s, x) * guide.gradient(x0, self.process, t) for guide, s in through])
            added = pulled(x0, y, slope, keep)
        return {id(self.model): now if keep else _detached(now)}, [added]


class Rescaled(nn.Module):
    r"""A guided model whose answers are brought back to the standard deviation of the model it guides:

        F' = phi F std(F_alone) / std(F) + (1 - phi) F

    with each sample's standard deviation over its coordinates, in the target in which the model answers. It counters
    the glare of large scales. It is no factor of the density.

    Args:
        guided: the guided model; `alone` is the model under its guides, the conditional one for `classifier_free`.
        phi: how much of the rescaled answer, in [0, 1].

    Raises:
        ValueError: phi is out of its range; when used, a sample has only one coordinate.

    Reference: Lin et al. 2023 (arXiv 2305.08891), section 3.4, where v is predicted.
    """

    def __init__(self, guided: Guided, phi: float = 0.7) -> None:
        super().__init__()
        if not 0 <= phi <= 1:
            raise ValueError(f"phi must lie in [0, 1], the share of the rescaled answer; got {phi}.")
        self.guided, self.phi = guided, phi

    @property
    def process(self) -> Process:
        """The process of the guided model."""
        return self.guided.process

    @property
    def predicts(self) -> Target:
        """The target in which it answers, that of the guided model."""
        return self.guided.predicts

    @property
    def calls(self) -> int:
        """The most network calls of one prediction."""
        return self.guided.calls

    def calls_at(self, t: Time, /) -> int:
        """Return the network calls of one prediction at the time `t`, that of the model alone among them."""
        return self.guided.calls_at(t, self.guided.model)

    def forward(self, x: Tensor, t: Time, /) -> Prediction:
        """Predict at the states `x`, shape (B, ...), and the time `t`, a scalar or of shape (B,)."""
        if x[:1].numel() < 2 and len(x):
            raise ValueError(f"A sample must have coordinates to spread; got states of shape {tuple(x.shape)}.")
        guided, alone = self.guided.both(x, t)
        spread, wanted = (_spread(p.view(self.predicts)) for p in (guided, alone))
        ratio = torch.where(spread > 0, wanted / spread, 1.0)
        return replace(guided, answer=guided.answer * (self.phi * ratio + (1 - self.phi)))

    def select(self, which: Tensor) -> Self:
        """Return the model of some samples of a batch, `which` being their numbers."""
        return type(self)(self.guided.select(which), self.phi)


def classifier_free(conditional: Model, unconditional: Model, scale: Scale, within: Interval = ALWAYS) -> Guided:
    """Return u + s (c - u), the scale of Imagen and of diffusers: s = 0 is unconditional, s = 1 conditional.

    Args:
        conditional: c, such as model.given(label=labels).
        unconditional: u, such as the model itself.
        scale: s, a number or a function of lam.
        within: the noise levels of guidance; outside them the conditional model is asked alone.

    Reference: Saharia et al. 2022 (arXiv 2205.11487), eq. 2.
    """
    w = (lambda lam: scale(lam) - 1) if callable(scale) else scale - 1
    return Guided(conditional, Ratio(conditional, unconditional, scale=w, within=within))


def ho_salimans(conditional: Model, unconditional: Model, w: Scale, within: Interval = ALWAYS) -> Guided:
    """Return (1 + w) c - w u, the w of the paper: w = 0 is conditional; it is `classifier_free` of s = 1 + w.

    Args:
        conditional: c, such as model.given(label=labels).
        unconditional: u, such as the model itself.
        w: a number or a function of lam.
        within: the noise levels of guidance; outside them the conditional model is asked alone.

    Reference: Ho & Salimans 2022 (arXiv 2207.12598), eq. 6.
    """
    return Guided(conditional, Ratio(conditional, unconditional, scale=w, within=within))


def _spread(answer: Tensor) -> Tensor:
    """Return the standard deviation of each sample, shaped to multiply the batch."""
    return answer.flatten(1).std(1, correction=0).reshape(-1, *[1] * (answer.ndim - 1))


def _detached(prediction: Prediction) -> Prediction:
    return mapped(prediction, lambda part: part.detach())
