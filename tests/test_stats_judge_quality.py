"""Judges with a known weakness must show it, and no other."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from coverage_cells import coverage, needs_benchmarks
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import cohen_kappa_score

from harness.stats.contrasts import prompt_table, rates
from harness.stats.judge_agreement import judge_agreement
from harness.stats.judge_quality import JudgeQuality, judge_quality, length_slope, select
from harness.stats.judged import Judged
from harness.types import Estimate

GAP = float("nan")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def shown(prompts: int, *, judges: int = 1, turns: int = 1, seed: int = 1) -> Judged:
    """Return judgments of m0 against base, both orders, whose preferences are all NaN."""
    generator = rng(seed)
    grid = np.meshgrid(
        np.arange(judges), np.arange(prompts), [1, -1], np.arange(turns), indexing="ij"
    )
    judge, prompt, order, _ = (part.ravel() for part in grid)
    n = len(judge)
    lengths = generator.integers(100, 2000, size=(2, prompts)).astype(float)
    return Judged(
        models=("base", "m0"),
        judges=tuple(f"j{j}" for j in range(judges)),
        prompts=tuple(f"p{p}" for p in range(prompts)),
        candidate=np.ones(n, dtype=np.int32),
        baseline=np.zeros(n, dtype=np.int32),
        judge=judge.astype(np.int32),
        prompt=prompt.astype(np.int32),
        preference=np.full(n, GAP),
        order=order.astype(np.int8),
        candidate_length=lengths[0][prompt],
        baseline_length=lengths[1][prompt],
        item=prompt.astype(np.int32),
        row=np.arange(n, dtype=np.int32),
    )


def decided(judged: Judged, preference: np.ndarray) -> Judged:
    return replace(judged, preference=np.asarray(preference, dtype=float))


def quality(judged: Judged) -> JudgeQuality:
    (found,) = judge_quality(judged)
    return found


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


def alike(one: JudgeQuality, other: JudgeQuality) -> None:
    for name, expected in one:
        if isinstance(expected, Estimate):
            found = getattr(other, name)
            assert found.value == pytest.approx(expected.value)
            assert bounds(found) == pytest.approx(bounds(expected))


def swapped(judged: Judged, rows: np.ndarray) -> Judged:
    """Return the same judgments with candidate and baseline of some rows exchanged."""
    sides = {"candidate": "baseline", "candidate_length": "baseline_length"}
    columns = {}
    for one, other in sides.items():
        a, b = getattr(judged, one), getattr(judged, other)
        columns[one], columns[other] = np.where(rows, b, a), np.where(rows, a, b)
    return replace(
        judged,
        preference=np.where(rows, 1 - judged.preference, judged.preference),
        order=np.where(rows, -judged.order, judged.order),
        **columns,
    )


def noisy(prompts: int = 60, **shape: int) -> Judged:
    some = shown(prompts, **shape)
    drawn = rng(5).choice([0.0, 0.5, 1.0, GAP], size=len(some), p=[0.3, 0.2, 0.45, 0.05])
    return decided(some, drawn)


# Order.


def test_a_judge_that_always_prefers_the_first_answer() -> None:
    some = shown(100)
    first = decided(some, some.order > 0)
    found = quality(first)
    assert found.flip_rate.value == 1.0
    assert found.position_preference.value == 1.0
    assert found.consistency.value == 0.0
    assert rates(prompt_table(first, "base"))["m0"].estimate.value == 0.5
    assert 0.95 < bounds(found.flip_rate)[0] < 1.0  # never certain


def test_a_judge_that_sees_no_order() -> None:
    some = shown(100)
    found = quality(decided(some, rng(2).integers(0, 2, size=100)[some.prompt]))
    assert found.flip_rate.value == 0.0
    assert found.consistency.value == 1.0
    assert found.position_preference.value == 0.5


def test_a_tie_in_one_order_neither_flips_nor_is_consistent() -> None:
    some = decided(shown(3), np.array([1.0, 0.5, 0.5, 0.5, 1.0, 0.0]))
    found = quality(some)
    assert found.flip_rate.value == pytest.approx(1 / 3)
    assert found.consistency.value == pytest.approx(1 / 3)
    assert found.position_preference.value == pytest.approx((0.75 + 0.5 + 1.0) / 3)


def test_who_is_called_the_candidate_changes_nothing() -> None:
    some = noisy()
    found, turned = quality(some), quality(swapped(some, rng(3).random(len(some)) < 0.5))
    alike(found, turned)


def test_order_of_the_rows_changes_nothing() -> None:
    some, order = noisy(turns=2), rng(3).permutation(240)
    alike(quality(select(some, order)), quality(some))


def test_turns_are_matched_by_their_place() -> None:
    # Two turns, each consistent, with opposite winners: no flip.
    some = decided(shown(20, turns=2), np.tile([1.0, 0.0], 40))
    found = quality(some)
    assert (found.flip_rate.value, found.flip_rate.n, found.flip_rate.clusters) == (0.0, 40, 20)


def test_pairs_without_a_counterpart_are_missing() -> None:
    some = decided(shown(10, turns=2), np.ones(40))
    kept = np.ones(40, dtype=bool)
    kept[0] = False  # prompt 0 has one turn in one order: nobody knows which
    kept[4:6] = False  # prompt 1 has one order only
    found = quality(select(some, kept)).flip_rate
    assert (found.n, found.clusters, found.missing) == (16, 8, 4)


def test_invalid_verdicts_make_pairs_missing_and_are_counted() -> None:
    some = shown(10)
    preference = np.ones(20)
    preference[0] = GAP
    found = quality(decided(some, preference))
    assert (found.flip_rate.n, found.flip_rate.missing) == (9, 1)
    assert found.invalid.value == 1 / 20
    assert (found.ties.n, found.ties.missing) == (19, 1)
    assert found.rows == 20


def test_unknown_order_tells_nothing_about_it() -> None:
    some = replace(noisy(), order=np.zeros(120, dtype=np.int8))
    found = quality(some)
    assert (found.flip_rate.value, found.position_preference.value) == (None, None)
    assert found.ties.value is not None


# Length.


def test_a_judge_that_always_prefers_the_longer_answer() -> None:
    some = shown(100)
    found = quality(decided(some, some.candidate_length > some.baseline_length))
    assert found.length_preference.value == 1.0
    assert found.flip_rate.value == 0.0
    assert found.length_slope.value is not None
    assert np.isfinite(found.length_slope.value)


def test_slope_equals_scikit_learns() -> None:
    some = shown(400)
    doublings = np.log2((some.candidate_length + 1) / (some.baseline_length + 1))
    won = rng(2).random(len(some)) < expit(0.7 * doublings)
    found = length_slope(decided(some, won))
    model = LogisticRegression(C=100.0, fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = model.fit(doublings[:, None], won).coef_[0, 0]
    assert found.value == pytest.approx(expected, abs=1e-6)
    low, high = bounds(found)
    assert low < 0.7 < high


def test_slopes_error_is_near_the_refitted_jackknifes() -> None:
    some = decided(shown(40), rng(2).integers(0, 2, size=80))
    found = length_slope(some)
    left_out = np.array([length_slope(select(some, some.prompt != p)).value for p in range(40)])
    error = np.sqrt(39 / 40 * ((left_out - found.value) ** 2).sum())
    low, high = bounds(found)
    assert (high - low) / (2 * 2.0227) == pytest.approx(error, rel=0.06)


def test_unknown_lengths_are_missing_and_equal_ones_tell_nothing() -> None:
    some = decided(shown(4), np.ones(8))
    lengths = np.array([100.0, 100.0, GAP, GAP, 300.0, 300.0, 200.0, 200.0])
    found = quality(replace(some, candidate_length=lengths, baseline_length=np.full(8, 200.0)))
    assert (found.length_preference.n, found.length_preference.missing) == (4, 2)
    assert found.length_preference.value == 0.5


@needs_benchmarks
@pytest.mark.parametrize("name", ["flip rate", "length slope"])
def test_weaknesses_cover(name: str) -> None:
    assert 0.91 <= coverage(name, 50, 2) <= 0.985


# Several judges.


def test_each_judge_has_its_own_figures() -> None:
    some = shown(50, judges=2)
    found = judge_quality(decided(some, (some.order > 0) | (some.judge == 1)))
    assert [(q.judge, q.rows, q.flip_rate.value) for q in found] == [
        ("j0", 100, 1.0),
        ("j1", 100, 0.0),
    ]


def test_judges_agree_by_showing() -> None:
    some = noisy(judges=3, turns=2)
    found = judge_agreement(some, rng=rng())
    assert found is not None
    verdicts = [np.sign(some.preference[some.judge == j] - 0.5) for j in range(3)]
    both = np.isfinite(verdicts[0]) & np.isfinite(verdicts[2])
    pair = next(p for p in found.pairs if (p.first, p.second) == ("j0", "j2"))
    expected = cohen_kappa_score(verdicts[0][both].astype(int), verdicts[2][both].astype(int))
    assert pair.kappa.value == pytest.approx(expected)
    assert pair.agreement.value == pytest.approx((verdicts[0] == verdicts[2])[both].mean())
    assert (pair.kappa.n, pair.kappa.missing) == (both.sum(), (~both).sum())
    low, high = bounds(found.alpha)
    assert low < 0.0 < high  # they are independent


def test_agreement_ignores_who_is_called_the_candidate() -> None:
    some = noisy(judges=2)
    found = judge_agreement(some, rng=rng())
    assert judge_agreement(swapped(some, some.judge == 1), rng=rng()) == found


def test_one_judge_agrees_with_nobody() -> None:
    assert judge_agreement(noisy(), rng=rng()) is None


def test_hundreds_of_thousands_of_judgments_take_seconds() -> None:
    some = noisy(25_000, judges=2, turns=2)
    assert len(some) == 200_000
    started = time.process_time()
    found = judge_quality(some)
    agreement = judge_agreement(some, rng=rng())
    assert time.process_time() - started < 6
    assert agreement is not None
    assert found[0].rows == 100_000
