"""Clustered errors against textbook formulas, their own algebra and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from coverage_cells import coverage, needs_benchmarks
from scipy.stats import t, ttest_1samp, ttest_rel

from harness.errors import InputError
from harness.stats import bootstrap
from harness.stats.bootstrap import (
    FEW_CLUSTERS,
    cluster_mean,
    expanded_tail,
    interval_of_sums,
    percentile_interval,
    ratio,
)
from harness.stats.clustered import MeanTest, clustered_mean, clustered_share
from harness.stats.contrasts import PromptTable, contrasts, prompt_table, rates
from harness.stats.judged import Judged
from harness.types import Estimate


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def judged(rows: list[tuple[str, str, str, float]]) -> Judged:
    """Return judgments from rows of candidate, baseline, prompt and preference."""
    models = sorted({name for row in rows for name in row[:2]})
    prompts = sorted({row[2] for row in rows})
    n = len(rows)
    codes = [
        np.array([names.index(row[place]) for row in rows], dtype=np.int32)
        for names, place in ((models, 0), (models, 1), (prompts, 2))
    ]
    return Judged(
        models=tuple(models),
        judges=("judge",),
        prompts=tuple(prompts),
        candidate=codes[0],
        baseline=codes[1],
        judge=np.zeros(n, dtype=np.int32),
        prompt=codes[2],
        preference=np.array([row[3] for row in rows]),
        order=np.zeros(n, dtype=np.int8),
        candidate_length=np.full(n, np.nan),
        baseline_length=np.full(n, np.nan),
        item=np.full(n, -1, dtype=np.int32),
        row=np.arange(n, dtype=np.int32),
    )


def figures(tested: MeanTest) -> tuple[float, float, float, float]:
    found = tested.estimate
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    assert tested.p_value is not None
    return found.value, found.low, found.high, tested.p_value


# Intervals from a bootstrap.


def test_expanded_tail_equals_hesterbergs_table() -> None:
    # Hesterberg (2015), table 4: alpha'/2 for alpha/2 = 0.025 by n.
    published = {5: 0.0010, 10: 0.0086, 20: 0.0159, 40: 0.0203, 100: 0.0231}
    for n, tail in published.items():
        assert expanded_tail(0.95, n) == pytest.approx(tail, abs=1.01e-4)


def test_interval_without_a_number_of_clusters_is_the_plain_one() -> None:
    replicates = np.arange(1001.0)
    assert percentile_interval(replicates, 0.95) == pytest.approx((25, 975))
    low, high = percentile_interval(replicates, 0.95, 10)
    assert (low, high) == pytest.approx((8.6, 991.4), abs=0.2)


def test_few_clusters_get_a_t_interval() -> None:
    values = [0.1, 0.7, 0.4, 0.6]
    found = cluster_mean(values, list("abcd"), rng=rng())
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert f"fewer than {FEW_CLUSTERS} clusters" in found.method


def test_interval_of_few_clusters_stays_within_what_is_possible() -> None:
    found = cluster_mean([1.0, 0.0, 1.0], list("abc"), rng=rng(), within=(0.0, 1.0))
    assert (found.low, found.high) == (0.0, 1.0)


def test_many_clusters_get_the_same_interval_in_closed_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values, units = rng(1).random(600), np.arange(600) // 2
    drawn = cluster_mean(values, units, rng=rng(), resamples=4000)
    monkeypatch.setattr(bootstrap, "MANY_CLUSTERS", 200)
    closed = cluster_mean(values, units, rng=rng())
    assert "more than 200 clusters" in closed.method
    assert (closed.low, closed.high) == pytest.approx((drawn.low, drawn.high), abs=2e-3)
    error = clustered_mean(values, units)
    assert (closed.low, closed.high) == pytest.approx((error.estimate.low, error.estimate.high))


def test_samples_without_a_value_are_left_out_and_counted() -> None:
    empty = Estimate(value=None, n=9, clusters=9, method="ratio")
    weights = np.array([1.0, *[0.0] * 8])
    sums = np.stack([weights, weights], axis=1)

    def quotient(sums: bootstrap.FloatArray) -> bootstrap.FloatArray:
        with np.errstate(invalid="ignore"):
            return ratio(sums)

    found = interval_of_sums(empty, sums, quotient, rng(), 1000)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    assert "resamples without a value left out" in found.method


@needs_benchmarks
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("name", ["win rate", "win rate of 0.7", "mean of verdicts, bootstrap"])
def test_win_rates_cover(name: str, size: int) -> None:
    assert 0.91 <= coverage(name, 50, size) <= 0.985


@needs_benchmarks
@pytest.mark.parametrize("name", ["paired difference, bootstrap", "paired difference, clustered t"])
def test_paired_differences_cover(name: str) -> None:
    assert 0.91 <= coverage(name, 50, 5) <= 0.985


# Means.


def test_mean_of_single_observations_is_the_textbook_t_test() -> None:
    values = rng(1).normal(0.3, 1, size=40)
    found = clustered_mean(values, np.arange(40), null=0.1)
    expected = ttest_1samp(values, 0.1)
    interval = expected.confidence_interval(0.95)
    assert found.statistic == pytest.approx(expected.statistic)
    assert figures(found) == pytest.approx(
        (values.mean(), interval.low, interval.high, expected.pvalue)
    )


def test_equal_clusters_are_the_t_test_of_their_means() -> None:
    values = rng(1).normal(size=60)
    found = clustered_mean(values, np.repeat(np.arange(12), 5))
    expected = ttest_1samp(values.reshape(12, 5).mean(axis=1), 0)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.degrees == 11


def test_error_is_the_jackknifes() -> None:
    values, units = rng(1).normal(size=20), np.array([0] * 9 + [1] * 5 + [2] * 3 + [3] * 3)
    found = clustered_mean(values, units)
    left_out = np.array([values[units != g].mean() for g in range(4)])
    expected = np.sqrt(3 / 4 * ((left_out - values.mean()) ** 2).sum())
    assert found.standard_error == pytest.approx(expected)


def test_weights_count_as_repetitions_do() -> None:
    values, units = np.array([1.0, 0.0, 0.5, 0.2]), np.array([0, 0, 1, 2])
    weighted = clustered_mean(values, units, weights=np.array([2.0, 1.0, 1.0, 3.0]))
    repeated = clustered_mean(np.repeat(values, [2, 1, 1, 3]), np.repeat(units, [2, 1, 1, 3]))
    assert figures(weighted) == pytest.approx(figures(repeated))


def test_missing_values_are_left_out_and_counted() -> None:
    found = clustered_mean(np.array([1.0, np.nan, 0.0, 0.5]), list("abcd"), missing=2)
    assert (found.estimate.n, found.estimate.clusters, found.estimate.missing) == (3, 3, 3)
    assert found.estimate.value == 0.5


@pytest.mark.parametrize(("values", "value"), [([], None), ([1.0, 0.0], 0.5)])
def test_one_cluster_has_no_error_and_no_test(values: list[float], value: float | None) -> None:
    found = clustered_mean(np.array(values), ["a"] * len(values))
    assert (found.estimate.value, found.estimate.low, found.estimate.high) == (value, None, None)
    assert (found.standard_error, found.statistic, found.p_value) == (None, None, None)


def test_winning_throughout_is_neither_certain_nor_without_evidence() -> None:
    found = clustered_share(np.ones(10), np.arange(10))
    assert found.estimate.high == 1.0
    quantile = t.ppf(0.975, 9)
    assert found.estimate.low == pytest.approx(1 / (1 + quantile**2 / 10))
    assert found.statistic == pytest.approx(np.sqrt(10))
    assert 2 * 0.5**10 < (found.p_value or 0) < 0.02


def test_share_of_many_single_verdicts_has_wilsons_interval() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3: 81 of 263.
    found = clustered_share(np.repeat([1.0, 0.0], [81, 182]), np.arange(263)).estimate
    assert (found.low, found.high) == pytest.approx((0.2553, 0.3662), abs=1e-3)


@pytest.mark.parametrize("wins", range(0, 21))
def test_interval_of_a_share_leaves_out_a_half_where_p_says_so(wins: int) -> None:
    found = clustered_share(np.repeat([1.0, 0.0], [wins, 20 - wins]), np.arange(20))
    value, low, high, p_value = figures(found)
    assert 0 <= low <= value <= high <= 1
    assert low < high
    assert (low <= 0.5 <= high) == (p_value >= 0.05)


def test_tied_throughout_is_no_evidence() -> None:
    found = clustered_share(np.full(10, 0.5), np.arange(10))
    assert (found.statistic, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("value", [0.5, 0.1, 1 / 3])
def test_nothing_but_the_null_is_no_evidence(value: float) -> None:
    found = clustered_mean(np.full(30, value), np.arange(30) // 3, null=value)
    assert found.p_value == 1.0


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 values but 1 clusters"):
        clustered_mean(np.array([1.0, 2.0]), ["a"])


# Contrasts.


def table(values: np.ndarray) -> PromptTable:
    return PromptTable.of_values(tuple(f"m{k}" for k in range(values.shape[1])), values)


def test_contrasts_are_paired_t_tests() -> None:
    values = rng(1).random((40, 4))
    found = contrasts(table(values))
    assert [(c.first, c.second) for c in found][:4] == [
        ("m0", "m1"),
        ("m0", "m2"),
        ("m0", "m3"),
        ("m1", "m2"),
    ]
    for c in found:
        sides = [values[:, int(name[1])] for name in (c.first, c.second)]
        expected = ttest_rel(*sides)
        interval = expected.confidence_interval(0.95)
        assert figures(c.tested) == pytest.approx(
            (sides[0].mean() - sides[1].mean(), interval.low, interval.high, expected.pvalue)
        )


def test_contrasts_use_the_prompts_that_both_have() -> None:
    values = rng(1).random((30, 3))
    values[:5, 0] = values[3:9, 1] = np.nan
    found = {(c.first, c.second): c.tested for c in contrasts(table(values))}
    both = np.isfinite(values[:, 0]) & np.isfinite(values[:, 1])
    expected = ttest_rel(values[both, 0], values[both, 1])
    assert found["m0", "m1"].p_value == pytest.approx(expected.pvalue)
    estimate = found["m0", "m1"].estimate
    assert (estimate.n, estimate.clusters) == (21, 21)
    assert estimate.missing == 9


def test_candidates_with_the_same_outcomes_differ_by_exactly_nothing() -> None:
    column = rng(1).random(25)
    (found,) = contrasts(table(np.stack([column, column], axis=1)))
    assert figures(found.tested) == (0.0, 0.0, 0.0, 1.0)


def test_candidates_without_a_shared_prompt_have_no_difference() -> None:
    (found,) = contrasts(table(np.array([[1.0, np.nan], [np.nan, 0.0]])))
    assert (found.tested.estimate.value, found.tested.p_value) == (None, None)
    assert (found.tested.estimate.n, found.tested.estimate.missing) == (0, 2)


def test_table_turns_rows_of_the_baseline_round() -> None:
    rows = [
        ("a", "base", "p0", 1.0),
        ("base", "a", "p0", 1.0),
        ("a", "base", "p1", 0.5),
        ("b", "base", "p1", float("nan")),
        ("b", "base", "p0", 0.0),
        ("a", "b", "p0", 1.0),
    ]
    found = prompt_table(judged(rows), "base")
    assert found.names == ("a", "b")
    assert found.sums.tolist() == [[1.0, 0.0], [0.5, 0.0]]
    assert found.counts.tolist() == [[2.0, 1.0], [1.0, 0.0]]
    assert found.missing.tolist() == [[0, 0], [0, 1]]
    (difference,) = contrasts(found)
    assert (difference.tested.estimate.clusters, difference.tested.estimate.missing) == (1, 1)


def test_rates_of_a_table_are_the_win_rates() -> None:
    prompts = [f"p{i}" for i in range(30)]
    drawn = rng(1).choice([0.0, 0.5, 1.0], size=(30, 2))
    rows = [("a", "base", p, v) for p, pair in zip(prompts, drawn, strict=True) for v in pair]
    found = rates(prompt_table(judged(rows), "base"))["a"]
    direct = clustered_share(drawn.ravel(), np.repeat(prompts, 2))
    assert figures(found) == pytest.approx(figures(direct))


def test_unknown_baselines_are_refused() -> None:
    some = judged([("a", "b", "p", 1.0)])
    with pytest.raises(InputError, match="unknown model 'base'"):
        prompt_table(some, "base")
