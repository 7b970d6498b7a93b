"""Noise: normal, independent wherever it should be, and the same whoever asks, in whatever batch and order."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest
from strategies import Exact, agree, every_process, normal, number, shapes

from sdekit import (
    DDPM,
    EDM,
    EULER,
    VE,
    VP,
    X0,
    BrownianPath,
    Denoised,
    EulerMaruyama,
    Exponential,
    ForwardSDE,
    Keyed,
    LogSNR,
    Method,
    Prediction,
    RectifiedFlow,
    ReverseSDE,
    Times,
    Uniform,
    solve,
)

SEEDS = st.integers(-(2**70), 2**70)


def zeros(*shape, dtype=torch.float64):
    return torch.zeros(*shape, dtype=dtype)


def source(noise, x, equation=None, process=None):
    """Return step -> (t, s) -> noise, for a run of an equation from the batch x."""
    return noise.on((equation or ReverseSDE()).of(Exact(process or VP())), x)


def step_noise(noise, x, k=0):
    return source(noise, x)(k)(0.5, 0.4)


def looks_normal(z):
    """Is a large sample standard normal, by its whole distribution and by its moments, within 5 standard errors?"""
    z = z.flatten().double()
    errors = [z.mean(), (z.var() - 1) / 2**0.5, (z**3).mean() / 15**0.5, ((z**4).mean() - 3) / 96**0.5]
    return kstest(z.numpy(), "norm").pvalue > 1e-3 and all(abs(float(e)) * len(z) ** 0.5 < 5 for e in errors)


def look_independent(rows):
    """Are the rows uncorrelated, themselves and their squares, within 5.5 standard errors?"""
    rows = torch.stack([row.flatten().double() for row in rows])
    own = torch.eye(len(rows), dtype=torch.float64)
    worst = max(float((torch.corrcoef(v) - own).abs().max()) for v in (rows, rows**2))
    return worst * rows.shape[1] ** 0.5 < 5.5


# The law ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, -1, 17, 2**63, 10**30])
def test_noise_is_normal(seed, device):
    x = zeros(64, 2048).to(device)
    for z in (Keyed(seed).start(x), step_noise(Keyed(seed), x, 3), step_noise(BrownianPath(seed), x)):
        assert looks_normal(z.cpu())
    one_each = zeros(100_000, 1)  # one coordinate of many samples, where only the sample's number changes
    assert looks_normal(Keyed(seed).start(one_each))
    assert looks_normal(step_noise(BrownianPath(seed), one_each))


def test_samples_coordinates_steps_draws_and_seeds_are_independent():
    x = zeros(64, 4096)
    one = x[:1]
    assert look_independent(Keyed(3).start(x))
    assert look_independent(Keyed(3).start(x.T).T)
    of_step = source(Keyed(3), one)
    draw = of_step(0)
    assert look_independent([of_step(k)(0.5, 0.4) for k in range(64)])
    assert look_independent([draw(0.5, 0.4) for _ in range(64)])
    assert look_independent([Keyed(seed).start(one) for seed in range(-32, 32)])
    assert look_independent([step_noise(BrownianPath(seed), one) for seed in range(8)])
    assert look_independent(step_noise(BrownianPath(3), x))


def test_start_is_not_the_noise_of_any_step():
    x, noise = zeros(1, 4096), Keyed(0)
    assert look_independent([noise.start(x), *(step_noise(noise, x, k) for k in range(8))])
    path = BrownianPath(0)
    agree(path.start(x), noise.start(x), 0)  # one seed starts in one place, whatever drives the steps
    assert look_independent([path.start(x), step_noise(path, x), step_noise(noise, x)])


# What it depends on -----------------------------------------------------------------------------------------

NOISES = [Keyed(seed=5), BrownianPath(seed=5, depth=8)]


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
def test_a_sample_is_the_same_alone_in_a_batch_and_on_another_rank(noise):
    x, moved = zeros(64, 3, 2), lambda first: dataclasses.replace(noise, first=first)
    for make in (lambda noise, x: noise.start(x), lambda noise, x: step_noise(noise, x, 2)):
        whole = make(noise, x)
        agree(make(moved(17), x[:1]), whole[17:18], 0)
        agree(make(moved(32), x[32:]), whole[32:], 0)
        agree(make(noise, x[:18])[17], whole[17], 0)


@pytest.mark.parametrize("noise", NOISES, ids=lambda noise: type(noise).__name__)
@given(shape=shapes(), seed=SEEDS)
def test_noise_has_the_shape_and_dtype_of_the_state(noise, shape, seed):
    noise = dataclasses.replace(noise, seed=seed)
    rounded = isinstance(noise, BrownianPath)  # a path is computed in float32 but for states in float64
    for make, slack in ((noise.start, 0), (lambda x: step_noise(noise, x), rounded)):
        double = make(zeros(*shape))
        assert double.shape == shape
        agree(make(zeros(shape[0], math.prod(shape[1:]))).reshape(shape), double, 0)
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            z = make(zeros(*shape, dtype=dtype))
            assert z.dtype == dtype
            agree(z, double.to(dtype), slack * (4e-6 + 2 * torch.finfo(dtype).eps))


@pytest.mark.uses_global_rng
def test_the_global_generator_neither_gives_nor_takes():
    x, found = zeros(4, 3), []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        found.append(torch.cat([torch.cat([noise.start(x), step_noise(noise, x)]) for noise in NOISES]))
        assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(*found)


def test_a_split_run_continues_with_step():
    x = zeros(2, 3)
    agree(step_noise(Keyed(1, step=3), x, 2), step_noise(Keyed(1), x, 5), 0)


def test_a_step_can_be_drawn_again():
    of_step = source(Keyed(1), zeros(2, 3))
    first, again = (torch.stack([draw(0.5, 0.4), draw(0.5, 0.4)]) for draw in (of_step(1), of_step(1)))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])


def test_devices_agree(device):
    for noise in NOISES:
        for make in (noise.start, lambda x, noise=noise: step_noise(noise, x)):
            z = make(zeros(3, 4).to(device))
            assert z.device.type == device.type
            agree(z.cpu(), make(zeros(3, 4)), 1e-12)


# The hash, which must never change --------------------------------------------------------------------------

WORD = 2**64


def mix(z):
    """SplitMix64's finaliser, in whole numbers. Reference: Steele, Lea & Flood 2014, figure 16."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def stream(state, count):
    """The first outputs of the generator SplitMix64 from a state."""
    return [mix((state + n * 0x9E3779B97F4A7C15) % WORD) for n in range(1, count + 1)]


def expected(key, sample, count):
    """What is portable: a key is folded part by part, a sample and then a pair of coordinates are hashed into it."""
    state = 0
    for part in key:
        (state,) = stream((state + part * 0x9E3779B97F4A7C15) % WORD, 1)
    sample_state = mix((state + sample * 0x9E3779B97F4A7C15) % WORD)
    normals = []
    for bits in stream(sample_state, (count + 1) // 2):
        radius = math.sqrt(-2 * math.log(((bits >> 32) + 0.5) / 2**32))
        angle = 2 * math.pi * (bits % 2**32) / 2**32
        normals += [radius * math.cos(angle), radius * math.sin(angle)]
    return normals[:count]


def test_splitmix64_gives_its_published_numbers():
    """The first outputs from 1234567, as in the tests of other implementations of the generator."""
    assert stream(1234567, 3) == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seed=SEEDS, first=st.integers(0, 2**40), k=st.integers(0, 10**6))
def test_noise_is_splitmix64_of_seed_sample_step_and_draw(seed, first, k):
    x, noise = zeros(2, 3), Keyed(seed, first)
    draw = source(noise, x)(k)
    drawn = {(seed, 0, 0): noise.start(x), (seed, 1 + k, 0): draw(0.5, 0.4), (seed, 1 + k, 1): draw(0.5, 0.4)}
    for key, z in drawn.items():
        agree(z, [expected(key, first + i, 3) for i in range(2)], 1e-9)


def test_golden_numbers():
    """Stored seeds rest on these: if they change, so does every published sample."""
    x = zeros(2, 2)
    start = [[0.8132465528180046, -1.1293828887962787], [-1.0725817015188042, 0.5946602569341183]]
    step = [[0.2323716918511693, 0.8248249355680513], [0.9547846562696903, 0.7308385077971945]]
    path = [[-1.3063602437745283, 2.4888788751679423], [-0.14498488901126463, 0.940325706854459]]
    agree(Keyed(0).start(x), start, 1e-12)
    agree(step_noise(Keyed(7, first=3), x, 4), step, 1e-12)
    agree(step_noise(BrownianPath(7), x), path, 1e-10)


# Brownian paths ---------------------------------------------------------------------------------------------


def equations():
    return st.just(ForwardSDE()) | st.builds(ReverseSDE, number(0.1, 2))


PARTITIONS = st.lists(st.integers(1, 255), max_size=5, unique=True).map(lambda places: [0, 256, *places])


def partition(process, places):
    """Return falling times at these 256ths of the way in lam / (1 + |lam| / 16), where a path of depth 8 is exact."""
    ends = process.lam(torch.tensor([process.t_max, process.t_min], dtype=torch.float64))
    first, last = (float(lam / (1 + lam.abs() / 16)) for lam in ends)
    way = torch.tensor([first + (last - first) * place / 256 for place in sorted(places)], dtype=torch.float64)
    return process.time(way / (1 - way.abs() / 16)).tolist()


def clock(equation, process, t):
    return float(equation.clock(process, torch.tensor(t, dtype=torch.float64)))


@every_process
def test_increments_add_up(process, draw):
    """The increment over a whole is the sum of those over its parts, whatever the parts: one path for all grids."""
    equation = draw(equations())
    times = partition(process, draw(PARTITIONS))
    of_step = source(BrownianPath(draw(SEEDS), depth=8), zeros(3, 2), equation, process)
    noise = of_step(0)

    def increment(t, s):
        return abs(clock(equation, process, s) - clock(equation, process, t)) ** 0.5 * of_step(0)(t, s)

    if isinstance(equation, ForwardSDE):
        times = times[::-1]
    parts = torch.stack([increment(t, s) for t, s in itertools.pairwise(times)])
    agree(parts.sum(0), increment(times[0], times[-1]), 1e-9)
    agree(noise(times[1], times[0]), -noise(times[0], times[1]), 1e-9)


@pytest.mark.parametrize("process", [VP(), VE(), EDM(), RectifiedFlow()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("equation", [ForwardSDE(), ReverseSDE(), ReverseSDE(0.3)], ids=str)
def test_increments_are_normal_and_independent(process, equation):
    noise = source(BrownianPath(3), zeros(1, 20_000), equation, process)(0)
    times = partition(process, [0, 0.1, 20, 80, 128, 200.5, 256])
    increments = [noise(t, s) for t, s in itertools.pairwise(times)]
    assert all(map(looks_normal, increments))
    assert look_independent(increments)
    overlapping = noise(times[0], times[2]) * increments[0]
    share = abs(clock(equation, process, times[1]) - clock(equation, process, times[0]))
    share /= abs(clock(equation, process, times[2]) - clock(equation, process, times[0]))
    assert abs(float(overlapping.mean()) - share**0.5) < 5 * float(overlapping.std()) / 20_000**0.5


@pytest.mark.parametrize("equation", [ForwardSDE(), ReverseSDE(), ReverseSDE(0.3)], ids=str)
def test_the_law_is_exact_for_one_time_in_every_last_interval(equation):
    """However coarse the tree, and wherever in their intervals the times fall."""
    process, depth = VP(), 3
    last, first = (
        lam / (1 + abs(lam) / 8) for lam in process.lam(torch.tensor([process.t_min, process.t_max])).tolist()
    )
    way = torch.tensor([first + (last - first) * (k + p) / 2**depth for k, p in enumerate((0.9, 0.3, 0.5, 0.1, 0.8))])
    times = process.time(way / (1 - way.abs() / 8)).tolist()
    draw = source(BrownianPath(3, depth=depth), zeros(1, 200_000), equation, process)(0)
    details = [draw(t, s) for t, s in itertools.pairwise(times) for _ in range(2)]
    found = torch.cov(torch.cat(details))
    agree(found, torch.eye(len(details)), 5.5 * (2 / 200_000) ** 0.5)


@given(rows=st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True).map(sorted), width=st.integers(1, 40))
def test_a_sample_in_float32_is_the_same_to_the_last_bit_in_any_batch(rows, width):
    start, stop = rows
    times = Uniform(4)(VP()).tolist()

    def details(first, count):
        path = BrownianPath(3, first, depth=8).on(ReverseSDE().of(Exact(VP())), torch.zeros(count, width))
        return torch.stack([draw(*pair) for pair in itertools.pairwise(times) for draw in [path(0)] for _ in range(2)])

    assert torch.equal(details(0, 40)[:, start:stop], details(start, stop - start))


@given(order=st.permutations(range(5)), seed=SEEDS)
def test_order_of_queries_does_not_matter(order, seed):
    noise, x, pairs = (
        BrownianPath(seed, depth=12),
        zeros(2, 2),
        list(itertools.pairwise(Uniform(5)(VP()).tolist())),
    )
    asked = source(noise, x)
    shuffled = {k: asked(0)(*pairs[k]) for k in order}
    for k, pair in enumerate(pairs):
        assert torch.equal(shuffled[k], source(noise, x)(k)(*pair))


class Point:
    """The exact model of data that is one point: the state's law is Brownian but for scales, so no step errs."""

    def __init__(self, process):
        self.process = process

    def __call__(self, x, t):
        return Prediction(self.process, x, torch.as_tensor(t), torch.full_like(x, 0.3), X0())


@every_process
def test_all_grids_reach_one_end_on_one_path(process, draw):
    method = Method(ReverseSDE(draw(number(0.1, 2))), Exponential(1))
    x, noise = process.prior().at(normal(4, 2)), BrownianPath(draw(SEEDS), depth=8)
    grids = (Uniform(1), Uniform(8), Times(partition(process, draw(PARTITIONS))))
    one, *more = (solve(Point(process), x, method, grid, noise).x for grid in grids)
    for end in more:
        agree(end, one, 1e-8)


@every_process
def test_all_forward_grids_reach_one_end_on_one_path(process, draw):
    of_step = source(BrownianPath(draw(SEEDS), depth=8), zeros(3, 2), ForwardSDE(), process)
    ends = []
    for grid in (Uniform(1), Uniform(8), Times(partition(process, draw(PARTITIONS)))):
        x = normal(3, 2)
        for t, s in itertools.pairwise(grid(process).flip(0)):
            x = process.transition(x, t, s).at(of_step(0)(t, s))
        ends.append(x)
    agree(ends[1], ends[0], 1e-8)
    agree(ends[2], ends[0], 1e-8)


@pytest.mark.parametrize("process", [VP(), EDM()], ids=lambda p: type(p).__name__)
def test_a_deep_path_is_exact_at_any_time(process):
    x, path = process.prior().at(normal(4, 2)), BrownianPath(3)
    one, more = (solve(Point(process), x, DDPM, LogSNR(steps), path).x for steps in (1, 23))
    agree(more, one, 1e-6)


@pytest.mark.parametrize(
    ("equation", "finite", "infinite"),
    [(ReverseSDE(), {"t_max": 1.0}, {"t_min": 0.0}), (ForwardSDE(), {"t_min": 0.0}, {"t_max": 1.0})],
)
def test_a_path_needs_a_finite_clock(equation, finite, infinite):
    """Noise gathers without bound towards the end where the log-SNR is infinite and the equation goes."""
    noise = source(BrownianPath(), zeros(1, 4096), equation, RectifiedFlow(**finite))(0)
    assert looks_normal(noise(1.0 if "t_max" in finite else 0.0, 0.5))
    with pytest.raises(ValueError, match="finite log-SNR"):
        source(BrownianPath(), zeros(2, 3), equation, RectifiedFlow(**infinite))


def test_without_noise_any_path_gives_the_flow_s_run():
    x, grid, none = normal(3, 2), Denoised(Uniform(5)), ReverseSDE(eta=0.0)
    for noise in NOISES:
        run = solve(Exact(VP()), x, Method(none, EulerMaruyama()), grid, noise)
        agree(run.x, solve(Exact(VP()), x, EULER, grid, noise).x)
