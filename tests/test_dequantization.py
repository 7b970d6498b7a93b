"""Bits per dimension: of a density, and of levels through uniform dequantization."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdekit import RectifiedFlow
from sdekit._value import Value
from sdekit.data import digits
from sdekit.likelihood import Dequantization, bits_per_dim, log_likelihood
from sdekit.oracle import Gaussian

WHOLE = RectifiedFlow(t_min=0.0, t_max=1.0)


def levels(deq: Dequantization, *shape: int) -> Tensor:
    k = torch.randint(deq.levels, shape, generator=torch.Generator().manual_seed(0))
    return deq.low + deq.width * k.to(torch.float64)


def test_bits_of_a_density() -> None:
    # uniform on [0, 1/2]^3 has density 8: minus one bit per dimension
    assert float(bits_per_dim(torch.tensor(math.log(8.0)), 3)) == pytest.approx(-1)


def test_a_width_is_the_distance_of_levels() -> None:
    assert Dequantization(17).width == 1 / 8
    assert Dequantization(256, 0.0, 1.0).width == 1 / 255


@given(st.integers(2, 300), st.floats(-5, 5), st.floats(0.1, 10), st.sampled_from([torch.float32, torch.float64]))
def test_noise_stays_in_its_bin(count: int, low: float, extent: float, dtype: torch.dtype) -> None:
    deq = Dequantization(count, low, low + extent)
    x = levels(deq, 4, 3, 5).to(dtype)
    y = deq.apply(x, seed=3)
    assert y.dtype == dtype
    assert float((y - x).abs().max()) <= deq.width / 2 * (1 + 1e-4) + 1e-6


def test_noise_is_uniform_and_keyed_by_sample() -> None:
    deq = Dequantization(17)
    x = levels(deq, 400, 50)
    u = ((deq.apply(x, seed=1) - x) / deq.width + 0.5).flatten().sort().values
    gap = (u - torch.linspace(0, 1, len(u), dtype=torch.float64)).abs().max()
    assert float(gap) < 1.63 / len(u) ** 0.5  # Kolmogorov-Smirnov at 1 %
    assert torch.equal(deq.apply(x, seed=1)[7:9], deq.apply(x[7:9], seed=1, first=7))
    assert not torch.equal(deq.apply(x, seed=1), deq.apply(x, seed=2))


def test_the_digits_are_on_17_levels() -> None:
    x = digits().train
    assert float((Dequantization(17).apply(x) - x).abs().max()) <= 1 / 16


def test_a_uniform_law_on_the_levels_has_log2_levels_bits() -> None:
    deq = Dequantization(256, 0.0, 1.0)
    log_density = torch.full((5,), -12 * math.log(256 * deq.width))  # uniform over the 256 bins, in 12 dimensions
    torch.testing.assert_close(deq.bits_per_dim(log_density, 12), torch.full((5,), 8.0))


def test_bound_on_a_gaussian_and_how_draws_tighten_it() -> None:
    deq, std = Dequantization(9, -2.0, 2.0), 0.2  # bins wider than the law, so the bound is loose
    x = levels(deq, 200, 1)
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), std)
    x = x[x[:, 0].abs() < 1]
    mass = (normal.cdf(x + deq.width / 2) - normal.cdf(x - deq.width / 2)).log()[:, 0]
    logs = torch.stack([normal.log_prob(deq.apply(x, seed=k))[:, 0] for k in range(400)])
    one, many = (deq.log_mass(logs[:1], 1) - mass).mean(), (deq.log_mass(logs, 1) - mass).mean()
    average = (torch.stack([deq.log_mass(row, 1) for row in logs]) - mass).mean()
    assert float(average) < -0.05  # a lower bound in expectation, with a gap
    assert abs(float(many)) < 0.02  # which the draws close
    assert torch.equal(deq.log_mass(logs[0], 1), deq.log_mass(logs[:1], 1))
    assert float(one) < float(many) + 0.1
    bits = -deq.log_mass(logs, 1) / math.log(2)
    torch.testing.assert_close(deq.bits_per_dim(logs, 1), bits)


def test_bits_of_a_model_from_end_to_end() -> None:
    deq, std = Dequantization(33), 0.5  # fine bins: the bound is the entropy of the law, in units of a bin
    model = Gaussian(WHOLE, torch.zeros(2, 2, dtype=torch.float64), std)
    x = std * torch.randn(64, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (x.clamp(-1, 1) / deq.width).round() * deq.width
    y = deq.apply(x)
    bits = deq.bits_per_dim(log_likelihood(model, y).log_prob, 4)
    truth = deq.bits_per_dim(model.log_prob(y), 4)
    torch.testing.assert_close(bits, truth, rtol=0, atol=1e-5)
    assert float(bits.mean()) == pytest.approx(math.log2(std / deq.width * math.sqrt(2 * math.pi * math.e)), abs=0.15)


def test_goes_to_json_and_back() -> None:
    assert Value.from_json(Dequantization(17, 0.0, 2.0).to_json()) == Dequantization(17, 0.0, 2.0)


@pytest.mark.parametrize(
    "x",
    [
        torch.arange(256.0)[None] / 255,  # stored on [0, 1], not on [-1, 1]
        torch.arange(256.0)[None],  # bytes
        Dequantization(256).apply(torch.ones(1, 50)),  # dequantized before
        torch.full((1, 2), torch.nan),
    ],
    ids=["unit", "bytes", "twice", "nan"],
)
def test_data_off_the_levels_are_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Data must lie on the 256 levels from -1 to 1; .*Set low and high"):
        Dequantization(256).apply(x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1,), "levels must be a whole number of at least 2; got 1"),
        ((2.5,), "levels must be a whole number of at least 2; got 2.5"),
        ((4, 1.0, 1.0), "low < high must hold"),
        ((4, 0.0, math.inf), "low < high must hold and be finite"),
    ],
)
def test_values_are_checked(arguments: tuple[float, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Dequantization(*arguments)  # type: ignore[arg-type]


def test_dims_are_checked() -> None:
    with pytest.raises(ValueError, match="dims must be the number of coordinates of a sample, at least 1; got 0"):
        bits_per_dim(torch.zeros(1), 0)


def test_samples_are_rounded_to_the_nearest_levels():
    images = Dequantization(levels=17)
    x = torch.linspace(-1.3, 1.3, 101, dtype=torch.float64)
    rounded = images.round(x)
    assert torch.equal(images.round(rounded), rounded)
    assert rounded.min() == -1
    assert rounded.max() == 1
    assert ((rounded - x.clamp(-1, 1)).abs() <= images.width / 2 + 1e-12).all()
    assert torch.equal(images.round(images.apply(rounded[None], seed=3)), rounded[None])
