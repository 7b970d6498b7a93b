"""Comparisons: against scipy, against closed forms, and by how often they are wrong when there is nothing to find."""

from __future__ import annotations

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sdekit.study.comparison import Difference, compare, holm, rank, verdicts
from sdekit.study.entry import Entry, Goal, Spent
from sdekit.study.pareto import Point, Reach, front, order, reach

NUMBERS = st.floats(0.01, 100).map(lambda v: round(v, 3))
SEEDS = st.integers(2, 8)


def entry(*values: float, nfe: int = 5, **more: object) -> Entry:
    return Entry(values, nfe, seeds=tuple(range(len(values))), **more)  # type: ignore[arg-type]


@st.composite
def paired(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    n = draw(SEEDS)
    both = [draw(st.lists(NUMBERS, min_size=n, max_size=n)) for _ in range(2)]
    return both[0], both[1]


# One entry ----------------------------------------------------------------------------------------------------


def test_the_interval_is_students() -> None:
    values = (1.0, 1.2, 1.5, 1.1)
    mean = entry(*values).interval
    low, high = stats.t.interval(0.95, 3, statistics.fmean(values), stats.sem(values))
    assert (mean.low, mean.high, mean.n) == (pytest.approx(low), pytest.approx(high), 4)


def test_a_lucky_agreement_of_seeds_does_not_narrow_it() -> None:
    one, three = entry(1.0, stderrs=(0.1,)), entry(1.0, 1.0001, 0.9999, stderrs=(0.1, 0.1, 0.1))
    assert one.interval.high == pytest.approx(1 + 1.959964 * 0.1, rel=1e-6)
    assert three.interval.high == pytest.approx(1 + 1.959964 * 0.1 / math.sqrt(3), rel=1e-3)


def test_without_seeds_or_errors_there_is_no_interval() -> None:
    assert math.isnan(entry(1.0).interval.high)
    assert math.isnan(entry(1.0, stderrs=(math.nan,)).interval.high)
    assert math.isnan(Entry((), errors=("no",)).interval.value)


@given(share=st.floats(0.05, 0.9), seeds=st.integers(2, 6))
def test_seeds_that_share_samples_count_for_less(share: float, seeds: int) -> None:
    """The variance of a mean over subsets, share of m each: sigma^2 / n (share + (1 - share) / S)."""
    values = [1.0 + 0.1 * k for k in range(seeds)]
    apart, together = entry(*values), entry(*values, shared=share)
    wider = math.sqrt((share + (1 - share) / seeds) * seeds / (1 - share))
    assert together.interval.high - together.mean == pytest.approx(wider * (apart.interval.high - apart.mean))


def test_subsets_of_one_set_are_covered() -> None:
    """The mean of n of m normal numbers, over three lots: the interval has the mean of their law 95% of the time."""
    rng, n, m, hits = np.random.default_rng(0), 60, 100, 0
    for _ in range(1000):
        held_out = rng.normal(size=m)
        means = [rng.choice(held_out, n, replace=False).mean() for _ in range(3)]
        mean = entry(*means, shared=n / m, stderrs=(1 / math.sqrt(n),) * 3).interval
        hits += mean.low <= 0 <= mean.high
    assert 940 <= hits <= 1000


# Two entries --------------------------------------------------------------------------------------------------


@given(paired())
def test_without_blocks_it_is_the_paired_t_test(values: tuple[list[float], list[float]]) -> None:
    first, second = values
    deltas = np.subtract(first, second)
    if np.ptp(deltas) < 1e-6 or abs(deltas.mean()) < 1e-6:
        return
    found, wanted = compare(entry(*first), entry(*second)), stats.ttest_rel(first, second)
    interval = wanted.confidence_interval()
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.interval.low, found.interval.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


@given(paired())
def test_sign_flips_are_exact(values: tuple[list[float], list[float]]) -> None:
    deltas = tuple(np.subtract(*values).tolist())
    found = Difference(deltas, 1.0, 1.0)
    wanted = stats.permutation_test((deltas,), np.mean, permutation_type="samples", n_resamples=10**4)
    assert found.flips == pytest.approx(wanted.pvalue)
    assert found.least <= found.flips <= 1


def test_three_seeds_cannot_be_surer_by_signs() -> None:
    assert Difference((1.0, 1.1, 0.9), 0.1, 2).flips == 0.25 == Difference((1.0,) * 3, 0.1, 2).least
    assert math.isnan(Difference((1.0,) * 13, 0.1, 2).flips)


@given(paired())
def test_turning_it_round_turns_the_sign(values: tuple[list[float], list[float]]) -> None:
    a, b = (entry(*v) for v in values)
    assert compare(a, b).value == -compare(b, a).value
    assert compare(a, b).p == pytest.approx(compare(b, a).p)


def test_only_seeds_of_both_count() -> None:
    a = Entry((1.0, 2.0, 4.0), 5, seeds=(0, 1, 2))
    b = Entry((3.0, 1.0, 9.0), 5, seeds=(2, 1, 7))
    assert compare(a, b).deltas == (1.0, 1.0)
    with pytest.raises(ValueError, match=r"a seed with a value in both; got \(0, 1, 2\) and \(9,\)"):
        compare(a, Entry((1.0,), 5, seeds=(9,)))


def test_what_is_the_same_is_no_difference_and_what_is_exact_is_sure() -> None:
    same = compare(entry(0.1 + 0.2, 0.5), entry(0.3, 0.5))
    assert (same.value, same.p) == (0.0, 1.0)
    exact = compare(entry(2.0, 2.0), entry(1.0, 1.0))
    assert (exact.p, exact.interval.low, exact.interval.high) == (0.0, 1.0, 1.0)


def test_one_seed_has_the_errors_of_both() -> None:
    found = compare(entry(2.0, stderrs=(0.3,)), entry(1.0, stderrs=(0.4,)))
    assert found.error == pytest.approx(0.5)
    assert found.p == pytest.approx(2 * stats.norm.sf(2))
    assert compare(entry(2.0), entry(1.0)).p == 1.0


def left_out(x: np.ndarray, blocks: int) -> tuple[float, ...]:
    parts = np.arange(len(x)) % blocks
    return tuple(float(x[parts != k].mean()) for k in range(blocks))


def of_means(samples: list[np.ndarray], blocks: int = 20) -> Entry:
    return entry(*(float(x.mean()) for x in samples), blocks=tuple(left_out(x, blocks) for x in samples))


def test_blocks_give_the_error_of_a_mean() -> None:
    """Where the metric is a mean, the jackknife over blocks of one is the sample variance over n, exactly."""
    rng = np.random.default_rng(1)
    a, b = ([rng.normal(size=40)] for _ in range(2))
    found = compare(of_means(a, 40), of_means(b, 40))
    assert found.error == pytest.approx(stats.sem(a[0] - b[0]))
    assert (found.dof, found.blocks) == (39, 40)


def test_blocks_make_three_seeds_decide() -> None:
    rng = np.random.default_rng(2)
    starts = [rng.normal(size=400) for _ in range(3)]
    a = [x + 0.1 * rng.normal(size=400) for x in starts]
    b = [x + 0.02 + 0.1 * rng.normal(size=400) for x in starts]
    alone = compare(replace(of_means(a), blocks=()), replace(of_means(b), blocks=()))
    blocked = compare(of_means(a), of_means(b))
    assert blocked.p < 1e-4 < alone.p
    assert blocked.dof == 2 + 3 * 19


def test_seeds_that_disagree_count_more_than_blocks() -> None:
    rng = np.random.default_rng(3)
    a, b = ([rng.normal(size=400) * 0.01 + shift * k for k in range(3)] for shift in (0.0, 1.0))
    found = compare(of_means(a), of_means(b))
    assert (found.dof, found.blocks) == (2, 0)
    assert found.p == pytest.approx(stats.ttest_rel(*([x.mean() for x in both] for both in (a, b))).pvalue, rel=1e-6)


def test_blocks_that_differ_in_number_are_not_paired() -> None:
    rng = np.random.default_rng(4)
    a, b = ([rng.normal(size=400) for _ in range(3)] for _ in range(2))
    assert compare(of_means(a, 20), of_means(b, 10)).blocks == 0


# Many entries -------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), max_size=12), st.sampled_from([0.01, 0.05, 0.5]))
def test_holm_steps_down(ps: list[float], level: float) -> None:
    """What is called true is what stepping down from the least p, level / m, level / (m - 1), ..., calls true."""
    steps = [p < level / (len(ps) - k) for k, p in enumerate(sorted(ps))]
    called = next((k for k, below in enumerate(steps) if not below), len(steps))
    assert sum(p < level for p in holm(ps)) == called
    assert all(raw <= adjusted <= 1 for raw, adjusted in zip(ps, holm(ps), strict=True))


def test_nothing_is_found_where_there_is_nothing() -> None:
    """Five methods of one law on common starts, three seeds: any "beats" is wrong, and may come in 5% of studies."""
    rng, wrong = np.random.default_rng(5), 0
    for _ in range(300):
        starts = [rng.normal(size=60) for _ in range(3)]
        entries = {name: of_means([x + rng.normal(size=60) for x in starts], 10) for name in "abcde"}
        wrong += any(place.rank > 1 for place in rank(entries, verdicts(entries)))
    assert wrong <= 26  # of 300 at 5%: 26 or fewer in 99.7%


def test_the_best_is_among_those_that_cannot_be_told_from_the_first() -> None:
    rng, missed = np.random.default_rng(6), 0
    for _ in range(200):
        starts = [rng.normal(size=60) for _ in range(3)]
        shifts = {"best": 0.0, "b": 0.1, "c": 0.2, "d": 3.0}
        entries = {k: of_means([x + s + rng.normal(size=60) for x in starts], 10) for k, s in shifts.items()}
        told = {place.method: place.told for place in rank(entries, verdicts(entries))}
        assert told["d"]
        missed += told["best"]
    assert missed <= 10


def test_places_have_ties_and_failures_none() -> None:
    rng = np.random.default_rng(7)
    starts = [rng.normal(size=400) for _ in range(3)]
    entries = {
        name: of_means([x + shift + 0.1 * rng.normal(size=400) for x in starts])
        for name, shift in {"c": 1.0, "a": 0.0, "b": 0.0005}.items()
    }
    entries["failed"] = replace(entries["a"], values=(0.0, 0.0), errors=("not finite",))
    first, second, last = rank(entries, verdicts(entries))
    assert {first.method, second.method, last.method} == {"a", "b", "c"}
    assert [first.rank, second.rank, last.rank] == [1, 1, 3]
    assert first.behind is None
    assert last.behind is not None
    assert last.behind.gap.value == pytest.approx(1, abs=0.05)
    assert (first.told, second.told, last.told) == (False, False, True)


@given(st.lists(st.lists(NUMBERS, min_size=3, max_size=3), min_size=1, max_size=5))
def test_higher_is_better_is_the_mirror_of_lower(values: list[list[float]]) -> None:
    low = {str(k): entry(*v) for k, v in enumerate(values)}
    high = {name: entry(*(-v for v in e.values)) for name, e in low.items()}
    ours, theirs = rank(low, verdicts(low)), rank(high, verdicts(high, Goal.HIGH), Goal.HIGH)
    assert [(p.method, p.rank) for p in ours] == [(p.method, p.rank) for p in theirs]
    gaps = [
        (p.behind.gap.value, q.behind.gap.value) for p, q in zip(ours, theirs, strict=True) if p.behind and q.behind
    ]
    assert all(a == pytest.approx(b) and a >= 0 for a, b in gaps)


# Quality and cost ---------------------------------------------------------------------------------------------


def test_the_fewest_calls_that_reach_a_quality() -> None:
    line = [entry(v, v, nfe=n, stderrs=(0.1, 0.1)) for n, v in ((5, 2.0), (10, 1.05), (20, 0.95), (40, 0.5))]
    assert reach(line, 1.0) == Reach(calls=20, earliest=10, surely=40)
    assert reach(line, 0.1) == Reach(None, None, None)
    assert reach(line, 1.0, Goal.HIGH) == Reach(calls=5, earliest=5, surely=5)


def test_a_method_may_get_worse_again() -> None:
    assert reach([entry(1.0, nfe=5), entry(3.0, nfe=10)], 2.0).calls == 5


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    entries = {("m", k): Entry((mean,), 5, spent=Spent(seconds)) for k, (mean, seconds) in enumerate(points)}
    found = [(point.entry.mean, point.entry.seconds) for point in front(entries)]
    for mean, seconds in points:
        beaten = any(m <= mean and s <= seconds and (m, s) != (mean, seconds) for m, s in points)
        assert beaten == ((mean, seconds) not in found)
    assert [s for _, s in found] == sorted(s for _, s in found)


def test_the_front_needs_times() -> None:
    assert front({("m", 5): entry(1.0)}) == ()
    timed = Entry((1.0,), 5, spent=Spent(2.0))
    assert front({("m", 5): timed}) == (Point("m", 5, timed),)


@given(st.floats(0.5, 4), st.floats(0.1, 10))
def test_the_order_is_the_slope(q: float, c: float) -> None:
    assert order([entry(c * n**-q, nfe=n) for n in (5, 10, 20)]) == pytest.approx(q)
    assert math.isnan(order([entry(1.0)]))
