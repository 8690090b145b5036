"""Tests of "no difference" against scipy, by hand, and Holm's correction."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from coverage_cells import needs_benchmarks, simulations
from scipy.stats import binomtest
from scipy.stats import permutation_test as scipy_permutation

from harness.stats import hypothesis
from harness.stats.clustered import clustered_mean
from harness.stats.hypothesis import holm, mcnemar, permutation_test, sign_test


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def outcomes(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    sizes = [both, first, second, neither]
    return np.repeat([1.0, 1.0, 0.0, 0.0], sizes), np.repeat([1.0, 0.0, 1.0, 0.0], sizes)


def test_mcnemar_equals_published_example() -> None:
    # Fagerland, Lydersen and Laake (2013), table 1: 1 and 7 discordant pairs of 21, p = 0.0703.
    found = mcnemar(*outcomes(1, 1, 7, 12))
    assert found.p_value == pytest.approx(0.0703, abs=5e-5)
    assert (found.statistic, found.n, found.ties) == (1, 21, 13)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 3), (4, 3), (0, 6), (30, 51)])
def test_mcnemar_is_a_fair_coins_binomial_test(first: int, second: int) -> None:
    found = mcnemar(*outcomes(5, first, second, 5)).p_value
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert found == pytest.approx(expected)


def test_mcnemar_takes_no_degrees() -> None:
    with pytest.raises(ValueError, match="0 and 1 only"):
        mcnemar(np.array([0.5, 1.0]), np.array([0.0, 1.0]))


def test_sign_test_drops_ties_and_says_so() -> None:
    differences = np.array([0.5] * 9 + [-0.5] * 2 + [0.0] * 20 + [np.nan] * 4)
    found = sign_test(differences)
    assert found.p_value == pytest.approx(binomtest(9, 11).pvalue)
    assert (found.statistic, found.n, found.ties, found.missing) == (9, 31, 20, 4)
    assert "ties dropped" in found.method


def test_sign_test_counts_clusters_not_observations() -> None:
    differences = np.array([0.5, 0.5, 0.5, -0.5, -0.5, 0.5])
    found = sign_test(differences, ["a", "a", "a", "b", "c", "c"])
    assert (found.statistic, found.clusters, found.ties) == (1, 3, 1)
    assert found.p_value == 1.0


def test_rounding_makes_no_sign() -> None:
    found = sign_test(np.array([0.1, 0.2, -0.3, 0.7]), ["a", "a", "a", "b"])
    assert found.ties == 1


def test_few_clusters_are_enumerated() -> None:
    sums = rng(1).normal(0.4, 1, size=9)
    found = permutation_test(sums, rng=rng())
    signs = np.array(list(itertools.product([-1, 1], repeat=9)))
    assert found.p_value == pytest.approx((abs(signs @ sums) >= abs(sums.sum()) - 1e-12).mean())
    assert "all 512 enumerated" in found.method
    assert found.statistic == pytest.approx(sums.mean())


def test_permutations_agree_with_scipy() -> None:
    first, second = rng(1).normal(size=(2, 40))
    first += 0.35
    found = permutation_test(first - second, rng=rng(2))
    expected = scipy_permutation(
        (first, second),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=9999,
        rng=rng(3),
    )
    assert found.p_value == pytest.approx(expected.pvalue, abs=0.01)


def test_clusters_change_sign_as_one() -> None:
    values = rng(1).normal(0.2, 1, size=12)
    often = permutation_test(np.repeat(values, 5), np.repeat(np.arange(12), 5), rng=rng())
    assert often.p_value == permutation_test(values, rng=rng()).p_value
    assert (often.n, often.clusters) == (60, 12)


def test_p_is_never_zero() -> None:
    found = permutation_test(np.ones(50), rng=rng(), permutations=999)
    assert found.p_value == pytest.approx(1 / 1000)


def test_many_clusters_are_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    values = rng(1).normal(0.1, 1, size=400)
    drawn = permutation_test(values, rng=rng()).p_value
    monkeypatch.setattr(hypothesis, "MANY_CLUSTERS", 100)
    limit = permutation_test(values, rng=rng())
    assert limit.p_value == pytest.approx(drawn, abs=0.015)
    assert limit.p_value == pytest.approx(clustered_mean(values, np.arange(400)).p_value, abs=0.01)
    assert "normal limit" in limit.method


def test_swapping_the_sides_changes_no_p_value() -> None:
    values = rng(1).choice([-0.5, 0.0, 0.5], size=30, p=[0.2, 0.3, 0.5])
    assert sign_test(values).p_value == sign_test(-values).p_value
    there, back = (permutation_test(v, rng=rng(2)).p_value for v in (values, -values))
    assert there == back


def test_no_data_are_no_evidence_either_way() -> None:
    nothing = np.array([np.nan])
    for found in (
        sign_test(nothing),
        permutation_test(nothing, rng=rng()),
        mcnemar(nothing, nothing),
    ):
        assert (found.p_value, found.statistic, found.n, found.missing) == (None, None, 0, 1)


def test_nothing_but_ties_is_no_difference() -> None:
    ties = np.zeros(5)
    assert sign_test(ties).p_value == 1.0
    assert permutation_test(ties, rng=rng()).p_value == 1.0


@needs_benchmarks
@pytest.mark.parametrize("name", ["sign test", "permutation test", "McNemar's test"])
def test_level_is_kept(name: str) -> None:
    found = simulations()
    row = next(row for row in found.TESTS if row.name == name)
    # 1,500 evaluations: a test of exactly 5 % stays below 6.7 % in 99.9 % of seeds.
    assert found.error(row, found.Shape(50, 2), 1500) <= 0.067


# Holm.


def test_holm_equals_worked_example() -> None:
    # By hand: 0.01 x 4, then the larger of that and 0.02 x 3, 0.03 x 2 is smaller, 0.04 x 1.
    found = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert [entry.name for entry in found] == ["d", "a", "c", "b"]
    assert [entry.adjusted for entry in found] == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert [entry.raw for entry in found] == [0.04, 0.01, 0.03, 0.02]


def test_holm_never_exceeds_one_and_keeps_the_order() -> None:
    raw = dict(zip("abcdefgh", rng(1).random(8).tolist(), strict=True))
    found = {entry.name: entry.adjusted for entry in holm(raw)}
    ordered = [found[name] for name in sorted(raw, key=raw.__getitem__)]
    assert ordered == sorted(ordered)  # type: ignore[type-var]
    assert max(ordered) <= 1.0  # type: ignore[type-var]


def test_tests_without_data_are_not_part_of_the_family() -> None:
    found = holm({"a": 0.02, "b": None})
    assert [(entry.adjusted, entry.family) for entry in found] == [(0.02, 1), (None, 1)]


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(ValueError, match=r"'a' is 1\.2"):
        holm({"a": 1.2})
