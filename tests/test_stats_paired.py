"""Paired tests against scipy, against McNemar's, and against every exchange written out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from harness.stats.bootstrap import Weighted
from harness.stats.hypothesis import mcnemar
from harness.stats.paired import Side, bounded, paired_tests
from harness.types import DifferenceTest, Estimate


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def side(*prompts: list[float], weight: float = 1.0) -> Side:
    """Return a side with these values of each prompt, a sample each."""
    return {
        (f"p{g:03d}", k): Weighted(value, weight)
        for g, values in enumerate(prompts)
        for k, value in enumerate(values)
    }


def single(values: np.ndarray) -> Side:
    return side(*([float(v)] for v in values))


def compared(candidate: Side, baseline: Side) -> DifferenceTest:
    return paired_tests(candidate, baseline, rng=rng())


def test_error_is_that_of_the_paired_t_test() -> None:
    a, b = rng(1).normal(size=(2, 40))
    found = compared(single(a), single(b))
    assert found.standard_error == pytest.approx((a - b).std(ddof=1) / np.sqrt(40))
    assert found.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue, abs=0.02)


def test_sign_test_of_one_binary_outcome_a_prompt_is_mcnemars() -> None:
    a, b = (rng(seed).integers(0, 2, size=50).astype(float) for seed in (2, 3))
    found = compared(single(a), single(b))
    assert found.sign_p_value == mcnemar(a, b).p_value
    few = compared(single(np.r_[np.ones(6), np.zeros(34)]), single(np.zeros(40)))
    # Six prompts differ, all one way: 2 of 64 exchanges are as extreme. A t test would say 0.012.
    assert few.p_value == few.sign_p_value == pytest.approx(2 / 64)


def test_every_exchange_written_out() -> None:
    candidate = side([1.0, 2.0, 3.0], [0.5, 0.5], [4.0], [2.0, 1.0])
    baseline = side([1.0, 0.0, 3.0], [2.5, 0.0], [1.0], [1.5, 1.0])
    means = np.array([2 - 4 / 3, 0.5 - 1.25, 3.0, 1.5 - 1.25]) * np.array([3, 2, 1, 2]) / 2
    sums = [abs(np.dot(signs, means)) for signs in product((1, -1), repeat=4)]
    extreme = sum(s >= abs(means.sum()) - 1e-12 for s in sums)
    assert compared(candidate, baseline).p_value == pytest.approx(extreme / 16)


def test_swapping_the_sides_changes_nothing() -> None:
    a, b = side([1.0, 2.0], [0.0], [5.0]), side([1.5, 2.0], [3.0, 3.0], [4.0])
    assert compared(a, b) == compared(b, a)


def test_equal_means_from_unequal_samples_are_no_evidence() -> None:
    # A third is no binary number: its sums over 3 and over 6 samples round in other ways.
    candidate = side(*([0.1, 0.2, 0.3] for _ in range(30)))
    baseline = side(*([0.3, 0.2, 0.1] * 2 for _ in range(30)))
    found = compared(candidate, baseline)
    assert (found.p_value, found.sign_p_value) == (1.0, 1.0)


def test_a_sample_more_on_the_hard_prompts_is_no_difference() -> None:
    """Unequal numbers of samples shift the difference of means, but no prompt's own difference."""
    hard = [[0.0] * 5 if g % 2 else [1.0] for g in range(40)]
    even = [[0.0] if g % 2 else [1.0] for g in range(40)]
    assert compared(side(*hard), side(*even)).p_value == 1.0


def test_prompts_of_one_side_are_left_out() -> None:
    a, b = rng(4).normal(size=(2, 20))
    whole, part = single(a), {k: v for k, v in single(b).items() if k[0] < "p015"}
    assert compared(whole, part) == compared(single(a[:15]), part)


def test_without_a_shared_prompt_nothing_is_said() -> None:
    found = compared({("a", 0): Weighted(1.0)}, {("b", 0): Weighted(1.0)})
    assert (found.standard_error, found.p_value, found.sign_p_value) == (None, None, None)


def test_p_values_reach_below_ten_thousandths() -> None:
    a, b = rng(6).normal(size=(2, 60))
    found = compared(single(a + 3), single(b))
    assert found.p_value is not None
    assert found.p_value <= 2e-5


@pytest.mark.parametrize(
    ("value", "low", "high"), [(0.0, -0.1, 0.1), (1.0, 0.8, 1.0), (-0.5, -0.55, -0.35)]
)
def test_differences_that_all_prompts_have_are_bounded(
    value: float, low: float, high: float
) -> None:
    """Where a tenth of all prompts may have another difference, were it -1 or 1."""
    given = Estimate(value=value, low=value, high=value, n=35, clusters=35, method="m")
    found = bounded(given)
    share = 1 - 0.025 ** (1 / 35)
    assert share == pytest.approx(0.1, abs=1e-3)
    assert found.low == pytest.approx(value - share * (value + 1))
    assert found.high == pytest.approx(value + share * (1 - value))
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)


def test_level_is_kept_where_few_prompts_differ() -> None:
    """Two sides that differ on one prompt in eight, at random: a t test rejects too often there."""
    generator, permuted, t = rng(5), 0, 0
    for _ in range(400):
        moved = generator.choice([-1.0, 0.0, 1.0], p=[1 / 16, 7 / 8, 1 / 16], size=40)
        a, b = np.maximum(moved, 0), np.maximum(-moved, 0)
        found = paired_tests(single(a), single(b), rng=generator)
        assert found.p_value is not None
        permuted += found.p_value <= 0.05
        if moved.any():
            t += abs(moved.mean()) > found.standard_error * stats.t.ppf(0.975, 39)  # type: ignore[operator]
    assert permuted <= 24
    assert t > permuted
