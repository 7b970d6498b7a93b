"""Networks: they answer in the shape of x, rebuild from their config, and say what they refuse."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jvp, vjp, vmap

from sdekit.nets import MLP, DiT, Fourier, Inputs, Sinusoidal, Stage, Transformer, UNet
from sdekit.nets.attention import attend
from sdekit.nets.dit import positions
from sdekit.nets.embedding import Embedding
from sdekit.nets.inputs import sinusoids
from sdekit.nets.patches import patches, to_channels, to_image, to_pixels

Net = MLP | UNet | DiT
TOKENS = Inputs(Fourier(0.3), context=6)
STAGES = (Stage(8), Stage(16, blocks=2, attention=4), Stage(8))
SMALL = Transformer(width=16, depth=2, attention=2, ratio=2.5)

NETS: dict[str, tuple[Callable[[], Net], tuple[int, ...]]] = {
    "points": (lambda: MLP((2,), hidden=16, depth=2), (2,)),
    "scalars": (lambda: MLP((), hidden=16, depth=1), ()),
    "small images": (lambda: MLP((1, 8, 8), hidden=16, depth=1, classes=10), (1, 8, 8)),
    "U-Net": (lambda: UNet(1, STAGES[:2]), (1, 8, 8)),
    "one stage": (lambda: UNet(3, [Stage(8)], classes=10), (3, 5, 7)),
    "three stages": (lambda: UNet(2, STAGES, classes=10), (2, 28, 28)),
    "DiT": (lambda: DiT((3, 4, 6), SMALL, classes=10), (3, 4, 6)),
    "points with tokens": (lambda: MLP((2,), 16, 2, classes=10, heads=2, inputs=TOKENS), (2,)),
    "U-Net with tokens": (
        lambda: UNet(1, [Stage(8, attention=2)], patch=2, classes=10, heads=2, inputs=TOKENS),
        (1, 4, 6),
    ),
    "DiT with tokens": (lambda: DiT((2, 8, 4), SMALL, patch=4, heads=2, inputs=TOKENS), (2, 8, 4)),
}


def awake(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose weights are all random, as if it were trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build()
        for p in net.parameters():
            nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    return net


def condition(net: nn.Module, samples: int = 5, seed: int = 2) -> dict[str, Any]:
    """All that a network can be told besides the time."""
    told: dict[str, Any] = {} if net.classes is None else {"label": torch.arange(samples)}
    if net.context is not None:
        told["context"] = normal(samples, 3, 6, seed=seed)
        told["mask"] = torch.arange(3) < torch.arange(1, samples + 1)[:, None]
    return told


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.fixture(params=NETS)
def case(request: pytest.FixtureRequest, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float64, with x and t that fit."""
    build, shape = NETS[request.param]
    net = awake(build).double().to(device)
    return net, normal(5, *shape).double().to(device), torch.linspace(-4, 1, 5).double().to(device)


def test_a_new_network_answers_zero() -> None:
    """And its blocks, where they keep the number of features, answer with what they were given."""
    for build, shape in NETS.values():
        with torch.random.fork_rng():
            net = build()
        assert net(normal(3, *shape), torch.tensor(0.5), **condition(net, 3)).count_nonzero() == 0
        told = net.told(3, torch.tensor(0.5), *(condition(net, 3).get(k) for k in ("label", "context", "mask")))
        if isinstance(net, UNet):
            middle = [m for m in net.modules() if type(m).__name__ == "_Middle"]
            h = normal(3, net.stages[-1].width, 4, 4)
            assert torch.equal(middle[0](h, told), h)
            continue
        h = normal(3, 16) if isinstance(net, MLP) else normal(3, 6, 16)
        for block in net.blocks if isinstance(net, MLP) else net.layers:
            assert torch.equal(block(h, told), h)


def test_the_answers_have_the_shape_of_x(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    y = net(x, t)
    assert y.shape == (5, net.heads * x.shape[1], *x.shape[2:]) if x.ndim > 1 else y.shape == x.shape
    assert (y.dtype, y.device) == (x.dtype, x.device)
    assert y.isfinite().all()
    assert net(x[:0], t[:0]).shape == y[:0].shape


def test_samples_do_not_see_each_other(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    told = condition(net)
    alone = torch.cat([net(x[i : i + 1], t[i], **{k: v[i : i + 1] for k, v in told.items()}) for i in range(len(x))])
    torch.testing.assert_close(net(x, t, **told), alone, rtol=1e-9, atol=1e-9)


def test_one_time_is_the_time_of_all(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    torch.testing.assert_close(net(x, t[2]), net(x, t[2].expand(len(x))), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(net(x, t[2]), net(x, t[3]))
    assert torch.equal(net(x, t.cpu()), net(x, t))


def test_labels(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    if net.classes is None:
        with pytest.raises(ValueError, match="without classes takes no label"):
            net(x, t, torch.zeros(5, dtype=torch.int64))
        return
    label = torch.tensor([0, 9, 3, 3, 10], device=x.device)
    y, without = net(x, t, label), net(x, t)
    torch.testing.assert_close(y[4], without[4], rtol=1e-9, atol=1e-9)
    assert all(not torch.allclose(a, b) for a, b in zip(y[:4], without[:4], strict=True))
    torch.testing.assert_close(net(x, t, label.int().cpu()), y)


def test_the_config_rebuilds_the_network(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    config = json.loads(json.dumps(net.config))
    twin = awake(lambda: type(net)(**config), seed=1).to(x)
    assert twin.config == net.config
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x, t), net(x, t))


def test_every_weight_learns(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    net(x, t, **condition(net)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_derivatives_in_all_modes_agree(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Finite differences, forward mode, also under vmap, and reverse mode: likelihoods use them all."""
    net, x, t = case
    told = condition(net, 2)
    x, t, v = x[:2], t[:2], normal(3, *x[:2].shape, seed=1).to(x)
    forward = jvp(lambda x: net(x, t, **told), (x,), (v[0],))[1]
    h = 1e-5 * v[0]
    torch.testing.assert_close(forward, (net(x + h, t, **told) - net(x - h, t, **told)) / 2e-5, rtol=1e-5, atol=1e-5)
    batched = vmap(lambda v: jvp(lambda x: net(x, t, **told), (x,), (v,))[1])(v)
    torch.testing.assert_close(batched[0], forward, rtol=1e-7, atol=1e-9)
    u = normal(*forward.shape, seed=2).to(x)
    (reverse,) = vjp(lambda x: net(x, t, **told), x)[1](u)
    torch.testing.assert_close((reverse * v[0]).sum(), (forward * u).sum(), rtol=1e-7, atol=1e-9)


def test_compiles_to_one_graph(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    told = condition(net)
    torch.testing.assert_close(compiled(x, t, **told), net(x, t, **told), rtol=1e-9, atol=1e-9)


def test_weights_in_bfloat16_still_tell_times_apart() -> None:
    net = awake(NETS["points"][0]).bfloat16()
    x = normal(2, 2).bfloat16()
    near = torch.tensor([0.999, 1.0])  # one number in bfloat16
    y = net(x[:1].expand(2, 2), near)
    assert y.dtype == torch.bfloat16
    assert not torch.equal(y[0], y[1])


def test_a_network_can_be_given_weights_from_outside() -> None:
    net = awake(NETS["points"][0])
    x, t = normal(3, 2), torch.tensor(0.1)
    halved = {name: p / 2 for name, p in net.named_parameters()}
    assert not torch.allclose(functional_call(net, halved, (x, t)), net(x, t))


def test_the_u_net_sees_the_whole_image() -> None:
    """Self-attention at the lowest resolution: one corner answers to the other."""
    net = awake(lambda: UNet(1, [Stage(8), Stage(16)])).double()
    x = normal(1, 1, 28, 28).double().requires_grad_()
    net(x, torch.tensor(0.5))[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert x.grad[0, 0, -1, -1].abs() > 0


def test_the_default_networks_have_about_a_million_weights() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in net.parameters()) for net in (MLP((1, 8, 8)), UNet(1))]
    assert all(5e5 < size < 1.5e6 for size in sizes)


# Context ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[name for name in NETS if "tokens" in name])
def hearing(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with a context, in float64, with x and t that fit."""
    build, shape = NETS[request.param]
    return awake(build).double(), normal(5, *shape).double(), torch.linspace(-4, 1, 5).double()


def test_a_context_is_heard(hearing: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Every token counts, in whatever order, unless it is masked; one token may come without its axis."""
    net, x, t = hearing
    context = normal(5, 3, 6)
    y = net(x, t, context=context)
    for i in range(3):
        other = context.clone()
        other[:, i] += 1
        mask = (torch.arange(3) != i).expand(5, 3)
        changed = (net(x, t, context=other) - y).flatten(1).abs().amax(dim=1)
        assert changed.min() > 1e-6
        near(net(x, t, context=other, mask=mask), net(x, t, context=context[:, mask[0]]))
    near(net(x, t, context=context.flip(1)), y)
    near(net(x, t, context=context[:, 0]), net(x, t, context=context[:, :1]))


def test_no_context_is_a_context_all_masked(hearing: tuple[nn.Module, Tensor, Tensor]) -> None:
    """So samples with and without a context fit into one batch."""
    net, x, t = hearing
    context = normal(5, 3, 6)
    some = net(x, t, context=context, mask=torch.tensor([1, 0, 1, 0, 0]).bool()[:, None].expand(5, 3))
    with_context, without = net(x, t, context=context), net(x, t)
    near(some[[0, 2]], with_context[[0, 2]])
    near(some[[1, 3, 4]], without[[1, 3, 4]])
    assert not torch.allclose(with_context, without)


@given(st.integers(1, 3), st.integers(1, 5), st.sampled_from([1, 2, 4]), st.data())
def test_attention_is_torchs(samples: int, keys: int, heads: int, data: st.DataObject) -> None:
    q, k, v = normal(samples, 7, 8), normal(samples, keys, 8, seed=1), normal(samples, keys, 8, seed=2)
    mask = torch.tensor([[True, *data.draw(st.lists(st.booleans(), min_size=keys - 1, max_size=keys - 1))]] * samples)
    apart = [y.unflatten(-1, (heads, -1)).transpose(1, 2) for y in (q, k, v)]
    for given_mask, theirs in ((None, None), (mask, mask[:, None, None])):
        expected = nn.functional.scaled_dot_product_attention(*apart, attn_mask=theirs).transpose(1, 2).flatten(2)
        torch.testing.assert_close(attend(q, k, v, heads, given_mask), expected)


@pytest.mark.parametrize(
    ("context", "mask", "error", "match"),
    [
        (normal(4, 3, 6), None, ValueError, r"shape \(5, L, 6\), or \(5, 6\).*got \(4, 3, 6\)"),
        (normal(5, 3, 7), None, ValueError, r"got \(5, 3, 7\)"),
        (normal(6), None, ValueError, r"got \(6,\)"),
        (None, torch.ones(5, 3).bool(), ValueError, r"without a context"),
        (normal(5, 3, 6), torch.ones(5, 3), TypeError, r"booleans.*got torch.float32"),
        (normal(5, 3, 6), torch.ones(3).bool(), ValueError, r"one entry a token, \(5, 3\); got \(3,\)"),
    ],
)
def test_contexts_must_be_good(context: Tensor, mask: Tensor, error: type[Exception], match: str) -> None:
    net = awake(NETS["points with tokens"][0])
    with pytest.raises(error, match=match):
        net(normal(5, 2), torch.tensor(0.5), context=context, mask=mask)


def test_a_network_without_a_context_takes_none(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    if net.context is None:
        with pytest.raises(ValueError, match=r"takes none; got one. Build it with Inputs\(context=size\)"):
            net(x, t, context=normal(5, 3, 6))


# U-Net and transformer --------------------------------------------------------------------------------------


def test_dropout_is_for_training() -> None:
    net = awake(lambda: UNet(1, [Stage(8), Stage(8, dropout=0.5)]))
    x, t = normal(3, 1, 8, 8), torch.tensor(0.5)
    with torch.random.fork_rng():
        assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


def test_every_state_on_the_way_down_is_joined_on_the_way_up() -> None:
    """As in DDPM: one after every block and every change of resolution, each with its own block."""
    net = awake(lambda: UNet(1, STAGES))
    joined: list[Tensor] = []
    for m in net.modules():
        if type(m).__name__ == "_Level":
            for cell in m.up:
                cell.register_forward_pre_hook(lambda _, args: joined.append(args[0]))
    net(normal(2, 1, 8, 8), torch.tensor(0.5))
    assert [tuple(x.shape[1:]) for x in joined] == [(16, 2, 2)] * 2 + [(32, 4, 4)] * 3 + [(16, 8, 8)] * 2


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_an_image_is_its_patches(rows: int, columns: int, patch: int, channels: int) -> None:
    x = normal(2, channels, rows * patch, columns * patch)
    tokens = patches(x, patch)
    assert tokens.shape == (2, rows * columns, channels * patch**2)
    first = x[:, :, :patch, :patch].flatten(1)
    assert torch.equal(tokens[:, 0], first)
    assert torch.equal(to_image(tokens, patch, rows), x)
    assert torch.equal(to_channels(x, patch), nn.functional.pixel_unshuffle(x, patch))
    assert torch.equal(to_pixels(to_channels(x, patch), patch), x)


def test_without_positions_a_transformer_sees_a_set_of_patches() -> None:
    net = awake(NETS["DiT"][0]).double()
    x, t, order = normal(2, 3, 4, 6).double(), torch.tensor(0.5), torch.tensor([4, 0, 5, 2, 1, 3])

    def shuffled(y: Tensor) -> Tensor:
        return to_image(patches(y, 2)[:, order], 2, 2)

    assert not torch.allclose(net(shuffled(x), t), shuffled(net(x, t)))
    net.position.zero_()
    near(net(shuffled(x), t), shuffled(net(x, t)))


def test_how_alike_two_positions_are_says_how_far_apart_they_lie() -> None:
    y = positions(4, 5, 16).unflatten(0, (4, 5))
    alike = (y[:-1, :-1] * y[1:, 1:]).sum(dim=-1)
    torch.testing.assert_close(alike, alike[:1, :1].expand(3, 4))
    torch.testing.assert_close(y.square().sum(dim=-1), torch.full((4, 5), 8.0))
    assert len({tuple(row.tolist()) for row in y.flatten(0, 1)}) == 20
    assert torch.equal(y[1, :, :8], y[1, :1, :8].expand(5, 8))  # the first half tells the row, the second the column


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
)
def test_the_transformers_are_as_large_as_the_published(width: int, depth: int, heads: int, millions: int) -> None:
    """DiT-S/2, B/2, L/2 and XL/2 on latents of 4 channels, with labels of ImageNet and a learned variance."""
    with torch.device("meta"):
        net = DiT((4, 32, 32), Transformer(width, depth, heads), patch=2, classes=1000, heads=2)
    size = sum(p.numel() for p in net.parameters())
    assert round(size / 1e6) == millions
    if width == 384:  # 32.96 million with the positions, which are fixed
        assert size + net.position.numel() == 32_963_360


# Time -------------------------------------------------------------------------------------------------------


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_sinusoids_are_a_smooth_embedding(s: float, t: float) -> None:
    """|y(s)|^2 = width / 2 for all times, and |y(s) - y(t)| <= |s - t| |w|."""
    y = sinusoids(torch.tensor([s, t], dtype=torch.float64), width=64)
    assert y.square().sum(dim=1).tolist() == pytest.approx([32, 32])
    assert float((y[0] - y[1]).norm()) <= abs(s - t) * 100 * 32**0.5 + 1e-9


@pytest.mark.parametrize(("time", "low", "high"), [(Sinusoidal(), 0.5, 100.0), (Sinusoidal(1e-4, 1), 1e-4, 1.0)])
def test_frequencies(time: Sinusoidal, low: float, high: float) -> None:
    slope = jvp(time.layer(10), (torch.zeros(()),), (torch.ones(()),))[1]
    w = slope[5:]  # d sin(w t) / dt at 0
    assert (float(w[0]), float(w[-1])) == pytest.approx((low, high))
    assert w.log().diff().tolist() == pytest.approx([float(w.log().diff()[0])] * 4, rel=1e-4)


@given(st.floats(-1, 1), st.floats(0.1, 2), st.integers(0, 99))
def test_fourier_features_know_times_by_a_gaussian_kernel(s: float, std: float, seed: int) -> None:
    """y(0) . y(s) / k -> exp(-2 pi^2 std^2 s^2) as their number k grows (Rahimi and Recht, 2007)."""
    k = 4096
    y = Fourier(std, seed).layer(2 * k)(torch.tensor([0, s], dtype=torch.float64))
    assert float(y[0] @ y[1]) / k == pytest.approx(math.exp(-2 * (math.pi * std * s) ** 2), abs=5 * k**-0.5)


def test_fourier_features_are_those_of_the_seed_and_stored() -> None:
    t = torch.linspace(0, 1, 5)
    a, same, other = (Fourier(2.0, seed).layer(8) for seed in (0, 0, 1))
    assert torch.equal(a(t), same(t))
    assert not torch.equal(a(t), other(t))
    other.load_state_dict(a.state_dict())
    assert torch.equal(a(t), other(t))
    assert torch.equal(a.bfloat16()(t), same(t))  # rounded frequencies would be others
    assert a(t.double()).dtype == torch.float64


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Embedding(8, features=7), r"even and positive; got 7"),
        (lambda: Embedding(0), r"must be positive; got 0"),
        (lambda: Embedding(8, classes=0), r"at least 1 class; got 0"),
        (lambda: Sinusoidal(2, 1), r"must rise from above 0; got 2 ... 1"),
        (lambda: Fourier(0), r"must be positive; got std=0"),
        (lambda: Inputs(context=0), r"at least 1 number; got 0"),
        (lambda: MLP((2,), depth=0), r"1 feature and 1 block; got 256 and 0"),
        (lambda: MLP((2,), hidden=-1), r"1 feature and 1 block; got -1 and 4"),
        (lambda: MLP((2, 0)), r"must be positive; got \(2, 0\)"),
        (lambda: MLP((2,), heads=0), r"at least 1 head; got 0"),
        (lambda: MLP((), heads=2), r"axis 1, which a scalar lacks"),
        (lambda: MLP((2,), inputs=3), r"Expected the JSON of a Inputs; got 3"),
        (lambda: Stage(12), r"multiple of 8; got 12"),
        (lambda: Stage(blocks=0), r"at least 1 block; got 0"),
        (lambda: Stage(16, attention=3), r"divide the width 16, or be 0 for none; got 3"),
        (lambda: Stage(dropout=1.0), r"but not, 1; got 1.0"),
        (lambda: UNet(0), r"at least 1 channel, 1 stage and patches of 1 pixel; got channels=0"),
        (lambda: UNet(1, []), r"stages=\[\] and patch=1"),
        (lambda: UNet(1, patch=0), r"patch=0"),
        (lambda: Transformer(width=6), r"multiple of 4.*got 6"),
        (lambda: Transformer(depth=0), r"got 0 and ratio=4.0"),
        (lambda: Transformer(attention=7), r"divide the width 384; got 7"),
        (lambda: DiT((1, 8)), r"channels, height and width, all positive; got \(1, 8\)"),
        (lambda: DiT((1, 8, 6), SMALL, patch=4), r"divide height and width, 8 and 6; got 4"),
    ],
)
def test_arguments_must_be_good(build: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()


@pytest.mark.parametrize(
    ("x", "t", "label", "error", "match"),
    [
        ((4, 3), torch.tensor(0.5), None, ValueError, r"shape \(B, 2\); got \(4, 3\)"),
        ((2,), torch.tensor(0.5), None, ValueError, r"got \(2,\)"),
        ((4, 2), torch.zeros(3), None, ValueError, r"one a sample, \(4,\); got \(3,\)"),
        ((4, 2), torch.zeros(4, 1), None, ValueError, r"got \(4, 1\)"),
        ((4, 2), torch.tensor(1), None, TypeError, r"float32 or float64; got torch.int64"),
        ((4, 2), torch.tensor(1.0).bfloat16(), None, TypeError, r"got torch.bfloat16"),
        ((4, 2), torch.tensor(0.5), torch.zeros(4), TypeError, r"int32 or int64; got torch.float32"),
        ((4, 2), torch.tensor(0.5), torch.tensor([1, 2]), ValueError, r"one a sample, \(4,\); got \(2,\)"),
        ((4, 2), torch.tensor(0.5), torch.tensor([0, 1, 2, 4]), ValueError, r"0 ... 2, or 3.*got 0 ... 4"),
        ((4, 2), torch.tensor(0.5), torch.tensor([0, 1, 2, -1]), ValueError, r"got -1 ... 2"),
    ],
)
def test_calls_must_be_good(
    x: tuple[int, ...], t: Tensor, label: Tensor | None, error: type[Exception], match: str
) -> None:
    net = awake(lambda: MLP((2,), hidden=8, depth=1, classes=3))
    with pytest.raises(error, match=match):
        net(normal(*x), t, label)


def test_images_must_fit() -> None:
    net = awake(lambda: UNet(1, STAGES))
    t = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"multiples of 4 for patches of 1 and 3 stages; got \(8, 10\)"):
        net(normal(2, 1, 8, 10), t)
    with pytest.raises(ValueError, match=r"shape \(B, 1, height, width\); got \(2, 3, 8, 8\)"):
        net(normal(2, 3, 8, 8), t)
    with pytest.raises(ValueError, match=r"got \(2, 8, 8\)"):
        net(normal(2, 8, 8), t)
    with pytest.raises(ValueError, match=r"shape \(B, 3, 4, 6\); got \(2, 3, 6, 4\)"):
        awake(NETS["DiT"][0])(normal(2, 3, 6, 4), t)
