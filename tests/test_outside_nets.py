"""Networks of diffusers, as they are: asked and read like ours, sampled, trained, stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

from sdekit import DDPM, VP, ByIndex, ByTime, Denoiser, Discrete, Eps, Keyed, Leading, Method, ReverseSDE, sample, solve
from sdekit.denoiser import Head, MeanAndVariance, Single
from sdekit.nets import Outside
from sdekit.prediction import WithVariance
from sdekit.process import Process
from sdekit.solvers.learned import LearnedVariance
from sdekit.training import Objective
from sdekit.training.checkpoint import load, save

CLASSES = 3
PLAIN = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": (8, 16)}
PLAIN |= {"norm_num_groups": 4, "attention_head_dim": 4}


def unet() -> nn.Module:
    return UNet2DModel(
        **PLAIN,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        num_class_embeds=CLASSES + 1,
    )


def unet_with_context() -> nn.Module:
    return UNet2DConditionModel(
        **PLAIN,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6,
    )


def dit() -> nn.Module:
    """Its answers have twice the channels, as those of the published weights, and its last table row is no label."""
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=1,
        out_channels=2,
        num_layers=2,
        norm_num_groups=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
    )


def outside(build: Callable[[], nn.Module], seed: int = 0) -> Outside:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Outside(build().eval(), None if build is unet_with_context else CLASSES)


def model(build: Callable[[], nn.Module], process: Process = Discrete.linear()) -> Denoiser:
    clock = ByIndex() if isinstance(process, Discrete) else ByTime(1000)
    head: Head = MeanAndVariance() if build is dit else Single()
    return Denoiser(outside(build), process, predicts=Eps(), clock=clock, head=head)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


on_both = pytest.mark.parametrize("build", [unet, dit], ids=["UNet2DModel", "DiTTransformer2DModel"])


@on_both
def test_the_answer_is_that_of_diffusers(build: Callable[[], nn.Module]) -> None:
    """At a node of the table its index, on a process in continuous time the time times 1000; None is no label."""
    x, label, none = normal(2, 1, 8, 8), torch.tensor([0, 2]), torch.tensor([CLASSES] * 2)
    table = Discrete.linear()
    with torch.no_grad():
        for process, t, told in ((table, (17 + 1) / table.steps, 17), (VP(), 0.25, 250.0)):
            ours = model(build, process)
            theirs = ours.net.net
            for given, label_given in (({"label": label}, label), ({}, none)):
                expected = theirs(x, torch.tensor([told, told]), class_labels=label_given).sample
                actual = ours(x, t, **given)
                torch.testing.assert_close(actual.eps, expected[:, :1])
                if build is dit:
                    assert isinstance(actual, WithVariance)
                    torch.testing.assert_close(actual.place, expected[:, 1:])


def test_a_context_is_passed_on() -> None:
    x, context, t = normal(2, 1, 8, 8), normal(2, 3, 6, seed=1), torch.tensor([3.0, 4.0])
    net = outside(unet_with_context)
    with torch.no_grad():
        expected = net.net(x, t, encoder_hidden_states=context).sample
        assert torch.equal(net(x, t, context=context), expected)
        assert not torch.equal(net(x, t, context=context + 1), expected)


def test_they_are_sampled() -> None:
    with torch.no_grad():
        label = torch.tensor([0, 1, 2])
        flow = sample(model(unet, VP()).given(label=label), (3, 1, 8, 8))
        noisy = sample(model(unet).given(label=label), (3, 1, 8, 8), DDPM, Leading(5))
        learned = solve(model(dit), normal(3, 1, 8, 8), Method(ReverseSDE(), LearnedVariance()), Leading(5), Keyed(0)).x
    assert all(x.isfinite().all() and x.shape == (3, 1, 8, 8) for x in (flow, noisy, learned))


@on_both
def test_they_learn(build: Callable[[], nn.Module]) -> None:
    """The loss goes down along its gradient, which reaches their weights."""
    ours = model(build)
    x0, label, generator = normal(8, 1, 8, 8), torch.arange(8) % CLASSES, torch.Generator()
    optimizer = torch.optim.Adam(ours.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss = Objective()(ours, x0, generator.manual_seed(0), label=label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


@on_both
def test_they_are_stored(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    ours = model(build)
    save(tmp_path / "model.safetensors", ours)
    twin = load(tmp_path / "model.safetensors", net=lambda: outside(build, seed=1))
    x, label = normal(2, 1, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(twin(x, 0.5, label=label).x0, ours(x, 0.5, label=label).x0)


class Answers(nn.Module):
    """Returns something fixed, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, t: Tensor, **told: Tensor) -> Any:
        return self.answer


@pytest.mark.parametrize(
    "holder", [lambda y: y, lambda y: (y, None), lambda y: [y], lambda y: {"sample": y, "loss": 0}]
)
def test_answers_are_read_out_of_what_holds_them(holder: Callable[[Tensor], Any]) -> None:
    y = normal(2, 3)
    assert Outside(Answers(holder(y)))(y, torch.zeros(2)) is y


@pytest.mark.parametrize("answer", [(), {}, None, (1.0,), "sample"])
def test_an_answer_must_hold_a_tensor(answer: Any) -> None:
    with pytest.raises(TypeError, match=r"must return a tensor, or hold it first; got (tuple|dict|NoneType|str)"):
        Outside(Answers(answer))(normal(2, 3), torch.zeros(2))
