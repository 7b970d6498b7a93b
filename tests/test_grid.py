"""Grids: strictly falling times with exact ends, in the spacing that their names promise."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st
from strategies import TABLES, Exact, agree, every_process, normal, number

from sdekit import (
    EDM,
    EULER,
    VE,
    VP,
    Denoised,
    Discrete,
    Karras,
    Leading,
    Linspace,
    LogSNR,
    Quadratic,
    RectifiedFlow,
    Times,
    Trailing,
    Uniform,
    solve,
)
from sdekit.grid import Reversed

STEPS = st.integers(1, 60)
RULES = st.one_of(
    *(st.builds(rule, STEPS) for rule in (Uniform, Quadratic, LogSNR)),
    st.builds(Karras, STEPS, number(1, 10)),
)
WHOLE_PATH = RectifiedFlow(t_min=0.0, t_max=1.0)


# Any rule, any process --------------------------------------------------------------------------------------


@every_process
def test_grids_fall_strictly_from_t_max_to_t_min(process, draw):
    grid = draw(RULES)
    times = grid(process)
    assert times.dtype == torch.float64
    assert len(times) == grid.steps + 1
    assert (float(times[0]), float(times[-1])) == (process.t_max, process.t_min)
    assert (torch.diff(times) < 0).all()


@every_process
def test_grids_are_spaced_as_named(process, draw):
    steps, rho = draw(st.integers(2, 60)), draw(number(1, 10))
    karras = Karras(steps, rho)(process)
    for even in (
        Uniform(steps)(process),
        Quadratic(steps)(process).sqrt(),
        process.lam(LogSNR(steps)(process)),
        (process.sigma(karras) / process.alpha(karras)) ** (1 / rho),
    ):
        agree(even, torch.lerp(even[0], even[-1], torch.linspace(0, 1, steps + 1, dtype=torch.float64)), 1e-8)


@every_process
def test_twice_the_steps_halve_every_step(process, draw):
    grid = draw(RULES)
    agree(grid.with_steps(2 * grid.steps)(process)[::2], grid(process), 1e-7)


@every_process
def test_denoised_ends_clean_with_as_many_steps(process, draw):
    grid = Denoised(draw(RULES))
    times, steps = grid(process), grid.grid.steps
    assert len(times) == steps + 1
    assert float(times[-1]) == process.clean
    agree(process.sigma(times[-1]), 0, 0)
    agree(process.alpha(times[-1]), 1, 1e-15)
    if steps > 1:
        agree(times[:-1], grid.grid.with_steps(steps - 1)(process), 0)


@every_process
def test_reversed_is_the_same_times_the_other_way(process, draw):
    grid = draw(RULES)
    agree(Reversed(grid)(process), grid(process).flip(0), 0)
    if grid.steps > 1:
        agree(Reversed(Denoised(grid))(process), grid.with_steps(grid.steps - 1)(process).flip(0), 0)


@given(grid=RULES, steps=STEPS)
def test_with_steps_changes_the_steps_alone(grid, steps):
    assert grid.with_steps(steps) == dataclasses.replace(grid, steps=steps)
    for outer in (Denoised, Reversed):
        assert outer(grid).with_steps(steps) == outer(grid.with_steps(steps))


# Formulas of the literature ---------------------------------------------------------------------------------


@given(steps=st.integers(2, 60), rho=number(1, 10))
def test_karras_is_edm_s(steps, rho):
    """Karras et al. 2022 (arXiv 2206.00364), eq. 5: N levels from sigma_max to sigma_min, then 0."""
    high, low = 80 ** (1 / rho), 0.002 ** (1 / rho)
    expected = [(high + i / (steps - 1) * (low - high)) ** rho for i in range(steps)]
    agree(Denoised(Karras(steps, rho))(EDM()), [*expected, 0.0])


def test_denoised_is_the_grid_itself_where_t_min_is_clean():
    agree(Denoised(Uniform(4))(WHOLE_PATH), [1.0, 0.75, 0.5, 0.25, 0.0])


def test_t_min_up_to_rounding_is_not_the_clean_end():
    """A last time kept in float32 may lie a little before t_min; the run goes there, and does not end by denoising."""
    model, x = Exact(RectifiedFlow(t_min=0.02)), normal(3, 2)
    rounded = float(torch.tensor(0.02, dtype=torch.float32))
    assert rounded < 0.02
    agree(solve(model, x, EULER, Times((0.9, rounded))).x, solve(model, x, EULER, Times((0.9, 0.02))).x, 1e-6)


def test_denoised_appends_to_explicit_times():
    agree(Denoised(Times((1.0, 0.4)))(VP()), [1.0, 0.4, 0.0])
    assert Denoised(Times((1.0, 0.4)))(VE()).tolist() == [1.0, 0.4, -math.inf]


def indices(grid, process):
    """Return the table's steps at which the model is asked."""
    times = grid(process)
    assert float(times[-1]) == 0
    return (times[:-1] * process.steps).round().long() - 1


def place(rule, total, steps, i):
    """Return where the rule's i-th step falls before rounding, as a fraction."""
    if rule is Trailing:
        return total - i * Fraction(total, steps)
    return (total - 1) * (1 - Fraction(i, steps - 1))


SPACINGS = [(Leading, "leading"), (Trailing, "trailing"), (Linspace, "linspace")]


@pytest.mark.parametrize("total", [50, 999, 1000])
@pytest.mark.parametrize(("rule", "name"), SPACINGS)
def test_spacings_are_those_of_diffusers(rule, name, total):
    process, scheduler = Discrete(betas=(0.01,) * total), DDIMScheduler(total, timestep_spacing=name)
    for steps in [*range(2, 41), 48, 50, *range(77, total, 77), total]:
        if steps > total:
            continue
        scheduler.set_timesteps(steps)
        theirs = scheduler.timesteps[:steps]  # "trailing" gives one too many where total / steps rounds down
        ours = indices(rule(steps), process)
        for i in (ours != theirs).nonzero().flatten().tolist():
            # exactly between two steps of the table, their rounding errors decide
            assert rule is not Leading
            assert place(rule, total, steps, i).denominator == 2
            assert abs(ours[i] - theirs[i]) == 1


@pytest.mark.parametrize("steps", [10, 20, 25, 50, 100, 200, 250, 500, 1000])
@pytest.mark.parametrize(("rule", "name"), SPACINGS)
def test_usual_spacings_are_those_of_diffusers_to_the_letter(rule, name, steps):
    scheduler = DDIMScheduler(timestep_spacing=name, steps_offset=0)
    scheduler.set_timesteps(steps)
    assert torch.equal(indices(rule(steps), Discrete.linear()), scheduler.timesteps)


@pytest.mark.parametrize("steps", [10, 30, 50, 999])
def test_offset_of_leading_is_diffusers_steps_offset(steps):
    scheduler = DDIMScheduler(timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(steps)
    assert torch.equal(indices(Leading(steps, offset=1), Discrete.linear()), scheduler.timesteps)


@given(table=TABLES, data=st.data())
def test_all_steps_of_a_table_are_all_its_nodes(table, data):
    for rule in (Leading, Trailing, Linspace):
        assert indices(rule(table.steps), table).tolist() == list(range(table.steps))[::-1]
        steps = data.draw(st.integers(1, table.steps))
        assert len(rule(steps)(table)) == steps + 1


# Errors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [Uniform, Quadratic, LogSNR, Karras, Leading, Trailing, Linspace])
@pytest.mark.parametrize("steps", [0, -1, 2.5, "10", None])
def test_steps_are_a_whole_number(rule, steps):
    with pytest.raises(ValueError, match="steps must be a whole number of at least 1"):
        rule(steps)


@pytest.mark.parametrize(
    ("grid", "process", "message"),
    [
        (Times((0.5, 0.5)), VP(), "strictly falling"),
        (Times((0.4, 0.5)), VP(), "strictly falling"),
        (Times((0.5,)), VP(), "at least two"),
        (Times((1.5, 0.5)), VP(), "A time must lie in"),
        (Times((1.0, math.nan)), VP(), "A time must lie in"),
        (Denoised(Denoised(Uniform(4))), VP(), "strictly falling"),
        (LogSNR(4), WHOLE_PATH, "finite log-SNR"),
        (Karras(4), WHOLE_PATH, "finite log-SNR"),
        (Quadratic(4), VE(t_min=-0.1), "t_min >= 0"),
        (Leading(4), VP(), "needs a Discrete process; got VP"),
        (Trailing(11), Discrete.linear(10), "At most the table's 10 steps"),
        (Leading(10, offset=1), Discrete.linear(10), "A time must lie in"),
    ],
    ids=str,
)
def test_grids_that_do_not_fit_are_refused(grid, process, message):
    with pytest.raises(ValueError, match=message):
        grid(process)


def test_explicit_times_have_the_steps_they_have():
    for grid in (Times((1.0, 0.5, 0.1)), Denoised(Times((1.0, 0.5))), Reversed(Times((1.0, 0.5)))):
        with pytest.raises(ValueError, match="explicit steps"):
            grid.with_steps(7)
