"""Bits per dimension: of a density, and of levels through uniform, truncated Gaussian and learned dequantization."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdekit import VP, RectifiedFlow
from sdekit._value import Value
from sdekit.data import digits
from sdekit.likelihood import Dequantization, bits_per_dim, log_likelihood
from sdekit.likelihood.dequantization import Levels, TruncatedGaussian, Variational
from sdekit.likelihood.dequantizer import Continuous
from sdekit.oracle import Gaussian, GaussianMixture

WHOLE = RectifiedFlow(t_min=0.0, t_max=1.0)


def levels(deq: Levels, *shape: int) -> Tensor:
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


# Any noise in the bin -------------------------------------------------------------------------------------------------

LAW = GaussianMixture(WHOLE, torch.tensor([[-0.6], [0.1], [0.7]], dtype=torch.float64), 0.15)
"""A law of numbers, so of levels: P(k) is what it has in bin k."""


def exact(deq: Levels, x: Tensor) -> Tensor:
    """Return log P of levels, (B, 1), from the distribution function of the law: shape (B,)."""
    components = torch.distributions.Normal(LAW.means[:, 0], 0.15)
    inside = components.cdf(x + deq.width / 2) - components.cdf(x - deq.width / 2)
    return (inside @ LAW.weights).log()


def sheared(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Noise that leans to one end of the bin, the more the greater x is: u + 1/2 = w^c has density w^(1 - c) / c."""
    w, c = torch.special.ndtr(z), 1.2 + 0.5 * x
    return w**c - 0.5, ((1 - c) * w.log() - c.log()).sum(1)


def optimal(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """The law of a number given its level, for one Gaussian and 9 levels: inverted distribution function."""
    law, width = torch.distributions.Normal(torch.tensor(0.2, dtype=torch.float64), 0.3), 1 / 4
    below, above = law.cdf(x - width / 2), law.cdf(x + width / 2)
    y = law.icdf(below + torch.special.ndtr(z) * (above - below))
    return (y - x) / width, (law.log_prob(y) - (above - below).log() + math.log(width)).sum(1)


NOISES: dict[str, Levels] = {
    "uniform": Dequantization(6),
    "narrow": TruncatedGaussian(6, std=0.35),
    "wide": TruncatedGaussian(6, std=1.5),
    "sheared": Variational(6, flow=sheared),
}


@pytest.fixture(params=NOISES)
def deq(request: pytest.FixtureRequest) -> Levels:
    return NOISES[request.param]


def test_the_bound_holds_and_draws_bring_it_to_the_truth(deq: Levels) -> None:
    x = deq.round(torch.linspace(-1, 1, 6, dtype=torch.float64)).repeat(500)[:, None]
    truth = exact(deq, x)
    means, errors = [], []
    for draws in (1, 4, 16, 64):
        mass = deq.mass(LAW.log_prob, x, draws)
        gap = (mass.log_mass - truth).reshape(500, 6)
        means.append(gap.mean(0))
        errors.append(gap.std(0) / 500**0.5)
        assert bool((means[-1] < 4 * errors[-1]).all())  # a lower bound of every level's mass
        assert bool((mass.average <= mass.log_mass + 1e-12).all())
    for less, more, error in zip(means, means[1:], errors, strict=False):
        assert bool((less < more + 4 * error).all())  # which rises
    assert float(means[0].mean()) < -0.01  # from a gap
    assert float(means[-1].abs().max()) < 0.03  # to next to none


def test_the_stated_error_is_the_spread_of_what_is_stated(deq: Levels) -> None:
    x = deq.round(torch.linspace(-1, 1, 6, dtype=torch.float64)).repeat(300)[:, None]
    mass = deq.mass(LAW.log_prob, x, draws=64, seed=5)
    score = (mass.log_mass - exact(deq, x)) / mass.stderr
    assert 0.9 < float(score.square().mean().sqrt()) < 1.15
    assert 0.91 < float((score.abs() < 1.96).double().mean()) < 0.97
    assert bool(deq.mass(LAW.log_prob, x[:3]).stderr.isnan().all())


@given(st.integers(0, 50), st.sampled_from([2, 4, 8]))
def test_more_draws_never_loosen_it(seed: int, draws: int) -> None:
    """The bound of 2 K draws is at least the mean of the bounds of its halves, draw by draw: log is concave."""
    for deq in NOISES.values():
        x = levels(deq, 5, 1)
        drawn = [deq.draw(x, seed, number=k) for k in range(2 * draws)]
        log_p, log_q = torch.stack([LAW.log_prob(d.x) for d in drawn]), torch.stack([d.log_noise for d in drawn])
        halves = [deq.log_mass(log_p[part], 1, log_q[part]) for part in (slice(draws), slice(draws, None))]
        whole = deq.log_mass(log_p, 1, log_q)
        assert bool((whole >= (halves[0] + halves[1]) / 2 - 1e-12).all())
        assert torch.equal(whole, deq.mass(LAW.log_prob, x, 2 * draws, seed).log_mass)


def test_with_the_best_noise_one_draw_is_exact() -> None:
    law = torch.distributions.Normal(torch.tensor(0.2, dtype=torch.float64), 0.3)
    deq = Variational(9, flow=optimal)
    x = levels(deq, 50, 3)
    truth = (law.cdf(x + 1 / 8) - law.cdf(x - 1 / 8)).log().sum(1)
    for draws in (1, 3):
        mass = deq.mass(lambda y: law.log_prob(y).sum(1), x, draws)
        torch.testing.assert_close(mass.log_mass, truth, rtol=0, atol=1e-9)
    assert float(mass.stderr.max()) < 1e-9
    torch.testing.assert_close(mass.bits_per_dim, -truth / (3 * math.log(2)), rtol=0, atol=1e-9)


@given(st.floats(0.02, 3), st.integers(1, 3))
def test_truncated_noise_is_the_best_for_a_gaussian_on_the_level(std: float, dims: int) -> None:
    deq = TruncatedGaussian(9, std=std)
    law = torch.distributions.Normal(torch.tensor(0.25, dtype=torch.float64), std * deq.width)  # on level 5
    x = torch.full((4, dims), 0.25, dtype=torch.float64)
    mass = deq.mass(lambda y: law.log_prob(y).sum(1), x)
    truth = dims * math.log(math.erf(0.5 / (std * 2**0.5)))
    torch.testing.assert_close(mass.log_mass, torch.full_like(mass.log_mass, truth), rtol=0, atol=1e-8)


@pytest.mark.parametrize("std", [0.05, 0.3, 1.0, 20.0])
def test_truncated_noise_has_its_law(std: float) -> None:
    deq = TruncatedGaussian(17, std=std)
    x = levels(deq, 20_000, 1)
    u = ((deq.apply(x, seed=1) - x) / deq.width).flatten().sort().values
    inside = math.erf(0.5 / (std * 2**0.5))
    law = 0.5 + (torch.special.ndtr(u / std) - 0.5) / inside
    gap = (law - torch.linspace(0, 1, len(u), dtype=torch.float64)).abs().max()
    assert float(gap) < 1.63 / len(u) ** 0.5  # Kolmogorov-Smirnov at 1 %
    z = torch.linspace(-6.5, 6.5, 4001, dtype=torch.float64)[:, None]
    place, log_q = deq.noise(0 * z, z)
    assert float(torch.trapezoid(log_q.exp(), place[:, 0])) == pytest.approx(1, abs=1e-5)
    assert float(place.abs().max()) <= 0.5


def test_models_of_bare_levels_want_the_noise_of_t_min() -> None:
    """At t_min their law is a narrow peak at every level: there P is known to a draw, with uniform noise it is not."""
    places, weights = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None], torch.arange(1.0, 10.0) / 45
    process = VP(t_min=1e-4)
    model = GaussianMixture(process, places, 1e-6, weights)
    deq, alpha = TruncatedGaussian.at(process, 9), process.alpha(process.t_min)

    def log_prob(y: Tensor) -> Tensor:
        return model.log_prob(alpha * y, process.t_min) + alpha.log()

    assert deq.std == pytest.approx(float(process.sigma(process.t_min) / alpha) / deq.width)
    torch.testing.assert_close(deq.mass(log_prob, places).log_mass, weights.double().log(), rtol=0, atol=1e-4)
    assert float((Dequantization(9).mass(log_prob, places).log_mass - weights.log()).min()) < -20


def test_a_flow_learns_from_the_bound() -> None:
    """Its gradient points to the width of the law, from both sides."""
    law = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 0.3 / 4)

    def slope(std: float) -> float:
        s = torch.tensor(std, dtype=torch.float64, requires_grad=True)

        def flow(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            inside = torch.erf(0.5 / (s * 2**0.5))
            u = s * torch.special.ndtri(0.5 + inside * (torch.special.ndtr(z) - 0.5))
            return u, (-((u / s) ** 2) / 2 - (s * inside * (2 * math.pi) ** 0.5).log()).sum(1)

        mass = Variational(9, flow=flow).mass(lambda y: law.log_prob(y).sum(1), torch.zeros(20_000, 1).double())
        return float(torch.autograd.grad(mass.log_mass.mean(), s)[0])

    assert slope(0.2) > 1
    assert abs(slope(0.3)) < 0.05
    assert slope(0.5) < -0.1


def test_noise_is_keyed_by_draw_and_sample(deq: Levels) -> None:
    x = levels(deq, 6, 2, 2)[:, :, 0]
    whole = deq.draw(x, seed=2, number=3)
    assert whole.log_noise.shape == (6,)
    part = deq.draw(x[4:], seed=2, first=4, number=3)
    assert torch.equal(whole.x[4:], part.x)
    assert torch.equal(whole.log_noise[4:], part.log_noise)
    assert not torch.equal(whole.x, deq.draw(x, seed=2, number=4).x)
    assert torch.equal(deq.apply(x, 2), deq.draw(x, 2).x)


def test_continuous_data_count_in_their_own_unit() -> None:
    law, unit = torch.distributions.Normal(torch.tensor(0.1, dtype=torch.float64), 0.5), 2 / 255
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    raw = torch.distributions.Normal((law.mean + 1) / unit, law.stddev / unit).log_prob((x + 1) / unit).sum(1)
    data = Continuous(unit, low=-1.0, high=1.0)
    mass = data.mass(lambda y: law.log_prob(y).sum(1), x, draws=2)
    torch.testing.assert_close(mass.log_mass, raw)
    assert torch.equal(data.apply(x), x)
    assert torch.equal(mass.bits_per_dim, data.bits_per_dim(law.log_prob(x).sum(1), 1))
    assert float(mass.stderr.max()) < 1e-12


@pytest.mark.parametrize(
    "value", [Dequantization(17, 0.0, 2.0), TruncatedGaussian(17, std=0.2), Continuous(0.5, low=0.0)], ids=repr
)
def test_goes_to_json_and_back(value: Value) -> None:
    assert Value.from_json(value.to_json()) == value


def test_a_flow_is_not_stored() -> None:
    with pytest.raises(TypeError, match="A field must be a number"):
        Variational(17, flow=sheared).to_json()


X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda: TruncatedGaussian(9, std=1.0).log_mass(X[:, 0], 2), ValueError, "not uniform.*Pass that of draw"),
        (lambda: TruncatedGaussian(9, std=1.0).stderr(X), ValueError, "not uniform"),
        (lambda: Dequantization(9).log_mass(X, 2, X[0]), ValueError, "log_noise must have the shape of log_prob"),
        (lambda: Dequantization(256, 0, 255).apply(X.to(torch.uint8)), TypeError, "got torch.uint8. Convert them"),
        (lambda: Continuous().apply(X.int()), TypeError, "must be float32 or float64"),
        (lambda: Continuous(low=1.0).apply(X), ValueError, r"lie within \[1, inf\]; 6 of 6 values do not"),
        (lambda: Continuous().apply(X / 0), ValueError, "Data must be finite"),
        (
            lambda: Dequantization(9).mass(lambda y: y, X),
            ValueError,
            r"log_prob must have .* shape \(3,\); got \(3, 2\)",
        ),
        (lambda: Dequantization(9).mass(torch.sum, X, draws=0), ValueError, "draws must be .* at least 1; got 0"),
        (lambda: Variational(9, flow=lambda x, z: (z, z[:, 0])).apply(X), ValueError, r"within \[-1/2, 1/2\]"),
        (lambda: Variational(9, flow=lambda x, z: (z[0], z[:, 0])).apply(X), ValueError, "shaped like the data"),
        (lambda: Variational(9, flow=lambda x, z: (0 * z, z)).apply(X), ValueError, "The flow's log_q must have one"),
        (lambda: TruncatedGaussian(9, std=0.0), ValueError, "std must be positive"),
        (lambda: Continuous(unit=0.0), ValueError, "unit must be positive"),
        (lambda: Continuous(low=1.0, high=0.0), ValueError, "low < high must hold"),
    ],
)
def test_what_cannot_be_is_refused(attempt: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        attempt()


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
