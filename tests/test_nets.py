"""Networks: they answer in the shape of x, rebuild from their config, and say what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from sdekit.nets import MLP, UNet
from sdekit.nets.embedding import Embedding, fourier

Net = MLP | UNet

NETS: dict[str, tuple[Callable[[], Net], tuple[int, ...]]] = {
    "points": (lambda: MLP((2,), hidden=16, depth=2), (2,)),
    "scalars": (lambda: MLP((), hidden=16, depth=1), ()),
    "small images": (lambda: MLP((1, 8, 8), hidden=16, depth=1, classes=10), (1, 8, 8)),
    "U-Net": (lambda: UNet(1, width=8), (1, 8, 8)),
    "one level": (lambda: UNet(3, width=8, levels=1, classes=10), (3, 5, 7)),
    "three levels": (lambda: UNet(2, width=8, levels=3, classes=10), (2, 28, 28)),
}


def awake(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A network whose weights are all random, as if it were trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build()
        for p in net.parameters():
            nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    return net


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=NETS)
def case(request: pytest.FixtureRequest, device: torch.device) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in float64, with x and t that fit."""
    build, shape = NETS[request.param]
    net = awake(build).double().to(device)
    return net, normal(5, *shape).double().to(device), torch.linspace(-4, 1, 5).double().to(device)


def test_a_new_network_answers_zero() -> None:
    for build, shape in NETS.values():
        with torch.random.fork_rng():
            net = build()
        assert net(normal(3, *shape), torch.tensor(0.5)).count_nonzero() == 0


def test_the_answer_has_the_shape_of_x(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    y = net(x, t)
    assert y.shape == x.shape
    assert (y.dtype, y.device) == (x.dtype, x.device)
    assert y.isfinite().all()
    assert net(x[:0], t[:0]).shape == x[:0].shape


def test_samples_do_not_see_each_other(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    alone = torch.cat([net(x[i : i + 1], t[i]) for i in range(len(x))])
    torch.testing.assert_close(net(x, t), alone, rtol=1e-9, atol=1e-9)


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
    label = None if net.classes is None else torch.arange(5, device=x.device)
    net(x, t, label).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_derivatives_in_all_modes_agree(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Forward mode, forward mode under vmap and reverse mode: likelihoods use them all."""
    net, x, t = case
    x, t, v = x[:2], t[:2], normal(3, *x[:2].shape, seed=1).to(x)
    forward = jvp(lambda x: net(x, t), (x,), (v[0],))[1]
    batched = vmap(lambda v: jvp(lambda x: net(x, t), (x,), (v,))[1])(v)
    torch.testing.assert_close(batched[0], forward, rtol=1e-7, atol=1e-9)
    x.requires_grad_()
    (reverse,) = torch.autograd.grad((net(x, t) * v[1]).sum(), x)
    torch.testing.assert_close((reverse * v[0]).sum(), (forward * v[1]).sum(), rtol=1e-7, atol=1e-9)


def test_compiles_to_one_graph(case: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, t = case
    label = None if net.classes is None else torch.arange(5, device=x.device)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, label), net(x, t, label), rtol=1e-9, atol=1e-9)


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
    net = awake(lambda: UNet(1, width=8)).double()
    x = normal(1, 1, 28, 28).double().requires_grad_()
    net(x, torch.tensor(0.5))[0, 0, 0, 0].backward()
    assert x.grad is not None
    assert x.grad[0, 0, -1, -1].abs() > 0


def test_the_default_networks_have_about_a_million_weights() -> None:
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in net.parameters()) for net in (MLP((1, 8, 8)), UNet(1))]
    assert all(5e5 < size < 1.5e6 for size in sizes)


# Embedding --------------------------------------------------------------------------------------------------


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_fourier_is_a_smooth_embedding(s: float, t: float) -> None:
    """|y(s)|^2 = width / 2 for all times, and |y(s) - y(t)| <= |s - t| |w|."""
    y = fourier(torch.tensor([s, t], dtype=torch.float64), width=64)
    assert y.square().sum(dim=1).tolist() == pytest.approx([32, 32])
    assert float((y[0] - y[1]).norm()) <= abs(s - t) * 100 * 32**0.5 + 1e-9


def test_fourier_frequencies() -> None:
    slope = jvp(lambda t: fourier(t, 10), (torch.zeros(()),), (torch.ones(()),))[1]
    w = slope[5:]  # d sin(w t) / dt at 0
    assert (float(w[0]), float(w[-1])) == pytest.approx((0.5, 100.0))
    assert w.log().diff().tolist() == pytest.approx([float(w.log().diff()[0])] * 4, rel=1e-4)


# Errors -----------------------------------------------------------------------------------------------------


def test_arguments_must_be_good() -> None:
    with pytest.raises(ValueError, match=r"even and positive; got 7"):
        Embedding(7)
    with pytest.raises(ValueError, match=r"1 feature and 1 block; got 256 and 0"):
        MLP((2,), depth=0)
    with pytest.raises(ValueError, match=r"1 feature and 1 block; got -1 and 4"):
        MLP((2,), hidden=-1)
    with pytest.raises(ValueError, match=r"must be positive; got \(2, 0\)"):
        MLP((2, 0))
    with pytest.raises(ValueError, match=r"at least 1 class; got 0"):
        Embedding(8, classes=0)
    with pytest.raises(ValueError, match=r"multiple of 8; got 12"):
        UNet(1, width=12)
    with pytest.raises(ValueError, match=r"at least 1 channel and 1 level; got 1 and 0"):
        UNet(1, levels=0)


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


def test_images_must_fit_the_u_net() -> None:
    net = awake(lambda: UNet(1, width=8, levels=3))
    t = torch.tensor(0.5)
    with pytest.raises(ValueError, match=r"multiples of 4 for 3 levels; got \(8, 10\)"):
        net(normal(2, 1, 8, 10), t)
    with pytest.raises(ValueError, match=r"shape \(B, 1, height, width\); got \(2, 3, 8, 8\)"):
        net(normal(2, 3, 8, 8), t)
    with pytest.raises(ValueError, match=r"got \(2, 8, 8\)"):
        net(normal(2, 8, 8), t)
