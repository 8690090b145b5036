"""Length-controlled win rates: fits against other solvers, intervals by simulation."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from harness.stats import bootstrap, length_control, length_fit
from harness.stats.length_control import (
    PENALTIES,
    RIDGE,
    UPSTREAM_PENALTIES,
    LengthControlled,
    Regulariser,
    alpaca_eval_win_rate,
    paper_win_rate,
    rate_from_coefficients,
)
from harness.stats.length_fit import fit_logistic, lasso, ridge
from harness.types import Estimate

FORMS = pytest.mark.parametrize("form", [alpaca_eval_win_rate, paper_win_rate])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def rows(seed: int, n: int, p: int = 3) -> tuple[np.ndarray, np.ndarray]:
    generator = rng(seed)
    design = generator.normal(size=(n, p))
    design[:, 0], design[:, -1] = np.tanh(design[:, 0]), 1.0
    return design, expit(design @ np.linspace(1.0, -0.5, p) + generator.normal(size=n))


def fitted(counts: np.ndarray, design: np.ndarray, labels: np.ndarray, target: Any) -> np.ndarray:
    return fit_logistic(counts, np.arange(len(labels)), design, labels, target)


def liblinear(c: float, weights: np.ndarray, design: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A soft label is a win and a loss, weighted: what alpaca-eval makes of it."""
    solver = LogisticRegression(
        C=c, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-9, max_iter=10**6
    )
    both = np.concatenate([weights * labels, weights * (1 - labels)])
    solver.fit(np.tile(design, (2, 1)), np.repeat([1, 0], len(labels)), both)
    return np.asarray(solver.coef_[0])


def value(found: LengthControlled | None) -> float:
    assert found is not None
    assert found.estimate.value is not None
    return found.estimate.value


def bounds(found: LengthControlled | None) -> tuple[float, float]:
    assert found is not None
    estimate: Estimate = found.estimate
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


# The fits.


@pytest.mark.parametrize("c", [0.003, 0.05, 0.36, 2.78, 1e4])
@pytest.mark.parametrize("seed", range(3))
def test_lasso_equals_liblinear(seed: int, c: float) -> None:
    design, labels = rows(seed, 150)
    weights = rng(seed + 9).integers(0, 4, size=150).astype(float)
    found = fitted(c * weights[None], design, labels, lasso(1.0))[0]
    assert found == pytest.approx(liblinear(c, weights, design, labels), abs=1e-5)


def test_lasso_meets_its_optimality_conditions_and_its_zeros_are_exact() -> None:
    design, labels = rows(3, 100)
    strengths = np.geomspace(0.001, 100, 40)
    found = fitted(np.tile(strengths[:, None], 100), design, labels, lasso(1.0))
    residual = (labels - expit(found @ design.T)) * strengths[:, None]
    gradient = residual @ design
    zero = found == 0
    assert 0 < zero.sum() < zero.size
    assert (abs(gradient[zero]) <= 1 + 1e-9).all()
    assert gradient[~zero] == pytest.approx(np.sign(found[~zero]), abs=1e-8)


@pytest.mark.parametrize("seed", range(5))
def test_ridge_equals_scikit_learn(seed: int) -> None:
    design, labels = rows(seed, 80, p=2)
    counts = rng(seed).integers(0, 4, size=80).astype(float)
    found = fitted(counts[None], design, labels, ridge(RIDGE))[0]
    model = LogisticRegression(
        C=1 / RIDGE, fit_intercept=False, tol=1e-12, solver="newton-cholesky"
    )
    model.fit(
        np.tile(design, (2, 1)),
        np.repeat([1, 0], 80),
        np.concatenate([counts * labels, counts * (1 - labels)]),
    )
    assert found == pytest.approx(model.coef_[0], abs=1e-7)


@pytest.mark.parametrize("case", ["wins", "separated", "large and separated", "one observation"])
def test_ridge_minimises_its_objective_where_data_are_separated(case: str) -> None:
    n = {"large and separated": 3000, "one observation": 1}.get(case, 60)
    covariate = np.tanh(np.linspace(-2, 2, n))
    design = np.stack([covariate, np.ones(n)], axis=1)
    labels = np.ones(n) if case in ("wins", "one observation") else (covariate > 0.2) * 1.0

    def objective(at: np.ndarray) -> float:
        z = design @ at
        return float((np.logaddexp(0, z) - labels * z).sum() + RIDGE / 2 * (at @ at))

    def gradient(at: np.ndarray) -> np.ndarray:
        return np.asarray((expit(design @ at) - labels) @ design + RIDGE * at)

    found = fitted(np.ones((1, n)), design, labels, ridge(RIDGE))[0]
    best = minimize(objective, np.zeros(2), jac=gradient, method="BFGS", options={"gtol": 1e-8})
    assert found == pytest.approx(best.x, rel=1e-3)
    assert objective(found) <= best.fun + 1e-9
    assert np.abs(gradient(found)).max() < 1e-8


@pytest.mark.parametrize("c", [2.78, 1e4])
def test_lasso_is_finite_where_data_are_separated(c: float) -> None:
    design, _ = rows(1, 50)
    labels = (design @ np.array([1.0, -0.4, 0.3]) > 0) * 1.0
    found = fitted(np.full((1, 50), c), design, labels, lasso(1.0))[0]
    gradient = c * (labels - expit(design @ found)) @ design
    assert gradient == pytest.approx(np.sign(found), abs=1e-6)


def test_fit_converges_where_full_newton_steps_run_away() -> None:
    covariate = np.array([-0.72, 0.08, -0.32, -0.63, -0.92, -0.2, 0.25])
    design = np.stack([covariate, np.ones(7)], axis=1)
    labels = np.array([0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    counts = np.array([1.0, 6e5, 1.0, 2.0, 20.0, 5.5e5, 75.0])
    found = fitted(counts[None], design, labels, ridge(RIDGE))[0]
    gradient = (counts * (labels - expit(design @ found))) @ design - RIDGE * found
    assert np.abs(gradient).max() < 1e-6


@pytest.mark.parametrize("cells", [1, 70, 10**6])
@pytest.mark.parametrize("target", [ridge(RIDGE), lasso(1.0)])
def test_weightings_are_fitted_independently(
    cells: int, target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(length_fit, "CACHED_CELLS", cells)
    design, labels = rows(4, 30)
    index = np.arange(30) // 2
    counts = bootstrap.cluster_counts(8, 15, rng(4))
    together = fit_logistic(counts, index, design, labels, target, np.array([0.5, -0.5, 1.0]))
    for row, found in zip(counts, together, strict=True):
        alone = fit_logistic(row[None], index, design, labels, target)[0]
        assert found == pytest.approx(alone, abs=1e-9)


def test_a_covariate_that_is_zero_throughout_gets_no_effect() -> None:
    design, labels = rows(5, 60)
    design[:, 1] = 0.0
    for target in (ridge(RIDGE), lasso(1.0)):
        found = fitted(np.ones((1, 60)), design, labels, target)[0]
        without = fitted(np.ones((1, 60)), design[:, [0, 2]], labels, target)[0]
        assert found[1] == 0.0
        assert found[[0, 2]] == pytest.approx(without, abs=1e-9)


def test_a_fit_that_does_not_converge_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(length_fit, "MAX_STEPS", 2)
    with pytest.raises(ArithmeticError, match="2 Newton steps"):
        fitted(np.ones((1, 40)), *rows(1, 40), lasso(1.0))


# The two forms.


def evaluation(
    seed: int, n: int = 60, per_prompt: int = 1, constant: float = 0.4
) -> dict[str, np.ndarray]:
    """Judgments of a candidate that is longer by half a standard deviation."""
    generator = rng(seed)
    prompt = np.arange(n) // per_prompt
    lengths = generator.normal(-50, 100, size=n)
    difficulty = generator.normal(size=n)[prompt]
    chance = expit(1.2 * np.tanh(lengths / 100) + 0.5 * difficulty + constant)
    return {
        "labels": (generator.random(n) < chance) * 1.0,
        "length_differences": lengths,
        "clusters": prompt,
        "difficulty": difficulty,
    }


def regulariser(seed: int, m: int = 120) -> Regulariser:
    covariates = rng(seed).normal(size=(m, 2))
    return Regulariser(covariates, expit(covariates @ np.array([1.0, 0.6])))


@pytest.mark.parametrize("penalties", [PENALTIES, UPSTREAM_PENALTIES])
@pytest.mark.parametrize("seed", range(4))
def test_alpaca_eval_form_equals_scikit_learn(seed: int, penalties: np.ndarray) -> None:
    """The whole procedure once more, one fit at a time, with scikit-learn's folds."""
    data, extra = evaluation(seed, n=100), regulariser(seed)
    found = alpaca_eval_win_rate(
        **data, rng=rng(), regulariser=extra, penalties=penalties, resamples=1
    )
    lengths = data["length_differences"] / data["length_differences"].std(ddof=1)
    own = np.stack([np.tanh(lengths), data["difficulty"], np.ones(100)], axis=1)
    added = np.column_stack(
        [np.tanh(extra.covariates[:, 0]), extra.covariates[:, 1], np.zeros(120)]
    )
    design, labels = np.concatenate([added, own]), np.concatenate([extra.labels, data["labels"]])
    weights = np.repeat([0.1, 1.0], [120, 100])
    loss = np.zeros(len(penalties))
    for train, test in GroupKFold(5).split(design, groups=np.arange(220)):
        for place, c in enumerate(penalties):
            at = liblinear(c, weights[train], design[train], labels[train])
            z = design[test] @ at
            entropy = np.logaddexp(0, z) - labels[test] * z
            loss[place] += (weights[test] * entropy).mean()
    assert found is not None
    assert found.penalty == penalties[loss.argmin()]
    best = liblinear(found.penalty, weights, design, labels)
    assert [found.length, found.difficulty, found.constant] == pytest.approx(best, abs=1e-5)
    predicted = expit(best[1] * data["difficulty"] + best[2])
    assert value(found) == pytest.approx(predicted.mean(), abs=1e-6)
    assert found.standard_error == pytest.approx(predicted.std(ddof=1) / 10, abs=1e-6)


def test_paper_form_with_item_effect_equals_scikit_learn() -> None:
    data = evaluation(1, n=120)
    found = paper_win_rate(**data, rng=rng(), resamples=1)
    lengths = data["length_differences"] / data["length_differences"].std(ddof=1)
    design = np.stack([np.tanh(lengths), data["difficulty"], np.ones(120)], axis=1)
    model = LogisticRegression(
        C=1 / RIDGE, fit_intercept=False, tol=1e-12, solver="newton-cholesky"
    )
    model.fit(design, data["labels"])
    assert found is not None
    at = [found.length, found.difficulty, found.constant]
    assert at == pytest.approx(model.coef_[0], abs=1e-6)
    assert value(found) == pytest.approx(
        rate_from_coefficients(found.difficulty, found.constant, data["difficulty"])
    )


def test_ridge_hardly_moves_ordinary_data(monkeypatch: pytest.MonkeyPatch) -> None:
    data = evaluation(1)
    with_ridge = value(paper_win_rate(**data, rng=rng(), resamples=1))
    monkeypatch.setattr(length_control, "RIDGE", 1e-9)
    without = value(paper_win_rate(**data, rng=rng(), resamples=1))
    assert with_ridge != without
    assert with_ridge == pytest.approx(without, rel=2e-3)


def test_rate_from_coefficients_is_a_mean_over_items() -> None:
    assert rate_from_coefficients(0.0, 0.0, [1.0, 2.0]) == 0.5
    assert rate_from_coefficients(2.0, -1.0, [0.0, 1.0]) == pytest.approx(expit([-1.0, 1.0]).mean())


@FORMS
def test_items_may_be_a_fixed_set(form: Any) -> None:
    data, items = evaluation(2), np.array([-1.0, 0.0, 2.0, 5.0])
    found = form(**data, predict_difficulty=items, rng=rng(1), resamples=300)
    expected = rate_from_coefficients(found.difficulty, found.constant, items)
    assert value(found) == pytest.approx(expected)
    low, high = bounds(found)
    assert low < expected < high


@FORMS
def test_without_difficulty_the_rate_is_that_of_the_constant(form: Any) -> None:
    data = evaluation(3)
    del data["difficulty"]
    found = form(**data, rng=rng(1), resamples=200)
    assert value(found) == pytest.approx(expit(found.constant))
    assert (found.difficulty, found.standard_error) == (0.0, None)


def test_a_regulariser_holds_effects_in_place() -> None:
    data, extra = evaluation(4, n=30), regulariser(4)
    strong = Regulariser(extra.covariates, extra.labels, weight=1e5)
    found = alpaca_eval_win_rate(**data, rng=rng(), regulariser=strong, resamples=1)
    assert found is not None
    only = liblinear(
        100.0,
        np.ones(120),
        np.tanh(extra.covariates) * [1, 0] + extra.covariates * [0, 1],
        extra.labels,
    )
    assert [found.length, found.difficulty] == pytest.approx(only, abs=0.02)


@FORMS
def test_swapping_sides_turns_p_into_one_minus_p(form: Any) -> None:
    data = evaluation(5)
    del data["difficulty"]
    there = form(**data, rng=rng(3), resamples=300)
    swapped = data | {
        "labels": 1 - data["labels"],
        "length_differences": -data["length_differences"],
    }
    back = form(**swapped, rng=rng(3), resamples=300)
    assert value(there) - 0.5 == pytest.approx(0.5 - value(back), abs=1e-12)
    if form is paper_win_rate:
        assert there.constant == -back.constant
    low, high = bounds(back)
    assert bounds(there) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@FORMS
def test_unit_of_length_does_not_matter(form: Any) -> None:
    data = evaluation(6)
    one = form(**data, rng=rng(3), resamples=200)
    shorter = data | {"length_differences": data["length_differences"] / 4.7}
    other = form(**shorter, rng=rng(3), resamples=200)
    assert value(one) == pytest.approx(value(other), abs=1e-10)
    assert bounds(one) == pytest.approx(bounds(other), abs=1e-9)


@pytest.mark.parametrize(
    "form", [partial(alpaca_eval_win_rate, penalties=PENALTIES[-1:]), paper_win_rate]
)
def test_verdicts_on_one_prompt_are_resampled_together(form: Any) -> None:
    data = evaluation(7)
    once = form(**data, rng=rng(3), resamples=300)
    often = form(**{k: np.repeat(v, 4) for k, v in data.items()}, rng=rng(3), resamples=300)
    assert (often.estimate.n, often.estimate.clusters) == (240, 60)
    # Equal but for the penalty, which weighs a quarter as much, and for s.
    assert bounds(often) == pytest.approx(bounds(once), abs=2e-3)


@FORMS
def test_judgments_without_a_verdict_are_left_out_and_counted(form: Any) -> None:
    data = evaluation(8)
    broken = {"labels": np.nan, "length_differences": np.nan, "clusters": 99, "difficulty": np.nan}
    more = {name: np.append(column, broken[name]) for name, column in data.items()}
    clean = form(**data, rng=rng(3), resamples=100)
    found = form(**more, rng=rng(3), resamples=100, missing=2)
    assert (value(found), bounds(found)) == (value(clean), bounds(clean))
    assert (found.estimate.n, found.estimate.clusters, found.estimate.missing) == (60, 60, 3)


@FORMS
def test_no_verdict_gives_nothing(form: Any) -> None:
    assert form([np.nan], [3.0], ["a"], rng=rng()) is None
    assert form([], [], [], rng=rng()) is None


@FORMS
def test_one_prompt_has_no_interval(form: Any) -> None:
    found = form([1.0, 0.0, 1.0], [1.0, -1.0, 0.5], ["a", "a", "a"], rng=rng())
    assert value(found) > 0
    assert (found.estimate.low, found.estimate.high) == (None, None)


@FORMS
@pytest.mark.parametrize("prompts", [2, 3, 6])
def test_few_prompts_have_an_interval_inside_the_unit(form: Any, prompts: int) -> None:
    found = form(**evaluation(9, n=60, per_prompt=60 // prompts), rng=rng(1), resamples=300)
    low, high = bounds(found)
    assert found.estimate.clusters == prompts
    assert 0 < low < value(found) < high < 1


@FORMS
def test_unanimous_verdicts_are_not_certainty(form: Any) -> None:
    data = evaluation(10) | {"labels": np.ones(60)}
    found = form(**data, rng=rng(), resamples=50)
    assert value(found) > 0.9
    # Wilson's bound at a share of 1: n / (n + t^2), t of n - 1 degrees.
    low, high = bounds(found)
    assert low == pytest.approx(60 / (60 + stats.t.ppf(0.975, 59) ** 2))
    assert high == 1.0
    assert "wilson" in found.estimate.method


@FORMS
def test_equal_lengths_show_no_length_effect(form: Any) -> None:
    labels = np.tile([1.0, 1.0, 0.0, 0.5], 15)
    found = form(labels, np.full(60, 7), np.arange(60), rng=rng(), resamples=200)
    assert value(found) == pytest.approx(labels.mean(), abs=0.01)
    assert found.length == 0.0
    assert "length differences are equal" in found.estimate.method


@FORMS
@pytest.mark.parametrize("difficult", [True, False])
def test_linearised_interval_is_close_to_the_refitted_one(
    form: Any, difficult: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = evaluation(11, n=900, per_prompt=3)
    if not difficult:
        del data["difficulty"]
    refitted = form(**data, rng=rng(1), resamples=1500)
    monkeypatch.setattr(length_control, "REFITTED_CELLS", 0)
    found = form(**data, rng=rng(1))
    assert "linearised" in found.estimate.method
    assert bounds(found) == pytest.approx(bounds(refitted), abs=0.006)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"labels": [1.0, 2.0]}, r"lie in \[0, 1\]"),
        ({"length_differences": [1.0]}, "2 labels but 1 values of length difference"),
        ({"length_differences": [1.0, np.inf]}, "length difference is not finite"),
        ({"difficulty": [1.0, np.nan]}, "difficulty is not finite"),
        ({"clusters": ["a"]}, "2 labels but 1 clusters"),
        ({"level": 1.0}, "level"),
        ({"resamples": 0}, "resamples"),
    ],
)
@FORMS
def test_wrong_columns_are_refused(form: Any, changed: dict[str, Any], problem: str) -> None:
    given = {"labels": [1.0, 0.0], "length_differences": [1.0, 2.0], "clusters": ["a", "b"]}
    with pytest.raises(ValueError, match=problem):
        form(**(given | changed), rng=rng())


# A judge that reads nothing but lengths.


@FORMS
@pytest.mark.parametrize("taste", [3.0, -3.0, 1e9], ids=["longer", "shorter", "always longer"])
@pytest.mark.parametrize("n", [50, 300])
def test_judge_of_length_alone_is_at_one_half(form: Any, taste: float, n: int) -> None:
    generator = rng(n)
    lengths = generator.normal(80, 100, size=n)  # the candidate's surplus
    labels = (generator.random(n) < expit(taste * np.tanh(lengths / 100))) * 1.0
    found = form(labels, -lengths, np.arange(n), rng=generator, resamples=400)
    low, high = bounds(found)
    assert abs(labels.mean() - 0.5) > 0.15
    assert low < 0.5 < high


# Coverage: 150 repetitions estimate 95 % with a standard error of 1.8 points; the whole table is
# measured by benchmarks/coverage.py.


@FORMS
def test_coverage_with_prompts_of_two_judgments(form: Any) -> None:
    generator, hits = rng(12), 0
    for seed in range(150):
        data = evaluation(seed, n=50, per_prompt=2)
        del data["difficulty"]
        low, high = bounds(form(**data, rng=generator, resamples=200))
        hits += low <= COVERED <= high
    assert 0.89 <= hits / 150 <= 0.99


def marginal_truth() -> float:
    """The length model's rate in a very large evaluation, whose difficulties it does not know."""
    data = evaluation(0, n=400_000)
    del data["difficulty"]
    return value(paper_win_rate(**data, rng=rng(), resamples=30))


COVERED = marginal_truth()
