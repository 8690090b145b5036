"""Agreement coefficients against published examples, scikit-learn and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from coverage_cells import coverage, needs_benchmarks
from scipy.stats import t
from sklearn.metrics import cohen_kappa_score

from harness.stats import bootstrap
from harness.stats.agreement import Weighting, cohen_kappa, human_agreement, raw_agreement
from harness.stats.krippendorff import Scale, krippendorff_alpha
from harness.types import Estimate

GAP = float("nan")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def raters(n: int, seed: int = 1) -> np.ndarray:
    """Return (n, 3) ratings 0 to 2 that agree more often than by chance."""
    generator = rng(seed)
    truth = generator.integers(0, 3, size=(n, 1))
    return np.where(generator.random((n, 3)) < 0.6, truth, generator.integers(0, 3, (n, 3))) * 1.0


def bounds(estimate: Estimate) -> tuple[float, float]:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


# Cohen's kappa.


def test_kappa_equals_worked_example() -> None:
    # 50 units: both yes 20, only the first 5, only the second 10, both no 15. 0.7 observed, 0.5
    # expected.
    first = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    second = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 5, 10, 15])
    found = cohen_kappa(first, second, np.arange(50), rng=rng())
    assert found.value == pytest.approx(0.4)
    assert raw_agreement(first, second, np.arange(50)).value == pytest.approx(0.7)


@pytest.mark.parametrize("weighting", list(Weighting))
def test_kappa_equals_scikit_learns(weighting: Weighting) -> None:
    first, second, _ = raters(200).T
    found = cohen_kappa(first, second, np.arange(200), rng=rng(), weighting=weighting)
    weights = None if weighting is Weighting.NOMINAL else weighting.value
    assert found.value == pytest.approx(cohen_kappa_score(first, second, weights=weights))


def test_weights_follow_the_values_of_the_categories() -> None:
    first, second = np.array([0.0, 0.0, 4.0, 1.0]), np.array([0.0, 1.0, 4.0, 4.0])
    found = cohen_kappa(first, second, np.arange(4), rng=rng(), weighting=Weighting.LINEAR)
    observed = (0 + 1 + 0 + 3) / 4
    expected = np.abs(np.subtract.outer(first, second)).mean()
    assert found.value == pytest.approx(1 - observed / expected)


def test_swapping_the_raters_changes_nothing() -> None:
    first, second, _ = raters(60).T
    there, back = (
        cohen_kappa(*s, np.arange(60), rng=rng()) for s in ((first, second), (second, first))
    )
    assert there.value == pytest.approx(back.value)
    assert bounds(there) == pytest.approx(bounds(back))


def test_repeating_units_of_a_cluster_does_not_narrow_the_interval() -> None:
    first, second, _ = raters(40).T
    once = cohen_kappa(first, second, np.arange(40), rng=rng())
    sides = np.repeat(first, 4), np.repeat(second, 4)
    often = cohen_kappa(*sides, np.repeat(np.arange(40), 4), rng=rng())
    assert bounds(often) == pytest.approx(bounds(once))
    assert (often.n, often.clusters) == (160, 40)


def test_many_clusters_get_the_same_interval_in_closed_form(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second, _ = raters(500).T
    drawn = cohen_kappa(first, second, np.arange(500), rng=rng(), resamples=4000)
    monkeypatch.setattr(bootstrap, "MANY_CLUSTERS", 200)
    closed = cohen_kappa(first, second, np.arange(500), rng=rng())
    assert bounds(closed) == pytest.approx(bounds(drawn), abs=5e-3)


def test_missing_ratings_are_left_out_and_counted() -> None:
    first, second = np.array([1.0, GAP, 0.0, 1.0]), np.array([1.0, 1.0, GAP, 0.0])
    found = raw_agreement(first, second, list("abcd"), missing=3)
    assert (found.value, found.n, found.missing) == (0.5, 2, 5)


def test_one_rating_for_all_has_no_kappa() -> None:
    same = np.ones(20)
    found = cohen_kappa(same, same, np.arange(20), rng=rng())
    assert (found.value, found.low, found.high) == (None, None, None)
    assert "chance would agree too" in found.method
    assert raw_agreement(same, same, np.arange(20)).value == 1.0


def test_full_agreement_is_not_known_exactly() -> None:
    ratings = raters(30)[:, 0]
    raw = raw_agreement(ratings, ratings, np.arange(30))
    kappa = cohen_kappa(ratings, ratings, np.arange(30), rng=rng())
    alpha = krippendorff_alpha(np.stack([ratings, ratings], axis=1), np.arange(30), rng=rng())
    quantile = t.ppf(0.975, 29)
    assert bounds(raw) == pytest.approx((1 / (1 + quantile**2 / 30), 1.0))
    assert raw.value == kappa.value == alpha.value == 1.0
    assert 0.8 < bounds(kappa)[0] < bounds(raw)[0]
    assert 0.8 < bounds(alpha)[0] < bounds(raw)[0]


def test_no_units_have_no_agreement() -> None:
    nothing = np.array([GAP, GAP])
    for found in (
        raw_agreement(nothing, nothing, list("ab")),
        cohen_kappa(nothing, nothing, list("ab"), rng=rng()),
        krippendorff_alpha(np.full((2, 2), GAP), list("ab"), rng=rng()),
    ):
        assert (found.value, found.n, found.missing) == (None, 0, 2)


def test_degrees_are_no_categories() -> None:
    degrees = rng().random(100)
    with pytest.raises(ValueError, match="100 different ratings, at most 30"):
        cohen_kappa(degrees, degrees, np.arange(100), rng=rng())


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 first and 1 second"):
        raw_agreement(np.ones(2), np.ones(1), list("ab"))


# Krippendorff's alpha.

PUBLISHED = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, GAP, GAP, GAP],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, GAP, 3],
        [GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, GAP],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, GAP],
    ]
).T


@pytest.mark.parametrize(
    ("scale", "alpha"), [(Scale.NOMINAL, 0.743), (Scale.ORDINAL, 0.815), (Scale.INTERVAL, 0.849)]
)
def test_alpha_equals_published_example(scale: Scale, alpha: float) -> None:
    # Krippendorff (2011), example C: four observers, twelve units, missing data.
    found = krippendorff_alpha(PUBLISHED, np.arange(12), rng=rng(), scale=scale)
    assert found.value == pytest.approx(alpha, abs=5e-4)
    assert (found.n, found.missing) == (11, 1)


@pytest.mark.parametrize("scale", list(Scale))
def test_order_of_raters_and_units_changes_nothing(scale: Scale) -> None:
    found = krippendorff_alpha(PUBLISHED, np.arange(12), rng=rng(), scale=scale)
    turned = krippendorff_alpha(PUBLISHED[::-1, ::-1], np.arange(12)[::-1], rng=rng(), scale=scale)
    assert turned.value == pytest.approx(found.value)
    assert bounds(turned) == pytest.approx(bounds(found))


def test_moving_an_interval_scale_changes_nothing() -> None:
    settings = {"scale": Scale.INTERVAL}
    found = krippendorff_alpha(PUBLISHED, np.arange(12), rng=rng(), **settings)
    moved = krippendorff_alpha(3 * PUBLISHED - 700, np.arange(12), rng=rng(), **settings)
    assert moved.value == pytest.approx(found.value)


def test_two_raters_without_gaps_nearly_have_kappas_alpha() -> None:
    ratings = raters(2000)[:, :2]
    alpha = krippendorff_alpha(ratings, np.arange(2000), rng=rng(), resamples=10)
    kappa = cohen_kappa(*ratings.T, np.arange(2000), rng=rng(), resamples=10)
    assert alpha.value == pytest.approx(kappa.value, abs=1e-3)


@needs_benchmarks
@pytest.mark.parametrize(
    "name", ["kappa", "alpha, 3 raters, gaps", "alpha, interval scale", "agreement with humans"]
)
def test_coefficients_cover(name: str) -> None:
    assert 0.91 <= coverage(name, 50, 5) <= 0.985


# Humans.


def test_ties_count_half_and_are_shown() -> None:
    judge = np.array([1.0, 0.9, 0.5, 0.5, 0.2, GAP, 1.0])
    human = np.array([1.0, 0.0, 0.5, 1.0, 0.5, 1.0, 0.6])
    found = human_agreement(judge, human, [f"p{i}" for i in range(7)], rng=rng(), missing=4)
    assert (found.alike, found.half, found.opposed) == (3, 2, 1)
    assert found.agreement.value == pytest.approx(4 / 6)
    assert (found.agreement.n, found.agreement.missing) == (6, 5)
    assert found.kappa.missing == 5
    assert "half for a tie" in found.agreement.method


def test_a_coin_agrees_by_half() -> None:
    judge, human = rng(1).integers(0, 2, size=(2, 4000)) * 1.0
    found = human_agreement(judge, human, np.arange(4000), rng=rng(), resamples=200)
    low, high = bounds(found.agreement)
    assert low < 0.5 < high
    low, high = bounds(found.kappa)
    assert low < 0.0 < high
